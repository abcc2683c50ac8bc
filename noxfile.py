"""The daily commands, one word each: `nox -s tests`, `nox -s lint`, `nox -s docs`, `nox -s sanitize`.

`pip install nox` first. Each session has an environment of its own, kept with `-r`.
"""

from __future__ import annotations

import glob

import nox

nox.options.sessions = ["lint", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite, or what is named: `nox -s tests -- tests/test_nade.py`."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """What has to hold of the sources' form."""
    session.install("ruff>=0.12", "clang-format>=20")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    patterns = ("*.h", "*.cuh", "*.cpp", "*.cu")
    sources = [path for pattern in patterns for path in glob.glob(f"csrc/**/{pattern}", recursive=True)]
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def docs(session: nox.Session) -> None:
    """The site into docs/_build/html, warnings as errors, and its code."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "docs", "docs/_build/html")
    session.run("pytest", "docs")


@nox.session
def sanitize(session: nox.Session) -> None:
    """The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the processor's own level."""
    session.install("-e", ".[test]")
    session.run("python", "setup.py", "-q", "build_ext", "--inplace", "--force", env={"PYAR_SANITIZE": "1"})
    libraries = [
        session.run("g++", f"-print-file-name={name}", silent=True, external=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    session.run("python", "-m", "pytest", "-x", "-s", "-m", "each_level", env=environment)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark tables into runs/benchmarks, or what is named: `nox -s bench -- guard`."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["nade", "lstm"]))
