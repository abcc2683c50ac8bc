"""The build backend: setuptools, with the torch that is already installed where there is one.

pip builds in an isolated environment that hides the installed torch, and a plain `torch` requirement would download
another one, gigabytes of it. The interpreter is the same, though: started without what pip hides its packages with, it
tells where its torch is. Only where it has none, or one that is too old, is torch added to the build requirements.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

OLDEST_TORCH = "2.10"
TORCH_REQUIREMENT = f"torch>={OLDEST_TORCH}"
OLDEST_TOOLS = {"setuptools": "77", "pybind11": "2.13"}


def say(message: str) -> None:
    print(f"pyar build: {message}".encode(errors="backslashreplace").decode(), flush=True)


def fail(reason: str, remedy: str) -> NoReturn:
    sys.exit(f"pyar build: {reason}\n            {remedy}".encode(errors="backslashreplace").decode())


def release(version: str) -> tuple[int, ...]:
    """2.10.0a0+cpu → (2, 10)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_tool(name: str) -> None:
    """Fails with the remedy unless this build tool is there and new enough: nobody else looks without isolation."""
    tools = " ".join(f'"{tool}>={oldest}"' for tool, oldest in OLDEST_TOOLS.items())
    remedy = f"pip install {tools} ninja, or build without --no-build-isolation"
    try:
        version = importlib.import_module(name).__version__
    except ImportError:
        fail(f"{name} is not installed", remedy)
    if release(version) < release(OLDEST_TOOLS[name]):
        fail(f"{name} {version} is too old", remedy)


class Torch(NamedTuple):
    """An installed torch, which is not imported: the build needs its headers and libraries alone."""

    folder: Path  # of the package, with include/ and lib/
    version: str
    cuda: str | None  # the CUDA version that it is built with

    @property
    def is_too_old(self) -> bool:
        return release(self.version) < release(OLDEST_TORCH)


def find_torch() -> Torch | None:
    """The torch of this environment; else that of the same interpreter outside of pip's isolated environment."""
    spec = importlib.util.find_spec("torch")
    origin = spec.origin if spec else None
    if origin is None:
        program = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"
        environment = {name: os.environ[name] for name in os.environ.keys() - {"PYTHONPATH", "PYTHONNOUSERSITE"}}
        outside = subprocess.run([sys.executable, "-c", program], cwd=os.sep, env=environment, stdout=subprocess.PIPE)
        origin = os.fsdecode(outside.stdout).strip()
    facts_file = Path(origin).parent / "version.py"
    if not origin or not facts_file.is_file():
        return None
    facts = runpy.run_path(str(facts_file))
    return Torch(facts_file.parent, facts["__version__"], facts.get("cuda"))


check_tool("setuptools")

from setuptools import build_meta  # noqa: E402
from setuptools.build_meta import *  # noqa: E402, F403  (a backend is a module with setuptools' hooks)


def _requires(hook: Callable[..., list[str]], config_settings: dict | None) -> list[str]:
    sources = Path(__file__).parent
    if not os.access(sources, os.W_OK):
        fail(
            f"pyar's sources in {sources} cannot be written", "copy them to a folder of your own and install from there"
        )
    requirements = hook(config_settings)
    torch = find_torch()
    if torch is not None and not torch.is_too_old:
        say(f"building against torch {torch.version} in {torch.folder}")
        return requirements
    found = f"torch {torch.version} in {torch.folder} is too old" if torch else "no torch is installed"
    say(f"{found}; building against a downloaded {TORCH_REQUIREMENT}")
    return [*requirements, TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    return _requires(build_meta.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _requires(build_meta.get_requires_for_build_editable, config_settings)
