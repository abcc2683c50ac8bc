"""Labels as models take them: numbers 0 … C − 1 of classes that have names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pyar.data.dataset import SPLITS, DataError, Dataset
from pyar.data.folders import listed
from pyar.data.source import is_integer

_WHERE = (
    "labels are an array called labels or y beside the examples (y_train, y_test beside splits), a column called label "
    "(or another one: --labels COLUMN), class folders of images, or IDX files of labels beside those of images"
)


def with_classes(dataset: Dataset) -> Dataset:
    """The data set as one given labels: its classes numbered in their order, their names as the files have them.

    Raises:
        DataError: examples have no labels, or a class has none in train.
    """
    labels = {split: dataset.labels.get(split) for split in SPLITS}
    bare = [split for split, y in labels.items() if y is None and len(dataset.split(split))]
    if bare:
        some = "" if len(bare) == len(SPLITS) else f" of {' and '.join(bare)}"
        raise DataError(f"{dataset.name} has no labels{some}; {_WHERE}")
    found = {split: torch.empty(0, dtype=torch.int64) if y is None else y for split, y in labels.items()}
    numbers, names = torch.cat(list(found.values())), dataset.class_names
    if names is None:
        classes = numbers.unique()
        found = {split: torch.searchsorted(classes, y) for split, y in found.items()}
        names = tuple(map(str, classes.tolist()))
    for split in ("valid", "test"):
        strange = sorted(set(found[split].tolist()) - set(found["train"].tolist()))
        if strange:
            raise DataError(
                f"{dataset.name}: {_classes([names[k] for k in strange])} in {split} and not in train, so that no "
                "model learns what it is; leave it out, or give train some of it"
            )
    return replace(
        dataset,
        labels=found,
        class_names=names,
        num_classes=len(names),
        preparation=f"{dataset.preparation}; {_given(names)}",
    )


def _given(names: Sequence[str]) -> str:
    return f"given the label, one of {len(names)}"


def _classes(names: list[str]) -> str:
    return f"the class {names[0]!r} occurs" if len(names) == 1 else f"the classes {listed(names)} occur"


def labels_for_model(
    name: str, labels: torch.Tensor | None, own_names: Sequence[str] | None, classes: Sequence[str]
) -> tuple[torch.Tensor, str]:
    """The labels of a file as the classes of a model that is there already, and what is said of it in results.

    `own_names`: what the file calls its labels, if not by number. `classes`: the model's.
    """
    if labels is None:
        raise DataError(f"{name} has no labels, and the model is one of examples given their labels; {_WHERE}")
    values, inverse = labels.unique(return_inverse=True)
    found = [find_class(str(v) if own_names is None else own_names[v], classes) for v in values.tolist()]
    return torch.tensor(found, dtype=torch.int64)[inverse], _given(classes)


def find_class(label: str, classes: Sequence[str]) -> int:
    """The number of the class of that name, in any case; where names are words, numbers from 0 are understood too.

    Raises:
        DataError: there is none.

    >>> find_class("elk", ["ape", "elk"]), find_class("Ape", ["ape", "elk"]), find_class("1", ["ape", "elk"])
    (1, 0, 1)
    >>> find_class("7", ["3", "7"])
    1
    """
    if label in classes:
        return list(classes).index(label)
    alike = [number for number, name in enumerate(classes) if name.lower() == label.lower()]
    if len(alike) == 1:
        return alike[0]
    if not any(map(is_integer, classes)) and label.isdecimal() and int(label) < len(classes):
        return int(label)
    raise DataError(f"the model knows no class {label!r}; its classes are {listed(list(classes), limit=20)}")
