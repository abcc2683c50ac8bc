"""The Diagonal BiLSTM's features in plain PyTorch: one diagonal after the other, in both directions.

van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.2,
https://arxiv.org/abs/1601.06759. Row i of a map is moved i places to the right, so that a column of the skewed map
[H, W + H − 1] is a diagonal of the map. With x_i the skewed input at column i,

    [o_i, f_i, i_i, g_i] = σ(K^ss ⊛ h_{i−1} + K^is ⊛ x_i),   c_i = f_i ⊙ c_{i−1} + i_i ⊙ g_i,
    h_i = o_i ⊙ tanh(c_i)                                                                            (3)

(g_i by tanh), where K^is is a 1×1 convolution and K^ss a convolution down the column before, 2 high: of the same row,
which is the pixel to the left, and of the row above it, which is the pixel above. There is no state outside of the
image: it is zero. The other direction does the same from right to left: the map is flipped first, then skewed. Its
states are moved down by one row before they are added to those of the first, so that at a pixel they see the rows above
alone. A layer adds the sum to its input, by a 1×1 convolution (section 3.3).

The first layer is a convolution of mask A, so that features at a pixel never see the pixel itself. With that alone, the
last pixels of the row above would be invisible to the first pixels of a row. So the right-to-left direction also reads
the pixel at its own place, which moving down makes a pixel of the row above: thus every pixel sees all before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyar.reference.pixel_rnn import First, first_map, gate_bias, lstm_cell, shift


class Layer(NamedTuple):
    """One layer's parameters, of h hidden units and F features; the image has E numbers a pixel.

    W_left, W_right: [4h, F] and [4h, F + E], K^is of the two directions.
    U_left, U_right: [2, 4h, h], K^ss of the pixel beside (to the left, to the right) and of the pixel above.
    b_left, b_right: [4h].
    up, up_bias: [F, h] and [F], the 1×1 convolution to the features that are added to the input.
    Z_left, Z_right: [4h, Z], of the context; None without.
    """

    W_left: Tensor
    U_left: Tensor
    b_left: Tensor
    W_right: Tensor
    U_right: Tensor
    b_right: Tensor
    up: Tensor
    up_bias: Tensor
    Z_left: Tensor | None = None
    Z_right: Tensor | None = None


def skew(values: Tensor) -> Tensor:
    """Row i moved i places to the right: [B, H, W, …] → [B, H, W + H − 1, …]."""
    B, H, W, *rest = values.shape
    skewed = values.new_zeros(B, H, W + H - 1, *rest)
    for i in range(H):
        skewed[:, i, i : i + W] = values[:, i]
    return skewed


def unskew(skewed: Tensor) -> Tensor:
    """The inverse of skew."""
    H, columns = skewed.shape[1:3]
    return torch.stack([skewed[:, i, i : i + columns - H + 1] for i in range(H)], dim=1)


def states(gates: Tensor, U: Tensor) -> Tensor:
    """h [B, H, W, h] of one direction, from left to right, from K^is ⊛ x [B, H, W, 4h]."""
    inside = skew(torch.ones_like(gates[..., :1]))
    h = c = gates.new_zeros(*gates.shape[:2], U.shape[2])
    columns = []
    for s, gates_of_column in enumerate(skew(gates).unbind(2)):
        cell = lstm_cell(gates_of_column + h @ U[0].T + shift(h, 1, 1) @ U[1].T, c)
        h, c = (inside[:, :, s] * state for state in cell)
        columns.append(h)
    return unskew(torch.stack(columns, dim=2))


def layer_map(x: Tensor, image: Tensor, layer: Layer, context: Tensor | None = None) -> Tensor:
    """One layer: [B, H, W, F] → [B, H, W, F]."""
    left = states(x @ layer.W_left.T + gate_bias(layer.b_left, layer.Z_left, context), layer.U_left)
    right_gates = torch.cat((x, image), dim=-1) @ layer.W_right.T + gate_bias(layer.b_right, layer.Z_right, context)
    right = states(right_gates.flip(2), layer.U_right).flip(2)
    return x + (left + shift(right, 1, 1)) @ layer.up.T + layer.up_bias


def features(image: Tensor, first: First, layers: Sequence[Layer], context: Tensor | None = None) -> Tensor:
    """The last layer's map [B, H, W, F]: at a pixel, a function of the pixels before it alone, and of all of them.

    Args:
        image: [B, H, W, E], the pixels as numbers.
        layers: of any number, one at least for all pixels to be seen.
        context: [B, Z], or None.
    """
    x = first_map(image, first)
    for layer in layers:
        x = layer_map(x, image, layer, context)
    return x
