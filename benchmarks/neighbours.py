"""How much longer work takes beside busy processes: pyar with all threads and with one, torch's own layers, JAX."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case, build_inputs
from benchmarks.limits import set_variables
from benchmarks.machine import describe_environment
from benchmarks.runner import SHORTEST_READING, significant
from pyar.files import write_text

NEIGHBOURS = (0, 1, 2)
# A measurement during which others took more of the processors than this is made again, so often at most.
FOREIGN_SHARE, ATTEMPTS = 0.05, 3
MIN_READINGS, MAX_READINGS = 3, 9
ONE_THREAD = "pyar, one thread"
CONTENDERS = ("pyar", ONE_THREAD, "torch", "JAX")

Works = dict[str, Callable[[], Any]]


def pyar_works(data_dir: str | None) -> Works:
    """The operations as a user calls them, on MNIST-like states and random parameters."""
    import pyar

    def model_of(case: Case, **options: Any) -> tuple[torch.nn.Module, torch.Tensor]:
        torch.manual_seed(0)
        kind = pyar.NADE if case.model == "nade" else pyar.PixelLSTM
        return kind(case.D, case.K, case.H, **options), torch.from_numpy(build_inputs(case, data_dir).x)

    def evaluate(function: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        return torch.inference_mode()(function)

    def gradient(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(), list(model.parameters()))

    works: Works = {}
    for D in (784, 123):
        nade, x = model_of(Case("nade", "gradient", 2, 100, D=D))
        size = "" if D == 784 else f", D={D}"
        works[f"NADE log_prob{size}"] = evaluate(functools.partial(nade.log_prob, x))
        works[f"NADE gradient{size}"] = gradient(nade, functools.partial(nade.mean_nll, x))
        works[f"NADE general gradient{size}"] = gradient(nade, lambda nade=nade, x=x: nade.log_prob(x).square().mean())
        if D == 784:
            works["NADE logits"] = evaluate(functools.partial(nade.logits, x))
            for B in (1, 100, 1000):
                works[f"NADE sample, B={B}"] = evaluate(functools.partial(nade.sample, B, seed=1))
    deep, x = model_of(Case("nade", "gradient", 2, 100), mlp_sizes=(500,))
    works["NADE gradient, one added layer"] = gradient(deep, lambda: deep.log_prob(x).mean())
    lstm, grey = model_of(Case("lstm", "gradient", 10, 100, H=256))
    for B in (1, 100):
        works[f"PixelLSTM sample, B={B}"] = evaluate(functools.partial(lstm.sample, B, seed=1))
    works["PixelLSTM log_prob"] = evaluate(functools.partial(lstm.log_prob, grey))
    works["PixelLSTM gradient"] = gradient(lstm, lambda: lstm.log_prob(grey).mean())
    return works


def torch_works(data_dir: str | None) -> Works:
    """Forward and backward of layers of about the same sizes."""
    torch.manual_seed(0)
    linear, x = torch.nn.Sequential(torch.nn.Linear(784, 500), torch.nn.Linear(500, 784)), torch.randn(100, 784)
    lstm, sequence = torch.nn.LSTM(10, 256, batch_first=True), torch.randn(100, 784, 10)
    return {
        "nn.Linear 784-500-784, B=100": lambda: linear(x).square().mean().backward(),
        "nn.LSTM, B=100, D=784, H=256": lambda: lstm(sequence)[0].square().mean().backward(),
    }


def jax_works(data_dir: str | None) -> Works:
    from benchmarks.peers import jax_scan

    works: Works = {}
    for title, case in (
        ("NADE gradient", Case("nade", "gradient", 2, 100)),
        ("PixelLSTM sample, B=100", Case("lstm", "sample", 10, 100, H=256)),
    ):
        works[title] = jax_scan.prepare(case, build_inputs(case, data_dir), torch.get_num_threads()).call
    return works


def serve(connection: Connection, contender: str, threads: int, data_dir: str | None) -> None:
    """Sends its works' names, then for every (work, seconds) the milliseconds of several readings."""
    set_variables(threads)
    torch.set_num_threads(1 if contender == ONE_THREAD else threads)
    try:
        build = {"torch": torch_works, "JAX": jax_works}.get(contender, pyar_works)
        works = build(data_dir)
    except ImportError as error:
        connection.send(error)
        return
    connection.send(list(works))
    while (question := connection.recv()) is not None:
        work, seconds = question
        connection.send(readings(works[work], seconds))


def readings(call: Callable[[], Any], seconds: float) -> tuple[list[float], float]:
    """Milliseconds a call, each a mean over some 50 ms, so that short work counts its interruptions; and the processor
    time that this process took."""
    call()
    found: list[float] = []
    start, processor_start = time.perf_counter(), time.process_time()
    while len(found) < MIN_READINGS or (len(found) < MAX_READINGS and time.perf_counter() - start < seconds):
        calls, reading = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - reading < SHORTEST_READING:
            call()
            calls += 1
        found.append(1e3 * (time.perf_counter() - reading) / calls)
    return found, time.process_time() - processor_start


def busy_seconds() -> float:
    """What all processors have worked since the start of the machine."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    user, nice, system, _idle, _wait, interrupts, soft_interrupts, stolen = fields[:8]
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.1)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(connection: Connection, work: str, neighbours: int, budget: float) -> dict[str, Any]:
    """The readings during which others took least of the processors."""
    best: dict[str, Any] | None = None
    for _ in range(ATTEMPTS):
        with busy_processes(neighbours) as pids:
            start, busy = time.perf_counter(), busy_seconds()
            theirs = sum(map(processor_seconds, pids))
            connection.send((work, budget))
            milliseconds, own = connection.recv()
            theirs = sum(map(processor_seconds, pids)) - theirs
            foreign = max(0.0, (busy_seconds() - busy - theirs - own) / (time.perf_counter() - start))
        p20, median, p80 = (significant(value) for value in np.percentile(milliseconds, (20, 50, 80)))
        found = {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "readings": len(milliseconds)}
        found["foreign_share"] = round(foreign, 3)
        if best is None or foreign < best["foreign_share"]:
            best = found
        if foreign <= FOREIGN_SHARE:
            break
    return best


def run_neighbours(options: argparse.Namespace) -> int:
    """Prints the table and writes neighbours.json. What --only leaves out stays from an earlier run of this commit."""
    environment = describe_environment()
    path = options.out / "neighbours.json"
    records: dict[tuple[str, str], dict[str, Any]] = {}
    if options.only and path.exists():
        earlier = json.loads(path.read_text())
        same = ("processor", "commit", "versions", "level")
        if all(earlier["environment"][name] == environment[name] for name in same):
            records = {(record["contender"], record["work"]): record for record in earlier["records"]}
    print(f"{environment['processor']}, {options.threads} threads, commit {environment['commit']}")
    print("median milliseconds of readings of 50 ms or one call: quiet, beside one busy process, beside two\n")
    context = multiprocessing.get_context("spawn")
    for contender in CONTENDERS:
        connection, there = context.Pipe()
        process = context.Process(target=serve, args=(there, contender, options.threads, options.data_dir), daemon=True)
        process.start()
        works = connection.recv()
        if isinstance(works, ImportError):
            print(f"{contender}: missing, {works}")
            continue
        for work in works:
            if options.only not in f"{contender}: {work}":
                continue
            outcomes = [measure(connection, work, count, options.budget / 3) for count in NEIGHBOURS]
            record = {
                "contender": contender,
                "work": work,
                "beside": dict(zip(map(str, NEIGHBOURS), outcomes, strict=True)),
            }
            records[contender, work] = record
            print(describe(record), flush=True)
        connection.send(None)
        process.join()
    print_summary(records)
    document = {"job": "neighbours", "environment": environment, "threads": options.threads}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document | {"records": list(records.values())}, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0


def times(record: dict[str, Any]) -> list[float]:
    """Median milliseconds in quiet and beside the busy processes."""
    return [record["beside"][str(count)]["median_ms"] for count in NEIGHBOURS]


def describe(record: dict[str, Any]) -> str:
    quiet, *beside = times(record)
    line = f"{record['contender']:<18}{record['work']:<34}{quiet:>9.4g}"
    line += "".join(f"{value:>10.4g} ({value / quiet:4.1f}×)" for value in beside)
    foreign = max(outcome["foreign_share"] for outcome in record["beside"].values())
    return line + (f"   others took {100 * foreign:.0f} % of a processor" if foreign > FOREIGN_SHARE else "")


def print_summary(records: dict[tuple[str, str], dict[str, Any]]) -> None:
    """How the works compare with the same on one thread, where both were measured."""
    lines = []
    for (contender, work), record in records.items():
        alone = records.get((ONE_THREAD, work))
        if contender == "pyar" and alone is not None:
            ratios = [mine / one for mine, one in zip(times(record), times(alone), strict=True)]
            lines.append((work, ratios))
    if not lines:
        return
    print("\nall threads, in times of one thread's time then")
    for work, ratios in lines:
        print(f"{work:<52}" + "".join(f"{ratio:9.2f}" for ratio in ratios))
    medians = [statistics.median(ratios[i] for _, ratios in lines) for i in range(len(NEIGHBOURS))]
    print(f"{'median':<52}" + "".join(f"{ratio:9.2f}" for ratio in medians))
