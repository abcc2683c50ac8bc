"""The CUDA sources compiled for a CPU (see cuda_runtime.h), as torch.ops.pyar_emulated on CPU tensors."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


def load(folder: Path) -> None:
    """Compiles into the folder what has changed since the last time, and registers the operations."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("the CUDA emulator needs g++")
    flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-march=native", "-ffp-contract=off"]
    flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-clobbered"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPYAR_EMULATED", "-DPYAR_DISPATCH_KEY=CPU"]
    flags += ["-Dpyar=pyar_emulated", f"-I{HERE}", f"-I{SOURCES}"]
    flags += [part for path in cpp_extension.include_paths() for part in ("-isystem", path)]
    headers = [*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cuh"), HERE / "cuda_runtime.h", Path(__file__)]
    common = hashlib.sha256(b"".join(path.read_bytes() for path in headers))
    common.update(torch.__version__.encode())
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in [*sorted((SOURCES / "cuda").rglob("*.cu")), SOURCES / "library.cpp", HERE / "faulty.cu"]:
        digest = common.copy()
        digest.update(source.read_bytes())
        target = folder / f"{source.parent.name}-{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            subprocess.run([compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
        objects.append(target)
    name = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
    library = folder / f"emulated-{name}.so"
    if not library.exists():
        torch_lib = Path(torch.__file__).parent / "lib"
        link = [compiler, "-shared", *map(str, objects), f"-L{torch_lib}", "-ltorch_cpu", "-lc10", "-o", str(library)]
        subprocess.run(link, check=True)
    torch.ops.load_library(str(library))
