"""Compiles and links every CUDA source, warnings as errors, and fails if a kernel spills registers to memory.

Needs nvcc but no GPU, and any build of torch. Prints, for each kernel and architecture, the registers of a thread, the
bytes spilled, the stack and the shared memory that is known at compile time (most of these kernels ask for theirs at
launch), then loads the extension and looks whether its CUDA kernels have registered.

    python tools/check_cuda.py            # the architectures that a release is built for
    python tools/check_cuda.py 9.0        # these alone
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Kernel(NamedTuple):
    """What ptxas tells of one kernel for one architecture; sizes in bytes."""

    name: str
    architecture: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def parse_ptxas(output: str) -> list[Kernel]:
    """The kernels in the output of `ptxas -v`."""
    kernels = []
    entries = re.split(r"^ptxas info\s+: Compiling entry function ", output, flags=re.MULTILINE)[1:]
    for entry in entries:
        head = re.match(r"'(\S+)' for '(\S+)'", entry)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        used = re.search(r"Used (\d+) registers(.*)", entry)
        if head is None or frame is None or used is None:
            raise ValueError(f"ptxas wrote something new:\n{entry}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        stack, stores, loads = map(int, frame.groups())
        kernels.append(Kernel(head[1], head[2], int(used[1]), stores, loads, stack, int(shared[1]) if shared else 0))
    return kernels


def demangle(names: list[str]) -> list[str]:
    """C++ names as people read them, where c++filt is there."""
    if shutil.which("c++filt") is None:
        return names
    shown = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [name.replace("void ", "").replace("pyar::cuda::", "") for name in shown.splitlines()]


def registered_operations() -> list[str]:
    """The operations for which the CUDA sources register a kernel, in their own words."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    return [name for source in sources for name in re.findall(r'm\.impl\("(\w+)"', source.read_text())]


def main() -> int:
    environment = {**os.environ, "PYAR_CUDA": "1", "PYAR_CUDA_STRICT": "1"}
    if len(sys.argv) > 1:
        environment["PYAR_CUDA_ARCH_LIST"] = ";".join(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "build_ext", "--build-temp", f"{folder}/temp", "--build-lib", folder]
        build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if build.returncode != 0:
            print(build.stdout + build.stderr)
            return build.returncode
        kernels = parse_ptxas(build.stdout)
        names = demangle([kernel.name for kernel in kernels])
        rows = sorted((kernel.architecture, name, kernel) for name, kernel in zip(names, kernels, strict=True))
        print(f"{'kernel':60s} {'arch':>8s} {'registers':>9s} {'spilled':>8s} {'stack':>6s} {'shared':>6s}")
        for architecture, name, kernel in rows:
            spilled = kernel.spill_stores + kernel.spill_loads
            print(
                f"{name:60s} {architecture:>8s} {kernel.registers:9d} {spilled:8d} {kernel.stack:6d} {kernel.shared:6d}"
            )
        spilling = [name for _, name, kernel in rows if kernel.spill_stores + kernel.spill_loads > 0]
        if not kernels or spilling:
            print(f"spills registers: {', '.join(spilling)}" if kernels else "no kernel was compiled")
            return 1

        extension = next(Path(folder, "pyar").glob("_C*.so"))
        look = (
            "import sys, torch; torch.ops.load_library(sys.argv[1]); "
            "missing = [o for o in sys.argv[2:] "
            "if not torch._C._dispatch_has_kernel_for_dispatch_key(f'pyar::{o}', 'CUDA')]; "
            "sys.exit(f'no CUDA kernel registered for {missing}' if missing else 0)"
        )
        loaded = subprocess.run([sys.executable, "-c", look, str(extension), *registered_operations()], cwd=folder)
        if loaded.returncode == 0:
            print(f"{len(kernels)} kernels compiled, linked, loaded and registered; none spills; none was run")
        return loaded.returncode


if __name__ == "__main__":
    sys.exit(main())
