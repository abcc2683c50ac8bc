"""PixelCNN's sampling: every feature is computed once, when what it depends on is drawn.

The gated form's vertical stack sees the rows above alone, so a whole row of it is computed, for all layers, when the
row above is drawn: convolutions over the row. What it gives to the horizontal stack waits there, and the horizontal
stack follows pixel by pixel. Of the plain form it is the part of every convolution that sees the rows above. So a
sample costs about one forward pass, where a loop over pixels costs D. The equations are in pyar.reference.pixel_cnn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.ops.plane import Output, PixelDraws
from pyar.ops.validate import check_given, check_parameters, check_sampling, check_seed
from pyar.reference.pixel_cnn import GatedLayer, PlainLayer, from_context, gate
from pyar.reference.plane import HeadParameters, numbers


def pixel_cnn_sample(
    layers: Sequence[GatedLayer] | Sequence[PlainLayer],
    head: HeadParameters,
    *,
    shape: tuple[int, int],
    num_states: int,
    output: Output,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    context: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed, at the cost of about one forward pass.

    Sample i of a seed and a context is the same whatever the batch and the number of threads: state d of sample i is
    the inverse CDF of the conditional at the uniform of (seed, i, d), see pyar.random.

    Args:
        layers, head: the parameters, float32 and on one device.
        shape: rows and columns of the image, as the steps go through it.
        num_states: K.
        output: "softmax" or "logistic-mixture".
        seed: int64 [], the seed's 64 bits, on the parameters' device; pyar.random.resolve_seed makes it.
        num_samples: N ≥ 0.
        first_index: ≥ 0.
        temperature: positive; divides the logits.
        given: uint8 or int64 [N, G], or [G] for all samples alike: the first G steps, which are not drawn.
        context: float32 [N, S], for layers that have weights for it.
        dims: int64 [D], the dimension that every step visits, whose number its uniform has; None for 0 … D−1.

    Returns:
        x uint8 [N, D], a column a step, and float32 [N], in nats, the log-probability of what was drawn under the
        distribution it was drawn from. Neither is differentiable.

    Raises:
        TypeError, ValueError: an argument is not as described.
        RuntimeError: logits are NaN or infinite, so that there is nothing to draw from.
    """
    num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
    device = head.W.device
    check_seed(seed, device)
    given = check_given(given, num_samples, shape[0] * shape[1] * len(head.V), num_states, device)
    _check(layers, head, num_samples, context)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if device.type == "cpu" and native.has_kernels("cpu") and isinstance(layers[0], GatedLayer):
            gates = None
            if context is not None:
                gates = torch.stack([context @ layer.context.T for layer in layers], dim=1)
            return torch.ops.pyar.pixel_cnn_sample(
                [tensor for layer in layers for tensor in layer[:-1] if tensor is not None],
                list(head),
                gates,
                *shape,
                num_states,
                head.V.shape[1] // 3 if output == "logistic-mixture" else 0,
                seed,
                num_samples,
                first_index,
                temperature,
                given,
                dims,
            )
        if device.type == "cpu" and not native.has_kernels("cpu"):
            native.warn_reference("cpu")
        return cached_sample(
            layers, head, shape, num_states, output, seed, num_samples, first_index, temperature, given, context, dims
        )


def cached_sample(
    layers: Sequence[GatedLayer] | Sequence[PlainLayer],
    head: HeadParameters,
    shape: tuple[int, int],
    num_states: int,
    output: Output,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    context: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`pixel_cnn_sample` on any device, by torch's operations on the whole batch."""
    rows, columns = shape
    draws = PixelDraws(
        head, num_states, output, rows * columns, seed, num_samples, first_index, temperature, given, dims
    )
    stack = _GatedStack if isinstance(layers[0], GatedLayer) else _PlainStack
    trunk = stack(layers, context, num_samples, columns)
    for row in range(rows):
        trunk.start_row()
        for column in range(columns):
            states = draws.pixel(row * columns + column, trunk.features(column))
            trunk.take(column, numbers(states, num_states, head.W.dtype))
    return draws.x, draws.log_prob


class _Rows:
    """The last rows of some features, [N, F, rows, columns + 2·reach], with the zeros outside the image.

    The last of them is the one being made; `above` is those before it.
    """

    def __init__(self, like: Tensor, num_samples: int, features: int, columns: int, reach: int) -> None:
        self.reach = reach
        self.all = like.new_zeros(num_samples, features, reach + 1, columns + 2 * reach)

    @property
    def above(self) -> Tensor:
        return self.all[:, :, :-1]

    def start(self) -> None:
        self.all = torch.cat((self.all[:, :, 1:], torch.zeros_like(self.all[:, :, :1])), dim=2)

    def put_row(self, row: Tensor) -> None:
        """The whole last row, [N, F, columns]."""
        self.all[:, :, -1, self.reach : self.all.shape[3] - self.reach] = row

    def put(self, column: int, values: Tensor) -> None:
        """One column of the last row, [N, F]."""
        self.all[:, :, -1, self.reach + column] = values

    def left_of(self, column: int, count: int) -> Tensor:
        """`count` columns of the last row from column − reach on, [N, F·count]."""
        return self.all[:, :, -1, column : column + count].flatten(1)


class _GatedStack:
    def __init__(self, layers: Sequence[GatedLayer], context: Tensor | None, num_samples: int, columns: int) -> None:
        self.layers = layers
        self.from_context = [
            (0.0, 0.0) if context is None else from_context(context, layer.context).squeeze(-1).chunk(2, dim=1)
            for layer in layers
        ]

        def rows(layer: GatedLayer) -> _Rows:
            return _Rows(layer.vertical, num_samples, layer.vertical.shape[1], columns, layer.vertical.shape[3] // 2)

        self.image = rows(layers[0])
        self.horizontal = [self.image, *map(rows, layers[1:])]  # what every layer reads
        self.vertical = [self.image, *map(rows, layers[1:])]
        self.waiting: list[Tensor] = []

    def start_row(self) -> None:
        """The vertical stack of a new row, and what it gives to the horizontal one."""
        for rows in (*self.horizontal, *self.vertical[1:]):
            rows.start()
        self.waiting = []
        for number, layer in enumerate(self.layers):
            to_vertical, to_horizontal = self.from_context[number]
            seen = self.image.above if number == 0 else self.vertical[number].all
            above = functional.conv2d(seen, layer.vertical, layer.vertical_bias).squeeze(2) + to_vertical
            if number + 1 < len(self.layers):
                self.vertical[number + 1].put_row(gate(above))
            across = functional.conv1d(above, layer.cross.squeeze(-1), layer.horizontal_bias)
            self.waiting.append(across + to_horizontal)

    def features(self, column: int) -> Tensor:
        """Those of the pixel, [N, F]."""
        h, features = None, 0.0
        for number, layer in enumerate(self.layers):
            if number > 0:
                self.horizontal[number].put(column, h)
            left = self.horizontal[number].left_of(column, layer.horizontal.shape[3])
            g = gate(torch.addmm(self.waiting[number][:, :, column], left, layer.horizontal.flatten(1).T))
            features = features + torch.addmm(layer.skip_bias, g, layer.skip.flatten(1).T)
            if layer.residual is not None:
                through = torch.addmm(layer.residual_bias, g, layer.residual.flatten(1).T)
                h = through if h is None else h + through
        return features

    def take(self, column: int, values: Tensor) -> None:
        """The pixel's numbers [N, C], once they are drawn."""
        self.image.put(column, values)


class _PlainStack:
    def __init__(self, layers: Sequence[PlainLayer], context: Tensor | None, num_samples: int, columns: int) -> None:
        self.layers = layers
        self.from_context = [
            0.0 if context is None else from_context(context, layer.context).squeeze(-1) for layer in layers
        ]
        self.inputs = [
            _Rows(layer.above, num_samples, layer.above.shape[1], columns, layer.above.shape[3] // 2)
            for layer in layers
        ]
        self.waiting: list[Tensor] = []

    def start_row(self) -> None:
        """The part of every convolution that sees the rows above."""
        self.waiting = []
        for layer, rows, told in zip(self.layers, self.inputs, self.from_context, strict=True):
            rows.start()
            above = functional.conv2d(rows.above, layer.above, layer.above_bias).squeeze(2)
            self.waiting.append(above + told)

    def features(self, column: int) -> Tensor:
        """Those of the pixel, [N, F]."""
        h = None
        for layer, rows, waiting in zip(self.layers, self.inputs, self.waiting, strict=True):
            if layer.reduce is not None:
                a = torch.addmm(layer.reduce_bias, torch.relu(h), layer.reduce.flatten(1).T)
                rows.put(column, torch.relu(a))
            left = rows.left_of(column, layer.left.shape[3])
            a = torch.addmm(waiting[:, :, column], left, layer.left.flatten(1).T)
            if layer.expand is None:
                h = a
            else:
                h = h + torch.addmm(layer.expand_bias, torch.relu(a), layer.expand.flatten(1).T)
        return h

    def take(self, column: int, values: Tensor) -> None:
        """The pixel's numbers [N, C], once they are drawn."""
        self.inputs[0].put(column, values)


def _check(
    layers: Sequence[GatedLayer] | Sequence[PlainLayer], head: HeadParameters, num_samples: int, context: Tensor | None
) -> None:
    """Raises TypeError or ValueError for parameters that are not float32 on one device, or a context that is none."""
    named = list(zip(("W", "w", "E", "V", "b"), head, strict=True))
    for number, layer in enumerate(layers):
        named += [
            (f"layers[{number}].{name}", tensor)
            for name, tensor in zip(layer._fields, layer, strict=True)
            if tensor is not None
        ]
    check_parameters([(name, tensor, tensor.shape) for name, tensor in named])
    takes = layers[0].context is not None
    if takes != (context is not None):
        raise ValueError(
            f"context must be {'a tensor' if takes else 'None'} for layers with{'' if takes else 'out'} it"
        )
    if context is not None:
        check_parameters([("W", head.W, head.W.shape), ("context", context, (num_samples, layers[0].context.shape[1]))])


def _fake_sample(
    layers, head, gates, rows, columns, num_states, mixtures, seed, num_samples, first_index, temperature, given, dims
):
    W, V = head[0], head[3]
    x = torch.empty(num_samples, rows * columns * V.shape[0], dtype=torch.uint8, device=W.device)
    return x, W.new_empty(num_samples)


if native._C is not None:
    torch.library.register_fake("pyar::pixel_cnn_sample", _fake_sample)
    torch.library.register_autocast("pyar::pixel_cnn_sample", "cpu", torch.float32)
