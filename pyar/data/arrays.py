"""Named arrays and tables as a `Source`: which are the examples of which split, which their labels, which neither."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import SPLITS, DataError
from pyar.data.files import read_numpy
from pyar.data.folders import Folder, listed, notice
from pyar.data.names import by_split, looks_like_split, meaning
from pyar.data.source import Source, integer_labels
from pyar.data.tables import is_table, read_table

_EXPECTED = (
    "expected train, valid and test, or train and test, or one array of examples (or one of the names x, data, images)"
)


def source_of_arrays(
    path: Path,
    arrays: dict[str, NDArray],
    objects: list[str],
    image_shape: tuple[int, int] | None,
    *,
    labels_wanted: bool = False,
) -> Source:
    """A source from arrays by name. `objects`: the names of what could not be read, which may be irrelevant.

    No array that looks like a split is left out silently, and no labels if they are wanted.
    """
    examples, labels = by_split([*arrays, *objects])
    for split, names in examples.items():
        if len(names) > 1:
            raise DataError(f"{path} names the {split} split twice: {', '.join(names)}")
    if examples:
        chosen = {split: names[0] for split, names in examples.items()}
        label_names = {split: names for split, names in labels.items() if split in chosen}
    else:
        chosen = {"": _the_one(path, arrays, objects)}
        own = chosen[""]  # of mine.csv in a folder come "mine" and "mine labels"
        others = [name for name in (*arrays, *objects) if name != own]
        label_names = {"": [name for name in others if _unsplit(name, "labels") or name == f"{own} labels"]}
    if labels_wanted:
        _refuse_unclear_labels(path, label_names, objects)
    beside = {split: names[0] for split, names in label_names.items() if len(names) == 1 and names[0] in arrays}
    used = {*chosen.values(), *beside.values()}
    unused = [name for name in (*arrays, *objects) if name not in used]
    # "train_mask" and "test_mask" share a word as "faces_train" and "faces_test" do, but with x beside them x is meant.
    guessed = bool(examples) and any(meaning(name).rest for name in chosen.values())
    unclear = [
        name
        for name in unused
        if (looks_like_split(name) and meaning(name).role == "examples") or (guessed and _unsplit(name, "examples"))
    ]
    unclear = [name for name in unclear if name in objects or arrays[name].ndim > 0]
    if unclear:
        raise DataError(
            f"{path}: {', '.join(map(repr, unclear))} would not be used beside {', '.join(map(repr, sorted(used)))}, "
            "but looks like examples or a split; rename it, or leave it out of the file. "
            f"{_EXPECTED[0].upper()}{_EXPECTED[1:]}"
        )
    for name in chosen.values():
        if name in objects:
            raise DataError(f"{path} cannot be read: {name!r} holds pickled objects (a ragged list?), not numbers")
    if idle := [name for name in unused if name in objects or arrays[name].ndim > 0]:
        notice(f"{path}: not used: {listed(idle)}")
    parts, shape = {}, image_shape
    for split, name in chosen.items():
        parts[split], shape = _flat(path, arrays[name], shape)
    found = {split: arrays[name] for split, name in beside.items()}
    numbers, class_names = integer_labels(found, path, wanted=labels_wanted)
    return Source(path, parts, numbers, class_names, shape)


def _refuse_unclear_labels(path: Path, label_names: dict[str, list[str]], objects: list[str]) -> None:
    for split, names in label_names.items():
        of_split = f" of {split}" if split else ""
        if len(names) > 1:
            raise DataError(f"{path} has several arrays of labels{of_split} ({listed(names)}); leave one, or rename it")
        if set(names) & set(objects):
            raise DataError(f"{path}: the labels{of_split} hold pickled objects; save text as y.astype(str)")


def _unsplit(name: str, role: str) -> bool:
    found = meaning(name)
    return found.split is None and found.role == role and not found.rest


def _the_one(path: Path, arrays: dict[str, NDArray], objects: list[str]) -> str:
    """The name of the only array of examples in a file without splits."""
    if len(arrays) == 1 and not any(_unsplit(name, "examples") for name in objects):
        return next(iter(arrays))
    by_name = [name for name in (*arrays, *objects) if _unsplit(name, "examples") and name]
    by_shape = [name for name in arrays if arrays[name].ndim > 1 and meaning(name).role == "examples"]
    for found in (by_name, by_shape):
        if len(found) == 1:
            return found[0]
    names = [repr(name) for name in (*arrays, *objects)]
    stack = ". If each is one example, save them as one array (numpy.stack)" if len(names) > 3 else ""
    raise DataError(f"{path} holds {listed(names) or 'nothing'}; {_EXPECTED}{stack}")


def _flat(path: Path, x: NDArray, shape: tuple[int, int] | None) -> tuple[NDArray, tuple[int, int] | None]:
    """Examples as [N, D], and their (height, width) if they are images."""
    if x.dtype.names:
        raise DataError(
            f"{path}: the array has the fields {', '.join(x.dtype.names)}; save them as one plain array [N, D], for "
            "example by numpy.lib.recfunctions.structured_to_unstructured"
        )
    if x.ndim == 0:
        raise DataError(f"{path} holds a single number, not an array of examples")
    if x.ndim == 4 and 1 in (x.shape[1], x.shape[-1]):
        x = x[..., 0] if x.shape[-1] == 1 else x[:, 0]
    if x.ndim not in (2, 3):
        colour = "; take one colour or their mean first" if x.ndim == 4 else ""
        raise DataError(
            f"{path}: an example should be a vector or a grey image [height, width], but is {list(x.shape[1:])}{colour}"
        )
    if x.ndim == 3:
        if shape is not None and shape != x.shape[1:]:
            raise DataError(f"{path}: images are {x.shape[1:]}, not {shape}")
        shape = (int(x.shape[1]), int(x.shape[2]))
    return x.reshape(len(x), math.prod(x.shape[1:])), shape


def source_of_table(
    path: Path, image_shape: tuple[int, int] | None, dim: int | None, labels: bool | str = False
) -> Source:
    """A table: one set, or as many as its column of splits names. `labels`: as load_dataset."""
    table = read_table(path, dim, labels)
    found = {} if table.labels is None else {"": table.labels}
    numbers, class_names = integer_labels(found, path, wanted=bool(labels))
    if table.splits is None:
        return Source(path, {"": table.values}, numbers, class_names, image_shape)
    rows = {split: np.flatnonzero(table.splits == split) for split in SPLITS if (table.splits == split).any()}
    parts = {split: table.values[index] for split, index in rows.items()}
    labels = {split: numbers[""][index] for split, index in rows.items()} if numbers else {}
    return Source(path, parts, labels, class_names, image_shape)


def array_files(folder: Folder) -> list[Path]:
    """The .npy files and tables of a folder."""
    return [path for path in folder.files if path.suffix.lower() == ".npy" or is_table(path)]


def source_of_folder(
    folder: Folder, image_shape: tuple[int, int] | None, dim: int | None, labels: bool | str = False
) -> Source:
    """A folder of arrays or tables, a file a split: x_train.npy, y_train.npy, … or train.csv, test.csv."""
    folder.tell_skipped()
    files = array_files(folder)
    arrays: dict[str, NDArray] = {}
    for path in files:
        name = stem(path)
        if name in arrays:
            raise DataError(f"{folder.path} has several files called {name}; keep one")
        if path.suffix.lower() == ".npy":
            arrays[name] = read_numpy(path)[""]
            continue
        table = read_table(path, dim, labels)
        if table.splits is not None:
            raise DataError(f"{path} has a column of splits; name the file itself")
        arrays[name] = table.values
        if table.labels is not None:
            arrays[f"{name} labels"] = table.labels
    others = [path.name for path in folder.files if path not in files] + [path.name for path in folder.folders]
    if others:
        notice(f"{folder.path}: not read, since they are no arrays or tables: {listed(others)}")
    return source_of_arrays(folder.path, arrays, [], image_shape, labels_wanted=bool(labels))


def stem(path: Path) -> str:
    """A file's name without its suffixes: x of x.npy and of x.csv.gz."""
    return path.with_suffix("").stem if path.suffix.lower() in (".gz", ".bz2", ".xz") else path.stem
