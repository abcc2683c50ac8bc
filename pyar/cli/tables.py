"""`pyar score` and `pyar impute`, and what evaluate and sample do with a model of a table."""

from __future__ import annotations

import argparse
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

from pyar.checkpoint import load_with_extra
from pyar.cli.common import UserError, note, notices, set_up, table_of_run, user_errors
from pyar.cli.outputs import check_outputs
from pyar.data import TableData, find_table
from pyar.data.frames import check_no_holes, numbering_column, split_column
from pyar.evaluation import in_own_units, log_probs, order_log_probs, summarise
from pyar.files import atomic_write
from pyar.models import AutoregressiveModel, DensityModel
from pyar.models.table_nade import TableNADE
from pyar.plots import decoration
from pyar.table_plots import excess_surprise, save_surprise, save_table_samples
from pyar.tables import Columns, Kind
from pyar.tables.kinds import Categorical, Integer, Real

_TABLES = (".csv", ".parquet")
_ORDERS = 8  # that are mixed where none are said
_SCORED = 500  # rows at a time
_TOLD = 5  # rows that `pyar score` names
_PICTURED = 5000  # rows of data, and samples, in a picture


def score(arguments: argparse.Namespace) -> int:
    """Writes log p of every row and the surprise of every cell, and tells the most surprising ones."""
    import pandas as pd

    device = set_up(arguments)
    check_outputs([arguments.out] if arguments.out else [], _TABLES)
    check_outputs([arguments.picture] if arguments.picture else [], (".png",), "--picture")
    model, extra = load_with_extra(arguments.run, device)
    columns = columns_of_run(model, extra, arguments.run)
    frame, x = _rows(arguments, columns, extra)
    log_prob, surprise = _scores(arguments, model, columns, x)
    if arguments.out is not None:
        scores = {"log_prob": log_prob.numpy()}
        scores |= {f"surprise of {name}": surprise[:, d].double().numpy() for d, name in enumerate(columns)}
        taken = [name for name in scores if name in frame.columns]
        if taken:
            raise UserError(f"{arguments.data} has a column {taken[0]!r} already, which --out would hold: rename it")
        _write_frame(pd.concat([frame, pd.DataFrame(scores, index=frame.index)], axis=1), arguments.out)
    if arguments.picture is not None and len(x):
        with decoration(arguments.picture):
            save_surprise(surprise, log_prob, columns, arguments.picture)
    rows = torch.argsort(log_prob)[:_TOLD].tolist()
    excess = torch.from_numpy(excess_surprise(surprise.double().numpy())) if len(x) else surprise
    mean = log_prob.mean().item() if len(x) else None
    if arguments.json:
        told = [
            {"row": row, "log_prob_nats": log_prob[row].item(), "cells": _cells(columns, x, surprise, row)}
            for row in rows
        ]
        print(json.dumps({"run": arguments.run, "rows": len(x), "mean_log_prob_nats": mean, "least_probable": told}))
        return 0
    if mean is None:
        print(f"{arguments.data} has no rows")
        return 0
    print(
        f"{len(x):,} rows, mean log-density {mean:.2f} nats; the least probable, and their most surprising cells "
        "(nats above the column's median):"
    )
    for row in rows:
        cells = [
            f"{cell['column']} = {cell['value']} ({cell['excess_surprise_nats']:+.1f})"
            for cell in _cells(columns, x, excess, row)
        ]
        print(f"  row {row}  {log_prob[row].item():9.2f}   {', '.join(cells)}")
    for path in (arguments.out, arguments.picture):
        if path is not None:
            print(f"written: {path}")
    return 0


def impute(arguments: argparse.Namespace) -> int:
    """Writes a table whose missing values are drawn given the rest of their rows."""
    from pyar.sklearn import TableDensity

    device = set_up(arguments)
    check_outputs([arguments.out], _TABLES)
    model, extra = load_with_extra(arguments.run, device)
    if not isinstance(model, TableNADE):
        raise UserError(f"{arguments.run} is a {model.name}, which fills no holes; train one with pyar train table")
    frame, x = _rows(arguments, model.columns, extra)
    density = TableDensity.of_model(model, orders=arguments.orders or _ORDERS)
    known = frame[list(model.columns)]
    number, best = arguments.num_samples, arguments.best_guess
    with user_errors(ValueError, RuntimeError):
        tables = density.impute(known, number, best_guess=best, random_state=arguments.seed)
    written = []
    for j, table in enumerate(tables if isinstance(tables, list) else [tables]):
        path = Path(arguments.out)
        path = path if number == 1 else path.with_name(f"{path.stem}-{j}{path.suffix}")
        filled = frame.copy()
        for name in model.columns:
            filled[name] = table[name]
        _write_frame(_whole(filled, model.columns), str(path))
        written.append(str(path))
    holes = int(x.isnan().sum())
    if arguments.json:
        print(
            json.dumps(
                {"run": arguments.run, "files": written, "rows": len(x), "imputed": holes, "seed": arguments.seed}
            )
        )
    else:
        print(f"{holes:,} missing values of {len(x):,} rows filled: {', '.join(written)}")
    return 0


def sample(arguments: argparse.Namespace, model: DensityModel, extra: dict[str, Any]) -> int:
    """Draws rows into files and pictures."""
    outputs = arguments.out or ["samples.csv"]
    check_outputs(outputs, (*_TABLES, ".png"))
    columns, number = columns_of_run(model, extra, arguments.run), arguments.num_samples or 100
    given, units = None if arguments.given is None else _given(arguments.given, columns), 0.0
    if not isinstance(model, TableNADE):
        units = columns.log_scales.sum().item()
        if given is not None:
            units = columns.log_scales[given.isnan()].sum().item()
            given = _first_steps(model, given, columns)
    start = time.monotonic()
    parts, total = [], 0.0
    with user_errors(ValueError, RuntimeError):
        for first in range(0, number, arguments.chunk_size):
            x, log_prob = model.sample_and_log_prob(
                min(arguments.chunk_size, number - first),
                seed=arguments.seed,
                first_index=arguments.first_index + first,
                temperature=arguments.temperature,
                given=given,
            )
            parts.append(x.cpu())
            total += (log_prob.double() - units).sum().item()
    x, seconds = torch.cat(parts), time.monotonic() - start
    for path in outputs:
        if not path.endswith(".png"):
            _write_frame(columns.decode(x), path)
            continue
        data = table_of_run(arguments, model, extra)
        with decoration(path):
            save_table_samples(data.train[:_PICTURED], x[:_PICTURED], columns, path)
    result = {
        "run": arguments.run,
        "files": outputs,
        "num_samples": number,
        "seed": arguments.seed,
        "first_index": arguments.first_index,
        "mean_log_prob_nats": total / number,
        "seconds": seconds,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"{number:,} rows in {seconds:.2f} s ({number / seconds:,.0f}/s), mean log-density {total / number:.2f} "
            f"nats: {', '.join(outputs)}"
        )
    return 0


def evaluate(arguments: argparse.Namespace, model: DensityModel, extra: dict[str, Any]) -> int:
    """Prints the NLL of a split of what the run was trained on, under mixtures of more and more orders."""
    if arguments.data is not None:
        raise UserError(f"rows of another table are scored by pyar score {arguments.run} --data {arguments.data}")
    if arguments.out is not None:
        raise UserError(f"--out: scores of a table's rows are written by pyar score {arguments.run} --data … --out …")
    data, split = table_of_run(arguments, model, extra), arguments.split or "test"
    if not isinstance(model, TableNADE):
        if arguments.orders is not None:
            raise UserError(f"--orders: {arguments.run} is a {model.name}, which has one order")
        log_prob = log_probs(model, data.split(split), arguments.batch_size, progress=arguments.progress)
        result = summarise(in_own_units(model, log_prob, data), data, split)
        facts = {"model": model.name, "run": arguments.run, **result.to_json()}
        print(json.dumps(facts) if arguments.json else result)
        return 0
    numbers = arguments.orders or [1]
    each = order_log_probs(model, data.split(split), max(numbers), arguments.batch_size, progress=arguments.progress)
    curve = []
    for M in numbers:
        mixture = torch.logsumexp(each[:, :M].double(), dim=1) - math.log(M)
        curve.append({"orders": M, "result": summarise(mixture, data, split)})
    if arguments.json:
        facts = [{"orders": point["orders"], **point["result"].to_json()} for point in curve]
        print(json.dumps({"model": model.name, "run": arguments.run, "curve": facts}))
        return 0
    for point in curve:
        M = point["orders"]
        print(f"{M:>4} order{'s' if M > 1 else ' '}  {point['result']}")
    return 0


def picture_samples(model: DensityModel, data: TableData, number: int, seed: int, path: Path) -> None:
    """The picture of a training run: the table beside samples."""
    save_table_samples(data.train[:_PICTURED], model.sample(number, seed=seed).cpu(), data.columns, path)


def is_of_rows(model: DensityModel) -> bool:
    """Whether it is a model of a table's rows, of mixed columns or of real vectors, and not of states."""
    return not isinstance(model, AutoregressiveModel)


def columns_of_run(model: DensityModel, extra: dict[str, Any], run: str = "the file") -> Columns:
    """The model's columns; of a model of real vectors those that its training kept beside it."""
    if isinstance(model, TableNADE):
        return model.columns
    if isinstance(model, AutoregressiveModel):
        raise UserError(f"{run} is a {model.name}, which is no model of a table; train one with pyar train table")
    if "columns" not in extra:
        raise UserError(f"{run} is a {model.name} that does not say what its columns are: pyar train keeps them")
    with user_errors(ValueError, TypeError):
        return Columns.from_json(extra["columns"])


def _scores(arguments: argparse.Namespace, model: DensityModel, columns: Columns, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's log-density, float64 [N], and every cell's surprise [N, D], in nats and the columns' own units.

    A model of real vectors has one order: a cell's surprise there is that given the cells before it.
    """
    device, number = next(model.parameters()).device, arguments.orders or _ORDERS
    if isinstance(model, TableNADE):
        each = order_log_probs(model, x, number, progress=arguments.progress).double()
        with torch.inference_mode():
            parts = [model.surprise(part.to(device)).cpu() for part in x.split(_SCORED)]
        return torch.logsumexp(each, dim=1) - math.log(number), torch.cat(parts) if parts else x
    if arguments.orders is not None:
        raise UserError(f"--orders: {arguments.run} is a {model.name}, which has one order")
    check_no_holes(x, columns, arguments.data)
    with torch.inference_mode():
        parts = [-model.conditional_log_prob(part.to(device)).cpu() for part in x.split(_SCORED)]
    surprise = (torch.cat(parts) if parts else x) + columns.log_scales
    return -surprise.double().sum(dim=1), surprise


def _first_steps(model: DensityModel, given: Tensor, columns: Columns) -> Tensor:
    """Of one encoded row [D] with NaN elsewhere, what a model of one order is given, [G]: its first columns alone."""
    order = torch.arange(model.dim) if model.order is None else model.order.cpu()
    there = ~given[order].isnan()
    number = int(there.sum())
    if not there[:number].all():
        first = ", ".join(repr(columns.names[d]) for d in order[:number].tolist())
        raise UserError(
            f"--given: a {model.name} has one order and takes values of its first columns alone, here {first}; "
            "pyar train table takes those of any"
        )
    return given[order[:number]]


def _rows(arguments: argparse.Namespace, columns: Columns, extra: dict[str, Any]) -> tuple[Any, Tensor]:
    """The table --data names, whole, and its rows encoded. Columns that training left out may be there."""
    with notices(), user_errors(ValueError, TypeError):
        frame = find_table(arguments.data, data_dir=arguments.data_dir)
        left_out = [*(extra.get("data_spec") or {}).get("drop", []), split_column(frame), numbering_column(frame)]
        names = [name for name in frame.columns if name in columns or name not in left_out]
        try:
            return frame, columns.encode(frame[names])
        except (ValueError, TypeError) as error:
            raise UserError(f"{arguments.data}: {error}") from error


def _cells(columns: Columns, x: Tensor, excess: Tensor, row: int) -> list[dict[str, Any]]:
    """The three most surprising cells of a row, each beside the median cell of its column."""
    shown = columns.decode(x[row : row + 1])
    order = torch.argsort(excess[row].nan_to_num(-math.inf), descending=True)[:3].tolist()
    return [
        {
            "column": columns.names[d],
            "value": _plain(shown.iloc[0, d]),
            "excess_surprise_nats": excess[row, d].item(),
        }
        for d in order
        if not math.isnan(excess[row, d])
    ]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _given(text: str, columns: Columns) -> Tensor:
    """The values of --given "age=40,sex=female" as one encoded row [D], NaN elsewhere; quotes as in csv."""
    import pandas as pd

    values: dict[Any, Any] = {}
    for part in next(csv.reader([text], skipinitialspace=True)):
        title, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f'--given should be like "age=40,sex=female", but {part!r} has no "="')
        named = [name for name in columns if str(name) == title]
        with user_errors(ValueError):
            columns.index(named[0] if named else title)
        if named[0] in values:
            raise UserError(f"--given: the column {title!r} stands twice")
        values[named[0]] = [_given_value(title, value, columns[named[0]])]
    with user_errors(ValueError, TypeError):
        return columns.encode(pd.DataFrame(values), subset=True)[0]


def _given_value(title: str, text: str, kind: Kind) -> Any:
    """A number, or the category that is written so."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not isinstance(kind, Categorical):
        if math.isnan(number):
            raise UserError(f"--given: the column {title!r} holds numbers, {text!r} is none")
        return number
    written = {str(level): level for level in kind.levels}
    truths = {str(level).lower(): level for level in kind.levels if isinstance(level, bool)}
    numbers = {level: level for level in kind.levels if not isinstance(level, str)}
    return written.get(text, truths.get(text.lower(), numbers.get(number, text)))


def _whole(frame: Any, columns: Columns) -> Any:
    """Whole numbers without a decimal point, where none is missing any more."""
    for name, kind in columns.items():
        whole = isinstance(kind, Integer) or (isinstance(kind, Real) and kind.resolution == 1.0)
        if whole and frame[name].dtype.kind == "f" and not frame[name].isna().any():
            frame[name] = frame[name].astype(np.int64)
    return frame


def _write_frame(frame: Any, path: str) -> None:
    with atomic_write(path) as file:
        if path.endswith(".csv"):
            text = io.TextIOWrapper(file, "utf-8", newline="")
            frame.to_csv(text, index=False)
            text.detach()
            return
        try:
            import pyarrow  # noqa: F401  pandas' writer of this format
        except ImportError as error:
            raise UserError(f"{path} needs pyarrow: pip install 'pyar[parquet]'; or write .csv") from error
        frame.to_parquet(file, index=False)


def tell_columns(columns: Columns) -> None:
    """What was decided of the columns, on stderr."""
    for line in columns.describe().splitlines():
        note(f"  {line}")
