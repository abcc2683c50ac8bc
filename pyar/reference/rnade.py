"""RNADE, the real-valued NADE, in plain PyTorch.

Uria, Murray & Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NIPS 2013,
https://arxiv.org/abs/1306.0186, and section 3.2 of Uria et al., JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html:

    a_0 = c,   a_{d+1} = a_d + x_d W_d,   h_d = f(ρ_d a_d),   outputs_d = V_d h_d + b_d,

and p(x_d | x_{<d}) is the mixture of pyar.reference.mixtures whose logits, means and log-scales are outputs_d. (The
paper's scale is e^s alone.) The arguments everywhere are

    x [B, D] · W [D, H] · c [H] · rho [D] · V [D, 3C, H] · b [D, 3C] · family · activation · min_scale
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.reference import mixtures
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms


def outputs(x: Tensor, W: Tensor, c: Tensor, rho: Tensor, V: Tensor, b: Tensor, activation: str) -> Tensor:
    """The outputs of every dimension, each given those before it: [B, D, 3C]."""
    a = c.expand(len(x), -1)
    rows = []
    for d in range(x.shape[1]):
        h = ACTIVATIONS[activation](rho[d] * a)
        rows.append(h @ V[d].T + b[d])
        a = a + x[:, d, None] * W[d]
    return torch.stack(rows, dim=1)


def conditional_log_prob(
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
    """log p(x_d | x_{<d}) in nats: [B, D]."""
    return mixtures.log_prob(outputs(x, W, c, rho, V, b, activation), x, family, min_scale)


def sample(
    num_samples: int,
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
    seed: int,
    first_index: int = 0,
    given: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples first_index … first_index + num_samples − 1 of the seed, and their log-densities.

    The component comes from the uniform of (sample, dimension), the value from a second one, which has 32 bits.

    Args:
        given: [num_samples, G], the first G steps.
        order: int64 [D], the dimension whose uniforms each step takes; None for 0 … D−1.

    Returns:
        x [num_samples, D], and the log-density [num_samples] of what was drawn given the rest.

    Raises:
        RuntimeError: the outputs are NaN or infinite.
    """
    D, index = len(V), first_index + torch.arange(num_samples, device=V.device)
    u, v = indexed_uniforms(seed, index, D), indexed_fine_uniforms(seed, index, D, number=1)
    if order is not None:
        u, v = u[:, order], v[:, order]
    a = c.expand(num_samples, -1)
    columns, total = [], b.new_zeros(num_samples)
    for d in range(D):
        if given is not None and d < given.shape[1]:
            x = given[:, d]
        else:
            outputs_d = ACTIVATIONS[activation](rho[d] * a) @ V[d].T + b[d]
            x = mixtures.draw(outputs_d, u[:, d], v[:, d], family, min_scale).to(b.dtype)
            total = total + mixtures.log_prob(outputs_d, x, family, min_scale)
        columns.append(x)
        a = a + x[:, None] * W[d]
    return torch.stack(columns, dim=1), total
