"""TableNADE's walks as native calls: the reference's numbers, and the same bits however the work is cut up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from oracle import AnyOrderParameters as Parameters
from oracle import assert_as_accurate
from test_table_nade import MIXED, SMALL, everything, masks, random_model
from torch import Tensor

import pyar
from pyar.models.orders import random_orders
from pyar.ops import table_nade as ops
from pyar.ops.table_nade import Layout
from pyar.reference import mixtures
from pyar.reference import table_nade as reference
from pyar.reference.conditionals import Categories, Conditional, Mixture
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms

pytestmark = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")


def table_parameters(
    columns: Sequence[Conditional], sizes: tuple[int, ...], *, activation: str = "relu", seed: int = 0
) -> Parameters:
    """Random parameters whose sums, logits, means and log-scales are of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    layout, D, hidden = Layout(columns), len(columns), []
    for inputs, outputs in itertools.pairwise(sizes):
        hidden += [normal(outputs, inputs, std=2 * inputs**-0.5), normal(outputs, std=0.3)]
    return Parameters(
        normal(layout.num_inputs, sizes[0], std=D**-0.5),
        normal(D, sizes[0], std=D**-0.5),
        normal(sizes[0], std=0.5),
        tuple(hidden),
        normal(layout.num_outputs, sizes[-1], std=sizes[-1] ** -0.5),
        normal(layout.num_outputs, std=0.5),
        activation,
    )


GRIDS = [
    Mixture(4, family, min_scale, step, origin, low, high)
    for family in mixtures.FAMILIES
    for min_scale, step, origin, low, high in (
        (0.05, 0.5, 0.1, -math.inf, math.inf),
        (0.001, 0.01, 0.0, -1.0, 1.0),
        (0.2, 2.0, -1.0, -1.0, 1.0),
        (0.1, 1.0, 0.0, 0.0, 0.0),
    )
]
# More than one tile of steps, columns and lanes of a form; sizes that divide nothing.
CASES = [
    pytest.param(MIXED.conditionals * 8, {"sizes": (70, 67, 20)}, id="mixed"),
    pytest.param([Categories(K) for K in (2, 1, 3, 2, 300, 7, 2, 3)] * 2, {"sizes": (33, 20)}, id="categories"),
    pytest.param([Categories(2)] * 60, {"sizes": (40, 30)}, id="binary"),
    pytest.param([Mixture(10)] * 11, {"sizes": (50, 40)}, id="gaussian"),
    pytest.param([Mixture(3, "logistic", 0.1), Mixture(3, "laplace", 0.02)] * 5, {"sizes": (21,)}, id="families"),
    pytest.param(GRIDS, {"sizes": (30, 20), "activation": "tanh"}, id="grids"),
    pytest.param([Mixture(1, "gaussian", 0.0), Categories(5)], {"sizes": (1, 1), "activation": "sigmoid"}, id="tiny"),
    pytest.param([Categories(1)], {"sizes": (5,)}, id="nothing"),
]


class Table(NamedTuple):
    """Rows and what is asked of them."""

    x: Tensor
    order: Tensor
    observed: Tensor
    target: Tensor

    def rows(self, which: slice) -> Table:
        return Table(*(tensor[which] for tensor in self))


def table(columns: Sequence[Conditional], R: int, seed: int = 3) -> Table:
    """Values of all kinds, some far out; an order and two sets for every row."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for column in columns:
        if isinstance(column, Categories):
            values.append(torch.randint(column.num_states, (R,), generator=generator).float())
            continue
        x = 2 * torch.randn(R, generator=generator)
        x[::7] *= 20
        if column.step:
            steps = ((x.double() - column.origin) / column.step).round()
            x = (column.origin + column.step * steps).clamp(column.low, column.high).float()
        values.append(x)
    D = len(columns)
    part = torch.rand(R, D, generator=generator)
    observed, target = part < 0.3, part > 0.4
    observed[::4], target[::4] = False, True
    observed[1::8], target[1::8] = True, False
    return Table(torch.stack(values, dim=1), random_orders(R, D, seed=5), observed, target)


def log_probs(columns: Sequence[Conditional], p: Parameters, t: Table) -> Tensor:
    return ops.table_nade_path_log_probs(*t, Layout(columns), *p)


def sample(columns: Sequence[Conditional], p: Parameters, t: Table, first: int = 0) -> tuple[Tensor, Tensor]:
    numbers = {"seed": torch.tensor(17), "indices": torch.arange(first, first + len(t.x)) + 2**40}
    return ops.table_nade_sample(t.x, t.order, t.observed, Layout(columns), *p, **numbers)


def reference_log_probs(columns: Sequence[Conditional], p: Parameters, t: Table, dtype: torch.dtype) -> Tensor:
    *parameters, activation = p.map(lambda tensor: tensor.to(dtype))
    return reference.path_log_probs(t.x.to(dtype), *t[1:], columns, parameters, activation)


# --- The numbers ---


@pytest.mark.each_level
@pytest.mark.parametrize(("columns", "options"), CASES)
def test_values_are_as_accurate_as_the_reference(columns: Sequence[Conditional], options: dict) -> None:
    p, t = table_parameters(columns, **options), table(columns, 24)
    actual = log_probs(columns, p, t)
    exact = reference_log_probs(columns, p, t, torch.float64)
    assert_as_accurate(actual, reference_log_probs(columns, p, t, torch.float32), exact)
    assert (actual[~t.target] == 0).all()


@pytest.mark.each_level
@pytest.mark.parametrize(("columns", "options"), CASES)
def test_samples_are_the_inverse_cdf(columns: Sequence[Conditional], options: dict) -> None:
    """Of their two uniforms, under float64 conditionals given what was drawn before."""
    R, D = 70, len(columns)
    p, t = table_parameters(columns, **options), table(columns, R)
    x, _ = sample(columns, p, t)
    assert torch.equal(x[t.observed], t.x[t.observed])
    index = 2**40 + torch.arange(R)
    u, v = indexed_uniforms(17, index, D).double(), indexed_fine_uniforms(17, index, D, number=1)
    *parameters, activation = p.map(lambda tensor: tensor.double())
    seen, close = t.observed.clone(), torch.zeros_like(t.observed)
    for step in t.order.unbind(1):
        now = torch.nn.functional.one_hot(step, D).bool() & ~seen
        parts = reference.outputs(x.double(), seen, columns, parameters, activation)
        for d, column in enumerate(columns):
            rows = now[:, d].nonzero().squeeze(1)
            continuous = column if isinstance(column, Categories) else replace(column, step=0.0)
            for shift in (0.0, -1e-5, 1e-5):  # a uniform beside a boundary may fall on either side
                expected = continuous.draw(parts[d][rows], u[rows, d] + shift, v[rows, d])
                if isinstance(column, Categories):
                    close[rows, d] |= x[rows, d] == expected
                else:
                    expected = expected.clamp(column.low, column.high)
                    allowed = 0.5 * column.step + 1e-4 + 1e-4 * expected.abs()
                    close[rows, d] |= (x[rows, d] - expected).abs() <= allowed
        seen |= now
    assert torch.equal(close, ~t.observed)


@pytest.mark.each_level
@pytest.mark.parametrize("grid", [0.0, 0.5, 0.004])
@pytest.mark.parametrize("family", mixtures.FAMILIES)
def test_values_far_out_are_finite_and_distinct(family: str, grid: float) -> None:
    """To fifty deviations on both sides, with scales from the floor to 10⁴."""
    for log_scale in (-60.0, -2.0, 0.0, 9.2):
        column = Mixture(2, family, 0.02, grid)
        scale = math.exp(log_scale) + 0.02
        x = scale * torch.linspace(-50, 50, 201)
        if grid:
            x = (grid * (x / grid).round()).unique()
        b = torch.tensor([0.3, -0.2, 0.0, 0.01 * scale, log_scale, log_scale])
        p = Parameters(torch.zeros(2, 4), torch.zeros(1, 4), torch.zeros(4), (), torch.zeros(6, 4), b, "relu")
        everyone = torch.ones(len(x), 1, dtype=torch.bool)
        t = Table(x[:, None], torch.zeros(len(x), 1, dtype=torch.int64), ~everyone, everyone)
        actual = log_probs([column], p, t)[:, 0]
        exact = column.log_prob(b.double(), x.double())
        torch.testing.assert_close(actual.double(), exact, rtol=2e-6, atol=2e-5)
        assert torch.isfinite(actual).all()
        above = actual[x >= 2 * scale]
        assert len(above) < 2 or (above.diff() < 0).all()
        below = actual[x <= -2 * scale]
        assert len(below) < 2 or (below.diff() > 0).all()


@pytest.mark.parametrize("family", mixtures.FAMILIES)
def test_cells_beyond_all_digits_are_finite(family: str) -> None:
    """A million deviations away both ends of a cell are one number in float32: its probability is not zero for that."""
    column = Mixture(1, family, 0.0, 0.001)
    x, b = torch.tensor([-4000.0, -900.0, 900.0, 4000.0]), torch.tensor([0.0, 0.0, math.log(0.002)])
    p = Parameters(torch.zeros(2, 4), torch.zeros(1, 4), torch.zeros(4), (), torch.zeros(3, 4), b, "relu")
    everyone = torch.ones(4, 1, dtype=torch.bool)
    t = Table(x[:, None], torch.zeros(4, 1, dtype=torch.int64), ~everyone, everyone)
    exact = column.log_prob(b.double(), x.double())
    assert torch.isfinite(exact).all()
    torch.testing.assert_close(log_probs([column], p, t)[:, 0].double(), exact, rtol=2e-6, atol=0)
    torch.testing.assert_close(column.log_prob(b, x).double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("orders", [1, 3])
def test_probabilities_of_all_rows_sum_to_one(orders: int) -> None:
    model, x = random_model(SMALL).requires_grad_(False), everything()
    sizes = torch.tensor([2, 3, 4, 1])
    for target in masks(4):
        total = model.log_prob(x, target=target, orders=orders).double().exp().sum() / int(sizes[~target].prod())
        assert total.item() == pytest.approx(1, abs=1e-5)


def test_features_of_any_finite_number() -> None:
    """A value of any size moves the sums by what float64 says."""
    column = Mixture(1)
    x = torch.tensor([0.0, -1e-30, 1e-6, 0.3, -0.75, 0.76, 5.0, -8.0, 99.0, 9.9e3, -1.1e4, 1e12, 3e38])
    eye = torch.eye(2)
    W = torch.cat((eye, torch.zeros(2, 2)))
    b = torch.zeros(6)
    V = torch.zeros(6, 2)
    for unit in range(2):
        V[4, unit], V[4, 1 - unit] = 1.0, 0.0  # the second column's mean
        p = Parameters(W, torch.zeros(2, 2), torch.zeros(2), (), V, b, "relu")
        first = torch.tensor([True, False]).expand(len(x), -1)
        rows = Table(torch.stack((x, torch.zeros_like(x)), dim=1), random_orders(len(x), 2), first, ~first)
        log_prob = log_probs([column, column], p, rows)[:, 1].double()
        mean = (-2 * (log_prob - log_prob[0])).clamp(min=0).sqrt() * 1.01
        torch.testing.assert_close(mean, column.inputs(x.double())[:, unit].clamp(min=0), rtol=1e-4, atol=1e-3)


# --- The bits ---


@pytest.mark.each_level
@pytest.mark.parametrize(("columns", "options"), CASES)
def test_a_walk_has_the_same_bits_in_every_batch(
    columns: Sequence[Conditional], options: dict, restore_threads: None
) -> None:
    p, t = table_parameters(columns, **options), table(columns, 110)
    x, drawn = sample(columns, p, t)
    again = Table(x, t.order, t.observed, ~t.observed)
    assert torch.equal(log_probs(columns, p, again), drawn)
    expected = log_probs(columns, p, t)
    for rows in [slice(0, 1), slice(3, 20), slice(17, 66), slice(5, 110)]:
        part = sample(columns, p, t.rows(rows), rows.start)
        assert torch.equal(part[0], x[rows])
        assert torch.equal(part[1], drawn[rows])
        assert torch.equal(log_probs(columns, p, t.rows(rows)), expected[rows])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, sample(columns, p, t), (x, drawn)))
        assert torch.equal(log_probs(columns, p, t), expected)
        assert torch.equal(log_probs(columns, p, t.rows(slice(1))), expected[:1])


def test_chunks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model().requires_grad_(False)
    x = model.sample(40, seed=2, orders=3)
    completed = model.complete(x, torch.arange(7) % 2 == 0, 3, seed=1, orders=3)
    log_prob = model.log_prob(x, orders=3)
    monkeypatch.setattr("pyar.models.table_nade._PAIRS", 7)
    assert torch.equal(model.sample(40, seed=2, orders=3), x)
    assert torch.equal(model.complete(x, torch.arange(7) % 2 == 0, 3, seed=1, orders=3), completed)
    assert torch.equal(model.log_prob(x, orders=3), log_prob)


# --- What is no number ---


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["W", "U", "c", "V", "b"])
def test_what_is_no_number_is_never_hidden(name: str, bad: float) -> None:
    for columns in ([Categories(2), Categories(3)], [Mixture(2), Mixture(2)], [Mixture(2, step=0.5)] * 2):
        p, t = table_parameters(columns, (9, 8), seed=1), table(columns, 30)
        getattr(p, name).fill_(bad)
        if math.isnan(bad):
            assert not torch.isfinite(log_probs(columns, p, t)).all()
            with pytest.raises(RuntimeError, match="NaN or infinite"):
                sample(columns, p, t)
        elif name in ("c", "b"):
            with pytest.raises(RuntimeError, match="NaN or infinite"):
                sample(columns, p, t)


# --- Without kernels, and with gradients ---


@pytest.mark.parametrize(("columns", "options"), CASES)
def test_torchs_walk_gives_the_same(
    columns: Sequence[Conditional], options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, t = table_parameters(columns, **options), table(columns, 40)
    native = log_probs(columns, p, t), *sample(columns, p, t)
    with_gradient = log_probs(columns, p.map(lambda tensor: tensor.clone().requires_grad_()), t)
    assert with_gradient.requires_grad or not with_gradient.any()
    monkeypatch.setattr(ops, "is_native", lambda *parameters: False)
    torchs = log_probs(columns, p, t), *sample(columns, p, t)
    for actual, expected in zip(native, torchs, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=5e-4)
    torch.testing.assert_close(with_gradient.detach(), native[0], rtol=1e-5, atol=5e-4)


def test_a_walk_is_native_where_nobody_wants_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    x = model.sample(3, seed=1)
    monkeypatch.setattr(ops, "_walk", None)  # torch's
    with torch.no_grad():
        model.log_prob(x, orders=3)
        model.conditional_log_prob(x)
    model.sample(4, seed=1, orders=2)
    model.complete(x, torch.arange(7) < 3)
    with pytest.raises(TypeError, match="NoneType"):
        model.log_prob(x)


def test_forward_mode_derivatives() -> None:
    columns = MIXED.conditionals
    p, t = table_parameters(columns, (9, 8), activation="tanh"), table(columns, 5)
    tangent = torch.randn(p.U.shape, generator=torch.Generator().manual_seed(0))
    leaf = p.U.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_probs(columns, p._replace(U=leaf), t).sum(), leaf)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p.U, tangent)
        change = torch.autograd.forward_ad.unpack_dual(log_probs(columns, p._replace(U=dual), t).sum()).tangent
    torch.testing.assert_close(change, (gradient * tangent).sum(), rtol=1e-4, atol=1e-3)


# --- What torch does with operations ---


def test_opcheck() -> None:
    columns = MIXED.conditionals
    *parameters, _ = table_parameters(columns, (9, 8))
    parameters[3] = list(parameters[3])
    t, described = table(columns, 5), Layout(columns).description
    torch.library.opcheck(torch.ops.pyar.table_nade_path_log_probs.default, (*t, described, *parameters, 0))
    numbers = (torch.tensor(3), torch.arange(5), 1.0)
    torch.library.opcheck(torch.ops.pyar.table_nade_sample.default, (*t[:3], described, *parameters, 0, *numbers))


def test_autocast() -> None:
    columns = MIXED.conditionals
    p, t = table_parameters(columns, (30, 20)), table(columns, 40)
    expected = log_probs(columns, p, t), *sample(columns, p, t)
    with torch.autocast("cpu", torch.bfloat16):
        actual = log_probs(columns, p, t), *sample(columns, p, t)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.full((2, 7), 7)}, r"order must hold 0 \.\.\. 6, got 7"),
        ({"order": torch.zeros(2, 7, dtype=torch.int64)}, "order must hold permutations, but one visits 0 twice"),
        ({"observed": torch.ones(2, 7, dtype=torch.bool)}, "must not overlap, but both hold column 0"),
        ({"observed": torch.zeros(2, 7)}, "observed must be bool"),
        ({"target": torch.ones(2, 6, dtype=torch.bool)}, r"target must be \[2, 7\], got \[2, 6\]"),
        ({"x": torch.full((2, 7), 3.0)}, r"x must hold 0 \.\.\. 1 in column 0, got 3"),
        ({"x": torch.full((2, 7), 0.5)}, r"x must hold 0 \.\.\. 1 in column 0, got 0\.5"),
        ({"x": torch.full((2, 7), math.nan)}, r"x must hold 0 \.\.\. 1 in column 0, got nan"),
        ({"x": torch.zeros(2, 7, dtype=torch.float64)}, "x must be float32"),
    ],
)
def test_bad_walks_are_named(change: dict, message: str) -> None:
    p = table_parameters(MIXED.conditionals, (6, 5))
    nothing = torch.zeros(2, 7, dtype=torch.bool)
    order = torch.arange(7).expand(2, -1)
    walk = {"x": torch.zeros(2, 7), "order": order, "observed": nothing, "target": ~nothing, **change}
    with pytest.raises(RuntimeError, match=message):
        log_probs(MIXED.conditionals, p, Table(**walk))
