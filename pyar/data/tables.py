"""Tables of columns: .csv, .tsv and their compressed forms, .parquet. Columns are dimensions, labels or row numbers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError
from pyar.data.folders import listed, notice
from pyar.data.names import meaning
from pyar.data.states import describe_positions

if TYPE_CHECKING:
    import pandas as pd

TEXT_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
_LABEL_COLUMNS = {"label", "labels", "y", "target", "targets", "class", "classes"}
_NUMBER_COLUMNS = {"", "id", "index", "idx", "row", "rowid", "row_id", "sample_id", "unnamed: 0", "__index_level_0__"}
SPLIT_COLUMNS = {"split", "subset", "partition", "set", "fold"}


def is_table(path: Path) -> bool:
    """Whether the name says that the file is a table, compressed or not."""
    name = path.name.lower()
    for suffix in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(suffix)
    return name.endswith(TEXT_SUFFIXES) or path.suffix.lower() in PARQUET_SUFFIXES


@dataclass(frozen=True)
class Table:
    """`values` [N, D], and what else the columns hold. `splits`: each row's "train", "valid" or "test"."""

    values: NDArray
    labels: NDArray | None = None
    splits: NDArray | None = None


def read_table(path: Path, dim: int | None = None, wanted_labels: bool | str = False) -> Table:
    """A table's columns. `dim`: of the model that is there already; it decides which columns are dimensions.

    `wanted_labels`: whether labels are to be used, or the name of their column.
    """
    frame, named = (_read_parquet(path), True) if path.suffix.lower() in PARQUET_SUFFIXES else _read_text(path)
    names = [str(name) for name in frame.columns]
    labels, splits, others = None, None, set()
    column = wanted_labels if isinstance(wanted_labels, str) else None
    if column is not None and column not in names:
        raise DataError(f"{path} has no column {column!r} of labels; its columns are {listed(names, limit=20)}")
    if dim is None or len(names) != dim or column is not None:
        lower = [name.strip().lower() if named else "" for name in names]
        # Beside an x, y is a coordinate.
        label_at = [
            i
            for i, name in enumerate(lower)
            if names[i] == column or (name in _LABEL_COLUMNS and not (name == "y" and "x" in lower))
        ]
        split_at = [i for i, name in enumerate(lower) if name in SPLIT_COLUMNS and i not in label_at]
        number_at = [
            i
            for i, name in enumerate(lower)
            if name in _NUMBER_COLUMNS
            and (name or i == 0)
            and len(names) > 1
            and i not in label_at
            and _numbers_rows(frame.iloc[:, i], name)
        ]
        if len(label_at) > 1 or len(split_at) > 1:
            several = ", ".join(repr(names[i]) for i in (label_at if len(label_at) > 1 else split_at))
            raise DataError(f"{path} has several columns of labels or splits ({several}); leave one, or rename them")
        for i in label_at:
            labels = _labels(path, names[i], frame.iloc[:, i])
            if not wanted_labels:
                notice(f"{path}: the column {names[i]!r} is taken for labels, not for a dimension (else rename it)")
        for i in split_at:
            splits = _splits(path, names[i], frame.iloc[:, i])
        for i in number_at:
            title = f"the column {names[i]!r}" if named and names[i] else "the first column"
            notice(f"{path}: {title} numbers the rows and is no dimension")
        others = {*label_at, *split_at, *number_at}
    positions = [i for i in range(len(names)) if i not in others]
    if not positions:
        raise DataError(f"{path} has no columns of values")
    titles = [f"column {names[i]!r}" if named else f"column {i}" for i in positions]
    values = _values(path, frame.iloc[:, positions] if others else frame, titles)
    if not named and dim is None and labels is None:
        _wonder_about_labels(path, values.shape[1])
    return Table(values, labels, splits)


def read_any_table(path: Path) -> pd.DataFrame:
    """All columns of a table as they are, whatever they hold; without names they are called 0, 1, …."""
    if path.suffix.lower() not in PARQUET_SUFFIXES:
        return _read_text(path)[0]
    frame = _read_parquet(path)
    # Columns that pandas had made an index are columns all the same.
    return frame.reset_index() if any(name is not None for name in frame.index.names) else frame


def _numbers_rows(column: pd.Series, name: str) -> bool:
    """Whether a column of this name, or a first one without a name, is the row's number or name and no value."""
    if name:
        return bool(column.is_unique)
    if column.dtype.kind not in "iu":
        return column.dtype.kind != "f" and column.is_unique  # names of rows, as R writes them
    first = int(column.iloc[0]) if len(column) else 0
    return first in (0, 1) and bool((column.to_numpy() == np.arange(first, first + len(column))).all())


def _labels(path: Path, name: str, column: pd.Series) -> NDArray:
    if column.isna().any():
        raise DataError(f"{path}: {int(column.isna().sum()):,} labels in the column {name!r} are missing")
    return column.to_numpy(dtype=getattr(column.dtype, "numpy_dtype", None))


def _splits(path: Path, name: str, column: pd.Series) -> NDArray:
    kinds = {str(value): meaning(str(value)) for value in column.unique()}
    if any(what.split is None or what.rest for what in kinds.values()):
        raise DataError(
            f"{path}: the column {name!r} looks like a split, but holds {listed(list(kinds))}; expected train, valid "
            "and test. Rename it if it is a dimension, or leave it out"
        )
    notice(f"{path}: the column {name!r} says which split a row belongs to")
    return np.array([kinds[str(value)].split for value in column])


def _values(path: Path, frame: pd.DataFrame, titles: list[str]) -> NDArray:
    import pandas as pd

    if len(frame) == 0:
        return np.zeros(frame.shape, dtype=np.uint8)
    types = list(frame.dtypes)
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "bui" for dtype in set(types)):  # those cannot miss any
        missing = frame.isna().to_numpy()
        if missing.any():
            raise DataError(f"{path}: some are NaN (missing): {describe_positions(missing, titles)}")
    numeric = {dtype: pd.api.types.is_numeric_dtype(dtype) and dtype != "category" for dtype in set(types)}
    for position, dtype in enumerate(types):
        if not numeric[dtype]:
            raise DataError(
                f"{path}: {titles[position]} holds no numbers ({str(frame.iloc[0, position])[:30]!r}, …); number its "
                "values 0 … K − 1, or leave it out"
            )
    kinds = {np.dtype(getattr(dtype, "numpy_dtype", dtype)) for dtype in numeric}
    return frame.to_numpy(dtype=np.result_type(*kinds))


def _wonder_about_labels(path: Path, dim: int) -> None:
    """The usual text form of MNIST has no header and the label in front."""
    side = round((dim - 1) ** 0.5)
    if dim > 16 and side * side == dim - 1 and round(dim**0.5) ** 2 != dim:
        notice(
            f"{path} has {dim} columns without names, {side}×{side} and one more; if one of them is the label, "
            "name the columns in the first line (label,…)"
        )


# --- Parquet ---


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow  # noqa: F401  pandas' reader of this format
    except ImportError as error:
        raise DataError(
            f"{path}: .parquet is read with pyarrow, which is not installed: pip install 'pyar[parquet]' (or pyarrow)"
        ) from error
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error


# --- Text ---


@dataclass(frozen=True)
class _Layout:
    """How a text table is written. `names`: of the columns; `named`: whether the file says them."""

    separator: str
    skip: int
    names: list[str]
    named: bool
    comment: str | None


def _read_text(path: Path) -> tuple[pd.DataFrame, bool]:
    import pandas as pd

    try:
        try:
            return _parse(path, "utf-16" if _start(path)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        except UnicodeDecodeError:
            return _parse(path, "latin-1")
    except DataError:
        raise
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {_first_line(error)}") from error
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def _parse(path: Path, encoding: str) -> tuple[pd.DataFrame, bool]:
    """The table, and whether the file names its columns."""
    with _opened(path) as binary, io.TextIOWrapper(binary, encoding=encoding, newline="") as text:
        layout = _layout(text, path)
        text.seek(0)
        frame = _parsed(text, layout, "," if layout.separator == ";" else ".")
        # Beside semicolons a comma is decimal, unless more columns are numbers without that.
        if layout.separator == ";" and _numeric(frame) < frame.shape[1]:
            text.seek(0)
            pointed = _parsed(text, layout, ".")
            frame = pointed if _numeric(pointed) > _numeric(frame) else frame
    names = layout.names
    if not names[-1] and len(names) > 1 and frame.iloc[:, -1].isna().all():  # a separator ends every line
        frame, names = frame.iloc[:, :-1], names[:-1]
    frame.columns = names
    return frame, layout.named


def _parsed(text: io.TextIOWrapper, layout: _Layout, decimal: str) -> pd.DataFrame:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # "this leads to a loss of data"
        return pd.read_csv(
            text,
            sep=layout.separator,
            header=None,
            names=list(range(len(layout.names))),
            skiprows=layout.skip,
            decimal=decimal,
            comment=layout.comment,
            na_values=["?"],
            index_col=False,
            low_memory=False,  # one type a column
            skipinitialspace=True,
        )


def _numeric(frame: pd.DataFrame) -> int:
    """How many columns hold numbers."""
    return frame.select_dtypes("number").shape[1]


def _layout(text: io.TextIOWrapper, path: Path) -> _Layout:
    """Separator, columns and header, from the first lines."""
    skip, comment, forced = 0, None, None
    lines: list[str] = []
    while len(lines) < 2 and (line := text.readline()):
        stripped = line.strip("\r\n")
        if not lines and (said := re.fullmatch(r"sep=(.)", stripped)):  # as Excel writes it
            forced = said[1]
        elif not lines and stripped.startswith("#"):
            comment = stripped.lstrip("# ")
        elif stripped.strip():
            lines.append(stripped)
            continue
        if not lines:
            skip += 1
    if not lines:
        raise DataError(f"{path} is empty")
    if any("\0" in line for line in lines):
        raise DataError(f"{path} is no text, whatever its name says")
    separator = forced or _separator(lines)
    first, *others = [_fields(line, separator) for line in lines]
    second = others[0] if others else None
    sign = None if comment is None else "#"
    if second is not None and len(second) == len(first) + 1 and not any(map(_is_number, first)) and second[-1]:
        return _Layout(separator, skip + 1, ["", *first], True, sign)  # R names the rows, but not that column
    if _is_header(path, first, second):
        if second is not None and len(second) > len(first) and any(second[len(first) :]):
            raise DataError(f"{path}: the header names {len(first)} columns, the first row has {len(second)}")
        trailing = [""] * (len(second) - len(first)) if second is not None else []
        return _Layout(separator, skip + 1, [*first, *trailing], True, sign)
    if comment is not None:
        names = _fields(comment, separator)
        if len(names) == len(first) and not any(map(_is_number, names)):  # numpy.savetxt(header=…)
            return _Layout(separator, skip, names, True, sign)
    numbered = [str(column) for column in range(len(first))]
    if not first[-1]:
        numbered[-1] = ""
    return _Layout(separator, skip, numbered, False, sign)


def _is_header(path: Path, first: list[str], second: list[str] | None) -> bool:
    """Whether the first line names the columns: text over numbers, or the columns' numbers in order."""
    numbers = [name for name in first if _is_number(name)]
    if not numbers:
        return True
    counted = first[1:] if first[0] == "" else first
    consecutive = any(numbers == [str(start + i) for i in range(len(numbers))] for start in (0, 1))
    if consecutive and (first[0] == "" or len(numbers) > 3) and len(numbers) == len(counted):
        if first[0] != "":
            notice(f"{path}: the first line counts {numbers[0]} … {numbers[-1]} and is taken for the columns' names")
        return True
    text_over_number = second is not None and any(
        name and not _is_number(name) and _is_number(value) for name, value in zip(first, second, strict=False)
    )
    texts = {name.strip().lower() for name in first if not _is_number(name)}
    if text_over_number and not (consecutive and texts <= _LABEL_COLUMNS | _NUMBER_COLUMNS | SPLIT_COLUMNS):
        raise DataError(
            f"{path}: the first line mixes text and numbers ({listed(first)}), so that it is no row and no names; "
            "name every column in it, or mend that row"
        )
    return text_over_number


def _is_number(text: str) -> bool:
    if text.strip().lower() in ("true", "false", "na", "n/a", "<na>", "null", "none", "?"):  # or a missing value
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _fields(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return [field.strip('"') for field in re.findall(r'"[^"]*"|\S+', line)]
    if separator not in line:
        return [line.strip().strip('"')]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator))]


def _separator(lines: list[str]) -> str:
    for separator in ("\t", ";", "|", ","):
        counts = [len(_fields(line, separator)) for line in lines]
        if min(counts) > 1 and max(counts) - min(counts) <= 1:
            return separator
    return r"\s+" if len(lines[-1].split()) > 1 else ","


def _start(path: Path) -> bytes:
    with _opened(path) as binary:
        return binary.read(4)


def _opened(path: Path) -> BinaryIO:
    """The file, decompressed if its first bytes say that it is compressed, whatever it is called."""
    opener: Any = open
    with path.open("rb") as file:
        start = file.read(6)
    for magic, compressed in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            opener = compressed
    if start.startswith(b"PK"):
        raise DataError(f"{path} is a zip archive (or a spreadsheet); unpack it, or save the sheet as .csv")
    return opener(path, "rb")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
