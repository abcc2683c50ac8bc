"""What a training run is told, and what it is told by default for each model and data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from pyar.recipes import Size, model_settings, training_settings
from pyar.scalars import plain_bool, plain_integer, plain_number

_PLAIN = {"int": plain_integer, "float": plain_number, "bool": plain_bool}
SCHEDULES = ("linear", "cosine", "constant", "plateau")
BUDGETS = ("epochs", "max_steps", "time_budget")
_COOLING = 0.2  # the part of the budget over which a plateau schedule falls to zero, should it get there


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run. Everything that changes the numbers is here.

    `batch_size`: examples per step, over all processes together.
    `learning_rate`, `schedule`, `warmup_steps`: Adam's step size; it rises linearly over the first `warmup_steps` and
    follows the schedule over the whole budget: "linear" to zero, "cosine" to zero, "constant", or "plateau".
    `plateau_patience`, `plateau_factor`, `plateau_threshold`, `min_learning_rate`: of the schedule "plateau". When the
    valid NLL has not fallen by the part `plateau_threshold` of itself for `plateau_patience` evaluations, training goes
    back to the best weights and the rate is multiplied by `plateau_factor`. The run ends when that brought nothing, or
    when the rate would fall below `min_learning_rate`; a run that comes to the last fifth of its budget cools to zero.
    `epochs`, `max_steps`, `time_budget`: the budget, in passes over the train split, steps and seconds; the first that
    is used up ends the run. With a time budget the schedule depends on the clock, so only runs by epochs and steps are
    repeated bit for bit.
    `patience`: evaluations without a better validation NLL after which the run ends; 0 never.
    `eval_every`: epochs (also fractions) between evaluations on the valid split.
    `clip_norm`: greatest norm of the gradient; 0 for no limit. `weight_decay`: decoupled, on matrices only.
    `ema`: decay of an exponential moving average of the weights which is then evaluated and kept; 0 for none.
    `beta1`, `beta2`, `epsilon`: Adam's. `seed`: of initial weights, order of the examples and dynamic binarisation.
    `amp`: bfloat16 autocast. `eval_batch_size`: examples at a time in evaluations.
    `save_every`: seconds between savings of the training state.
    """

    batch_size: int = 100
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup_steps: int = 0
    plateau_patience: int = 10
    plateau_factor: float = 0.3
    plateau_threshold: float = 1e-4
    min_learning_rate: float = 1e-5
    epochs: float | None = 50
    max_steps: int | None = None
    time_budget: float | None = None
    patience: int = 0
    eval_every: float = 1.0
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    seed: int = 0
    amp: bool = False
    eval_batch_size: int = 500
    save_every: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, declared = getattr(self, field.name), str(field.type)
            plain = _PLAIN.get(declared.removesuffix(" | None"))
            if plain is not None and not (value is None and declared.endswith(" | None")):
                object.__setattr__(self, field.name, plain(field.name, value))
        positive = ["batch_size", "eval_batch_size", "eval_every", "learning_rate", "epsilon"]
        positive += ["plateau_patience", "plateau_factor", "min_learning_rate"]
        positive += [name for name in BUDGETS if getattr(self, name) is not None]
        for name in positive:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("warmup_steps", "patience", "plateau_threshold", "clip_norm", "weight_decay", "save_every"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema", "beta1", "beta2", "plateau_factor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError("give a budget: epochs, max_steps or time_budget")

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingConfig:
        """The inverse of `to_json`; names that are missing have their defaults, unknown ones raise ValueError."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"unknown training settings: {names}; a later version of pyar may know them")
        return cls(**values)

    def rate(self, step: int, progress: float, falls: int = 0) -> float:
        """The learning rate of a step, with `progress` in [0, 1] of the budget used and after `falls` plateaus."""
        remaining = 1.0 - min(max(progress, 0.0), 1.0)
        factor = {
            "linear": remaining,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * remaining),
            "constant": 1.0,
            "plateau": self.plateau_factor**falls * min(1.0, remaining / _COOLING),
        }
        return self.learning_rate * factor[self.schedule] * min(1.0, (step + 1) / (self.warmup_steps + 1))


def training_defaults(model: str, data: str | None, size: Size | None = None) -> TrainingConfig:
    """The settings of the recipe for a model on a data set, by their names; else the model's general ones.

    These depend on the data's `size`.
    """
    return TrainingConfig(**training_settings(model, data, size))


def model_defaults(model: str, data: str | None, size: Size | None = None) -> dict[str, Any]:
    """The constructor's arguments, beside what the data say, of the recipe for a model on a data set."""
    return model_settings(model, data, size)
