"""What several commands share: errors of the user's, devices, data, models."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pyar.checkpoint import CheckpointError, load_with_extra
from pyar.data import DataError, Dataset, load_dataset
from pyar.models import AutoregressiveModel
from pyar.training import TrainingError

CONFIG_FILE = "config.json"
DATA_CHOICES = ("levels", "binarize", "white", "image_shape")


class UserError(Exception):
    """Something the user can put right; the message says what."""


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns the package's errors, and those of `kinds`, into `UserError`."""
    try:
        yield
    except (DataError, CheckpointError, TrainingError, *kinds) as error:
        raise UserError(str(error)) from error


def set_up(arguments: argparse.Namespace) -> torch.device:
    """Sets the number of threads and returns the device."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device should be auto, cpu, cuda or cuda:0, cuda:1, …, but is {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this torch ({torch.__version__}) finds no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: the last device here is cuda:{torch.cuda.device_count() - 1}")
    return device


def data_choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the data are to be prepared, as far as the user said."""
    chosen = {name: getattr(arguments, name) for name in DATA_CHOICES}
    return {name: value for name, value in chosen.items() if value is not None}


def load_data(spec: dict[str, Any], *, data_dir: str | None, cache_dir: str | None, progress: bool) -> Dataset:
    """The data set of a specification {"data": name, "levels": …}."""
    choices = {name: value for name, value in spec.items() if name != "data"}
    if choices.get("image_shape"):
        choices["image_shape"] = tuple(choices["image_shape"])
    return load_dataset(spec["data"], data_dir=data_dir, cache_dir=cache_dir, progress=progress, **choices)


def load_run(run: str, device: torch.device) -> tuple[AutoregressiveModel, dict[str, Any]]:
    """The model of a run folder or file, and the facts stored with it."""
    return load_with_extra(run, device)


def data_of_run(arguments: argparse.Namespace, extra: dict[str, Any]) -> Dataset:
    """The data the user names, or those the run was trained on."""
    spec, data_dir = data_choices(arguments), arguments.data_dir
    if arguments.data is not None:
        spec["data"] = arguments.data
    else:
        stored = extra.get("data_spec")
        if not stored:
            raise UserError(f"{arguments.run} does not say what it was trained on; name the data with --data")
        if "levels" in spec or "binarize" in spec:  # the user's choice of states replaces the stored one
            stored = {name: value for name, value in stored.items() if name not in ("levels", "binarize")}
        spec = {**stored, **spec}
        data_dir = data_dir or _stored_data_dir(Path(arguments.run))
    try:
        return load_data(spec, data_dir=data_dir, cache_dir=arguments.cache_dir, progress=arguments.progress)
    except DataError as error:
        if arguments.data is not None:
            raise
        raise UserError(
            f"the data that {arguments.run} was trained on: {error}\nSay where they are with --data-dir or --data"
        ) from error


def _stored_data_dir(run: Path) -> str | None:
    """The --data-dir of the training run, if that folder is still there."""
    path = (run if run.is_dir() else run.parent) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text()).get("data_dir")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return stored if stored and Path(stored).is_dir() else None


def note(text: str) -> None:
    """A remark on stderr, so that stdout holds results alone."""
    print(text, file=sys.stderr, flush=True)
