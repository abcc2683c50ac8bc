"""PixelLSTM, the step-wise LSTM over the dimensions of a discrete vector, in plain PyTorch.

Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997), with the forget gate of Gers,
Schmidhuber & Cummins (2000), as torch.nn.LSTM writes it (https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html).
At step d every layer computes, from its input y_d and its own state (h, c) before the step,

    (i, f, g, o) = W_ih y_d + b_ih + W_hh h + b_hh,     c ← σ(f) c + σ(i) tanh(g),     h ← σ(o) tanh(c),

and the first layer's input is the previous state x_{d−1}, one-hot or as the number x_{d−1}/(K−1), each further layer's
the h of the layer below. At step 0 the input, h and c are zero. The last layer's h gives the conditional,

    p(x_d = k | x_{<d}) = softmax_k(head_weight h + head_bias).

The arguments everywhere are

    x [B, D] integer states · weights = (weight_ih [4H, I], weight_hh [4H, H], bias_ih [4H], bias_hh [4H]) of every
    layer in turn, as torch.nn.LSTM stores them, gates in the order i, f, g, o · head_weight [K, H] · head_bias [K]

with I = K (one-hot) or 1 (scalar) in the first layer and H in the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms

State = list[tuple[Tensor, Tensor]]


def encode(x_d: Tensor, weight_ih: Tensor, num_states: int) -> Tensor:
    """States [B] as the first layer's input [B, I]: one-hot, or for I = 1 the number x_d/(K−1)."""
    if weight_ih.shape[1] == 1:
        return (x_d.to(weight_ih.dtype) / (num_states - 1))[:, None]
    return (x_d[:, None] == torch.arange(num_states, device=x_d.device)).to(weight_ih.dtype)


def zero_state(batch: int, weights: Sequence[Tensor]) -> State:
    """(h, c) [B, H] of every layer before step 0."""
    return [(weight_hh.new_zeros(batch, weight_hh.shape[1]),) * 2 for weight_hh in weights[1::4]]


def step(y: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    """One step of all layers from the first layer's input y [B, I]: the state after it."""
    after = []
    for layer, (h, c) in enumerate(state):
        weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * layer : 4 * layer + 4]
        i, f, g, o = (y @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        y = torch.sigmoid(o) * torch.tanh(c)
        after.append((y, c))
    return after


def step_logits(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> list[Tensor]:
    """The conditionals' logits [B, K] of every step."""
    state = zero_state(x.shape[0], weights)
    y = weights[0].new_zeros(x.shape[0], weights[0].shape[1])
    logits = []
    for d in range(x.shape[1]):
        state = step(y, state, weights)
        logits.append(state[-1][0] @ head_weight.T + head_bias)
        y = encode(x[:, d], weights[0], head_weight.shape[0])
    return logits


def logits(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """The conditionals' logits [B, D, K]; for K = 2 [B, D], log p(x_d = 1 | x_{<d}) − log p(x_d = 0 | x_{<d})."""
    stacked = torch.stack(step_logits(x, weights, head_weight, head_bias), dim=1)
    return stacked[..., 1] - stacked[..., 0] if head_weight.shape[0] == 2 else stacked


def conditional_log_prob(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """log p(x_d | x_{<d}) in nats: [B, D]."""
    stacked = torch.stack(step_logits(x, weights, head_weight, head_bias), dim=1)
    return log_probability(stacked, x)


def log_prob(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}) in nats: [B]."""
    total = head_bias.new_zeros(x.shape[0])
    for d, logits_d in enumerate(step_logits(x, weights, head_weight, head_bias)):
        total = total + log_probability(logits_d, x[:, d])
    return total


def sample(
    weights: Sequence[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    seed: int,
    num_samples: int,
    first_index: int,
    num_dims: int,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed, one uniform for each (sample, dimension).

    Args:
        temperature: positive; divides the logits of every conditional.
        given: integer [num_samples, G], the states of the first G dimensions, which are not drawn.

    Returns:
        x uint8 [num_samples, num_dims], and the log-probability [num_samples], in nats, of the drawn part under the
        distribution it was drawn from: Σ_{d≥G} log p(x_d | x_{<d}) at that temperature.

    Raises:
        RuntimeError: the logits are NaN or infinite.
    """
    num_given = 0 if given is None else given.shape[1]
    u = uniforms(seed, first_index, num_samples, num_dims, device=head_weight.device)
    x = torch.zeros(num_samples, num_dims, dtype=torch.uint8, device=head_weight.device)
    total = head_bias.new_zeros(num_samples)
    state = zero_state(num_samples, weights)
    y = weights[0].new_zeros(num_samples, weights[0].shape[1])
    for d in range(num_dims):
        state = step(y, state, weights)
        if d < num_given:
            x[:, d] = given[:, d]
        else:
            logits_d = (state[-1][0] @ head_weight.T + head_bias) / temperature
            x[:, d] = draw(logits_d, u[:, d])
            total = total + log_probability(logits_d, x[:, d])
        y = encode(x[:, d], weights[0], head_weight.shape[0])
    return x, total
