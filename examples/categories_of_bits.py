"""One-hot bits become a table of categories, which pyar train table learns; exactly as many nats as the bits have.

    python examples/categories_of_bits.py adult.npz adult-categories.npz
    pyar train table --data adult-categories.npz

Data sets such as the binary adult and connect-4 of the NADE papers are categories written as bits. Neighbouring bits
are taken for one column as long as no row has two of them set. A row without any has one category more, "none". That is
a bijection of the rows, which is checked on every one, so that log-probabilities may be compared between both forms.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyar.files import atomic_write


def find_groups(bits: NDArray[np.uint8]) -> list[slice]:
    """The columns' bits, from left to right, each group as long as no row has two bits of it: [N, D] → slices."""
    groups, first, seen = [], 0, np.zeros(len(bits), dtype=bool)
    for d in range(bits.shape[1]):
        bit = bits[:, d] == 1
        if (seen & bit).any():
            groups.append(slice(first, d))
            first, seen = d, np.zeros_like(bit)
        seen |= bit
    return [*groups, slice(first, bits.shape[1])]


def to_categories(bits: NDArray[np.uint8], groups: Sequence[slice]) -> NDArray[np.int64]:
    """Of every group which bit is set, and its length where none is: [N, D] → [N, number of groups].

    Raises:
        ValueError: a row has two bits of a group.
    """
    parts = [bits[:, group] for group in groups]
    if any((part.sum(axis=1) > 1).any() for part in parts):
        raise ValueError("a row has two bits of one group: these groups are not one-hot")
    return np.stack([np.where(part.any(axis=1), part.argmax(axis=1), part.shape[1]) for part in parts], axis=1)


def to_bits(categories: NDArray[np.int64], groups: Sequence[slice]) -> NDArray[np.uint8]:
    """The inverse of `to_categories`."""
    columns = zip(groups, categories.T, strict=True)
    parts = [column[:, None] == np.arange(group.stop - group.start) for group, column in columns]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bits", help=".npz with arrays train, valid and test of bits [N, D]")
    parser.add_argument("out", help=".npz: an array for each column, and the rows' splits")
    options = parser.parse_args(arguments)

    with np.load(options.bits, allow_pickle=False) as arrays:
        splits = {name: arrays[name] for name in ("train", "valid", "test")}
    bits = np.concatenate(list(splits.values()))
    if not np.isin(bits, (0, 1)).all():
        raise SystemExit(f"{options.bits} holds values other than 0 and 1")
    groups = find_groups(bits)
    categories = to_categories(bits, groups)
    if not np.array_equal(to_bits(categories, groups), bits):
        raise SystemExit("the categories are not the bits")  # cannot be, and what follows relies on it

    columns: dict[str, NDArray] = {}
    for group, column in zip(groups, categories.T, strict=True):
        size = group.stop - group.start
        names = np.array([f"bit {d}" for d in range(group.start, group.stop)] + ["none"])
        columns[f"bits {group.start}-{group.stop - 1}"] = names[column]
        print(f"bits {group.start:>3} … {group.stop - 1:>3}: {size} categories, {np.mean(column == size):.2%} none")
    columns["split"] = np.repeat(list(splits), [len(part) for part in splits.values()])
    with atomic_write(options.out) as file:
        np.savez_compressed(file, **columns)
    print(f"{len(bits):,} rows of {len(groups)} columns, a bijection on every one: {options.out}")


if __name__ == "__main__":
    main()
