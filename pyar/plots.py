"""Pictures: sheets of samples, completions, learning curves. Every pixel is drawn as a sharp square of equal size."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyar.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = (200, 204, 210)  # separators: light enough beside white ink, dark enough beside black ink
_UNSEEN = (250, 214, 150)  # pixels that were not observed
_SHEET_PIXELS = 1000  # a sheet is enlarged by whole factors up to about this many pixels


def to_grey(x: torch.Tensor, num_states: int, image_shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """States [N, D] as grey images uint8 [N, height, width]: 0 white, K − 1 black, like ink on paper.

    Vectors without an image shape become one row of pixels each.
    """
    height, width = image_shape if image_shape is not None else (1, x.shape[1])
    values = x.detach().cpu().numpy().reshape(len(x), height, width).astype(np.float64)
    return np.round(255.0 * (1.0 - values / (num_states - 1))).astype(np.uint8)


def _columns(count: int, height: int, width: int) -> int:
    """Columns that make the sheet nearly square."""
    return max(1, min(count, round(math.sqrt(count * (height + 1) / (width + 1)))))


def _grid(images: NDArray[np.uint8], columns: int, gaps: Sequence[int] = ()) -> NDArray[np.uint8]:
    """Colour images [N, height, width, 3] in a grid with separating lines.

    `gaps`: columns after which the separator is wider.
    """
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    lefts, x = [], 1
    for column in range(columns):
        lefts.append(x)
        x += width + (3 if column in gaps else 1)
    sheet = np.empty((rows * (height + 1) + 1, x, 3), dtype=np.uint8)
    sheet[:] = _GREY
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = 1 + row * (height + 1), lefts[column]
        sheet[top : top + height, left : left + width] = image
    return sheet


def _write(sheet: NDArray[np.uint8], path: str | os.PathLike[str]) -> None:
    from PIL import Image

    factor = max(1, _SHEET_PIXELS // max(sheet.shape[:2]))
    enlarged = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    with atomic_write(path) as file:
        Image.fromarray(enlarged).save(file, format="PNG", optimize=True)


def save_sheet(
    x: torch.Tensor,
    path: str | os.PathLike[str],
    num_states: int,
    image_shape: tuple[int, int] | None,
    columns: int | None = None,
    labels: torch.Tensor | None = None,
) -> None:
    """Draws states [N, D] as a grid of images, row by row, into a PNG file.

    `labels`: int64 [N]; without `columns`, each label then has a row of its own, in their order.
    """
    grey = to_grey(x, num_states, image_shape)
    if len(grey) == 0:
        raise ValueError("there is nothing to draw: 0 images")
    images = np.stack([grey] * 3, axis=-1)
    if labels is not None and columns is None and len(labels.unique()) > 1:
        images, columns = _row_for_each(labels.cpu().numpy(), images)
    columns = min(columns or _columns(len(grey), *grey.shape[1:]), len(images))
    _write(_grid(images, columns), path)


def _row_for_each(labels: NDArray[np.int64], images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Images in the order of their labels, with empty tiles where a label has fewer than others; and the columns."""
    rows = [images[labels == label] for label in np.unique(labels)]
    columns = max(map(len, rows))
    tiles = np.empty((len(rows), columns, *images.shape[1:]), dtype=np.uint8)
    tiles[:] = _GREY
    for tile, row in zip(tiles, rows, strict=True):
        tile[: len(row)] = row
    return tiles.reshape(-1, *images.shape[1:]), columns


def save_completions(
    original: torch.Tensor,
    observed: torch.Tensor,
    completions: torch.Tensor,
    path: str | os.PathLike[str],
    num_states: int,
    image_shape: tuple[int, int] | None,
) -> None:
    """Draws one row per example: the original, what was observed of it (the rest tinted), its completions.

    `original` [B, D], `observed` bool [D], `completions` [B, S, D].
    """
    batch, number, dim = completions.shape
    first = np.stack([to_grey(original, num_states, image_shape)] * 3, axis=-1)
    height, width = first.shape[1:3]
    seen = first.copy()
    seen[:, ~observed.cpu().numpy().reshape(height, width)] = _UNSEEN
    rest = to_grey(completions.reshape(batch * number, dim), num_states, image_shape)
    rest = np.stack([rest] * 3, axis=-1).reshape(batch, number, height, width, 3)
    tiles = np.concatenate([first[:, None], seen[:, None], rest], axis=1)
    _write(_grid(tiles.reshape(-1, height, width, 3), number + 2, gaps=(0, 1)), path)


def save_learning_curve(records: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "") -> None:
    """Draws train and validation NLL (nats) over epochs from a run's log.

    `records`: dicts with `epoch` (float), `train_nll`, `valid_nll`; a missing or non-finite value leaves a gap.
    """
    with clean_matplotlib():
        save_figure(_learning_curve(records, title), path)


def _learning_curve(records: Sequence[dict[str, Any]], title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), dpi=130, layout="tight")
    axes = figure.subplots()
    curves = {
        key: [(r["epoch"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]
        for key in ("train_nll", "valid_nll")
    }
    for key, colour in (("train_nll", "#7aa6c2"), ("valid_nll", "#c0392b")):
        points = curves[key]
        if not points:
            continue
        epoch, best = min(points, key=lambda point: point[1])
        label = "train" if key == "train_nll" else f"valid, best {best:.2f} at epoch {epoch:.4g}"
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=3, linewidth=1.6)
        if key == "valid_nll":
            axes.axhline(best, color=colour, linewidth=0.7, linestyle=":")
            axes.plot(epoch, best, color=colour, marker="o", markersize=5)
    points = sorted(curves["train_nll"] + curves["valid_nll"], key=lambda point: point[1])
    if points:
        # The first epochs fall from far above; show the range in which most of the run happens.
        low, high = points[0][1], points[min(len(points) - 1, int(0.95 * len(points)))][1]
        margin = 0.08 * max(high - low, 1e-3 * abs(low), 1e-6)
        axes.set_ylim(low - margin, high + margin)
        last = max(epoch for epoch, _ in points)
        axes.set_xlim(0, 1.02 * last or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=last >= 2, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("epoch")
    axes.set_ylabel("negative log-likelihood (nats)")
    _finish(axes, title)
    return figure


def save_order_curve(
    mixtures: dict[int, float], single_orders: Sequence[float], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draws the mean NLL (nats) of mixtures over more and more orders, and that of every order by itself.

    `mixtures`: NLL by number of orders; `single_orders`: the NLL under each of them alone.
    """
    with clean_matplotlib():
        save_figure(_order_curve(mixtures, single_orders, title), path)


def _order_curve(mixtures: dict[int, float], single_orders: Sequence[float], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=130, layout="tight")
    axes = figure.subplots()
    axes.plot(
        range(1, len(single_orders) + 1), single_orders, "o", color="#7aa6c2", markersize=4, label="one order, each"
    )
    axes.plot(
        *zip(*sorted(mixtures.items()), strict=True),
        "o-",
        color="#c0392b",
        linewidth=1.6,
        label="mixture of the first M",
    )
    for number, nll in mixtures.items():
        axes.annotate(f"{nll:.2f}", (number, nll), (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    ticks = sorted(mixtures)
    axes.set_xticks(ticks, [str(number) for number in ticks])
    axes.minorticks_off()
    axes.margins(0.06, 0.12)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("orders M")
    axes.set_ylabel("negative log-likelihood (nats)")
    _finish(axes, title)
    return figure


def _finish(axes: Axes, title: str) -> None:
    """What all diagrams share: title, legend, a light grid."""
    if title:
        title = title.encode(errors="replace").decode()  # a file's name may hold bytes that are no text
        axes.set_title(textwrap.fill(title, 80), fontsize=10, parse_math=False)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


@contextlib.contextmanager
def clean_matplotlib() -> Iterator[None]:
    """matplotlib's own settings within the block, whatever the user's files and programs have set; then theirs again.

    Figures that are made and saved in the block are to be `Figure`s: pyplot would choose a backend for the whole
    process.
    """
    # The first import fails where MPLBACKEND names a backend that there is not, though a PNG needs none.
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        matplotlib.rcdefaults()
        yield


def save_figure(figure: Figure, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
    """Draws a figure into a PNG file, atomically; `metadata` are texts kept in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file, metadata=metadata)


@contextlib.contextmanager
def decoration(path: str | os.PathLike[str]) -> Iterator[None]:
    """For a picture beside a result: its failure, whatever it is, costs a line on stderr and nothing else."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"pyar: {path} could not be drawn: {reason}", file=sys.stderr, flush=True)
