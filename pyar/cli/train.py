"""`pyar train`."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from pyar.checkpoint import MODEL_FILE, STATE_FILE
from pyar.cli import tables
from pyar.cli.common import (
    CONFIG_FILE,
    UserError,
    data_choices,
    load_data,
    load_table_data,
    note,
    set_up,
    user_errors,
)
from pyar.cli.options import DATA_FACTS, flag_of, kind_of_reals, said_options, takes_columns, takes_reals
from pyar.data import DATASET_NAMES, Dataset, TableData
from pyar.evaluation import evaluate
from pyar.files import write_text
from pyar.models import DensityModel, model_class, model_names
from pyar.plots import decoration, save_sheet
from pyar.recipes import Size
from pyar.sampling import labels_in_turn
from pyar.training import Trainer, TrainingConfig, model_defaults, training_defaults
from pyar.training.config import BUDGETS
from pyar.training.loop import CURVE_FILE
from pyar.training.parallel import Group, process_group

RESULT_FILE = "result.json"
SHEET_FILE = "samples.png"
_ENDED = {
    "budget": "the budget is used up",
    "patience": "no improvement for a while",
    "plateau": "a lower learning rate no longer helps",
}
_LONGER = {"patience": ("patience",), "plateau": ("plateau_patience", "min_learning_rate"), "budget": BUDGETS}
_RESUME_OPTIONS = (*BUDGETS, "patience", "plateau_patience", "min_learning_rate", "save_every", "eval_batch_size")


def run(arguments: argparse.Namespace) -> int:
    """Trains, evaluates, draws; returns the exit code."""
    device = set_up(arguments)
    with process_group(device.type) as group:
        if group.size > 1 and device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        if arguments.resume is not None:
            settings = _resumed_settings(arguments)
            folder = Path(arguments.resume)
        else:
            settings = _new_settings(arguments)
            folder = _run_folder(arguments, settings, group)
        return _train(arguments, settings, folder, device, group)


def _new_settings(arguments: argparse.Namespace, dataset: Dataset | TableData | None = None) -> dict[str, Any]:
    """Model, data, and training settings of a new run: the defaults for the pair, then what the user said.

    The defaults may depend on the size of the data; without `dataset` they are those of some size.
    """
    if arguments.model is None:
        swallowed = f"; write {arguments.labels} before --labels" if arguments.labels in model_names() else ""
        raise UserError(
            f"say which model to train, such as `pyar train nade`; there are {', '.join(model_names())}{swallowed}"
        )
    table = takes_columns(model_class(arguments.model))
    if (table or takes_reals(model_class(arguments.model))) and arguments.data is None:
        raise UserError(f"say which table to train on: pyar train {arguments.model} --data FILE.csv")
    spec = {"data": _lasting_name(arguments.data or "digits"), **data_choices(arguments), **_said_of_columns(arguments)}
    if "labels" in spec and not _takes_labels(arguments.model):
        able = ", ".join(filter(_takes_labels, model_names())) or "none that is known here"
        raise UserError(f"--labels: {arguments.model} takes no labels; models that do: {able}")
    size = None if dataset is None else Size(len(dataset.train), dataset.dim, getattr(dataset, "num_states", 2))
    recipe = getattr(arguments, "recipe", None)  # told by `pyar reproduce`
    if recipe is None:
        config = training_defaults(arguments.model, spec["data"], size)
        model_options = model_defaults(arguments.model, spec["data"], size)
    else:
        config, model_options = TrainingConfig(**recipe.training), dict(recipe.model_options)
    said = {field.name: getattr(arguments, field.name) for field in fields(TrainingConfig)}
    said = {name: value for name, value in said.items() if value is not None}
    with user_errors(ValueError):
        config = replace(config, **_one_budget(said))
    model_options |= said_options(arguments)
    return {
        "model": arguments.model,
        "model_options": model_options,
        "order": getattr(arguments, "order", None) or "raster",
        "data_spec": spec,
        "data_dir": _lasting_data_dir(arguments),
        "training": config.to_json(),
    }


def _takes_labels(model: str) -> bool:
    return "num_classes" in inspect.signature(model_class(model)).parameters


def _said_of_columns(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user said of a table's columns: those to leave out, and kinds by name."""
    said: dict[str, Any] = {}
    if getattr(arguments, "drop", None):
        said["drop"] = list(arguments.drop)
    if getattr(arguments, "kind", None):
        said["kinds"] = dict(arguments.kind)
    return said


def _one_budget(said: dict[str, Any]) -> dict[str, Any]:
    """The settings that the user said; a budget among them replaces those of other kinds that were there."""
    return {**dict.fromkeys(BUDGETS), **said} if said.keys() & set(BUDGETS) else said


def _lasting_name(data: str) -> str:
    """A data set's name as it is; a path made absolute, so that the run finds its data from any folder."""
    return str(Path(data).resolve()) if data not in DATASET_NAMES and Path(data).exists() else data


def _lasting_data_dir(arguments: argparse.Namespace) -> str | None:
    """--data-dir, or else the folder of PYAR_DATA, made absolute. If that is no folder, loading says so by its name."""
    if arguments.data_dir is not None:
        return str(Path(arguments.data_dir).resolve())
    folder = os.path.expanduser(os.environ.get("PYAR_DATA", ""))
    return str(Path(folder).resolve()) if folder and Path(folder).is_dir() else None


def _resumed_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of an earlier run with its budget changed as the user said."""
    folder = Path(arguments.resume)
    # A run that was killed before its first saving has settings alone, and begins again.
    needed = [CONFIG_FILE, STATE_FILE] if (folder / MODEL_FILE).exists() else [CONFIG_FILE]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a run that can be resumed: it has no {' and no '.join(missing)}")
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = TrainingConfig.from_json(settings["training"])
        stored = (settings["model"], settings["data_spec"], settings["model_options"], settings["order"])
    except KeyError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {error}") from error
    if arguments.model not in (None, stored[0]):
        raise UserError(f"{folder} is a run of {stored[0]}, not of {arguments.model}")
    changeable = {*_RESUME_OPTIONS, "model", "resume", "command", "data", "data_dir", "cache_dir"}
    changeable |= {"device", "threads", "progress", "json", "samples", "imports"}
    fixed = [name for name, value in vars(arguments).items() if value is not None and name not in changeable]
    if fixed:
        names = ", ".join(map(flag_of, fixed))
        raise UserError(f"{names} cannot be changed in a resumed run; start a new one")
    said = {name: getattr(arguments, name) for name in _RESUME_OPTIONS if getattr(arguments, name) is not None}
    with user_errors(ValueError):
        settings["training"] = replace(config, **_one_budget(said)).to_json()
    # The same data may have moved; that they are the same is checked when the training state is taken up.
    if arguments.data is not None:
        settings["data_spec"]["data"] = _lasting_name(arguments.data)
    if arguments.data_dir is not None:
        settings["data_dir"] = str(Path(arguments.data_dir).resolve())
    elif settings["data_dir"] is not None and not Path(settings["data_dir"]).is_dir():
        settings["data_dir"] = None
    return settings


def _run_folder(arguments: argparse.Namespace, settings: dict[str, Any], group: Group) -> Path:
    """The folder of a new run, which must not hold another run; the same in every process."""
    problem, folder = "", Path()
    if group.is_main:
        if arguments.out is not None:
            folder = Path(arguments.out)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                problem = (
                    f"{folder} is there already; choose another --out, or go on with it: --resume {_quoted(folder)}"
                )
        else:
            data = Path(settings["data_spec"]["data"]).stem
            stem = Path("runs") / f"{settings['model']}-{data}"
            folder, number = stem, 2
            while folder.exists():
                folder, number = Path(f"{stem}-{number}"), number + 1
    problem, name = json.loads(group.broadcast_text(json.dumps([problem, str(folder)])))
    if problem:
        raise UserError(problem)
    return Path(name)


def _make_model(settings: dict[str, Any], dataset: Dataset | TableData, seed: int) -> DensityModel:
    generator = torch.Generator().manual_seed(seed)
    order = {
        "raster": None,
        "reverse": list(range(dataset.dim))[::-1],
        "random": torch.randperm(dataset.dim, generator=generator).tolist(),
    }[settings["order"]]
    torch.manual_seed(seed)
    model = model_class(settings["model"])
    wanted = inspect.signature(model).parameters
    facts = {name: getattr(dataset, name) for name in DATA_FACTS if name in wanted}
    with user_errors(ValueError, TypeError):
        model = model(**facts, **settings["model_options"], **({"order": order} if order else {}))
    initialise = getattr(model, "initialize_from_marginals", None)
    if initialise is not None:
        initialise(dataset.train)
    return model


def _train(
    arguments: argparse.Namespace, settings: dict[str, Any], folder: Path, device: torch.device, group: Group
) -> int:
    progress = arguments.progress and group.is_main
    dataset = _load_in_turn(arguments, settings, group, progress)
    if arguments.resume is None:
        settings = _new_settings(arguments, dataset)
    config = TrainingConfig.from_json(settings["training"])
    model = _make_model(settings, dataset, config.seed).to(device)
    with user_errors(ValueError):
        trainer = Trainer(
            model,
            dataset,
            config,
            folder,
            group=group,
            progress=progress,
            extra={"data_spec": settings["data_spec"], "training": config.to_json(), **_columns(model, dataset)},
        )
    if arguments.resume is not None and (folder / STATE_FILE).exists():
        trainer.resume()
    if group.is_main:
        folder.mkdir(parents=True, exist_ok=True)  # only now that nothing is left for the user to put right
        write_text(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")
        weights = sum(p.numel() for p in model.parameters())
        note(f"data   {dataset.describe()}")
        if isinstance(dataset, TableData):
            tables.tell_columns(dataset.columns)
        note(f"model  {model.name}, {weights:,} weights, {_short(model.config)}, on {device}")
        note(f"budget {_budget(config)}; writing to {folder}")
        if trainer.finished is not None:
            options = " or ".join(f"--{name.replace('_', '-')}" for name in _LONGER[trainer.finished])
            note(f"this run has ended already ({_ENDED[trainer.finished]}); another {options} lets it go on")
    result = trainer.train()
    if result.reason == "interrupted":
        if group.is_main:
            name = signal.Signals(result.signal).name
            resume = f"pyar train --resume {_quoted(folder)}"
            note(f"{name}: stopped and saved at epoch {result.epochs:.2f}; go on with: {resume}")
            if arguments.json:
                print(json.dumps({"run": str(folder), **result.to_json()}))
        trainer.draw_learning_curve()
        return 128 + result.signal
    if not group.is_main:
        return 0
    return _report(arguments, trainer, model, dataset, result.to_json(), folder)


def _columns(model: DensityModel, dataset: Dataset | TableData) -> dict[str, Any]:
    """What a model of real vectors does not know itself, and is kept beside it: the columns' names and units."""
    if isinstance(dataset, TableData) and takes_reals(type(model)):
        return {"columns": dataset.columns.to_json()}
    return {}


def _report(
    arguments: argparse.Namespace,
    trainer: Trainer,
    model: DensityModel,
    dataset: Dataset | TableData,
    result: dict[str, Any],
    folder: Path,
) -> int:
    """Evaluates the best weights on valid and test, writes and prints the result, and only then draws pictures."""
    config = trainer.config
    evaluations = [
        evaluate(model, dataset, split, config.eval_batch_size, progress=arguments.progress, amp=config.amp)
        for split in ("valid", "test")
        if len(dataset.split(split))
    ]
    report = {"run": str(folder), **result, **{e.split: e.to_json() for e in evaluations}}
    write_text(folder / RESULT_FILE, json.dumps(report, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(report), flush=True)
    else:
        print(f"trained {result['epochs']:.1f} epochs in {result['seconds']:.0f} s ({_ENDED[result['reason']]})")
        for evaluation in evaluations:
            print(evaluation, flush=True)
    if result["advice"] is not None:
        note(f"{result['advice']}; go on with: pyar train --resume {_quoted(folder)} --{_raised(config)}")
    trainer.draw_learning_curve()
    if arguments.samples:
        with decoration(folder / SHEET_FILE):
            if isinstance(dataset, TableData):
                number = max(arguments.samples, min(1000, len(dataset.train)))
                tables.picture_samples(model, dataset, number, config.seed, folder / SHEET_FILE)
            else:
                labels, told = None, {}
                if dataset.num_classes is not None:
                    labels = labels_in_turn(range(dataset.num_classes), arguments.samples)
                    told = {"context": labels.to(trainer.device)}
                x = model.sample(arguments.samples, seed=config.seed, **told)
                save_sheet(x, folder / SHEET_FILE, dataset.num_states, dataset.image_shape, labels=labels)
    if not arguments.json:
        for name, file in (("samples", SHEET_FILE), ("learning curve", CURVE_FILE)):
            if (folder / file).exists():
                print(f"{name}: {folder / file}")
    return 0


def _raised(config: TrainingConfig) -> str:
    """An option with twice the budget."""
    name = next(name for name in BUDGETS if getattr(config, name) is not None)
    return f"{name.replace('_', '-')} {2 * getattr(config, name):.10g}"


def _load_in_turn(
    arguments: argparse.Namespace, settings: dict[str, Any], group: Group, progress: bool
) -> Dataset | TableData:
    """The data set; rank 0 comes first, so that only one process downloads."""
    if not group.is_main:
        group.broadcast_text("")
    try:
        model = model_class(settings["model"])
        if takes_columns(model):
            return load_table_data(settings["data_spec"], data_dir=settings["data_dir"])
        if takes_reals(model):
            defaults = {name: parameter.default for name, parameter in inspect.signature(model).parameters.items()}
            with user_errors(ValueError, TypeError):
                every = kind_of_reals(defaults | settings["model_options"])
            return load_table_data(settings["data_spec"], data_dir=settings["data_dir"], every=every)
        return load_data(
            settings["data_spec"], data_dir=settings["data_dir"], cache_dir=arguments.cache_dir, progress=progress
        )
    finally:
        if group.is_main:
            group.broadcast_text("loaded, or failed as it will in the others")


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))


def _short(config: dict[str, Any]) -> str:
    shown = {
        k: v for k, v in config.items() if k not in ("dim", "num_states", "order", "columns") and v not in ([], 0, None)
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items()) + (", own order" if "order" in config else "")


def _budget(config: TrainingConfig) -> str:
    parts = []
    if config.epochs is not None:
        parts.append(f"{config.epochs:g} epoch{'' if config.epochs == 1 else 's'}")
    if config.max_steps is not None:
        parts.append(
            f"at most {config.max_steps:,} steps" if config.schedule == "plateau" else f"{config.max_steps:,} steps"
        )
    if config.time_budget is not None:
        seconds = config.time_budget
        parts.append(f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min")
    if config.patience:
        parts.append(f"patience {config.patience} evaluations")
    if config.schedule == "plateau":
        parts.append("less if the valid NLL stops falling")
    return ", ".join(parts)
