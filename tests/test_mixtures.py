"""Mixtures over the line and over grids, against scipy, mpmath, torch.distributions and quadrature."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from pyar.reference import mixtures
from pyar.reference.conditionals import Categories, Mixture
from pyar.reference.mixtures import Cells
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms

FAMILIES = mixtures.FAMILIES
SCIPY = {"gaussian": scipy.stats.norm, "logistic": scipy.stats.logistic, "laplace": scipy.stats.laplace}


def cdf(z: mpmath.mpf, family: str) -> mpmath.mpf:
    """The standard distribution's lower tail, to the precision of mpmath."""
    if family == "gaussian":
        return mpmath.erfc(-z / mpmath.sqrt(2)) / 2
    if family == "logistic":
        return 1 / (1 + mpmath.exp(-z))
    return mpmath.exp(z) / 2 if z < 0 else 1 - mpmath.exp(-z) / 2


def random_outputs(*shape: int, components: int = 4, seed: int = 0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(*shape, 3 * components, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_is_scipys(family: str) -> None:
    outputs, x = random_outputs(50), torch.linspace(-6, 6, 50, dtype=torch.float64)
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    weights = torch.softmax(logits, dim=-1).numpy()
    scales = log_scales.exp().numpy() + 0.05
    expected = (weights * SCIPY[family].pdf(x[:, None].numpy(), means.numpy(), scales)).sum(axis=1)
    torch.testing.assert_close(
        mixtures.log_prob(outputs, x, family, 0.05), torch.from_numpy(expected).log(), rtol=1e-12, atol=1e-12
    )


def test_gaussian_mixtures_and_their_gradients_are_torchs() -> None:
    outputs = random_outputs(20).requires_grad_()
    x = torch.linspace(-4, 4, 20, dtype=torch.float64)
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Normal(means, log_scales.exp() + 0.01)
    )
    expected, actual = law.log_prob(x), mixtures.log_prob(outputs, x, "gaussian", 0.01)
    torch.testing.assert_close(actual, expected)
    (wanted,) = torch.autograd.grad(expected.sum(), outputs)
    (got,) = torch.autograd.grad(actual.sum(), outputs)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_integrates_to_one(family: str) -> None:
    outputs = random_outputs(1, seed=3)

    def density(x: float) -> float:
        return mixtures.log_prob(outputs, torch.tensor([x], dtype=torch.float64), family, 0.01).exp().item()

    peaks = outputs.chunk(3, dim=-1)[1].flatten().tolist()
    total, _ = scipy.integrate.quad(density, -200, 200, points=sorted(peaks), limit=500)
    assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("half", [1e-7, 1e-3, 0.05, 0.7, 0.99, 1.0, 1.5, 3.0, 10.0, 60.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_cells_are_exact_wherever_they_lie(family: str, half: float, dtype: torch.dtype) -> None:
    """Against 60 digits: 50 deviations away, across the peak, narrow and wide; finite gradients that are right."""
    for z in (0.0, 0.3, 1.0, -2.0, 2.99, 5.0, -7.5, 20.0, 50.0, -50.0):
        place, width = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (z, half))
        actual = mixtures.log_cell(place, width, family)
        actual.backward()
        with mpmath.workdps(60):
            exact_half = mpmath.mpf(width.item())

            def log_cell(at: mpmath.mpf, half: mpmath.mpf = exact_half) -> mpmath.mpf:
                at = -abs(at)
                return mpmath.log(cdf(at + half, family) - cdf(at - half, family))

            at = mpmath.mpf(place.item())
            value, slope = float(log_cell(at)), float(mpmath.diff(log_cell, at)) if z else 0.0
        precision = 4 * torch.finfo(dtype).eps
        assert abs(actual.item() - value) <= precision * max(1, abs(value)), z
        assert math.isfinite(width.grad.item())
        assert place.grad.item() == pytest.approx(slope, rel=100 * precision, abs=100 * precision), z


@pytest.mark.parametrize("family", FAMILIES)
def test_far_values_are_finite_distinct_and_have_a_gradient(family: str) -> None:
    """Scales from the floor to 10⁴, values up to 50 deviations away, in float32 against float64."""
    for log_scale in (-40.0, -3.0, 0.0, math.log(1e4)):
        scale = math.exp(log_scale) + 0.02
        x = scale * torch.linspace(-50, 50, 101)
        outputs = torch.tensor([0.3, -0.2, 0.0, 0.0, log_scale, log_scale]).expand(101, -1).clone().requires_grad_()
        for cells in (None, Cells(scale / 3), Cells(scale * 3)):
            actual = mixtures.log_prob(outputs, x, family, 0.02, cells)
            exact = mixtures.log_prob(outputs.detach().double(), x.double(), family, 0.02, cells)
            assert torch.isfinite(actual).all()
            torch.testing.assert_close(actual.double(), exact, rtol=2e-6, atol=2e-6)
            assert (actual[:50].diff() > 0).all()
            assert (actual[51:].diff() < 0).all()
            (gradient,) = torch.autograd.grad(actual.sum(), outputs)
            assert torch.isfinite(gradient).all()
            assert (gradient[:45, 2:4] != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_differences(family: str) -> None:
    outputs = random_outputs(6, seed=2).requires_grad_()
    x = torch.linspace(-3, 3, 6, dtype=torch.float64, requires_grad=True)
    for cells in (None, Cells(1.2, low=-3.0, high=3.0)):
        assert torch.autograd.gradcheck(lambda o, y, c=cells: mixtures.log_prob(o, y, family, 0.05, c), (outputs, x))


@pytest.mark.parametrize(("low", "high"), [(-3.0, 4.0), (2.0, 2.0), (-math.inf, 0.0), (-math.inf, math.inf)])
@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_of_a_grid_sum_to_one(family: str, low: float, high: float) -> None:
    step = 0.5
    grid = torch.arange(max(low, -100.0), min(high, 100.0) + step / 2, step, dtype=torch.float64)
    outputs = random_outputs(1, seed=5).expand(len(grid), -1)
    probability = mixtures.log_prob(outputs, grid, family, 0.01, Cells(step, 0.0, low, high)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    single = mixtures.log_prob(outputs.float(), grid.float(), family, 0.01, Cells(step, 0.0, low, high)).exp()
    assert single.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_follow_the_distribution_that_was_asked(family: str) -> None:
    """Kolmogorov–Smirnov; and the same test tells a law whose scales are 5 % larger."""
    N = 20_000
    outputs = random_outputs(1, seed=7, std=0.7)
    index = torch.arange(N)
    u, v = indexed_uniforms(3, index, 1)[:, 0], indexed_fine_uniforms(3, index, 1, number=1)[:, 0]
    x = mixtures.draw(outputs.expand(N, -1), u, v, family, 0.01)
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    weights = torch.softmax(logits, dim=-1).numpy()

    def law(value: float, factor: float = 1.0):
        scales = factor * (log_scales.exp().numpy() + 0.01)
        return (weights * SCIPY[family].cdf(value[:, None], means.numpy(), scales)).sum(axis=1)

    assert scipy.stats.kstest(x.numpy(), law).pvalue > 0.01
    assert scipy.stats.kstest(x.numpy(), lambda value: law(value, 1.05)).pvalue < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draw_is_the_inverse_cdf_of_its_uniform(family: str) -> None:
    v = torch.tensor([2.0**-33, 1e-6, 0.1, 0.5, 0.9, 1 - 2.0**-33], dtype=torch.float64)
    outputs = torch.tensor([0.0, 1.5, math.log(2.0)], dtype=torch.float64).expand(6, -1)
    x = mixtures.draw(outputs, torch.full((6,), 0.3), v, family, 0.0)
    torch.testing.assert_close(x, torch.from_numpy(SCIPY[family].ppf(v.numpy(), 1.5, 2.0)), rtol=1e-9, atol=1e-9)
    grid = mixtures.draw(outputs, torch.full((6,), 0.3), v, family, 0.0, Cells(0.25, 0.1, -3.9, 6.1))
    torch.testing.assert_close(grid, (0.1 + 0.25 * ((x - 0.1) / 0.25).round()).clamp(-3.9, 6.1))


def test_fine_uniforms_have_all_bits_of_the_second_words() -> None:
    index = torch.tensor([0, 5, 2**40])
    fine = indexed_fine_uniforms(9, index, 6, number=1)
    assert ((fine * 2.0**32 - 0.5) % 1 == 0).all()
    coarse = indexed_uniforms(9, index, 6, number=1).double()
    assert ((fine - coarse).abs() < 2.0**-23).all()
    assert not torch.equal(fine, indexed_fine_uniforms(9, index, 6, number=2))


def test_outputs_that_are_no_numbers_are_told() -> None:
    u, v = torch.tensor([0.5]), torch.tensor([0.5], dtype=torch.float64)
    for place in range(3):
        outputs = torch.zeros(1, 3)
        outputs[0, place] = math.nan
        with pytest.raises(RuntimeError, match="NaN or infinite"):
            mixtures.draw(outputs, u, v, "gaussian", 0.01)


@pytest.mark.parametrize(
    "conditional",
    [Categories(1), Categories(2), Categories(5), Mixture(3, "logistic", 0.01, 1.0, 0.0, -2.0, 2.0)],
    ids=["one", "two", "five", "integers"],
)
def test_conditionals_are_distributions_that_their_draws_follow(conditional: Categories | Mixture) -> None:
    grid = isinstance(conditional, Mixture)
    values = torch.arange(-2.0, 3.0) if grid else torch.arange(float(conditional.num_states))
    outputs = torch.randn(1, conditional.num_outputs, generator=torch.Generator().manual_seed(1))
    probability = conditional.log_prob(outputs.expand(len(values), -1), values).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert conditional.inputs(values).shape == (len(values), conditional.num_inputs)
    N = 20_000
    index = torch.arange(N)
    drawn = conditional.draw(
        outputs.expand(N, -1), indexed_uniforms(1, index, 1)[:, 0], indexed_fine_uniforms(1, index, 1, number=1)[:, 0]
    )
    counts = (drawn[:, None] == values.double()).sum(dim=0)
    assert counts.sum() == N
    if len(values) > 1:
        assert (
            scipy.stats.chisquare(
                counts.numpy(), N * torch.nn.functional.normalize(probability.double(), p=1, dim=0).numpy()
            ).pvalue
            > 0.01
        )
