"""How cost grows with the batch, D, H, K and the threads; and what else users wait for: memory, import, build."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import TASKS, Case, build_inputs, describe_data
from benchmarks.machine import MEGABYTE, Machine, measure_machine, multiply_adds
from benchmarks.peers import OURS, choose
from benchmarks.printing import describe_outcome, print_record
from benchmarks.runner import MOST_ATTEMPTS, Contender, Runner, significant
from benchmarks.series import grouped
from benchmarks.worker import save_inputs

JAX = "benchmarks.peers.jax_scan"
MODULES = [OURS, JAX]
BATCHES = (1, 10, 100, 1000, 10_000)
# Beyond these pyar alone is measured. Multiply-adds of a PixelLSTM, with which JAX would take minutes; values of hidden
# units that JAX remembers for a NADE's gradient, eight bytes each: what a system does about memory that is taken and
# given back by the gigabyte slows down whoever is measured next.
JAX_MULTIPLY_ADDS, JAX_VALUES = 3e11, 5e7
IMPORT_RUNS = 5


def cases(device: str = "cpu") -> Iterator[tuple[str, Case, list[str]]]:
    """(the axis that varies, the case, contenders)."""
    for axis, case, modules in cpu_cases():
        yield axis, dataclasses.replace(case, device=device), modules


def nade_modules(case: Case) -> list[str]:
    return MODULES if case.task != "gradient" or case.B * case.D * case.H <= JAX_VALUES else [OURS]


def cpu_cases() -> Iterator[tuple[str, Case, list[str]]]:
    """NADE's D, H and K vary on dense data, on which all dimensions cost alike."""
    for task in TASKS:
        for B in BATCHES:
            case = Case("nade", task, 2, B)
            yield "B", case, nade_modules(case)
    for task in TASKS:
        for B in BATCHES if task != "gradient" else BATCHES[:-1]:  # every step of the gradient's is remembered
            case = Case("lstm", task, 10, B, H=256)
            yield "B", case, MODULES if multiply_adds(case, 0.0) < JAX_MULTIPLY_ADDS else [OURS]
    for task in TASKS:
        for D in (196, 392, 784, 1568, 3136):
            case = Case("nade", task, 2, 100, D=D, data="dense")
            yield "D", case, nade_modules(case)
        for H in (125, 250, 500, 1000, 2000):
            case = Case("nade", task, 2, 100, H=H, data="dense")
            yield "H", case, nade_modules(case)
        for K in (2, 4, 10, 32, 100, 256):
            yield "K", Case("nade", task, K, 100, D=196, data="dense"), MODULES
    for D in (196, 392, 784, 1568):
        yield "D", Case("lstm", "sample", 10, 100, D=D, H=256), MODULES
    for H in (128, 256, 512, 1024):
        yield "H", Case("lstm", "sample", 10, 100, D=196, H=H), MODULES
    for K in (2, 4, 10, 32, 100, 256):
        yield "K", Case("lstm", "sample", K, 100, D=196, H=256, data="dense"), MODULES


def thread_cases() -> list[Case]:
    nade = [Case("nade", "gradient", 2, 100), Case("nade", "sample", 2, 1000)]
    return [*nade, Case("lstm", "sample", 10, 1, H=256), Case("lstm", "sample", 10, 100, H=256)]


def memory_cases() -> list[tuple[Case, list[str]]]:
    vectorised, nn_lstm = "benchmarks.peers.torch_vectorised", "benchmarks.peers.nn_lstm"
    return [
        (Case("nade", "gradient", 2, 1000), [OURS, JAX, vectorised]),
        (Case("nade", "gradient", 10, 1000), [OURS, JAX, vectorised]),
        (Case("nade", "sample", 2, 1000), MODULES),
        (Case("lstm", "gradient", 10, 100, H=256), [OURS, JAX, nn_lstm]),
        (Case("lstm", "sample", 10, 1000, H=256), MODULES),
    ]


def run_sweep(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    chosen = [
        (axis, case, choose(modules, options.peers))
        for axis, case, modules in cases(options.device)
        if options.only in case.describe()
    ]
    data = {case.data: describe_data(case.data, options.data_dir) for _, case, _ in chosen}
    records = []
    # Growth is read from many points, so that each needs fewer repetitions than a table's figure.
    budget = options.budget / 3
    contenders = dict.fromkeys(module for _, _, modules in chosen for module in modules)
    with Runner(contenders, machine, options.data_dir, budget) as runner:
        for axis, case, modules in chosen:
            record = runner.run(case, modules, axis=axis)
            records.append(record)
            print_record(case, record)
        measure_outliers_again(runner, chosen, records)
        machine = runner.measure_machine_again()
    document = {"machine": machine.to_json(), "data": data, "records": records}
    if options.only or options.device != "cpu":  # the rest is about whole processes on the CPU
        return document
    return document | {
        "threads": thread_records(options, budget),
        "memory": memory_records(options),
        "import": import_record(),
        "build": build_record(),
    }


def outliers(records: list[dict[str, Any]]) -> dict[int, set[str]]:
    """Index of a record → the contenders whose time there breaks the trend of its axis: the fraction of the floor that
    they reach is less than half of what they reach at both neighbours."""
    found: dict[int, set[str]] = {}
    for (axis, *_), group in grouped(records, "axis", "model", "task", "data").items():
        order = sorted(group, key=lambda record: record[axis])
        for before, record, after in zip(order, order[1:], order[2:], strict=False):
            fractions = [reached(neighbour) for neighbour in (before, record, after)]
            for name in fractions[0].keys() & fractions[1].keys() & fractions[2].keys():
                if 2 * fractions[1][name] < min(fractions[0][name], fractions[2][name]):
                    found.setdefault(records.index(record), set()).add(name)
    return found


def reached(record: dict[str, Any]) -> dict[str, float]:
    """Contender → the fraction of the floor that it reaches."""
    return {o["contender"]: o["fraction_of_floor"] for o in record["outcomes"] if "fraction_of_floor" in o}


def measure_outliers_again(
    runner: Runner, chosen: list[tuple[str, Case, list[str]]], records: list[dict[str, Any]]
) -> None:
    """Replaces the records that break a trend by new ones. What breaks it again within a tenth of its earlier time is
    what it is; what never says the same twice is marked."""
    suspects = outliers(records)
    for _ in range(MOST_ATTEMPTS):
        if not suspects:
            return
        for index, names in list(suspects.items()):
            axis, case, modules = chosen[index]
            print(f"\nagain, for {', '.join(sorted(names))} broke the trend along {axis}:", end="")
            before, again = records[index], runner.run(case, modules, axis=axis)
            print_record(case, again)
            records[index] = again
            times = [{o["contender"]: o.get("median_ms") for o in r["outcomes"]} for r in (before, again)]
            left = {
                name for name in names & outliers(records).get(index, set()) if not agree(*(t[name] for t in times))
            }
            if left:
                suspects[index] = left
            else:
                del suspects[index]
    for index, names in suspects.items():
        for outcome in records[index]["outcomes"]:
            if outcome["contender"] in names:
                outcome["settled"] = False


def agree(one: float | None, two: float | None) -> bool:
    """Whether two medians are the same but for a tenth."""
    return one is not None and two is not None and abs(one - two) <= 0.1 * min(one, two)


def thread_records(options: argparse.Namespace, budget: float) -> list[dict[str, Any]]:
    """pyar with 1, 2, 4 … threads, in fresh processes pinned to so many cores."""
    records = []
    counts = sorted({1, options.threads} | {2**n for n in range(1, 10) if 2**n < options.threads})
    print("\nthread scaling")
    for threads in counts:
        with Runner([OURS], measure_machine(threads), options.data_dir, budget) as runner:
            of_this_count = [runner.run(case, threads=threads) for case in thread_cases()]
            runner.measure_machine_again()
        for case, record in zip(thread_cases(), of_this_count, strict=True):
            print(f"  threads {threads}, {case.describe():<62}{describe_outcome(record['outcomes'][0], None)}")
        records += of_this_count
    return records


def memory_records(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory beyond what the process held with everything loaded: results, workspaces, saved activations."""
    print("\npeak extra memory of one call, after a call with one row has loaded everything")
    records = []
    for case, modules in memory_cases():
        inputs = build_inputs(case, options.data_dir)
        small = build_inputs(Case(**{**case.to_json(), "B": 1}), options.data_dir)
        for module in modules:
            contender = Contender(module, sorted(os.sched_getaffinity(0))[: options.threads])
            with save_inputs(inputs) as folder, save_inputs(small) as small_folder:
                contender.wait_until_started()
                if contender.missing is not None:
                    answer = ("missing", contender.missing)
                else:
                    answer = contender.ask("memory", case, folder, small_folder, inputs.seed)
            contender.stop()
            record = {
                **case.to_json(),
                "contender": contender.name,
                "status": "ok" if answer[0] == "bytes" else answer[0],
            }
            if answer[0] == "bytes":
                record["extra_megabytes"] = significant(answer[1] / MEGABYTE)
                print(f"  {case.describe():<66}{contender.name:<22}{record['extra_megabytes']:8.1f} MB")
            else:
                record["reason"] = answer[1]
                print(f"  {case.describe():<66}{contender.name:<22}{answer[0]}: {answer[1]}")
            records.append(record)
    return records


def import_record() -> dict[str, Any]:
    """Seconds that `import pyar` takes, of which torch's own import is most."""
    seconds = {
        "torch": time_python("import torch"),
        "pyar": time_python("import pyar"),
    }
    print(f"\nimport pyar {seconds['pyar']:.2f} s, of which import torch {seconds['torch']:.2f} s")
    return {f"{name}_seconds": significant(value) for name, value in seconds.items()}


def time_python(code: str) -> float:
    """The median time of a fresh interpreter that runs this."""
    readings = []
    for _ in range(IMPORT_RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        readings.append(time.perf_counter() - start)
    return statistics.median(readings)


def build_record() -> dict[str, Any]:
    """Seconds that `pip install` takes for a copy of the source, nothing compiled before, dependencies in place."""
    root = Path(__file__).parent.parent
    if not (root / "setup.py").exists():
        return {"status": "not measured", "reason": "these benchmarks do not stand in pyar's source folder"}
    with tempfile.TemporaryDirectory(prefix="pyar-build-") as folder:
        ignored = shutil.ignore_patterns(
            ".git", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__", "results"
        )
        source = shutil.copytree(root, Path(folder, "source"), ignore=ignored)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", f"{folder}/target", str(source)]
        start = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if result.returncode != 0:
        print(f"\npip install failed:\n{result.stderr[-2000:]}")
        return {"status": "failed", "reason": result.stderr.strip().splitlines()[-1]}
    print(f"\npip install of the source: {seconds:.0f} s")
    return {"status": "ok", "seconds": significant(seconds)}
