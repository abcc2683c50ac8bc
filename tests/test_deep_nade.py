"""DeepNADE: exact answers for every two sets of dimensions, under one order and under mixtures of orders."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from oracle import all_states, assert_as_accurate, assert_follows_law, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.models.deep_nade import random_orders
from pyar.ops import deep_nade as ops
from pyar.reference import deep_nade as reference
from pyar.reference.philox import uniforms

VARIANTS = [
    pytest.param(2, {"hidden_sizes": (9,)}, id="binary"),
    pytest.param(2, {"hidden_sizes": (12, 8, 5), "activation": "tanh"}, id="binary-deep"),
    pytest.param(3, {"hidden_sizes": (9, 7), "activation": "sigmoid"}, id="ternary"),
]


def random_model(dim: int, num_states: int = 2, *, seed: int = 0, std: float = 0.8, **options: Any) -> pyar.DeepNADE:
    model = pyar.DeepNADE(dim, num_states, **{"hidden_sizes": (12, 8), **options})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model


def double(model: pyar.DeepNADE) -> tuple[Any, ...]:
    """The parameters in float64, as the reference takes them."""
    W, U, c, hidden, V, b, activation = model._arguments()
    W, U, c, V, b = (tensor.detach().double() for tensor in (W, U, c, V, b))
    return W, U, c, [tensor.detach().double() for tensor in hidden], V, b, activation


def masks(dim: int) -> list[Tensor]:
    return [torch.tensor(bits) for bits in itertools.product([False, True], repeat=dim)]


# --- The mathematics ---


def paper_logits(x: list[int], seen: list[bool], model: pyar.DeepNADE, d: int) -> list[float]:
    """The paper's equations read out one scalar at a time."""
    W, U, c, hidden, V, b, activation = double(model)
    f = {"relu": lambda a: max(a, 0.0), "tanh": math.tanh, "sigmoid": lambda a: 1 / (1 + math.exp(-a))}[activation]
    h = []
    for j in range(len(c)):
        a = c[j].item()
        for i in range(len(x)):
            if seen[i]:
                a += U[i, j].item() + (W[i, x[i] - 1, j].item() if x[i] > 0 else 0.0)
        h.append(f(a))
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        h = [f(bias[k].item() + sum(weight[k, j].item() * h[j] for j in range(len(h)))) for k in range(len(bias))]
    logits = [b[d, k].item() + sum(V[d, k, j].item() * h[j] for j in range(len(h))) for k in range(V.shape[1])]
    return [0.0, *logits] if len(logits) == 1 else logits


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_log_prob_is_the_papers(K: int, options: dict) -> None:
    D = 5
    model = random_model(D, K, **options)
    order = [3, 0, 4, 1, 2]
    x = random_states(6, D, K)
    expected = []
    for row in x.tolist():
        total, seen = 0.0, [False] * D
        for d in order:
            logits = paper_logits(row, seen, model, d)
            total += logits[row[d]] - math.log(math.fsum(math.exp(logit) for logit in logits))
            seen[d] = True
        expected.append(total)
    walks = torch.tensor(order).expand(6, -1)
    actual = reference.path_log_prob(x, walks, 0, *double(model))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.log_prob(x, orders=torch.tensor(order)).double(), actual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_every_order_is_a_distribution_with_its_own_first_dimension(K: int, options: dict, order: tuple) -> None:
    model = random_model(3, K, **options)
    x = all_states(3, K)
    log_prob = model.log_prob(x, orders=torch.tensor(order))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    first = model.conditionals(x, torch.zeros(3, dtype=torch.bool))[:, order[0]]
    marginal = model.log_prob(x, target=torch.arange(3) == order[0], orders=torch.tensor(order))
    law = torch.nn.functional.logsigmoid(torch.where(x[:, order[0]] > 0, first, -first)) if K == 2 else None
    if law is not None:
        torch.testing.assert_close(marginal, law, rtol=1e-5, atol=1e-5)
    others = [model.log_prob(x, orders=torch.tensor(other)) for other in itertools.permutations(range(3))]
    assert sum(torch.allclose(log_prob, other, atol=1e-4) for other in others) == 1  # orders do differ


@pytest.mark.parametrize("orders", [1, 3, torch.tensor([[1, 0, 2], [2, 1, 0]])])
@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_every_conditional_sums_to_one(K: int, options: dict, orders: int | Tensor) -> None:
    """Σ over all states of the target, for every (observed, target), whatever the rest holds."""
    D = 3
    model = random_model(D, K, **options)
    x = all_states(D, K)
    for observed, target in itertools.product(masks(D), masks(D)):
        if (observed & target).any():
            continue
        probability = model.log_prob(x, observed=observed, target=target, orders=orders).exp()
        rest = int((~observed & ~target).sum())
        cells: dict[tuple, float] = {}
        for row, value in zip(x, probability.tolist(), strict=True):
            seen = tuple(row[observed].tolist())
            cells[seen] = cells.get(seen, 0.0) + value / K**rest
        assert all(total == pytest.approx(1, abs=1e-5) for total in cells.values())


@pytest.mark.parametrize("orders", [1, 4])
def test_chain_rule(orders: int) -> None:
    """log p(a, b) = log p(a) + log p(b | a), one conditional being asked under the orders of the joint."""
    D, K = 4, 3
    model = random_model(D, K)
    x = all_states(D, K)
    a = torch.tensor([True, False, True, False])
    # Where a comes first in every order, the three are of the same distribution.
    walks = torch.stack([torch.cat((order[a[order]], order[~a[order]])) for order in random_orders(orders, D)])
    joint = model.log_prob(x, orders=walks)
    parts = model.log_prob(x, target=a, orders=walks) + model.log_prob(x, observed=a, orders=walks)
    torch.testing.assert_close(joint, parts, rtol=1e-5, atol=1e-5)
    marginal = joint.exp().view(K, K, K, K).sum(dim=(1, 3)).log()[x[:, 0].long(), x[:, 2].long()]
    torch.testing.assert_close(model.log_prob(x, target=a, orders=walks), marginal, rtol=1e-5, atol=1e-5)


def test_what_is_neither_observed_nor_target_is_not_read() -> None:
    model = random_model(5, 3)
    observed, target = torch.tensor([True, False, False, False, True]), torch.tensor([False, True, True, False, False])
    x = random_states(7, 5, 3)
    other = x.clone()
    other[:, 3] = (x[:, 3] + 1) % 3
    for orders in (1, 3):
        before = model.log_prob(x, observed=observed, target=target, orders=orders)
        assert torch.equal(before, model.log_prob(other, observed=observed, target=target, orders=orders))
    for d, name in [(0, "observed"), (1, "target")]:
        changed = x.clone()
        changed[:, d] = (x[:, d] + 1) % 3
        difference = model.log_prob(changed, observed=observed, target=target) - before
        assert (difference.abs() > 1e-6).all(), name


def test_a_mixture_is_the_mean_of_joint_probabilities() -> None:
    model = random_model(4, 3)
    x = random_states(20, 4, 3)
    walks = random_orders(5, 4, seed=9)
    each = torch.stack([model.log_prob(x, orders=walk) for walk in walks])
    expected = each.double().exp().mean(dim=0).log()
    torch.testing.assert_close(model.log_prob(x, orders=5, seed=9).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.log_prob(x, orders=walks).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.order_log_probs(x, 5, seed=9), each.T)
    own = walks[torch.arange(20) % 5][:, None]
    torch.testing.assert_close(model.log_prob(x, orders=own), each.T[torch.arange(20), torch.arange(20) % 5])


def test_masks_of_every_row() -> None:
    model = random_model(4, 3)
    x = random_states(16, 4, 3)
    every = torch.stack(masks(4))
    for orders in (1, 3):
        together = model.log_prob(x, observed=every, orders=orders)
        alone = [model.log_prob(x[i : i + 1], observed=mask, orders=orders) for i, mask in enumerate(masks(4))]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert together[-1] == 0  # everything observed, nothing asked


def test_conditionals_are_those_of_log_prob() -> None:
    for K in (2, 3):
        model = random_model(4, K)
        x = random_states(6, 4, K)
        observed = torch.tensor([False, True, False, False])
        logits = model.conditionals(x, observed)
        assert logits[:, 1].isnan().all()
        for d in (0, 2, 3):
            outputs = logits[:, d, None] if K == 2 else logits[:, d]
            expected = model.log_prob(x, observed=observed, target=torch.arange(4) == d)
            torch.testing.assert_close(reference.log_probability(outputs, x[:, d]), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_those_of_the_base_order() -> None:
    for K in (2, 3):
        model = random_model(5, K)
        x = random_states(6, 5, K)
        torch.testing.assert_close(model.conditional_log_prob(x).sum(dim=1), model.log_prob(x), rtol=1e-5, atol=1e-5)
        assert model.logits(x).shape == ((6, 5) if K == 2 else (6, 5, 3))


# --- Training ---


def test_the_training_losss_mean_is_the_mean_over_orders() -> None:
    """By enumeration of every order and every number of seen dimensions: D/(D − n), not D/(D − n + 1)."""
    D = 3
    model = random_model(D, 3)
    x = random_states(5, D, 3)
    W, U, c, hidden, V, b, activation = double(model)
    orders = torch.tensor(list(itertools.permutations(range(D))))
    exact = torch.stack([-reference.path_log_prob(x, order.expand(5, -1), 0, *double(model)) for order in orders])
    drawn = torch.stack(
        [
            reference.order_agnostic_nll(
                x, order.expand(5, -1), torch.full((5,), n), W, U, c, *hidden, V, b, activation=activation
            )
            for order in orders
            for n in range(D)
        ]
    )
    torch.testing.assert_close(drawn.mean(dim=0), exact.mean(dim=0), rtol=1e-10, atol=1e-10)
    generator = torch.Generator().manual_seed(1)
    many = x.repeat_interleave(40_000, dim=0)
    estimate = model._order_agnostic_nll(many, generator, 0.0).view(5, -1).double()
    error = estimate.std(dim=1) / 200
    assert ((estimate.mean(dim=1) - exact.mean(dim=0)).abs() < 4 * error).all()
    assert (error < 0.01 * exact.mean(dim=0)).all()  # the test can tell the off-by-one


def test_the_number_of_seen_dimensions_is_spread_over_the_batch() -> None:
    """Stratified: in one batch of a constant loss the weights D/(D − n)·(D − n) make up exactly D log 2 each."""
    model = random_model(50)
    torch.nn.init.zeros_(model.V)
    torch.nn.init.zeros_(model.b)
    loss = model._order_agnostic_nll(random_states(100, 50, 2), torch.Generator().manual_seed(0), 0.0)
    torch.testing.assert_close(loss, torch.full((100,), 50 * math.log(2)))


def test_the_training_losss_draws_follow_its_seed() -> None:
    model = random_model(6, dropout=0.5).eval()
    x = random_states(20, 6, 2)
    assert torch.equal(model.order_agnostic_nll(x, seed=3), model.order_agnostic_nll(x, seed=3))
    assert model.order_agnostic_nll(x, seed=3) != model.order_agnostic_nll(x, seed=4)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(model.order_agnostic_nll(x, generator=generator), model.order_agnostic_nll(x, seed=3))
    torch.manual_seed(5)
    first = model.training_loss(x)
    torch.manual_seed(5)
    assert torch.equal(model.training_loss(x), first)
    assert torch.equal(model.validation_log_prob(x), model.validation_log_prob(x))
    with pytest.raises(ValueError, match="a seed or a generator, not both"):
        model.order_agnostic_nll(x, seed=3, generator=generator)
    dropped = model.train().order_agnostic_nll(x, seed=3)
    assert dropped != model.order_agnostic_nll(x, seed=3)


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_gradients_are_the_references(K: int, options: dict) -> None:
    model = random_model(5, K, **options)
    x = random_states(4, 5, K)
    model.log_prob(x).sum().backward()
    parameters = double(model)
    W, U, c, hidden, V, b, _ = parameters
    leaves = [W, U, c, *hidden, V, b]
    for leaf in leaves:
        leaf.requires_grad_()
    reference.path_log_prob(x, model.order.expand(4, -1), 0, *parameters).sum().backward()
    for parameter, leaf in zip(model._arguments()[:3], leaves[:3], strict=True):
        torch.testing.assert_close(parameter.grad.double(), leaf.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model.V.grad.double(), V.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(model.b.grad.double(), b.grad, rtol=1e-3, atol=1e-5)


def test_values_are_as_accurate_as_the_reference() -> None:
    model = random_model(40, 4, hidden_sizes=(70, 50), std=0.2)
    x = random_states(30, 40, 4)
    order = random_orders(30, 40, seed=3)
    W, U, c, hidden, V, b, activation = model._arguments()
    with torch.no_grad():
        exact = reference.path_log_prob(x, order, 0, *double(model))
        float32 = reference.path_log_prob(x, order, 0, W, U, c, hidden, V, b, activation)
        actual = model.log_prob(x, orders=order[:, None])
    assert_as_accurate(actual, float32, exact, "log_prob")


# --- Sampling ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_samples_are_the_inverse_cdf(K: int, options: dict, temperature: float) -> None:
    D, N = 6, 300
    model = random_model(D, K, **options)
    x, log_prob = model.sample_and_log_prob(N, seed=17, first_index=1000, temperature=temperature)
    order = model.order
    outputs = ops.deep_nade_path_outputs(x, order.expand(N, -1), *model._arguments()).detach().double()
    u = uniforms(17, 1000, N, D)  # a dimension's uniform has its own number
    assert_inverse_cdf(x[:, order], outputs, u[:, order], temperature)
    law = reference.log_probability(outputs / temperature, x[:, order]).sum(dim=1)
    torch.testing.assert_close(log_prob.double(), law, rtol=1e-5, atol=1e-4)
    drawn, of_reference = reference.sample(x, order.expand(N, -1), 0, *double(model), 17, 1000, temperature)
    assert (drawn != x).float().mean() < 0.001
    torch.testing.assert_close(of_reference[(drawn == x).all(dim=1)], law[(drawn == x).all(dim=1)])


def test_a_samples_log_probability_is_its_log_prob() -> None:
    model = random_model(5, 3)
    for orders in (1, 4, random_orders(3, 5, seed=8)):
        x, log_prob = model.sample_and_log_prob(200, seed=2, orders=orders)
        torch.testing.assert_close(log_prob, model.log_prob(x, orders=orders), rtol=1e-5, atol=1e-5)
        part = model.sample(50, seed=2, first_index=100, orders=orders)
        assert torch.equal(part, x[100:150])


@pytest.mark.parametrize("orders", [1, 4])
@pytest.mark.parametrize("observed", masks(3)[:-1])
def test_completions_follow_the_conditional(observed: Tensor, orders: int) -> None:
    K = 2
    model = random_model(3, K)
    x = torch.tensor([[1, 0, 1]])
    N = 20_000
    completions = model.complete(x, observed, N, seed=4, orders=orders)[0]
    assert torch.equal(completions[:, observed], x[:, observed].expand(N, -1))
    unseen = ~observed
    cells = all_states(int(unseen.sum()), K)
    vectors = x.to(torch.uint8).repeat(len(cells), 1)
    vectors[:, unseen] = cells
    law = model.log_prob(vectors, observed=observed, orders=orders).detach()
    wrong = torch.log_softmax(law + 0.3 * torch.arange(len(cells)), dim=0)
    assert_follows_law(completions[:, unseen], law, wrong, K)


def test_completion_of_masks_of_every_row_and_of_what_is_given() -> None:
    model = random_model(4, 3)
    every = torch.stack(masks(4))
    x = random_states(16, 4, 3)
    spoiled = torch.where(every, x.long(), 99)  # what is unseen is not even looked at
    for orders in (1, 3):
        completions = model.complete(spoiled, every, 5, seed=1, orders=orders)
        assert completions.shape == (16, 5, 4)
        assert torch.equal(
            torch.where(every[:, None], completions, 0), torch.where(every, x, 0)[:, None].expand(-1, 5, -1)
        )
        assert torch.equal(
            completions[3:5], model.complete(spoiled[3:5], every[3:5], 5, seed=1, first_index=15, orders=orders)
        )
    given = random_states(9, 2, 3)
    drawn = model.sample(9, seed=1, given=given)
    assert torch.equal(drawn[:, model.order[:2]], given)


def test_no_rows() -> None:
    model = random_model(4, 3)
    x = random_states(0, 4, 3)
    for orders in (1, 3):
        assert model.log_prob(x, orders=orders).shape == (0,)
        assert model.sample(0, seed=1, orders=orders).shape == (0, 4)
        assert model.complete(x, torch.tensor([True, False, True, False]), 3, seed=1, orders=orders).shape == (0, 3, 4)
    assert model.logits(x).shape == (0, 4, 3)
    assert model.conditionals(x, torch.zeros(4, dtype=torch.bool)).shape == (0, 4, 3)


# --- What PyTorch users do ---


def test_gradients_of_every_example() -> None:
    model = random_model(5, 3)
    x = random_states(3, 5, 3)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def log_prob(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (row[None],))[0]

    each = torch.func.vmap(torch.func.grad(log_prob), (None, 0))(weights, x)
    for i in range(3):
        model.zero_grad()
        model.log_prob(x[i : i + 1]).sum().backward()
        torch.testing.assert_close(each["U"][i], model.U.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each["V"][i], model.V.grad, rtol=1e-4, atol=1e-6)


def test_autocast() -> None:
    model = random_model(5, 3, std=0.4)
    x = random_states(4, 5, 3)
    drawn = model.sample(50, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.log_prob(x), model.float().log_prob(x), rtol=0.02, atol=0.1)
        assert model.log_prob(x).dtype == torch.float32
        assert torch.equal(model.sample(50, seed=1), drawn)  # sampling stays in float32


def test_a_saved_model_loads(tmp_path) -> None:
    from pyar.checkpoint import save_model

    model = random_model(5, 3, dropout=0.1)
    save_model(model, tmp_path / "model.safetensors")
    loaded = pyar.load(tmp_path / "model.safetensors")
    x = random_states(4, 5, 3)
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert loaded.config == model.config == {
        "dim": 5, "num_states": 3, "hidden_sizes": [12, 8], "activation": "relu", "dropout": 0.1
    }  # fmt: skip


def test_orders_are_the_same_everywhere() -> None:
    """A change of these breaks every number that was ever quoted with `orders`."""
    expected = [[3, 7, 0, 4, 2, 5, 1, 6], [7, 6, 1, 2, 0, 4, 3, 5]]
    assert random_orders(2, 8).tolist() == expected
    assert pyar.DeepNADE(8).order.tolist() == expected[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_distribution_no_sample(bad: float) -> None:
    model = random_model(5, 3)
    torch.nn.init.constant_(model.b, bad)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        model.sample(3, seed=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"observed": torch.zeros(3, dtype=torch.bool)}, ValueError, r"observed must be \[4\] or \[2, 4\], got \[3\]"),
        ({"observed": torch.zeros(4)}, TypeError, "observed must be a bool mask, got torch.float32"),
        ({"target": [True] * 4}, TypeError, "target must be a tensor, got list"),
        (
            {"observed": torch.arange(4) == 2, "target": torch.arange(4) > 1},
            ValueError,
            "observed and target must not overlap, but both hold dimension 2",
        ),
        ({"orders": 0}, ValueError, "orders must be at least 1, got 0"),
        ({"orders": 1.5}, TypeError, "orders must be a number of orders or a tensor of them, got float 1.5"),
        ({"orders": torch.arange(3)}, ValueError, r"orders must be \[4\], \[M, 4\] or \[2, M, 4\], got \[3\]"),
        ({"orders": torch.tensor([0, 0, 1, 2])}, ValueError, r"permutations of 0 … 3, got \[0, 0, 1, 2\]"),
        ({"orders": torch.zeros(3, 1, 4, dtype=torch.int64)}, ValueError, "one for each of the 2 rows"),
        ({"orders": torch.zeros(4)}, TypeError, "orders must be an int64 tensor or a number, got torch.float32"),
        ({"orders": 2, "seed": -1}, ValueError, "seed must be in"),
    ],
)
def test_bad_questions_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_model(4).log_prob(torch.zeros(2, 4, dtype=torch.uint8), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": "4"}, TypeError, "dim must be an integer, got str '4'"),
        ({"hidden_sizes": ()}, ValueError, "hidden_sizes must hold one size at least"),
        ({"activation": "gelu"}, ValueError, "activation must be 'relu' or 'sigmoid' or 'tanh', got 'gelu'"),
        ({"dropout": -0.1}, ValueError, "dropout must be in"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyar.DeepNADE(**{"dim": 3, **arguments})


def test_hooks_and_replaced_layers_are_refused() -> None:
    model = random_model(4)
    x = random_states(2, 4, 2)
    handle = model.hidden[0].register_forward_hook(lambda *_: None)
    for call in (model.log_prob, model.logits, model.training_loss, lambda _: model.sample(2)):
        with pytest.raises(RuntimeError, match=r"hidden\[0\] has forward or backward hooks"):
            call(x)
    handle.remove()
    model.hidden[0] = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"hidden\[0\] must be a torch.nn.Linear"):
        model.log_prob(x)
