"""The model families, by the name that the command line and the checkpoints use."""

from __future__ import annotations

from pyar.models.base import AutoregressiveModel
from pyar.models.nade import NADE
from pyar.models.pixel_lstm import PixelLSTM

MODELS: dict[str, type[AutoregressiveModel]] = {model.name: model for model in (NADE, PixelLSTM)}

__all__ = ["MODELS", "NADE", "AutoregressiveModel", "PixelLSTM"]
