"""Frames of pandas, polars and pyarrow, through narwhals: columns as arrays, and arrays as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Name = str | int


class MissingPackageError(ImportError):
    """A package that tables need is not installed; the message says how to install it."""


def narwhals() -> Any:
    """The package, which is imported only where there is a frame.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import narwhals.stable.v2 as nw
    except ImportError as error:
        raise MissingPackageError(
            "tables are read with narwhals, which is not installed: pip install 'pyar[tables]'"
        ) from error
    return nw


class Column(NamedTuple):
    """One column: exactly one of `numbers` float64 [N] with NaN for missing, and `codes` into `levels`, −1 for missing.

    `categories`: all that the column's type declares, in order; None for a type that declares none. `is_bool`,
    `is_integer`: what the type says.
    """

    numbers: NDArray[np.float64] | None = None
    codes: NDArray[np.int64] | None = None
    levels: tuple[Any, ...] = ()
    categories: tuple[Any, ...] | None = None
    is_bool: bool = False
    is_integer: bool = False


def names_of(frame: Any) -> list[Name]:
    """The frame's columns' names.

    Raises:
        TypeError: it is no frame, or a name is neither a text nor a number.
        ValueError: a name stands twice.
    """
    names = getattr(frame, "column_names", None)  # pyarrow's
    if names is None:
        names = getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "shape") or len(frame.shape) != 2:
        raise TypeError(f"expected a frame of pandas, polars or pyarrow, got {type(frame).__name__}")
    plain = [name.item() if isinstance(name, np.generic) else name for name in names]
    for name in plain:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise TypeError(f"columns' names must be texts or integers, got {type(name).__name__} {name!r}")
    twice = sorted({str(name) for name in plain if plain.count(name) > 1})
    if twice:
        raise ValueError(f"the frame has several columns of one name: {', '.join(map(repr, twice))}")
    return plain


def is_frame(X: Any) -> bool:
    """Whether it is a table with names, of whatever library."""
    return len(getattr(X, "shape", ())) == 2 and (hasattr(X, "columns") or hasattr(X, "column_names"))


def read_column(frame: Any, name: Name) -> Column:
    """One column of a frame whose names are checked.

    Raises:
        TypeError: it holds neither numbers nor truth values nor texts.
    """
    nw = narwhals()
    series = nw.from_native(frame, eager_only=True)[:, names_of(frame).index(name)]
    dtype, title = series.dtype, f"column {name!r}"
    if series.null_count() == len(series):
        return Column(numbers=np.full(len(series), np.nan), codes=np.full(len(series), -1, dtype=np.int64))
    if dtype == nw.Boolean:
        return _factorised(series, title)._replace(is_bool=True)
    if dtype.is_numeric():
        if dtype.is_integer():
            _check_exact(series.min(), series.max(), title)
        return Column(numbers=_floats(series), is_integer=dtype.is_integer())
    if isinstance(dtype, nw.Categorical | nw.Enum):
        categories = tuple(series.cat.get_categories().to_list())
        return _factorised(series, title)._replace(categories=categories)
    if isinstance(dtype, nw.String | nw.Object):
        column = _factorised(series, title)
        kinds = {type(level) for level in column.levels}
        if kinds <= {int, float}:  # objects that might have been numbers
            whole = [level for level in column.levels if isinstance(level, int)]
            _check_exact(min(whole, default=0), max(whole, default=0), title)
            return Column(numbers=np.array([*column.levels, np.nan], dtype=np.float64)[column.codes])
        return column._replace(is_bool=kinds == {bool})
    raise TypeError(
        f"{title} is of the type {dtype}, which is neither numbers nor texts; turn it into numbers (such as days since "
        "a date), or leave it out"
    )


def _check_exact(low: int, high: int, title: str) -> None:
    """Raises ValueError for whole numbers that a float64 does not tell from their neighbours."""
    if max(-low, high) > 2**53:
        raise ValueError(
            f"{title} holds {high if high > 2**53 else low}: whole numbers beyond 2**53, as identifiers are, cannot be "
            "told apart; leave it out, take the difference from one of them, or make them texts"
        )


def _floats(series: Any) -> NDArray[np.float64]:
    native = series.to_native()
    if hasattr(native, "array"):  # pandas, whose own missing values NumPy does not know
        return native.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray(series.cast(narwhals().Float64()).to_numpy(), dtype=np.float64)


def _factorised(series: Any, title: str) -> Column:
    import pandas as pd

    values = np.empty(len(series), dtype=object)
    values[:] = series.to_list()
    try:
        codes, levels = pd.factorize(values)
    except TypeError as error:
        raise TypeError(f"{title} holds values that are no texts, numbers or truth values: {error}") from error
    plain = tuple(level.item() if isinstance(level, np.generic) else level for level in levels)
    for level in plain:
        if not isinstance(level, str | int | float):
            raise TypeError(f"{title} holds {type(level).__name__} {level!r}: expected texts, numbers or truth values")
    return Column(codes=codes.astype(np.int64), levels=plain)


def make_frame(columns: Mapping[Name, NDArray], like: Any = None, *, own_types: bool = True) -> Any:
    """A frame of such columns: pandas', or of the kind and with the columns' types of the frame `like`.

    Args:
        columns: by name: float64 or int64 arrays, or objects with None for missing.
        like: a frame that has these columns; its rows are not read.
        own_types: whether the columns have the types of `like`, and not only its library.

    Raises:
        ValueError: a column cannot have its type in `like`.
    """
    import pandas as pd

    if like is None or isinstance(like, pd.DataFrame):
        frame = pd.DataFrame({name: _inferred(values) for name, values in columns.items()}, columns=list(columns))
        if like is None or not own_types:
            return frame
        return frame.astype({name: _pandas_type(frame[name], like.dtypes[name]) for name in columns})
    module = type(like).__module__.partition(".")[0]
    if module == "polars":
        import polars as pl

        if not own_types:
            return pl.DataFrame({str(name): values for name, values in columns.items()})
        return pl.DataFrame(
            {
                name: pl.Series(str(name), _listed(values)).cast(like.schema[str(name)])
                for name, values in columns.items()
            }
        )
    if module == "pyarrow":
        import pyarrow as pa

        if not own_types:
            return pa.table({str(name): values for name, values in columns.items()})
        fields = [like.schema.field(name) for name in columns]
        arrays = [
            _arrow_array(pa, _listed(values), field.type)
            for values, field in zip(columns.values(), fields, strict=True)
        ]
        return pa.table(arrays, schema=pa.schema(fields))
    raise TypeError(f"like must be a frame of pandas, polars or pyarrow, got {type(like).__name__}")


def _arrow_array(pa: Any, values: list[Any], kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return pa.array(values, type=kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values).cast(kind)


def _inferred(values: NDArray) -> Any:
    """Objects as the type that pandas has for them."""
    import pandas as pd

    return pd.Series(values).infer_objects() if values.dtype == object else values


def _pandas_type(column: Any, dtype: Any) -> Any:
    """The column's type in `like`, or where that cannot miss values and some are missing, the one that can."""
    if not column.isna().any() or not isinstance(dtype, np.dtype):
        return dtype
    return {"i": "Int64", "u": "Int64", "b": "boolean"}.get(dtype.kind, dtype)


def _listed(values: NDArray) -> list[Any]:
    if values.dtype.kind == "f":
        return [None if value != value else value for value in values.tolist()]
    return values.tolist()


def take_columns(frame: Any, names: Sequence[Name]) -> Any:
    """The frame's columns of these names, in this order, without its rows' labels read."""
    nw = narwhals()
    known = names_of(frame)
    return nw.from_native(frame, eager_only=True)[:, [known.index(name) for name in names]].to_native()


def take_rows(frame: Any, rows: NDArray[np.int64]) -> Any:
    """The frame's rows of these numbers, in this order."""
    return narwhals().from_native(frame, eager_only=True)[rows.tolist()].to_native()


def frame_like(frame: Any, new: Any, where: NDArray[np.bool_], names: Sequence[Name]) -> Any:
    """The frame with the values of `new`, of the same library, in the cells where the mask [N, len(names)] is true.

    Columns without such a cell are the frame's own.
    """
    nw = narwhals()
    own, other = nw.from_native(frame, eager_only=True), nw.from_native(new, eager_only=True)
    known = names_of(frame)
    filled = {}
    for d, name in enumerate(names):
        if not where[:, d].any():
            continue
        place = known.index(name)
        values = own[:, place].to_list()
        drawn = other[:, d].to_list()
        filled[name] = np.array([None] * len(values), dtype=object)
        filled[name][:] = [b if hole else a for a, b, hole in zip(values, drawn, where[:, d], strict=True)]
    if not filled:
        return frame
    # A column without any value says nothing of its type, and one of some categories not of all.
    own_type = [name for name, values in filled.items() if _can_hold(own[:, known.index(name)], values)]
    parts = [
        make_frame({name: filled[name] for name in part}, like=take_columns(source, part))
        for part, source in ((own_type, frame), ([name for name in filled if name not in own_type], new))
        if part
    ]
    if hasattr(frame, "assign"):  # pandas, with the rows' labels
        return _assigned(frame, parts)
    columns = [series for part in parts for series in nw.from_native(part, eager_only=True).iter_columns()]
    return own.with_columns(*columns).to_native()


def _can_hold(series: Any, values: NDArray) -> bool:
    """Whether a column's type takes these values, as far as it says one."""
    nw = narwhals()
    if isinstance(series.dtype, nw.Categorical | nw.Enum):
        return set(values.tolist()) <= {*series.cat.get_categories().to_list(), None}
    return series.null_count() < len(series)


def _assigned(frame: Any, parts: Sequence[Any]) -> Any:
    result = frame.copy()
    for part in parts:
        for name in part.columns:
            result[name] = part[name].to_numpy() if isinstance(part.dtypes[name], np.dtype) else part[name].array
    return result
