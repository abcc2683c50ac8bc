"""Maximum-likelihood training: settings with defaults per model and data set, the loop, resuming, data parallelism."""

from pyar.training.config import TrainingConfig, model_defaults, training_defaults
from pyar.training.loop import Trainer, TrainingError, TrainingResult

__all__ = ["Trainer", "TrainingConfig", "TrainingError", "TrainingResult", "model_defaults", "training_defaults"]
