"""`pyar evaluate`, `sample`, `complete` and `info`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyar
from pyar.checkpoint import load_with_extra
from pyar.cli import tables
from pyar.cli.common import (
    UserError,
    chosen_class,
    classes_of_run,
    note,
    refuse_labels,
    rows_of_run,
    set_up,
    set_weight_dtype,
    user_errors,
)
from pyar.cli.outputs import check_outputs
from pyar.data import Rows
from pyar.data.files import read_numpy
from pyar.evaluation import log_probs, order_log_probs, summarise
from pyar.files import atomic_write
from pyar.models import AutoregressiveModel
from pyar.plots import save_completions, save_order_curve, save_sheet
from pyar.sampling import labels_in_turn, open_writer, sample_chunks, shard_path, shard_range
from pyar.training.parallel import environment_rank

_SHEET_LIMIT = 400  # samples on a sheet; more could not be told apart


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints the exact NLL of examples; with other weights than the run's own, also what they do to it."""
    device = set_up(arguments)
    outputs = arguments.out or []
    check_outputs(outputs, (".npy", ".csv") if arguments.orders is None else (".npy", ".csv", ".png"))
    model, extra = load_with_extra(arguments.run, device)
    own_dtype = getattr(model, "weight_dtype", None)
    set_weight_dtype(arguments, model)
    refuse_labels(arguments, model)
    if tables.is_of_rows(model):
        return tables.evaluate(arguments, model, extra)
    rows = rows_of_run(arguments, model, extra)
    if arguments.orders is not None:
        return _evaluate_orders(arguments, model, rows, outputs)
    log_prob = log_probs(model, rows.x, arguments.batch_size, progress=arguments.progress, context=rows.context)
    for output in outputs:
        _write_scores(output, rows, log_prob)
    result = summarise(log_prob, rows, rows.split)
    facts = {"model": model.name, "run": arguments.run, **result.to_json()}
    weight_dtype, change = getattr(model, "weight_dtype", None), None
    if weight_dtype is not None:
        facts["weight_dtype"] = weight_dtype
    if weight_dtype != own_dtype:
        model.weight_dtype = own_dtype
        own = log_probs(model, rows.x, arguments.batch_size, progress=arguments.progress, context=rows.context)
        # The same examples under both: the standard error of the difference is far below that of either mean.
        change = summarise(log_prob.double() - own.double(), rows, rows.split)
        facts |= {"nll_change_nats": change.nll, "nll_change_standard_error_nats": change.standard_error}
    if arguments.json:
        print(json.dumps(facts))
        return 0
    print(result)
    if change is not None and change.nll is not None:
        error = "" if change.standard_error is None else f" ± {change.standard_error:.2g}"
        print(f"weights in {weight_dtype}: NLL {change.nll:+.2g}{error} nats against {own_dtype}")
    return 0


def _evaluate_orders(arguments: argparse.Namespace, model: AutoregressiveModel, rows: Rows, outputs: list[str]) -> int:
    """Prints the NLL under mixtures of more and more orders, and how far single orders disagree."""
    if not model.any_order:
        raise UserError(f"--orders is for models of any order, such as deep-nade; {model.name} has one order")
    most = max(arguments.orders)
    each = order_log_probs(model, rows.x, most, arguments.batch_size, progress=arguments.progress).double()
    mixtures = {M: torch.logsumexp(each[:, :M], dim=1) - math.log(M) for M in arguments.orders}
    results = {M: summarise(mixture, rows, rows.split) for M, mixture in mixtures.items()}
    single = -each.mean(dim=0)
    for output in outputs:
        if not output.endswith(".png"):
            _write_scores(output, rows, mixtures[most].float())
    for output in outputs:
        if output.endswith(".png"):
            if not len(rows.x):
                raise UserError(f"--out {output}: there is nothing to draw: {rows.name} has no examples")
            title = f"{model.name} on {rows.name} {rows.split} ({rows.preparation})"
            save_order_curve({M: float(r.nll) for M, r in results.items()}, single.tolist(), output, title)
    spread = None
    if most > 1 and len(rows.x):
        spread = {
            "lowest_nll_nats": single.min().item(),
            "highest_nll_nats": single.max().item(),
            "standard_deviation_per_example_nats": each.std(dim=1).mean().item(),
        }
    if arguments.json:
        curve = [{"orders": M, **result.to_json()} for M, result in results.items()]
        print(json.dumps({"model": model.name, "run": arguments.run, "curve": curve, "single_orders": spread}))
        return 0
    for M, result in results.items():
        print(f"{M:>4} order{'s' if M > 1 else ' '}  {result}")
    if spread is not None:
        print(
            f"single orders are different distributions: their NLL is {spread['lowest_nll_nats']:.2f} … "
            f"{spread['highest_nll_nats']:.2f} nats, and log p of one example differs between orders by "
            f"{spread['standard_deviation_per_example_nats']:.2f} nats (standard deviation)"
        )
    return 0


def _write_scores(path: str, rows: Rows, log_prob: Tensor) -> None:
    """log p of every example in the order of the rows: float32 [N] as .npy, a line each as .csv."""
    with atomic_write(path) as file:
        if path.endswith(".npy"):
            np.save(file, log_prob.numpy(), allow_pickle=False)
            return
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        names = [] if rows.files is None else [rows.files]
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["row", *(["file"] if names else []), "log_prob"])
        scores = (f"{value:.9g}" for value in log_prob.tolist())  # as many digits as a float32 has
        table.writerows(zip(range(len(log_prob)), *names, scores, strict=True))
        text.detach()


def _states_file(path: str, model: AutoregressiveModel, what: str) -> Tensor:
    """The one array of a .npy or .npz as states uint8, checked against the model."""
    if Path(path).suffix not in (".npy", ".npz"):
        raise UserError(f"{what} {path}: expected a .npy or .npz file")
    arrays = read_numpy(Path(path))
    if len(arrays) != 1:
        raise UserError(f"{what} {path}: expected one array, but it holds {', '.join(arrays) or 'none'}")
    (x,) = arrays.values()
    if x.dtype.kind not in "bui":
        raise UserError(f"{what} {path}: expected integer states, but the array is {x.dtype}")
    if x.size and (x.min() < 0 or x.max() >= model.num_states):
        raise UserError(f"{what} {path}: states should be 0 … {model.num_states - 1}, but are {x.min()} … {x.max()}")
    return torch.from_numpy(x.astype(np.uint8))


def _image_shape(extra: dict[str, Any]) -> tuple[int, int] | None:
    stored = extra.get("image_shape")
    return None if stored is None else (int(stored[0]), int(stored[1]))


def sample(arguments: argparse.Namespace) -> int:
    """Draws samples into files and pictures."""
    device = set_up(arguments)
    model, extra = load_with_extra(arguments.run, device)
    set_weight_dtype(arguments, model)
    classes = _classes_to_sample(arguments, model, extra)
    if tables.is_of_rows(model):
        return tables.sample(arguments, model, extra)
    outputs = arguments.out or ["samples.png"]
    check_outputs(outputs, (".npz", ".npy", ".png"))
    rank, size = environment_rank()
    sheets = [path for path in outputs if path.endswith(".png")]
    arrays = [path for path in outputs if not path.endswith(".png")]
    if sheets and size > 1:
        raise UserError("a picture is drawn by one process; under torchrun write .npz or .npy")
    given = None
    if arguments.given is not None:
        given = _states_file(arguments.given, model, "--given")
        if given.ndim not in (1, 2) or given.shape[-1] > model.dim:
            raise UserError(f"--given should be [G] or [N, G] with G ≤ {model.dim}, but is {list(given.shape)}")
    rows = None if given is None or given.ndim == 1 else len(given)
    number_of_each = 100 if classes is None else max(1, round(100 / len(classes))) * len(classes)
    total = arguments.num_samples or (number_of_each if rows is None else rows)
    if rows is not None and rows != total:
        raise UserError(f"--given has {rows} rows, but -n asks for {total} samples")
    first, number = shard_range(total, rank, size)
    if rows is not None:
        given = given[first : first + number]
    labels = None if classes is None else labels_in_turn(list(classes), number, arguments.first_index + first)

    chunks = sample_chunks(
        model,
        number,
        seed=arguments.seed,
        first_index=arguments.first_index + first,
        temperature=arguments.temperature,
        given=given,
        context=labels,
        chunk_size=arguments.chunk_size,
        progress=arguments.progress and rank == 0,
    )
    shown: list[Tensor] = []
    written = [str(shard_path(path, rank, size)) for path in arrays]
    with contextlib.ExitStack() as stack, user_errors(ValueError, RuntimeError):
        writers = [
            stack.enter_context(
                open_writer(
                    path,
                    number,
                    model.dim,
                    seed=arguments.seed,
                    first_index=arguments.first_index + first,
                    labels=labels,
                )
            )
            for path in written
        ]
        log_prob_sum, start = 0.0, time.monotonic()
        for x, log_prob in chunks:
            for writer in writers:
                writer.write(x, log_prob)
            log_prob_sum += log_prob.double().sum().item()
            if sheets and sum(map(len, shown)) < _SHEET_LIMIT:
                shown.append(x[:_SHEET_LIMIT].cpu())
        seconds = time.monotonic() - start
    for path in sheets:
        x = torch.cat(shown)[:_SHEET_LIMIT]
        drawn = None if labels is None else labels[: len(x)]
        save_sheet(x, path, model.num_states, _image_shape(extra), arguments.columns, drawn)
        if drawn is not None and len(drawn.unique()) > 1 and arguments.columns is None:
            note(f"{path}: a row for each of {', '.join(classes[number] for number in drawn.unique().tolist())}")
        if total > _SHEET_LIMIT:
            note(f"{path} shows the first {_SHEET_LIMIT} of {total:,} samples")
    result = {
        "run": arguments.run,
        "files": written + sheets,
        "num_samples": number,
        "seed": arguments.seed,
        "first_index": arguments.first_index + first,
        "temperature": arguments.temperature,
        **({} if classes is None else {"labels": list(classes.values())}),
        "mean_log_prob_nats": log_prob_sum / number if number else None,
        "seconds": seconds,
    }
    if arguments.json:
        print(json.dumps(result))
    elif number:
        of_class = f" of the class {', '.join(classes.values())}" if classes and len(classes) == 1 else ""
        print(
            f"{number:,} samples{of_class} in {seconds:.2f} s ({number / seconds:,.0f}/s), mean log-probability "
            f"{log_prob_sum / number:.2f} nats: {', '.join(written + sheets)}"
        )
    return 0


def _classes_to_sample(
    arguments: argparse.Namespace, model: AutoregressiveModel, extra: dict[str, Any]
) -> dict[int, str] | None:
    """{number: name} of the classes to sample in turn, by default all; None for a model that is given no labels."""
    names, labels = classes_of_run(model, extra), arguments.label or []
    if names is not None and (not labels or ("all" in labels and "all" not in names)):
        return dict(enumerate(names))
    chosen = [chosen_class(arguments, model, extra, label) for label in labels]
    return None if names is None else {number: names[number] for number in chosen}


def _observed_mask(model: AutoregressiveModel, what: float | str, shape: tuple[int, int] | None, seed: int) -> Tensor:
    """bool [D], what --observed says."""
    D = model.dim
    if isinstance(what, float):
        return _first_part(model, what, shape)
    if what.endswith(".npy"):
        (mask,) = read_numpy(Path(what)).values()
        if mask.size != D or mask.dtype.kind not in "bui" or not np.isin(mask, (0, 1)).all():
            raise UserError(f"--observed {what}: expected {D} times true or false, but it is {mask.dtype} {mask.shape}")
        return torch.from_numpy(mask.reshape(D).astype(bool))
    if what.startswith("random:"):
        u = torch.rand(D, generator=torch.Generator().manual_seed(seed % 2**63))
        return torch.zeros(D, dtype=torch.bool).index_fill_(0, u.argsort()[: round(float(what[7:]) * D)], True)
    if shape is None:
        raise UserError(f"--observed {what} is a part of an image, but the data are none")
    height, width = shape
    row, column = torch.arange(height)[:, None], torch.arange(width)
    return {
        "top": (row < height / 2).expand(shape),
        "bottom": (row >= height / 2).expand(shape),
        "left": (column < width / 2).expand(shape),
        "right": (column >= width / 2).expand(shape),
        "center": (abs(2 * row + 1 - height) < height / 2) & (abs(2 * column + 1 - width) < width / 2),
    }[what].flatten()


def _first_part(model: AutoregressiveModel, fraction: float, shape: tuple[int, int] | None) -> Tensor:
    """bool [D]: the first `fraction` of the model's order; whole rows of images in their own order."""
    own = model.order is None or model.any_order
    order = torch.arange(model.dim) if own else model.order.cpu()
    number = round(fraction * model.dim)
    if shape is not None and own:
        number = round(fraction * shape[0]) * shape[1]
    observed = torch.zeros(model.dim, dtype=torch.bool)
    observed[order[:number]] = True
    return observed


def complete(arguments: argparse.Namespace) -> int:
    """Draws completions of partly observed examples."""
    device = set_up(arguments)
    model, extra = load_with_extra(arguments.run, device)
    set_weight_dtype(arguments, model)
    if tables.is_of_rows(model):
        raise UserError(f"a table's rows are completed by pyar impute {arguments.run} --data … --out …")
    outputs = arguments.out or ["completions.png"]
    check_outputs(outputs, (".png", ".npz"))
    shape = _image_shape(extra)
    label = None if arguments.label is None else chosen_class(arguments, model, extra, arguments.label)
    if arguments.examples is not None:
        x, labels = _states_file(arguments.examples, model, "--examples"), None
        source = arguments.examples
        if model.num_classes is not None and label is None:
            raise UserError(f"{arguments.run} is given labels, which --examples has not; say one for all: --label L")
    else:
        rows = rows_of_run(arguments, model, extra, with_labels=label is None)
        x, labels, shape, source = rows.x, rows.context, rows.image_shape, f"{rows.name} {rows.split}"
    if x.ndim != 2 or x.shape[1] != model.dim:
        raise UserError(f"{source} should be [N, {model.dim}], but is {list(x.shape)}")
    if arguments.first is None:  # spread over all of them, since data sets are often sorted by class
        number = min(arguments.num_examples, len(x))
        chosen = torch.arange(number) * len(x) // max(number, 1)
    else:
        chosen = torch.arange(len(x))[arguments.first : arguments.first + arguments.num_examples]
    x = x[chosen]
    if label is not None:
        labels = torch.full((len(x),), label)
    elif labels is not None:
        labels = labels[chosen]
    if len(x) == 0:
        raise UserError(f"{source} has no example number {arguments.first or 0}")
    observed = _observed_mask(model, arguments.observed, shape, arguments.seed)
    with user_errors(ValueError, RuntimeError):
        completions = model.complete(
            x.to(device),
            observed.to(device),
            arguments.completions,
            seed=arguments.seed,
            temperature=arguments.temperature,
            **({} if labels is None else {"context": labels.to(device)}),
        ).cpu()
    for path in sorted(outputs, key=lambda path: path.endswith(".png")):  # what was computed before its picture
        if path.endswith(".png"):
            save_completions(x, observed, completions, path, model.num_states, shape)
        else:
            arrays = {"original": x, "observed": observed, "completions": completions}
            arrays |= {} if labels is None else {"labels": labels}
            with atomic_write(path) as file:
                np.savez_compressed(file, **{name: array.numpy() for name, array in arrays.items()})
    result = {
        "run": arguments.run,
        "files": outputs,
        "source": source,
        "num_examples": len(x),
        "completions": arguments.completions,
        "observed_dimensions": int(observed.sum()),
        "seed": arguments.seed,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"{len(x)} examples of {source}, {result['observed_dimensions']} of {model.dim} dimensions observed, "
            f"{arguments.completions} completions each: {', '.join(outputs)}"
        )
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Says what is built and in use, and what a run holds."""
    facts: dict[str, Any] = {"pyar": pyar.__version__, **pyar.build_info(), "threads": torch.get_num_threads()}
    if arguments.run is not None:
        model, extra = load_with_extra(arguments.run, torch.device("cpu"))
        facts["run"] = {
            "path": arguments.run,
            "model": model.name,
            "config": model.config,
            "weights": sum(p.numel() for p in model.parameters()),
            **extra,
        }
    if arguments.json:
        print(json.dumps(facts))
        return 0
    run = facts.pop("run", None)
    _print_facts(facts)
    if run is not None:
        run["config"].pop("order", None)
        columns = tables.columns_of_run(model, extra) if tables.is_of_rows(model) else None
        for facts in (run, run["config"]):
            if "columns" in facts and columns is not None:
                facts["columns"] = len(columns)
        print()
        _print_facts(run)
        if columns is not None:
            print(f"\n{columns.describe()}")
    return 0


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_facts(value, indent + "  ")
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value)) or "none"
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        print(f"{indent}{name:<{width}}  {'none' if value is None else value}")
