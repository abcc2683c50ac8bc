"""The layers of the Row LSTM and the Diagonal BiLSTM; the mathematics is in pyar.reference.row_lstm, diagonal_bilstm.

On CPU tensors a layer is one native call, and so are its gradients. Elsewhere it is a scan of torch's operations over
the rows or the diagonals of all images at once.

Sampling computes every state once, when what it depends on is drawn. The Row LSTM's state at a pixel needs the row
above and the pixels to the left. The Diagonal BiLSTM's states from the left go along pixel by pixel; those from the
right are computed, from right to left, when a row is drawn, and used by the next row. So a sample costs about one
forward pass, where a loop over pixels costs D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.native import has_kernels, warn_reference
from pyar.ops import transforms, validate
from pyar.ops.plane import Output, PixelDraws
from pyar.ops.transforms import call
from pyar.reference.pixel_rnn import First, lstm_cell, shift
from pyar.reference.plane import HeadParameters, numbers

#: Up to so many bytes, a layer keeps its gates for the gradients; beyond, they are computed again.
MOST_KEPT = 2**26


def row_lstm_layer(x: Tensor, W: Tensor, U: Tensor, b: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """A layer of the Row LSTM, differentiable: x + up_bias + up · h.

    Args:
        x: float32 [B, rows, columns, F].
        W: [2, 4h, F], of the pixel to the left and of the pixel itself; gates in the order i, f, g, o.
        U: [3, 4h, h], of the columns j − 1, j and j + 1 of the row above.
        b: [4h], or [B, 4h] with what a context adds to the gates.
        up, up_bias: [F, h] and [F].

    Returns:
        float32 [B, rows, columns, F].

    Raises:
        TypeError: a tensor is not float32.
        ValueError: a shape or a device is not as described.
    """
    return _layer(x, None, [W, U, b, up, up_bias])


def diagonal_bilstm_layer(
    x: Tensor,
    own: Tensor | None,
    W_left: Tensor,
    U_left: Tensor,
    b_left: Tensor,
    W_right: Tensor,
    U_right: Tensor,
    b_right: Tensor,
    up: Tensor,
    up_bias: Tensor,
) -> Tensor:
    """A layer of the Diagonal BiLSTM, differentiable: x + up_bias + up · (h from left + h from right, a row up).

    Args:
        x: float32 [B, rows, columns, F].
        own: float32 [B, rows, columns, E], the pixels' own numbers, which the right direction reads; or None, E = 0.
        W_left, W_right: [4h, F] and [4h, F + E]; gates in the order i, f, g, o.
        U_left, U_right: [2, 4h, h], of the pixel beside and of the pixel above.
        b_left, b_right: [4h], or both [B, 4h] with what a context adds to the gates.
        up, up_bias: [F, h] and [F].

    Returns, Raises: as row_lstm_layer.
    """
    return _layer(x, own, [W_left, U_left, b_left, W_right, U_right, b_right, up, up_bias])


def _layer(x: Tensor, own: Tensor | None, weights: list[Tensor]) -> Tensor:
    diagonal = len(weights) == 8
    _check(x, own, weights)
    if x.device.type == "cpu" and has_kernels("cpu"):
        wanted = transforms.needs_gradient([x, *weights, *([] if own is None else [own])])
        keep = wanted and 4 * _kept_size(x, weights, diagonal, True) <= MOST_KEPT
        return call("pixel_rnn_layer", x, own, weights, diagonal, keep)[0]
    if x.device.type == "cpu":
        warn_reference("cpu")
    return layer_by_torch(x, own, weights)


def layer_by_torch(x: Tensor, own: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """A layer on any device, by torch's operations, weights as the operation takes them."""
    *directions, up, up_bias = weights
    if len(directions) == 3:
        W, U, b = directions
        h = row_states(functional.linear(shift(x, 2, 1), W[0]) + functional.linear(x, W[1]) + _by_position(b), U)
    else:
        W, U, b = directions[:3]
        left = diagonal_states(functional.linear(x, W) + _by_position(b), U)
        W, U, b = directions[3:]
        inputs = x if own is None else torch.cat((x, own), dim=-1)
        right = diagonal_states((functional.linear(inputs, W) + _by_position(b)).flip(2), U).flip(2)
        h = left + shift(right, 1, 1)
    return x + functional.linear(h, up, up_bias)


def row_states(gates: Tensor, U: Tensor) -> Tensor:
    """The Row LSTM's h [B, rows, columns, h] from what the gates receive from the input, [B, rows, columns, 4h]."""
    B, _, columns, _ = gates.shape
    weight = U.transpose(1, 2).flatten(0, 1)  # [3h, 4h]
    h = c = gates.new_zeros(B, columns, U.shape[2])
    rows = []
    for gates_of_row in gates.unbind(1):
        above = torch.cat((shift(h, 1, 1), h, shift(h, 1, -1)), dim=-1)
        h, c = lstm_cell(gates_of_row + above @ weight, c)
        rows.append(h)
    return torch.stack(rows, dim=1)


def diagonal_states(gates: Tensor, U: Tensor) -> Tensor:
    """The Diagonal BiLSTM's h of one direction, from left to right, likewise: a diagonal at a time, without padding."""
    B, R, C, _ = gates.shape
    weight = U.transpose(1, 2).flatten(0, 1)  # [2h, 4h]
    h = c = gates.new_zeros(B, R, U.shape[2])  # of every row, at the pixel of the last diagonal
    diagonals, places = [], []
    for s in range(R + C - 1):
        rows = slice(max(0, s - C + 1), min(R, s + 1))
        place = torch.arange(rows.start, rows.stop, device=gates.device)
        place = place * C + s - place
        beside = torch.cat((h, shift(h, 1, 1)), dim=-1)[:, rows]
        h_here, c_here = lstm_cell(gates.flatten(1, 2)[:, place] + beside @ weight, c[:, rows])
        before, after = (0, 0, rows.start, R - rows.stop), (B, R, -1)
        h, c = (functional.pad(value, before).view(after) for value in (h_here, c_here))
        diagonals.append(h_here)
        places.append(place)
    return torch.cat(diagonals, dim=1)[:, torch.argsort(torch.cat(places))].unflatten(1, (R, C))


def pixel_rnn_sample(
    first: First,
    layers: Sequence[Sequence[Tensor]],
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
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed, at the cost of about one forward pass.

    Sample i of a seed and a context is the same whatever the batch and the number of threads: state d of sample i is
    the inverse CDF of the conditional at the uniform of (seed, i, d), see pyar.random.

    Args:
        first, head: the first layer's and the output head's parameters, float32 and on one device.
        layers: of every layer its weights, as row_lstm_layer or diagonal_bilstm_layer takes them, the biases [4h], or
            [N, 4h] with what a context adds.
        shape: rows and columns of the image, as the steps go through it.
        num_states: K.
        output: "softmax" or "logistic-mixture".
        seed: int64 [], the seed's 64 bits, on the parameters' device; pyar.random.resolve_seed makes it.
        num_samples: N ≥ 0.
        first_index: ≥ 0.
        temperature: positive; divides the logits.
        given: uint8 or int64 [N, G], or [G] for all samples alike: the first G steps, which are not drawn.
        dims: int64 [D], the dimension that every step visits, whose number its uniform has; None for 0 … D−1.

    Returns:
        x uint8 [N, D], a column a step, and float32 [N], in nats, the log-probability of what was drawn under the
        distribution it was drawn from. Neither is differentiable.

    Raises:
        TypeError, ValueError: an argument is not as described.
        RuntimeError: logits are NaN or infinite, so that there is nothing to draw from.
    """
    num_samples, first_index, temperature = validate.check_sampling(num_samples, first_index, temperature)
    validate.check_seed(seed, head.W.device)
    given = validate.check_given(given, num_samples, shape[0] * shape[1] * len(head.V), num_states, head.W.device)
    mixtures = 0 if output == "softmax" else head.V.shape[1] // 3
    _check_stack(first, layers, head, num_samples, 3 * mixtures or (1 if num_states == 2 else num_states))
    with torch.no_grad():
        if head.W.device.type == "cpu" and has_kernels("cpu"):
            return torch.ops.pyar.pixel_rnn_sample(
                list(first),
                [weight for weights in layers for weight in weights],
                list(head),
                len(layers[0]) == 8,
                *shape,
                num_states,
                mixtures,
                seed,
                num_samples,
                first_index,
                temperature,
                given,
                dims,
            )
        if head.W.device.type == "cpu":
            warn_reference("cpu")
        return cached_sample(
            first, layers, head, shape, num_states, output, seed, num_samples, first_index, temperature, given, dims
        )


def cached_sample(
    first: First,
    layers: Sequence[Sequence[Tensor]],
    head: HeadParameters,
    shape: tuple[int, int],
    num_states: int,
    output: Output,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`pixel_rnn_sample` on any device, by torch's operations on the whole batch."""
    rows, columns = shape
    draws = PixelDraws(
        head, num_states, output, rows * columns, seed, num_samples, first_index, temperature, given, dims
    )
    start = _FirstRows(first, num_samples, columns)
    stack = [(_DiagonalRows if len(weights) == 8 else _LstmRows)(weights, num_samples, columns) for weights in layers]
    for row in range(rows):
        start.start_row()
        for layer in stack:
            layer.start_row()
        for column in range(columns):
            x = start.features(column)
            for layer in stack:
                x = layer.features(column, x)
            states = draws.pixel(row * columns + column, x)
            start.take(column, numbers(states, num_states, head.W.dtype))
        for layer in stack:
            layer.end_row(start.row)
    return draws.x, draws.log_prob


class _FirstRows:
    """The first layer, pixel by pixel: the last rows of the image, with the zeros outside of it."""

    def __init__(self, first: First, num_samples: int, columns: int) -> None:
        self.first = first
        self.image = first.above.new_zeros(num_samples, first.above.shape[1], 4, columns + 6)

    def start_row(self) -> None:
        self.image = torch.cat((self.image[:, :, 1:], torch.zeros_like(self.image[:, :, :1])), dim=2)
        self.waiting = functional.conv2d(self.image[:, :, :3], self.first.above, self.first.bias)[:, :, 0]

    def features(self, column: int) -> Tensor:
        """Those of the pixel, [N, F]."""
        left = self.image[:, :, 3, column : column + 3].flatten(1)
        return torch.addmm(self.waiting[:, :, column], left, self.first.left.flatten(1).T)

    def take(self, column: int, values: Tensor) -> None:
        """The pixel's numbers [N, C], once they are drawn."""
        self.image[:, :, 3, column + 3] = values

    @property
    def row(self) -> Tensor:
        """The numbers of the row being drawn, [N, columns, C]."""
        return self.image[:, :, 3, 3:-3].transpose(1, 2)


class _LstmRows:
    """A layer of the Row LSTM, pixel by pixel."""

    def __init__(self, weights: Sequence[Tensor], num_samples: int, columns: int) -> None:
        self.W, self.U, self.b, self.up, self.up_bias = weights
        self.h = self.c = self.U.new_zeros(num_samples, columns, self.U.shape[2])

    def start_row(self) -> None:
        above = torch.cat((shift(self.h, 1, 1), self.h, shift(self.h, 1, -1)), dim=-1)
        self.waiting = _with_bias(self.b, above @ self.U.transpose(1, 2).flatten(0, 1))
        self.c_above = self.c
        self.h, self.c = torch.zeros_like(self.h), torch.zeros_like(self.c)
        self.left = None

    def features(self, column: int, x: Tensor) -> Tensor:
        """The layer's output at the pixel from its input there, both [N, F]."""
        gates = torch.addmm(self.waiting[:, column], x, self.W[1].T)
        if self.left is not None:
            gates = torch.addmm(gates, self.left, self.W[0].T)
        self.left = x
        self.h[:, column], self.c[:, column] = lstm_cell(gates, self.c_above[:, column])
        return x + torch.addmm(self.up_bias, self.h[:, column], self.up.T)

    def end_row(self, row: Tensor) -> None:
        pass


class _DiagonalRows:
    """A layer of the Diagonal BiLSTM: from the left pixel by pixel, from the right when a row is drawn."""

    def __init__(self, weights: Sequence[Tensor], num_samples: int, columns: int) -> None:
        self.left, self.right, (self.up, self.up_bias) = weights[:3], weights[3:6], weights[6:]
        h = self.up.shape[1]
        self.h = self.up.new_zeros(num_samples, columns, h)
        self.from_right = self.up.new_zeros(num_samples, columns, h)  # of the row above
        self.x = self.up.new_zeros(num_samples, columns, self.up.shape[0])

    def start_row(self) -> None:
        _, U, b = self.left
        self.waiting = _with_bias(b, self.h @ U[1].T)
        self.h = torch.zeros_like(self.h)
        self.state = (torch.zeros_like(self.h[:, 0]),) * 2  # h and c of the pixel to the left

    def features(self, column: int, x: Tensor) -> Tensor:
        """The layer's output at the pixel from its input there, both [N, F]."""
        W, U, _ = self.left
        self.x[:, column] = x
        h, c = self.state
        gates = torch.addmm(torch.addmm(self.waiting[:, column], x, W.T), h, U[0].T)
        self.state = lstm_cell(gates, c)
        self.h[:, column] = self.state[0]
        return x + torch.addmm(self.up_bias, self.state[0] + self.from_right[:, column], self.up.T)

    def end_row(self, row: Tensor) -> None:
        """The states from the right, once the row's numbers [N, columns, C] are drawn."""
        W, U, b = self.right
        inputs = self.x if W.shape[1] == self.x.shape[2] else torch.cat((self.x, row), dim=-1)
        gates = _with_bias(b, inputs @ W.T + self.from_right @ U[1].T)
        h, c = (torch.zeros_like(self.from_right[:, 0]),) * 2
        for column in reversed(range(gates.shape[1])):
            h, c = lstm_cell(torch.addmm(gates[:, column], h, U[0].T), c)
            self.from_right[:, column] = h


def _with_bias(b: Tensor, gates: Tensor) -> Tensor:
    """Gates [N, columns, 4h] with a bias [4h] or [N, 4h] added."""
    return gates + (b if b.dim() == 1 else b[:, None])


def _by_position(b: Tensor) -> Tensor:
    return b if b.dim() == 1 else b[:, None, None]


def _check(x: Tensor, own: Tensor | None, weights: Sequence[Tensor]) -> None:
    """Raises TypeError or ValueError for arguments that do not fit together."""
    if not isinstance(x, Tensor) or x.dim() != 4 or 0 in x.shape[1:]:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be [B, rows, columns, F], got {got}")
    expected = _expected(weights, x.shape[0], 0 if own is None else own.shape[-1])
    maps = [("x", x, (*x.shape[:3], weights[-2].shape[0]))]
    if own is not None:
        if not isinstance(own, Tensor) or own.dim() != 4 or own.shape[3] == 0:
            got = list(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(f"own must be [B, rows, columns, E], got {got}")
        maps.append(("own", own, (*x.shape[:3], own.shape[3])))
    validate.check_parameters([*maps, *expected])


def _expected(weights: Sequence[Tensor], batch: int, own: int) -> list[tuple[str, Tensor, Sequence[int]]]:
    """What check_parameters has to know of a layer's weights; `own` numbers of the pixel itself."""
    up = weights[-2]
    validate.check_dimensions("up", up, "[F, h]", 2)
    F, h = up.shape
    by_sample = isinstance(weights[2], Tensor) and weights[2].dim() == 2
    bias = (batch, 4 * h) if by_sample else (4 * h,)
    last = [("up", up, (F, h)), ("up_bias", weights[-1], (F,))]
    if len(weights) == 5:
        W, U, b = weights[:3]
        return [("W", W, (2, 4 * h, F)), ("U", U, (3, 4 * h, h)), ("b", b, bias), *last]
    both: list[tuple[str, Tensor, Sequence[int]]] = []
    for number, (name, inputs) in enumerate((("left", F), ("right", F + own))):
        W, U, b = weights[3 * number : 3 * number + 3]
        both += [(f"W_{name}", W, (4 * h, inputs)), (f"U_{name}", U, (2, 4 * h, h)), (f"b_{name}", b, bias)]
    return [*both, *last]


def _check_stack(
    first: First, layers: Sequence[Sequence[Tensor]], head: HeadParameters, num_samples: int, num_outputs: int
) -> None:
    """The same for all parameters of a sampler."""
    validate.check_dimensions("W", head.W, "[M, F]", 2)
    validate.check_dimensions("V", head.V, "[C, P, M]", 3)
    (M, F), C = head.W.shape, len(head.V)
    expected = [
        ("W", head.W, (M, F)),
        ("w", head.w, (M,)),
        ("E", head.E, (C * (C - 1) // 2, *head.E.shape[1:2], M)),
        ("V", head.V, (C, num_outputs, M)),
        ("b", head.b, (C, num_outputs)),
        ("above", first.above, (F, C, 3, 7)),
        ("left", first.left, (F, C, 1, 3)),
        ("bias", first.bias, (F,)),
    ]
    for number, weights in enumerate(layers):
        own = C if len(weights) == 8 else 0
        expected += [(f"layers[{number}].{n}", w, shape) for n, w, shape in _expected(weights, num_samples, own)]
        expected.append((f"layers[{number}].up", weights[-2], (F, layers[0][-2].shape[1])))
    validate.check_parameters(expected)


def _kept_size(x: Tensor, weights: Sequence[Tensor], diagonal: bool, keep: bool) -> int:
    """How many numbers the operation keeps for its gradients, as csrc/cpu/grid/pixel_rnn.h plans it."""
    if not keep:
        return 0
    units = (weights[-2].shape[1] + 15) // 16 * 16
    return x.shape[0] * x.shape[1] * x.shape[2] * (2 if diagonal else 1) * 4 * units


def _layer_shapes(
    x: Tensor, own: Tensor | None, weights: list[Tensor], diagonal: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(_kept_size(x, weights, diagonal, keep))


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    own: Tensor | None,
    weights: list[Tensor],
    kept: Tensor,
    diagonal: bool,
    own_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    down = (x.shape[0] if own_gradient else 0, *x.shape[1:3], 0 if own is None else own.shape[3])
    return x.new_empty(x.shape), x.new_empty(down), [w.new_empty(w.shape) for w in weights]


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, own, weights, ctx.diagonal, _ = inputs
    ctx.has_own = own is not None
    ctx.own_gradient = own is not None and own.requires_grad
    ctx.save_for_backward(x, output[1], *([own] if ctx.has_own else []), *weights)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # nobody needs zeros of the size of what is kept


def _layer_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple:
    x, kept, *weights = ctx.saved_tensors
    own = weights.pop(0) if ctx.has_own else None
    dx, down, gradients = call("pixel_rnn_layer_backward", grad, x, own, weights, kept, ctx.diagonal, ctx.own_gradient)
    return dx, down if ctx.own_gradient else None, gradients, None, None


def _refuse_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "the layers of the Row LSTM and the Diagonal BiLSTM have no second derivatives; use pyar.reference for them"
    )


def _sample_shapes(
    first: list[Tensor],
    layers: list[Tensor],
    head: list[Tensor],
    diagonal: bool,
    rows: int,
    columns: int,
    num_states: int,
    mixtures: int,
    seed: Tensor,
    num_samples: int,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    W, V = head[0], head[3]
    return W.new_empty((num_samples, rows * columns * V.shape[0]), dtype=torch.uint8), W.new_empty(num_samples)


def _register() -> None:
    torch.library.register_fake("pyar::pixel_rnn_sample", _sample_shapes)
    torch.library.register_autocast("pyar::pixel_rnn_sample", "cpu", torch.float32)
    for name, shapes in {"pixel_rnn_layer": _layer_shapes, "pixel_rnn_layer_backward": _backward_shapes}.items():
        torch.library.register_fake(f"pyar::{name}", shapes)
        torch.library.register_autocast(f"pyar::{name}", "cpu", torch.float32)
    transforms.register("pixel_rnn_layer", _layer_backward, _keep_for_backward)
    transforms.register("pixel_rnn_layer_backward", _refuse_double_backward)


if native._C is not None:
    _register()
