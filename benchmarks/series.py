"""What tables and plots show: which records belong together, what to call them, which plots there are data for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from benchmarks.peers import CONTENDERS
from benchmarks.runner import TIMED

Record = dict[str, Any]
Documents = dict[str, dict[str, Any]]

MODELS = {"nade": "NADE", "lstm": "PixelLSTM", "made": "MADE", "deep-nade": "DeepNADE"}
TASKS = {"log_prob": "log-probability", "gradient": "loss + all gradients", "sample": "sample"}


def describe_job(record: Record) -> str:
    parts = [f"{TASKS[record['task']]}, K={record['K']}, B={record['B']}"]
    if record["D"] != 784:
        parts.append(f"D={record['D']}")
    if record["model"] == "lstm" or record["H"] != 500:
        parts.append(f"H={record['H']}")
    if record["num_layers"] > 1:
        parts.append(f"{record['num_layers']} layers")
    return ", ".join(parts)


def digest(documents: Documents) -> str:
    """Stands in every plot, so that one can tell whether it shows these results."""
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()


def table_records(documents: Documents) -> list[Record]:
    return [record for job in MODELS if job in documents for record in documents[job]["records"]]


def sweep_records(documents: Documents) -> list[Record]:
    return documents["sweep"]["records"] if "sweep" in documents else []


def comparable_records(documents: Documents) -> list[Record]:
    """The records that one line may join: those of one machine, the sweep's where it is another than the tables'."""
    processors = {document["environment"]["processor"] for document in documents.values()}
    tables, sweep = table_records(documents), sweep_records(documents)
    return [*tables, *sweep] if len(processors) == 1 else sweep or tables


def grouped(records: list[Record], *names: str) -> dict[tuple, list[Record]]:
    """The records by the values of these fields."""
    found: dict[tuple, list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def times(records: list[Record], axis: str) -> dict[str, list[tuple[int, float]]]:
    """Contender → (value on the axis, milliseconds) in order, from the first record that has one."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for outcome in record["outcomes"]:
            if outcome["status"] in TIMED:
                found.setdefault(outcome["contender"], {}).setdefault(record[axis], outcome["median_ms"])
    return {name: sorted(found[name].items()) for name in CONTENDERS.values() if name in found}


def speed_panels(documents: Documents) -> dict[tuple[str, str, int, int], list[Record]]:
    """(model, task, K, H) → the records of a job on 784 dimensions that pyar did at three batch sizes or more."""
    records = [r for r in comparable_records(documents) if r["data"] == "mnist-like" and r["num_layers"] == 1]
    panels = grouped([r for r in records if r["D"] == 784], "model", "task", "K", "H")
    order = sorted(panels, key=lambda key: (list(MODELS).index(key[0]), list(TASKS).index(key[1]), *key[2:]))
    return {key: panels[key] for key in order if len(times(panels[key], "B").get("pyar", [])) >= 3}


def growth_panels(documents: Documents) -> dict[tuple[str, str], dict[str, list[Record]]]:
    """(model, task) → axis → the records along it, of jobs that were measured along more than the batch."""
    panels: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for (model, task, axis), group in grouped(sweep_records(documents), "model", "task", "axis").items():
        panels.setdefault((model, task), {})[axis] = group
    return {kind: by_axis for kind, by_axis in panels.items() if set(by_axis) != {"B"}}


def plot_names(documents: Documents) -> list[str]:
    """The plots that there are data for."""
    data = {"speed": speed_panels(documents), "floor": table_records(documents), "growth": growth_panels(documents)}
    return [name for name, found in data.items() if found]
