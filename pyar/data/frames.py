"""`TableData`: a table of mixed columns in three splits, and how it is read from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyar.data.dataset import SPLITS, DataError, permutation, split_sizes
from pyar.data.files import read_numpy
from pyar.data.folders import notice
from pyar.data.names import by_split, meaning
from pyar.data.tables import PARQUET_SUFFIXES, SPLIT_COLUMNS, is_table, read_any_table
from pyar.tables import Columns, Kind, KindOrName, Real
from pyar.tables.decide import warn_of_repeats
from pyar.tables.frames import names_of, take_columns


@dataclass(frozen=True)
class TableData:
    """Three splits of a table's rows, encoded, and what its columns are; what `Dataset` is for states.

    `columns`: whose numbers are standardised with the train split. `train`, `valid`, `test`: float32 [N, D], NaN for
    missing.
    """

    name: str
    columns: Columns
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor

    dynamic = False
    image_shape = None
    num_classes = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            x = getattr(self, split)
            if x.dtype != torch.float32 or x.ndim != 2 or x.shape[1] != self.dim:
                raise DataError(
                    f"{self.name}: {split} should be float32 [N, {self.dim}], but is {x.dtype} {list(x.shape)}"
                )
        if len(self.train) == 0:
            raise DataError(f"{self.name}: the train split is empty")

    @property
    def dim(self) -> int:
        """D, the number of columns."""
        return len(self.columns)

    @property
    def preparation(self) -> str:
        """What a figure depends on: how many columns have a density, and the least scale of its components."""
        floors = sorted({kind.min_scale for kind in self.columns.values() if _is_density(kind)})
        densities = sum(map(_is_density, self.columns.values()))
        parts = []
        if densities:
            least = " and ".join(f"{floor:g}" for floor in floors)
            parts.append(f"{densities} densit{'y' if densities == 1 else 'ies'} with scales of at least {least} sd")
        if densities < self.dim:
            parts.append(f"{self.dim - densities} probabilit{'y' if self.dim - densities == 1 else 'ies'}")
        return ", ".join(parts)

    def split(self, name: str) -> torch.Tensor:
        """One split by its name."""
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")
        return getattr(self, name)

    def context(self, split: str) -> None:
        """None: a table's labels, if it has such, are columns like the others."""

    def train_states(self, seed: int, epoch: int) -> torch.Tensor:
        """The train split, the same in every epoch."""
        return self.train

    def fingerprint(self) -> str:
        """SHA-256 over the columns and the splits: the same for the same data, however it was stored."""
        digest = hashlib.sha256(json.dumps(self.columns.to_json()).encode())
        for split in SPLITS:
            digest.update(f"{list(self.split(split).shape)} ".encode())
            digest.update(np.ascontiguousarray(self.split(split).numpy()).data)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: name, preparation, sizes."""
        sizes = " / ".join(f"{len(self.split(s)):,}" for s in SPLITS)
        missing = float(torch.cat([self.split(split) for split in SPLITS]).isnan().double().mean())
        holes = f", {missing:.1%} missing" if missing else ""
        return f"{self.name} ({self.preparation}), {self.dim} columns{holes}, {sizes} train/valid/test"


def _is_density(kind: Kind) -> bool:
    return isinstance(kind, Real) and kind.resolution is None


def read_frame(path: Path, drop: Sequence[str] = ()) -> Any:
    """A file's table as a pandas frame: .csv, .tsv and their compressed forms, .parquet, .npz, .npy.

    A NumPy file holds an array [N] for each column; or one of all columns [N, D], which are then called 0 … D−1; or
    such arrays train, valid and test, which a column "split" then tells.

    Args:
        path: the file.
        drop: names of columns that are left out.

    Raises:
        DataError: the file cannot be read as a table, or lacks a column that is to be left out.
    """
    import pandas as pd

    if path.is_dir():
        raise DataError(f"{path} is a folder; a table is one file")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix in (".npz", ".npy"):
        frame = pd.DataFrame(_columns_of_arrays(path, read_numpy(path)))
    elif is_table(path):
        frame = read_any_table(path)
    else:
        kinds = ", ".join((".csv", ".tsv", *PARQUET_SUFFIXES, ".npz", ".npy"))
        raise DataError(f"{path}: tables are read from {kinds} (.csv and .tsv also compressed)")
    try:
        names = names_of(frame)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    lacking = [name for name in drop if name not in names]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r} to leave out; there are {', '.join(map(str, names))}")
    kept = [name for name in names if name not in drop]
    if not kept:
        raise DataError(f"{path} has no columns{' that are not left out' if names else ''}")
    return take_columns(frame, kept)


def _columns_of_arrays(path: Path, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """The arrays [N] as they are; the columns of one array [N, D], or of several that are splits and have as many."""
    shapes = {name: array.shape for name, array in arrays.items()}
    dims = {array.ndim for array in arrays.values()}
    if dims == {1} and len(set(shapes.values())) == 1:
        return {name or "0": array for name, array in arrays.items()}  # a .npy says no name
    said = by_split(arrays)[0]
    splits = {names[0]: split for split, names in said.items()} if len(arrays) > 1 else dict.fromkeys(arrays, "")
    if dims == {2} and splits.keys() == arrays.keys() and len({shape[1] for shape in shapes.values()}) == 1:
        matrix = np.concatenate([arrays[name] for name in splits])
        columns = {str(d): matrix[:, d] for d in range(matrix.shape[1])}
        if len(splits) > 1:
            columns["split"] = np.repeat(list(splits.values()), [len(arrays[name]) for name in splits])
        return columns
    raise DataError(
        f"{path}: expected an array [N] for each column, one of all columns [N, D], or such ones called train, valid "
        f"and test, but it holds {shapes or 'none'}"
    )


def split_column(frame: Any) -> str | int | None:
    """The name of the column, if there is one, that says which split a row belongs to: train, valid or test."""
    for name in names_of(frame):
        if str(name).strip().lower() not in SPLIT_COLUMNS:
            continue
        values = frame[name]
        kinds = [meaning(str(value)) for value in values.dropna().unique()]
        if kinds and not values.isna().any() and all(kind.split and not kind.rest for kind in kinds):
            return name
    return None


def numbering_column(frame: Any) -> str | int | None:
    """The name of the first column if it has none to speak of and numbers the rows, as pandas writes its index."""
    name = names_of(frame)[0]
    if len(frame.columns) < 2 or str(name).strip().lower() not in ("", "unnamed: 0", "__index_level_0__"):
        return None
    values = frame[name]
    if values.dtype.kind not in "iu" or len(values) == 0:
        return None
    return name if values.iloc[0] in (0, 1) and (values.diff()[1:] == 1).all() else None


def _split_sizes(path: Path, rows: int) -> tuple[int, int, int]:
    try:
        return split_sizes(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _rows_of_splits(path: Path, frame: Any, column: str | int | None) -> dict[str, NDArray[np.int64]]:
    """Every split's rows: as the column says, without which 80/10/10; valid is a tenth of train where there is none."""
    if column is None:
        train, valid, _ = _split_sizes(path, len(frame))
        order = permutation(len(frame), 0)
        return {"train": order[:train], "valid": order[train : train + valid], "test": order[train + valid :]}
    notice(f"{path}: the column {column!r} says which split a row belongs to")
    said = np.array([meaning(str(value)).split for value in frame[column]])
    rows = {split: np.flatnonzero(said == split) for split in SPLITS}
    if len(rows["train"]) == 0:
        raise DataError(f"{path}: the column {column!r} names no row of train")
    if len(rows["valid"]) == 0:
        order, border = permutation(len(rows["train"]), 0), _split_sizes(path, len(rows["train"]))[1]
        rows["train"], rows["valid"] = rows["train"][order[border:]], rows["train"][order[:border]]
    return rows


def split_table(
    path: Path,
    *,
    kinds: Mapping[str, KindOrName] | None = None,
    drop: Sequence[str] = (),
    every: Real | None = None,
) -> TableData:
    """A file's table in three splits; numbers are standardised with the train split.

    A column called split (or subset, partition, set, fold) that holds train, valid and test says which row belongs
    where. Without one rows are split 80/10/10 in a fixed random order.

    Args:
        path, drop: as read_frame.
        kinds: what columns are that shall not be decided from the values.
        every: what every column is, for models of real vectors: none may miss a value then.

    Raises:
        DataError: as read_frame, or a column cannot be one.
    """
    frame = read_frame(path, drop)
    try:
        column, numbering = split_column(frame), numbering_column(frame)
        rows = _rows_of_splits(path, frame, column)
        if numbering is not None and numbering not in (kinds or {}):
            notice(f"{path}: the first column numbers the rows and is left out")
            frame = take_columns(frame, [name for name in frame.columns if name != numbering])
        frame = take_columns(frame, [name for name in frame.columns if name != column])
        if every is not None:
            kinds = dict.fromkeys(frame.columns, every)
        columns = Columns.from_frame(frame, kinds).standardized(frame.iloc[rows["train"]])
        x = columns.encode(frame)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if every is not None:
        check_no_holes(x, columns, str(path))
        warn_of_repeats(frame, str(path), stacklevel=2)
    return TableData(path.name, columns, **{split: x[rows[split]] for split in SPLITS})


def check_no_holes(x: torch.Tensor, columns: Columns, title: str) -> None:
    """Raises DataError where a value is missing, for models of real vectors; the message begins with `title`."""
    holes = x.isnan()
    if not holes.any():
        return
    d = int(holes.any(dim=0).int().argmax())
    raise DataError(
        f"{title}: column {columns.names[d]!r} has {int(holes[:, d].sum()):,} missing values, the first in row "
        f"{int(holes[:, d].int().argmax())}; a model of real vectors takes none, that of pyar train table does"
    )
