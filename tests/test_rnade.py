"""RNADE: a density that integrates to one, with the paper's equations, and samples that follow it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import pyar
from pyar.checkpoint import save_model
from pyar.reference import rnade as reference
from pyar.reference.mixtures import FAMILIES
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms


def random_model(dim: int = 4, *, seed: int = 0, std: float = 0.6, **options: Any) -> pyar.RNADE:
    model = pyar.RNADE(dim, **{"num_components": 3, "hidden_size": 8, **options})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model


def double(model: pyar.RNADE) -> tuple[Any, ...]:
    return tuple(a.detach().double() if isinstance(a, Tensor) else a for a in model._arguments())


def random_values(B: int, D: int, seed: int = 0) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


def test_log_prob_is_the_papers() -> None:
    """Read out one scalar at a time."""
    model = random_model(3, activation="tanh")
    W, c, rho, V, b, *_ = double(model)
    for x in random_values(4, 3).double().tolist():
        total, a = 0.0, c.tolist()
        for d in range(3):
            h = [math.tanh(rho[d].item() * unit) for unit in a]
            out = [b[d, p].item() + sum(V[d, p, j].item() * h[j] for j in range(8)) for p in range(9)]
            weights = [math.exp(logit) for logit in out[:3]]
            density = 0.0
            for k in range(3):
                sigma = math.exp(out[6 + k]) + 0.01
                z = (x[d] - out[3 + k]) / sigma
                density += weights[k] / sum(weights) * math.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi))
            total += math.log(density)
            a = [unit + x[d] * W[d, j].item() for j, unit in enumerate(a)]
        assert model.log_prob(torch.tensor([x]).float()).item() == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_is_the_reference(family: str, activation: str) -> None:
    model = random_model(5, family=family, activation=activation, order=[3, 0, 4, 2, 1])
    x = random_values(20, 5)
    steps = reference.conditional_log_prob(x[:, model.order].double(), *double(model))
    actual = model.conditional_log_prob(x)
    torch.testing.assert_close(actual[:, model.order].double(), steps, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(model.log_prob(x), actual.sum(dim=1))
    samples, log_prob = model.sample_and_log_prob(50, seed=3, first_index=7)
    expected, of_expected = reference.sample(50, *double(model), seed=3, first_index=7, order=model.order)
    torch.testing.assert_close(samples[:, model.order].double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_prob.double(), of_expected, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(log_prob, model.log_prob(samples), rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_float64() -> None:
    model = random_model(5)
    x = random_values(20, 5)
    model.mean_nll(x).backward()
    leaves = [a.requires_grad_() if isinstance(a, Tensor) else a for a in double(model)]
    (-reference.conditional_log_prob(x.double(), *leaves).sum(dim=1).mean()).backward()
    for name, leaf in zip(("W", "c", "rho", "V", "b"), leaves, strict=False):
        torch.testing.assert_close(getattr(model, name).grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_of_two_dimensions_integrates_to_one(family: str) -> None:
    model = random_model(2, family=family, std=0.4, min_scale=0.2, order=[1, 0])
    nodes, step = torch.linspace(-25, 25, 1001), 50 / 1000
    total = sum(
        model.log_prob(torch.cartesian_prod(part, nodes)).double().exp().sum().item() for part in nodes.split(100)
    )
    assert total * step * step == pytest.approx(1, abs=2e-3)


def test_samples_follow_the_density() -> None:
    """Kolmogorov–Smirnov on every conditional's own CDF; one that is 10 % too narrow is told."""
    model = random_model(3)
    x = model.sample(20_000, seed=1).double()
    outputs = reference.outputs(x, *double(model)[:5], "relu")
    logits, means, log_scales = outputs.chunk(3, dim=-1)

    def uniform(factor: float) -> Tensor:
        z = (x[..., None] - means) / (factor * (log_scales.exp() + 0.01))
        return (torch.softmax(logits, dim=-1) * torch.special.ndtr(z)).sum(dim=-1)

    for d in range(3):
        assert scipy.stats.kstest(uniform(1.0)[:, d].numpy(), "uniform").pvalue > 0.01
        assert scipy.stats.kstest(uniform(0.9)[:, d].numpy(), "uniform").pvalue < 0.01


def test_a_draw_is_the_inverse_cdf_of_two_uniforms_of_its_dimension() -> None:
    model = random_model(2, num_components=2, order=[1, 0])
    index = torch.arange(40)
    u, v = indexed_uniforms(5, index, 2), indexed_fine_uniforms(5, index, 2, number=1)
    x = model.sample(40, seed=5)
    _, c, rho, V, b, *_ = double(model)
    out = torch.relu(rho[0] * c) @ V[0].T + b[0]
    first = (u[:, 1] >= torch.softmax(out[:2], dim=0)[0]).long()  # step 0 is dimension 1
    expected = out[2 + first] + (out[4 + first].exp() + 0.01) * torch.special.ndtri(v[:, 1])
    torch.testing.assert_close(x[:, 1].double(), expected, rtol=1e-5, atol=1e-5)


def test_samples_do_not_depend_on_the_batch() -> None:
    model = random_model()
    x, log_prob = model.sample_and_log_prob(30, seed=9)
    for first in (0, 1, 17):
        part, of_part = model.sample_and_log_prob(5, seed=9, first_index=first)
        torch.testing.assert_close(part, x[first : first + 5], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(of_part, log_prob[first : first + 5], rtol=1e-5, atol=1e-5)
    torch.manual_seed(3)
    before = model.sample(4)
    torch.manual_seed(3)
    assert torch.equal(model.sample(4), before)
    assert not torch.equal(model.sample(4), before)
    assert model.sample(0).shape == (0, 4)
    assert model.log_prob(x[:0]).shape == (0,)


def test_given_values_are_kept_and_the_rest_is_conditional() -> None:
    model = random_model(4, order=[2, 0, 3, 1])
    x, rest = model.sample_and_log_prob(6, seed=2, given=torch.tensor([0.5, -1.0]))
    assert (x[:, 2] == 0.5).all()
    assert (x[:, 0] == -1.0).all()
    conditionals = model.conditional_log_prob(x)
    torch.testing.assert_close(rest, conditionals[:, [3, 1]].sum(dim=1), rtol=1e-5, atol=1e-5)
    kept = torch.tensor([True, False, True, False])
    completed = model.complete(x[:2], kept, num_samples=3, seed=2, first_index=4)
    assert completed.shape == (2, 3, 4)
    assert (completed[:, :, kept] == x[:2, None, kept]).all()
    again = model.sample(6, seed=2, first_index=4, given=torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(completed.view(6, 4), again)
    with pytest.raises(ValueError, match=r"must come first .* pyar\.TableNADE"):
        model.complete(x, torch.tensor([True, False, False, False]))


def test_marginals_and_units() -> None:
    """An untrained model near the data's marginals beats the standard normal one; new units cost their Jacobian."""
    x = 3.0 + 0.1 * random_values(500, 3)
    x[:, 1] = x[:, 1].exp()
    model = pyar.RNADE(3, hidden_size=8)
    before = model.log_prob(x).mean().item()
    after = model.initialize_from_marginals(x).log_prob(x).mean().item()
    truth = -scipy.stats.norm(0, 0.1).entropy() - scipy.stats.lognorm(0.1, scale=math.exp(3)).entropy()
    truth -= scipy.stats.norm(0, 0.1).entropy()
    assert before < truth - 3
    assert abs(after - truth) < 0.5


def test_saved_and_loaded(tmp_path) -> None:
    model = random_model(4, family="laplace", activation="tanh", min_scale=0.02, order=[2, 0, 3, 1])
    save_model(model, tmp_path / "m.safetensors")
    loaded = pyar.load(tmp_path / "m.safetensors")
    x = random_values(5, 4)
    assert loaded.config == model.config
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert torch.equal(loaded.sample(5, seed=1), model.sample(5, seed=1))


def test_parametrizations_take_effect() -> None:
    model = random_model()
    x = random_values(5, 4)
    before = model.log_prob(x)
    torch.nn.utils.prune.random_unstructured(model, "W", amount=0.5)
    assert not torch.allclose(model.log_prob(x), before)
    assert sorted(model.plain_state_dict()) == ["V", "W", "b", "c", "rho"]


def test_what_does_not_fit_is_refused() -> None:
    model, x = random_model(), random_values(2, 4)
    hole = x.clone()
    hole[1, 2] = math.nan
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: model.log_prob(x.double()), TypeError, r"float32, got torch.float64; convert it with .float"),
        (lambda: model.log_prob(x.to(torch.uint8)), TypeError, "float32, got torch.uint8"),
        (lambda: model.log_prob(x[:, :3]), ValueError, r"\[B, 4\], got \[2, 3\]"),
        (lambda: model.log_prob(hole), ValueError, r"finite numbers, got nan at \[1, 2\]"),
        (lambda: model.log_prob(x / 0), ValueError, "finite numbers"),
        (lambda: model.sample(2, temperature=0.5), ValueError, "temperature must be 1 for mixtures, got 0.5"),
        (lambda: model.sample(2, given=torch.zeros(5)), ValueError, "G at most 4"),
        (lambda: model.sample(2, given=[1.0]), TypeError, "given must be a tensor"),
        (lambda: model.mean_nll(x, torch.ones(3)), ValueError, "one for each row"),
        (lambda: pyar.RNADE(0), ValueError, "dim must be at least 1"),
        (lambda: pyar.RNADE(2, 0), ValueError, "num_components must be at least 1"),
        (lambda: pyar.RNADE(2, family="cauchy"), ValueError, "got 'cauchy'"),
        (lambda: pyar.RNADE(2, min_scale=-1), ValueError, "min_scale must not be negative"),
        (lambda: pyar.RNADE(2, order=[0, 0]), ValueError, "permutation"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    with torch.no_grad():
        model.b[1, 0] = math.nan
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        model.sample(2, seed=0)


def test_real_models_have_nothing_of_states() -> None:
    assert not hasattr(pyar.RNADE, "logits")
    assert not isinstance(random_model(), pyar.AutoregressiveModel)
    assert isinstance(random_model(), pyar.DensityModel)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2])
def test_training_finds_a_known_law(order: tuple) -> None:
    """x_0 ~ N(0, 1), x_1 = x_0² + noise, x_2 two-valued with noise: within 0.1 nats of the entropy."""
    generator = torch.Generator().manual_seed(0)
    N = 4000
    x = torch.randn(N, 3, generator=generator)
    x[:, 1] = x[:, 0] ** 2 + 0.5 * x[:, 1]
    x[:, 2] = torch.where(torch.rand(N, generator=generator) < 0.5, -1.0, 1.0) + 0.25 * x[:, 2]
    truth = -(scipy.stats.norm().entropy() + scipy.stats.norm(0, 0.5).entropy())
    truth -= math.log(2) + scipy.stats.norm(0, 0.25).entropy()
    torch.manual_seed(0)
    model = pyar.RNADE(3, 5, 30, order=order).initialize_from_marginals(x[:3000])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 400)
    for _ in range(400):
        rows = torch.randint(3000, (200,), generator=generator)
        optimizer.zero_grad()
        model.mean_nll(x[rows]).backward()
        optimizer.step()
        schedule.step()
    assert model.log_prob(x[3000:]).mean().item() == pytest.approx(truth, abs=0.15)
