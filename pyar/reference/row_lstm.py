"""The Row LSTM's features in plain PyTorch: one row after the other, every column of a row at once.

van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.1,
https://arxiv.org/abs/1601.06759. With x_i the layer's input at row i and h_{i−1}, c_{i−1} its state at the row above,

    [o_i, f_i, i_i, g_i] = σ(K^ss ⊛ h_{i−1} + K^is ⊛ x_i),   c_i = f_i ⊙ c_{i−1} + i_i ⊙ g_i,
    h_i = o_i ⊙ tanh(c_i)                                                                            (3)

(g_i by tanh), where K^is is a convolution along the row, 3 wide with mask B, so of the pixel to the left and the pixel
itself, and K^ss one over the row above, 3 wide, with no mask. There is no state outside of the image: it is zero. A
layer adds h_i to its input, by a 1×1 convolution (section 3.3). The first layer is a convolution of mask A, so that
features at a pixel never see the pixel itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyar.reference.pixel_rnn import First, first_map, gate_bias, lstm_cell, shift


class Layer(NamedTuple):
    """One layer's parameters, of h hidden units and F features.

    W: [2, 4h, F], K^is of the pixel to the left and of the pixel itself.
    U: [3, 4h, h], K^ss of the columns j − 1, j and j + 1 of the row above.
    b: [4h].
    up, up_bias: [F, h] and [F], the 1×1 convolution to the features that are added to the input.
    Z: [4h, Z], of the context; None without.
    """

    W: Tensor
    U: Tensor
    b: Tensor
    up: Tensor
    up_bias: Tensor
    Z: Tensor | None = None


def states(gates: Tensor, U: Tensor) -> Tensor:
    """h [B, H, W, h] of all rows from K^is ⊛ x [B, H, W, 4h]."""
    h = c = gates.new_zeros(gates.shape[0], gates.shape[2], U.shape[2])
    rows = []
    for gates_of_row in gates.unbind(1):
        state_to_state = shift(h, 1, 1) @ U[0].T + h @ U[1].T + shift(h, 1, -1) @ U[2].T
        h, c = lstm_cell(gates_of_row + state_to_state, c)
        rows.append(h)
    return torch.stack(rows, dim=1)


def layer_map(x: Tensor, layer: Layer, context: Tensor | None = None) -> Tensor:
    """One layer: [B, H, W, F] → [B, H, W, F]."""
    W, U, b, up, up_bias, Z = layer
    h = states(gate_bias(b, Z, context) + shift(x, 2, 1) @ W[0].T + x @ W[1].T, U)
    return x + h @ up.T + up_bias


def features(image: Tensor, first: First, layers: Sequence[Layer], context: Tensor | None = None) -> Tensor:
    """The last layer's map [B, H, W, F]: at a pixel, a function of the pixels before it alone.

    Args:
        image: [B, H, W, E], the pixels as numbers.
        layers: of any number.
        context: [B, Z], or None.
    """
    x = first_map(image, first)
    for layer in layers:
        x = layer_map(x, layer, context)
    return x
