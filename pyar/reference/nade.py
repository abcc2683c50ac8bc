"""NADE, the neural autoregressive distribution estimator, in plain PyTorch.

Uria, Côté, Gregor, Murray & Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17 (2016),
https://jmlr.org/papers/v17/16-272.html. With x_{<d} = (x_1 … x_{d−1}), the paper's equations (2) and (3) are

    p(x_d = 1 | x_{<d}) = σ(V_{d,·} h_d + b_d)
    h_d = σ(W_{·,<d} x_{<d} + c)

and K > 2 states replace the outer σ by a softmax over K rows V_{d,k,·}, W_{·,d} by one vector for each state k > 0 of
x_d (state 0 contributes nothing). `mlp` puts fully connected layers f ← max(0, A f + a), shared by all dimensions,
between h_d and the output. The arguments everywhere are

    x [B, D] integer states · W [D, K−1, H], or [D, H] for the scalar input x_d/(K−1) · c [H] · V [D, P, F] · b [D, P] ·
    mlp = (A_1 [M_1, H], a_1 [M_1], A_2 [M_2, M_1], a_2 [M_2], …)

with P = 1 and K = 2, or P = K; F = H, or the size of the last layer. Vectorised over the batch alone: one iteration a
dimension, in the order in which the paper's Algorithm 1 computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms


def features(h: Tensor, mlp: Sequence[Tensor]) -> Tensor:
    """f ← max(0, A f + a), layer by layer from f = h: [B, H] → [B, F]."""
    for weight, bias in zip(mlp[::2], mlp[1::2], strict=True):
        h = torch.relu(h @ weight.T + bias)
    return h


def contribution(x_d: Tensor, W_d: Tensor, num_states: int) -> Tensor:
    """What dimension d adds to the activation a of all later ones: states x_d [B] → [B, H]."""
    if W_d.dim() == 1:  # scalar input: W_d x_d/(K−1)
        return (x_d.to(W_d.dtype) / (num_states - 1))[:, None] * W_d
    return torch.cat((torch.zeros_like(W_d[:1]), W_d))[x_d.long()]


def outputs(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mlp: Sequence[Tensor] = (),
    f: Callable[[Tensor, Sequence[Tensor]], Tensor] = features,
) -> Iterator[Tensor]:
    """The conditionals' outputs V_d f(h_d) + b_d, [B, P], one dimension after the other."""
    P = V.shape[1]
    K = 2 if P == 1 else P
    a = c.expand(x.shape[0], -1)
    for x_d, W_d, V_d, b_d in zip(x.unbind(1), W.unbind(0), V.unbind(0), b.unbind(0), strict=True):
        h = torch.sigmoid(a)
        yield f(h, mlp) @ V_d.T + b_d
        a = a + contribution(x_d, W_d, K)


def logits(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()) -> Tensor:
    """The conditionals' logits: [B, D, K], or [B, D] Bernoulli logits for P = 1."""
    stacked = torch.stack(list(outputs(x, W, c, V, b, mlp)), dim=1)
    return stacked.squeeze(-1) if V.shape[1] == 1 else stacked


def conditional_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()) -> Tensor:
    """log p(x_d | x_{<d}) in nats: [B, D]."""
    each = [log_probability(outputs_d, x[:, d]) for d, outputs_d in enumerate(outputs(x, W, c, V, b, mlp))]
    return torch.stack(each, dim=1)


def log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}) in nats: [B]."""
    total = b.new_zeros(x.shape[0])
    for d, outputs_d in enumerate(outputs(x, W, c, V, b, mlp)):
        total = total + log_probability(outputs_d, x[:, d])
    return total


def mean_nll(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mlp: Sequence[Tensor] = (),
    weights: Tensor | None = None,
) -> Tensor:
    """−1/B Σ_b w_b log p(x_b) in nats, with w_b = 1 without weights [B]: a scalar, NaN for an empty batch."""
    each = log_prob(x, W, c, V, b, mlp)
    return -(each if weights is None else weights * each).mean()


def sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mlp: Sequence[Tensor],
    seed: int,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed, one uniform for each (sample, dimension).

    Args:
        temperature: positive; divides the logits of every conditional.
        given: integer [num_samples, G], the states of the first G dimensions, which are not drawn.

    Returns:
        x uint8 [num_samples, D], and the log-probability [num_samples], in nats, of the drawn part under the
        distribution it was drawn from: Σ_{d>G} log p(x_d | x_{<d}) at that temperature.

    Raises:
        RuntimeError: the logits are NaN or infinite.
    """
    D, P, _ = V.shape
    K = 2 if P == 1 else P
    G = 0 if given is None else given.shape[1]
    u = uniforms(seed, first_index, num_samples, D, device=V.device)
    x = torch.zeros(num_samples, D, dtype=torch.uint8, device=V.device)
    total = b.new_zeros(num_samples)
    a = c.expand(num_samples, -1)
    for d in range(D):
        if d < G:
            x[:, d] = given[:, d]
        else:
            outputs_d = (features(torch.sigmoid(a), mlp) @ V[d].T + b[d]) / temperature
            x[:, d] = draw(outputs_d, u[:, d])
            total = total + log_probability(outputs_d, x[:, d])
        a = a + contribution(x[:, d], W[d], K)
    return x, total
