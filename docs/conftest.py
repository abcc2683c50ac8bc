"""Runs the site's code: every `python` block of a page, in order and in one namespace; every `sh` block, in a shell.

A page's blocks share an empty folder. Blocks that are shown and not run (installations, hours of training, clusters)
are `console` blocks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from sybil import Sybil
from sybil.example import Example
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[1]


def run_in_shell(example: Example) -> None:
    """Fails with what the commands printed if one of them fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{example.parsed}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory):
    """The page's blocks run in an empty folder, on seeded random numbers."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("page"))
    yield
    os.chdir(before)


matplotlib.use("Agg")
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=run_in_shell)],
    patterns=["*.md"],
    fixtures=["empty_folder"],
).pytest()
