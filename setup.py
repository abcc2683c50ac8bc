"""Compiles pyar._C: the portable sources once, the CPU kernels once per instruction-set level, CUDA where it can be.

Environment variables:
  PYAR_CUDA            1 demands the CUDA build, 0 forbids it; unset builds it where torch has CUDA and nvcc is found
  PYAR_CUDA_ARCH_LIST  the GPU architectures, such as "8.0;9.0" (default: all of 8.0, 9.0, 10.0, 12.0 that nvcc knows)
  PYAR_CUDA_STRICT     1 makes nvcc's warnings errors and prints every kernel's registers, spills and shared memory
  PYAR_SANITIZE        1 builds with AddressSanitizer and UndefinedBehaviorSanitizer
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# One build serves every torch from this release on: https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html
STABLE_ABI_TARGET = "0x020a000000000000"
X86_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    # GCC 12 sees a false "may be used uninitialized" in its own AVX-512 header.
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
        *("-mprefer-vector-width=512", "-Wno-maybe-uninitialized"),
    ],
}
CUDA_ARCHS = ("8.0", "9.0", "10.0", "12.0")


def say(message: str) -> None:
    print(f"pyar build: {message}", flush=True)


def fail(reason: str, remedy: str) -> None:
    sys.exit(f"pyar build: {reason}\n            {remedy}")


def import_torch():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        fail(
            f"torch cannot be imported ({error})",
            'install it first, pip install "torch>=2.10,<2.14", or build without --no-build-isolation',
        )
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < (2, 10):
        fail(f"torch {torch.__version__} is too old", 'pyar needs pip install "torch>=2.10,<2.14"')
    return torch, cpp_extension


def find_nvcc(cpp_extension) -> Path | None:
    home = cpp_extension.CUDA_HOME
    for candidate in (Path(home, "bin", "nvcc") if home else None, shutil.which("nvcc")):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    return None


def decide_cuda(torch, nvcc: Path | None) -> bool:
    """Whether to build the CUDA kernels: from torch's own CUDA version and nvcc, never from a visible GPU."""
    wanted = os.environ.get("PYAR_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"PYAR_CUDA must be 0, 1 or unset, got '{wanted}'", "unset it to let the build decide")
    if wanted == "0":
        say("CPU only: PYAR_CUDA=0")
        return False
    if nvcc is None:
        if wanted == "1":
            fail("PYAR_CUDA=1, but nvcc was not found", "install the CUDA toolkit and set CUDA_HOME or PATH")
        say(f"CPU only: no nvcc found (torch {torch.__version__}, CUDA {torch.version.cuda or 'none'})")
        return False
    if torch.version.cuda is None and wanted != "1":
        say(f"CPU only: torch {torch.__version__} is built without CUDA; PYAR_CUDA=1 compiles the kernels anyway")
        return False
    say(f"CPU and CUDA: {nvcc}, torch {torch.__version__} with CUDA {torch.version.cuda or 'none'}")
    return True


def cuda_architectures(nvcc: Path) -> list[str]:
    listed = os.environ.get("PYAR_CUDA_ARCH_LIST")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    if listed is None:
        return [arch for arch in CUDA_ARCHS if f"compute_{arch.replace('.', '')}\n" in known]
    archs = re.split(r"[;, ]+", listed.strip())
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d", arch) or f"compute_{arch.replace('.', '')}\n" not in known:
            fail(f"PYAR_CUDA_ARCH_LIST has '{arch}', which {nvcc} does not know", 'give numbers such as "8.0;9.0"')
    return archs


def cuda_runtime_folder(nvcc: Path) -> Path:
    """Where the toolkit of this nvcc, which may be a link or a wrapper, keeps its static runtime library."""
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    roots = [Path(found).resolve() for found in re.findall(r"^#\$ TOP=(.+)$", told, re.MULTILINE)]
    for root in [*roots, nvcc.resolve().parent.parent]:
        for folder in (root / "lib64", root / "lib", root / "targets" / f"{platform.machine()}-linux" / "lib"):
            if (folder / "libcudart_static.a").exists():
                return folder
    fail(f"libcudart_static.a was not found in the toolkit of {nvcc}", "install the CUDA runtime's development files")


class BuildExtension(build_ext):
    def build_extension(self, extension: Extension) -> None:
        torch, cpp_extension = import_torch()
        import pybind11

        includes = [*cpp_extension.include_paths(), pybind11.get_include()]
        if platform.system() != "Linux":
            say(f"{platform.system()} has not been tried; the build goes on with Linux settings")
        sanitize = os.environ.get("PYAR_SANITIZE") == "1"
        debug_flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"] if sanitize else []
        flags = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type"]
        # Every multiply-add that is meant to be fused is written so: results must not depend on where code was inlined.
        flags += ["-ffp-contract=off", "-Wno-psabi", *debug_flags]
        macros = [f"-DTORCH_TARGET_VERSION={STABLE_ABI_TARGET}"]
        levels = X86_LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}

        cxx = os.environ.get("CXX", "g++")
        if shutil.which(cxx) is None:
            fail(
                f"the C++ compiler {cxx} was not found", "install g++ (Debian, Ubuntu: apt-get install g++) or set CXX"
            )
        include_flags = [part for directory in [*includes, *self.include_dirs] for part in ("-isystem", directory)]

        cuda_macro = []
        nvcc = find_nvcc(cpp_extension)
        archs: list[str] = []
        if decide_cuda(torch, nvcc):
            archs = cuda_architectures(nvcc)
            say(f"GPU architectures: {', '.join(archs)}, and PTX of the last for newer ones")
            cuda_macro = ["-DPYAR_CUDA", f'-DPYAR_CUDA_ARCHS="{" ".join(archs)}"']
        say(f"CPU levels: {', '.join(levels)}; {cxx}; stable ABI target 2.10")

        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        jobs: list[tuple[Path, list[str]]] = []
        for source in map(Path, extension.sources):
            stem = str(source.with_suffix("")).replace(os.sep, "-")
            if source.suffix == ".cu":
                if archs:
                    jobs.append(self.cuda_job(nvcc, source, build / f"{stem}.o", archs, includes + self.include_dirs))
            elif source.stem.endswith("_kernel"):
                for level, level_flags in levels.items():
                    target = build / f"{stem}-{level}.o"
                    command = [cxx, *flags, *level_flags, f"-DPYAR_LEVEL={level}", f"-I{ROOT / 'csrc'}"]
                    jobs.append((target, [*command, "-c", str(source), "-o", str(target)]))
            else:
                target = build / f"{stem}.o"
                command = [cxx, *flags, *macros, *cuda_macro, f"-I{ROOT / 'csrc'}", *include_flags]
                jobs.append((target, [*command, "-c", str(source), "-o", str(target)]))
        self.compile_all(jobs)

        libraries = [str(Path(torch.__file__).parent / "lib")]
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = [cxx, "-shared", *debug_flags, *(str(job[0]) for job in jobs), *(f"-L{path}" for path in libraries)]
        link += ["-ltorch_cpu", "-lc10"]
        if archs:
            link += [f"-L{cuda_runtime_folder(nvcc)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        self.execute([*link, "-o", str(target)])
        if not sanitize:
            subprocess.run(["strip", "--strip-unneeded", str(target)], check=False)
        say(f"built {target.name}: CPU {', '.join(levels)}; CUDA {', '.join(archs) or 'no'}")

    def cuda_job(self, nvcc: Path, source: Path, target: Path, archs: list[str], includes: list[str]):
        numbers = [arch.replace(".", "") for arch in archs]
        generate = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
        generate.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
        # --fmad=false as -ffp-contract=off: every fused multiply-add is written so.
        command = [str(nvcc), "-std=c++20", "-O3", "-lineinfo", "--fmad=false"]
        command += [f"-DTORCH_TARGET_VERSION={STABLE_ABI_TARGET}", "-DPYAR_CUDA", "-DUSE_CUDA"]
        command += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
        if os.environ.get("PYAR_CUDA_STRICT") == "1":
            command += ["-Xcompiler", "-Wall,-Wextra,-Werror", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"]
        command += ["--threads", "2", *generate, f"-I{ROOT / 'csrc'}"]
        command += [part for directory in includes for part in ("-isystem", directory)]
        return target, [*command, "-c", str(source), "-o", str(target)]

    def compile_all(self, jobs: list[tuple[Path, list[str]]]) -> None:
        workers = int(os.environ.get("MAX_JOBS", 0)) or min(len(jobs), os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(self.execute, [command for target, command in jobs if self.is_stale(target, command)]))

    def is_stale(self, target: Path, command: list[str]) -> bool:
        """Whether an object must be compiled: it is missing, or its source, a header or this file is newer."""
        if self.force or not target.exists():
            return True
        headers = [path for pattern in ("*.h", "*.cuh") for path in (ROOT / "csrc").rglob(pattern)]
        inputs = [ROOT / command[command.index("-c") + 1], ROOT / "setup.py", *headers]
        return target.stat().st_mtime < max(path.stat().st_mtime for path in inputs)

    def execute(self, command: list[str]) -> None:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.stderr.strip():
            print(result.stderr, file=sys.stderr, flush=True)
        if result.returncode != 0:
            print(" ".join(command), file=sys.stderr)
            fail(f"the command above ended with {result.returncode}", "its messages stand above it")


sources = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(pattern)
)
setup(ext_modules=[Extension("pyar._C", sources)], cmdclass={"build_ext": BuildExtension})
