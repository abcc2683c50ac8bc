"""The build: which torch it is built against, which decisions it prints, and how it refuses bad settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("environment", "reason", "remedy"),
    [
        ({"PYAR_CUDA": "yes"}, "PYAR_CUDA must be 0, 1 or unset, got 'yes'", "unset it"),
        ({"CXX": "no-such-compiler"}, "C++ compiler no-such-compiler was not found", "install g++"),
        (
            {"PYAR_CUDA": "1", "PATH": "", "CUDA_HOME": "/nowhere", "CXX": sys.executable},
            "nvcc was not found",
            "install the CUDA toolkit",
        ),
    ],
)
def test_a_build_that_cannot_be_names_the_reason_and_the_remedy(tmp_path, environment, reason, remedy):
    result = build(tmp_path, **environment)
    assert result.returncode != 0
    assert reason in result.stderr
    assert remedy in result.stderr
    assert "Traceback" not in result.stderr


def test_the_backend_finds_the_installed_torch(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    folder = build_backend.installed_torch_path()
    assert folder is not None
    assert Path(torch.__file__).is_relative_to(folder)
    # Nothing is downloaded where torch is installed.
    assert not [name for name in build_backend.get_requires_for_build_wheel({}) if name.startswith("torch")]


def test_the_backend_asks_for_torch_where_there_is_none(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    monkeypatch.setattr(build_backend, "installed_torch_path", lambda: None)
    assert build_backend.TORCH_REQUIREMENT in build_backend.get_requires_for_build_wheel({})


def test_the_backend_and_the_package_ask_for_the_same_torch(monkeypatch):
    requirement = '"torch>=2.10,<2.14"'
    assert f"TORCH_REQUIREMENT = {requirement}" in (ROOT / "build_backend.py").read_text()
    assert requirement in (ROOT / "pyproject.toml").read_text()
