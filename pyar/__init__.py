"""Exact autoregressive density models, NADE and PixelLSTM, with their loops as single native calls."""

from pyar.checkpoint import load
from pyar.models import NADE, PixelLSTM
from pyar.native import build_info

__all__ = ["NADE", "PixelLSTM", "build_info", "load"]
__version__ = "0.1.0"
