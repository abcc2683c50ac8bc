"""The plots of a report: markers, line styles and hatches tell contenders apart, in black and white too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.peers import CONTENDERS
from benchmarks.report import TASKS, describe_job
from benchmarks.runner import TIMED

STYLES = {
    "pyar": {"color": "black", "marker": "o", "linestyle": "-"},
    "JAX lax.scan": {"color": "0.35", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
}
GREYS = ("black", "0.75", "white", "0.55", "0.9", "white", "0.8", "white", "0.6")
HATCHES = ("", "", "//", "", "..", "xx", "\\\\", "++", "oo")
MODELS = {"nade": "NADE", "lstm": "PixelLSTM"}


def draw_plots(documents: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Draws what the documents have data for; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    sweep = documents.get("sweep", {}).get("records", [])
    if any(record["axis"] == "B" for record in sweep):
        drawn.append(draw_speed(sweep, folder / "speed.png"))
    tables = [record for job in ("nade", "lstm") if job in documents for record in documents[job]["records"]]
    if tables:
        drawn.append(draw_floor(tables, folder / "floor.png"))
    if any(record["axis"] in "DHK" for record in sweep):
        drawn.append(draw_growth(sweep, folder / "growth.png"))
    return drawn


def times(records: list[dict[str, Any]], axis: str) -> dict[str, list[tuple[int, float, dict[str, Any]]]]:
    """Contender → (value on the axis, milliseconds, record), where it was right."""
    found: dict[str, list[tuple[int, float, dict[str, Any]]]] = {}
    for record in records:
        for outcome in record["outcomes"]:
            if outcome["status"] in TIMED:
                point = (record[axis], outcome["median_ms"], record)
                found.setdefault(outcome["contender"], []).append(point)
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def panels(records: list[dict[str, Any]], axis: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(model, task) → the records along the axis."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        if record["axis"] == axis:
            found.setdefault((record["model"], record["task"]), []).append(record)
    return found


def finish(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def plain_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="major", color="0.85", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_speed(records: list[dict[str, Any]], path: Path) -> Path:
    chosen = panels(records, "B")
    figure, grid = plt.subplots(1, len(chosen), figsize=(3.3 * len(chosen), 3.6), layout="constrained", squeeze=False)
    for axes, ((model, task), members) in zip(grid[0], chosen.items(), strict=True):
        for name, points in times(members, "B").items():
            speeds = [1e3 * B / milliseconds for B, milliseconds, _ in points]
            axes.plot([B for B, _, _ in points], speeds, label=name, **STYLES[name])
        plain_logarithmic(axes)
        axes.set_title(f"{MODELS[model]}: {TASKS[task]}\nK={members[0]['K']}, H={members[0]['H']}", fontsize=10)
        axes.set_xlabel("batch size B")
    grid[0][0].set_ylabel("vectors of 784 dimensions a second")
    grid[0][0].legend(frameon=False)
    return finish(figure, path)


def draw_floor(records: list[dict[str, Any]], path: Path) -> Path:
    """A group of bars a case: pyar, and every peer, at floor over time."""
    names = [
        name
        for name in CONTENDERS.values()
        if any(o["contender"] == name and o["status"] in TIMED for record in records for o in record["outcomes"])
    ]
    look = dict(zip(CONTENDERS.values(), zip(GREYS, HATCHES, strict=True), strict=True))
    bar, gap = 0.16, 0.35
    labels, centres, top = [], [], 0.0
    right = {r_index: [o for o in r["outcomes"] if o["status"] in TIMED] for r_index, r in enumerate(records)}
    height = sum(bar * len(outcomes) + gap for outcomes in right.values())
    figure, axes = plt.subplots(figsize=(9, 1.2 + 1.15 * height), layout="constrained")
    for index, record in enumerate(records):
        outcomes = right[index]
        for position, outcome in enumerate(outcomes):
            colour, hatch = look[outcome["contender"]]
            y = top + bar * position
            width = 100 * outcome["fraction_of_floor"]
            axes.barh(y, width, 0.9 * bar, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
            if outcome["contender"] == "pyar":
                axes.text(width, y, f" {width:.0f} %", va="center", fontsize=7)
        centres.append(top + bar * (len(outcomes) - 1) / 2)
        data = "" if record["model"] == "lstm" else f", {record['data']}"
        labels.append(f"{MODELS[record['model']]} {describe_job(record)}{data}")
        top += bar * len(outcomes) + gap
    axes.set_yticks(centres, labels, fontsize=8)
    axes.set_ylim(top - gap, -gap)
    axes.set_xlabel("floor / time in %: how much of what the machine can do at most")
    axes.grid(True, axis="x", color="0.85", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=look[name][0], hatch=look[name][1], edgecolor="black") for name in names
    ]
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return finish(figure, path)


def draw_growth(records: list[dict[str, Any]], path: Path) -> Path:
    """Time along D, H and K; a thin line of slope one from pyar's last point shows linear growth."""
    axes_shown = [axis for axis in "DHK" if panels(records, axis)]
    kinds = list(dict.fromkeys(kind for axis in axes_shown for kind in panels(records, axis)))
    size = (3.4 * len(axes_shown), 2.9 * len(kinds))
    figure, grid = plt.subplots(len(kinds), len(axes_shown), figsize=size, layout="constrained", squeeze=False)
    for row, (model, task) in zip(grid, kinds, strict=True):
        for axes, axis in zip(row, axes_shown, strict=True):
            members = panels(records, axis).get((model, task))
            if not members:
                axes.set_axis_off()
                continue
            for name, points in times(members, axis).items():
                axes.plot([x for x, _, _ in points], [y for _, y, _ in points], label=name, **STYLES[name])
            plain_logarithmic(axes)
            draw_guide(axes, members, axis)
            fixed = ", ".join(f"{other}={members[0][other]}" for other in "BDHK" if other != axis)
            axes.set_title(f"{MODELS[model]}: {TASKS[task]}\n{fixed}", fontsize=9)
            axes.set_xlabel(axis)
        row[0].set_ylabel("milliseconds")
    grid[0][0].legend(frameon=False, fontsize=9)
    return finish(figure, path)


def draw_guide(axes: Axes, members: list[dict[str, Any]], axis: str) -> None:
    """The straight line of linear growth, of quadratic growth for an LSTM's H, through pyar's largest case."""
    points = times(members, axis).get("pyar")
    if not points:
        return
    power = 2 if axis == "H" and members[0]["model"] == "lstm" else 1
    (first, _, _), (last, milliseconds, _) = points[0], points[-1]
    label = "slope 1" if power == 1 else "slope 2"
    ends = [milliseconds * (first / last) ** power, milliseconds]
    axes.plot([first, last], ends, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(label, (first, ends[0]), fontsize=7, color="0.4", ha="left", va="top")
