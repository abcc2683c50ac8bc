"""Runs contenders side by side on one case: check first, then interleaved repetitions, median with its spread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.cases import Case, build_inputs
from benchmarks.check import Checker
from benchmarks.machine import Machine, measure_machine
from benchmarks.peers import CONTENDERS
from benchmarks.worker import save_inputs, serve

# An imprecise result has a time, printed with a mark; a wrong one has none.
TIMED = ("ok", "imprecise")
# A contender repeats its work for this long at most, but at least so often (work that takes many seconds is steady
# enough for fewer), and so often at most.
BUDGET_SECONDS = 1.5
MIN_REPETITIONS, MAX_REPETITIONS = 3, 25
LONG_SECONDS, LONG_REPETITIONS = 3.0, 2
# Shorter work is done several times for one reading of the clock.
SHORTEST_READING = 0.05
# Readings are settled when the time at 80 % is at most so many times that at 20 %. Something else ran meanwhile where
# they are not: all are measured again, so often at most, and what stays unsettled is marked.
SETTLED_SPREAD = 1.3
MOST_ATTEMPTS = 3


@dataclass
class Outcome:
    """One contender on one case. status: ok, imprecise, wrong, missing, not applicable, failed."""

    contender: str
    status: str
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    note: str = ""
    settled: bool = True

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"contender": self.contender, "status": self.status}
        if self.reason:
            record["reason"] = self.reason
        if self.error is not None:
            record["error_over_tolerance"] = float(f"{self.error:.2g}")
        if self.seconds:
            p20, median, p80 = np.percentile(self.seconds, (20, 50, 80))
            record |= {"median_ms": significant(1e3 * median), "p20_ms": significant(1e3 * p20)}
            record |= {"p80_ms": significant(1e3 * p80), "repetitions": len(self.seconds)}
        if not self.settled:
            record["settled"] = False
        record |= {name: significant(value) for name, value in self.facts.items()}
        if self.note:
            record["note"] = self.note
        return record


def significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def spread(seconds: list[float]) -> float:
    """How many times longer the reading at 80 % is than that at 20 %."""
    p20, p80 = np.percentile(seconds, (20, 80))
    return float(p80 / p20)


def set_floor(record: dict[str, Any], floor: float) -> None:
    """Writes the floor, in seconds, into a case's record, and what fraction of it each contender reached."""
    record["floor_ms"] = significant(1e3 * floor)
    for outcome in record["outcomes"]:
        if "median_ms" in outcome:
            outcome["fraction_of_floor"] = significant(1e3 * floor / outcome["median_ms"])


class Contender:
    """One contender's process."""

    def __init__(self, module: str, cores: Iterable[int]) -> None:
        self.name = CONTENDERS.get(module, module)
        self.cores = list(cores)
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, module, self.cores), daemon=True)
        self.process.start()
        theirs.close()
        self.missing: str | None = None
        self.started = False

    def wait_until_started(self) -> None:
        if not self.started:
            status, *reason = self.receive()
            self.missing = reason[0] if status != "ready" else None
            self.started = True

    def ask(self, *message: Any) -> tuple:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return "failed", f"its process ended with exit code {self.process.exitcode}"
        return self.receive()

    def receive(self) -> tuple:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(1)
            return "failed", f"its process ended with exit code {self.process.exitcode}"

    def prepare(self, case: Case, folder: str, seed: int, checker: Checker) -> Outcome:
        """Prepares, does the work once and checks what came out."""
        self.wait_until_started()
        if self.missing is not None:
            return Outcome(self.name, "missing", self.missing)
        status, *answer = self.ask("prepare", case, folder, seed)
        if status != "result":
            return Outcome(self.name, status, answer[0])
        result, facts, note = answer
        error = checker.error(result)
        return Outcome(self.name, checker.status(error), "", [], error, facts, note)

    def stop(self) -> None:
        if self.process.is_alive():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may just have ended by itself
                self.connection.send(("stop",))
            self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()


class Runner:
    """Holds the processes for as long as cases follow each other; a context manager."""

    def __init__(self, modules: Iterable[str], machine: Machine, data_dir: str | None = None, budget=BUDGET_SECONDS):
        cores = sorted(os.sched_getaffinity(0))[: machine.threads]
        self.machine = machine
        self.data_dir = data_dir
        self.budget = budget
        self.contenders = {module: Contender(module, cores) for module in modules}
        self.done: list[tuple[Case, float, dict[str, Any]]] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_) -> None:
        for contender in self.contenders.values():
            contender.stop()

    def run(self, case: Case, modules: Iterable[str] | None = None, **labels: Any) -> dict[str, Any]:
        """The case's record: the labels, the case, its floor, and an outcome for every contender."""
        inputs = build_inputs(case, self.data_dir)
        checker = Checker(case, inputs)
        folder = save_inputs(inputs)
        chosen = [self.contenders[module] for module in (modules or self.contenders)]
        try:
            outcomes = {c.name: c.prepare(case, folder.name, inputs.seed, checker) for c in chosen}
        finally:
            folder.cleanup()
        running = [c for c in chosen if outcomes[c.name].status in TIMED]
        self.time_until_settled(running, outcomes)
        record = {
            **labels,
            **case.to_json(),
            "share_of_zeros": round(1 - inputs.changing_share, 3),
            "floor_ms": 0.0,
            "outcomes": [outcome.to_json() for outcome in outcomes.values()],
        }
        set_floor(record, self.machine.floor_seconds(case, inputs.changing_share))
        self.done.append((case, inputs.changing_share, record))
        return record

    def measure_machine_again(self) -> Machine:
        """The machine's limits, read again now that the cases are done; the floors of all their records follow. A
        reading taken while something else ran would make floors too high, and fractions of them too good."""
        self.machine = self.machine.best_of(measure_machine(self.machine.threads))
        for case, changing_share, record in self.done:
            set_floor(record, self.machine.floor_seconds(case, changing_share))
        return self.machine

    def time_until_settled(self, running: list[Contender], outcomes: dict[str, Outcome]) -> None:
        """time(), and again, all of them interleaved, while a contender's readings spread; each keeps the attempt that
        spread least."""
        best: dict[str, list[float]] = {}
        for _ in range(MOST_ATTEMPTS):
            for contender in running:
                outcomes[contender.name].seconds = []
            self.time(running, outcomes)
            for contender in running:
                outcome = outcomes[contender.name]
                if contender.name not in best or spread(outcome.seconds) < spread(best[contender.name]):
                    best[contender.name] = outcome.seconds
            if all(spread(best[contender.name]) <= SETTLED_SPREAD for contender in running):
                break
        for contender in running:
            outcome = outcomes[contender.name]
            outcome.seconds = best[contender.name]
            outcome.settled = spread(outcome.seconds) <= SETTLED_SPREAD

    def time(self, running: list[Contender], outcomes: dict[str, Outcome]) -> None:
        """Fills in the seconds: in every round each contender that still has budget is timed once."""
        calls, repetitions = {}, {}
        for contender in list(running):
            seconds = self.read_clock(contender, 1, outcomes)
            if seconds is None:
                running.remove(contender)
                continue
            calls[contender.name] = max(1, round(SHORTEST_READING / max(seconds, 1e-7)))
            each = seconds * calls[contender.name]
            fewest = MIN_REPETITIONS if seconds < LONG_SECONDS else LONG_REPETITIONS
            repetitions[contender.name] = int(np.clip(self.budget / each, fewest, MAX_REPETITIONS))
            if seconds > self.budget:  # the reading just taken was a warm one and counts
                outcomes[contender.name].seconds.append(seconds)
        rounds = max(repetitions.values(), default=0)
        for turn in range(rounds):
            for contender in list(running):
                name = contender.name
                # A contender with fewer repetitions spreads them over all rounds.
                due = (turn + 1) * repetitions[name] // rounds > turn * repetitions[name] // rounds
                if due and len(outcomes[name].seconds) < repetitions[name]:
                    seconds = self.read_clock(contender, calls[name], outcomes)
                    if seconds is None:
                        running.remove(contender)
                    else:
                        outcomes[name].seconds.append(seconds)

    def read_clock(self, contender: Contender, calls: int, outcomes: dict[str, Outcome]) -> float | None:
        # The thread pool of the contender before may still be spinning for work; libgomp's does for some 10 ms.
        time.sleep(0.03)
        status, answer = contender.ask("time", calls)
        if status == "seconds":
            return answer
        outcomes[contender.name] = Outcome(contender.name, "failed", answer)
        return None
