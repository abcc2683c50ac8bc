"""MADE: the masks of the paper, exact probabilities, and a sampler that computes every unit once."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from oracle import all_states, assert_as_accurate, assert_follows_law, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.ops import made as ops
from pyar.reference import made as reference
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.philox import uniforms

needs_kernels = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")


class Parameters(NamedTuple):
    """MADE's parameters as every function of pyar.reference.made and pyar.ops.made takes them."""

    W: Tensor
    c: Tensor
    hidden: tuple[Tensor, ...]
    V: Tensor
    b: Tensor
    A: Tensor | None
    activation: str

    def map(self, function: Any) -> Parameters:
        A = None if self.A is None else function(self.A)
        hidden = tuple(map(function, self.hidden))
        return Parameters(
            function(self.W), function(self.c), hidden, function(self.V), function(self.b), A, self.activation
        )

    def double(self) -> Parameters:
        return self.map(lambda tensor: tensor.double())

    def leaves(self) -> Parameters:
        return self.map(lambda tensor: tensor.detach().clone().requires_grad_())

    @property
    def tensors(self) -> list[Tensor]:
        return [self.W, self.c, *self.hidden, self.V, self.b, *([] if self.A is None else [self.A])]


def made_parameters(
    D: int,
    K: int,
    sizes: tuple[int, ...],
    *,
    scalar: bool = False,
    direct: bool = True,
    activation: str = "relu",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Parameters:
    """Random parameters whose activations and logits are of order one at any sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return (std * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    P, states = 1 if K == 2 else K, () if scalar else (K - 1,)
    hidden = []
    for inputs, outputs in itertools.pairwise(sizes):
        hidden += [normal(outputs, inputs, std=1.5 * inputs**-0.5), normal(outputs, std=0.3)]
    return Parameters(
        normal(D, *states, sizes[0], std=2 * D**-0.5),
        normal(sizes[0], std=0.5),
        tuple(hidden),
        normal(D, P, sizes[-1], std=2 * sizes[-1] ** -0.5),
        normal(D, P, std=0.5),
        normal(D, *states, D, P, std=D**-0.5) if direct else None,
        activation,
    )


VARIANTS = [
    pytest.param(2, {"sizes": (9,)}, id="binary"),
    pytest.param(2, {"sizes": (11, 8), "activation": "tanh"}, id="binary-deep"),
    pytest.param(2, {"sizes": (3,), "scalar": True, "direct": False}, id="binary-scalar-narrow"),
    pytest.param(3, {"sizes": (9, 12)}, id="onehot"),
    pytest.param(4, {"sizes": (10, 7, 9), "activation": "sigmoid", "direct": False}, id="onehot-deep"),
    pytest.param(4, {"sizes": (8,), "scalar": True}, id="scalar"),
]
# More than one block of steps, tile of samples and vector of units; sizes that divide nothing.
LARGER = [
    pytest.param(70, 2, {"sizes": (130, 97)}, id="binary"),
    pytest.param(33, 2, {"sizes": (7, 300), "activation": "sigmoid", "direct": False}, id="binary-uneven"),
    pytest.param(41, 5, {"sizes": (66, 50), "activation": "tanh"}, id="onehot"),
    pytest.param(5, 256, {"sizes": (40,)}, id="bytes"),
    pytest.param(37, 11, {"sizes": (90,), "scalar": True}, id="scalar"),
    pytest.param(1, 3, {"sizes": (6, 5)}, id="one-dimension"),
    pytest.param(2, 2, {"sizes": (1,)}, id="one-unit"),
]


# --- The mathematics ---


def paper_log_prob(x: list[int], p: Parameters) -> float:
    """The paper's equations read out one scalar at a time, degrees by their definition."""
    (D, P, _), K = p.V.shape, 2 if p.V.shape[1] == 1 else p.V.shape[1]
    f = {"relu": lambda a: max(a, 0.0), "tanh": math.tanh, "sigmoid": lambda a: 1 / (1 + math.exp(-a))}[p.activation]

    def degree(j: int, units: int) -> int:
        return 1 + j * max(D - 1, 1) // units

    def from_input(table: Tensor, i: int, *place: int) -> float:
        if p.W.dim() == 2:
            return table[(i, *place)].item() * x[i] / (K - 1)
        return table[(i, x[i] - 1, *place)].item() if x[i] > 0 else 0.0

    H = len(p.c)
    h = [f(p.c[j].item() + sum(from_input(p.W, i, j) for i in range(D) if i < degree(j, H))) for j in range(H)]
    for weight, bias in zip(p.hidden[::2], p.hidden[1::2], strict=True):
        outputs, inputs = weight.shape
        h = [
            f(
                bias[k].item()
                + sum(weight[k, j].item() * h[j] for j in range(inputs) if degree(j, inputs) <= degree(k, outputs))
            )
            for k in range(outputs)
        ]
    total = 0.0
    for d in range(D):
        logits = []
        for k in range(P):
            logit = p.b[d, k].item() + sum(p.V[d, k, j].item() * h[j] for j in range(len(h)) if degree(j, len(h)) <= d)
            if p.A is not None:
                logit += sum(from_input(p.A, i, d, k) for i in range(d))
            logits.append(logit)
        if P == 1:
            logits = [0.0, *logits]
        total += logits[x[d]] - math.log(math.fsum(math.exp(logit) for logit in logits))
    return total


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_log_prob_is_the_papers(K: int, options: dict) -> None:
    parameters = made_parameters(6, K, dtype=torch.float64, **options)
    x = random_states(8, 6, K)
    expected = torch.tensor([paper_log_prob(row, parameters) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(reference.log_prob(x, *parameters), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("K", "options"), VARIANTS)
@pytest.mark.parametrize("D", [1, 2, 4])
def test_probabilities_sum_to_one(D: int, K: int, options: dict) -> None:
    total = reference.log_prob(all_states(D, K), *made_parameters(D, K, dtype=torch.float64, **options)).exp().sum()
    assert abs(total.item() - 1) < 1e-10


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_dependence_is_strictly_triangular(K: int, options: dict) -> None:
    """Changing dimension i leaves the conditionals of dimensions ≤ i as they are and moves later ones."""
    D = 6
    parameters = made_parameters(D, K, dtype=torch.float64, **options)
    x = random_states(16, D, K)
    for logits in (reference.logits, lambda x, *p: ops.made_logits(x, *Parameters(*p).map(Tensor.float))):
        before = logits(x, *parameters).reshape(16, D, -1)
        for i in range(D):
            changed = x.clone()
            changed[:, i] = (x[:, i] + 1) % K
            after = logits(changed, *parameters).reshape(16, D, -1)
            assert torch.equal(after[:, : i + 1], before[:, : i + 1])
            if options["sizes"] != (3,):  # three units of degrees 1, 2 and 4 see the last dimensions never
                assert ((after - before)[:, i + 1 :].abs().amax(dim=(0, 2)) > 1e-6).all()


@pytest.mark.parametrize(("num_dims", "units"), [(784, 500), (5, 4), (5, 3), (5, 40), (2, 3), (1, 4)])
def test_degrees_are_sorted_and_dealt_out_evenly(num_dims: int, units: int) -> None:
    degrees = reference.degrees(num_dims, units)
    highest = max(num_dims - 1, 1)
    assert degrees.tolist() == sorted(degrees.tolist())
    assert degrees.min() == 1
    assert degrees.max() <= highest
    counts = torch.bincount(degrees, minlength=highest + 1)[1:]
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_every_order_has_its_own_first_dimension(order: tuple[int, ...]) -> None:
    """The first dimension's probability is that of its logit alone, and the second one's hangs on the first alone."""
    torch.manual_seed(1)
    model = pyar.MADE(3, hidden_sizes=(16,), order=order)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x = all_states(3, 2)
    assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-6)
    logits = model.logits(x)
    first, second, third = order
    assert torch.equal(logits[:, first], model.b[0].expand(8))
    torch.testing.assert_close(logits[:, second][x[:, first] == 1], logits[:, second][x[:, first] == 1][:1].expand(4))
    assert logits[:, second].unique().numel() == 2
    assert logits[:, third].unique().numel() == 4


# --- The operations against the reference ---


@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_values_are_as_accurate_as_the_reference(D: int, K: int, options: dict) -> None:
    parameters = made_parameters(D, K, **options)
    x = random_states(20, D, K)
    for name in ("log_prob", "logits"):
        of_reference, of_op = getattr(reference, name), getattr(ops, f"made_{name}")
        exact, float32 = of_reference(x, *parameters.double()), of_reference(x, *parameters)
        assert_as_accurate(of_op(x, *parameters), float32, exact, name)
        assert torch.equal(of_op(x.long(), *parameters), of_op(x, *parameters))


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_gradients_are_the_references(K: int, options: dict) -> None:
    parameters = made_parameters(7, K, **options).leaves()
    double = parameters.double().leaves()
    x = random_states(5, 7, K)
    ops.made_log_prob(x, *parameters).sum().backward()
    reference.log_prob(x, *double).sum().backward()
    for actual, expected in zip(parameters.tensors, double.tensors, strict=True):
        torch.testing.assert_close(actual.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize("B", [1, 20, 131])
@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_gradients_are_as_accurate_as_the_references(D: int, K: int, options: dict, B: int) -> None:
    """For any gradient of the log-probabilities, and every form that a batch's last tile has."""
    parameters = made_parameters(D, K, **options).leaves()
    double = parameters.double().leaves()
    x, grad = random_states(B, D, K), torch.randn(B, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad(log_prob(x, *p), p.tensors, grad.to(p.c.dtype))
        for log_prob, p in [
            (ops.made_log_prob, parameters), (reference.log_prob, parameters), (reference.log_prob, double),
        ]
    ]  # fmt: skip
    for actual, float32, exact in zip(*gradients, strict=True):
        assert_as_accurate(actual, float32, exact, "gradient")


@needs_kernels
@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_log_prob_and_gradients_have_the_same_bits_on_any_threads(
    D: int, K: int, options: dict, restore_threads: None
) -> None:
    parameters = made_parameters(D, K, **options).leaves()
    x = random_states(900, D, K)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        log_prob = ops.made_log_prob(x, *parameters)
        results.append([log_prob, *torch.autograd.grad(log_prob.sum(), parameters.tensors)])
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
    part = ops.made_log_prob(x[13:40], *parameters)
    assert torch.equal(part, results[0][0][13:40])  # and an example's hang on no other


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_derivatives_of_gradients(K: int, options: dict) -> None:
    parameters = made_parameters(4, K, **options).leaves()
    double = parameters.double().leaves()
    x = random_states(5, 4, K)
    seconds = []
    for log_prob, p in ((ops.made_log_prob, parameters), (reference.log_prob, double)):
        first = torch.autograd.grad(log_prob(x, *p).sum(), p.tensors, create_graph=True)
        square = sum(gradient.square().sum() for gradient in first)
        seconds.append(torch.autograd.grad(square, p.tensors))
    for actual, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_some_parameters_alone() -> None:
    """Frozen ones get none, and a derivative of the others' gradients asks for none of theirs."""
    parameters = made_parameters(6, 3, (9, 8)).leaves()
    parameters.W.requires_grad_(False)
    parameters.b.requires_grad_(False)
    log_prob = ops.made_log_prob(random_states(5, 6, 3), *parameters).sum()
    (gradient,) = torch.autograd.grad(log_prob, [parameters.V], create_graph=True)
    gradient.square().sum().backward()
    assert parameters.W.grad is None
    assert parameters.b.grad is None
    assert parameters.V.grad is not None


def test_forward_mode() -> None:
    parameters = made_parameters(5, 3, (9, 8))
    x = random_states(4, 5, 3)

    def log_prob(V: Tensor) -> Tensor:
        return ops.made_log_prob(x, *parameters._replace(V=V))

    tangent = torch.ones_like(parameters.V)
    with torch.autograd.forward_ad.dual_level():
        dual = log_prob(torch.autograd.forward_ad.make_dual(parameters.V, tangent))
        derivative = torch.autograd.forward_ad.unpack_dual(dual).tangent
    jacobian = torch.autograd.functional.jacobian(log_prob, parameters.V)
    torch.testing.assert_close(derivative, jacobian.flatten(1).sum(dim=1))
    _, transformed = torch.func.jvp(log_prob, (parameters.V,), (tangent,))
    torch.testing.assert_close(transformed, derivative)
    vectorised = torch.autograd.functional.jacobian(log_prob, parameters.V, vectorize=True)
    torch.testing.assert_close(vectorised, jacobian)


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_dropout_is_the_same_in_kernels_and_in_products_of_matrices(K: int, options: dict) -> None:
    """It multiplies the units by what torch.nn.functional.dropout makes of ones, in gradients too."""
    parameters = made_parameters(7, K, **options).leaves()
    x = random_states(40, 7, K)
    torch.manual_seed(3)
    actual = ops.made_log_prob(x, *parameters, dropout=0.4, temperature=0.7)
    torch.manual_seed(3)
    biases = (parameters.c, *parameters.hidden[1::2])
    factors = [torch.nn.functional.dropout(torch.ones(40, len(bias)), 0.4) for bias in biases]
    expected = ops._log_prob(x, *parameters, 0.7, factors)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, ops.made_log_prob(x, *parameters, temperature=0.7))
    for one, other in zip(
        torch.autograd.grad(actual.sum(), parameters.tensors),
        torch.autograd.grad(expected.sum(), parameters.tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_reference_gradients_are_those_of_differences() -> None:
    p = made_parameters(4, 3, (5, 6), activation="tanh", dtype=torch.float64).leaves()
    x = random_states(3, 4, 3)

    def call(W, c, weight, bias, V, b, A):
        return reference.log_prob(x, W, c, (weight, bias), V, b, A, "tanh")

    assert torch.autograd.gradcheck(call, p.tensors)


def test_what_a_mask_hides_is_never_read() -> None:
    """Not even by the products of gradients: NaN in every hidden weight changes nothing."""
    D, K = 6, 3
    parameters = made_parameters(D, K, (9, 8))
    step = torch.arange(D)
    m1, m2 = reference.degrees(D, 9), reference.degrees(D, 8)
    spoiled = parameters.map(torch.clone)
    spoiled.W.masked_fill_((step[:, None] >= m1)[:, None], math.nan)
    spoiled.hidden[0].masked_fill_(m1 > m2[:, None], math.nan)
    spoiled.V.masked_fill_((m2 > step[:, None])[:, None], math.nan)
    spoiled.A.masked_fill_((step[:, None] >= step)[:, None, :, None], math.nan)
    before = [tensor.clone() for tensor in spoiled.tensors]
    x = random_states(20, D, K)
    assert torch.equal(ops.made_log_prob(x, *spoiled), ops.made_log_prob(x, *parameters))
    kwargs = {"seed": torch.tensor(3), "indices": torch.arange(70)}
    drawn, log_prob = ops.made_sample(*spoiled, **kwargs)
    expected = ops.made_sample(*parameters, **kwargs)
    assert torch.equal(drawn, expected[0])
    assert torch.equal(log_prob, expected[1])
    leaves = spoiled.leaves()
    ops.made_log_prob(x, *leaves).sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in leaves.tensors)
    for tensor, copy in zip(spoiled.tensors, before, strict=True):  # and nothing was overwritten
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


# --- Sampling ---


def sample(parameters: Parameters, N: int, first: int = 0, seed: int = 17, **options: Any) -> tuple[Tensor, Tensor]:
    return ops.made_sample(*parameters, seed=torch.tensor(seed), indices=first + torch.arange(N), **options)


@pytest.mark.each_level
@pytest.mark.parametrize("with_dims", [False, True])
@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_samples_are_the_inverse_cdf(D: int, K: int, options: dict, with_dims: bool) -> None:
    parameters = made_parameters(D, K, **options)
    N, G, temperature = 150, D // 3, 0.8
    given = random_states(N, G, K, seed=5) if G else None
    dims = torch.randperm(D, generator=torch.Generator().manual_seed(1)) if with_dims else None
    x, log_prob = sample(parameters, N, first=1000, temperature=temperature, given=given, dims=dims)
    if G:
        assert torch.equal(x[:, :G], given)
    u = uniforms(17, 1000, N, D)
    outputs = reference.outputs(x, *parameters.double())
    assert_inverse_cdf(x, outputs, u if dims is None else u[:, dims], temperature, first_step=G)
    law = [
        reference.log_probability(reference.outputs(x, *p)[:, G:] / temperature, x[:, G:]).sum(dim=1)
        for p in (parameters, parameters.double())
    ]
    assert_as_accurate(log_prob, law[0], law[1], "log-probability")


@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_sampling_without_kernels_draws_the_same(D: int, K: int, options: dict) -> None:
    parameters = made_parameters(D, K, **options)
    given = random_states(40, D // 2, K, seed=5)
    expected = sample(parameters, 40, given=given, temperature=1.3)
    dims = torch.arange(D)
    actual = ops.cached_sample(*parameters, torch.tensor(17), torch.arange(40), 1.3, given, dims)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-4)
    naive = reference.sample(*parameters, 17, 40, 0, 1.3, given)
    assert torch.equal(naive[0], expected[0])
    torch.testing.assert_close(naive[1], expected[1], rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize(("D", "K", "options"), LARGER)
def test_a_sample_has_the_same_bits_in_every_batch(D: int, K: int, options: dict, restore_threads: None) -> None:
    parameters = made_parameters(D, K, **options)
    x, log_prob = sample(parameters, 200, first=7)
    for first, last in [(0, 1), (3, 20), (17, 66), (5, 70), (60, 200)]:
        part = sample(parameters, last - first, first=7 + first)
        assert torch.equal(part[0], x[first:last])
        assert torch.equal(part[1], log_prob[first:last])
    rows = torch.tensor([150, 3, 77, 3])
    picked = ops.made_sample(*parameters, seed=torch.tensor(17), indices=7 + rows)
    assert torch.equal(picked[0], x[rows])
    assert torch.equal(picked[1], log_prob[rows])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        again = sample(parameters, 200, first=7)
        assert torch.equal(again[0], x)
        assert torch.equal(again[1], log_prob)


def test_all_given_and_nobody_to_draw() -> None:
    parameters = made_parameters(6, 3, (9,))
    given = random_states(5, 6, 3)
    x, log_prob = sample(parameters, 5, given=given)
    assert torch.equal(x, given)
    assert torch.equal(log_prob, torch.zeros(5))
    x, log_prob = sample(parameters, 0)
    assert (x.shape, x.dtype, log_prob.shape) == ((0, 6), torch.uint8, (0,))
    assert ops.made_log_prob(x, *parameters).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["W", "c", "V", "b"])
def test_no_distribution_no_sample(name: str, bad: float) -> None:
    """A relu, whose comparison a NaN fails, must not hide it."""
    parameters = made_parameters(6, 2, (9,))
    getattr(parameters, name).fill_(bad)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(parameters, 70)


# --- What torch does with operations ---


@needs_kernels
def test_opcheck() -> None:
    W, c, hidden, V, b, A, _ = made_parameters(6, 3, (9, 8)).leaves()
    x, dropout = random_states(5, 6, 3), [torch.rand(5, 9), torch.rand(5, 8)]
    for direct, given, dims, factors in [
        (A, random_states(5, 2, 3), torch.arange(6), []), (None, None, None, dropout),
    ]:  # fmt: skip
        parameters = (W, c, list(hidden), V, b, direct, 0)
        arguments = (torch.tensor(3), torch.arange(5), 0.7, given, dims)
        with torch.no_grad():
            torch.library.opcheck(torch.ops.pyar.made_sample.default, (*parameters, *arguments))
        torch.library.opcheck(torch.ops.pyar.made_log_prob.default, (x, *parameters, 0.7, factors, True))
        with torch.no_grad():
            log_prob, kept = torch.ops.pyar.made_log_prob(x, *parameters, 0.7, factors, True)
            backward = torch.ops.pyar.made_log_prob_backward.default
            torch.library.opcheck(backward, (log_prob, x, *parameters, 0.7, factors, kept))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    model = pyar.MADE(6, 3, (9, 8))
    x = random_states(5, 6, 3)
    traced = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(traced(x), model.log_prob(x))
    gradients = [torch.autograd.grad(call(x).sum(), list(model.parameters())) for call in (traced, model.log_prob)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_every_example() -> None:
    """torch.func: vmap of grad, as needed for Fisher matrices and private training."""
    model = pyar.MADE(6, 3, (9, 8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = random_states(4, 6, 3)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def log_prob(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (row[None],))[0]

    each = torch.func.vmap(torch.func.grad(log_prob), (None, 0))(weights, x)
    for i in range(4):
        model.zero_grad()
        model.log_prob(x[i : i + 1]).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][i], parameter.grad, rtol=1e-4, atol=1e-6)


def test_autocast() -> None:
    model = pyar.MADE(6, 3, (9, 8))
    x = random_states(4, 6, 3)
    expected = model.log_prob(x)
    drawn = model.sample_and_log_prob(50, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.log_prob(x)
        again = model.sample_and_log_prob(50, seed=1)
    assert torch.equal(actual, expected)  # all stays in float32
    assert torch.equal(again[0], drawn[0])
    assert torch.equal(again[1], drawn[1])


# --- The module ---


def random_made(*arguments: Any, seed: int = 0, **options: Any) -> pyar.MADE:
    model = pyar.MADE(*arguments, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, {"order": [2, 0, 3, 1]}, {"direct": False}, {"input": "scalar"}])
@pytest.mark.parametrize("num_states", [2, 3])
def test_a_mixture_over_orders_is_a_distribution(num_states: int, options: dict) -> None:
    model = random_made(4, num_states, (12, 9), num_masks=5, **options)
    everything = all_states(4, num_states)
    assert model.log_prob(everything).exp().sum().item() == pytest.approx(1, abs=1e-5)
    parts = [random_made(4, num_states, (12, 9), num_masks=1, **options).log_prob(everything)]
    assert not torch.allclose(parts[0], model.log_prob(everything), atol=1e-2)  # the others add to the first


def test_a_mixture_averages_probabilities_of_whole_vectors() -> None:
    """Component 0 is the model of one mask; the mean of a pair, solved for the other, is a distribution too."""
    one, two = (random_made(4, 2, (12, 9), num_masks=M) for M in (1, 2))
    everything = all_states(4, 2)
    other = 2 * two.log_prob(everything).exp() - one.log_prob(everything).exp()
    assert other.min() > 0
    assert other.sum().item() == pytest.approx(1, abs=1e-5)
    dependent = [
        (other.view(2, 2, 2, 2).sum(dim=tuple(set(range(4)) - {i}))[1]).item() for i in range(4)
    ]  # its first dimension has the probability of its bias alone
    first = int(two._draw_masks(1)[0][0])
    assert dependent[first] == pytest.approx(torch.sigmoid(two.b[first]).item(), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"order": [2, 0, 3, 1]}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_of_a_mixture(temperature: float, options: dict) -> None:
    model = random_made(4, 2, (12, 9), num_masks=3, **options)
    x, log_prob = model.sample_and_log_prob(40_000, seed=3, temperature=temperature)
    everything = all_states(4, 2)
    law = model._log_prob(model._steps(everything), temperature)
    wrong = random_made(4, 2, (12, 9), num_masks=1, **options)
    assert_follows_law(x, law, wrong._log_prob(wrong._steps(everything), temperature), 2)
    index = (x.long() * torch.tensor([8, 4, 2, 1])).sum(dim=1)
    torch.testing.assert_close(log_prob, law[index], rtol=1e-5, atol=1e-5)
    part = model.sample_and_log_prob(100, seed=3, first_index=500, temperature=temperature)
    assert torch.equal(part[0], x[500:600])


@pytest.mark.parametrize("options", [{}, {"order": [4, 2, 0, 3, 1]}, {"num_masks": 3}])
def test_a_samples_log_probability_is_its_log_prob(options: dict) -> None:
    model = random_made(5, 3, (20, 10), **options)
    x, log_prob = model.sample_and_log_prob(300, seed=2)
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=1e-5, atol=1e-5)


def test_a_dimensions_uniform_has_its_own_number_in_every_order() -> None:
    model = random_made(5, 2, (8,), order=[4, 2, 0, 3, 1])
    x = model.sample(1000, seed=9)
    u = uniforms(9, 0, 1000, 5)
    first = torch.sigmoid(-model.b[0])  # p(x_4 = 0): the first step knows nothing
    assert torch.equal(x[:, 4] == 1, u[:, 4] >= first)


def test_a_mixture_says_what_it_cannot_do() -> None:
    model = random_made(4, 2, (8,), num_masks=2)
    x = torch.zeros(2, 4, dtype=torch.uint8)
    for call in (
        lambda: model.logits(x),
        lambda: model.conditional_log_prob(x),
        lambda: model.sample(2, seed=1, given=x[:, :1]),
        lambda: model.complete(x, torch.tensor([True, False, False, False]), seed=1),
    ):
        with pytest.raises(ValueError, match="num_masks=2"):
            call()


def test_completion_keeps_what_is_observed() -> None:
    model = random_made(4, 3, (12,), order=[3, 1, 0, 2])
    x = random_states(3, 4, 3)
    completions = model.complete(x, torch.tensor([False, True, False, True]), num_samples=7, seed=1)
    assert torch.equal(completions[:, :, [1, 3]], x[:, None, [1, 3]].expand(3, 7, 2))


def test_dropout_is_for_training_alone() -> None:
    model = random_made(6, 2, (50, 50), dropout=0.5)
    x = random_states(20, 6, 2)
    torch.manual_seed(0)
    assert model.training_loss(x) != model.training_loss(x)
    torch.testing.assert_close(model.mean_nll(x), -model.log_prob(x).mean())
    model.eval()
    torch.testing.assert_close(model.training_loss(x), -model.log_prob(x).mean())


def test_training_reaches_every_component() -> None:
    """The mean loss over many draws is the mean NLL over the components."""
    model = random_made(4, 2, (8,), num_masks=3)
    x = random_states(10, 4, 2)
    steps = model._steps(x)
    each = [-model._component_log_prob(steps, component).mean().item() for component in range(3)]
    torch.manual_seed(0)
    drawn = {round(model.training_loss(x).item(), 4) for _ in range(60)}
    assert drawn == {round(value, 4) for value in each}


def test_layers_as_pytorch_users_expect() -> None:
    """Parametrizations take effect, hooks and replaced layers are refused, since no layer is ever called."""
    x = random_states(4, 6, 2)
    model = random_made(6, 2, (9, 8))
    before = model.log_prob(x)
    torch.nn.utils.parametrizations.weight_norm(model.hidden[0])
    torch.testing.assert_close(model.log_prob(x), before)
    with torch.no_grad():
        model.hidden[0].parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(model.log_prob(x), before)
    drawn, log_prob = model.sample_and_log_prob(5, seed=1)
    torch.testing.assert_close(log_prob, model.log_prob(drawn), rtol=1e-5, atol=1e-5)
    handle = model.hidden[0].register_forward_hook(lambda *_: None)
    for call in (model.log_prob, model.logits, model.training_loss, lambda _: model.sample(2)):
        with pytest.raises(RuntimeError, match=r"hidden\[0\] has forward or backward hooks"):
            call(x)
    handle.remove()
    model.hidden[0] = torch.nn.Sequential(torch.nn.Linear(9, 8))
    with pytest.raises(TypeError, match=r"hidden\[0\] must be a torch.nn.Linear"):
        model.log_prob(x)


def test_initialize_from_marginals() -> None:
    x = torch.tensor([[0, 1], [0, 1], [0, 0]])
    model = pyar.MADE(2, hidden_sizes=(8,), order=[1, 0]).initialize_from_marginals(x)
    torch.testing.assert_close(torch.sigmoid(model.b).squeeze(), torch.tensor([0.6, 0.2]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_sizes": ()}, ValueError, "hidden_sizes must hold one size at least"),
        ({"hidden_sizes": (5, 0)}, ValueError, "hidden_sizes must be at least 1, got 0"),
        ({"hidden_sizes": 5}, TypeError, "hidden_sizes must be a sequence of integers, got int 5"),
        ({"activation": "gelu"}, ValueError, "activation must be 'relu' or 'sigmoid' or 'tanh', got 'gelu'"),
        ({"input": "embedding"}, ValueError, "input must be 'onehot' or 'scalar', got 'embedding'"),
        ({"num_masks": 0}, ValueError, "num_masks must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout must be in"),
        ({"direct": 1}, TypeError, "direct must be True or False, got int 1"),
        ({"order": [0, 0, 1]}, ValueError, "order must be a permutation"),
    ],
)
def test_bad_arguments_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyar.MADE(3, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": torch.zeros(4)}, r"V must be \[5, 3, 4\]|W must be"),
        ({"V": torch.zeros(5, 3)}, r"V must be \[D, P, H\]"),
        ({"hidden": (torch.zeros(3, 3),)}, "hidden must hold a weight and a bias"),
        ({"A": torch.zeros(5, 5, 3)}, r"A must be \[5, 2, 5, 3\]"),
        ({"activation": "swish"}, "activation must be"),
    ],
)
def test_operations_name_what_does_not_fit(change: dict, message: str) -> None:
    parameters = made_parameters(5, 3, (9,))._replace(**change)
    with pytest.raises(ValueError, match=message):
        ops.made_log_prob(random_states(2, 5, 3), *parameters)
    with pytest.raises(ValueError, match=message):
        sample(parameters, 2)


def test_activations_of_the_kernel_and_of_the_reference_have_the_same_order() -> None:
    assert list(ACTIVATIONS) == ["relu", "sigmoid", "tanh"]
