"""Exact autoregressive density models, with their loops as single native calls."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyar.checkpoint import load
    from pyar.models import register_model
    from pyar.models.base import AutoregressiveModel, DensityModel
    from pyar.models.deep_nade import DeepNADE
    from pyar.models.diagonal_bilstm import DiagonalBiLSTM
    from pyar.models.made import MADE
    from pyar.models.nade import NADE
    from pyar.models.pixel_cnn import PixelCNN
    from pyar.models.pixel_lstm import PixelLSTM
    from pyar.models.rnade import RNADE
    from pyar.models.row_lstm import RowLSTM
    from pyar.models.table_nade import TableNADE
    from pyar.native import build_info

__all__ = [
    "MADE",
    "NADE",
    "RNADE",
    "AutoregressiveModel",
    "DeepNADE",
    "DensityModel",
    "DiagonalBiLSTM",
    "PixelCNN",
    "PixelLSTM",
    "RowLSTM",
    "TableNADE",
    "build_info",
    "load",
    "register_model",
]
__version__ = "0.1.0"

# Imported on first use, so that what needs no torch, such as the command line's help, does not wait for it.
_HOMES = {
    "AutoregressiveModel": "pyar.models",
    "DeepNADE": "pyar.models",
    "DensityModel": "pyar.models",
    "DiagonalBiLSTM": "pyar.models",
    "MADE": "pyar.models",
    "NADE": "pyar.models",
    "PixelCNN": "pyar.models",
    "PixelLSTM": "pyar.models",
    "RNADE": "pyar.models",
    "RowLSTM": "pyar.models",
    "TableNADE": "pyar.models",
    "build_info": "pyar.native",
    "load": "pyar.checkpoint",
    "register_model": "pyar.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyar' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
