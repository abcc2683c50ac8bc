"""`Columns`: the columns of a table by name, and what turns a frame into the numbers that models take, and back."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyar.reference.conditionals import Conditional
from pyar.tables.decide import categories, decide, parse_kind
from pyar.tables.frames import Column, Name, make_frame, names_of, read_column
from pyar.tables.kinds import Binary, Categorical, Integer, Kind, Real, kind_from_json, location_and_scale

__all__ = ["Binary", "Categorical", "Columns", "Integer", "Kind", "KindOrName", "Real"]

#: A kind, or a text: "real", "real:0.1" (its resolution), "integer:0..120", "categorical" (the values that are there).
KindOrName = Kind | str


class Columns(Mapping[Name, Kind]):
    """What every column of a table is, in order, by name.

    Models take rows as float32 [B, D]: of a category its number, of a number (value − location)/scale, NaN where a
    value is missing. `encode` makes that of a frame, by the columns' names, and `decode` a frame of that.

    Args:
        kinds: Binary, Categorical, Integer or Real by the column's name, a text or an integer.
        reasons: why each is what it is, where that was decided from data; `describe` tells them.

    Raises:
        TypeError, ValueError: there is no column, or one is of another type.

    Example:
        >>> from pyar.tables import Columns, Categorical, Integer, Real
        >>> columns = Columns({"age": Integer(0, 120), "sex": Categorical(("female", "male")), "height": Real()})
        >>> import pandas
        >>> columns.encode(pandas.DataFrame({"sex": ["male", None], "height": [1.5, 2.0], "age": [60, 90]}))
        tensor([[0.0000, 1.0000, 1.5000],
                [1.0000,    nan, 2.0000]])
    """

    def __init__(self, kinds: Mapping[Name, Kind], reasons: Mapping[Name, str] | None = None) -> None:
        if not isinstance(kinds, Mapping):
            raise TypeError(f"kinds must be a mapping from names to columns, got {type(kinds).__name__}")
        if not kinds:
            raise ValueError("kinds must hold one column at least")
        for name, kind in kinds.items():
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise TypeError(f"columns' names must be texts or integers, got {type(name).__name__} {name!r}")
            if not isinstance(kind, Kind):
                raise TypeError(
                    f"column {name!r} must be Binary, Categorical, Integer or Real, got {type(kind).__name__} {kind!r}"
                )
        self._kinds = dict(kinds)
        self._reasons = {name: str(reason) for name, reason in (reasons or {}).items() if name in self._kinds}

    # --- As a mapping ---

    def __getitem__(self, name: Name) -> Kind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[Name]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Columns) and list(self._kinds.items()) == list(other._kinds.items())

    def __hash__(self) -> int:
        return hash(tuple(self._kinds.items()))

    def __repr__(self) -> str:
        return f"Columns({self._kinds!r})"

    @property
    def names(self) -> list[Name]:
        """The columns' names in order."""
        return list(self._kinds)

    @property
    def conditionals(self) -> tuple[Conditional, ...]:
        """What models know of the columns."""
        return tuple(kind.conditional for kind in self._kinds.values())

    @property
    def log_scales(self) -> Tensor:
        """Σ over the densities' columns of a row is what a log-density in the columns' own units lacks: float32 [D].

        log p(x) = log p(encoded x) − Σ_d log_scales_d; zero for columns that have probabilities.
        """
        scales = [kind.log_scale for kind in self._kinds.values()]
        return torch.tensor(scales, dtype=torch.float32, device="cpu")

    def index(self, name: Name) -> int:
        """Which column has this name.

        Raises:
            ValueError: none has.
        """
        if name not in self._kinds:
            raise ValueError(f"there is no column {name!r}{_near(name, self.names)}")
        return self.names.index(name)

    def indices(self, names: Iterable[Name]) -> list[int]:
        """Which columns have these names."""
        return [self.index(name) for name in names]

    # --- From data ---

    @classmethod
    def from_frame(cls, frame: Any, kinds: Mapping[Name, KindOrName] | None = None) -> Columns:
        """Decides what every column is from its type and its values, and standardises numbers.

        Truth values, and whatever has two values, are Binary; texts, enumerations and what has one value Categorical;
        whole numbers within 1,024 of one another Integer, others Real with the resolution 1; other numbers Real. A Real
        column whose values repeat has no density: with values rounded to so many decimals it gets that resolution,
        otherwise the warning RepeatedValues says so. `describe()` tells what was decided, and why.

        Args:
            frame: of pandas, polars or pyarrow, with one row at least.
            kinds: what columns are that shall not be decided: a kind, or "real", "real:0.1" (with that resolution),
                "integer:0..120", or "categorical" for the values that are there. Numbers are standardised with these.

        Raises:
            TypeError: a column holds neither numbers nor texts nor truth values.
            ValueError: names stand twice; a column has no value, infinite ones, or texts that hardly ever repeat;
                `kinds` names a column that is not there.

        Example:
            >>> import pandas
            >>> frame = pandas.DataFrame({"age": [30, 41, 75], "pay": [1.5, 1.25, 7.125], "in": [True, False, None]})
            >>> print(pyar.tables.Columns.from_frame(frame).describe())
            age  integer 30 … 75, 5 logistics                                     whole numbers, 3 different ones
            pay  real, 10 of gaussian, density, scales of at least 0.01 of 2.712  3 different values in 3 rows
            in   binary (False, True)                                             truth values; 1 of 3 missing
        """
        names = names_of(frame)
        if not names:
            raise ValueError("the frame has no columns")
        if frame.shape[0] == 0:
            raise ValueError("the frame has no rows, from which nothing can be decided")
        kinds = dict(kinds or {})
        for name in kinds:
            if name not in names:
                raise ValueError(f"kinds names the column {name!r}, which the frame lacks{_near(name, names)}")
        decided, reasons = {}, {}
        for name in names:
            if name in kinds:
                said = kinds[name]
                said = parse_kind(said, name) if isinstance(said, str) else said
                decided[name] = categories(read_column(frame, name), name) if said is Categorical else said
                reasons[name] = "as it was said"
            else:
                decided[name], reasons[name] = decide(read_column(frame, name), name)
        return cls(decided, reasons).standardized(frame)

    def standardized(self, frame: Any) -> Columns:
        """The same columns with locations and scales that are the means and standard deviations of this frame."""
        kinds = dict(self._kinds)
        for (name, kind), values in zip(self._kinds.items(), self._numbers(frame), strict=True):
            if isinstance(kind, Integer | Real):
                location, scale = location_and_scale(values[~np.isnan(values)])
                kinds[name] = type(kind)(**{**vars(kind), "location": location, "scale": scale})
        return Columns(kinds, self._reasons)

    def describe(self) -> str:
        """A line for every column: what it is, and why if that was decided."""
        rows = [(str(name), str(kind), self._reasons.get(name, "")) for name, kind in self._kinds.items()]
        first, second = (max(len(row[place]) for row in rows) for place in (0, 1))
        return "\n".join(f"{name:<{first}}  {kind:<{second}}  {reason}".rstrip() for name, kind, reason in rows)

    # --- Plain values ---

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, as a checkpoint holds them."""
        return [
            {"name": name, **kind.to_json(), **({"why": self._reasons[name]} if name in self._reasons else {})}
            for name, kind in self._kinds.items()
        ]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> Columns:
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: the values are not those of columns.
        """
        kinds, reasons = {}, {}
        for values in columns:
            values = dict(values)
            name = values.pop("name", None)
            if name in kinds:
                raise ValueError(f"two columns are called {name!r}")
            if "why" in values:
                reasons[name] = values.pop("why")
            kinds[name] = kind_from_json(values)
        return cls(kinds, reasons)

    # --- Frames ---

    def encode(self, frame: Any, *, subset: bool = False) -> Tensor:
        """The rows of a frame as models take them: float32 [B, D], NaN where a value is missing.

        Args:
            frame: of pandas, polars or pyarrow; its columns may stand in any order.
            subset: whether columns may lack, which are then missing in every row.

        Raises:
            TypeError: a column is of another type.
            ValueError: a column is missing, unknown or there twice; a category is unknown; a number is infinite,
                outside its range, or off its grid. The message names the column, and the row.
        """
        numbers = self._numbers(frame, subset=subset)
        encoded = [
            kind.numbers(values, f"column {name!r}")
            for (name, kind), values in zip(self._kinds.items(), numbers, strict=True)
        ]
        return torch.from_numpy(np.stack(encoded, axis=1).astype(np.float32))

    def _numbers(self, frame: Any, *, subset: bool = False) -> list[NDArray[np.float64]]:
        """Every column's values, of categories their numbers: float64 [N], NaN for missing."""
        there = names_of(frame)
        missing = [name for name in self if name not in there]
        extra = [name for name in there if name not in self]
        if extra:
            lacking = f", and lacks {_list(missing)}" if missing and not subset else ""
            raise ValueError(
                f"the frame has columns that are not known: {_list(extra)}{lacking}; known are {_list(self)}"
            )
        if missing and not subset:
            raise ValueError(f"the frame lacks {'a column' if len(missing) == 1 else 'columns'}: {_list(missing)}")
        rows = frame.shape[0]
        return [
            _values(read_column(frame, name), kind, name) if name in there else np.full(rows, np.nan)
            for name, kind in self._kinds.items()
        ]

    def decode(self, x: Tensor, like: Any = None) -> Any:
        """A frame of encoded rows, with what is NaN missing.

        Args:
            x: float32 [B, D].
            like: a frame with these columns, whose kind and types the result has; None for pandas with its own types.

        Raises:
            TypeError: x is of another type or dtype.
            ValueError: x is of another shape.

        Example:
            >>> columns = pyar.tables.Columns({"height": pyar.tables.Real(location=1.7, scale=0.1)})
            >>> columns.decode(torch.tensor([[0.0], [2.0]]))["height"].round(3).tolist()
            [1.7, 1.9]
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating type, got {x.dtype}")
        if x.dim() != 2 or x.shape[1] != len(self):
            raise ValueError(f"x must be [B, {len(self)}], got {list(x.shape)}")
        values = x.detach().cpu().double().numpy()
        columns: dict[Name, NDArray] = {}
        for d, (name, kind) in enumerate(self._kinds.items()):
            columns[name] = _decoded(values[:, d], kind)
        return make_frame(columns, like)


def _values(column: Column, kind: Kind, name: Name) -> NDArray[np.float64]:
    """A column's values as a kind of column has them."""
    title = f"column {name!r}"
    if isinstance(kind, Categorical):
        known = {level: code for code, level in enumerate(kind.levels)}
        if column.codes is None:
            assert column.numbers is not None
            numbers = column.numbers
            levels, codes = np.unique(numbers, return_inverse=True)
            # NaN, the last of them if there, has no level and so the place after all of them.
            present = tuple(int(level) if level.is_integer() else level for level in levels.tolist() if level == level)
        else:
            codes, present = column.codes, column.levels
        unknown = [level for level in present if level == level and level not in known]
        if unknown:
            raise ValueError(
                f"{title} holds {'a category that is' if len(unknown) == 1 else 'categories that are'} unknown: "
                f"{_list(unknown)}; known are {_list(kind.levels)}"
            )
        table = np.array([known.get(level, np.nan) for level in present] + [np.nan])
        return table[codes]
    if column.numbers is None:
        shown = ", ".join(repr(level) for level in column.levels[:3])
        what = "truth values" if column.is_bool else f"texts ({shown}{', …' if len(column.levels) > 3 else ''})"
        raise TypeError(f"{title} should hold numbers, but holds {what}")
    if np.isinf(column.numbers).any():
        row = int(np.argmax(np.isinf(column.numbers)))
        raise ValueError(f"{title}: {column.numbers[row]} in row {row} is infinite; leave empty what is not known")
    return column.numbers


def _decoded(values: NDArray[np.float64], kind: Kind) -> NDArray:
    missing = np.isnan(values)
    if isinstance(kind, Categorical):
        table = np.array([*kind.levels, None], dtype=object)
        codes = np.where(missing, len(kind.levels), values).astype(np.int64)
        decoded = table[codes]
        same = {type(level) for level in kind.levels}
        return (
            decoded.astype(same.pop())
            if len(same) == 1 and same <= {int, float, bool} and not missing.any()
            else decoded
        )
    numbers = kind.values(values)
    whole = isinstance(kind, Integer) or kind.resolution == 1.0
    return numbers.astype(np.int64) if whole and not missing.any() else numbers


def _list(names: Iterable[Any]) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _near(name: Name, names: Sequence[Name]) -> str:
    near = difflib.get_close_matches(str(name), map(str, names), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {_list(names)}"
