"""How fast pyar is on this machine, beside what one would use instead.

jobs:
  nade lstm made deep-nade
              the tables: pyar and every peer on the same work; each result is checked before its time is printed
  sweep       how pyar's time grows with the batch size B, the dimensions D, the hidden units H, the states K and the
              threads; its memory, import time and install time
  per-sample  gradients of every example, as torch.func gives them, beside a loop of single gradients
  images      image models: PixelCNN, Row LSTM and Diagonal BiLSTM, beside JAX, batched PyTorch operations, the plain
              form and a loop over pixels
  rnade       log-densities, gradients and samples of an RNADE, beside an eager loop, torch's operations on all
              dimensions at once, JAX's scan and numba
  table-nade  TableNADE on three tables, beside PyTorch's loop over columns, stacked prefixes and a pass a column
  physics     the step of variational Monte Carlo on spins, beside a PyTorch MADE of equal parameters
  neighbours  how much longer pyar, torch's own layers and JAX take beside one busy process and beside two; needs Linux,
              and a machine that is quiet otherwise
  report      the site's page of benchmarks, the README's table, and plots, from stored results
  guard       has a change made pyar slower? counts instructions and compares with stored counts; needs valgrind

examples:
  python -m benchmarks nade lstm                                 minutes; writes runs/benchmarks/{nade,lstm}.json
  python -m benchmarks nade --only "sample, B=100," --peers jax_scan   a few cases, one peer
  python -m benchmarks nade lstm --compare benchmarks/results    is it faster or slower than the committed results?
  python -m benchmarks nade lstm --level avx2 --out runs/avx2    as on a processor that has AVX2 and no AVX-512
  python -m benchmarks report --results runs/benchmarks          prints the tables of your own results
  python -m benchmarks neighbours --only "pyar: NADE"            minutes; the rest of neighbours.json stays
  python -m benchmarks images --only "Diagonal BiLSTM"           likewise of images.json
  python -m benchmarks guard                                     exits with 1 if an operation takes more instructions

Peers that are not installed are reported as missing: pip install -e ".[bench]" installs them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

TABLES = ("nade", "lstm", "made", "deep-nade", "sweep")
COMMITTED = Path(__file__).parent / "results"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    from benchmarks.limits import LEVEL_VARIABLES
    from benchmarks.peers import CONTENDERS

    peers = [module.split(".")[-1] for module in list(CONTENDERS)[1:]]
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "jobs",
        nargs="+",
        choices=(*TABLES, "per-sample", "images", "rnade", "table-nade", "physics", "neighbours", "report", "guard"),
        metavar="job",
        help="one or more",
    )
    cores = len(os.sched_getaffinity(0))
    measuring = parser.add_argument_group(
        "measuring: nade, lstm, made, deep-nade, sweep, images, rnade, table-nade, physics, neighbours"
    )
    measuring.add_argument("--threads", type=int, default=cores, help=f"cores for everybody (default: all, {cores})")
    measuring.add_argument(
        "--level",
        choices=LEVEL_VARIABLES,
        help="keep everybody to these instructions, as on a processor without AVX-512 (default: what there is)",
    )
    measuring.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the work runs (default: cpu)"
    )
    measuring.add_argument(
        "--peers", metavar="NAME,…", help=f"keep only these peers, of {', '.join(peers)} (default: all)"
    )
    measuring.add_argument(
        "--only", default="", metavar="TEXT", help='keep the cases whose printed name contains this, as "sample, B=1,"'
    )
    measuring.add_argument(
        "--budget", type=float, default=1.5, metavar="SECONDS", help="how long each contender repeats each case (1.5)"
    )
    measuring.add_argument(
        "--data-dir", metavar="DIR", help="where MNIST's IDX files are (default: PYAR_DATA, else enlarged 8×8 digits)"
    )
    measuring.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="where JOB.json goes (runs/benchmarks)"
    )
    measuring.add_argument(
        "--compare", type=Path, metavar="PATH", help="earlier results, a JSON file or a folder, to compare with"
    )
    reporting = parser.add_argument_group("report")
    reporting.add_argument(
        "--results", type=Path, default=COMMITTED, metavar="DIR", help="the JSON to read (default: benchmarks/results)"
    )
    reporting.add_argument(
        "--write", type=Path, metavar="FILE", help="put the section between this file's marks instead of printing it"
    )
    reporting.add_argument(
        "--summary", type=Path, metavar="FILE", help="put the short table of the README between this file's marks"
    )
    reporting.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots there")
    guarding = parser.add_argument_group("guard")
    guarding.add_argument("--update", action="store_true", help="store the counts of this build instead of comparing")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= cores:
        parser.error(f"--threads must be 1 to {cores}, the cores this process may use, got {options.threads}")
    unknown = set(options.peers.split(",")) - set(peers) if options.peers else set()
    if unknown:
        parser.error(f"--peers must name some of {', '.join(peers)}, got {', '.join(sorted(unknown))}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    from benchmarks.limits import set_variables

    set_variables(options.threads, options.level)
    status = 0
    tables = [job for job in options.jobs if job in TABLES]
    if tables:
        from benchmarks.tables import run_tables

        status = run_tables(tables, options)
    if "per-sample" in options.jobs:
        from benchmarks.per_sample import run_per_sample

        status = run_per_sample(options.threads) or status
    if "table-nade" in options.jobs:
        from benchmarks.table_nade import run_table_nade

        run_table_nade(options)
    if "images" in options.jobs:
        from benchmarks.images import run_images

        run_images(options)
    if "rnade" in options.jobs:
        from benchmarks.rnade import run_rnade

        run_rnade(options)
    if "physics" in options.jobs:
        from benchmarks.physics import run_physics

        run_physics(options)
    if "neighbours" in options.jobs:
        from benchmarks.neighbours import run_neighbours

        status = max(status, run_neighbours(options))
    if "report" in options.jobs:
        from benchmarks.report import write_report
        from pyar.files import write_text

        write_report(options.results, options.write, options.plots)
        if options.summary is not None:
            from benchmarks.summary import write_summary

            picture = None if options.plots is None else options.plots / "summary.png"
            write_text(options.summary, write_summary(options.results, options.summary, picture))
            print(f"wrote the speed table of {options.summary}")
    if "guard" in options.jobs:
        from benchmarks.guard import run_guard

        status = max(status, run_guard(options.update))
    return status


if __name__ == "__main__":
    sys.exit(main())
