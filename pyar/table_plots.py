"""Pictures of tables: columns and their dependence, data beside samples; the most surprising cells."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyar.plots import clean_matplotlib, save_figure
from pyar.tables import Columns
from pyar.tables.kinds import Categorical

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DATA, _SAMPLES = "#9aa5b1", "#c0392b"
_MOST_COLUMNS = 30  # more could not be read
_MOST_LEVELS = 12
_ACROSS = 6


def save_table_samples(data: Tensor, samples: Tensor, columns: Columns, path: str | os.PathLike[str]) -> None:
    """Draws every column's distribution, and how much each pair depends on one another, of data and of samples.

    Args:
        data, samples: float32 [N, D] and [M, D], encoded, NaN for missing.
        columns: of both; of more than 30 the first 30 are drawn.
        path: a .png file.
    """
    with clean_matplotlib():
        save_figure(_table_samples(_values(data, columns), _values(samples, columns), columns), path)


def save_surprise(surprise: Tensor, log_prob: Tensor, columns: Columns, path: str | os.PathLike[str]) -> None:
    """Draws the least probable rows as a heat map: how surprising each cell is given all else in its row.

    Args:
        surprise: float32 [N, D], −log p(cell | rest) in nats, NaN where a cell is missing.
        log_prob: float32 [N], by which the rows are chosen.
        columns: of more than 30 those with the most surprising cells are drawn.
        path: a .png file.
    """
    with clean_matplotlib():
        save_figure(_surprise(surprise.double().numpy(), log_prob.double().numpy(), columns), path)


def excess_surprise(surprise: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much more surprising each cell is than the median cell of its column: [N, D], NaN where a cell is missing.

    So columns can be compared: a density depends on its unit, and one value of many is never very probable.
    """
    there = ~np.isnan(surprise).all(axis=0)
    return surprise - np.nanmedian(np.where(there, surprise, 0.0), axis=0)


def dependence(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """How much each pair of columns depends on one another, 0 … 1: [D, D].

    √(1 − e^{−2I}), I the mutual information of the columns in eight bins of equal share: the correlation of two normal
    variables, and as good for categories. Bins that hold nothing by chance make it a little above zero.
    """
    bins = [_binned(column) for column in values]
    result = np.eye(len(bins))
    for i in range(len(bins)):
        for j in range(i):
            both = (bins[i] >= 0) & (bins[j] >= 0)
            result[i, j] = result[j, i] = math.sqrt(1 - math.exp(-2 * _information(bins[i][both], bins[j][both])))
    return result


def _binned(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 … 7 by rank, equal values together; −1 for missing."""
    there = ~np.isnan(values)
    borders = np.unique(np.quantile(values[there], np.linspace(0, 1, 9)[1:-1])) if there.any() else np.empty(0)
    return np.where(there, np.searchsorted(borders, np.nan_to_num(values), side="right"), -1)


def _information(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Mutual information in nats, less what independent columns of so many rows would show."""
    if len(a) == 0:
        return 0.0
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    p = counts / len(a)
    expected = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    seen = p > 0
    bias = (counts.shape[0] - 1) * (counts.shape[1] - 1) / (2 * len(a))
    return max(0.0, float((p[seen] * np.log(p[seen] / expected[seen])).sum()) - bias)


def _values(x: Tensor, columns: Columns) -> list[NDArray[np.float64]]:
    """In the columns' own units; of categories their numbers."""
    encoded = x.double().cpu().numpy()
    return [
        encoded[:, d] if isinstance(kind, Categorical) else kind.values(encoded[:, d])
        for d, kind in enumerate(columns.values())
    ]


def _table_samples(data: list[NDArray], samples: list[NDArray], columns: Columns) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = columns.names[:_MOST_COLUMNS]
    rows = -(-len(names) // _ACROSS)
    across = min(_ACROSS, max(2, len(names)))
    figure = Figure(figsize=(2.3 * across, 1.9 * rows + 0.42 * across + 2.2), dpi=110, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.9 * rows, 0.42 * across + 2.2])
    axes = np.atleast_1d(top.subplots(rows, across, squeeze=False)).ravel()
    for place, axis in enumerate(axes):
        if place >= len(names):
            axis.set_axis_off()
            continue
        _marginal(axis, data[place], samples[place], columns[names[place]])
        axis.set_title(_short(names[place]), fontsize=9, parse_math=False)
    patches = [Patch(color=_DATA, label="data"), Patch(color=_SAMPLES, label="samples")]
    figure.legend(handles=patches, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    panels = bottom.subplots(1, 2)
    matrices = [dependence(part[:_MOST_COLUMNS]) for part in (data, samples)]
    for panel, matrix, title in zip(panels, matrices, ("data", "samples"), strict=True):
        image = panel.imshow(matrix - np.eye(len(matrix)), vmin=0, vmax=1, cmap="Blues")
        panel.set_title(f"dependence of pairs, {title}", fontsize=9)
        panel.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=6, parse_math=False)
        panel.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=6, parse_math=False)
        panel.tick_params(length=0)
    bottom.colorbar(image, ax=panels, shrink=0.8)
    return figure


def _marginal(axis: Axes, data: NDArray, samples: NDArray, kind: Any) -> None:
    data, samples = data[~np.isnan(data)], samples[~np.isnan(samples)]
    axis.tick_params(labelsize=6, length=2)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_yticks([])
    if isinstance(kind, Categorical):
        count = len(kind.levels)
        parts = [np.bincount(part.astype(int), minlength=count) / max(1, len(part)) for part in (data, samples)]
        shown = np.argsort(-parts[0], kind="stable")[:_MOST_LEVELS] if count > _MOST_LEVELS else np.arange(count)
        for offset, part, colour in ((-0.2, parts[0], _DATA), (0.2, parts[1], _SAMPLES)):
            axis.bar(np.arange(len(shown)) + offset, part[shown], width=0.4, color=colour)
        labels = [_short(str(kind.levels[k]), 8) for k in shown]
        axis.set_xticks(range(len(shown)), labels, rotation=90 if len(shown) > 2 else 0, parse_math=False)
        return
    if len(data) == 0:
        return
    low, high = np.quantile(data, [0.005, 0.995])
    if low == high:
        low, high = data.min() - 0.5, data.max() + 0.5
    margin = 0.05 * (high - low)
    edges = np.linspace(low - margin, high + margin, 33)
    step = getattr(kind, "resolution", 1.0)
    if step is not None and (edges[1] - edges[0]) < 2 * step:  # whole cells, or bars would come and go
        width = step * max(1, math.ceil((high - low) / step / 32))
        edges = np.arange(math.floor(low / step) * step - step / 2, high + width, width)
    for part, colour, style in ((data, _DATA, "stepfilled"), (samples, _SAMPLES, "step")):
        axis.hist(part, edges, weights=np.full(len(part), 1 / max(1, len(part))), color=colour, histtype=style)


def _surprise(surprise: NDArray, log_prob: NDArray, columns: Columns) -> Figure:
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    excess = excess_surprise(surprise)
    rows = np.argsort(log_prob, kind="stable")[:40]
    most = np.nan_to_num(excess[rows], nan=-np.inf).max(axis=0)
    shown = np.sort(np.argsort(-most, kind="stable")[:_MOST_COLUMNS])
    cells = np.ma.masked_invalid(excess[np.ix_(rows, shown)])
    figure = Figure(figsize=(2.2 + 0.42 * len(shown), 1.6 + 0.2 * len(rows)), dpi=110, layout="constrained")
    axis = figure.subplots()
    limit = max(1.0, float(np.ma.filled(cells, 0.0).max()))
    colours = _colours("YlOrRd")
    image = axis.imshow(cells, cmap=colours, norm=PowerNorm(0.5, 0, limit), aspect="auto")  # one wild cell hides none
    names = columns.names
    axis.set_xticks(range(len(shown)), [_short(names[d]) for d in shown], rotation=90, fontsize=7, parse_math=False)
    axis.set_yticks(range(len(rows)), [f"row {row}" for row in rows], fontsize=6)
    axis.tick_params(length=0)
    axis.set_title("The least probable rows", fontsize=10)
    bar = figure.colorbar(image, ax=axis)
    bar.set_label("nats more surprising than the column's median cell; grey: missing", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def _colours(name: str) -> Any:
    import matplotlib

    colours = matplotlib.colormaps[name].copy()
    colours.set_bad("#d9dde2")
    return colours


def _short(name: Any, length: int = 16) -> str:
    text = str(name).encode(errors="replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"
