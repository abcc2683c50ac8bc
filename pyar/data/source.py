"""`Source`: what files hold before it becomes states, and how it falls into train, valid and test."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import SPLITS, DataError, permutation, split_sizes
from pyar.data.folders import notice


@dataclass(frozen=True)
class Source:
    """Vectors of one length by split, in the order of the files they come from.

    `parts`: {"train": values [N, D], …}, or {"": values} for one set that has no splits.
    `labels`: {the same names: int64 [N]}, empty if there are none. `class_names`: what the labels 0, 1, … are called.
    `image_shape`: (height, width) where the files say it. `white`: the greatest grey value, where the values are known
    to be grey values (images) and not states. `remarks`: decisions that are told with every result.
    `files`: the name of each row's file in each part, where each row has one.
    """

    path: Path
    parts: dict[str, NDArray]
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None
    white: int | None = None
    remarks: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split, labels in self.labels.items():
            if len(labels) != len(self.parts[split]):
                raise DataError(
                    f"{self.path}: {len(self.parts[split]):,} examples{f' of {split}' if split else ''}, "
                    f"but {len(labels):,} labels"
                )
        lengths = {split: x.shape[1] for split, x in self.parts.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.path}: the splits have different lengths D: {lengths}")

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return next(iter(self.parts.values())).shape[1]

    def with_splits(self) -> Source:
        """Train, valid and test: as they are; valid a tenth of train where there is none; one set by 80/10/10."""
        if set(SPLITS) <= self.parts.keys():
            return replace(self, parts={split: self.parts[split] for split in SPLITS})
        if "" in self.parts:
            size = len(self.parts[""])
            train, valid, _ = split_sizes(size)
            order = permutation(size, 0)
            return self._taken(
                "", {"train": order[:train], "valid": order[train : train + valid], "test": order[train + valid :]}
            )
        if {"train", "test"} == self.parts.keys():
            size = len(self.parts["train"])
            border = split_sizes(size)[1]
            order = permutation(size, 0)
            return self._taken("train", {"train": order[border:], "valid": order[:border]})
        raise DataError(
            f"{self.path} holds only {' and '.join(self.parts)}; expected train, valid and test, or train and test, "
            "or one set without a split's name"
        )

    def _taken(self, part: str, orders: dict[str, NDArray[np.int64]]) -> Source:
        """The parts named in `orders` taken from one part; its own name goes, the other parts stay."""

        def taken(old: dict) -> dict:
            if part not in old:
                return dict(old)
            new = {split: old[part][order] for split, order in orders.items()}
            return {**new, **{split: value for split, value in old.items() if split != part}}

        return replace(self, parts=taken(self.parts), labels=taken(self.labels), files={})


def integer_labels(
    found: dict[str, NDArray], where: Path, *, wanted: bool
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...] | None]:
    """Labels as int64 [N] by split, and the classes' names if they were text; numbered in the order of their names.

    What cannot be labels (real numbers, several a row) is left out with a notice, or refused if labels are wanted.
    """
    flat = {split: x[:, 0] if x.ndim == 2 and x.shape[1] == 1 else x for split, x in found.items()}
    if all(x.ndim == 1 and x.dtype.kind in "OUST" for x in flat.values()) and flat:
        as_text = {split: x.astype(str) for split, x in flat.items()}
        occurring, inverse = np.unique(np.concatenate(list(as_text.values())), return_inverse=True)
        names = in_order(map(str, occurring))
        numbers = np.array([names.index(name) for name in occurring], dtype=np.int64)[inverse]
        parts = np.split(numbers, np.cumsum([len(x) for x in as_text.values()])[:-1])
        return dict(zip(as_text, parts, strict=True)), names
    for split, x in flat.items():
        whole = x.ndim == 1 and x.dtype.kind in "buif" and bool(np.isfinite(x).all() and (x == np.floor(x)).all())
        if not whole:
            what = f"{where}: the labels{f' of {split}' if split else ''} are no whole numbers [N]"
            if wanted:
                raise DataError(f"{what}, but {x.dtype} {list(x.shape)}; expected one number or word for each example")
            notice(f"{what} and are not used")
            return {}, None
    return {split: x.astype(np.int64) for split, x in flat.items()}, None


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes sorted: by number if they are numbers, else as text.

    >>> in_order({"10", "9", "0"}), in_order({"b", "10", "a"})
    (('0', '9', '10'), ('10', 'a', 'b'))
    """
    names = sorted(names)
    return tuple(sorted(names, key=int) if all(map(is_integer, names)) else names)


def is_integer(text: str) -> bool:
    """Whether a class's name is a number."""
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None
