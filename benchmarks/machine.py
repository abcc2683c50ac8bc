"""What this machine can do at most, and what it is: the floors that times are compared with, and the environment."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.cases import ACTIVE, Case
from pyar import build_info
from pyar.native import _C

MEGABYTE = 1 << 20
# Fine enough that two neighbours seldom lie in different caches. Every thread streams its own part of these.
STREAM_SIZES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 256)
PACKAGES = ("torch", "jax", "jaxlib", "numba", "numpy")


@dataclass(frozen=True)
class Machine:
    """threads · peak: single-precision operations per second · bandwidth: {megabytes streamed: bytes per second}."""

    threads: int
    peak: float
    bandwidth: dict[float, float]

    def floor_seconds(self, case: Case, changing_share: float) -> float:
        """No program that does this work in this way can take less: the multiply-adds at the peak, or reading the
        parameters, whichever is longer."""
        arithmetic = 2 * multiply_adds(case, changing_share) / self.peak
        passes, size = parameter_stream(case, changing_share)
        return max(arithmetic, passes * self.stream_seconds(size))

    def stream_seconds(self, size: float) -> float:
        """The least time to read `size` bytes again and again. Never slower than any larger stream was measured, and a
        program may keep a part of any size in nearer caches, and read only the rest at the rate of the whole."""
        inside = [megabytes for megabytes in self.bandwidth if megabytes * MEGABYTE <= size] or [min(self.bandwidth)]
        rate = {n: max(r for megabytes, r in self.bandwidth.items() if megabytes >= n) for n in inside}
        far = rate[max(inside)]
        kept = {n: min(n * MEGABYTE, size) for n in inside}
        return min(kept[n] / rate[n] + (size - kept[n]) / far for n in inside)

    def best_of(self, other: Machine) -> Machine:
        """The higher of both readings of every limit: whatever else ran can only have lowered one."""
        bandwidth = {size: max(rate, other.bandwidth[size]) for size, rate in self.bandwidth.items()}
        return Machine(self.threads, max(self.peak, other.peak), bandwidth)

    def to_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "multiply_add_peak_gflops": round(self.peak / 1e9, 1),
            "load_bandwidth_gbytes": {str(size): round(rate / 1e9, 1) for size, rate in self.bandwidth.items()},
        }


def measure_machine(threads: int, seconds: float = 0.06) -> Machine:
    """The best of several short readings: whatever else runs can only lower one."""
    if _C is None:
        raise SystemExit("benchmarks need pyar's native extension: build it with `pip install -e .`")
    peak = max(_C.multiply_add_peak(threads, seconds) for _ in range(8))
    bandwidth = {
        size: max(_C.load_bandwidth(threads, seconds / 2, int(size * MEGABYTE)) for _ in range(4))
        for size in STREAM_SIZES
    }
    return Machine(threads, peak, bandwidth)


def multiply_adds(case: Case, changing_share: float) -> float:
    """Multiply-adds (or what occupies the same pipe for as long) that the job needs.

    NADE, for each of the B·D·H hidden values: one for each of the P outputs; where the state is not 0 (a share ρ) also
    three for the new activation and the cheapest exact sigmoid. The gradient doubles back through the outputs, 2P more,
    and ρ·2 through the sigmoid and into W. PixelLSTM: 4H² a layer (8H² from the second on) and K·H for the
    output, for each of B·D; three times that with gradients. The input of the first layer is a row of a table.
    MADE: half of every layer is masked, so half of what dense layers take; three times that with gradients. DeepNADE:
    for each of B·D, H for a row of the first layer's table, H² for the active units alone of a further one, H a output.
    """
    if case.model == "made":
        each = (case.D * (case.K - 1 + case.outputs) * case.H + (case.num_layers - 1) * case.H**2) / 2
        return each * case.B * (3 if case.task == "gradient" else 1)
    if case.model == "deep-nade":
        each = (1 + case.outputs) * case.H + (case.num_layers - 1) * ACTIVE[case.data] * case.H**2
        return each * case.B * case.D
    if case.model == "nade":
        each = case.outputs + 3 * changing_share
        if case.task == "gradient":
            each += 2 * case.outputs + 2 * changing_share
        return each * case.B * case.D * case.H
    each = 4 * case.H**2 * (1 + 2 * (case.num_layers - 1)) + case.K * case.H
    return each * case.B * case.D * (3 if case.task == "gradient" else 1)


def parameter_stream(case: Case, changing_share: float) -> tuple[int, float]:
    """(how often, how many bytes of) parameters must be read: NADE's once, but of W only rows that states select; an
    LSTM's recurrent matrices once a step; MADE's, half of them masked, and DeepNADE's once, but once a step where a
    DeepNADE samples, of the further layers those of the active units."""
    if case.model == "made":
        return 1, 2 * (case.D * (case.K - 1 + case.outputs) * case.H + (case.num_layers - 1) * case.H**2)
    if case.model == "deep-nade":
        layers = 4 * (case.num_layers - 1) * case.H**2
        if case.task == "sample":
            return case.D, int(ACTIVE[case.data] * layers) + 4 * (1 + case.outputs) * case.H
        return 1, layers + 4 * case.D * (1 + case.outputs) * case.H
    if case.model == "nade":
        rows = min(case.K - 1, case.B * changing_share)
        return 1, 4 * case.D * case.H * (case.outputs + rows)
    return case.D, 4 * (4 * case.H**2 * (1 + 2 * (case.num_layers - 1)) + case.K * case.H)


def describe_environment(limit: str | None = None) -> dict[str, Any]:
    """Processor, software and commit: what a result means nothing without. `limit`: what --level keeps everybody to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    info = build_info()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "level": info.get("cpu_level"),
        "level_limit": limit,
        "compiler": info.get("compiler"),
        "commit": commit(),
    }


def describe_level(environment: dict[str, Any]) -> str:
    """The instruction set in use, and whether everybody was kept to it."""
    return environment["level"] + (", to which everybody was limited" if environment.get("level_limit") else "")


def processor_name() -> str:
    """The model name, with family and model number where the name alone says little."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def commit() -> str | None:
    """The commit of this source tree, with + where files differ from it; None outside a git checkout."""
    root = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        if head.returncode != 0:
            return None
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", "csrc", "pyar", "setup.py"]
        changed = subprocess.run(status, cwd=root, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git
        return None
    return head.stdout.strip() + ("+" if changed else "")
