"""DeepNADE, one network for the conditionals of every order, in plain PyTorch.

Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014, https://arxiv.org/abs/1310.1757, and
sections 4 to 6 of Uria, Côté, Gregor, Murray & Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17
(2016), https://jmlr.org/papers/v17/16-272.html. Given the dimensions S that are seen, every other dimension d has

    p(x_d | x_S) = softmax(V_d h + b_d)                      (K = 2: σ of one logit)
    h = f(c + Σ_{i ∈ S} (U_i + W_i[x_i])),   h ← f(weight h + bias) for every further layer

where W_i[0] = 0, so that U_i alone says that dimension i is seen with state 0. An order o makes a distribution of it,
p_o(x) = Π_s p(x_{o(s)} | x_{o(0)} … x_{o(s−1)}), another one for every order. The arguments everywhere are

    x [B, D] integer states · W [D, K−1, H_1] · U [D, H_1] · c [H_1] ·
    hidden = (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) · V [D, P, H_L] · b [D, P] ·
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


def outputs(
    x: Tensor,
    observed: Tensor,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str,
) -> Tensor:
    """The outputs of every dimension given those that are observed, bool [B, D]: [B, D, P].

    Only the rows of dimensions that are not observed mean anything.
    """
    D, P, _ = V.shape
    f = ACTIVATIONS[activation]
    K = 2 if P == 1 else P
    one_hot = (x[..., None] == torch.arange(1, K, device=x.device)) & observed[..., None]
    h = f(c + observed.to(U.dtype) @ U + one_hot.to(W.dtype).flatten(1) @ W.flatten(0, 1))
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        h = f(bias + h @ weight.T)
    return b + (h @ V.flatten(0, 1).T).view(-1, D, P)


def order_agnostic_nll(x: Tensor, order: Tensor, num_seen: Tensor, *parameters: Tensor, activation: str) -> Tensor:
    """The paper's training loss for one draw of orders and of how much is seen: [B], in nats.

    JMLR equation (17), D/(D − n) Σ −log p(x_d | the n dimensions that come first) over the D − n others: its mean over
    uniform orders and n = 0 … D−1 is the mean over orders of −log p_o(x).

    Args:
        order: int64 [B, D], a permutation for every row.
        num_seen: int64 [B], n.
    """
    D = x.shape[1]
    position = torch.argsort(order, dim=1)
    seen = position < num_seen[:, None]
    W, U, c, *hidden, V, b = parameters
    nll = -log_probability(outputs(x, seen, W, U, c, hidden, V, b, activation), x)
    return nll.masked_fill(seen, 0.0).sum(dim=1) * (D / (D - num_seen))


def path_log_prob(
    x: Tensor,
    order: Tensor,
    num_given: int,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str,
) -> Tensor:
    """log p(x_{o(G)} … x_{o(T−1)} | x_{o(0)} … x_{o(G−1)}) in nats, one dimension after the other: [B].

    Args:
        order: int64 [B, T], the dimensions in the order in which every row visits them; T ≤ D.
        num_given: G.
    """
    observed = torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter_(1, order[:, :num_given], True)
    total = b.new_zeros(len(x))
    for d in order[:, num_given:].unbind(1):
        step = d[:, None]
        outputs_d = outputs(x, observed, W, U, c, hidden, V, b, activation)[torch.arange(len(x)), d]
        total = total + log_probability(outputs_d, x.gather(1, step)[:, 0])
        observed = observed.scatter(1, step, True)
    return total


def sample(
    x: Tensor,
    order: Tensor,
    num_given: int,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str,
    seed: int,
    first_index: int = 0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draws x_{o(G)} … x_{o(T−1)} given the first G dimensions of every row's order.

    Row i is sample first_index + i of the seed, and a dimension's uniform has the dimension's number in every order.

    Args:
        x: uint8 [B, D]; its states at the first G dimensions of the orders are read, the others are not.
        order, num_given: as path_log_prob.
        temperature: positive; divides the logits of every conditional.

    Returns:
        x with what was drawn, and the log-probability [B], in nats, of that under the distribution it was drawn from.

    Raises:
        RuntimeError: the logits are NaN or infinite.
    """
    u = uniforms(seed, first_index, len(x), x.shape[1], device=V.device)
    observed = torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter_(1, order[:, :num_given], True)
    x = torch.where(observed, x, 0)
    total = b.new_zeros(len(x))
    rows = torch.arange(len(x), device=x.device)
    for d in order[:, num_given:].unbind(1):
        outputs_d = outputs(x, observed, W, U, c, hidden, V, b, activation)[rows, d] / temperature
        state = draw(outputs_d, u[rows, d])
        total = total + log_probability(outputs_d, state)
        x[rows, d] = state.to(x.dtype)
        observed[rows, d] = True
    return x, total
