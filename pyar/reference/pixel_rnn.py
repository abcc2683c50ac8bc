"""What the Row LSTM and the Diagonal BiLSTM share, in plain PyTorch: the first convolution and the LSTM cell.

van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759. Maps are [B, H, W, features], images of numbers [B, H, W, E]. Gates are stored in the
order i, f, g, o, 4h numbers: of the input, forget, content and output gate of h hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class First(NamedTuple):
    """The first layer's parameters: what mask A (section 3.4) leaves of a 7×7 convolution to F features.

    above: [F, E, 3, 7], of the rows above the pixel.
    left: [F, E, 1, 3], of the pixels to its left.
    bias: [F].
    """

    above: Tensor
    left: Tensor
    bias: Tensor


def first_map(image: Tensor, first: First) -> Tensor:
    """The first layer (table 1), a convolution of mask A: image [B, H, W, E] → [B, H, W, F]."""
    image = image.movedim(3, 1)
    above = functional.conv2d(functional.pad(image, (3, 3, 3, -1)), first.above, first.bias)
    return (above + functional.conv2d(functional.pad(image, (3, -1)), first.left)).movedim(1, 3)


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 3 from the gates before their nonlinearities [..., 4h] and the cell state before [..., h]: h and c."""
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def shift(values: Tensor, dim: int, by: int) -> Tensor:
    """The values moved along a dimension, by places up (`by` > 0) or down, with zeros moving in."""
    size = values.shape[dim]
    zeros = torch.zeros_like(values.narrow(dim, 0, min(abs(by), size)))
    if by > 0:
        return torch.cat((zeros, values), dim).narrow(dim, 0, size)
    return torch.cat((values, zeros), dim).narrow(dim, zeros.shape[dim], size)


def gate_bias(bias: Tensor, context_weight: Tensor | None, context: Tensor | None) -> Tensor:
    """What is added to the gates at every position: bias [4h], and with a context z [B, Z] the weights [4h, Z] times z.

    Conditioning as in equation 4 of van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016.
    """
    if context_weight is None or context is None:
        return bias
    return (bias + context @ context_weight.T)[:, None, None]
