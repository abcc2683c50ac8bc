"""RNADE's operations: conditional log-densities of real vectors, and samples.

Uria, Murray & Larochelle, "RNADE", NIPS 2013, https://arxiv.org/abs/1306.0186; the equations are in
pyar.reference.rnade. Every function takes the parameters, float32 and on one device, in this order:

    W [D, H] · c [H] · rho [D] · V [D, 3C, H] · b [D, 3C] · family "gaussian", "logistic" or "laplace" ·
    activation "relu", "sigmoid" or "tanh" · min_scale ≥ 0

They run on any device as torch's own operations, all steps of the log-density at once, and are differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.ops.validate import check_dimensions, check_parameters, check_seed, check_values
from pyar.reference import mixtures
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms


def rnade_conditional_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
) -> Tensor:
    """log p(x_d | x_{<d}) in nats of every step d: [B, D] float32, differentiable.

    Args:
        x: float32 [B, D], finite.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds NaN or infinite values.
    """
    _check_parameters(W, c, rho, V, b, family, activation)
    x = check_values("x", x, len(V), V.device)
    terms = x[:, :, None] * W
    a = c + torch.cumsum(terms, dim=1) - terms  # [B, D, H]: each step without its own term
    h = ACTIVATIONS[activation](rho[:, None] * a)
    outputs = torch.einsum("bdh,dph->bdp", h, V) + b
    return mixtures.log_prob(outputs.float(), x, family, min_scale)


def rnade_sample(
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
    *,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    given: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of the seed.

    Args:
        seed: int64 [], the seed's 64 bits; pyar.random.resolve_seed makes it.
        given: float32 [num_samples, G], the values of the first G steps.
        order: int64 [D], the dimension whose uniforms each step takes; None for 0 … D−1.

    Returns:
        x float32 [num_samples, D], a column a step, and float32 [num_samples], the log-density of what was drawn.

    Raises:
        TypeError, ValueError: as rnade_conditional_log_prob.
        RuntimeError: outputs are NaN or infinite, so that there is nothing to draw from.
    """
    _check_parameters(W, c, rho, V, b, family, activation)
    check_seed(seed, V.device)
    D, index = len(V), first_index + torch.arange(num_samples, device=V.device)
    u, v = indexed_uniforms(int(seed), index, D), indexed_fine_uniforms(int(seed), index, D, number=1)
    steps = range(D) if order is None else order.tolist()
    num_given = 0 if given is None else given.shape[1]
    with torch.no_grad(), torch.autocast(V.device.type, enabled=False):
        a, total = c.expand(num_samples, -1), b.new_zeros(num_samples)
        x = b.new_empty(num_samples, D)
        for step, dim in enumerate(steps):
            if given is not None and step < num_given:
                x[:, step] = given[:, step]
            else:
                outputs = torch.addmm(b[step], ACTIVATIONS[activation](rho[step] * a), V[step].T)
                value = mixtures.draw(outputs, u[:, dim], v[:, dim], family, min_scale).float()
                total = total + mixtures.log_prob(outputs, value, family, min_scale)
                x[:, step] = value
            a = torch.addcmul(a, x[:, step, None], W[step])
    return x, total


def _check_parameters(W: Tensor, c: Tensor, rho: Tensor, V: Tensor, b: Tensor, family: str, activation: str) -> None:
    """Raises TypeError or ValueError for parameters that do not fit together."""
    if family not in mixtures.FAMILIES:
        raise ValueError(f"family must be {' or '.join(map(repr, mixtures.FAMILIES))}, got {family!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    check_dimensions("V", V, "[D, 3C, H]", 3)
    D, P, H = V.shape
    if P % 3:
        raise ValueError(f"V must have three rows for each component, weight, mean and scale, got {P}")
    check_parameters([("V", V, (D, P, H)), ("W", W, (D, H)), ("c", c, (H,)), ("rho", rho, (D,)), ("b", b, (D, P))])
