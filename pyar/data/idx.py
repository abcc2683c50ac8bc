"""Folders of IDX files, under the names that MNIST and its relatives have in the wild."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError, Uint8
from pyar.data.files import read_idx
from pyar.data.folders import list_folder
from pyar.data.source import Source

# train-images-idx3-ubyte(.gz), train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte.gz,
# qmnist-train-labels-idx2-int.gz
_NAME = re.compile(
    r"(?:(?P<set>.+?)[-_. ])?(?P<split>train|valid|val|t10k|test)[-_. ](?P<what>images|labels)[-_. ]idx.*",
    re.IGNORECASE,
)
_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "t10k": "test", "test": "test"}


@dataclass
class IdxFiles:
    """The files of one data set in one folder: {split: path}."""

    folder: Path
    name: str
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)

    def add(self, split: str, what: str, path: Path) -> None:
        files = self.images if what == "images" else self.labels
        known = files.get(split)
        if known is not None and (known.suffix == ".gz") == (path.suffix == ".gz"):
            raise DataError(f"{known} and {path} both are the {what} of {split}; keep one")
        if known is None or known.suffix == ".gz":  # beside its own archive the unpacked file is taken
            files[split] = path


def find_idx(folder: Path, depth: int) -> IdxFiles | None:
    """The IDX files of a folder, or those at most `depth` folders below it; the nearest ones if there are several.

    Raises `DataError` where several data sets are equally near.
    """
    level = [folder]
    for _ in range(depth + 1):
        listings = [list_folder(path) for path in level]
        found: dict[tuple[Path, str], IdxFiles] = {}
        for path in (file for listing in listings for file in listing.files):
            if match := _NAME.fullmatch(path.name):
                # Some archives unpack each file into a folder that is called as the file is.
                parent = (
                    path.parent.parent if path.parent != folder and _NAME.fullmatch(path.parent.name) else path.parent
                )
                name = (match["set"] or "").lower()
                files = found.setdefault((parent, name), IdxFiles(parent, name))
                files.add(_SPLITS[match["split"].lower()], match["what"].lower(), path)
        with_images = [files for files in found.values() if files.images]
        if len(with_images) > 1:
            names = ", ".join(sorted(str(next(iter(files.images.values()))) for files in with_images))
            raise DataError(f"{folder} holds several data sets; name one by its images: {names}")
        if with_images:
            return with_images[0]
        level = [sub for listing in listings for sub in listing.folders]
    return None


def idx_of_file(path: Path) -> IdxFiles | None:
    """The files that belong to one of them: those of its set in its folder."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    name = (match["set"] or "").lower()
    files = IdxFiles(path.parent, name)
    for other in list_folder(path.parent).files:
        if (found := _NAME.fullmatch(other.name)) and (found["set"] or "").lower() == name:
            files.add(_SPLITS[found["split"].lower()], found["what"].lower(), other)
    return files


def read_idx_files(path: Path, files: IdxFiles) -> Source:
    """The splits that are there. Without a file for valid, the first 5/6 of train are train, the rest is valid (MNIST:
    50,000 / 10,000)."""
    images = {split: _images(file) for split, file in files.images.items()}
    shapes = {x.shape[1:] for x in images.values()}
    if len(shapes) > 1:
        sizes = ", ".join(f"{split} images are {x.shape[1:]}" for split, x in images.items())
        raise DataError(f"{files.folder}: {sizes}")
    labels = {split: _labels(file) for split, file in files.labels.items() if split in images}
    for split, numbers in labels.items():
        if len(numbers) != len(images[split]):
            raise DataError(
                f"{files.labels[split]} has {len(numbers):,} labels, "
                f"{files.images[split].name} {len(images[split]):,} images"
            )
    parts = {split: x.reshape(len(x), -1) for split, x in images.items()}
    if parts.keys() == {"train", "test"}:
        border = len(parts["train"]) * 5 // 6
        parts = {"train": parts["train"][:border], "valid": parts["train"][border:], "test": parts["test"]}
        if "train" in labels:
            labels |= {"train": labels["train"][:border], "valid": labels["train"][border:]}
    height, width = shapes.pop()
    return Source(path, parts, labels, image_shape=(int(height), int(width)), white=255)


def read_idx_file(path: Path) -> Source:
    """One file of images by itself, with its labels if it is called so that they can be found."""
    siblings = idx_of_file(path)
    split = next((split for split, file in siblings.images.items() if file == path), "") if siblings else ""
    labels = {"": siblings.labels[split]} if siblings and split in siblings.labels else {}
    return read_idx_files(path, IdxFiles(path.parent, "", {"": path}, labels))


def _images(path: Path) -> Uint8:
    images = read_idx(path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{path} should hold images of unsigned bytes [N, height, width], but has the shape {images.shape} and the "
            f"type {images.dtype}"
        )
    return images


def _labels(path: Path) -> NDArray[np.int64]:
    labels = read_idx(path)
    if labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
        raise DataError(f"{path} should hold labels [N], but has the shape {labels.shape}")
    return (labels if labels.ndim == 1 else labels[:, 0]).astype(np.int64)  # QMNIST: the class, then who wrote it
