"""The `Dataset` that everything else takes, and how grey values become its states."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]
SPLITS = ("train", "valid", "test")


class DataError(ValueError):
    """The data cannot be used as asked; the message says what came and what is expected."""


@dataclass(frozen=True)
class Dataset:
    """Three splits of integer vectors and what is needed to name them in a result.

    `train`, `valid`, `test`: uint8 tensors [N, D] with states 0 … num_states − 1, images flattened row by row.
    `image_shape`: (height, width), or None if the vectors are no images.
    `preparation`: how the states were made ("fixed binarisation …", "10 grey levels"), printed with every result.
    `intensities`: only for dynamic binarisation, the train split's grey values uint8 [N, D] with white = 255; `train`
    is then one drawing of them, and `train_states` draws anew for each epoch.
    """

    name: str
    num_states: int
    image_shape: tuple[int, int] | None
    preparation: str
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    intensities: torch.Tensor | None = None

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

    def train_states(self, seed: int, epoch: int) -> torch.Tensor:
        """The train split of an epoch, uint8 [N, D]; a function of (seed, epoch) alone."""
        if self.intensities is None:
            return self.train
        return torch.from_numpy(bernoulli(self.intensities.numpy(), (seed, epoch)))

    def fingerprint(self) -> str:
        """SHA-256 over the splits' shapes and states: the same for the same data, however it was stored."""
        digest = hashlib.sha256()
        tensors = [self.train if self.intensities is None else self.intensities, self.valid, self.test]
        for x in tensors:
            digest.update(f"{self.num_states} {list(x.shape)} ".encode())
            digest.update(np.ascontiguousarray(x.numpy()).data)
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
        raise DataError(f"{size} examples are too few to split into train, valid and test; 10 are the least")
    tenth = size // 10
    return size - 2 * tenth, tenth, tenth


def split_one(x: Uint8, seed: int = 0) -> tuple[Uint8, Uint8, Uint8]:
    """One array [N, D] in a fixed random order as train (80 %), valid (10 %), test (10 %)."""
    train, valid, _ = split_sizes(len(x))
    order = permutation(len(x), seed)
    return x[order[:train]], x[order[train : train + valid]], x[order[train + valid :]]


# --- Grey values to states ---


def quantise(x: Uint8, levels: int, white: int) -> Uint8:
    """Grey values 0 … white to `levels` states by bins of equal width: ⌊x·levels/(white + 1)⌋."""
    if not 2 <= levels <= white + 1:
        raise DataError(f"--levels should be 2 … {white + 1} for grey values 0 … {white}, but is {levels}")
    table = np.arange(white + 1) * levels // (white + 1)
    return table.astype(np.uint8)[x]


def prepare(
    name: str,
    splits: tuple[Uint8, Uint8, Uint8],
    *,
    white: int,
    image_shape: tuple[int, int] | None,
    levels: int | None,
    binarize: str | None,
) -> Dataset:
    """A `Dataset` from splits of grey values uint8 [N, D] in 0 … white.

    Exactly one of: `levels` states by `quantise`; `binarize="threshold"`: 1 where x > white/2; `"fixed"`: each pixel
    drawn once with P(1) = x/white from a fixed seed; `"dynamic"`: valid and test as for "fixed", train drawn anew each
    epoch.
    """
    if (levels is None) == (binarize is None):
        raise DataError("choose one of --levels and --binarize, not both")
    intensities = None
    if levels is not None:
        transform: Callable[[Uint8], Uint8] = lambda x: quantise(x, levels, white)  # noqa: E731
        preparation, num_states = f"{levels} grey levels", levels
        states = [transform(x) for x in splits]
    elif binarize == "threshold":
        preparation, num_states = f"binarised by threshold: 1 above {white / 2:g} of {white}", 2
        states = [(x > white / 2).astype(np.uint8) for x in splits]
    elif binarize in ("fixed", "dynamic"):
        num_states = 2
        grey = [x if white == 255 else np.round(x * (255 / white)).astype(np.uint8) for x in splits]
        # One seed per split; an epoch's drawing has a seed of two numbers, so that they never coincide with these.
        states = [bernoulli(x, 2**32 + index) for index, x in enumerate(grey)]
        preparation = "binarised at random once, fixed seed"
        if binarize == "dynamic":
            intensities = torch.from_numpy(grey[0])
            preparation = "dynamic binarisation: train drawn anew each epoch, valid and test drawn once"
    else:
        raise DataError(f"--binarize should be fixed, threshold or dynamic, but is {binarize!r}")
    train, valid, test = (torch.from_numpy(np.ascontiguousarray(x)) for x in states)
    return Dataset(name, num_states, image_shape, preparation, train, valid, test, intensities)
