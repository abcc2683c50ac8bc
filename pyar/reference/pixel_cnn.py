"""PixelCNN, gated and plain, in plain PyTorch: the full forward pass, by kernels of full size with what a mask lets in.

The plain form is that of van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759 (sections 3.3 to 3.5), the gated one that of van den Oord et al., "Conditional Image
Generation with PixelCNN Decoders", NIPS 2016, https://arxiv.org/abs/1606.05328. A k × k kernel sees the rows above and
what is left of its pixel: in the first layer not the pixel itself (mask A), in all others the pixel too (mask B).

Gated (equations 2 and 4, figure 2; c the context): a vertical stack v sees the rows above alone, a horizontal stack h
sees v and what is left in its row, so that the two have no blind spot:

    v' = vertical ∗ v + U c            v ← tanh(v'_1) ⊙ σ(v'_2)
    h' = horizontal ∗ h + cross v' + U' c     g = tanh(h'_1) ⊙ σ(h'_2)
    h ← h + residual g (first layer: residual g)     features = Σ_layers skip g

where the vertical kernel has the rows above and, from the second layer on, its own row, since v has seen nothing of it.

Plain (figure 5, left; residual blocks with a bottleneck): h = above ∗ x + left ∗ x + U c in the first layer, then

    h ← h + expand relu(above ∗ a + left ∗ a + U c),   a = relu(reduce relu(h)),     features = h

The arguments everywhere are the image's numbers [B, C, H, W], and a tuple for every layer whose kernels hold what the
mask lets through: above [O, I, rows, k], left [O, I, 1, columns], the others [O, I, 1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class GatedLayer(NamedTuple):
    """vertical [2F, I, rows, k] · horizontal [2F, I, 1, columns] · cross [2F, 2F, 1, 1] · skip and residual
    [F, F, 1, 1], the last layer without residual · context [4F, S], U and U', or None."""

    vertical: Tensor
    vertical_bias: Tensor
    horizontal: Tensor
    horizontal_bias: Tensor
    cross: Tensor
    skip: Tensor
    skip_bias: Tensor
    residual: Tensor | None
    residual_bias: Tensor | None
    context: Tensor | None


class PlainLayer(NamedTuple):
    """reduce [G, F, 1, 1] and expand [F, G, 1, 1], not in the first layer · above [G, G, rows, k] and left
    [G, G, 1, columns], in the first layer from C to F · context [G, S], or None."""

    reduce: Tensor | None
    reduce_bias: Tensor | None
    above: Tensor
    above_bias: Tensor
    left: Tensor
    expand: Tensor | None
    expand_bias: Tensor | None
    context: Tensor | None


def gate(values: Tensor, dim: int = 1) -> Tensor:
    """tanh(first half) ⊙ σ(second half)."""
    first, second = values.chunk(2, dim)
    return torch.tanh(first) * torch.sigmoid(second)


def masked(x: Tensor, kernel: Tensor, first_row: int, k: int, bias: Tensor | None = None) -> Tensor:
    """The k × k convolution of x whose kernel is zero but for `kernel`, from `first_row` and the first column on."""
    full = kernel.new_zeros(*kernel.shape[:2], k, k)
    full[:, :, first_row : first_row + kernel.shape[2], : kernel.shape[3]] = kernel
    return functional.conv2d(x, full, bias, padding=k // 2)


def from_context(context: Tensor | None, weight: Tensor | None) -> Tensor | float:
    """U c for every pixel: [B, O, 1, 1]; 0 without context."""
    return 0.0 if context is None else (context @ weight.T)[..., None, None]


def gated_features(image: Tensor, layers: Sequence[GatedLayer], context: Tensor | None = None) -> Tensor:
    """The features of the gated form: image [B, C, H, W], context [B, S] or None → [B, F, H, W]."""
    v = h = image
    features = 0.0
    for number, layer in enumerate(layers):
        k = layer.vertical.shape[3]
        to_vertical, to_horizontal = (
            (0.0, 0.0) if context is None else from_context(context, layer.context).chunk(2, dim=1)
        )
        above = masked(v, layer.vertical, 0, k, layer.vertical_bias) + to_vertical
        v = gate(above)
        left = masked(h, layer.horizontal, k // 2, k, layer.horizontal_bias)
        g = gate(left + functional.conv2d(above, layer.cross) + to_horizontal)
        features = features + functional.conv2d(g, layer.skip, layer.skip_bias)
        if layer.residual is not None:
            through = functional.conv2d(g, layer.residual, layer.residual_bias)
            h = through if number == 0 else h + through
    return features


def plain_features(image: Tensor, layers: Sequence[PlainLayer], context: Tensor | None = None) -> Tensor:
    """The features of the plain form: image [B, C, H, W], context [B, S] or None → [B, F, H, W]."""
    h = image
    for layer in layers:
        k = layer.above.shape[3]
        a = h
        if layer.reduce is not None:
            a = torch.relu(functional.conv2d(torch.relu(h), layer.reduce, layer.reduce_bias))
        a = masked(a, layer.above, 0, k, layer.above_bias) + masked(a, layer.left, k // 2, k)
        a = a + from_context(context, layer.context)
        h = a if layer.expand is None else h + functional.conv2d(torch.relu(a), layer.expand, layer.expand_bias)
    return h
