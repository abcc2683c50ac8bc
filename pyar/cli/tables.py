"""`pyar score` and `pyar impute`, and what evaluate and sample do with a model of a table."""

from __future__ import annotations

import argparse
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
from pyar.data import find_table
from pyar.evaluation import order_log_probs, summarise
from pyar.files import atomic_write
from pyar.models.table_nade import TableNADE
from pyar.plots import decoration
from pyar.table_plots import excess_surprise, save_surprise, save_table_samples
from pyar.tables import Columns
from pyar.tables.kinds import Categorical, Integer, Real

_TABLES = (".csv", ".parquet")
_TOLD = 5  # rows that `pyar score` names
_PICTURED = 5000  # rows of data, and samples, in a picture


def score(arguments: argparse.Namespace) -> int:
    """Writes log p of every row and the surprise of every cell, and tells the most surprising ones."""
    device = set_up(arguments)
    check_outputs([arguments.out] if arguments.out else [], _TABLES)
    check_outputs([arguments.picture] if arguments.picture else [], (".png",))
    model, extra = _table_model(arguments.run, device)
    frame, x = _rows(arguments, model, extra)
    each = order_log_probs(model, x, arguments.orders, progress=arguments.progress).double()
    log_prob = torch.logsumexp(each, dim=1) - math.log(arguments.orders)
    with torch.inference_mode():
        parts = [model.surprise(part.to(device)).cpu() for part in x.split(500)]
    surprise = torch.cat(parts) if parts else x
    if arguments.out is not None:
        scores = {"log_prob": log_prob.numpy()}
        scores |= {f"surprise of {name}": surprise[:, d].double().numpy() for d, name in enumerate(model.columns)}
        _write_frame(frame.assign(**scores), arguments.out)
    if arguments.picture is not None and len(x):
        with decoration(arguments.picture):
            save_surprise(surprise, log_prob, model.columns, arguments.picture)
    rows = torch.argsort(log_prob)[:_TOLD].tolist()
    excess = torch.from_numpy(excess_surprise(surprise.double().numpy())) if len(x) else surprise
    mean = log_prob.mean().item() if len(x) else None
    if arguments.json:
        told = [
            {"row": row, "log_prob_nats": log_prob[row].item(), "cells": _cells(model, x, surprise, row)}
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
            for cell in _cells(model, x, excess, row)
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
    model, extra = _table_model(arguments.run, device)
    frame, x = _rows(arguments, model, extra)
    density = TableDensity.of_model(model, orders=arguments.orders)
    known = frame[list(model.columns)]
    number, best = arguments.num_samples, arguments.best_guess
    with user_errors(ValueError, RuntimeError):
        tables = density.impute(known, number, best_guess=best, random_state=arguments.seed)
    written = []
    for j, table in enumerate(tables if isinstance(tables, list) else [tables]):
        path = Path(arguments.out)
        path = path if number == 1 else path.with_name(f"{path.stem}-{j}{path.suffix}")
        _write_frame(_whole(frame.assign(**{name: table[name] for name in model.columns}), model.columns), str(path))
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


def sample(arguments: argparse.Namespace, model: TableNADE, extra: dict[str, Any]) -> int:
    """Draws rows into files and pictures."""
    outputs = arguments.out or ["samples.csv"]
    check_outputs(outputs, (*_TABLES, ".png"))
    columns, number = model.columns, arguments.num_samples or 100
    given = None if arguments.given is None else _given(arguments.given, columns)
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
            total += log_prob.double().sum().item()
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


def evaluate(arguments: argparse.Namespace, model: TableNADE, extra: dict[str, Any]) -> int:
    """Prints the NLL of a split of what the run was trained on, under mixtures of more and more orders."""
    if arguments.data is not None:
        raise UserError(f"rows of another table are scored by pyar score {arguments.run} --data {arguments.data}")
    if arguments.out is not None:
        raise UserError(f"--out: scores of a table's rows are written by pyar score {arguments.run} --data … --out …")
    data, split = table_of_run(arguments, model, extra), arguments.split or "test"
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


def picture_samples(model: TableNADE, data: Tensor, number: int, seed: int, path: Path) -> None:
    """The picture of a training run: the table beside samples."""
    save_table_samples(data[:_PICTURED], model.sample(number, seed=seed).cpu(), model.columns, path)


def _table_model(run: str, device: torch.device) -> tuple[TableNADE, dict[str, Any]]:
    model, extra = load_with_extra(run, device)
    if not isinstance(model, TableNADE):
        raise UserError(f"{run} is a {model.name}, which is no model of a table; train one with pyar train table")
    return model, extra


def _rows(arguments: argparse.Namespace, model: TableNADE, extra: dict[str, Any]) -> tuple[Any, Tensor]:
    """The table --data names, whole, and its rows encoded. Columns that training left out may be there."""
    with notices(), user_errors(ValueError, TypeError):
        frame = find_table(arguments.data, data_dir=arguments.data_dir)
        left_out = (extra.get("data_spec") or {}).get("drop", [])
        names = [name for name in frame.columns if name in model.columns or name not in left_out]
        try:
            return frame, model.columns.encode(frame[names])
        except (ValueError, TypeError) as error:
            raise UserError(f"{arguments.data}: {error}") from error


def _cells(model: TableNADE, x: Tensor, excess: Tensor, row: int) -> list[dict[str, Any]]:
    """The three most surprising cells of a row, each beside the median cell of its column."""
    shown = model.columns.decode(x[row : row + 1])
    order = torch.argsort(excess[row].nan_to_num(-math.inf), descending=True)[:3].tolist()
    return [
        {
            "column": model.columns.names[d],
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
    """The values of --given "age=40,sex=female" as one encoded row [D], NaN elsewhere."""
    import pandas as pd

    values: dict[Any, Any] = {}
    for part in text.split(","):
        title, equals, value = part.partition("=")
        if not equals:
            raise UserError(f'--given should be like "age=40,sex=female", but {part!r} has no "="')
        named = [name for name in columns if str(name) == title.strip()]
        with user_errors(ValueError):
            columns.index(named[0] if named else title.strip())
        kind, value = columns[named[0]], value.strip()
        if isinstance(kind, Categorical):
            same = [level for level in kind.levels if str(level) == value]
            values[named[0]] = [same[0] if same else value]
            continue
        try:
            values[named[0]] = [float(value)]
        except ValueError:
            raise UserError(f"--given: the column {title.strip()!r} holds numbers, {value!r} is none") from None
    with user_errors(ValueError, TypeError):
        return columns.encode(pd.DataFrame(values), subset=True)[0]


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
