"""README's speed table and plot: ten jobs at most, from the stored results of every processor that was measured.

The results of this code lie in `benchmarks/results`; those of other processors in folders below it, each with the
commit that they are of. The full tables are the report's (`benchmarks/report.py`).
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import insert, milliseconds, read_results
from benchmarks.runner import TIMED
from benchmarks.series import MODELS, TASKS, Documents, Record, digest, table_records

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
# What the rows show: (model, task, K, B, data, and the other sizes where they are not the model's first).
ROWS = (
    ("nade", "log_prob", 2, 100, "mnist-like", 500),
    ("nade", "gradient", 2, 100, "mnist-like", 500),
    ("nade", "sample", 2, 1, "mnist-like", 500),
    ("nade", "sample", 2, 1000, "mnist-like", 500),
    ("nade", "sample", 2, 1000, "dense", 500),
    ("nade", "gradient", 10, 100, "mnist-like", 500),
    ("lstm", "log_prob", 10, 100, "mnist-like", 256),
    ("lstm", "gradient", 10, 100, "mnist-like", 256),
    ("lstm", "sample", 10, 1, "mnist-like", 256),
    ("lstm", "sample", 10, 100, "mnist-like", 256),
)


def key(record: Record) -> tuple:
    return tuple(record[name] for name in ("model", "task", "K", "B", "data", "H"))


def chosen(documents: Documents) -> dict[tuple, Record]:
    """The records of the rows, in their order, 784 dimensions and one layer."""
    records = [r for r in table_records(documents) if r["D"] == 784 and r["num_layers"] == 1]
    found = {key(record): record for record in reversed(records)}
    return {row: found[row] for row in ROWS if row in found}


def ranking(record: Record) -> tuple[float, list[tuple[str, float]]]:
    """pyar's milliseconds, and (peer, milliseconds) from the fastest on."""
    times = {o["contender"]: o["median_ms"] for o in record["outcomes"] if o["status"] in TIMED}
    ours = times.pop("pyar")
    return ours, sorted(times.items(), key=lambda item: item[1])


def name_of(record: Record) -> str:
    """Such as: NADE, K=2: sample 1,000, dense."""
    dense = ", dense" if record["data"] == "dense" else ""
    size = f" of {record['B']:,}" if record["task"] != "sample" else f" {record['B']:,}"
    return f"{MODELS[record['model']]}, K={record['K']}: {TASKS[record['task']]}{size}{dense}"


def processor(documents: Documents) -> str:
    environment = next(iter(documents.values()))["environment"]
    return f"{environment['processor']}, {environment['level']}, pyar {environment['commit']}"


def render_summary(here: Documents, others: list[Documents]) -> str:
    """Markdown: a row a job; pyar, the two fastest peers, the ratio, and the ratio on every other processor."""
    elsewhere = [chosen(documents) for documents in others]
    letters = "ABCDEFG"[: 1 + len(others)]
    head = ["job", f"pyar, ms ({letters[0]})", "best peer, ms", "next, ms", f"best ÷ pyar ({letters[0]})"]
    head += [f"best ÷ pyar ({letter})" for letter in letters[1:]]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row, record in chosen(here).items():
        ours, peers = ranking(record)
        cells = [f"**{milliseconds(ours)}**"]
        cells += [f"{milliseconds(time)} ({name})" for name, time in peers[:2]] + ["–"] * (2 - len(peers[:2]))
        cells.append(f"**{peers[0][1] / ours:.1f}×**" if peers else "–")
        for found in elsewhere:
            other_ours, other_peers = ranking(found[row]) if row in found else (0.0, [])
            cells.append(f"{other_peers[0][1] / other_ours:.1f}×" if other_peers else "–")
        lines.append(f"| {name_of(record)} | " + " | ".join(cells) + " |")
    named = [f"{letter}: {processor(documents)}" for letter, documents in zip(letters, [here, *others], strict=True)]
    lines += ["", f"Two threads. {'; '.join(named)}."]
    return "\n".join(lines)


def draw_summary(here: Documents, path: Path) -> None:
    """How many times longer the best and the next peer take than pyar, a pair of bars a job."""
    rows = list(chosen(here).values())
    figure = Figure(figsize=(9, 0.5 + 0.62 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, record in enumerate(reversed(rows)):
        ours, peers = ranking(record)
        for rank, (peer, time) in enumerate(peers[:2]):
            height = place + 0.2 - 0.4 * rank
            axes.barh(height, time / ours, 0.36, color=("#1f5fa8", "#a9c6e8")[rank])
            axes.text(time / ours * 1.04, height, f"{time / ours:.1f}× {peer}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(1, 4 * axes.get_xlim()[1])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["as pyar", "2×", "5×", "10×", "20×", "50×", "100×"])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [name_of(record) for record in reversed(rows)], fontsize=9)
    axes.set_xlabel("time of the best (dark) and the next peer (light), over pyar's")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Results": digest(here)})


def other_results(folder: Path) -> list[Documents]:
    """The results of other processors, in folders of their own below the folder."""
    return [read_results(path) for path in sorted(folder.iterdir()) if path.is_dir()]


def write_summary(results: Path, page: Path, picture: Path | None) -> str:
    """The page with the table between its marks; draws the picture if given."""
    here = read_results(results)
    if picture is not None:
        draw_summary(here, picture)
    return insert(page.read_text(), render_summary(here, other_results(results)), BEGIN, END)
