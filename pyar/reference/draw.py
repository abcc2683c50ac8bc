"""From one conditional's outputs to its log-probabilities and to a state: what every model family shares.

The outputs of a dimension are [..., P]: P = 1 holds the Bernoulli logit log p(1)/p(0) of K = 2 states, any other P the
logits of K = P states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def log_probabilities(outputs: Tensor) -> Tensor:
    """log p(k) of every state, in nats: outputs [..., P] → [..., K]."""
    if outputs.shape[-1] == 1:
        return torch.cat((functional.logsigmoid(-outputs), functional.logsigmoid(outputs)), dim=-1)
    return functional.log_softmax(outputs, dim=-1)


def log_probability(outputs: Tensor, x: Tensor) -> Tensor:
    """log p(x) in nats: outputs [..., P], states x [...] of any integer dtype → [...]."""
    if outputs.shape[-1] == 1:
        logit = outputs.squeeze(-1)
        return functional.logsigmoid(torch.where(x != 0, logit, -logit))
    return log_probabilities(outputs).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


def draw(outputs: Tensor, u: Tensor) -> Tensor:
    """The inverse CDF at u: the smallest k with u·S < w_0 + … + w_k, S = w_0 + … + w_{K−1}, summed in that order.

    w = exp(logits − max), the logits of P = 1 being (0, outputs). Rounding can leave u·S = S: then it is the last k
    with w_k > 0.

    Args:
        outputs: [B, P], divided by the temperature.
        u: [B] in (0, 1).

    Returns:
        int64 [B].

    Raises:
        RuntimeError: the weights are not finite numbers.
    """
    logits = torch.cat((torch.zeros_like(outputs), outputs), dim=-1) if outputs.shape[-1] == 1 else outputs
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    prefix = [weights[:, 0]]
    for k in range(1, weights.shape[1]):
        prefix.append(prefix[-1] + weights[:, k])
    total = prefix[-1]
    if not bool((torch.isfinite(total) & (total > 0)).all()):
        raise RuntimeError("the logits to sample from are NaN or infinite; check the model's parameters")
    state = (torch.stack(prefix, dim=-1) <= (u.to(total.dtype) * total)[:, None]).sum(dim=-1)
    states = torch.arange(weights.shape[1], device=weights.device)
    last_possible = torch.where(weights > 0, states, 0).amax(dim=-1)
    return torch.minimum(state, last_possible)
