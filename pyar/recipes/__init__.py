"""What is known to work: a model, a data set, settings, and what they reached. A file a family, found by its name:
RECIPES, and `general(size)`, the recipe for all data that have none of their own.

`pyar train` takes its defaults from here, `pyar recipes` lists what is promised, `pyar reproduce NAME` runs a recipe
again, and the tables of results in README and site are written from here. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published test NLL in nats: whose it is, where it stands, and of how many orders if it is a mixture's."""

    nll: float
    model: str
    source: str
    orders: int = 1


@dataclass(frozen=True)
class Reached:
    """What a run of a recipe reached: mean NLLs in nats over the valid and the test split, its time and circumstances.

    `bits_per_dimension` is told for data of more than two states; `mixture_nll`, for models of any order, is the test
    NLL of the mixture over so many orders as the recipe says.
    """

    test_nll: float
    test_error: float
    valid_nll: float
    seconds: float
    threads: int
    processor: str
    commit: str
    bits_per_dimension: float | None = None
    mixture_nll: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings for a model on a data set.

    `data`: the data set's name; None for the model's general recipe, for all data that have none of their own.
    `preparation`: how the data are made states, as `pyar train` has it (levels, binarize); labels=True: with labels.
    `model_options`, `training`: arguments of the constructor and of TrainingConfig that differ from their defaults.
    `orders`: for a model of any order, how many a mixture has whose NLL is told too.
    `default`: whether `pyar train` takes it for this model and data.
    `threads`: how many the run had; None for all.
    `reached`: what it promises, or None where that has not been measured.
    `tolerance`: nats by which runs of it may differ; a run that is not worse by more keeps the promise.
    `log`: the log of the run, in the repository.
    """

    name: str
    model: str
    data: str | None
    preparation: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    orders: int = 1
    default: bool = True
    threads: int | None = None
    reached: Reached | None = None
    published: tuple[Published, ...] = ()
    tolerance: float = 0.5
    log: str | None = None

    def command(self) -> str:
        """The `pyar train` command that runs it."""
        parts = ["pyar train", self.model]
        if self.data not in (None, "digits"):
            parts.append(f"--data {self.data}")
        flags = {f"--{name.replace('_', '-')}": value for name, value in self.preparation.items()}
        parts += [flag if value is True else f"{flag} {value}" for flag, value in flags.items()]
        if not self.default:
            usual = training_settings(self.model, self.data)
            changed = {k: v for k, v in self.training.items() if usual.get(k) != v and v is not None}
            parts += [f"--{name.replace('_', '-')} {value:g}" for name, value in changed.items()]
        if self.threads is not None:
            parts.append(f"--threads {self.threads}")
        return " ".join(parts)


@dataclass(frozen=True)
class Size:
    """What a general recipe knows of the data: examples to train on, dimensions, states."""

    rows: int = 10_000
    dim: int = 100
    num_states: int = 2


def until_a_plateau(size: Size) -> dict[str, Any]:
    """Training settings for whatever comes: until a lower learning rate no longer lowers the valid NLL.

    Few rows get small batches, so that an epoch has steps enough, and evaluations are 50 … 2,000 steps apart, but no
    more than five an epoch, so that they cost a small part of the time.
    """
    batch_size = min(100, max(20, size.rows // 100))
    epoch = -(-size.rows // batch_size)  # in steps
    return {
        "batch_size": batch_size,
        "eval_every": float(-(-50 // epoch)) if epoch < 50 else min(1.0, max(0.2, 2000 / epoch)),
        "schedule": "plateau",
        "epochs": None,
        "max_steps": 200_000,
        "ema": 0.99,
    }


def _families() -> list[ModuleType]:
    """The modules of this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of their files; a general one for data of some size."""
    found: dict[str, Recipe] = {}
    for recipe in [recipe for family in _families() for recipe in (family.general(Size()), *family.RECIPES)]:
        if recipe.name in found:
            raise ValueError(f"two recipes are called {recipe.name}")
        found[recipe.name] = recipe
    return found


def default_recipe(model: str, data: str | None, size: Size | None = None) -> Recipe | None:
    """The recipe that `pyar train` takes for a model on a data set: their own, else the model's general one."""
    candidates = [recipe for recipe in recipes().values() if recipe.model == model and recipe.default]
    for wanted in (data, None):
        for recipe in candidates:
            if recipe.data == wanted:
                return recipe if recipe.data is not None or size is None else _general(recipe.name, size)
    return None


def _general(name: str, size: Size) -> Recipe:
    """The general recipe of that name for data of a size."""
    return next(recipe for family in _families() if (recipe := family.general(size)).name == name)


def training_settings(model: str, data: str | None, size: Size | None = None) -> dict[str, Any]:
    """The training settings of the default recipe, by the names of TrainingConfig's fields."""
    recipe = default_recipe(model, data, size)
    return until_a_plateau(size or Size()) if recipe is None else dict(recipe.training)


def model_settings(model: str, data: str | None, size: Size | None = None) -> dict[str, Any]:
    """The constructor's arguments of the default recipe."""
    recipe = default_recipe(model, data, size)
    return {} if recipe is None else dict(recipe.model_options)
