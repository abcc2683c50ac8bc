"""The plots of a report: markers and line styles tell contenders apart, in black and white too."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.peers import CONTENDERS
from benchmarks.runner import TIMED
from benchmarks.series import (
    MODELS,
    TASKS,
    Documents,
    Record,
    describe_job,
    digest,
    grouped,
    growth_panels,
    plot_names,
    speed_panels,
    table_records,
    times,
)
from pyar.plots import clean_matplotlib, save_figure

DPI = 120

# Marker, what fills it, line style, grey: in the order of CONTENDERS.
LOOKS = (
    ("o", "black", "-", "black"),
    ("s", "white", "--", "0.25"),
    ("^", "0.75", ":", "0.45"),
    ("D", "white", "-.", "0.45"),
    ("D", "0.5", "-.", "0.45"),
    ("v", "white", "--", "0.6"),
    ("P", "0.75", ":", "0.6"),
    ("X", "white", "-.", "0.6"),
    ("*", "0.5", "--", "0.6"),
    ("s", "0.75", "--", "0.25"),
    ("v", "0.75", ":", "0.45"),
    ("^", "white", "-.", "0.45"),
    ("D", "0.75", "--", "0.6"),
)
STYLES = {
    name: {"marker": marker, "markerfacecolor": fill, "markeredgecolor": "black", "linestyle": line, "color": grey}
    for name, (marker, fill, line, grey) in zip(CONTENDERS.values(), LOOKS, strict=True)
}


def draw_plots(documents: Documents, folder: Path) -> list[Path]:
    """Draws what the documents have data for; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = {"speed": draw_speed, "floor": draw_floor, "growth": draw_growth}
    drawn = []
    for name in plot_names(documents):
        path = folder / f"{name}.png"
        with clean_matplotlib():
            save_figure(draw[name](documents), path, metadata={"Results": digest(documents)})
        drawn.append(path)
    return drawn


def plain_logarithmic(axes: Axes) -> None:
    """Both axes logarithmic, the vertical one over a decade at least, so that nearly equal times look so."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10**1.2 * low:
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 10**0.6, middle * 10**0.6)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)


def legend(figure: Figure, names: list[str]) -> None:
    handles = [Line2D([], [], label=name, **STYLES[name]) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def draw_speed(documents: Documents) -> Figure:
    """Vectors a second by batch size, a panel a job."""
    panels = speed_panels(documents)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows + 0.8), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    shown = set()
    for axes, ((model, task, K, H), group) in zip(grid.flat, panels.items(), strict=False):
        for name, points in times(group, "B").items():
            axes.plot([B for B, _ in points], [1e3 * B / ms for B, ms in points], **STYLES[name])
            shown.add(name)
        plain_logarithmic(axes)
        axes.set_title(f"{MODELS[model]}: {TASKS[task]}\nK={K}, H={H}", fontsize=10)
        axes.set_xlabel("batch size B")
    for axes in grid[:, 0]:
        axes.set_ylabel("vectors of 784 dimensions a second")
    legend(figure, [name for name in CONTENDERS.values() if name in shown])
    return figure


def draw_floor(documents: Documents) -> Figure:
    """A row a case, a marker a contender: floor over time, in percent."""
    records = table_records(documents)
    models = grouped(records, "model")
    size = (8.5, 0.27 * len(records) + 0.9 * len(models) + 0.6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    heights = [len(group) + 2 for group in models.values()]
    grid = figure.subplots(len(models), height_ratios=heights, squeeze=False, sharex=True)
    shown = set()
    for axes, ((model,), group) in zip(grid[:, 0], models.items(), strict=True):
        for row, record in enumerate(group):
            for outcome in record["outcomes"]:
                if outcome["status"] in TIMED:
                    name, percent = outcome["contender"], 100 * outcome["fraction_of_floor"]
                    axes.plot(percent, row, **STYLES[name] | {"linestyle": ""}, markersize=6)
                    shown.add(name)
        labels = [f"{describe_job(r)}{', ' + r['data'] if model in ('nade', 'deep-nade') else ''}" for r in group]
        axes.set_yticks(range(len(group)), labels, fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(right=130)
        axes.axvline(100, color="black", linewidth=0.8)
        axes.grid(True, color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(MODELS[model], fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("floor / time: how much of what the machine can do at most")
    legend(figure, [name for name in CONTENDERS.values() if name in shown])
    return figure


def draw_growth(documents: Documents) -> Figure:
    """Time along B, D, H and K, a row a job; a dotted line shows linear growth through pyar's largest case."""
    panels = growth_panels(documents)
    axes_shown = [axis for axis in "BDHK" if any(axis in by_axis for by_axis in panels.values())]
    size = (2.9 * len(axes_shown) + 0.4, 2.7 * len(panels) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(panels), len(axes_shown), squeeze=False)
    shown = set()
    for row, ((model, task), by_axis) in zip(grid, panels.items(), strict=True):
        for axes, axis in zip(row, axes_shown, strict=True):
            members = by_axis.get(axis)
            if not members:
                axes.set_axis_off()
                continue
            for name, points in times(members, axis).items():
                axes.plot(*zip(*points, strict=True), **STYLES[name])
                shown.add(name)
            draw_guide(axes, members, axis)
            plain_logarithmic(axes)
            if axis != "B":
                values = sorted({record[axis] for record in members})
                axes.set_xticks(values, [str(value) for value in values], fontsize=8)
                axes.xaxis.set_minor_locator(NullLocator())
            fixed = ", ".join(f"{other}={members[0][other]}" for other in "BDHK" if other != axis)
            axes.set_title(fixed, fontsize=9)
            axes.set_xlabel(axis)
        row[0].set_ylabel(f"{MODELS[model]}: {TASKS[task]}\nmilliseconds")
    legend(figure, [name for name in CONTENDERS.values() if name in shown])
    return figure


def draw_guide(axes: Axes, members: list[Record], axis: str) -> None:
    """The straight line of linear growth, of quadratic growth for an LSTM's H, through pyar's largest case. K is a
    small part of an LSTM's work, and no power of it is to be expected."""
    points, lstm = times(members, axis).get("pyar"), members[0]["model"] == "lstm"
    if not points or (lstm and axis == "K"):
        return
    power = 2 if lstm and axis == "H" else 1
    (first, _), (last, milliseconds) = points[0], points[-1]
    ends = [milliseconds * (first / last) ** power, milliseconds]
    axes.plot([first, last], ends, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.text(
        0.97, 0.05, "dotted: " + {1: "linear", 2: "quadratic"}[power], transform=axes.transAxes, fontsize=8, ha="right"
    )
