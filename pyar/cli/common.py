"""What several commands share: errors of the user's, devices, data, models."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pyar.checkpoint import CheckpointError
from pyar.cli.errors import UserError
from pyar.cli.options import kind_of_reals, takes_reals
from pyar.data import DataError, DataNotice, Dataset, Rows, TableData, load_dataset, load_rows, load_table
from pyar.data.labels import find_class
from pyar.evaluation import check_fits
from pyar.models import AutoregressiveModel, DensityModel
from pyar.tables import Real, RepeatedValues
from pyar.training import TrainingError
from pyar.training.parallel import LaunchError

CONFIG_FILE = "config.json"
DATA_CHOICES = ("levels", "binarize", "white", "image_shape", "grey", "background", "labels")


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns the package's errors, and those of `kinds`, into `UserError`."""
    try:
        yield
    except (DataError, CheckpointError, TrainingError, LaunchError, *kinds) as error:
        raise UserError(str(error)) from error


def set_up(arguments: argparse.Namespace) -> torch.device:
    """Sets the number of threads and returns the device."""
    if os.environ.get("WORLD_SIZE", "").strip() not in ("", "1") and not os.environ.get("RANK", "").strip():
        note("WORLD_SIZE is set, but RANK is not: this is one process alone (torchrun sets both)")
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
    with notices():
        return load_dataset(spec["data"], data_dir=data_dir, cache_dir=cache_dir, progress=progress, **choices)


def load_table_data(spec: dict[str, Any], *, data_dir: str | None, every: Real | None = None) -> TableData:
    """The table of a specification {"data": path, "drop": names, "kinds": texts by name}.

    `every`: what every column is, for models of real vectors.
    """
    choices = {name: value for name, value in spec.items() if name != "data"}
    unknown = [name for name in choices if name not in ("drop", "kinds")]
    if unknown:
        raise UserError(f"--{unknown[0].replace('_', '-')} is for states; a table's columns are said by --kind")
    with notices():
        return load_table(spec["data"], data_dir=data_dir, every=every, **choices)


def table_of_run(arguments: argparse.Namespace, model: DensityModel, extra: dict[str, Any]) -> TableData:
    """The table that the run was trained on, if it is as it was then."""
    stored = extra.get("data_spec")
    if not stored:
        raise UserError(f"{arguments.run} does not say what it was trained on")
    data_dir = getattr(arguments, "data_dir", None) or _stored_data_dir(Path(arguments.run))
    every = kind_of_reals(model.config) if takes_reals(type(model)) else None
    data = load_table_data(stored, data_dir=data_dir, every=every)
    if data.fingerprint() != extra.get("fingerprint"):
        raise UserError(f"{stored['data']} has changed since {arguments.run} was trained on it")
    with user_errors(ValueError):
        check_fits(model, data)
    return data


def set_weight_dtype(arguments: argparse.Namespace, model: AutoregressiveModel) -> None:
    """Rounds the model's weights as --weight-dtype says, if it was given."""
    if arguments.weight_dtype is None:
        return
    if not hasattr(model, "weight_dtype"):
        raise UserError(f"--weight-dtype: {arguments.run} is a {model.name}, whose weights have float32 alone")
    model.weight_dtype = arguments.weight_dtype


def classes_of_run(model: AutoregressiveModel, extra: dict[str, Any]) -> list[str] | None:
    """What the classes of a model's labels are called; None for a model that is given no labels."""
    if getattr(model, "context_size", None) is not None:
        raise UserError(f"the {model.name} is given features of every example, which only Python can: context=…")
    if model.num_classes is None:
        return None
    names = extra.get("class_names") or []
    return names if len(names) == model.num_classes else [str(number) for number in range(model.num_classes)]


def chosen_class(arguments: argparse.Namespace, model: AutoregressiveModel, extra: dict[str, Any], label: str) -> int:
    """The number of the class that --label names."""
    classes = classes_of_run(model, extra)
    if classes is None:
        raise UserError(f"--label {label}: {arguments.run} is a {model.name} that was trained without labels")
    with user_errors():
        return find_class(label, classes)


def refuse_labels(arguments: argparse.Namespace, model: DensityModel) -> None:
    """Raises UserError if --labels was given and the model is given none."""
    if arguments.labels is not None and model.num_classes is None:
        raise UserError(f"--labels: {arguments.run} is a {model.name} that was trained without labels")


def rows_of_run(
    arguments: argparse.Namespace, model: AutoregressiveModel, extra: dict[str, Any], *, with_labels: bool = True
) -> Rows:
    """The examples the user names, as states of the model; without --data a split of what the run was trained on.

    For a model that is given labels they come with their labels, unless others take their place.
    """
    classes = classes_of_run(model, extra) if with_labels else None
    refuse_labels(arguments, model)
    if arguments.data is None:
        dataset = _data_of_run(arguments, extra)
        with user_errors(ValueError):
            check_fits(model, dataset)
        split = arguments.split or "test"
        x = dataset.split(split)
        return Rows(
            dataset.name,
            split,
            dataset.num_states,
            dataset.image_shape,
            dataset.preparation,
            x,
            dataset.labels.get(split),
            dataset.class_names,
            num_classes=dataset.num_classes,
        )
    choices, stored = data_choices(arguments), extra.get("data_spec") or {}
    if not {"levels", "binarize"} & choices.keys() and arguments.data != "binarized-mnist":  # that is binary already
        choices |= {name: stored[name] for name in ("levels", "binarize") if name in stored}
    if classes is not None:
        choices = {"labels": stored.get("labels", True), **choices}
    if "image_shape" not in choices and extra.get("image_shape"):
        choices["image_shape"] = tuple(extra["image_shape"])
    with notices():
        return load_rows(
            arguments.data,
            dim=model.dim,
            num_states=model.num_states,
            split=arguments.split,
            data_dir=arguments.data_dir,
            cache_dir=arguments.cache_dir,
            progress=arguments.progress,
            class_names=classes,
            **choices,
        )


def _data_of_run(arguments: argparse.Namespace, extra: dict[str, Any]) -> Dataset:
    """What the run was trained on, prepared as it was then, or as the user says now."""
    chosen, run = data_choices(arguments), arguments.run
    where = {"data_dir": arguments.data_dir, "cache_dir": arguments.cache_dir, "progress": arguments.progress}
    stored = extra.get("data_spec")
    if not stored:
        raise UserError(f"{run} does not say what it was trained on; name the data with --data")
    where["data_dir"] = where["data_dir"] or _stored_data_dir(Path(run))
    if chosen:
        if "levels" in chosen or "binarize" in chosen:  # the user's choice of states replaces the stored one
            stored = {name: value for name, value in stored.items() if name not in ("levels", "binarize")}
        return load_data({**stored, **chosen}, **where)
    remedy = "Say what to take: --data-dir, or --data with the --levels or --binarize of the training"
    try:
        dataset = load_data(stored, **where)
    except DataError as error:
        raise UserError(f"the data that {run} was trained on: {error}\n{remedy}") from error
    if "fingerprint" in extra and dataset.fingerprint() != extra["fingerprint"]:
        raise UserError(f"{stored['data']} has changed since {run} was trained on it\n{remedy}")
    return dataset


def _stored_data_dir(run: Path) -> str | None:
    """The --data-dir of the training run, if that folder is still there."""
    path = (run if run.is_dir() else run.parent) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8")).get("data_dir")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return stored if stored and Path(stored).is_dir() else None


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """What was left out of the data, or decided, as remarks on stderr; other warnings go their way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataNotice)
        warnings.simplefilter("always", RepeatedValues)
        try:
            yield
        finally:
            remarks = (DataNotice, RepeatedValues)
            texts = [str(warning.message) for warning in caught if issubclass(warning.category, remarks)]
            others = [warning for warning in caught if not issubclass(warning.category, remarks)]
    for text in texts:
        note(f"notice {text}")
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def note(text: str) -> None:
    """A remark on stderr, so that stdout holds results alone."""
    print(text, file=sys.stderr, flush=True)
