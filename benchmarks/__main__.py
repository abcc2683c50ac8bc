"""How fast pyar is on this machine, beside what one would use instead.

  python -m benchmarks nade lstm      the two tables, every result checked before its time is printed
  python -m benchmarks sweep          how cost grows with B, D, H, K and threads; memory, import time
  python -m benchmarks report         tables and plots from stored results
  python -m benchmarks guard          has a change made pyar slower? compares with stored instruction counts

Results are written as JSON. Optional peers: pip install -e ".[bench]".
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

COMMITTED = Path(__file__).parent / "results"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="+", choices=("nade", "lstm", "sweep", "report", "guard"), metavar="job")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"cores for everybody (default: all, {cores})")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the work runs")
    parser.add_argument("--peers", help="comma-separated peers to keep, such as jax_scan,numba_loop (default: all)")
    parser.add_argument("--data-dir", help="where MNIST's IDX files are (default: PYAR_DATA, else enlarged digits)")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds of repetitions a case and contender")
    parser.add_argument("--only", default="", help="keep the cases whose description contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the JSON written")
    parser.add_argument("--compare", type=Path, help="earlier results (JSON file or folder) to compare with")
    parser.add_argument("--results", type=Path, default=COMMITTED, help="report: folder of the JSON to read")
    parser.add_argument("--write", type=Path, help="report: the file whose marked section becomes the tables")
    parser.add_argument("--plots", type=Path, help="report: folder for the plots")
    parser.add_argument("--update", action="store_true", help="guard: store the counts of this build")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= cores:
        parser.error(f"--threads must be 1 to {cores}, the cores this process may use, got {options.threads}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    # Before anything imports a library that reads them; the contenders' processes inherit them.
    from benchmarks.worker import set_thread_variables

    set_thread_variables(options.threads)
    status = 0
    tables = [job for job in options.jobs if job in ("nade", "lstm", "sweep")]
    if tables:
        from benchmarks.tables import run_tables

        status = run_tables(tables, options)
    if "report" in options.jobs:
        from benchmarks.report import write_report

        write_report(options.results, options.write, options.plots)
    if "guard" in options.jobs:
        from benchmarks.guard import run_guard

        status = max(status, run_guard(options.update))
    return status


if __name__ == "__main__":
    sys.exit(main())
