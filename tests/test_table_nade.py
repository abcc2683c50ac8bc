"""TableNADE: exact answers for mixed columns, any two sets of them, with holes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyar
from pyar.checkpoint import save_model
from pyar.models.orders import random_orders
from pyar.reference import table_nade as reference
from pyar.tables import Binary, Categorical, Columns, Integer, Real

MIXED = Columns(
    {
        "yes": Binary(),
        "height": Real(components=3, scale=2.0, location=1.0),
        "kind": Categorical(("x", "y", "z")),
        "count": Integer(0, 4, components=2),
        "weight": Real(components=2, family="laplace", resolution=0.5, scale=2.0),
        "one": Categorical((7,)),
        "grade": Integer(1, 3, components=2),
    }
)
# Columns that can be enumerated.
SMALL = Columns(
    {"yes": Binary(), "kind": Categorical(("x", "y", "z")), "count": Integer(0, 3, 2), "one": Categorical((7,))}
)


def random_model(columns: Columns = MIXED, *, seed: int = 0, std: float = 0.5, **options: Any) -> pyar.TableNADE:
    model = pyar.TableNADE(columns, **{"hidden_sizes": (12, 8), **options})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model


def double(model: pyar.TableNADE) -> tuple[Any, ...]:
    """The parameters in float64, and the activation, as the reference takes them."""
    W, U, c, hidden, V, b, activation = model._arguments()
    W, U, c, V, b = (tensor.detach().double() for tensor in (W, U, c, V, b))
    return (W, U, c, [tensor.detach().double() for tensor in hidden], V, b), activation


def everything(columns: Columns = SMALL) -> Tensor:
    """All rows of columns that can be enumerated, encoded."""
    values = [
        torch.arange(float(len(kind.levels)))
        if isinstance(kind, Categorical)
        else torch.from_numpy(kind.encoded(torch.arange(kind.low, kind.high + 1).double().numpy())).float()
        for kind in columns.values()
    ]
    return torch.cartesian_prod(*values)


def rows(model: pyar.TableNADE, N: int, seed: int = 1, holes: float = 0.0) -> Tensor:
    x = model.sample(N, seed=seed)
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < holes
    return x.masked_fill(hidden, math.nan)


def masks(dim: int) -> list[Tensor]:
    return [torch.tensor(bits) for bits in itertools.product([False, True], repeat=dim)]


# --- The mathematics ---


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_every_answer_is_the_references(activation: str) -> None:
    model = random_model(activation=activation)
    parameters, f = double(model)
    x = rows(model, 12)
    generator = torch.Generator().manual_seed(2)
    observed = torch.rand(x.shape, generator=generator) < 0.3
    target = ~observed & (torch.rand(x.shape, generator=generator) < 0.7)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(12)])
    for walk in (order, order[:1].expand(12, -1)):
        expected = reference.path_log_probs(x.double(), walk, observed, target, MIXED.conditionals, parameters, f)
        actual = model.log_prob(x, observed=observed, target=target, orders=walk[:, None])
        shift = torch.where(target, MIXED.log_scales, 0.0).sum(dim=1)
        torch.testing.assert_close(actual.double(), expected.sum(dim=1) - shift, rtol=1e-5, atol=5e-5)
    samples, _ = reference.sample(
        x.double(), model.order.expand(12, -1), observed, MIXED.conditionals, parameters, f, 5
    )
    drawn = model.complete(x, observed, seed=5)[:, 0]
    torch.testing.assert_close(drawn.double(), samples, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_float64() -> None:
    model = random_model()
    x = rows(model, 10, holes=0.2)
    model.mean_nll(x).backward()
    (W, U, c, hidden, V, b), f = double(model)
    leaves = [tensor.requires_grad_() for tensor in (W, U, c, *hidden, V, b)]
    there = ~x.isnan()
    parameters = (W, U, c, hidden, V, b)
    order, nothing = model.order.expand(10, -1), torch.zeros_like(there)
    loss = -reference.path_log_probs(
        x.nan_to_num(0.0).double(), order, nothing, there, MIXED.conditionals, parameters, f
    ).sum(dim=1)
    loss.mean().backward()
    ours = [model.W, model.U, model.c, *(p for layer in model.hidden for p in layer.parameters()), model.V, model.b]
    for own, leaf in zip(ours, leaves, strict=True):
        torch.testing.assert_close(own.grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("orders", [1, 3])
def test_probabilities_of_all_rows_sum_to_one(orders: int) -> None:
    """For every (observed, target): Σ over the target's values, whatever the rest holds."""
    model, x = random_model(SMALL), everything()
    for observed, target in itertools.product(masks(4), masks(4)):
        if (observed & target).any():
            continue
        probability = model.log_prob(x, observed=observed, target=target, orders=orders).exp()
        cells: dict[tuple, float] = {}
        sizes = torch.tensor([2, 3, 4, 1])
        rest = int(sizes[~observed & ~target].prod())
        for row, value in zip(x, probability.tolist(), strict=True):
            seen = tuple(row[observed].tolist())
            cells[seen] = cells.get(seen, 0.0) + value / rest
        assert all(total == pytest.approx(1, abs=1e-5) for total in cells.values())


def test_densities_integrate_to_one() -> None:
    columns = Columns({"a": Real(components=2, scale=3.0, min_scale=0.2), "b": Real(components=2, min_scale=0.2)})
    model = random_model(columns)
    nodes = torch.linspace(-20, 20, 801)
    step = 40 / 800
    total = sum(
        model.log_prob(torch.cartesian_prod(part, nodes)).double().exp().sum().item() for part in nodes.split(100)
    )
    assert total * (3.0 * step) * step == pytest.approx(1, abs=2e-3)  # in the columns' own units


@pytest.mark.parametrize("orders", [1, 4])
def test_chain_rule_and_marginals(orders: int) -> None:
    model, x = random_model(SMALL), everything()
    a = torch.tensor([True, False, True, False])
    walks = torch.stack([torch.cat((order[a[order]], order[~a[order]])) for order in random_orders(orders, 4)])
    joint = model.log_prob(x, orders=walks)
    parts = model.log_prob(x, target=a, orders=walks) + model.log_prob(x, observed=a, orders=walks)
    torch.testing.assert_close(joint, parts, rtol=1e-5, atol=1e-5)
    summed = joint.exp().view(2, 3, 4, 1).sum(dim=(1, 3), keepdim=True).log().expand(2, 3, 4, 1).flatten()
    torch.testing.assert_close(model.log_prob(x, target=a, orders=walks), summed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("orders", [1, 3])
def test_missing_is_marginal(orders: int) -> None:
    model = random_model()
    x = rows(model, 20)
    for mask in masks(7)[::9]:
        holes = torch.where(mask, x, math.nan)
        torch.testing.assert_close(model.log_prob(holes, orders=orders), model.log_prob(x, target=mask, orders=orders))
    mixed = rows(model, 20, holes=0.4)
    one_by_one = torch.cat([model.log_prob(row[None], orders=orders) for row in mixed])
    torch.testing.assert_close(model.log_prob(mixed, orders=orders), one_by_one, rtol=1e-5, atol=1e-5)
    assert model.log_prob(torch.full((1, 7), math.nan)).item() == 0


def test_units_cost_their_jacobian() -> None:
    model = random_model()
    kinds = dict(MIXED)
    kinds["height"] = Real(components=3, scale=2000.0, location=1000.0)
    other = pyar.TableNADE(Columns(kinds), hidden_sizes=(12, 8))
    other.load_state_dict(model.state_dict())
    x = rows(model, 6)
    torch.testing.assert_close(model.log_prob(x) - other.log_prob(x), torch.full((6,), math.log(1000)))
    difference = other.surprise(x) - model.surprise(x)
    torch.testing.assert_close(difference[:, 1], torch.full((6,), math.log(1000)))
    assert (difference[:, [0, 2, 3, 4, 5, 6]] == 0).all()


def test_conditionals_and_surprise_agree_with_log_prob() -> None:
    model = random_model()
    x = rows(model, 8, holes=0.2)
    there = ~x.isnan()
    each = model.conditional_log_prob(x)
    assert torch.equal(each.isnan(), ~there)
    torch.testing.assert_close(each.nan_to_num(0.0).sum(dim=1), model.log_prob(x))
    surprise = model.surprise(x)
    for d in range(7):
        only = torch.arange(7) == d
        expected = -model.log_prob(x, observed=~only, target=only)
        torch.testing.assert_close(surprise[:, d].nan_to_num(0.0), expected, rtol=1e-5, atol=1e-5)
    outputs = model.conditionals(x, torch.zeros(7, dtype=torch.bool))
    for (name, kind), column in zip(MIXED.items(), MIXED.conditionals, strict=True):
        d = MIXED.index(name)
        log_prob = column.log_prob(outputs[name], x[:, d].nan_to_num(0.0)) - kind.log_scale
        expected = model.log_prob(x, target=torch.arange(7) == d)
        torch.testing.assert_close(torch.where(there[:, d], log_prob, 0.0), expected, rtol=1e-5, atol=1e-5)
    assert model.conditionals(x)["yes"][there[:, 0]].isnan().all()


# --- Training ---


def test_the_training_loss_is_the_mean_over_orders() -> None:
    """Its mean over draws against the exact mean of −log p_o over all orders, for rows with holes too."""
    model = random_model(SMALL)
    x = everything()[5:6].repeat(4, 1)
    x[1, 0] = x[2, 1] = x[2, 2] = math.nan
    walks = torch.tensor(list(itertools.permutations(range(4))))
    exact = -model.order_log_probs(x, walks).mean(dim=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([model._order_agnostic_nll(x, generator, 0.0) for _ in range(4000)])
    error = draws.std(dim=0) / math.sqrt(4000)
    assert ((draws.mean(dim=0) - exact).abs() < 4 * error + 1e-6).all()
    assert not torch.allclose(exact[0], exact[1])
    assert model.order_agnostic_nll(torch.full((3, 4), math.nan)).item() == 0


def test_losses_are_a_function_of_their_seed() -> None:
    model = random_model(dropout=0.5)
    x = rows(model, 9)
    assert torch.equal(model.order_agnostic_nll(x, seed=1), model.order_agnostic_nll(x, seed=1)) is False  # dropout
    model.eval()
    assert torch.equal(model.order_agnostic_nll(x, seed=1), model.order_agnostic_nll(x, seed=1))
    assert not torch.equal(model.order_agnostic_nll(x, seed=1), model.order_agnostic_nll(x, seed=2))
    assert torch.equal(model.validation_log_prob(x), model.validation_log_prob(x))
    with pytest.raises(ValueError, match="a seed or a generator, not both"):
        model.order_agnostic_nll(x, seed=1, generator=torch.Generator())


def test_marginals_of_the_data_are_the_start() -> None:
    generator = torch.Generator().manual_seed(0)
    N = 3000
    frame = pd.DataFrame(
        {
            "a": (torch.rand(N, generator=generator) < 0.1).numpy(),
            "b": torch.where(torch.rand(N, generator=generator) < 0.5, 0.0, 100.0)
            .add(torch.randn(N, generator=generator))
            .double()
            .numpy(),
            "c": (30 + 5 * torch.randn(N, generator=generator)).round().int().numpy(),
        }
    )
    columns = Columns.from_frame(frame, kinds={"b": Real()})
    x = columns.encode(frame)
    model = pyar.TableNADE(columns, (16,))
    before = -model.log_prob(x).mean().item()
    after = -model.initialize_from_marginals(x).log_prob(x).mean().item()
    entropy = scipy.stats.bernoulli(0.1).entropy() + math.log(2) + 2 * scipy.stats.norm().entropy() + math.log(5)
    assert entropy < after < entropy + 0.5 < before - 1
    torch.testing.assert_close(model.log_prob(x[:9]), model.log_prob(x[:9], orders=5))  # columns are independent
    assert torch.sigmoid(model.b[0]).item() == pytest.approx(float(frame["a"].mean()), abs=0.01)


# --- Sampling ---


def test_samples_follow_the_law() -> None:
    """χ² over the whole enumeration, of one order and of a mixture; another model's law is told."""
    x = everything()
    model, other = random_model(SMALL), random_model(SMALL, seed=1)
    N = 20_000
    for orders in (1, 3):
        drawn = model.sample(N, seed=1, orders=orders)
        counts = (drawn[:, None] == x).all(dim=2).sum(dim=0).double()
        assert counts.sum() == N
        law, wrong = (
            torch.nn.functional.normalize(m.log_prob(x, orders=orders).detach().double().exp(), p=1, dim=0)
            for m in (model, other)
        )
        assert scipy.stats.chisquare(counts.numpy(), (N * law).numpy()).pvalue > 0.01
        assert scipy.stats.chisquare(counts.numpy(), (N * wrong).numpy()).pvalue < 1e-6


@pytest.mark.parametrize("orders", [1, 3])
def test_sampled_log_prob_is_that_of_the_sample(orders: int) -> None:
    model = random_model()
    x, log_prob = model.sample_and_log_prob(30, seed=4, orders=orders)
    torch.testing.assert_close(log_prob, model.log_prob(x, orders=orders), rtol=1e-4, atol=1e-4)
    given = torch.where(torch.tensor([True, False, True, False, False, False, True]), x[0], math.nan)
    x, log_prob = model.sample_and_log_prob(30, seed=4, orders=orders, given=given)
    kept = ~given.isnan()
    assert (x[:, kept] == given[kept]).all()
    torch.testing.assert_close(log_prob, model.log_prob(x, observed=kept, orders=orders), rtol=1e-4, atol=1e-4)


def test_completions_are_exact_conditionals() -> None:
    model, x = random_model(SMALL), everything()
    observed = torch.tensor([False, True, False, True])
    row = torch.tensor([[math.nan, 2.0, math.nan, 0.0]])
    for orders in (1, 3):
        drawn = model.complete(row, num_samples=20_000, seed=2, orders=orders)[0]
        fits = (x[:, 1] == 2.0).nonzero().squeeze(1)
        law = model.log_prob(x[fits], observed=observed, orders=orders).detach().double().exp()
        counts = (drawn[:, None] == x[fits]).all(dim=2).sum(dim=0).double()
        assert counts.sum() == 20_000
        assert scipy.stats.chisquare(counts.numpy(), (20_000 * law / law.sum()).numpy()).pvalue > 0.01


def test_samples_do_not_depend_on_the_batch() -> None:
    model = random_model()
    x = model.sample(25, seed=9, orders=3)
    for first in (0, 11, 24):
        part = model.sample(1, seed=9, first_index=first, orders=3)
        torch.testing.assert_close(part, x[first : first + 1], rtol=1e-5, atol=1e-5)
    holes = rows(model, 5, holes=0.5)
    completed = model.complete(holes, num_samples=3, seed=1, first_index=2)
    kept = ~holes.isnan()
    assert torch.equal(completed[:, 1][kept], holes[kept])
    torch.testing.assert_close(model.complete(holes[2:3], num_samples=3, seed=1, first_index=8), completed[2:3])
    assert model.sample(0, seed=1).shape == (0, 7)
    assert model.log_prob(x[:0]).shape == (0,)
    assert model.complete(x[:0]).shape == (0, 1, 7)


def test_values_are_those_that_a_column_can_have() -> None:
    model = random_model(std=0.7)
    frame = MIXED.decode(model.sample(500, seed=3))
    assert set(frame["count"]) <= set(range(5))
    assert set(frame["grade"]) <= {1, 2, 3}
    assert set(frame["kind"]) <= {"x", "y", "z"}
    assert set(frame["one"]) == {7}
    assert (frame["weight"] % 0.5 == 0).all()
    MIXED.encode(frame)  # so that they are taken


def test_temperature_is_for_categories_alone() -> None:
    with pytest.raises(ValueError, match=r"temperature must be 1 for mixtures, got 0\.5"):
        random_model().sample(2, temperature=0.5)
    model = random_model(Columns({"a": Binary(), "b": Categorical((1, 2, 3))}), std=2.0)
    cold = model.sample(4000, seed=1, temperature=1e-3)
    assert len(cold.unique(dim=0)) == 1
    with pytest.raises(ValueError, match="several orders"):
        model.sample(2, temperature=0.5, orders=2)


# --- Files, checks ---


def test_saved_and_loaded(tmp_path) -> None:
    model = random_model(activation="tanh", dropout=0.25)
    save_model(model, tmp_path / "m.safetensors")
    loaded = pyar.load(tmp_path / "m.safetensors")
    x = rows(model, 6, holes=0.2)
    assert loaded.columns == MIXED
    assert loaded.config == model.config
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert torch.equal(loaded.sample(3, seed=1), model.sample(3, seed=1))
    assert sorted(model.state_dict()) == ["U", "V", "W", "b", "c", "hidden.0.bias", "hidden.0.weight", "order"]


def test_built_on_the_meta_device_and_filled_later() -> None:
    model = random_model()
    with torch.device("meta"):
        other = pyar.TableNADE(MIXED, hidden_sizes=(12, 8))
    other = other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    x = rows(model, 5)
    assert torch.equal(other.log_prob(x), model.log_prob(x))  # the units too, which no weights hold


def test_what_does_not_fit_is_refused() -> None:
    model = random_model()
    x = rows(model, 3)
    category = x.clone()
    category[2, 2] = 3.0
    half = x.clone()
    half[1, 0] = 0.5
    infinite = x.clone()
    infinite[0, 1] = math.inf
    mask = torch.zeros(7, dtype=torch.bool)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: model.log_prob(x.double()), TypeError, "float32"),
        (lambda: model.log_prob(x[:, 1:]), ValueError, r"\[B, 7\], got \[3, 6\]"),
        (lambda: model.log_prob(category), ValueError, r"0 … 2 or NaN in column 'kind', got 3 in row 2"),
        (lambda: model.log_prob(half), ValueError, r"column 'yes', got 0.5 in row 1"),
        (lambda: model.log_prob(infinite), ValueError, r"finite numbers or NaN, got inf at \[0, 1\]"),
        (lambda: model.log_prob(x, observed=mask.int()), TypeError, "observed must be a bool mask"),
        (lambda: model.log_prob(x, observed=~mask, target=~mask), ValueError, "must not overlap"),
        (lambda: model.log_prob(x, orders=0), ValueError, "orders must be at least 1"),
        (lambda: model.sample(2, given=x[0, :3]), ValueError, r"given must be \[7\] or \[2, 7\], got \[3\]"),
        (lambda: model.sample(2, given=category[2]), ValueError, "given must hold 0 … 2"),
        (lambda: model.complete(x, mask[:2]), ValueError, "observed must be"),
        (lambda: pyar.TableNADE([{"name": "a", "kind": "no"}]), ValueError, "kind"),
        (lambda: pyar.TableNADE(MIXED, ()), ValueError, "hidden_sizes"),
        (lambda: pyar.TableNADE(MIXED, dropout=1.0), ValueError, "dropout"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    model.hidden[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"hidden\[0\] has forward or backward hooks"):
        model.log_prob(x)


def test_far_values_have_finite_scores_that_grow() -> None:
    model = random_model(std=0.1)
    x = torch.zeros(5, 7)
    x[:, 1] = torch.tensor([0.0, 10.0, 100.0, 1e4, 1e8])
    surprise = model.surprise(x)
    assert torch.isfinite(surprise).all()
    assert (surprise[:, 1].diff() > 0).all()


def test_training_finds_a_known_law() -> None:
    """Two numbers that a category decides, a count, holes at random: near the entropy, and right answers."""
    generator = torch.Generator().manual_seed(1)
    N = 4000
    group = torch.randint(3, (N,), generator=generator)
    value = 2.0 * group + 0.5 * torch.randn(N, generator=generator)
    flag = torch.rand(N, generator=generator) < torch.tensor([0.1, 0.5, 0.9])[group]
    frame = pd.DataFrame(
        {"group": [("a", "b", "c")[g] for g in group.tolist()], "value": value.double().numpy(), "flag": flag.numpy()}
    )
    columns = Columns.from_frame(frame)
    x = columns.encode(frame)
    entropy = (
        math.log(3)
        + scipy.stats.norm(0, 0.5).entropy()
        + sum(scipy.stats.bernoulli(p).entropy() for p in (0.1, 0.5, 0.9)) / 3
    )
    holes = x[:3000].masked_fill(torch.rand(3000, 3, generator=generator) < 0.2, math.nan)
    torch.manual_seed(0)
    model = pyar.TableNADE(columns, (64,)).initialize_from_marginals(holes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 500)
    for _ in range(500):
        optimizer.zero_grad()
        model.training_loss(holes[torch.randint(3000, (200,), generator=generator)]).backward()
        optimizer.step()
        schedule.step()
    nll = -model.log_prob(x[3000:], orders=6).mean().item()
    assert nll == pytest.approx(entropy, abs=0.12)
    asked = columns.encode(
        pd.DataFrame({"group": ["a", "c"], "value": [None, None], "flag": [None, None]}, dtype=object).astype(
            {"value": float}
        )
    )
    drawn = model.complete(asked, num_samples=2000, seed=1)
    means = drawn[..., 1].mean(dim=1) * columns["value"].scale + columns["value"].location
    torch.testing.assert_close(means, torch.tensor([0.0, 4.0]), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn[..., 2].mean(dim=1), torch.tensor([0.1, 0.9]), atol=0.06, rtol=0)
