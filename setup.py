"""Compiles pyar._C: the portable sources once, the CPU kernels once per instruction-set level, CUDA where it can be.

Every source below csrc/ is compiled, by its name alone: `*_kernel.cpp` once per level, `*.cu` by nvcc, other `*.cpp`
once. ninja, where it is installed, compiles only what has changed, several sources at once; without it the
build is slower.

Environment variables:
  CXX                  the C++ compiler, with options or a launcher if need be: "ccache g++" (default: g++)
  MAX_JOBS             how many compilers run at once (default: as many as there are processors)
  PYAR_CUDA            1 demands the CUDA build, 0 forbids it; unset builds it where torch has CUDA and nvcc is found
  PYAR_CUDA_ARCH_LIST  the GPU architectures, such as "8.0;9.0" (default: all of 8.0, 9.0, 10.0, 12.0 that nvcc knows)
  PYAR_CUDA_STRICT     1 makes nvcc's warnings errors and prints every kernel's registers, spills and shared memory
  PYAR_SANITIZE        1 builds with AddressSanitizer and UndefinedBehaviorSanitizer
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))
from build_backend import TORCH_REQUIREMENT, Torch, check_tool, fail, find_torch, say  # noqa: E402

# One build serves every torch from this release on: https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html
STABLE_ABI_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
X86_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    # GCC sees false "used uninitialized" in its own AVX-512 headers.
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
}
CUDA_ARCHS = ("8.0", "9.0", "10.0", "12.0")
# What a compiler says when the fault is not in the sources: the reason and the remedy in our words.
KNOWN_FAILURES = {
    r"No space left on device": ("the disk is full", "free some space, or set TMPDIR to a folder on another disk"),
    r"Read-only file system|Permission denied": ("a folder cannot be written", "build in a folder of your own"),
    r"Killed|Cannot allocate memory|out of memory": ("the memory ran out", "set MAX_JOBS=1"),
    r"Python\.h: No such file": ("Python's headers are missing", "install them (Debian: apt-get install python3-dev)"),
    r"(unrecognized|invalid|unknown).*std=c\+\+20": ("the compiler has no C++20", "set CXX to g++ 11 or newer"),
}


class Job(NamedTuple):
    source: Path
    target: Path
    command: list[str]


def compiler() -> list[str]:
    """CXX, which may have options or a launcher, or be one path with spaces."""
    wanted = os.environ.get("CXX", "").strip() or "g++"
    try:
        command = [wanted] if shutil.which(wanted) else shlex.split(wanted)
    except ValueError as error:
        fail(f"CXX={wanted} is no command ({error})", "quote it as a shell would, or unset it")
    if shutil.which(command[0]) is None:
        remedy = "install g++ (Debian, Ubuntu: apt-get install g++) or set CXX"
        fail(f"the C++ compiler {command[0]} was not found", remedy)
    return command


def max_jobs() -> int:
    wanted = os.environ.get("MAX_JOBS", "").strip()
    if not wanted:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not re.fullmatch(r"[0-9]+", wanted) or int(wanted) == 0:
        fail(f"MAX_JOBS must be a whole number of at least 1, got '{wanted}'", "unset it to use all processors")
    return int(wanted)


def installed_torch() -> Torch:
    torch = find_torch()
    if torch is None:
        fail("torch is not installed", f'install it first, pip install "{TORCH_REQUIREMENT}", or let pip build pyar')
    if torch.is_too_old:
        fail(f"torch {torch.version} is too old", f'pyar needs pip install "{TORCH_REQUIREMENT}"')
    return torch


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (Path(home or "/usr/local/cuda", "bin", "nvcc"), shutil.which("nvcc")):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    return None


def decide_cuda(torch: Torch, nvcc: Path | None) -> bool:
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
        say(f"CPU only: no nvcc found (torch {torch.version}, CUDA {torch.cuda or 'none'})")
        return False
    if torch.cuda is None and wanted != "1":
        say(f"CPU only: torch {torch.version} is built without CUDA; PYAR_CUDA=1 compiles the kernels anyway")
        return False
    say(f"CPU and CUDA: {nvcc}, torch {torch.version} with CUDA {torch.cuda or 'none'}")
    return True


def cuda_architectures(nvcc: Path) -> list[str]:
    listed = os.environ.get("PYAR_CUDA_ARCH_LIST", "").strip()
    asked = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if asked.returncode != 0:
        fail(f"{nvcc} does not run: {asked.stderr.strip()}", "mend the CUDA toolkit, or build with PYAR_CUDA=0")
    known = re.findall(r"compute_(\d+)", asked.stdout)
    if not listed:
        return [arch for arch in CUDA_ARCHS if arch.replace(".", "") in known]
    archs = re.split(r"[;, ]+", listed)
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d", arch) or arch.replace(".", "") not in known:
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


def nvcc_command(nvcc: Path, archs: list[str]) -> list[str]:
    numbers = [arch.replace(".", "") for arch in archs]
    generate = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    generate.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    # --fmad=false as -ffp-contract=off: every fused multiply-add is written so.
    command = [str(nvcc), "-std=c++20", "-O3", "-lineinfo", "--fmad=false", STABLE_ABI_TARGET]
    command += ["-DPYAR_CUDA", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2", *generate]
    if os.environ.get("PYAR_CUDA_STRICT") == "1":
        command += ["-Xcompiler", "-Wall,-Wextra,-Werror", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"]
    return command


def execute(command: list[str]) -> str:
    """Runs a command of the build and returns what it said, or ends the build with the reason."""
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="surrogateescape"
    )
    if result.returncode == 0:
        return result.stdout
    say(f"{result.stdout}\n{shlex.join(command)}")
    for pattern, (reason, remedy) in KNOWN_FAILURES.items():
        if re.search(pattern, result.stdout):
            fail(reason, remedy)
    fail(f"the command above ended with {result.returncode}", "its messages stand above it")


def ninja_file(jobs: list[Job], folder: Path) -> str:
    """The jobs for ninja: each is done again when its command, its source or a header that it read has changed."""

    def escape(text: str, special: str = r"[$ :]") -> str:
        return re.sub(special, r"$\g<0>", text)

    rules = f"builddir = {escape(str(folder), '[$]')}\n"  # for what ninja remembers
    rules += "rule compile\n  command = $compile\n  description = $in\n  depfile = $out.d\n  deps = gcc\n"
    for job in jobs:
        command = shlex.join([*job.command, "-MD", "-MF", f"{job.target}.d"])
        rules += f"build {escape(str(job.target))}: compile {escape(str(job.source))}\n"
        rules += f"  compile = {escape(command, '[$]')}\n"
    return rules


def compile_all(jobs: list[Job], folder: Path) -> None:
    ninja = shutil.which("ninja")
    if ninja is None:
        say("no ninja, so all sources are compiled, one after the other; pip install ninja makes it faster")
        for job in jobs:
            print(execute(job.command), end="", flush=True)
        return
    rules = folder / "build.ninja"
    rules.write_text(ninja_file(jobs, folder), errors="surrogateescape")
    print(execute([ninja, "-f", str(rules), "-j", str(max_jobs())]), end="", flush=True)


class BuildExtension(build_ext):
    def run(self) -> None:
        compiler()  # setuptools reads CXX too, and fails without a word on it
        super().run()

    def build_extension(self, extension: Extension) -> None:
        check_tool("pybind11")
        import pybind11

        if platform.system() != "Linux":
            say(f"{platform.system()} has not been tried; the build goes on with Linux settings")
        torch = installed_torch()
        cxx = compiler()
        nvcc = find_nvcc()
        archs = cuda_architectures(nvcc) if decide_cuda(torch, nvcc) else []
        if archs:
            say(f"GPU architectures: {', '.join(archs)}, and PTX of the last for newer ones")
        levels = X86_LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}
        say(f"CPU levels: {', '.join(levels)}; {shlex.join(cxx)}; stable ABI target 2.10")

        sanitize = os.environ.get("PYAR_SANITIZE") == "1"
        debug_flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"] if sanitize else []
        # Every multiply-add that is meant to be fused is written so: results must not depend on where code was inlined.
        optimise = "-O1" if sanitize else "-O3"  # checked code compiles three times as fast at -O1
        flags = ["-std=c++20", optimise, "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", *debug_flags]
        flags += ["-Wall", "-Wextra", "-Werror=return-type", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
        cuda_macros = ["-DPYAR_CUDA", f'-DPYAR_CUDA_ARCHS="{" ".join(archs)}"'] if archs else []
        headers = torch.folder / "include"
        folders = [headers, headers / "torch" / "csrc" / "api" / "include", pybind11.get_include(), *self.include_dirs]
        includes = [part for folder in folders for part in ("-isystem", str(folder))]

        build = Path(self.build_temp).resolve()
        if self.force:
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        jobs: list[Job] = []

        def add(source: Path, command: list[str], suffix: str = "") -> None:
            target = build / f"{'-'.join(source.with_suffix('').parts)}{suffix}.o"
            jobs.append(Job(source, target, [*command, "-c", str(source), "-o", str(target)]))

        for source in map(Path, extension.sources):
            if source.suffix == ".cu":
                if archs:
                    add(source, [*nvcc_command(nvcc, archs), f"-I{ROOT / 'csrc'}", *includes])
            elif source.stem.endswith("_kernel"):
                for level, level_flags in levels.items():
                    add(source, [*cxx, *flags, *level_flags, f"-DPYAR_LEVEL={level}"], f"-{level}")
            else:
                add(source, [*cxx, *flags, STABLE_ABI_TARGET, *cuda_macros, *includes])
        compile_all(jobs, build)

        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        # torch's libraries lie beside this package, unless torch was imported before and they are loaded already.
        link = [*cxx, "-shared", *debug_flags, *(str(job.target) for job in jobs), f"-L{torch.folder / 'lib'}"]
        link += ["-ltorch_cpu", "-lc10", "-Wl,-rpath,$ORIGIN/../torch/lib", *([] if sanitize else ["-s"])]
        if archs:
            link += [f"-L{cuda_runtime_folder(nvcc)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        try:
            execute([*link, "-o", str(part)])
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        say(f"built {target.name}: CPU {', '.join(levels)}; CUDA {', '.join(archs) or 'no'}")


# From the top down, so that module.cpp, which takes longest, is not the last to start.
found = [path.relative_to(ROOT) for pattern in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(pattern)]
sources = [str(path) for path in sorted(found, key=lambda path: (len(path.parts), path))]
setup(ext_modules=[Extension("pyar._C", sources)], cmdclass={"build_ext": BuildExtension})
