"""The build: what is compiled how, which torch it is built against, what it prints, how it says what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from types import ModuleType

import _distutils_hack
import pybind11
import pytest
import setuptools
import torch

ROOT = Path(__file__).parent.parent
LEVELS = ("baseline", "avx2", "avx512") if "x86" in os.uname().machine else ("baseline",)


def run_build(root: Path, tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path / "temp")]
    command += ["--build-lib", str(tmp_path / "lib"), *options]
    environment = {**os.environ, "PYAR_CUDA": "0", **environment}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


def assert_refused(result: subprocess.CompletedProcess, reason: str, remedy: str) -> None:
    assert result.returncode != 0
    assert reason in result.stderr
    assert remedy in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The build's own files with a family of three sources, which nothing else names."""
    root = tmp_path / "project"
    (root / "csrc" / "cpu" / "toy").mkdir(parents=True)
    for name in ("setup.py", "build_backend.py"):
        shutil.copy(ROOT / name, root)
    sources = {
        "module.cpp": "int module_of_one_build;\n",
        "cpu/toy/toy.h": "#define TOY 1\n",
        "cpu/toy/toy.cpp": '#include "cpu/toy/toy.h"\nint toy = TOY;\n',
        "cpu/toy/toy_kernel.cpp": "namespace PYAR_LEVEL { int toy; }\n",
        "cpu/toy/toy.cu": "this is no C++\n",
    }
    for name, text in sources.items():
        (root / "csrc" / name).write_text(text)
    return root


def fake_compiler(tmp_path: Path, body: str) -> Path:
    """A compiler that writes its arguments into compiler.log, then runs the body with its output's name in $out."""
    path = tmp_path / "fake-compiler"
    find_output = 'while [ "$#" -gt 0 ]; do [ "$1" = -o ] && out=$2; [ "$1" = -MF ] && deps=$2; shift; done'
    path.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/compiler.log"\n{find_output}\n{body}\n')
    path.chmod(0o755)
    return path


COMPILES = ': > "$out"; [ -z "$deps" ] || echo "$out:" > "$deps"'


def compiled(tmp_path: Path) -> list[str]:
    """The commands that the fake compiler got, and forgets."""
    log = tmp_path / "compiler.log"
    lines = log.read_text().splitlines()
    log.unlink()
    return lines


@pytest.mark.parametrize("ninja", [True, False], ids=["ninja", "no ninja"])
def test_a_new_family_is_compiled_by_its_names_alone(project, tmp_path, ninja):
    path = os.environ["PATH"] if ninja else str(tmp_path / "nothing")
    result = run_build(project, tmp_path, CXX=str(fake_compiler(tmp_path, COMPILES)), PATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("no ninja" in result.stdout) is not ninja
    *jobs, link = compiled(tmp_path)
    targets = sorted(Path(re.search(r"-o (\S+)", job)[1]).name for job in jobs)
    kernels = [f"csrc-cpu-toy-toy_kernel-{level}.o" for level in LEVELS]
    assert targets == sorted(["csrc-module.o", "csrc-cpu-toy-toy.o", *kernels])
    assert all(f"-DPYAR_LEVEL={level}" in " ".join(jobs) for level in LEVELS)
    assert all(target in link for target in targets)
    assert [path.name for path in (tmp_path / "lib" / "pyar").iterdir()] == [
        f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    ]


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("ninja") is None, reason="needs g++ and ninja")
def test_only_what_has_changed_is_compiled_again(project, tmp_path):
    def sources(result: subprocess.CompletedProcess) -> set[str]:
        assert result.returncode == 0, result.stdout + result.stderr
        return set(re.findall(r"^\[\d+/\d+\] (\S+)", result.stdout, re.MULTILINE))

    everything = {"csrc/module.cpp", "csrc/cpu/toy/toy.cpp", "csrc/cpu/toy/toy_kernel.cpp"}
    assert sources(run_build(project, tmp_path)) == everything
    assert not list(project.rglob("*ninja*"))  # the sources' folder stays clean
    assert sources(run_build(project, tmp_path)) == set()
    time.sleep(0.01)  # ninja compares times
    (project / "csrc/cpu/toy/toy.h").write_text("#define TOY 2\n")
    assert sources(run_build(project, tmp_path)) == {"csrc/cpu/toy/toy.cpp"}
    assert sources(run_build(project, tmp_path, CXX="g++ -g0")) == everything
    assert sources(run_build(project, tmp_path, "--force", CXX="g++ -g0")) == everything


@pytest.mark.parametrize("folder", [b"two words", b"a $name: x", b"caf\xe9"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_folder_may_have_any_name(project, tmp_path, folder):
    place = Path(os.fsdecode(bytes(tmp_path) + b"/" + folder))
    project.rename(place)
    result = run_build(place, place)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((place / "lib" / "pyar").glob("_C*.so"))


@pytest.mark.parametrize("wanted", ["{cxx} -m64", "{launcher} {cxx}", "'{cxx}' -DA='b c'"])
def test_cxx_may_have_options_and_a_launcher(project, tmp_path, wanted):
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\n"$@" -launched\n')
    launcher.chmod(0o755)
    cxx = fake_compiler(tmp_path, COMPILES)
    result = run_build(project, tmp_path, CXX=wanted.format(cxx=cxx, launcher=launcher))
    assert result.returncode == 0, result.stdout + result.stderr
    expected = {"{cxx} -m64": "-m64", "{launcher} {cxx}": "-launched"}.get(wanted, "-DA=b c")
    jobs = compiled(tmp_path)
    assert jobs
    assert all(expected in job for job in jobs)


@pytest.mark.parametrize("environment", [{"CXX": ""}, {"CXX": " "}, {"MAX_JOBS": ""}, {"MAX_JOBS": " 2 "}])
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_an_empty_setting_is_none(project, tmp_path, environment):
    result = run_build(project, tmp_path, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "; g++; " in result.stdout


@pytest.mark.parametrize(
    ("environment", "reason", "remedy"),
    [
        ({"PYAR_CUDA": "yes"}, "PYAR_CUDA must be 0, 1 or unset, got 'yes'", "unset it"),
        ({"CXX": "no-such-compiler -O2"}, "C++ compiler no-such-compiler was not found", "install g++"),
        ({"CXX": "g++ 'open"}, "CXX=g++ 'open is no command", "quote it"),
        ({"MAX_JOBS": "two", "CXX": "true"}, "MAX_JOBS must be a whole number of at least 1, got 'two'", "unset it"),
        ({"MAX_JOBS": "0", "CXX": "true"}, "MAX_JOBS must be a whole number of at least 1, got '0'", "unset it"),
        (
            {"PYAR_CUDA": "1", "PATH": "", "CUDA_HOME": "/nowhere", "CXX": sys.executable},
            "nvcc was not found",
            "install the CUDA toolkit",
        ),
    ],
)
def test_a_build_that_cannot_be_names_the_reason_and_the_remedy(project, tmp_path, environment, reason, remedy):
    assert_refused(run_build(project, tmp_path, **environment), reason, remedy)


@pytest.mark.parametrize("ninja", [True, False], ids=["ninja", "no ninja"])
@pytest.mark.parametrize(
    ("message", "reason", "remedy"),
    [
        ("fatal error: error writing to /tmp/c.s: No space left on device", "the disk is full", "free some space"),
        ("cannot open output file a.o: Read-only file system", "a folder cannot be written", "of your own"),
        ("fatal error: Killed signal terminated program cc1plus", "the memory ran out", "MAX_JOBS=1"),
        ("fatal error: Python.h: No such file or directory", "Python's headers are missing", "python3-dev"),
        ("error: unrecognized command-line option '-std=c++20'", "the compiler has no C++20", "set CXX"),
        ("toy.cpp:1: error: expected ;", "the command above ended with 1", "its messages stand above it"),
    ],
)
def test_a_compiler_that_fails_is_explained(project, tmp_path, message, reason, remedy, ninja):
    cxx = fake_compiler(tmp_path, f"cat >&2 <<'END'\n{message}\nEND\nexit 1" if ninja else f'echo "{message}"; exit 1')
    path = os.environ["PATH"] if ninja else str(tmp_path / "nothing")
    result = run_build(project, tmp_path, CXX=str(cxx), PATH=path, MAX_JOBS="1")
    assert_refused(result, reason, remedy)
    assert message in result.stdout
    assert len(compiled(tmp_path)) == 1  # nothing is compiled after a failure
    assert not list((tmp_path / "lib").rglob("_C*"))


def test_a_folder_that_cannot_be_made_is_one_line(project, tmp_path):
    (tmp_path / "temp").write_text("a file")
    result = run_build(project, tmp_path)
    assert result.returncode != 0
    assert re.fullmatch(r"error: .*temp.*\n", result.stderr)


@pytest.mark.parametrize("ninja", [True, False], ids=["ninja", "no ninja"])
def test_ctrl_c_ends_the_build_in_one_line(project, tmp_path, ninja):
    started = tmp_path / "started"
    body = f': > "{started}"; /bin/sleep 60'
    environment = {**os.environ, "PYAR_CUDA": "0", "MAX_JOBS": "1", "CXX": str(fake_compiler(tmp_path, body))}
    if not ninja:
        environment["PATH"] = str(tmp_path / "nothing")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as build:
        while not started.exists():
            assert build.poll() is None
            time.sleep(0.01)
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does it
        _, error = build.communicate(timeout=30)
    assert build.returncode not in (0, None)
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert len(compiled(tmp_path)) == 1
    assert not list(tmp_path.rglob("_C*"))


# What pip's isolated environment does: packages of its own, and none of the interpreter's.
ISOLATION = """
import site, sys
sys.path = [path for path in sys.path if not path.endswith(("site-packages", "dist-packages", "elsewhere"))]
"""


class Environment:
    """A virtual environment with made-up packages, and pip's isolated build environment beside it."""

    def __init__(self, folder: Path, system_site_packages: bool) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        venv.create(folder / "venv", system_site_packages=system_site_packages, symlinks=True)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.site_packages = folder / "venv" / "lib" / version / "site-packages"
        self.user_site = folder / "user" / "lib" / version / "site-packages"
        self.isolated = folder / "isolated"
        self.isolated.mkdir()
        (self.isolated / "sitecustomize.py").write_text(ISOLATION)

    def add_tool(self, package: ModuleType) -> None:
        folder = Path(package.__file__).parent
        for path in (folder, *folder.parent.glob(f"{package.__name__}-*.dist-info")):
            (self.isolated / path.name).symlink_to(path)
        if package is setuptools:
            self.add_tool(_distutils_hack)

    @staticmethod
    def add_package(folder: Path, name: str, version: str) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"__version__ = '{version}'\n")
        (folder / name / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")

    def run(self, *command: str) -> subprocess.CompletedProcess:
        hidden = {
            "PYTHONPATH": str(self.isolated),
            "PYTHONNOUSERSITE": "1",
            "PYTHONUSERBASE": str(self.folder / "user"),
        }
        environment = {**os.environ, **hidden, "PYAR_CUDA": "0"}
        return subprocess.run([self.python, *command], cwd=ROOT, env=environment, capture_output=True, text=True)

    def requirements(self) -> tuple[list[str], str]:
        """What the backend asks pip for, and what it says."""
        program = "import build_backend as b; print(repr(b.get_requires_for_build_wheel({})))"
        result = self.run("-c", program)
        assert result.returncode == 0, result.stderr
        said, requirements = result.stdout.strip().rsplit("\n", 1)
        return eval(requirements), said


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path, system_site_packages=True)
    made.add_tool(setuptools)
    return made


@pytest.mark.parametrize("place", ["environment", "outside the environment", ".pth file", "build environment"])
def test_the_installed_torch_is_used_wherever_it_lies(environment, place):
    elsewhere = environment.folder / "elsewhere"
    folder = {
        "environment": environment.site_packages,
        "outside the environment": environment.user_site,  # seen with --system-site-packages, as the system's are
        ".pth file": elsewhere,
        "build environment": environment.isolated,
    }[place]
    environment.add_package(folder, "torch", "2.12.1+cpu")
    if place == ".pth file":
        (environment.site_packages / "more.pth").write_text(f"{elsewhere}\n")
    requirements, said = environment.requirements()
    assert [name for name in requirements if name.startswith("torch")] == []
    assert f"building against torch 2.12.1+cpu in {folder / 'torch'}" in said


def test_sources_that_cannot_be_written_are_said_so(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == ROOT and mode == os.W_OK))
    with pytest.raises(SystemExit, match=r"cannot be written\n +copy them"):
        build_backend.get_requires_for_build_wheel({})


def test_torch_is_asked_for_where_there_is_none(environment):
    requirements, said = environment.requirements()
    assert "torch>=2.10" in requirements
    assert "no torch is installed" in said


def test_a_newer_torch_is_asked_for_where_it_is_too_old(environment):
    environment.add_package(environment.site_packages, "torch", "2.9.1")
    requirements, said = environment.requirements()
    assert "torch>=2.10" in requirements
    assert "torch 2.9.1" in said
    assert "too old" in said


def test_this_environments_torch_is_found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    found = build_backend.find_torch()
    assert found == (Path(torch.__file__).parent, torch.__version__, torch.version.cuda)


@pytest.mark.parametrize(
    ("package", "version", "reason"),
    [
        ("setuptools", None, "setuptools is not installed"),
        ("setuptools", "65.5.0", "setuptools 65.5.0 is too old"),
        ("pybind11", None, "pybind11 is not installed"),
        ("pybind11", "2.9.2", "pybind11 2.9.2 is too old"),
        ("torch", None, "torch is not installed"),
        ("torch", "2.9.1", "torch 2.9.1 is too old"),
    ],
)
def test_without_isolation_what_is_missing_is_named_with_the_remedy(tmp_path, package, version, reason):
    environment = Environment(tmp_path, system_site_packages=False)
    for tool in (setuptools, pybind11):
        if tool.__name__ != package:
            environment.add_tool(tool)
    if version:
        environment.add_package(environment.isolated, package, version)
    result = (
        environment.run("-c", "import build_backend")
        if package == "setuptools"
        else environment.run("setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path))
    )
    assert_refused(result, f"pyar build: {reason}", "pip install ")
    assert len(result.stderr.splitlines()) == 2


def test_the_backend_and_the_package_ask_for_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    project = (ROOT / "pyproject.toml").read_text()
    assert f'"{build_backend.TORCH_REQUIREMENT}",\n' in project
    for name, oldest in build_backend.OLDEST_TOOLS.items():
        assert project.count(f'"{name}>={oldest}"') == 2  # to build, and to test
