"""The `Dataset` that everything else takes, and how grey values become its states."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]
SPLITS = ("train", "valid", "test")


class DataError(ValueError):
    """The data cannot be used as asked; the message says what came and what is expected."""


class DataNotice(UserWarning):
    """Something in the files was left out or decided; the data are right without it."""


@dataclass(frozen=True)
class Dataset:
    """Three splits of integer vectors and what is needed to name them in a result.

    `train`, `valid`, `test`: uint8 tensors [N, D] with states 0 … num_states − 1, images flattened row by row.
    `image_shape`: (height, width), or None if the vectors are no images.
    `preparation`: how the states were made ("fixed binarisation …", "10 grey levels"), printed with every result.
    `intensities`: only for dynamic binarisation, the train split's grey values uint8 [N, D] with white = 255; `train`
    is then one drawing of them, and `train_states` draws anew for each epoch.
    `labels`: {split: int64 [N]} of the splits whose labels were found beside the examples.
    `class_names`: what the labels 0, 1, … are called, where they have names.
    `num_classes`: C, where the labels are what models are given (`load_dataset(…, labels=True)`): then every split has
    them, 0 … C − 1. None where they are not to be used.
    """

    name: str
    num_states: int
    image_shape: tuple[int, int] | None
    preparation: str
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    intensities: torch.Tensor | None = None
    labels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            x = getattr(self, split)
            if x.dtype != torch.uint8 or x.ndim != 2 or x.shape[1] != self.dim or self.dim == 0:
                raise DataError(
                    f"{self.name}: {split} should be uint8 [N, {self.dim}] with at least one column, "
                    f"but is {x.dtype} {list(x.shape)}"
                )
            if len(x) and int(x.max()) >= self.num_states:
                raise DataError(f"{self.name}: {split} holds the state {int(x.max())}; num_states is {self.num_states}")
        if len(self.train) == 0:
            raise DataError(f"{self.name}: the train split is empty")
        if self.image_shape is not None and math.prod(self.image_shape) != self.dim:
            raise DataError(f"{self.name}: images of {self.image_shape} do not have {self.dim} pixels")
        for split, labels in self.labels.items():
            if labels.dtype != torch.int64 or labels.shape != (len(self.split(split)),):
                raise DataError(
                    f"{self.name}: the labels of {split} should be int64 [{len(self.split(split))}], "
                    f"but are {labels.dtype} {list(labels.shape)}"
                )
        if self.num_classes is not None:
            self._check_classes(self.num_classes)

    def _check_classes(self, num_classes: int) -> None:
        for split in SPLITS:
            if split not in self.labels:
                raise DataError(f"{self.name}: num_classes is {num_classes}, but {split} has no labels")
            labels = self.labels[split]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise DataError(
                    f"{self.name}: the labels of {split} should be 0 … {num_classes - 1}, but are "
                    f"{int(labels.min())} … {int(labels.max())}"
                )
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise DataError(f"{self.name}: num_classes is {num_classes}, but {len(self.class_names)} have names")

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return self.train.shape[1]

    @property
    def dynamic(self) -> bool:
        """Whether the train split is binarised anew for each epoch."""
        return self.intensities is not None

    def split(self, name: str) -> torch.Tensor:
        """One split by its name."""
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")
        return getattr(self, name)

    def context(self, split: str) -> torch.Tensor | None:
        """The labels int64 [N] that a model is given with a split; None where labels are not to be used."""
        return None if self.num_classes is None else self.labels[split]

    def train_states(self, seed: int, epoch: int) -> torch.Tensor:
        """The train split of an epoch, uint8 [N, D]; a function of (seed, epoch) alone."""
        if self.intensities is None:
            return self.train
        return torch.from_numpy(bernoulli(self.intensities.numpy(), (seed, epoch)))

    def fingerprint(self) -> str:
        """SHA-256 over the splits' shapes, states and, if they are used, labels: the same for the same data, however
        it was stored."""
        digest = hashlib.sha256()
        tensors = [self.train if self.intensities is None else self.intensities, self.valid, self.test]
        for x in tensors:
            digest.update(f"{self.num_states} {list(x.shape)} ".encode())
            digest.update(np.ascontiguousarray(x.numpy()).data)
        if self.num_classes is not None:
            digest.update(f"{self.num_classes} classes ".encode())
            for split in SPLITS:
                digest.update(np.ascontiguousarray(self.labels[split].numpy()).data)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: name, preparation, sizes."""
        shape = "×".join(map(str, self.image_shape)) if self.image_shape else str(self.dim)
        sizes = " / ".join(f"{len(self.split(s)):,}" for s in SPLITS)
        return f"{self.name} ({self.preparation}), {shape}, {self.num_states} states, {sizes} train/valid/test"


# --- Randomness that must not change with the versions of NumPy or torch: only NumPy's bit generators promise that. ---


def permutation(size: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0 … size − 1 that depends on `seed` alone."""
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


def bernoulli(intensities: Uint8, seed: int | tuple[int, ...]) -> Uint8:
    """Binary states with P(x = 1) = intensity/255, drawn from `seed` alone; shape and order as `intensities` [N, D]."""
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    thresholds = (
        np.arange(256, dtype=np.uint64) * np.uint64(2**32) // np.uint64(255)
    )  # ⌊v·2³²/255⌋: 0 never, 255 always
    states = np.empty_like(intensities)
    rows = max(1, 4_000_000 // max(1, intensities.shape[1]))  # bounds the temporary arrays to some 50 MB
    for first in range(0, len(intensities), rows):
        part = intensities[first : first + rows]
        words = bits.random_raw((part.size + 1) // 2).astype("<u8").view("<u4")[: part.size].reshape(part.shape)
        states[first : first + rows] = words < thresholds[part]
    return states


def split_sizes(size: int) -> tuple[int, int, int]:
    """Sizes of train/valid/test for one array of `size` rows: 80 % / 10 % / 10 %."""
    if size < 10:
        examples = "1 example is" if size == 1 else f"{size} examples are"
        raise DataError(f"{examples} too few to split into train, valid and test; 10 are the least")
    tenth = size // 10
    return size - 2 * tenth, tenth, tenth


def split_one(x: Uint8, seed: int = 0) -> tuple[Uint8, Uint8, Uint8]:
    """One array [N, D] in a fixed random order as train (80 %), valid (10 %), test (10 %)."""
    train, valid, _ = split_sizes(len(x))
    order = permutation(len(x), seed)
    return x[order[:train]], x[order[train : train + valid]], x[order[train + valid :]]


# --- Grey values to states ---


class States(NamedTuple):
    """Arrays of states and what is told of them. `intensities`: the first one's grey values 0 … 255, if "dynamic"."""

    arrays: list[Uint8]
    num_states: int
    preparation: str
    intensities: Uint8 | None = None


def quantise(x: NDArray, levels: int, white: int) -> Uint8:
    """Grey values 0 … white to `levels` states by bins of equal width: ⌊x·levels/(white + 1)⌋."""
    most = min(white + 1, 256)
    if not 2 <= levels <= most:
        raise DataError(f"--levels should be 2 … {most} for grey values 0 … {white}, but is {levels}")
    table = np.arange(white + 1) * levels // (white + 1)
    return table.astype(np.uint8)[x]


def grey_to_states(arrays: Sequence[NDArray], *, white: int, levels: int | None, binarize: str | None) -> States:
    """States from arrays of grey values [N, D] in 0 … white, white at most 65535.

    Exactly one of: `levels` states by `quantise`; `binarize="threshold"`: 1 where x > white/2; `"fixed"`: each pixel
    drawn once with P(1) = x/white from a fixed seed; `"dynamic"`: as "fixed", and the first array's grey values are
    kept, to be drawn anew. Random binarisation knows 256 grey values: others are rounded to them.
    """
    if (levels is None) == (binarize is None):
        raise DataError("choose one of --levels and --binarize, not both")
    if levels is not None:
        depth = " of 16-bit grey values" if white > 255 else ""
        return States([quantise(x, levels, white) for x in arrays], levels, f"{levels} grey levels{depth}")
    if binarize == "threshold":
        preparation = f"binarised by threshold: 1 above {white / 2:g} of {white}"
        return States([(x > white / 2).astype(np.uint8) for x in arrays], 2, preparation)
    if binarize not in ("fixed", "dynamic"):
        raise DataError(f"--binarize should be fixed, threshold or dynamic, but is {binarize!r}")
    grey = [x if white == 255 else np.round(x * (255 / white)).astype(np.uint8) for x in arrays]
    # One seed per array; an epoch's drawing has a seed of two numbers, so that they never coincide with these.
    states = [bernoulli(x, 2**32 + index) for index, x in enumerate(grey)]
    if binarize == "dynamic":
        preparation = "dynamic binarisation: train drawn anew each epoch, valid and test drawn once"
        return States(states, 2, preparation, grey[0])
    return States(states, 2, "binarised at random once, fixed seed")


def prepare(
    name: str,
    splits: tuple[Uint8, Uint8, Uint8],
    *,
    white: int,
    image_shape: tuple[int, int] | None,
    levels: int | None,
    binarize: str | None,
) -> Dataset:
    """A `Dataset` from train, valid, test as grey values [N, D] in 0 … white; see `grey_to_states`."""
    return dataset_of(name, image_shape, grey_to_states(splits, white=white, levels=levels, binarize=binarize))


def dataset_of(
    name: str,
    image_shape: tuple[int, int] | None,
    states: States,
    labels: Mapping[str, NDArray[np.int64]] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """A `Dataset` from the states of train, valid and test."""
    train, valid, test = (torch.from_numpy(np.ascontiguousarray(x)) for x in states.arrays)
    return Dataset(
        name,
        states.num_states,
        image_shape,
        states.preparation,
        train,
        valid,
        test,
        None if states.intensities is None else torch.from_numpy(np.ascontiguousarray(states.intensities)),
        {split: torch.from_numpy(np.ascontiguousarray(x)) for split, x in (labels or {}).items()},
        class_names,
    )
