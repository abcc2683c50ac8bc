"""The native extension: whether it is there, what it was built for, and the notice when a reference runs instead."""

from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

try:
    _C = importlib.import_module("pyar._C")

    _import_error: ImportError | None = None
except ImportError as error:  # a source tree that was never built, or a build for another Python or torch
    _C = None
    _import_error = error
else:
    _C.build_facts()  # raises here, not at the first operation, if PYAR_CPU_LEVEL cannot be honoured


def has_kernels(device_type: str) -> bool:
    """Whether the extension has kernels for devices of this type ("cpu", "cuda")."""
    if _C is None:
        return False
    return device_type == "cpu" or (device_type == "cuda" and bool(_C.build_facts()["cuda_archs"]))


@functools.cache
def warn_reference(device_type: str) -> None:
    """Says once that the plain PyTorch reference runs, why, and what to do about it.

    Args:
        device_type: "cpu", "cuda" or another.
    """
    if _C is None:
        reason = f"pyar's native extension could not be imported ({_import_error})"
        in_source_tree = (Path(__file__).parent.parent / "setup.py").exists()
        remedy = (
            "this is pyar's source folder, which hides an installed pyar: run elsewhere, or `pip install -e .` here"
            if in_source_tree
            else "build it with `pip install .` in pyar's source folder"
        )
    elif device_type == "cuda":
        reason = "pyar was built without CUDA"
        remedy = "rebuild with a CUDA build of torch and nvcc: `PYAR_CUDA=1 pip install .`"
    else:
        reason = f"pyar has no kernels for {device_type} devices"
        remedy = "move the model to a CPU or CUDA device"
    warnings.warn(f"{reason}; the slow PyTorch reference runs instead. Remedy: {remedy}.", stacklevel=3)


def build_info() -> dict[str, Any]:
    """What is built and what is in use.

    Returns a dict with `torch` and `extension` (bool); with the extension also `compiler`, `cpu_levels_built`,
    `cpu_levels_supported`, `cpu_level` (in use; the environment variable PYAR_CPU_LEVEL can lower it) and `cuda_archs`.
    """
    info: dict[str, Any] = {"torch": torch.__version__, "extension": _C is not None}
    if _C is None:
        info["import_error"] = str(_import_error)
    else:
        facts = _C.build_facts()
        info.update(facts, cuda_archs=facts["cuda_archs"].split())
    return info
