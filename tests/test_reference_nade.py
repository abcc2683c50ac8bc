"""The reference against the paper's equations, by enumeration and in float64."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import (
    NadeParameters,
    all_states,
    assert_follows_law,
    assert_inverse_cdf,
    nade_parameters,
    random_states,
)
from torch import Tensor

from pyar.reference import nade as reference
from pyar.reference.draw import draw, log_probabilities, log_probability
from pyar.reference.philox import uniforms

VARIANTS = [
    pytest.param(2, {}, id="binary"),
    pytest.param(2, {"scalar": True}, id="binary-scalar"),
    pytest.param(3, {}, id="onehot"),
    pytest.param(4, {"scalar": True}, id="scalar"),
    pytest.param(2, {"mlp_sizes": (5,)}, id="binary-mlp"),
    pytest.param(3, {"mlp_sizes": (6, 4), "scalar": True}, id="scalar-mlp"),
]


def parameters_of(D: int, K: int, options: dict, seed: int = 0) -> NadeParameters:
    return nade_parameters(D, K, 7, dtype=torch.float64, seed=seed, **options)


@pytest.mark.parametrize(("K", "options"), VARIANTS)
@pytest.mark.parametrize("D", [1, 2, 5])
def test_probabilities_sum_to_one(D: int, K: int, options: dict) -> None:
    total = reference.log_prob(all_states(D, K), *parameters_of(D, K, options)).exp().sum()
    assert abs(total.item() - 1) < 1e-10


def paper_log_prob(x: list[int], parameters: NadeParameters) -> float:
    """Equations (2) and (3) of the paper, read out one scalar at a time."""
    W, c, V, b, mlp = parameters
    K, (D, P, _) = parameters.num_states, V.shape
    total = 0.0
    for d in range(D):
        h = []
        for j in range(len(c)):
            activation = c[j].item()
            for i in range(d):
                if W.dim() == 2:
                    activation += W[i, j].item() * x[i] / (K - 1)
                elif x[i] > 0:
                    activation += W[i, x[i] - 1, j].item()
            h.append(1 / (1 + math.exp(-activation)))
        for weight, bias in zip(mlp[::2], mlp[1::2], strict=True):
            h = [
                max(0.0, bias[m].item() + math.fsum(weight[m, j].item() * h[j] for j in range(len(h))))
                for m in range(len(bias))
            ]
        logits = [b[d, k].item() + math.fsum(V[d, k, j].item() * h[j] for j in range(len(h))) for k in range(P)]
        if P == 1:
            logits = [0.0, *logits]
        total += logits[x[d]] - math.log(math.fsum(math.exp(logit) for logit in logits))
    return total


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_log_prob_is_the_papers(K: int, options: dict) -> None:
    parameters = parameters_of(6, K, options)
    x = random_states(8, 6, K)
    expected = torch.tensor([paper_log_prob(row, parameters) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(reference.log_prob(x, *parameters), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(reference.log_prob(x.long(), *parameters), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(reference.mean_nll(x, *parameters), -expected.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_dependence_is_strictly_triangular(K: int, options: dict) -> None:
    """Changing dimension i leaves the conditionals of dimensions ≤ i as they are and moves all later ones."""
    D = 6
    parameters = parameters_of(D, K, options)
    x = random_states(4, D, K)
    before = reference.logits(x, *parameters).reshape(4, D, -1)
    for i in range(D):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % K
        after = reference.logits(changed, *parameters).reshape(4, D, -1)
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        assert ((after - before)[:, i + 1 :].abs().amax(dim=(0, 2)) > 1e-6).all()


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_logits_are_those_of_log_prob(K: int, options: dict) -> None:
    parameters = parameters_of(5, K, options)
    x = random_states(9, 5, K)
    logits = reference.logits(x, *parameters)
    assert logits.shape == ((9, 5) if K == 2 else (9, 5, K))
    outputs = logits[..., None] if K == 2 else logits
    torch.testing.assert_close(log_probability(outputs, x).sum(dim=1), reference.log_prob(x, *parameters))


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_gradients(K: int, options: dict) -> None:
    parameters = parameters_of(4, K, options).leaves()
    x = random_states(3, 4, K)

    def call(function):
        return lambda W, c, V, b, *mlp: function(x, W, c, V, b, mlp)

    assert torch.autograd.gradcheck(call(reference.log_prob), parameters.tensors)
    assert torch.autograd.gradcheck(call(reference.logits), parameters.tensors)


def tempered_log_law(x: Tensor, parameters: NadeParameters, temperature: float, first_step: int = 0) -> Tensor:
    """Σ_{d ≥ first_step} log p(x_d | x_{<d}), each conditional's logits divided by the temperature."""
    outputs = torch.stack(list(reference.outputs(x, *parameters)), dim=1) / temperature
    return log_probability(outputs, x)[:, first_step:].sum(dim=1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_samples_follow_the_law(K: int, options: dict, temperature: float) -> None:
    parameters = parameters_of(4, K, options)
    states = all_states(4, K)
    x, log_prob = reference.sample(*parameters, seed=3, num_samples=60000, temperature=temperature)
    wrong = parameters._replace(b=parameters.b + 0.1 * temperature * torch.eye(parameters.b.shape[1])[0])
    assert_follows_law(
        x, tempered_log_law(states, parameters, temperature), tempered_log_law(states, wrong, temperature), K
    )
    torch.testing.assert_close(log_prob, tempered_log_law(x, parameters, temperature))


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_samples_are_the_inverse_cdf(K: int, options: dict) -> None:
    parameters = parameters_of(7, K, options)
    given = random_states(500, 3, K, seed=5)
    x, log_prob = reference.sample(*parameters, 17, 500, 1000, 0.8, given)
    assert torch.equal(x[:, :3], given)
    outputs = torch.stack(list(reference.outputs(x, *parameters)), dim=1)
    assert_inverse_cdf(x, outputs, uniforms(17, 1000, 500, 7), 0.8, first_step=3)
    torch.testing.assert_close(log_prob, tempered_log_law(x, parameters, 0.8, first_step=3))


def test_draw_takes_the_smallest_state_above_u() -> None:
    logits = torch.tensor([0.25, 0.125, 0.5, 0.125], dtype=torch.float64).log()
    u = torch.tensor([0.01, 0.2499, 0.2501, 0.3749, 0.3751, 0.8749, 0.8751, 0.9999])
    assert draw(logits.expand(8, 4), u).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    bernoulli = torch.tensor([[math.log(3.0)]])  # p(1) = 3/4, and state 0 comes first
    assert draw(bernoulli.expand(2, 1), torch.tensor([0.2499, 0.2501])).tolist() == [0, 1]


def test_draw_never_takes_an_impossible_state() -> None:
    u = torch.tensor([2.0**-24, 1 - 2.0**-24, 1.0])  # 1.0 stands for a product u·S that rounds to S
    logits = torch.tensor([-math.inf, 0.0, -200.0, 0.0, -200.0, -math.inf])
    assert draw(logits.expand(3, 6), u).tolist() == [1, 3, 3]
    assert draw(torch.tensor([[-200.0]]), u[2:]).tolist() == [0]
    assert draw(torch.tensor([[200.0]]), u[:1]).tolist() == [1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("P", [1, 3])
def test_draw_refuses_what_is_no_number(bad: float, P: int) -> None:
    outputs = torch.zeros(2, P)
    outputs[1, 0] = bad
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        draw(outputs, torch.tensor([0.5, 0.5]))


def test_log_probabilities_stay_exact_in_the_tails() -> None:
    tails = log_probabilities(torch.tensor([[-800.0], [800.0]]))
    assert tails.tolist() == [[0.0, -800.0], [-800.0, 0.0]]


@pytest.mark.parametrize(("K", "options"), VARIANTS)
def test_empty_batches(K: int, options: dict) -> None:
    parameters = parameters_of(3, K, options)
    x = random_states(0, 3, K)
    assert reference.log_prob(x, *parameters).shape == (0,)
    assert reference.logits(x, *parameters).shape == ((0, 3) if K == 2 else (0, 3, K))
    drawn, log_prob = reference.sample(*parameters, 1, 0)
    assert drawn.shape == (0, 3)
    assert log_prob.shape == (0,)
