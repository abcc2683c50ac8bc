"""Runs the cases of a job, prints each as it is measured, stores them as JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import deep_nade, lstm, made, nade
from benchmarks.cases import Case, describe_data
from benchmarks.machine import Machine, describe_environment, describe_level, measure_machine
from benchmarks.peers import choose
from benchmarks.printing import print_record
from benchmarks.runner import Runner, significant
from benchmarks.sweep import run_sweep
from pyar.files import write_text

JOBS = {"nade": nade, "lstm": lstm, "made": made, "deep-nade": deep_nade}


def run_tables(jobs: list[str], options: argparse.Namespace) -> int:
    """Returns 1 if a result of pyar's was wrong or failed, else 0."""
    environment = describe_environment(options.level)
    print(
        f"{environment['processor']}, {options.threads} threads, {describe_level(environment)}, "
        f"commit {environment['commit']}"
    )
    machine = measure_machine(options.threads)
    stream = ", ".join(f"{size:g} MB {rate / 1e9:.0f}" for size, rate in machine.bandwidth.items())
    print(f"multiply-add peak {machine.peak / 1e9:.0f} GFLOP/s; loads in GB/s by working set: {stream}")
    failures = 0
    for name in jobs:
        start = time.perf_counter()
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{name}.json"
        document = {"job": name, "environment": environment}

        def store(measured: dict[str, Any], document=document, path=path, start=start) -> None:
            document |= measured
            document["wall_seconds"] = significant(time.perf_counter() - start)
            write_text(path, json.dumps(document, indent=1) + "\n")

        if name == "sweep":
            store(run_sweep(machine, options))
        else:
            cases = [(case, modules) for case, modules in JOBS[name].cases(options.device)]
            run_cases(cases, machine, options, store)
        failures += count_failures(document)
        print(f"\n{name}: {document['wall_seconds']:.0f} s; written to {path}")
        if options.compare:
            print_comparison(document, read_earlier(options.compare, name))
    if failures:
        print(f"\n{failures} of pyar's own results were WRONG or failed")
    return 1 if failures else 0


def run_cases(
    cases: list[tuple[Case, list[str]]],
    machine: Machine,
    options: argparse.Namespace,
    store: Callable[[dict[str, Any]], None],
) -> None:
    """Measures all cases, and stores their records and what their data is after each: a run may be ended early."""
    cases = [(case, choose(modules, options.peers)) for case, modules in cases if options.only in case.describe()]
    modules = list(dict.fromkeys(module for _, chosen in cases for module in chosen))
    data = {case.data: describe_data(case.data, options.data_dir) for case, _ in cases}
    for description in data.values():
        print(description)
    records = []
    with Runner(modules, machine, options.data_dir, options.budget) as runner:
        for case, chosen in cases:
            record = runner.run(case, chosen)
            records.append(record)
            print_record(case, record)
            store({"machine": machine.to_json(), "data": data, "records": records})
        machine = runner.measure_machine_again()
        store({"machine": machine.to_json(), "data": data, "records": records})


def count_failures(document: dict[str, Any]) -> int:
    outcomes = [outcome for record in document.get("records", []) for outcome in record["outcomes"]]
    return sum(o["contender"] == "pyar" and o["status"] in ("imprecise", "wrong", "failed") for o in outcomes)


def read_earlier(path: Path, job: str) -> dict[str, Any]:
    path = path / f"{job}.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SystemExit(f"--compare {path}: {error}") from None


def case_key(record: dict[str, Any]) -> tuple:
    return tuple(record.get(name) for name in Case.__dataclass_fields__)


def print_comparison(document: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Every time that both have, old and new; a change is marked where the 20–80 % spreads do not meet."""
    print(f"\ncompared with commit {earlier['environment']['commit']} ({earlier['environment']['date']})")
    facts = {
        "processor": lambda run: run["environment"]["processor"],
        "level": lambda run: describe_level(run["environment"]),
        "number of threads": lambda run: run["machine"]["threads"],
    }
    for name, fact in facts.items():
        before, now = fact(earlier), fact(document)
        if before != now:
            print(f"  another {name}: {before} then, {now} now")
    old = {(case_key(r), o["contender"]): o for r in earlier.get("records", []) for o in r["outcomes"]}
    for record in document.get("records", []):
        case = Case(**dict(zip(Case.__dataclass_fields__, case_key(record), strict=True)))
        for outcome in record["outcomes"]:
            before = old.get((case_key(record), outcome["contender"]))
            if before is None or "median_ms" not in before or "median_ms" not in outcome:
                continue
            ratio = outcome["median_ms"] / before["median_ms"]
            apart = outcome["p20_ms"] > before["p80_ms"] or outcome["p80_ms"] < before["p20_ms"]
            mark = ("slower" if ratio > 1 else "faster") if apart else ""
            change = f"{before['median_ms']:.4g} → {outcome['median_ms']:.4g} ms ({ratio:.2f}×) {mark}"
            print(f"  {outcome['contender']:<24}{case.describe():<66}{change}")
