"""RNADE's native operations: the reference's numbers, the same bits in every batch and thread, far out in tails too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import pytest
import torch
from oracle import assert_as_accurate
from torch import Tensor

import pyar
from pyar.ops import rnade as ops
from pyar.reference import mixtures
from pyar.reference import rnade as reference
from pyar.reference.mixtures import FAMILIES
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms

pytestmark = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")


class Parameters(NamedTuple):
    """RNADE's parameters as every function of pyar.reference.rnade and pyar.ops.rnade takes them."""

    W: Tensor
    c: Tensor
    rho: Tensor
    V: Tensor
    b: Tensor
    family: str = "gaussian"
    activation: str = "relu"
    min_scale: float = 0.02

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self[:5]

    def map(self, function: Callable[[Tensor], Tensor]) -> Parameters:
        return Parameters(*map(function, self.tensors), *self[5:])

    def double(self) -> Parameters:
        return self.map(lambda tensor: tensor.detach().double())

    def leaves(self) -> Parameters:
        return self.map(lambda tensor: tensor.detach().clone().requires_grad_())


def rnade_parameters(D: int, C: int, H: int, *, seed: int = 0, **options: Any) -> Parameters:
    """Random parameters whose sums and outputs are of order one at any D and H."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    V = normal(D, 3 * C, H, std=0.7 * H**-0.5)
    V[:, 2 * C :] *= 0.2  # else scales that grow with what was drawn run away
    return Parameters(
        normal(D, H, std=1.0),
        normal(H, std=0.5),
        torch.arange(1, D + 1).rsqrt() + normal(D, std=0.05),
        V,
        normal(D, 3 * C, std=0.5),
        **options,
    )


# Every family and nonlinearity; a sum over more units than one sweep takes; sizes that divide nothing.
CASES = [
    pytest.param(11, 10, 50, {}, id="gaussian"),
    pytest.param(23, 3, 17, {"family": "logistic", "activation": "sigmoid"}, id="logistic"),
    pytest.param(9, 5, 33, {"family": "laplace", "activation": "tanh"}, id="laplace"),
    pytest.param(6, 4, 301, {"min_scale": 0.0}, id="wide"),
    pytest.param(40, 1, 5, {"activation": "tanh"}, id="one-component"),
    pytest.param(1, 2, 3, {"family": "logistic"}, id="one-dimension"),
]


def random_values(B: int, D: int, seed: int = 0) -> Tensor:
    return 1.5 * torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


def sample(p: Parameters, num_samples: int, **options: Any) -> tuple[Tensor, Tensor]:
    return ops.rnade_sample(*p, seed=torch.tensor(17), num_samples=num_samples, **options)


def lanes(outputs: Tensor, family: str, min_scale: float) -> Parameters:
    """One dimension whose outputs are the same for every value: [3C]."""
    P = len(outputs)
    zero = torch.zeros
    return Parameters(zero(1, 1), zero(1), zero(1), zero(1, P, 1), outputs[None], family, "relu", min_scale)


# --- The numbers ---


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_values_are_as_accurate_as_the_reference(D: int, C: int, H: int, options: dict) -> None:
    p = rnade_parameters(D, C, H, **options)
    x = random_values(70, D)
    float32, exact = reference.conditional_log_prob(x, *p), reference.conditional_log_prob(x.double(), *p.double())
    assert_as_accurate(ops.rnade_conditional_log_prob(x, *p), float32, exact, "conditional_log_prob")
    assert_as_accurate(ops.rnade_log_prob(x, *p), float32.sum(dim=1), exact.sum(dim=1), "log_prob")


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_samples_are_the_inverse_cdf_of_two_uniforms(D: int, C: int, H: int, options: dict) -> None:
    """Component and value, under float64 conditionals; another component only where u is at a boundary."""
    p = rnade_parameters(D, C, H, **options)
    N, first = 200, 2**40
    x, log_prob = sample(p, N, first_index=first)
    outputs = reference.outputs(x.double(), *p.double()[:5], p.activation)
    index = first + torch.arange(N)
    u, v = indexed_uniforms(17, index, D).double(), indexed_fine_uniforms(17, index, D, number=1)
    expected = torch.stack(
        [mixtures.draw(outputs[:, d], u[:, d], v[:, d], p.family, p.min_scale) for d in range(D)], dim=1
    )
    other = ~torch.isclose(x.double(), expected, rtol=1e-5, atol=1e-5)
    edges = torch.softmax(outputs[..., :C], dim=-1).cumsum(dim=-1)
    assert ((edges - u[..., None]).abs().amin(dim=-1)[other] < 1e-5).all()
    assert other.sum() <= 2
    exact = mixtures.log_prob(outputs, x.double(), p.family, p.min_scale).sum(dim=1)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.each_level
@pytest.mark.parametrize("family", FAMILIES)
def test_quantiles_are_exact_into_the_tails(family: str) -> None:
    """Draws of a standard density are its quantiles, in relative terms: near zero and far out."""
    N = 400_000
    x, _ = sample(lanes(torch.zeros(3), family, 0.0), N)
    v = indexed_fine_uniforms(17, torch.arange(N), 1, number=1)
    expected = torch.where(v < 0.5, 1.0, -1.0) * mixtures.quantile(torch.minimum(v, 1.0 - v), family)
    assert expected.abs().max() > 4.5
    assert expected.abs().min() < 1e-5
    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.each_level
@pytest.mark.parametrize("min_scale", [0.0, 1e-6, 0.02])
@pytest.mark.parametrize("family", FAMILIES)
def test_far_values_are_those_of_mpmath(family: str, min_scale: float) -> None:
    """Scales from the floor to 10⁴ and beyond what a float holds, values up to 50 deviations away."""
    for log_scale in (-80.0, -40.0, -3.0, 0.0, math.log(1e4), 60.0, 80.0):
        log_scales = torch.tensor([log_scale, log_scale - 0.5])
        scale = math.exp(log_scale) + min_scale
        x = (scale * torch.cat((torch.linspace(-50, 50, 101), torch.tensor([0.01, 200.0]))).double()).float()
        p = lanes(torch.cat((torch.tensor([0.3, -0.2]), torch.zeros(2), log_scales)), family, min_scale)
        actual = ops.rnade_log_prob(x[:, None], *p)
        assert torch.isfinite(actual).all()
        assert (actual[:50].diff() > 0).all()
        assert (actual[51:101].diff() < 0).all()
        expected = torch.tensor([log_density(value, p.b[0].tolist(), family, min_scale) for value in x.tolist()])
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=2e-6)


def log_density(x: float, outputs: list[float], family: str, min_scale: float) -> float:
    """The mixture's log-density to 40 digits."""
    C = len(outputs) // 3
    with mpmath.workdps(40):
        weights = [mpmath.exp(logit) for logit in outputs[:C]]
        total = mpmath.mpf(0)
        for weight, mean, log_scale in zip(weights, outputs[C : 2 * C], outputs[2 * C :], strict=True):
            scale = mpmath.exp(log_scale) + mpmath.mpf(float(torch.tensor(min_scale)))
            z = abs((mpmath.mpf(x) - mean) / scale)
            if family == "gaussian":
                density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)
            elif family == "logistic":
                density = mpmath.exp(-z) / (1 + mpmath.exp(-z)) ** 2
            else:
                density = mpmath.exp(-z) / 2
            total += weight / sum(weights) * density / scale
        return float(mpmath.log(total))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_float_cannot_hold_is_what_the_reference_says(family: str) -> None:
    """Infinite squares, scales beyond e^88 or below e^−88: −∞ or finite as there, never another number."""
    for log_scale, min_scale in ((95.0, 0.01), (-95.0, 0.0), (-95.0, 1e-39), (-86.0, 1e-39), (0.0, 1e38), (0.0, 0.0)):
        for x in (0.3, 1e20, 1e30, -3e38):
            outputs = torch.tensor([0.2, 0.1, 0.0, 0.5, log_scale, log_scale])
            value = torch.tensor([[x]])
            actual = ops.rnade_log_prob(value, *lanes(outputs, family, min_scale)).item()
            expected = mixtures.log_prob(outputs, value[:, 0], family, min_scale).item()
            if math.isfinite(expected):
                assert actual == pytest.approx(expected, rel=1e-5), (log_scale, min_scale, x)
            else:
                assert str(actual) == str(expected), (log_scale, min_scale, x)


# --- The bits ---


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_a_sample_has_the_same_bits_in_every_batch(
    D: int, C: int, H: int, options: dict, restore_threads: None
) -> None:
    p = rnade_parameters(D, C, H, **options)
    B = 150
    x, drawn_log_prob = sample(p, B, first_index=3)
    expected, terms = ops.rnade_log_prob(x, *p), ops.rnade_conditional_log_prob(x, *p)
    assert torch.equal(expected, drawn_log_prob)
    torch.testing.assert_close(terms.double().sum(dim=1).float(), expected)
    for rows in (slice(0, 1), slice(3, 20), slice(17, 66), slice(5, 150)):
        part = sample(p, rows.stop - rows.start, first_index=3 + rows.start)
        assert torch.equal(part[0], x[rows])
        assert torch.equal(part[1], drawn_log_prob[rows])
        assert torch.equal(ops.rnade_log_prob(x[rows], *p), expected[rows])
        assert torch.equal(ops.rnade_conditional_log_prob(x[rows], *p), terms[rows])
    many = x.repeat(20, 1)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(sample(p, B, first_index=3)[0], x)
        assert torch.equal(ops.rnade_log_prob(many, *p), expected.repeat(20))
        assert torch.equal(sample(p, 20 * B)[0][3 : B + 3], x)


@pytest.mark.each_level
def test_given_steps_and_orders() -> None:
    p = rnade_parameters(7, 3, 9)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    x, _ = sample(p, 40, order=order)
    u = indexed_uniforms(17, torch.arange(40), 7)
    first = ops.rnade_sample(*p.map(lambda t: t[:1] if len(t) == 7 else t), seed=torch.tensor(17), num_samples=40)
    assert not torch.equal(first[0][:, 0], x[:, 0])  # step 0 takes dimension 3's uniforms
    out = reference.outputs(x[:, :1].double(), *p.double()[:5], p.activation)[:, 0]
    component = (torch.softmax(out[:, :3], dim=-1).cumsum(dim=-1) <= u[:, 3:4]).sum(dim=-1)
    v = indexed_fine_uniforms(17, torch.arange(40), 7, number=1)[:, 3]
    scale = out[0, 6 + component].exp() + p.min_scale
    expected = out[0, 3 + component] + scale * torch.special.ndtri(v)
    torch.testing.assert_close(x[:, 0].double(), expected, rtol=1e-5, atol=1e-5)
    given = x[:, :3].clone()
    again, rest = sample(p, 40, order=order, given=given)
    assert torch.equal(again, x)
    terms = ops.rnade_conditional_log_prob(x, *p)
    torch.testing.assert_close(rest, terms[:, 3:].sum(dim=1), rtol=1e-5, atol=1e-5)
    whole, nothing = sample(p, 40, given=x)
    assert torch.equal(whole, x)
    assert (nothing == 0).all()
    assert sample(p, 0)[0].shape == (0, 7)
    assert ops.rnade_log_prob(x[:0], *p).shape == (0,)


@pytest.mark.parametrize("name", ["W", "c", "rho", "V", "b"])
def test_nan_is_never_hidden(name: str) -> None:
    """Not even by a ReLU, whose comparison it fails."""
    p = rnade_parameters(6, 3, 9)
    getattr(p, name).fill_(math.nan)
    x = random_values(40, 6)
    assert ops.rnade_log_prob(x, *p).isnan().all()
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(p, 40)


@pytest.mark.parametrize("row", range(9))
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nothing_is_drawn_from_what_is_no_distribution(bad: float, row: int) -> None:
    p = rnade_parameters(6, 3, 9)
    p.b[4, row] = bad
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(p, 200)


# --- Gradients ---


def gradients(log_prob: Callable[..., Tensor], x: Tensor, p: Parameters, upstream: Tensor) -> list[Tensor]:
    """With respect to x and all parameters."""
    x, p = x.clone().requires_grad_(), p.leaves()
    inputs = [x, *p.tensors]
    return list(torch.autograd.grad(log_prob(x, *p), inputs, upstream, allow_unused=True, materialize_grads=True))


def reference_log_prob(x: Tensor, *arguments: Any) -> Tensor:
    return reference.conditional_log_prob(x, *arguments).sum(dim=1)


@pytest.mark.each_level
@pytest.mark.parametrize("B", [1, 45, 150])
@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_gradients_are_as_accurate_as_the_reference(D: int, C: int, H: int, options: dict, B: int) -> None:
    p, x = rnade_parameters(D, C, H, **options), random_values(B, D)
    generator = torch.Generator().manual_seed(1)
    for function, law, shape in (
        (ops.rnade_log_prob, reference_log_prob, (B,)),
        (ops.rnade_conditional_log_prob, reference.conditional_log_prob, (B, D)),
    ):
        upstream = torch.randn(shape, generator=generator)
        upstream[B // 2] = 0.0
        exact = gradients(law, x.double(), p.double(), upstream.double())
        float32 = [gradients(law, x, p, upstream)]
        for _ in range(5):  # other orders of the batch
            rows = torch.randperm(B, generator=generator)
            float32.append(gradients(law, x[rows], p, upstream[rows]))
            float32[-1][0] = float32[-1][0][rows.argsort()]
        actual = gradients(function, x, p, upstream)
        for i, name in enumerate(("x", "W", "c", "rho", "V", "b")):
            assert_as_accurate(actual[i], [values[i] for values in float32], exact[i], f"{function.__name__}, {name}")


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_gradients_have_the_same_bits_for_every_number_of_threads(
    D: int, C: int, H: int, options: dict, restore_threads: None
) -> None:
    """Over more than one sub-batch."""
    p, x = rnade_parameters(D, C, H, **options), random_values(600, D)
    upstream = torch.linspace(-1, 2, 600)
    expected = gradients(ops.rnade_log_prob, x, p, upstream)
    exact = gradients(reference_log_prob, x.double(), p.double(), upstream.double())
    for actual, value in zip(expected, exact, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for actual, value in zip(gradients(ops.rnade_log_prob, x, p, upstream), expected, strict=True):
            assert torch.equal(actual, value)
    assert torch.equal(gradients(ops.rnade_log_prob, x[:40], p, upstream[:40])[0], expected[0][:40])


@pytest.mark.each_level
@pytest.mark.parametrize("min_scale", [1e-6, 0.02])
@pytest.mark.parametrize("family", FAMILIES)
def test_far_values_have_gradients(family: str, min_scale: float) -> None:
    """Scales from the floor to 10⁴, values 50 deviations away; errors are relative to a value's largest derivative."""
    found: dict[str, list[Tensor]] = {"actual": [], "float32": [], "exact": []}
    for log_scale in (-40.0, -3.0, 0.0, math.log(1e4)):
        p = lanes(torch.tensor([0.3, -0.2, 0.0, 0.1, log_scale, log_scale - 0.5]), family, min_scale)
        for z in (-50.0, -3.0, 0.1, 7.0, 50.0):
            x = torch.tensor([[(math.exp(log_scale) + min_scale) * z + 0.05]])
            actual = gradients(ops.rnade_log_prob, x, p, torch.ones(1))
            float32 = gradients(reference_log_prob, x, p, torch.ones(1))
            exact = gradients(reference_log_prob, x.double(), p.double(), torch.ones(1).double())
            assert torch.isfinite(actual[5]).all()
            assert (actual[5][0, 2:4] != 0).any()
            for kind, values in (("actual", actual), ("float32", float32), ("exact", exact)):
                found[kind] += [values[i].flatten() / exact[i].abs().max().to(values[i].dtype) for i in (0, 5)]
    assert_as_accurate(*(torch.cat(parts) for parts in found.values()), "gradients")


def test_where_the_density_vanishes_only_its_own_component_counts() -> None:
    """A component so far away that its square is infinite has a responsibility, and gradients, of zero."""
    p = lanes(torch.tensor([0.0, 0.0, 1e30, 0.5, 0.0, 0.0]), "gaussian", 0.02)
    actual = gradients(ops.rnade_log_prob, torch.tensor([[0.2]]), p, torch.ones(1))
    exact = gradients(reference_log_prob, torch.tensor([[0.2]]).double(), p.double(), torch.ones(1).double())
    torch.testing.assert_close(actual[5].double(), exact[5], rtol=1e-5, atol=1e-6)


def test_gradients_of_gradients_are_torchs() -> None:
    p, x = rnade_parameters(5, 3, 9, activation="tanh"), random_values(6, 5)

    def second(law: Callable[..., Tensor], x: Tensor, p: Parameters) -> list[Tensor]:
        p = p.leaves()
        first = torch.autograd.grad(law(x, *p).sum(), p.tensors, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), p.tensors))

    expected = second(reference_log_prob, x.double(), p.double())
    for actual, value in zip(second(ops.rnade_log_prob, x, p), expected, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


def test_gradients_within_transforms_are_torchs() -> None:
    p, x = rnade_parameters(5, 3, 9), random_values(6, 5)
    expected = gradients(ops.rnade_log_prob, x, p, torch.ones(6))

    def total(V: Tensor) -> Tensor:
        return ops.rnade_log_prob(x, *p._replace(V=V)).sum()

    torch.testing.assert_close(torch.func.grad(total)(p.V), expected[4], rtol=1e-4, atol=1e-4)
    each = torch.func.vmap(
        torch.func.grad(lambda V, row: ops.rnade_log_prob(row[None], *p._replace(V=V)).sum()), (None, 0)
    )
    torch.testing.assert_close(each(p.V, x).sum(dim=0), expected[4], rtol=1e-4, atol=1e-4)


def test_gradients_of_nothing_are_zero() -> None:
    p = rnade_parameters(5, 3, 9)
    for gradient in gradients(ops.rnade_log_prob, torch.zeros(0, 5), p, torch.zeros(0)):
        assert (gradient == 0).all()


# --- Without kernels ---


@pytest.mark.parametrize(("D", "C", "H", "options"), CASES)
def test_torchs_operations_give_the_same(
    D: int, C: int, H: int, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = rnade_parameters(D, C, H, **options)
    x = random_values(40, D)
    native = ops.rnade_log_prob(x, *p), ops.rnade_conditional_log_prob(x, *p), *sample(p, 40, given=x[:, : D // 3])
    monkeypatch.setattr(ops.transforms, "leaves_to_kernels", lambda V: False)
    torchs = ops.rnade_log_prob(x, *p), ops.rnade_conditional_log_prob(x, *p), *sample(p, 40, given=x[:, : D // 3])
    for actual, expected in zip(native, torchs, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=5e-4)


def test_forward_mode_derivatives() -> None:
    p = rnade_parameters(6, 3, 9, activation="tanh")
    x = random_values(5, 6)
    tangent = torch.randn(p.W.shape, generator=torch.Generator().manual_seed(0))
    leaf = p.W.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.rnade_log_prob(x, *p._replace(W=leaf)).sum(), leaf)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p.W, tangent)
        change = torch.autograd.forward_ad.unpack_dual(ops.rnade_log_prob(x, *p._replace(W=dual)).sum()).tangent
    torch.testing.assert_close(change, (gradient * tangent).sum(), rtol=1e-4, atol=1e-4)


# --- What torch does with operations ---


def test_opcheck() -> None:
    *tensors, _, _, min_scale = rnade_parameters(6, 3, 9)
    x = random_values(5, 6)
    ns = torch.ops.pyar
    for family in range(3):
        parameters = (*tensors, family, 0, min_scale)
        torch.library.opcheck(ns.rnade_log_prob.default, (x, *parameters))
        torch.library.opcheck(ns.rnade_conditional_log_prob.default, (x, *parameters))
        numbers = (torch.tensor(3), 5, 2, x[:, :2], torch.arange(6))
        for upstream in (torch.ones(5), torch.ones(5, 6)):
            for of_x in (False, True):
                torch.library.opcheck(ns.rnade_log_prob_backward.default, (upstream, x, *parameters, of_x))
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *tensors)]
        torch.library.opcheck(ns.rnade_log_prob.default, (*leaves, family, 0, min_scale))
        torch.library.opcheck(ns.rnade_sample.default, (*parameters, *numbers))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    p = rnade_parameters(6, 3, 9)
    x = random_values(5, 6)
    traced = torch.compile(ops.rnade_log_prob, fullgraph=True, backend="aot_eager", dynamic=False)
    assert torch.equal(traced(x, *p), ops.rnade_log_prob(x, *p))
    leaves = p.leaves()
    traced(x, *leaves).sum().backward()
    for leaf, expected in zip(leaves.tensors, gradients(ops.rnade_log_prob, x, p, torch.ones(5))[1:], strict=True):
        assert torch.equal(leaf.grad, expected)
    numbers = {"seed": torch.tensor(3), "num_samples": 5}
    traced = torch.compile(ops.rnade_sample, fullgraph=True, backend="aot_eager", dynamic=False)
    for actual, expected in zip(traced(*p, **numbers), ops.rnade_sample(*p, **numbers), strict=True):
        assert torch.equal(actual, expected)


def test_autocast() -> None:
    p = rnade_parameters(6, 3, 20)
    x = random_values(40, 6)
    expected = ops.rnade_log_prob(x, *p), *sample(p, 40)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ops.rnade_log_prob(x, *p), *sample(p, 40)
        half = ops.rnade_log_prob(x, *p.map(lambda tensor: tensor.bfloat16()))
    for value, of_float32 in zip(actual, expected, strict=True):
        assert torch.equal(value, of_float32)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected[0], rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3)}, ValueError, r"x must be \[B, 4\], got \[2, 3\]"),
        ({"x": torch.zeros(2, 4).double()}, TypeError, "x must be float32"),
        ({"V": torch.zeros(4, 7, 5)}, ValueError, "three rows for each component"),
        ({"rho": torch.zeros(3)}, ValueError, r"rho must be \[4\], got \[3\]"),
        ({"family": "cauchy"}, ValueError, "family must be"),
        ({"activation": "gelu"}, ValueError, "activation must be"),
        ({"min_scale": -1.0}, RuntimeError, "min_scale must not be negative"),
    ],
)
def test_bad_arguments_are_named(change: dict, error: type[Exception], message: str) -> None:
    p = rnade_parameters(4, 2, 5)
    arguments = {"x": torch.zeros(2, 4), **dict(zip(Parameters._fields, p, strict=True)), **change}
    with pytest.raises(error, match=message):
        ops.rnade_log_prob(**arguments)
