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

from pyar.data.dataset import SPLITS, DataError, permutation, split_sizes
from pyar.data.files import read_numpy
from pyar.data.tables import PARQUET_SUFFIXES, is_table, read_any_table
from pyar.tables import Columns, Kind, KindOrName, Real
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
    """A file's table as a pandas frame: .csv, .tsv and their compressed forms, .parquet, .npz with a column an array.

    Args:
        path: the file.
        drop: names of columns that are left out.

    Raises:
        DataError: the file cannot be read as a table, or lacks a column that is to be left out.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix == ".npz":
        arrays = read_numpy(path)
        lengths = {name: array.shape for name, array in arrays.items()}
        if not arrays or any(len(shape) != 1 for shape in lengths.values()) or len(set(lengths.values())) > 1:
            raise DataError(f"{path}: expected an array [N] for each column, but it holds {lengths or 'none'}")
        frame = pd.DataFrame(arrays)
    elif is_table(path):
        frame = read_any_table(path)
    else:
        kinds = ", ".join((".csv", ".tsv", *PARQUET_SUFFIXES, ".npz"))
        raise DataError(f"{path}: tables are read from {kinds} (.csv and .tsv also compressed)")
    names = names_of(frame)
    lacking = [name for name in drop if name not in names]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r} to leave out; there are {', '.join(map(str, names))}")
    return take_columns(frame, [name for name in names if name not in drop])


def split_table(path: Path, *, kinds: Mapping[str, KindOrName] | None = None, drop: Sequence[str] = ()) -> TableData:
    """A file's table, split 80/10/10 in a fixed random order; numbers are standardised with the train split.

    Args:
        path, drop: as read_frame.
        kinds: what columns are that shall not be decided from the values.

    Raises:
        DataError: as read_frame, or a column cannot be one.
    """
    frame = read_frame(path, drop)
    try:
        columns = Columns.from_frame(frame, kinds)
        train, valid, _ = split_sizes(len(frame))
        order = permutation(len(frame), 0)
        borders = {"train": order[:train], "valid": order[train : train + valid], "test": order[train + valid :]}
        columns = columns.standardized(frame.iloc[borders["train"]])
        x = columns.encode(frame)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    return TableData(path.name, columns, **{split: x[rows] for split, rows in borders.items()})
