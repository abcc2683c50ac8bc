"""From stored results to README's tables and to plots: the figures in the README are those of the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.check import TOLERANCE
from benchmarks.peers import CONTENDERS
from benchmarks.runner import TIMED

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
JOBS = ("nade", "lstm", "sweep")
TASKS = {"log_prob": "log-probability", "gradient": "loss + all gradients", "sample": "sample"}
# Faster by less than this is a tie: repeated runs differ by as much.
TIE = 0.97


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
        target.write_text(insert(target.read_text(), text))
        print(f"wrote the benchmarks section of {target}")
    if plots is not None:
        from benchmarks.plots import draw_plots

        for path in draw_plots(documents, plots):
            print(f"drew {path}")


def insert(page: str, text: str) -> str:
    """The page with `text` between its marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise SystemExit(f"the file must have the line {BEGIN} and after it the line {END}, once each")
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def render(documents: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    parts = []
    for job, title in (("nade", "NADE"), ("lstm", "PixelLSTM")):
        if job in documents:
            parts += [f"**{title}.** {describe_run(documents[job])}", table(documents[job]["records"])]
    tables = [record for job in ("nade", "lstm") if job in documents for record in documents[job]["records"]]
    if tables:
        parts.append(
            "Median milliseconds of interleaved repetitions with the same parameters, data, uniforms and cores; in "
            "brackets pyar's fraction of the floor (the multiply-adds that the work needs at the peak measured in the "
            "same run, or reading its parameters once), and by how much each peer takes longer than pyar. Every result "
            "was checked against the float64 reference before it was timed; data: "
            + "; ".join(dict.fromkeys(text for job in ("nade", "lstm") for text in data_of(documents.get(job))))
            + "."
        )
        parts += imprecisions(tables)
    if "sweep" in documents:
        parts += render_sweep(documents["sweep"])
    parts.append(render_losses([*tables, *documents.get("sweep", {}).get("records", [])]))
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


def data_of(document: dict[str, Any] | None) -> Iterable[str]:
    return document["data"].values() if document else ()


def describe_run(document: dict[str, Any]) -> str:
    environment, machine = document["environment"], document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return (
        f"{environment['processor']}, {machine['threads']} threads, {environment['level']}, multiply-add peak "
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


def describe_job(record: dict[str, Any]) -> str:
    parts = [f"{TASKS[record['task']]}, K={record['K']}, B={record['B']}"]
    if record["model"] == "lstm":
        parts.append(f"H={record['H']}")
    if record["num_layers"] > 1:
        parts.append(f"{record['num_layers']} layers")
    return ", ".join(parts)


def cell(outcome: dict[str, Any] | None, ours: float | None) -> str:
    if outcome is None or outcome["status"] == "not applicable":
        return "–"
    if outcome["status"] not in TIMED:
        return "WRONG" if outcome["status"] == "wrong" else outcome["status"]
    time = milliseconds(outcome["median_ms"]) + ("†" if outcome["status"] == "imprecise" else "")
    if outcome["contender"] == "pyar":
        return f"**{time}** ({100 * outcome['fraction_of_floor']:.0f} %)"
    return time if ours is None else f"{time} ({outcome['median_ms'] / ours:.1f}×)"


def milliseconds(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def render_sweep(document: dict[str, Any]) -> list[str]:
    parts = []
    if document.get("threads"):
        parts.append("pyar's time in ms with so many threads: " + "; ".join(thread_rows(document["threads"])) + ".")
    if document.get("memory"):
        parts.append("Peak extra memory of one call: " + "; ".join(memory_rows(document["memory"])) + ".")
    if "import" in document:
        seconds = document["import"]
        parts.append(
            f"`import pyar` takes {seconds['pyar_seconds']:.2g} s, {seconds['torch_seconds']:.2g} s of which "
            "is `import torch`."
        )
    if document.get("build", {}).get("status") == "ok":
        parts.append(f"`pip install .` takes {document['build']['seconds']:.0f} s where torch is installed.")
    return parts


def job_and_model(record: dict[str, Any]) -> str:
    model = "NADE" if record["model"] == "nade" else "PixelLSTM"
    return f"{model} {describe_job(record)}"


def group(rows: Iterable[tuple[str, str]]) -> list[str]:
    """(key, value) → "key: value, value", keys in their first order."""
    grouped: dict[str, list[str]] = {}
    for key, value in rows:
        grouped.setdefault(key, []).append(value)
    return [f"{key}: {', '.join(values)}" for key, values in grouped.items()]


def thread_rows(records: list[dict[str, Any]]) -> list[str]:
    rows = []
    for record in records:
        outcome = record["outcomes"][0]
        value = milliseconds(outcome["median_ms"]) if outcome["status"] == "ok" else outcome["status"]
        rows.append((job_and_model(record), f"{record['threads']} → {value}"))
    return group(rows)


def memory_rows(records: list[dict[str, Any]]) -> list[str]:
    rows = []
    for record in records:
        value = f"{record['extra_megabytes']:.0f} MB" if record["status"] == "ok" else record["status"]
        rows.append((job_and_model(record), f"{record['contender']} {value}"))
    return group(rows)


def losses(records: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str, float]]:
    """(record, fastest peer, its time over pyar's) wherever a peer is faster than pyar by more than a tie."""
    found = []
    for record in records:
        times = {o["contender"]: o["median_ms"] for o in record["outcomes"] if o["status"] in TIMED}
        if "pyar" not in times:
            continue
        fastest = min(times, key=times.__getitem__)
        ratio = times[fastest] / times["pyar"]
        if ratio < TIE:
            found.append((record, fastest, ratio))
    return found


def render_losses(records: list[dict[str, Any]]) -> str:
    """In words: where pyar is not the fastest, among everything measured."""
    found = losses(records)
    if not found:
        # A case in which every peer was wrong says nothing about who is faster.
        statuses = [{o["status"] for o in r["outcomes"] if o["contender"] != "pyar"} for r in records]
        alone = sum("wrong" in of_peers and of_peers.isdisjoint(TIMED) for of_peers in statuses)
        unknown = f" In {alone} more there is no comparison: no peer's result passed the check." if alone else ""
        return f"pyar was the fastest in all {len(records) - alone} cases measured.{unknown}"
    described = "; ".join(
        f"{Case(**{name: record[name] for name in Case.__dataclass_fields__}).describe()}: {peer} takes "
        f"{ratio:.2f} of pyar's time"
        for record, peer, ratio in found
    )
    return f"pyar was not the fastest in {len(found)} of the {len(records)} cases measured: {described}."
