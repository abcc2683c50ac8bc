"""Values as files hold them to states 0 … K − 1: exactly, by a choice that the user made, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError, States, Uint8, grey_to_states
from pyar.data.source import Source

DEFAULT_LEVELS = 10  # of grey images: the ten-grey-level setting
_REMEDY_FOR_REAL = (
    "real values should be intensities in [0, 1] (made states by --levels K or --binarize …); "
    "for states store integers 0 … K − 1"
)


@dataclass(frozen=True)
class Choice:
    """What the user said about states. `num_states`: of the model that is there already, which then decides."""

    levels: int | None = None
    binarize: str | None = None
    white: int | None = None
    num_states: int | None = None

    def __post_init__(self) -> None:
        if self.white is not None and not 1 <= self.white <= 65535:
            raise DataError(f"--white should be 1 … 65535, but is {self.white}")
        if self.levels is not None and self.binarize is not None:
            raise DataError("choose one of --levels and --binarize, not both")
        asked = self.levels or (2 if self.binarize is not None else None)
        if self.num_states is not None and asked is not None and asked != self.num_states:
            option = f"--levels {self.levels}" if self.levels else f"--binarize {self.binarize}"
            raise DataError(f"{option} makes {asked} states, but the model has {self.num_states}")

    @property
    def made(self) -> bool:
        """Whether grey values are to be transformed."""
        return self.levels is not None or self.binarize is not None


def to_states(source: Source, choice: Choice) -> States:
    """The states of a source's parts, decided on all of them together and in their order; `remarks` are told first."""
    states = _grey(source, choice) if source.white is not None else _values(source, choice)
    return states._replace(preparation="; ".join([*source.remarks, states.preparation]))


def _grey(source: Source, choice: Choice) -> States:
    """Grey values of which white is known."""
    white, arrays = int(source.white or 0), list(source.parts.values())
    two = all(((x == 0) | (x == white)).all() for x in arrays)
    levels, binarize = choice.levels, choice.binarize
    if not choice.made:
        if two and choice.num_states in (None, 2):
            levels = 2
        elif choice.num_states == 2:
            raise DataError(
                f"{source.path} holds grey values, and the model is of two states; say how to make them binary, as for "
                "its training: --binarize threshold (or fixed), or --levels 2"
            )
        else:
            levels = choice.num_states or DEFAULT_LEVELS
    return grey_to_states(arrays, white=white, levels=levels, binarize=binarize)


def _values(source: Source, choice: Choice) -> States:
    """Numbers that may be states, spins, grey values or intensities: the values tell, or the user is asked."""
    where = source.path
    arrays = list(source.parts.values())
    filled = [x for x in arrays if x.size]
    low = min((x.min() for x in filled), default=0)
    top = max((x.max() for x in filled), default=0)
    if not all(x.dtype.kind in "bui" or (x == np.floor(x)).all() for x in filled):
        if low < 0 or top > 1:
            raise DataError(f"{where}: the values are {low:g} … {top:g}; {_REMEDY_FOR_REAL}")
        if not choice.made:
            raise DataError(
                f"{where} holds real values in [0, 1]; choose how to make them states: --levels K or --binarize …"
            )
        return grey_to_states(
            [np.round(x * 255).astype(np.uint8) for x in arrays],
            white=255,
            levels=choice.levels,
            binarize=choice.binarize,
        )
    low, top, wanted = int(low), int(top), choice.num_states or choice.levels
    spins = low == -1 and top in (-1, 1) and all((x != 0).all() for x in arrays)
    if spins and (wanted == 2 or (wanted is None and top == 1)):
        return States([(x > 0).astype(np.uint8) for x in arrays], 2, "spins −1 and +1 as the states 0 and 1")
    if low < 0:
        raise DataError(
            f"{where}: states should be 0 … 255, but the values are {low} … {top}; number them from 0 (and fill in "
            "what is missing, if negative numbers stand for that)"
        )
    binary_already = top <= 1 and choice.white is None and (choice.binarize is not None or choice.levels is None)
    fits = choice.binarize is None and choice.white is None and wanted is not None and top < min(wanted, 256)
    if binary_already or fits:
        return _as_stored(arrays, wanted or 2)
    if choice.made:
        white = _white(source, top, choice)
        depth = np.uint8 if white <= 255 else np.uint16
        grey = [x.astype(depth) for x in arrays]
        return grey_to_states(grey, white=white, levels=choice.levels, binarize=choice.binarize)
    if top == 255 and wanted in (None, 2) and all(((x == 0) | (x == 255)).all() for x in arrays):
        return States([(x > 0).astype(np.uint8) for x in arrays], 2, "0 and 255 as the states 0 and 1")
    if wanted is not None:
        raise DataError(
            f"{where}: the values reach {top}, but the model has the states 0 … {wanted - 1}; if they are grey values, "
            "say how its training made them states (--levels or --binarize)"
        )
    if top > 255:
        raise DataError(
            f"{where}: states should be 0 … 255, but the values are {low} … {top}; "
            "number those that occur 0 … K − 1, or make grey values states by --levels K --white W"
        )
    return _as_stored(arrays, max(2, top + 1))


def _as_stored(arrays: list[NDArray], num_states: int) -> States:
    states = [x.astype(np.uint8) for x in arrays]
    occur = _count_states(states)
    gaps = f", of which {occur} occur" if 0 < occur < num_states and num_states > 2 else ""
    return States(states, num_states, f"{num_states} states as stored{gaps}")


def _count_states(arrays: list[Uint8]) -> int:
    seen = np.zeros(256, dtype=bool)
    for x in arrays:
        flat = x.reshape(-1)
        for first in range(0, flat.size, 1 << 20):  # an index array has eight bytes a value
            seen[flat[first : first + (1 << 20)]] = True
    return int(seen.sum())


def _white(source: Source, top: int, choice: Choice) -> int:
    """The greatest grey value: what the user said, or what the values leave no doubt about."""
    if choice.white is not None:
        if top > choice.white:
            raise DataError(f"{source.path}: the values reach {top}, more than --white {choice.white}")
        return choice.white
    for white in (255, 65535):
        if white // 2 < top <= white:
            return white
    if top > 65535:
        raise DataError(f"{source.path}: grey values are read up to 65535, but these reach {top}")
    likely = 255 if top <= 255 else 65535
    raise DataError(
        f"{source.path}: the values reach {top}, which does not tell which value is white; say so with --white {top} "
        f"(or --white {likely})"
    )


def check_numbers(source: Source) -> None:
    """Raises `DataError` if some values are no finite numbers; for sources whose rows are still in the file's order."""
    for split, x in source.parts.items():
        _refuse_what_is_no_number(x, f"{source.path}{f', {split}' if split else ''}")


def _refuse_what_is_no_number(x: NDArray, where: str) -> None:
    if x.dtype.kind not in "buif":
        kind = {"c": "complex numbers", "O": "Python objects", "U": "text", "S": "text", "T": "text"}
        raise DataError(f"{where}: expected numbers, but the array is of {kind.get(x.dtype.kind, x.dtype)}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        missing = np.isnan(x)
        text = "some are NaN (missing)" if missing.any() else "some are infinite"
        raise DataError(f"{where}: {text}: {describe_positions(missing if missing.any() else np.isinf(x))}")


def describe_positions(bad: NDArray[np.bool_], columns: Sequence[str] | None = None) -> str:
    """How many values are so, in which columns and rows, and what to do about it.

    >>> describe_positions(np.array([[False, True], [False, False], [False, True]]))
    '2 of 6 values, in 2 of 3 rows (the first is 0, counted from 0) and 1 of 2 columns (column 1: 2); fill them in or \
leave those rows out'
    """
    per_column = bad.sum(axis=0)
    worst = np.flatnonzero(per_column)
    names = [f"{columns[i] if columns else f'column {i}'}: {per_column[i]:,}" for i in worst[:3]]
    more = ", …" if len(worst) > 3 else ""
    rows = np.flatnonzero(bad.any(axis=1))
    return (
        f"{bad.sum():,} of {bad.size:,} values, in {len(rows):,} of {len(bad):,} rows (the first is {rows[0]}, counted "
        f"from 0) and {len(worst):,} of {bad.shape[1]:,} columns ({', '.join(names)}{more}); fill them in or leave "
        "those rows out"
    )
