"""The directions in which the parts may know each other, what an import costs, and the docstrings' examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import pyar
from pyar import models

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyar"
SOURCES = ROOT / "csrc"

# What each part may import of pyar beside itself. The command line may import all, and only __main__ imports it.
ALLOWED = {
    "reference": set(),
    "native": {"_C"},
    "scalars": set(),
    "random": {"scalars"},
    "tables": {"reference", "scalars"},
    "ops": {"reference", "native", "random", "scalars", "_C"},
    "models": {"ops", "random", "reference", "scalars", "tables"},
    "files": set(),
    "checkpoint": {"files", "models", "native"},
    "data": {"random", "tables"},
    "evaluation": {"models", "data"},
    "sklearn": {"data", "models", "recipes", "reference", "scalars", "tables", "training"},
    "plots": {"files"},
    "table_plots": {"plots", "tables"},
    "sampling": {"files", "models"},
    "recipes": set(),
    "training": {"models", "recipes", "checkpoint", "data", "evaluation", "plots", "random", "scalars"},
    "__init__": {"models", "native", "checkpoint"},
    "__main__": {"cli"},
}
REFERENCE_MAY_IMPORT = {"__future__", "collections", "dataclasses", "math", "torch", "typing", "pyar"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """pyar.models.nade → models; pyar → __init__."""
    return [*module.split("."), "__init__"][1]


def module_name(path: Path) -> str:
    parts = ("pyar", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "pyar":
                found |= {f"pyar.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(module_name(path))
    known = {part_of(name) for name in imports(path) if name.split(".")[0] == "pyar"} - {part}
    if part == "cli":
        return  # it stands above all others
    assert part in ALLOWED, f"pyar/{part} is new: say in this test what it may import"
    assert known <= ALLOWED[part], f"{module_name(path)} imports {sorted(known - ALLOWED[part])}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_imports_tests_or_benchmarks(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"tests", "benchmarks", "oracle", "conftest", "pytest", "hypothesis", "jax", "numba", "scipy"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=module_name)
def test_the_reference_needs_torch_alone(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= REFERENCE_MAY_IMPORT


@pytest.mark.parametrize(
    "path",
    sorted(path for pattern in ("*.h", "*.cuh", "*.cpp", "*.cu") for path in SOURCES.rglob(pattern)),
    ids=lambda path: str(path.relative_to(SOURCES)),
)
def test_includes_run_one_way(path: Path) -> None:
    """common/ includes itself alone; cpu/ and cuda/ themselves and common/; a family, a folder in either, also itself.

    No family includes another one, and the kernels of one level include no torch header.
    """
    folder = path.parent.relative_to(SOURCES).as_posix()
    device = folder.split("/")[0]
    allowed = {folder, "common"} if device in ("common", "cpu", "cuda") else {"cpu", "cuda", "common"}
    if folder != device:
        allowed.add(device)
    text = path.read_text()
    for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        target = SOURCES / included
        assert target.exists(), f"{included} is not in csrc; paths start there"
        folder_of_target = target.parent.relative_to(SOURCES).as_posix()
        facts_of_a_family = folder == "." and target.suffix == ".h"  # module.cpp hands them to Python
        assert folder_of_target in allowed or facts_of_a_family
    system = re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.MULTILINE)
    if path.stem.endswith("_kernel") or path.name == "simd.h":
        # Inline functions of C++ headers could be emitted here for a higher instruction set and then serve everybody.
        assert [name for name in system if not name.endswith(".h") or "/" in name] == []
    if path.name == "module.cpp":
        assert not [name for name in system if name.startswith(("torch/", "ATen/", "c10/"))]
    else:
        assert not [name for name in system if name.startswith("pybind11/")]


def test_types_of_headers_have_names_of_their_own() -> None:
    """Linked types of one name and namespace share functions, whichever of their sizes those were made for."""
    places: dict[str, set[str]] = {}
    for path in sorted((SOURCES / "cpu").rglob("*.h")):
        for name in re.findall(r"^(?:struct|class|enum class) (\w+)", path.read_text(), re.MULTILINE):
            places.setdefault(name, set()).add(str(path.relative_to(SOURCES)))
    assert len(places) > 30
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_import_is_light() -> None:
    """What only data, plots or the command line need is not loaded with the models."""
    program = (
        "import sys, pyar; pyar.NADE, pyar.load\n"
        "heavy = {'sklearn', 'pandas', 'pyarrow', 'matplotlib', 'pooch', 'PIL', 'scipy', 'tqdm', 'jax'}\n"
        "heavy.add('torch._inductor.compile_fx')\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    before = subprocess.run(
        [sys.executable, "-c", program.replace("pyar; pyar.NADE, pyar.load", "torch")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    after = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert after.stdout == before.stdout


def test_help_imports_no_torch() -> None:
    program = (
        "import sys, pyar.cli\n"
        "assert {'NADE', 'PixelLSTM', 'build_info', 'load', '__version__'} <= set(dir(pyar))\n"
        "try:\n    pyar.cli.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert pyar.NADE.__name__ == 'NADE' and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_public_names_exist() -> None:
    assert sorted(pyar.__all__) == sorted(set(pyar.__all__))
    for name in pyar.__all__:
        assert getattr(pyar, name).__doc__, name


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_examples_in_docstrings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module_name(path)
    if name == "pyar.__main__":
        assert "cli" in path.read_text()  # importing it would run the command line
        return
    monkeypatch.setattr(models, "_registered", {})  # what an example registers stays in it
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), extraglobs={"pyar": pyar, "torch": torch, "numpy": numpy})
    assert result.failed == 0


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
