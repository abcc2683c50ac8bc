"""What a column is, decided from its type and its values, with the reason in words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyar.tables.frames import Column, Name, names_of, read_column
from pyar.tables.kinds import Binary, Categorical, Integer, Kind, Real

_INTEGER_RANGE = 1024  # up to so many whole numbers make an Integer
_REPEATS = 0.05  # from this part on of values that stood before, a column is not taken for a measurement of all digits
_CELLS = 2**22  # a grid of more is as good as the line in float32
_MOST_LEVELS = 1000
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4}|\d\d?:\d\d")


class RepeatedValues(UserWarning):
    """The values of a real column repeat, so that its density means little: it has a bound, but no finite truth."""


def decide(column: Column, name: Name) -> tuple[Kind, str]:
    """What the column is, and why.

    Raises:
        ValueError: nothing can be decided, or it cannot be a column.
    """
    if column.codes is not None and column.numbers is not None:  # all missing
        raise ValueError(
            f"column {name!r} has no value in any row: leave it out (--drop), or say what it is (kinds, --kind)"
        )
    if column.numbers is None:
        assert column.codes is not None
        kind, reason = _decide_categories(column, name)
        missing = int((column.codes < 0).sum())
        rows = len(column.codes)
    else:
        if np.isinf(column.numbers).any():
            row = int(np.argmax(np.isinf(column.numbers)))
            raise ValueError(
                f"column {name!r}: {column.numbers[row]} in row {row} is infinite; leave empty what is not known"
            )
        values = column.numbers[~np.isnan(column.numbers)]
        kind, reason = _decide_numbers(values, name)
        missing, rows = len(column.numbers) - len(values), len(column.numbers)
    return kind, reason + (f"; {missing:,} of {rows:,} missing" if missing else "")


def categories(column: Column, name: Name) -> Kind:
    """The column's values as categories, whatever they are.

    Raises:
        ValueError: there is none, or texts are mixed with numbers.
    """
    if column.numbers is None:
        return _decide_categories(column, name, most=None)[0]
    distinct = np.unique(column.numbers[~np.isnan(column.numbers)])
    if len(distinct) == 0:
        raise ValueError(f"column {name!r} has no value in any row, from which its categories could be taken")
    return (Binary if len(distinct) == 2 else Categorical)(_levels(distinct))


def parse_kind(text: str, name: Name) -> Kind | type[Categorical]:
    """What "real", "real:0.1", "integer:0..120" or "categorical" says; the class Categorical for the last.

    Raises:
        ValueError: it says nothing of these.
    """
    said = re.fullmatch(r"(real)(?::(.+))?|(integer):(-?\d+)\.\.(-?\d+)|categorical", text.strip())
    try:
        if said and said[1]:
            return Real(resolution=None if said[2] is None else float(said[2]))
        if said and said[3]:
            return Integer(int(said[4]), int(said[5]))
    except ValueError as error:
        raise ValueError(f"the kind {text!r} of column {name!r}: {error}") from error
    if said:
        return Categorical
    raise ValueError(
        f"the kind of column {name!r} must be real, real:RESOLUTION, integer:LOW..HIGH or categorical, got {text!r}"
    )


def warn_of_repeats(frame: Any, title: str, *, stacklevel: int) -> None:
    """Warns of the columns of numbers whose values repeat, where every one is to have a density."""
    shares = {name: 1.0 - len(np.unique(values)) / len(values) for name, values in _numbers_of(frame)}
    names = [name for name, share in shares.items() if share >= _REPEATS]
    if names:
        shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        warnings.warn(
            f"{title}: values of {shown} repeat, so that no density of them is finite in truth: what is reported "
            "depends on min_scale; a table-nade takes such columns for whole numbers and values with a resolution",
            RepeatedValues,
            stacklevel=stacklevel + 1,
        )


def _numbers_of(frame: Any) -> list[tuple[Name, NDArray[np.float64]]]:
    columns = [(name, read_column(frame, name).numbers) for name in names_of(frame)]
    return [(name, numbers) for name, numbers in columns if numbers is not None]


def _decide_categories(column: Column, name: Name, most: int | None = _MOST_LEVELS) -> tuple[Kind, str]:
    if column.is_bool:
        return Binary(), "truth values"
    if column.categories is not None:
        levels, reason = column.categories, "its type's categories"
    else:
        if len({isinstance(level, str) for level in column.levels}) > 1:
            text = next(level for level in column.levels if isinstance(level, str))
            number = next(level for level in column.levels if not isinstance(level, str))
            raise ValueError(
                f"column {name!r} mixes texts and numbers ({text!r} and {number!r}, for example): mend its values, or "
                "leave it out (--drop)"
            )
        levels, reason = tuple(sorted(column.levels)), f"texts, {len(column.levels)} different ones"
    assert column.codes is not None
    seen, present = int((column.codes >= 0).sum()), len(column.levels)
    if most is not None and (len(levels) > most or (present > 20 and present > seen / 2)):
        raise ValueError(
            f"column {name!r} has {_many_texts(column.levels, seen)} out (--drop), or say that it is categories "
            f"(kinds, --kind {name}=categorical)"
        )
    return (Binary(levels) if len(levels) == 2 else Categorical(levels)), reason


def _many_texts(levels: Sequence[Any], seen: int) -> str:
    """What texts that hardly repeat may be."""
    texts = [str(level) for level in levels]
    if all(_DATE.match(text) for text in texts[:20]):
        return "dates and times as texts: turn them into numbers (such as days since a date), or leave it"
    others = [text for text in texts if not _is_number(text)]
    if not others:
        return "numbers that are written as texts: turn them into numbers, or leave it"
    if len(others) < len(texts) / 2:
        return f"numbers, but also texts such as {others[0]!r}: leave empty what is not known, mend it, or leave it"
    shown = ", ".join(repr(text[:20]) for text in texts[:2])
    return f"{len(texts):,} different texts in {seen:,} rows ({shown}, …), as names and identifiers have: leave it"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _decide_numbers(values: NDArray[np.float64], name: Name) -> tuple[Kind, str]:
    distinct = np.unique(values)
    if len(distinct) == 1:
        return Categorical(_levels(distinct)), "a single value"
    if len(distinct) == 2:
        return Binary(_levels(distinct)), "two different values"
    low, high, count = distinct[0], distinct[-1], len(distinct)
    if _is_whole(distinct):
        if high - low < _INTEGER_RANGE:
            return Integer(int(low), int(high)), f"whole numbers, {count:,} different ones"
        if high - low < _CELLS:
            alone = ", none twice: leave it out if it only numbers the rows" if count == len(values) > 100 else ""
            return Real(resolution=1.0), f"whole numbers, {count:,} different ones from {low:.0f} to {high:.0f}{alone}"
    repeats = 1.0 - count / len(values)
    known = f"{count:,} different values in {len(values):,} rows"
    if repeats < _REPEATS:
        return Real(), known
    digits = _decimals(distinct)
    if digits is not None and (high - low) * 10.0**digits < _CELLS:
        return Real(resolution=float(f"1e{-digits}")), f"{known}, rounded to {_rounded(digits)}"
    warnings.warn(
        f"column {name!r} has {known} and no common number of decimals: where values repeat it has no finite density, "
        f"and what is reported depends on min_scale. Say kinds={{{name!r}: Real(resolution=…)}}, or a larger min_scale",
        RepeatedValues,
        stacklevel=4,
    )
    return Real(), f"{known}: its values repeat, so that its density depends on min_scale; say a resolution"


def _levels(distinct: NDArray[np.float64]) -> tuple[int | float, ...]:
    return tuple(int(value) if value == round(value) and abs(value) < 2**53 else value for value in distinct.tolist())


def _is_whole(distinct: NDArray[np.float64]) -> bool:
    return bool((distinct == np.round(distinct)).all() and np.abs(distinct).max() < 2**53)


def _decimals(distinct: NDArray[np.float64]) -> int | None:
    """The least number of decimals that all values have at most, negative for tens, hundreds, …; None above 8."""
    for digits in range(-6, 9):
        cells = distinct * 10.0**digits
        whole = np.round(cells)
        near = np.abs(cells - whole) < 1e-6 + 1e-12 * np.abs(cells)
        if np.abs(cells).max() < 2**50 and near.all() and (np.diff(whole) > 0).all():
            return digits
    return None


def _rounded(digits: int) -> str:
    return f"{digits} decimal{'' if digits == 1 else 's'}" if digits > 0 else f"multiples of {10**-digits:,}"
