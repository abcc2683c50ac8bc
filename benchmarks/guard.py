"""Has a change made pyar slower? Counts operations' instructions under valgrind and compares with stored counts.

Counts do not depend on what else the machine does, and hardly on which machine it is: valgrind shows every program the
same processor, with AVX2 and without AVX-512. They say nothing about caches and threads: those are for the tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import Case, build_inputs
from pyar.files import write_text

STORED = Path(__file__).parent / "guard.json"
# Counts vary by less than a thousandth from run to run.
TOLERANCE = 0.03
# Callgrind writes and clears its counts whenever this function of libc is entered; nobody else calls it here.
MARK = "getppid"


def cases() -> list[Case]:
    nade = [Case("nade", task, K, 20, D=196) for task in ("log_prob", "gradient", "sample") for K in (2, 10)]
    nade += [Case("nade", "gradient", 2, 20, D=196, data="dense"), Case("nade", "sample", 2, 1)]
    lstm = [Case("lstm", task, 10, 16, D=49, H=256) for task in ("log_prob", "gradient", "sample")]
    return [*nade, *lstm, Case("lstm", "sample", 10, 1, D=49, H=256)]


def run_guard(update: bool) -> int:
    """0 if no count grew beyond the tolerance, 1 if one did, 2 if there is nothing to compare with."""
    if shutil.which("valgrind") is None:
        print("guard: valgrind was not found; install it (Debian, Ubuntu: apt-get install valgrind)")
        return 2
    counts = count_instructions()
    if update:
        write_text(STORED, json.dumps(counts, indent=1) + "\n")
        print(f"guard: stored {len(counts)} counts in {STORED}")
        return 0
    if not STORED.exists():
        print(f"guard: there is no {STORED}; store one with `python -m benchmarks guard --update`")
        return 2
    return compare(json.loads(STORED.read_text()), counts)


def compare(stored: dict[str, int], counts: dict[str, int]) -> int:
    """Prints a line a case; 1 if a count is larger than the stored one by more than the tolerance."""
    slower = []
    for name, count in counts.items():
        if name not in stored:
            print(f"  {name:<70}{count / 1e6:10.2f} M  no stored count")
            continue
        change = count / stored[name] - 1
        mark = "MORE" if change > TOLERANCE else "fewer" if change < -TOLERANCE else ""
        print(f"  {name:<70}{stored[name] / 1e6:10.2f} M → {count / 1e6:10.2f} M  {100 * change:+6.1f} %  {mark}")
        if change > TOLERANCE:
            slower.append(name)
    for name in stored.keys() - counts.keys():
        print(f"  {name:<70}stored, but no longer measured")
    if slower:
        print(
            f"guard: {len(slower)} of {len(counts)} operations take {100 * TOLERANCE:.0f} % more instructions than "
            "stored, or worse. If that buys something (a fix, fewer cache misses: see `python -m benchmarks nade lstm "
            "--compare benchmarks/results`), store the new counts with `python -m benchmarks guard --update`."
        )
        return 1
    print("guard: no operation takes more instructions than stored")
    return 0


def count_instructions() -> dict[str, int]:
    """Case → instructions of one call on one thread, in a process under callgrind."""
    with tempfile.TemporaryDirectory(prefix="pyar-guard-") as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts", f"--dump-before={MARK}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYAR_CPU_LEVEL": ""}
        command = [*tool, sys.executable, "-m", "benchmarks.guard"]
        print("guard: counting instructions under valgrind, which takes a few minutes", flush=True)
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"guard: valgrind ended with {result.returncode}:\n{result.stderr[-3000:]}")
        # Dump 2i + 1 ends the preparation of case i, dump 2i + 2 its call.
        totals = [read_total(Path(folder, f"counts.{2 * i + 2}")) for i in range(len(cases()))]
    return {case.describe(): total for case, total in zip(cases(), totals, strict=True)}


def read_total(path: Path) -> int:
    """The number of instructions in a dump of callgrind's."""
    match = re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{path} has no total")
    return int(match[1])


def call_each_case() -> None:
    """What runs under callgrind: every case prepared and called once, then once more between two marks."""
    from benchmarks import ours

    for case in cases():
        work = ours.prepare(case, build_inputs(case), threads=1)
        work.call()
        os.getppid()
        work.call()
        os.getppid()


if __name__ == "__main__":
    call_each_case()
