r"""Mixtures of C Gaussians, logistics or Laplace densities as conditionals of real values, in plain PyTorch.

The outputs of a conditional are [..., 3C]: the logits of the weights π, the means μ and the log-scales s,

    p(x) = Σ_c π_c f((x − μ_c)/σ_c)/σ_c,   π = softmax(logits),   σ = e^s + min_scale

with f the family's standard density, whose cumulative distribution is F. `min_scale`, a number or a tensor alike x,
bounds the density. Where values
are rounded to a grid there is no density, and a value has the probability of its cell,

    P(x) = Σ_c π_c [F((x + step/2 − μ_c)/σ_c) − F((x − step/2 − μ_c)/σ_c)],

the cells of a lowest and of a highest value reaching to −∞ and +∞, so that the probabilities of a grid sum to 1.

Uria, Murray & Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NIPS 2013,
https://arxiv.org/abs/1306.0186. Cells: Salimans, Karpathy, Chen & Kingma, "PixelCNN++", ICLR 2017,
https://arxiv.org/abs/1701.05517. Every logarithm is formed without the difference of two near numbers: a value is
finite, and has a gradient, as far out as the square of its deviations is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyar.reference.draw import draw as draw_state

FAMILIES = ("gaussian", "logistic", "laplace")

# Gauss–Legendre nodes on [−1, 1], with which e^{3t} is integrated to 12 digits.
_NODES = (0.1488743389816312, 0.4333953941292472, 0.6794095682990244, 0.8650633666889845, 0.9739065285171717)
_WEIGHTS = (0.2955242247147529, 0.2692667193099963, 0.219086362515982, 0.1494513491505806, 0.0666713443086881)


class Cells(NamedTuple):
    """The grid that values lie on: origin + k·step, k any integer, from `low` to `high`. Numbers or tensors alike x."""

    step: Tensor | float
    origin: Tensor | float = 0.0
    low: Tensor | float = -math.inf
    high: Tensor | float = math.inf


def log_prob(outputs: Tensor, x: Tensor, family: str, min_scale: Tensor | float, cells: Cells | None = None) -> Tensor:
    """The log-density of x, or with `cells` its log-probability, in nats: outputs [..., 3C], x [...] → [...]."""
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    components = component_log_prob(x[..., None], means, log_scales, family, min_scale, cells)
    return torch.logsumexp(functional.log_softmax(logits, dim=-1) + components, dim=-1)


def component_log_prob(
    x: Tensor, means: Tensor, log_scales: Tensor, family: str, min_scale: Tensor | float, cells: Cells | None = None
) -> Tensor:
    """The log-density, or the log-probability of x's cell, under each component: x [..., 1], the others [..., C]."""
    log_scale = _log_scale(log_scales, min_scale)
    deviations = (x - means) * torch.exp(-log_scale)
    if cells is None:
        return log_density(deviations, family) - log_scale
    step, low, high = (
        torch.as_tensor(value, dtype=x.dtype, device=x.device)[..., None] for value in cells[:1] + cells[2:]
    )
    half = 0.5 * step * torch.exp(-log_scale)
    inside = log_cell(deviations, half, family)
    below = log_cdf(deviations + half, family)  # of a cell that reaches to −∞
    above = log_cdf(half - deviations, family)
    lowest, highest = x < low + 0.5 * step, x > high - 0.5 * step
    result = torch.where(lowest, below, torch.where(highest, above, inside))
    return torch.where(lowest & highest, torch.zeros_like(result), result)


def draw(outputs: Tensor, u: Tensor, v: Tensor, family: str, min_scale: float, cells: Cells | None = None) -> Tensor:
    """The inverse CDF of a component, itself drawn at u, at v; with `cells` the grid's nearest value to that.

    Args:
        outputs: [B, 3C].
        u: [B] in (0, 1).
        v: float64 [B] in (0, 1): a float32 would end at 5.4 deviations.

    Returns:
        float64 [B].

    Raises:
        RuntimeError: the outputs are not finite numbers.
    """
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    component = draw_state(logits.expand(-1, max(2, logits.shape[-1])), u)[:, None]  # of one component, twice the same
    component = component.clamp(max=means.shape[-1] - 1)
    mean, log_scale = (values.gather(-1, component)[:, 0].double() for values in (means, log_scales))
    x = mean + torch.exp(_log_scale(log_scale, min_scale)) * quantile(v, family)
    if not bool(torch.isfinite(x).all()):
        raise RuntimeError("the means and scales to sample from are NaN or infinite; check the model's parameters")
    if cells is None:
        return x
    step, origin, low, high = (torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in cells)
    return (origin + step * torch.round((x - origin) / step)).clamp(low, high)


def log_density(z: Tensor, family: str) -> Tensor:
    """log f(z), the family's standard density."""
    if family == "gaussian":
        return -0.5 * z * z - 0.5 * math.log(2.0 * math.pi)
    if family == "logistic":
        return -z.abs() - 2.0 * torch.log1p(torch.exp(-z.abs()))
    return -z.abs() - math.log(2.0)


def log_cdf(z: Tensor, family: str) -> Tensor:
    """log F(z). By symmetry log(1 − F(z)) = log F(−z)."""
    if family == "gaussian":
        return _log_ndtr(z)
    if family == "logistic":
        return functional.logsigmoid(z)
    return torch.where(z < 0, z - math.log(2.0), torch.log1p(-0.5 * torch.exp(-z.clamp(min=0.0))))


def log_cell(z: Tensor, half: Tensor, family: str) -> Tensor:
    """log(F(z + half) − F(z − half)) with half > 0, in relative terms as exact as the arguments are."""
    if family == "logistic":  # σ(b) − σ(a) = σ(b) σ(−a) (1 − e^{a−b})
        return functional.logsigmoid(z + half) + functional.logsigmoid(half - z) + log1mexp(2.0 * half)
    m = -z.abs()
    if family == "laplace":
        beside = m + half < 0  # the cell does not hold the peak
        inner = torch.where(beside, torch.ones_like(half), half)
        centre = torch.where(beside, torch.zeros_like(m), m)
        around = torch.log(-0.5 * (torch.expm1(centre - inner) + torch.expm1(-centre - inner)))
        return torch.where(beside, m + half - math.log(2.0) + log1mexp(2.0 * half), around)
    # Gaussian. A narrow cell is the integral φ(m) half ∫ e^{−m half t − half² t²/2} dt over [−1, 1]; a wide one the
    # difference of cumulative distributions, which there are far from each other.
    narrow = (half < 1.0) & (-m * half < 3.0)
    small = torch.where(narrow, half, torch.full_like(half, 0.5))[..., None]
    centre = torch.where(narrow, m, torch.zeros_like(m))[..., None]
    nodes = torch.tensor(_NODES, dtype=z.dtype, device=z.device) * small
    weights = torch.tensor(_WEIGHTS, dtype=z.dtype, device=z.device)
    both = 2.0 * torch.cosh(centre * nodes) * torch.exp(-0.5 * nodes * nodes)
    integral = torch.log((both * weights).sum(dim=-1)) + torch.log(small[..., 0])
    wide = torch.where(narrow, torch.ones_like(half), half)
    top = _log_ndtr(m + wide)
    # Far out m ± wide round to one number; the exact difference is never below that of the exponents.
    apart = torch.maximum(top - _log_ndtr(m - wide), -2.0 * m * wide)
    return torch.where(narrow, log_density(m, family) + integral, top + log1mexp(apart))


def _log_ndtr(z: Tensor) -> Tensor:
    """log Φ(z). torch.special.log_ndtr has a gradient with three digits less far out: e to a difference of terms."""
    tail = z < -1.0
    far, near = torch.where(tail, z, torch.full_like(z, -1.0)), torch.where(tail, torch.zeros_like(z), z)
    of_tail = torch.log(0.5 * torch.special.erfcx(-far / math.sqrt(2.0))) - 0.5 * far * far
    return torch.where(tail, of_tail, torch.log1p(-0.5 * torch.erfc(near / math.sqrt(2.0))))


def log1mexp(d: Tensor) -> Tensor:
    """log(1 − e^{−d}) for d > 0: Mächler 2012, https://cran.r-project.org/package=Rmpfr, "log1mexp-note"."""
    near = d < math.log(2.0)
    small = torch.where(near, d, torch.ones_like(d))
    large = torch.where(near, torch.ones_like(d), d)
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))


def quantile(v: Tensor, family: str) -> Tensor:
    """F⁻¹(v), v in (0, 1)."""
    if family == "gaussian":
        return torch.special.ndtri(v)
    if family == "logistic":
        return torch.logit(v)
    return torch.where(v < 0.5, torch.log(2.0 * v), -torch.log(2.0 * (1.0 - v)))


def _log_scale(log_scales: Tensor, min_scale: Tensor | float) -> Tensor:
    """log(e^s + min_scale)."""
    if isinstance(min_scale, Tensor):
        return torch.logaddexp(log_scales, min_scale.log()[..., None])
    return (
        log_scales if min_scale == 0 else torch.logaddexp(log_scales, torch.full_like(log_scales, math.log(min_scale)))
    )
