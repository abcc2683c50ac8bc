"""Build facts, and the choice of the instruction-set level."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyar

pytestmark = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")

LEVELS = ("baseline", "avx2", "avx512")
SUPPORTED = pyar.build_info().get("cpu_levels_supported", [])
PRINT_INFO = "import json, pyar; print(json.dumps(pyar.build_info()))"


def info_with_level(level: str | None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYAR_CPU_LEVEL"}
    if level is not None:
        environment["PYAR_CPU_LEVEL"] = level
    return subprocess.run([sys.executable, "-c", PRINT_INFO], env=environment, capture_output=True, text=True)


def test_the_highest_supported_level_is_chosen():
    info = json.loads(info_with_level(None).stdout)
    assert info["cpu_level"] == max(info["cpu_levels_supported"], key=LEVELS.index)
    assert set(info["cpu_levels_supported"]) <= set(info["cpu_levels_built"])
    assert "baseline" in info["cpu_levels_supported"]


@pytest.mark.parametrize("level", SUPPORTED)
def test_the_environment_can_force_each_supported_level(level):
    assert json.loads(info_with_level(level).stdout)["cpu_level"] == level


def test_an_unknown_level_is_an_error_of_the_import():
    result = info_with_level("sse9")
    assert result.returncode != 0
    assert "PYAR_CPU_LEVEL must be baseline, avx2 or avx512, got 'sse9'" in result.stderr


def test_kernels_exist_for_the_devices_they_were_built_for():
    from pyar import native

    assert native.has_kernels("cpu")
    assert native.has_kernels("cuda") == bool(pyar.build_info()["cuda_archs"])
    assert not native.has_kernels("meta")


@pytest.mark.parametrize("level", [level for level in SUPPORTED if level != pyar.build_info()["cpu_level"]])
def test_the_kernels_pass_their_tests_at_the_other_levels(level):
    """Repeats the tests marked `each_level` in a process of that level."""
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-x", "-m", "each_level", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "PYAR_CPU_LEVEL": level}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 20
