"""DeepNADE's walks as native calls: the reference's numbers, and the same bits however the work is cut up."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from oracle import AnyOrderParameters as Parameters
from oracle import assert_as_accurate, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.models.deep_nade import random_orders
from pyar.ops import deep_nade as ops
from pyar.reference import deep_nade as reference
from pyar.reference.philox import indexed_uniforms

pytestmark = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")


def deep_nade_parameters(
    D: int, K: int, sizes: tuple[int, ...], *, activation: str = "relu", shift: float = 0.0, seed: int = 0
) -> Parameters:
    """Random parameters whose sums and logits are of order one; `shift` added to the biases makes units rare."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(*shape, generator=generator)

    P, hidden = 1 if K == 2 else K, []
    for inputs, outputs in itertools.pairwise(sizes):
        hidden += [normal(outputs, inputs, std=2 * inputs**-0.5), normal(outputs, std=0.3, mean=shift)]
    return Parameters(
        normal(D, K - 1, sizes[0], std=2 * D**-0.5),
        normal(D, sizes[0], std=D**-0.5),
        normal(sizes[0], std=0.5, mean=shift),
        tuple(hidden),
        normal(D, P, sizes[-1], std=2 * sizes[-1] ** -0.5),
        normal(D, P, std=0.5),
        activation,
    )


# More than one block of steps, panel of units and tile of walks; sizes that divide nothing; units of every density.
CASES = [
    pytest.param(100, 2, {"sizes": (130, 97, 70)}, id="binary"),
    pytest.param(110, 2, {"sizes": (150, 140, 33), "shift": -0.9}, id="sparse"),
    pytest.param(60, 2, {"sizes": (40, 30), "shift": 3.0}, id="full"),
    pytest.param(57, 2, {"sizes": (33, 65, 20), "activation": "tanh"}, id="tanh"),
    pytest.param(41, 5, {"sizes": (66, 50), "activation": "sigmoid"}, id="onehot"),
    pytest.param(50, 3, {"sizes": (21,)}, id="one-layer"),
    pytest.param(5, 256, {"sizes": (40, 12)}, id="bytes"),
    pytest.param(1, 3, {"sizes": (6, 5)}, id="one-dimension"),
    pytest.param(3, 2, {"sizes": (1, 1)}, id="one-unit"),
]


def walks(R: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """An order of its own for every row, and steps begin … end−1 of all kinds."""
    generator = torch.Generator().manual_seed(R)
    ends = torch.randint(D + 1, (2, R), generator=generator).sort(dim=0).values
    ends[:, ::3] = torch.tensor([[0], [D]])
    if R > 1:
        ends[:, 1] = D // 2  # nothing at all
    return random_orders(R, D, seed=5), ends[0], ends[1]


def log_prob(x: Tensor, p: Parameters, rows: slice | Tensor = slice(None), **options: Any) -> Tensor:
    order, begin, end = walks(len(x), x.shape[1])
    return ops.deep_nade_log_prob(x[rows], order[rows], begin[rows], end[rows], *p, **options)


def sample(x: Tensor, p: Parameters, rows: slice | Tensor = slice(None), **options: Any) -> tuple[Tensor, Tensor]:
    order, begin, end = walks(len(x), x.shape[1])
    numbers = torch.arange(len(x))[rows] + 2**40
    seed = torch.tensor(17)
    walk = (x[rows], order[rows], begin[rows], end[rows])
    return ops.deep_nade_sample(*walk, *p, seed=seed, indices=numbers, **options)


def reference_outputs(x: Tensor, order: Tensor, p: Parameters) -> Tensor:
    """The outputs of every step [R, D, P]."""
    columns, observed = [], torch.zeros(x.shape, dtype=torch.bool)
    for d in order.unbind(1):
        columns.append(reference.outputs(x, observed, *p)[torch.arange(len(x)), d])
        observed = observed.scatter(1, d[:, None], True)
    return torch.stack(columns, dim=1)


# --- The numbers ---


@pytest.mark.each_level
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("D", "K", "options"), CASES)
def test_values_are_as_accurate_as_the_reference(D: int, K: int, options: dict, temperature: float) -> None:
    p = deep_nade_parameters(D, K, **options)
    R = 20
    x = random_states(R, D, K)
    order, begin, end = walks(R, D)
    float32, exact = reference_outputs(x, order, p), reference_outputs(x, order, p.double())
    if temperature == 1.0:
        assert_as_accurate(ops.deep_nade_path_outputs(x, order, *p), float32, exact, "outputs")
    step = torch.arange(D)
    asked = (begin[:, None] <= step) & (step < end[:, None])
    states = x.gather(1, order)
    law = [
        torch.where(asked, reference.log_probability(outputs / temperature, states), 0.0).sum(dim=1)
        for outputs in (float32, exact)
    ]
    assert_as_accurate(log_prob(x, p, temperature=temperature), law[0], law[1], "log_prob")
    assert torch.equal(log_prob(x.long(), p), log_prob(x, p))


@pytest.mark.each_level
@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize(("D", "K", "options"), CASES)
def test_samples_are_the_inverse_cdf(D: int, K: int, options: dict, temperature: float) -> None:
    p = deep_nade_parameters(D, K, **options)
    R = 120
    given = random_states(R, D, K)
    order, begin, end = walks(R, D)
    x, _ = sample(given, p, temperature=temperature)
    step = torch.arange(D)
    states = x.gather(1, order)
    before, asked = step < begin[:, None], (begin[:, None] <= step) & (step < end[:, None])
    assert torch.equal(states[before], given.gather(1, order)[before])
    assert (states[step >= end[:, None]] == 0).all()
    u = indexed_uniforms(17, 2**40 + torch.arange(R), D)  # a dimension's uniform has its own number
    outputs = reference_outputs(x, order, p.double())
    assert_inverse_cdf(states[asked][:, None], outputs[asked][:, None], u.gather(1, order)[asked][:, None], temperature)


# --- The bits ---


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "K", "options"), CASES)
def test_a_walk_has_the_same_bits_in_every_batch(D: int, K: int, options: dict, restore_threads: None) -> None:
    """Beside whichever rows it is computed, listed or dense, one step after the other or many at once."""
    p = deep_nade_parameters(D, K, **options)
    R = 130
    given = random_states(R, D, K)
    order, _, _ = walks(R, D)
    x, drawn_log_prob = sample(given, p)
    assert torch.equal(log_prob(x, p), drawn_log_prob)
    expected = log_prob(given, p)
    outputs = ops.deep_nade_path_outputs(given, order, *p)
    for rows in [slice(0, 1), slice(3, 20), slice(17, 66), slice(5, 130), torch.tensor([77, 3, 77, 0, 129])]:
        part = sample(given, p, rows)
        assert torch.equal(part[0], x[rows])
        assert torch.equal(part[1], drawn_log_prob[rows])
        assert torch.equal(log_prob(given, p, rows), expected[rows])
        assert torch.equal(ops.deep_nade_path_outputs(given[rows], order[rows], *p), outputs[rows])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        again = sample(given, p)
        assert torch.equal(again[0], x)
        assert torch.equal(again[1], drawn_log_prob)
        assert torch.equal(log_prob(given, p), expected)
        for row in range(3):  # one walk shared by all threads
            assert torch.equal(log_prob(given, p, slice(row, row + 1)), expected[row : row + 1])


def bits(values: Tensor) -> Tensor:
    """What tells −0 from 0."""
    return values.view(torch.int32)


@pytest.mark.each_level
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_leaving_out_inactive_units_changes_no_bit(zero: float) -> None:
    """A unit more that is always active makes no list worth while: dense products give the bits of the lists.

    The unit has no weight in what comes after. Sums of zeros, of either sign, are among the rest.
    """
    D, sizes = 60, (150, 90, 40)
    p = deep_nade_parameters(D, 2, sizes, shift=-0.8)
    x, order = random_states(7, D, 2), random_orders(7, D, seed=5)
    for tensor in (p.W, p.U, p.V, *p.hidden):
        tensor[..., ::7] = zero
    p.hidden[0][:20] = zero
    p.hidden[1][:10] = zero
    p.c[5:30] = zero
    p.b[::2] = zero
    lists = ops.deep_nade_path_outputs(x, order, *p)

    # So many units that are always active and lead nowhere that nearly all are.
    extra = 20 * max(sizes)

    def wider(tensor: Tensor, dim: int, value: float) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = extra
        return torch.cat((tensor, torch.full(shape, value)), dim=dim)

    weight2, bias2, weight3, bias3 = p.hidden
    dense = Parameters(
        wider(p.W, 2, 0.0),
        wider(p.U, 1, 0.0),
        wider(p.c, 0, 1.0),
        (wider(wider(weight2, 1, 0.0), 0, 0.0), wider(bias2, 0, 1.0), wider(weight3, 1, 0.0), bias3),
        p.V,
        p.b,
        "relu",
    )
    assert torch.equal(bits(ops.deep_nade_path_outputs(x, order, *dense)), bits(lists))
    assert torch.equal(bits(ops.deep_nade_path_outputs(x[:1], order[:1], *dense)), bits(lists[:1]))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_weight_that_is_no_number_is_not_left_out(bad: float) -> None:
    """0·∞ is no number: where a weight is infinite, units that are zero count too, as in the reference."""
    D = 20
    p = deep_nade_parameters(D, 2, (40, 30, 20), shift=-0.8)
    x, order = random_states(5, D, 2), random_orders(5, D)
    assert torch.isfinite(ops.deep_nade_path_outputs(x, order, *p)).all()
    p.c[7] = -1e6  # a unit that is never active
    p.hidden[0][3, 7] = bad
    assert ops.deep_nade_path_outputs(x, order, *p).isnan().all()
    assert log_prob(x, p)[::3].isnan().all()
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(x, p)


@pytest.mark.parametrize("name", ["W", "U", "c", "V", "b"])
def test_nan_is_never_hidden(name: str) -> None:
    """Not even by a ReLU, whose comparison it fails."""
    p = deep_nade_parameters(6, 2, (9, 8))
    getattr(p, name).fill_(math.nan)
    x = random_states(70, 6, 2)
    assert log_prob(x, p)[::3].isnan().all()
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(x, p)


# --- Without kernels, and with gradients ---


@pytest.mark.parametrize(("D", "K", "options"), CASES)
def test_torchs_walk_gives_the_same(D: int, K: int, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    p = deep_nade_parameters(D, K, **options)
    given = random_states(40, D, K)
    order, _, _ = walks(40, D)
    native = log_prob(given, p), *sample(given, p), ops.deep_nade_path_outputs(given, order, *p)
    leaves = p.map(lambda tensor: tensor.clone().requires_grad_())
    with_gradient = log_prob(given, leaves)
    assert with_gradient.requires_grad
    monkeypatch.setattr(ops, "is_native", lambda *parameters: False)
    torchs = log_prob(given, p), *sample(given, p), ops.deep_nade_path_outputs(given, order, *p)
    assert torch.equal(native[1], torchs[1])
    for actual, expected in zip(native, torchs, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(with_gradient.detach(), native[0], rtol=1e-5, atol=2e-4)


def test_a_walk_is_native_where_nobody_wants_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pyar.DeepNADE(5, hidden_sizes=(8, 8))
    x = random_states(3, 5, 2)
    monkeypatch.setattr(ops, "_walk", None)  # torch's
    with torch.no_grad():
        model.log_prob(x, orders=3)
        model.logits(x)
    model.requires_grad_(False)
    model.log_prob(x)
    model.sample(4, seed=1)
    model.requires_grad_(True)
    with pytest.raises(TypeError, match="NoneType"):
        model.log_prob(x)


def test_forward_mode_derivatives() -> None:
    p = deep_nade_parameters(6, 3, (9, 8), activation="tanh")
    x = random_states(5, 6, 3)
    tangent = torch.randn(p.U.shape, generator=torch.Generator().manual_seed(0))
    leaf = p.U.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(x, p._replace(U=leaf)).sum(), leaf)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p.U, tangent)
        change = torch.autograd.forward_ad.unpack_dual(log_prob(x, p._replace(U=dual)).sum()).tangent
    torch.testing.assert_close(change, (gradient * tangent).sum(), rtol=1e-4, atol=1e-4)


# --- What torch does with operations ---


def test_opcheck() -> None:
    for K in (2, 3):
        *parameters, activation = deep_nade_parameters(6, K, (9, 8))
        assert activation == "relu"
        parameters[3] = list(parameters[3])
        x = random_states(5, 6, K)
        order, begin, end = walks(5, 6)
        walk = (x, order, begin, end)
        ns = torch.ops.pyar
        torch.library.opcheck(ns.deep_nade_log_prob.default, (*walk, *parameters, 0, 0.7))
        torch.library.opcheck(ns.deep_nade_path_outputs.default, (x, order, *parameters, 0))
        numbers = (torch.tensor(3), torch.arange(5), 0.7)
        torch.library.opcheck(ns.deep_nade_sample.default, (*walk, *parameters, 0, *numbers))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    p = deep_nade_parameters(6, 3, (9, 8))
    x = random_states(5, 6, 3)
    order, begin, end = walks(5, 6)
    arguments = (x, order, begin, end, *p)
    traced = torch.compile(ops.deep_nade_log_prob, fullgraph=True, backend="aot_eager", dynamic=False)
    assert torch.equal(traced(*arguments), ops.deep_nade_log_prob(*arguments))
    numbers = {"seed": torch.tensor(3), "indices": torch.arange(5)}
    traced = torch.compile(ops.deep_nade_sample, fullgraph=True, backend="aot_eager", dynamic=False)
    for actual, expected in zip(
        traced(*arguments, **numbers), ops.deep_nade_sample(*arguments, **numbers), strict=True
    ):
        assert torch.equal(actual, expected)


def test_autocast() -> None:
    p = deep_nade_parameters(20, 3, (30, 20))
    x = random_states(40, 20, 3)
    order, _, _ = walks(40, 20)
    expected = log_prob(x, p), *sample(x, p), ops.deep_nade_path_outputs(x, order, *p)
    with torch.autocast("cpu", torch.bfloat16):
        actual = log_prob(x, p), *sample(x, p), ops.deep_nade_path_outputs(x, order, *p)
        half = log_prob(x, p.map(lambda tensor: tensor.bfloat16()))
    for value, of_float32 in zip(actual, expected, strict=True):
        assert torch.equal(value, of_float32)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected[0], rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": torch.full((2, 4), 4)}, RuntimeError, r"order must hold 0 \.\.\. 3, got 4"),
        ({"order": torch.zeros(2, 3, dtype=torch.int64)}, RuntimeError, r"order must be \[2, 4\], got \[2, 3\]"),
        ({"begin": torch.tensor([0, -1])}, RuntimeError, r"begin must hold 0 \.\.\. 4, got -1"),
        ({"end": torch.tensor([5, 4])}, RuntimeError, r"end must hold 0 \.\.\. 4, got 5"),
        ({"begin": torch.tensor([0, 3]), "end": torch.tensor([4, 2])}, RuntimeError, "begin must not be above end"),
        ({"x": torch.full((2, 4), 3)}, ValueError, "x must hold states 0 … 2"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"activation": "gelu"}, ValueError, "activation must be"),
    ],
)
def test_bad_walks_are_named(change: dict, error: type[Exception], message: str) -> None:
    p = deep_nade_parameters(4, 3, (6, 5))
    walk = {
        "x": torch.zeros(2, 4, dtype=torch.uint8),
        "order": random_orders(2, 4),
        "begin": torch.zeros(2, dtype=torch.int64),
        "end": torch.full((2,), 4),
        "temperature": 1.0,
    }
    arguments = {**dict(zip(Parameters._fields, p, strict=True)), **walk, **change}
    with pytest.raises(error, match=message):
        ops.deep_nade_log_prob(**arguments)
