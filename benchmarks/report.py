"""From stored results to the site's tables and plots: the figures there are those of the JSON beside this file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.check import TOLERANCE
from benchmarks.machine import describe_level
from benchmarks.neighbours import ONE_THREAD
from benchmarks.neighbours import times as busy_times
from benchmarks.peers import CONTENDERS
from benchmarks.runner import SETTLED_SPREAD, TIMED
from benchmarks.series import MODELS, TASKS, describe_job, plot_names, sweep_records, table_records
from pyar.files import write_text

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
JOBS = (*MODELS, "images", "rnade", "sweep", "neighbours")
# Where the plots are, seen from the site's page, docs/benchmarks.md.
PLOTS = "benchmarks"
ALT_TEXTS = {
    "speed": "Vectors a second against the batch size, pyar and its peers",
    "floor": "Fraction of the floor that pyar and its peers reach in every case",
    "growth": "Time against B, D, H and K",
}
# Faster by less than this is a tie: repeated runs differ by as much.
TIE = 0.97
# From this fraction of the floor on, what is left to gain is less than what separates good programs.
NEAR_FLOOR = 0.6


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The stored documents by job; at least one must be there."""
    documents = {job: json.loads(path.read_text()) for job in JOBS if (path := folder / f"{job}.json").exists()}
    if not documents:
        raise SystemExit(f"no results in {folder}: run `python -m benchmarks nade lstm --out {folder}` first")
    return documents


def write_report(results: Path, target: Path | None, plots: Path | None) -> None:
    """Prints the report, or puts it between `target`'s marks; draws the plots into `plots` if given."""
    documents = read_results(results)
    text = render(documents)
    if target is None:
        print(text)
    else:
        write_text(target, insert(target.read_text(), text))
        print(f"wrote the benchmarks section of {target}")
    if plots is not None:
        from benchmarks.plots import draw_plots

        for path in draw_plots(documents, plots):
            print(f"drew {path}")


def insert(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with `text` between its marks."""
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise SystemExit(f"the file must have the line {begin} and after it the line {end}, once each")
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{text}\n{end}{tail}"


def render(documents: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    parts = []
    for job, title in MODELS.items():
        if job in documents:
            parts += [f"**{title}.** {describe_run(documents[job])}", table(documents[job]["records"])]
    tables, sweep = table_records(documents), sweep_records(documents)
    if tables:
        parts.append(
            "Median milliseconds of interleaved repetitions with the same parameters, data, uniforms and cores; in "
            "brackets pyar's fraction of the floor (the multiply-adds that the work needs at the peak measured in the "
            "same run, or reading its parameters once), and by how much each peer takes longer than pyar. Every result "
            "was checked against the float64 reference before it was timed; data: "
            + "; ".join(dict.fromkeys(text for job in MODELS for text in data_of(documents.get(job))))
            + "."
        )
    parts += pictures(documents, "speed", "floor")
    parts += imprecisions([*tables, *sweep])
    parts += unsettled([*tables, *sweep])
    if "rnade" in documents:
        parts += render_rnade(documents["rnade"])
    if "sweep" in documents:
        parts += render_sweep(documents["sweep"], pictures(documents, "growth"))
    if "neighbours" in documents:
        parts += render_neighbours(documents["neighbours"])
    parts += render_losses([*tables, *sweep])
    if "images" in documents:
        parts += render_images(documents["images"])
    return "\n\n".join(parts)


def imprecisions(records: list[dict[str, Any]]) -> list[str]:
    """The footnote to the times marked †; nothing where there are none."""
    found = [(r, o) for r in records for o in r["outcomes"] if o["status"] == "imprecise"]
    errors = [
        f"{o['contender']} at {describe_job(r)}: {o['error_over_tolerance'] * TOLERANCE[r['task']]:.1g}"
        for r, o in found
    ]
    if not errors:
        return []
    return [
        "† imprecise: off the float64 reference by more than the check allows (gradients: "
        f"{TOLERANCE['gradient']:.0e} of a parameter's largest), though by no more than float32 can lose by adding "
        f"the terms one after the other. The largest error: {'; '.join(errors)}."
    ]


def unsettled(records: list[dict[str, Any]]) -> list[str]:
    """The footnote to the times marked ‡; nothing where there are none."""
    if all(outcome.get("settled", True) for record in records for outcome in record["outcomes"]):
        return []
    return ["‡ unsettled: its readings differed, or broke a trend, each time that they were taken."]


def data_of(document: dict[str, Any] | None) -> Iterable[str]:
    return document["data"].values() if document else ()


def pictures(documents: dict[str, dict[str, Any]], *names: str) -> list[str]:
    """The lines that show these plots, those of them that are drawn."""
    drawn = plot_names(documents)
    return [f'<img src="{PLOTS}/{name}.png" width="100%" alt="{ALT_TEXTS[name]}">' for name in names if name in drawn]


def describe_run(document: dict[str, Any]) -> str:
    environment, machine = document["environment"], document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return (
        f"{environment['processor']}, {machine['threads']} threads, {describe_level(environment)}, multiply-add peak "
        f"{machine['multiply_add_peak_gflops']:.0f} GFLOP/s; {versions}; pyar {environment['commit']}, "
        f"{environment['date']}."
    )


def table(records: list[dict[str, Any]]) -> str:
    """A row a case, a column a contender; contenders who have none of these jobs have no column."""
    names = [
        name
        for name in CONTENDERS.values()
        if any(o["contender"] == name and o["status"] != "not applicable" for r in records for o in r["outcomes"])
    ]
    lines = ["| job | data | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names)]
    for record in records:
        outcomes = {outcome["contender"]: outcome for outcome in record["outcomes"]}
        ours = outcomes["pyar"].get("median_ms")
        cells = [cell(outcomes.get(name), ours) for name in names]
        zeros = f"{record['data']}, {100 * record['share_of_zeros']:.0f} % zeros"
        lines.append(f"| {describe_job(record)} | {zeros} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(outcome: dict[str, Any] | None, ours: float | None) -> str:
    if outcome is None or outcome["status"] == "not applicable":
        return "–"
    if outcome["status"] not in TIMED:
        return "WRONG" if outcome["status"] == "wrong" else outcome["status"]
    time = milliseconds(outcome["median_ms"]) + ("†" if outcome["status"] == "imprecise" else "")
    time += "" if outcome.get("settled", True) else "‡"
    if outcome["contender"] == "pyar":
        return f"**{time}** ({100 * outcome['fraction_of_floor']:.0f} %)"
    return time if ours is None else f"{time} ({outcome['median_ms'] / ours:.1f}×)"


def milliseconds(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def render_sweep(document: dict[str, Any], growth: list[str]) -> list[str]:
    """What only the sweep knows, a paragraph or a table each; growth is that plot, if there is one."""
    parts = [f"**Growth, threads, memory, installation.** {describe_run(document)}"]
    if document["records"]:
        parts += [*growth_table(document["records"]), *growth]
    if document.get("threads"):
        parts.append(thread_table(document["threads"]))
    if document.get("memory"):
        parts.append(memory_table(document["memory"]))
    waits = []
    if "import" in document:
        seconds = document["import"]
        waits.append(
            f"`import pyar` takes {seconds['pyar_seconds']:.2g} s, "
            f"`import torch` alone {seconds['torch_seconds']:.2g} s."
        )
    if document.get("build", {}).get("status") == "ok":
        waits.append(f"`pip install .` takes {document['build']['seconds']:.0f} s where torch is installed.")
    return [*parts, " ".join(waits)] if waits else parts


def job_and_model(record: dict[str, Any]) -> str:
    return f"{MODELS[record['model']]} {describe_job(record)}"


def markdown_table(head: list[str], rows: dict[str, dict[str, str]]) -> str:
    """Rows by their first cell, the other cells by their column; a dash where there is none."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [
        f"| {name} | " + " | ".join(cells.get(column, "–") for column in head[1:]) + " |"
        for name, cells in rows.items()
    ]
    return "\n".join(lines)


def growth_table(records: list[dict[str, Any]]) -> list[str]:
    """How pyar's time grows along every axis, from the slope between the two largest values; and what that means."""
    times: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for record in records:
        ours = next(o for o in record["outcomes"] if o["contender"] == "pyar")
        if ours["status"] in TIMED:
            key = (f"{MODELS[record['model']]} {TASKS[record['task']]}", record["axis"])
            times.setdefault(key, []).append((record[record["axis"]], ours["median_ms"]))
    rows: dict[str, dict[str, str]] = {}
    powers = []
    for (name, axis), points in times.items():
        if len(points) > 1:
            (x0, y0), (x1, y1) = sorted(points)[-2:]
            power = math.log(y1 / y0) / math.log(x1 / x0)
            rows.setdefault(name, {})[axis] = f"{power:.2f} ({x0:,} → {x1:,})"
            if not (name.startswith(MODELS["lstm"]) and axis in "HK"):
                powers.append(power)
    if not rows:
        return []
    note = (
        "The power of B, D, H and K with which pyar's time grows, between the two largest values measured; 1 is "
        "linear. An LSTM's work grows with H², and little with K, which only its output layer has."
    )
    if powers:
        note += f" All other powers lie between {min(powers):.2f} and {max(powers):.2f}."
    return [markdown_table(["time grows with the power", *"BDHK"], rows), note]


def thread_table(records: list[dict[str, Any]]) -> str:
    """pyar's milliseconds by number of threads, and how many times faster than with one."""
    counts = list(dict.fromkeys(record["threads"] for record in records))
    head = ["pyar's time in ms", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
    rows: dict[str, dict[str, str]] = {}
    alone: dict[str, float] = {}
    for record in records:
        name, outcome = job_and_model(record), record["outcomes"][0]
        text = outcome["status"]
        if text in TIMED:
            text = milliseconds(outcome["median_ms"])
            if record["threads"] == 1:
                alone[name] = outcome["median_ms"]
            elif name in alone:
                text += f" ({alone[name] / outcome['median_ms']:.2f}× as fast)"
        rows.setdefault(name, {})[head[1 + counts.index(record["threads"])]] = text
    return markdown_table(head, rows)


def memory_table(records: list[dict[str, Any]]) -> str:
    """Megabytes of one call beyond what the process held, by contender."""
    names = [name for name in CONTENDERS.values() if any(record["contender"] == name for record in records)]
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        megabytes = record.get("extra_megabytes", 0.0)
        text = f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"
        rows.setdefault(job_and_model(record), {})[record["contender"]] = (
            text if record["status"] == "ok" else record["status"]
        )
    return markdown_table(["peak extra memory of one call, MB", *names], rows)


def render_images(document: dict[str, Any]) -> list[str]:
    """Image models: pyar's time with its share of the multiply-add peak, and its peers'."""
    environment, records = document["environment"], document["records"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "jax"))
    peak = max(record["peak_gflops"] for record in records)
    rows: dict[str, dict[str, str]] = {}
    names = list(dict.fromkeys(o["contender"] for record in records for o in record["outcomes"]))
    for record in records:
        ours = next(o["median_ms"] for o in record["outcomes"] if o["contender"] == "pyar")
        for o in record["outcomes"]:
            time = milliseconds(o["median_ms"]) + ("‡" if o["p80_ms"] > SETTLED_SPREAD * o["p20_ms"] else "")
            is_ours = o["contender"] == "pyar"
            text = (
                f"**{time}** ({100 * o['share_of_peak']:.0f} %)"
                if is_ours
                else f"{time} ({o['median_ms'] / ours:.1f}×)"
            )
            rows.setdefault(record["job"], {})[o["contender"]] = text
    return [
        f"**Image models.** {environment['processor']}, {document['threads']} threads, {describe_level(environment)}, "
        f"multiply-add peak {peak:.0f} GFLOP/s; {versions}; pyar {environment['commit']}, {environment['date']}. "
        "28×28 images of two states; median milliseconds of interleaved repetitions with the same parameters, images "
        "and uniforms; in brackets pyar's share of the multiply-add peak, and by how much each peer takes longer. The "
        "results were compared before they were timed. JAX and cached PyTorch compute every feature once, as pyar "
        "does; plain PyTorch is the skewed form, and the loop makes a whole forward pass for every pixel. ‡ unsettled: "
        "its readings differed.",
        markdown_table(["job", *names], rows),
    ]


def render_rnade(document: dict[str, Any]) -> list[str]:
    """RNADE's table: a row a case, a column a contender."""
    records = document["records"]

    def case_of(record: dict[str, Any]) -> str:
        return f"{TASKS[record['task']]}, B={record['B']}, D={record['D']}, H={record['H']}"

    names = list(dict.fromkeys(record["contender"] for record in records))
    rows: dict[str, dict[str, str]] = {}
    ours: dict[str, float] = {}
    for record in records:
        case = case_of(record)
        time = milliseconds(record["median_ms"])
        if record["contender"] == "pyar":
            ours[case] = record["median_ms"]
            text = f"**{time}** ({100 * record['fraction_of_floor']:.0f} %)"
        else:
            text = f"{time} ({record['median_ms'] / ours[case]:.1f}×)"
        rows.setdefault(case, {})[record["contender"]] = text
    slower = {
        f"{case} ({record['contender']} takes {record['median_ms'] / ours[case]:.2f} of pyar's time)"
        for case in rows
        for record in [min((r for r in records if case_of(r) == case), key=lambda r: r["median_ms"])]
        if record["contender"] != "pyar"
    }
    fastest = f"pyar was the fastest in {len(rows) - len(slower)} of {len(rows)} cases"
    return [
        f"**RNADE.** {describe_run(document)}",
        markdown_table(["job", *names], rows),
        f"Real values, mixtures of {document['components']} Gaussians; milliseconds, brackets and checks as above. "
        + (f"{fastest}, not in: {'; '.join(sorted(slower))}." if slower else f"{fastest}."),
    ]


def render_neighbours(document: dict[str, Any]) -> list[str]:
    """How much longer calls take on a machine that is busy with other things: of pyar, torch's layers and JAX."""
    environment, records = document["environment"], document["records"]
    alone = {record["work"]: busy_times(record) for record in records if record["contender"] == ONE_THREAD}
    rows: dict[str, dict[str, str]] = {}
    head = ["median milliseconds", "quiet", "beside one busy process", "beside two", "of one thread's time then"]
    for record in records:
        if record["contender"] == ONE_THREAD:
            continue
        quiet, *beside = times = busy_times(record)
        name = record["work"] if record["contender"] == "pyar" else f"{record['contender']}: {record['work']}"
        cells = {"quiet": milliseconds(quiet)}
        for column, value in zip(head[2:4], beside, strict=True):
            cells[column] = f"{milliseconds(value)} ({value / quiet:.1f}×)"
        if record["contender"] == "pyar" and record["work"] in alone:
            ratios = [mine / one for mine, one in zip(times, alone[record["work"]], strict=True)]
            cells[head[4]] = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        rows[name] = cells
    return [
        f"**Beside busy neighbours.** {environment['processor']}, {document['threads']} threads; pyar "
        f"{environment['commit']}, {environment['date']}. Other processes that compute without end take their share of "
        "the processors; in brackets, how many times longer than in quiet. The last column compares with pyar on one "
        "thread in the same three situations.",
        markdown_table(head, rows),
    ]


def behind(record: dict[str, Any]) -> tuple[str, float] | None:
    """(the fastest peer, its time over pyar's); None where pyar or every peer has no time."""
    times = {o["contender"]: o["median_ms"] for o in record["outcomes"] if o["status"] in TIMED}
    ours = times.pop("pyar", None)
    if ours is None or not times:
        return None
    fastest = min(times, key=times.__getitem__)
    return fastest, times[fastest] / ours


def reason(record: dict[str, Any], peer: str) -> str:
    """Why a peer is level with pyar or faster, as far as the record tells."""
    reached = {o["contender"]: 100 * o["fraction_of_floor"] for o in record["outcomes"] if o["status"] in TIMED}
    floors = f"pyar reaches {reached['pyar']:.0f} % of the floor, {peer} {reached[peer]:.0f} %"
    if reached["pyar"] >= 100 * NEAR_FLOOR:
        return f"{floors}: both do the same multiply-adds near what the machine can do, and little is left to gain"
    if record["model"] == "nade" and record["share_of_zeros"] <= 0.5:
        return f"{floors}: with so few zeros pyar has no runs of unchanged hidden units to skip"
    return f"{floors}: what pyar loses here is not known"


def render_losses(records: list[dict[str, Any]]) -> list[str]:
    """In words, among everything measured: where pyar is the fastest, and where a peer is level or faster, and why."""
    compared, slower, ties, refused, alone = [], [], [], 0, 0
    for record in records:
        result = behind(record)
        if result is None:
            wrong = any(o["status"] == "wrong" for o in record["outcomes"])
            refused, alone = refused + wrong, alone + (not wrong)
            continue
        compared.append(record)
        peer, ratio = result
        data = f", {record['data']} data" if record["model"] in ("nade", "deep-nade") else ""
        if ratio < 1 / TIE:
            line = (
                f"\n* {job_and_model(record)}{data}: {peer} takes {ratio:.2f} of pyar's time; {reason(record, peer)}."
            )
            (slower if ratio < TIE else ties).append(line)
    fastest = len(compared) - len(slower) - len(ties)
    share = f"{fastest} of the" if fastest < len(compared) else "all"
    parts = [f"pyar was the fastest in {share} {len(compared)} cases compared."]
    if ties:
        within = f"within {round(100 * (1 - TIE))} %"
        parts.append(f"In {len(ties)} it was level with the fastest peer, {within}:\n{''.join(ties)}")
    if slower:
        parts.append(f"In {len(slower)} it was not the fastest:\n{''.join(slower)}")
    after = []
    if refused:
        after.append(f"In {refused} more there is no comparison: no peer's result passed the check.")
    if alone:
        after.append(
            f"In {alone} more pyar was measured alone: its peers would have taken minutes or gigabytes, or are missing."
        )
    return [*parts, *([" ".join(after)] if after else [])]
