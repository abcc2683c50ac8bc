"""TableNADE's operations: log-probabilities given what is seen, and walks along any order, for many rows at once.

One network for the conditionals of a table's columns in every order; the equations are in pyar.reference.table_nade.
Every function takes the columns as a `Layout`, and the parameters, float32 and on one device, in this order:

    W [ΣF_i, H_1] · U [D, H_1] · c [H_1] · hidden (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) · V [ΣP_d, H_L] ·
    b [ΣP_d] · activation "relu", "sigmoid" or "tanh"

A walk carries the first layer's sum along, so that a step costs the dense layers and one column's outputs. On the CPU a
walk whose gradient nobody wants is one native call, in float32, with the same bits for every batch and number of
threads. Where a gradient is wanted, within torch.func's transforms and on other devices, it is torch's own operations,
differentiable in all parameters.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.ops.any_order import is_native, last_units
from pyar.ops.validate import check_layers, check_parameters, check_seed, check_temperature
from pyar.reference import mixtures
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.conditionals import Categories, Conditional, Mixture
from pyar.reference.draw import log_probability
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms


class _Group(NamedTuple):
    """Columns whose conditionals have one form, so that they are computed together: n of them, with P outputs each."""

    form: Conditional
    dims: list[int]  # which
    columns: Tensor  # [n], the same
    outputs: Tensor  # [n·P], the places of their outputs
    min_scale: Tensor | None  # [n], of mixtures
    cells: mixtures.Cells | None  # of mixtures over grids, each part [n]


class Layout:
    """How the columns' inputs and outputs stand side by side: column d has rows inputs[d] of W and outputs[d] of V."""

    def __init__(self, columns: Sequence[Conditional]) -> None:
        self.columns = tuple(columns)
        self.inputs = _slices([column.num_inputs for column in columns])
        self.outputs = _slices([column.num_outputs for column in columns])
        self.num_inputs, self.num_outputs = self.inputs[-1].stop, self.outputs[-1].stop
        members: dict[tuple, list[int]] = defaultdict(list)
        for d, column in enumerate(columns):
            alike = (
                (column,) if isinstance(column, Categories) else (column.num_components, column.family, column.step > 0)
            )
            members[alike].append(d)
        self._groups = [self._group(dims) for dims in members.values()]
        self._moved: dict[torch.device, list[_Group]] = {}
        self.description = torch.tensor([_described(column) for column in columns], dtype=torch.float64, device="cpu")

    def _group(self, dims: list[int]) -> _Group:
        form = self.columns[dims[0]]
        places = torch.tensor(
            [place for d in dims for place in range(self.outputs[d].start, self.outputs[d].stop)],
            dtype=torch.int64,
            device="cpu",
        )
        columns = torch.tensor(dims, device="cpu")
        if isinstance(form, Categories):
            return _Group(form, dims, columns, places, None, None)
        mixed = [column for column in (self.columns[d] for d in dims) if isinstance(column, Mixture)]
        min_scale = torch.tensor([column.min_scale for column in mixed], dtype=torch.float32, device="cpu")
        cells = None
        if form.step > 0:
            grids = [column.cells for column in mixed]
            cells = mixtures.Cells(
                *(torch.tensor(part, dtype=torch.float32, device="cpu") for part in zip(*grids, strict=True))
            )
        return _Group(form, dims, columns, places, min_scale, cells)

    def groups(self, device: torch.device) -> list[_Group]:
        """The groups with their tensors on the device."""
        if device not in self._moved:
            self._moved[device] = [_moved(group, device) for group in self._groups]
        return self._moved[device]

    def features(self, x: Tensor) -> Tensor:
        """The inputs of all columns: [B, D] → [B, ΣF]."""
        parts: list[Tensor] = [x.new_empty(len(x), 0)] * len(self.columns)
        for group in self.groups(x.device):
            inputs = group.form.inputs(x[:, group.columns])
            for place, d in enumerate(group.dims):
                parts[d] = inputs[:, place]
        return torch.cat(parts, dim=1)

    def log_probs(self, outputs: Tensor, x: Tensor) -> Tensor:
        """log p(x_d) of all columns from their outputs: [B, ΣP], [B, D] → [B, D]."""
        result: list[Tensor] = [x] * len(self.columns)
        for group in self.groups(x.device):
            part = outputs[:, group.outputs].unflatten(1, (len(group.columns), -1)) if group.form.num_outputs else None
            values = x[:, group.columns]
            if part is None:
                # Of single categories; no outputs are in the sum, but a table of nothing else can be trained.
                log_prob = torch.zeros_like(values) + outputs[:, :0].sum()
            elif isinstance(group.form, Categories):
                log_prob = log_probability(part, values)
            else:
                log_prob = mixtures.log_prob(part, values, group.form.family, group.min_scale, group.cells)
            for place, d in enumerate(group.dims):
                result[d] = log_prob[:, place]
        return torch.stack(result, dim=1)

    def check(
        self, W: Tensor, U: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, activation: str
    ) -> None:
        """Raises TypeError or ValueError for parameters that do not fit together or to the columns."""
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
        H = len(c)
        layers, units = check_layers(hidden, H)
        expected = [("W", W, (self.num_inputs, H)), ("U", U, (len(self.columns), H)), ("c", c, (H,))]
        expected += [("V", V, (self.num_outputs, units)), ("b", b, (self.num_outputs,))]
        check_parameters(expected + layers)


def table_nade_outputs(x: Tensor, observed: Tensor, layout: Layout, *parameters: Any, dropout: float = 0.0) -> Tensor:
    """The outputs of all columns given the observed ones, in one pass: [B, ΣP] float32.

    Args:
        x: float32 [B, D], NaN nowhere; only its observed entries matter.
        observed: bool [B, D]. The outputs of columns that are observed mean nothing.
        dropout: the part of the hidden units that is left out, drawn from torch's default generator.

    Raises:
        TypeError, ValueError: parameters do not fit together.
    """
    W, U, c, hidden, V, b, activation = parameters
    layout.check(*parameters)
    h = last_units(_first_sum(layout.features(x), observed, layout, W, U, c), hidden, activation, dropout)
    return functional.linear(h, V, b).float()


def table_nade_log_probs(x: Tensor, observed: Tensor, layout: Layout, *parameters: Any, dropout: float = 0.0) -> Tensor:
    """log p(x_d | x_observed) in nats of every column that is not observed, and zero of the others: [B, D] float32.

    Args, Raises: as table_nade_outputs.
    """
    outputs = table_nade_outputs(x, observed, layout, *parameters, dropout=dropout)
    return layout.log_probs(outputs, x).masked_fill(observed, 0.0)


def table_nade_path_log_probs(
    x: Tensor, order: Tensor, observed: Tensor, target: Tensor, layout: Layout, *parameters: Any
) -> Tensor:
    """log p(x_d | x_observed, the target's columns before d in the order) in nats: [R, D] float32, zero elsewhere.

    Args:
        x: float32 [R, D], NaN nowhere; only what is observed or target matters.
        order: int64 [R, D], a permutation for every row.
        observed, target: bool [R, D], without a common column.

    Raises:
        TypeError, ValueError: as table_nade_outputs.
    """
    W, U, c, hidden, V, b, activation = parameters
    layout.check(*parameters)
    if is_native(W, U, c, *hidden, V, b):
        place = list(ACTIVATIONS).index(activation)
        return torch.ops.pyar.table_nade_path_log_probs(
            x, order, observed, target, layout.description, W, U, c, list(hidden), V, b, place
        )
    features = layout.features(x)
    result = torch.zeros_like(x)
    for d, rows, outputs, step in _walk(features, order, observed, target, layout, *parameters):
        result = result.index_put((rows, torch.full_like(rows, d)), layout.columns[d].log_prob(outputs, x[rows, d]))
        step.take(rows, U[d] + features[rows, layout.inputs[d]] @ W[layout.inputs[d]])
    return result


def table_nade_sample(
    x: Tensor,
    order: Tensor,
    observed: Tensor,
    layout: Layout,
    *parameters: Any,
    seed: Tensor,
    indices: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draws all that is not observed, in every row's order.

    Args:
        x: float32 [R, D]; only its observed entries are read.
        order, observed: as table_nade_path_log_probs.
        seed: int64 [], the seed's 64 bits; pyar.random.resolve_seed makes it.
        indices: int64 [R], the samples' numbers.
        temperature: divides the outputs; 1 unless all columns are categories.

    Returns:
        x with what was drawn, and the log-probabilities [R, D] of that, zero where a column is observed.

    Raises:
        TypeError, ValueError: as table_nade_outputs.
        RuntimeError: outputs are NaN or infinite, so that there is nothing to draw from.
    """
    W, U, c, hidden, V, b, activation = parameters
    layout.check(*parameters)
    check_seed(seed, V.device)
    temperature = check_temperature(temperature)
    with torch.no_grad():
        if is_native(V):
            place = list(ACTIVATIONS).index(activation)
            return torch.ops.pyar.table_nade_sample(
                x, order, observed, layout.description, W, U, c, list(hidden), V, b, place, seed, indices, temperature
            )
    D = len(layout.columns)
    u = indexed_uniforms(int(seed), indices, D)
    v = indexed_fine_uniforms(int(seed), indices, D, number=1)
    x = torch.where(observed, x, 0.0)
    total = torch.zeros_like(x)
    with torch.no_grad(), torch.autocast(V.device.type, enabled=False):
        for d, rows, outputs, step in _walk(layout.features(x), order, observed, ~observed, layout, *parameters):
            outputs = outputs / temperature
            column = layout.columns[d]
            value = column.draw(outputs, u[rows, d], v[rows, d]).to(x.dtype)
            total[rows, d] = column.log_prob(outputs, value)
            x[rows, d] = value
            step.take(rows, U[d] + column.inputs(value) @ W[layout.inputs[d]])
    return x, total


class _Sums:
    """The first layer's sums [R, H] of a walk; whoever walks adds what it has come to."""

    def __init__(self, a: Tensor) -> None:
        self.a = a

    def take(self, rows: Tensor, terms: Tensor) -> None:
        """Adds a column's terms to the sums of these rows."""
        self.a = self.a.index_add(0, rows, terms)


def _walk(
    features: Tensor, order: Tensor, observed: Tensor, target: Tensor, layout: Layout, *parameters: Any
) -> Iterator[tuple[int, Tensor, Tensor, _Sums]]:
    """Yields (column, rows that come to it now, its outputs there, the sums to add to), step by step."""
    W, U, c, hidden, V, b, activation = parameters
    sums = _Sums(_first_sum(features, observed, layout, W, U, c))
    if len(features) == 0:
        return
    for dims in order.unbind(1):
        active = target.gather(1, dims[:, None]).squeeze(1).nonzero().squeeze(1)
        if len(active) == 0:
            continue
        h = last_units(sums.a[active], hidden, activation)
        here = dims[active]
        same = bool((here == here[0]).all())
        for d in [int(here[0])] if same else here.unique().tolist():
            which = slice(None) if same else (here == d).nonzero().squeeze(1)
            outputs = functional.linear(h[which], V[layout.outputs[d]], b[layout.outputs[d]]).float()
            yield d, active[which], outputs, sums


def _first_sum(features: Tensor, observed: Tensor, layout: Layout, W: Tensor, U: Tensor, c: Tensor) -> Tensor:
    """c + Σ over what is observed of U_i + φ_i W_i: [R, H_1]."""
    seen = observed.to(features.dtype)
    widths = torch.tensor([column.num_inputs for column in layout.columns], device=features.device)
    inputs = features * seen.repeat_interleave(widths, dim=1)
    return torch.addmm(torch.addmm(c, seen, U), inputs, W).float()


def _slices(sizes: list[int]) -> list[slice]:
    """Consecutive parts of these sizes."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _described(column: Conditional) -> list[float]:
    """A column as the native operations read it: kind, K or C, floor of the scales, step, origin, low, high."""
    if isinstance(column, Categories):
        return [0, column.num_states, 0, 0, 0, 0, 0]
    kind = 1 + mixtures.FAMILIES.index(column.family)
    return [kind, column.num_components, column.min_scale, column.step, column.origin, column.low, column.high]


def _moved(group: _Group, device: torch.device) -> _Group:
    cells = None if group.cells is None else mixtures.Cells(*(part.to(device) for part in group.cells))
    min_scale = None if group.min_scale is None else group.min_scale.to(device)
    return _Group(group.form, group.dims, group.columns.to(device), group.outputs.to(device), min_scale, cells)


# What torch needs to know about the native operations.


def _fake_path_log_probs(x, order, observed, target, columns, W, U, c, hidden, V, b, activation):
    return b.new_empty(x.shape)


def _fake_sample(x, order, observed, columns, W, U, c, hidden, V, b, activation, seed, indices, temperature):
    return b.new_empty(x.shape), b.new_empty(x.shape)


if native._C is not None:
    for name, fake in {"table_nade_path_log_probs": _fake_path_log_probs, "table_nade_sample": _fake_sample}.items():
        torch.library.register_fake(f"pyar::{name}", fake)
        torch.library.register_autocast(f"pyar::{name}", "cpu", torch.float32)
