"""MADE, the masked autoencoder for distribution estimation, in plain PyTorch.

Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015,
https://arxiv.org/abs/1502.03509. Every hidden unit has a degree m in 1 … D−1: it sees the first m dimensions alone.
With m(j) and m'(k) the degrees of the units of two layers that follow one another and dimensions numbered from 0, the
paper's masks (equations 12 and 13) let

    dimension i into unit j where i < m(j) · unit j into unit k where m(j) ≤ m'(k) · unit j into output d where m(j) ≤ d
    dimension i straight into output d where i < d      (the direct connections A)

so that output d depends on the dimensions before d alone:

    h = f(c + Σ_i W_i[x_i]),   h ← f(weight h + bias) for every further layer,   outputs = b + V h + Σ_i A_i[x_i]

where only what the masks let through is added, and state 0 contributes nothing. The arguments everywhere are

    x [B, D] integer states · W [D, K−1, H_1], or [D, H_1] for the scalar input x_i/(K−1) · c [H_1] ·
    hidden = (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) · V [D, P, H_L] · b [D, P] ·
    A [D, K−1, D, P], or [D, D, P] for scalar input, from input i, state k to output d; or None ·
    activation f, a name in ACTIVATIONS

with P = 1 and K = 2, or P = K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyar.reference.activations import ACTIVATIONS
from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms


def degrees(num_dims: int, num_units: int, device: torch.device | str | None = None) -> Tensor:
    """Degrees 1 … D−1 dealt out evenly over a layer's units, and sorted: int64 [H].

    Sorted, every mask is a staircase, and the units of one degree are a slice.
    """
    return 1 + torch.arange(num_units, device=device) * max(num_dims - 1, 1) // num_units


def encode(x: Tensor, num_states: int, like: Tensor, scalar: bool) -> Tensor:
    """The numbers that W and A multiply: [B, D, K−1], one-hot without state 0, or [B, D] for scalar input."""
    if scalar:
        return x.to(like.dtype) / (num_states - 1)
    return (x[..., None] == torch.arange(1, num_states, device=x.device)).to(like.dtype)


def outputs(
    x: Tensor, W: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, A: Tensor | None, activation: str
) -> Tensor:
    """The conditionals' outputs: [B, D, P]."""
    D, P, _ = V.shape
    f = ACTIVATIONS[activation]
    scalar = W.dim() == 2
    e = encode(x, 2 if P == 1 else P, W, scalar).flatten(1)
    step = torch.arange(D, device=W.device)
    m = degrees(D, len(c), W.device)
    mask = step[:, None] < m
    h = f(c + e @ (W * (mask if scalar else mask[:, None])).flatten(0, -2))
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        m_next = degrees(D, len(bias), W.device)
        h = f(bias + h @ (weight * (m <= m_next[:, None])).T)
        m = m_next
    result = b + (h @ (V * (m <= step[:, None])[:, None]).flatten(0, 1).T).view(-1, D, P)
    if A is not None:
        mask = (step[:, None] < step)[..., None]
        result = result + (e @ (A * (mask if scalar else mask[:, None])).flatten(-2).flatten(0, -2)).view(-1, D, P)
    return result


def logits(
    x: Tensor, W: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, A: Tensor | None, activation: str
) -> Tensor:
    """The conditionals' logits: [B, D, K], or [B, D] Bernoulli logits for P = 1."""
    result = outputs(x, W, c, hidden, V, b, A, activation)
    return result.squeeze(-1) if V.shape[1] == 1 else result


def log_prob(
    x: Tensor, W: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, A: Tensor | None, activation: str
) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}) in nats: [B]."""
    return log_probability(outputs(x, W, c, hidden, V, b, A, activation), x).sum(dim=1)


def sample(
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None,
    activation: str,
    seed: int,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed: D full passes, one for each dimension.

    Args:
        temperature: positive; divides the logits of every conditional.
        given: integer [num_samples, G], the states of the first G steps, which are not drawn.
        dims: int64 [D], the dimension that every step visits, whose number its uniform has; None for 0 … D−1.

    Returns:
        x uint8 [num_samples, D], a column a step, and the log-probability [num_samples], in nats, of the drawn part
        under the distribution it was drawn from: Σ_{d≥G} log p(x_d | x_{<d}) at that temperature.

    Raises:
        RuntimeError: the logits are NaN or infinite.
    """
    D = len(V)
    G = 0 if given is None else given.shape[1]
    u = uniforms(seed, first_index, num_samples, D, device=V.device)
    u = u if dims is None else u[:, dims]
    x = torch.zeros(num_samples, D, dtype=torch.uint8, device=V.device)
    total = b.new_zeros(num_samples)
    if given is not None:
        x[:, :G] = given
    for d in range(G, D):
        outputs_d = outputs(x, W, c, hidden, V, b, A, activation)[:, d] / temperature
        x[:, d] = draw(outputs_d, u[:, d])
        total = total + log_probability(outputs_d, x[:, d])
    return x, total
