"""What the models of the plane share, in plain PyTorch: numbers for their inputs, conditionals from their features.

An image has C channels, pixel after pixel in the order of the scan, channels innermost: D = pixels·C. A model computes
features f [F] of every pixel from the pixels before it, and the conditionals of the pixel's channels, one given the
other (van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759, equation 2: R, then G given R, then B given both), are

    a = w + W relu(f),   h_c = relu(a + Σ_{j<c} E_cj[x_j]),   outputs_c = b_c + V_c h_c

two 1×1 convolutions, each after a ReLU, as the paper has them (table 1). The arguments everywhere are

    features [B, pixels, F] · x [B, D] integer states 0 … K−1 ·
    W [M, F] · w [M] · E [C(C−1)/2, K, M], E_cj at c(c−1)/2 + j · V [C, P, M] · b [C, P]

For output "softmax", P = 1 holds the logit of K = 2 states and P = K the logits of any other K. For "logistic-mixture",
P = 3n holds the weights' logits, means and log scales of n logistic distributions, which give state k what they have
between (k ± ½), the first and the last state all that is beyond (Salimans, Karpathy, Chen & Kingma, "PixelCNN++", ICLR
2017, https://arxiv.org/abs/1701.05517, equation 2; the scale of the values is −1 … 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms

LEAST_LOG_SCALE = -7.0


class HeadParameters(NamedTuple):
    """The output head's parameters: W [M, F] · w [M] · E [C(C−1)/2, K, M] · V [C, P, M] · b [C, P]."""

    W: Tensor
    w: Tensor
    E: Tensor
    V: Tensor
    b: Tensor


def numbers(x: Tensor, num_states: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The states as numbers −1 … 1, so that a black pixel is none of the zeros outside the image."""
    return x.to(dtype) * (2 / (num_states - 1)) - 1


def outputs(features: Tensor, x: Tensor, W: Tensor, w: Tensor, E: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The conditionals' outputs: [B, D, P]."""
    C = len(V)
    pixels = x.view(len(x), -1, C).long()
    a = functional.linear(torch.relu(features), W, w)
    channels = []
    for c in range(C):
        h = a
        for j in range(c):
            h = h + E[c * (c - 1) // 2 + j][pixels[..., j]]
        channels.append(functional.linear(torch.relu(h), V[c], b[c]))
    return torch.stack(channels, dim=2).flatten(1, 2)


def mixture_log_probabilities(outputs: Tensor, num_states: int) -> Tensor:
    """log p(k) of every state under a mixture of logistics, in nats: [..., 3n] → [..., K]."""
    states = torch.arange(num_states, device=outputs.device).expand(*outputs.shape[:-1], num_states)
    return mixture_log_probability(outputs.unsqueeze(-2), states, num_states)


def mixture_log_probability(outputs: Tensor, x: Tensor, num_states: int) -> Tensor:
    """log p(x) under a mixture of logistics, in nats: outputs [..., 3n], states x [...] of any integer dtype → [...].

    With a and b the standardised lower and upper end of the state's interval,

        σ(b) − σ(a) = (1 − e^(a − b)) σ(b) σ(−a)

    which neither cancels nor underflows in its logarithm.
    """
    weights, means, log_scales = outputs.chunk(3, dim=-1)
    log_scales = log_scales.clamp(min=LEAST_LOG_SCALE)
    step = 2 / (num_states - 1)
    value = (x.to(outputs.dtype) * step - 1).unsqueeze(-1)
    a = (value - step / 2 - means) * torch.exp(-log_scales)
    b = (value + step / 2 - means) * torch.exp(-log_scales)
    is_first, is_last = (x == 0).unsqueeze(-1), (x == num_states - 1).unsqueeze(-1)
    width = step * torch.exp(-log_scales)
    between = torch.where(is_first | is_last, 0.0, torch.log(-torch.expm1(-width)))
    below = torch.where(is_last, 0.0, functional.logsigmoid(b))
    above = torch.where(is_first, 0.0, functional.logsigmoid(-a))
    return torch.logsumexp(functional.log_softmax(weights, dim=-1) + between + below + above, dim=-1)


def sample(
    conditionals: Callable[[Tensor], Tensor],
    num_dims: int,
    seed: int,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws step after step, with a whole forward pass for every one of them: what a sample is, not how to get it.

    Args:
        conditionals: states [N, D] by step → logits [N, D, P] as pyar.reference.draw takes them.
        given: states [N, G] of the first G steps.
        dims: int64 [D], the dimension that every step visits; None for 0 … D−1.

    Returns:
        x uint8 [N, D] by step, and [N], the log-probability of the drawn part in nats.
    """
    first = 0 if given is None else given.shape[1]
    u = uniforms(seed, first_index, num_samples, num_dims)
    x = torch.zeros(num_samples, num_dims, dtype=torch.uint8)
    x[:, :first] = x[:, :first] if given is None else given
    total = torch.zeros(num_samples)
    for d in range(first, num_dims):
        logits = conditionals(x)[:, d] / temperature
        x[:, d] = draw(logits, u[:, d if dims is None else int(dims[d])])
        total = total + log_probability(logits, x[:, d])
    return x, total
