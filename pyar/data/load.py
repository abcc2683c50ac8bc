"""`load_dataset`: a name or a path to a `Dataset`."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pyar.data import download
from pyar.data.dataset import DataError, Dataset, Uint8, permutation, prepare, split_one, split_sizes
from pyar.data.files import IMAGE_SUFFIXES, read_amat, read_idx, read_images, read_numpy

DATASET_NAMES = ("digits", "mnist", "fashion-mnist", "binarized-mnist")
DEFAULT_LEVELS = 10  # of 8-bit grey images: the ten-grey-level setting

# SHA-256 of np.packbits(train), …(valid), …(test): tells the published binarisation from other files of that name.
_FIXED_BINARISATION = (
    "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906",
    "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d",
    "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2",
)


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    levels: int | None = None,
    binarize: str | None = None,
    white: int | None = None,
    image_shape: tuple[int, int] | None = None,
    download_missing: bool = True,
    progress: bool = True,
) -> Dataset:
    """The data set of that name, or the one at that path.

    `name`: "digits" (scikit-learn's 8×8 digits, always there), "mnist", "fashion-mnist", "binarized-mnist" (the fixed
    binarisation of Salakhutdinov & Murray 2008), or a path: .npy, .npz (`train`, `valid`, `test`, or one array), a
    folder of images (or with subfolders train, valid, test), a folder of IDX files.
    `data_dir`: a folder to look in first, else the environment variable PYAR_DATA; what is not there is downloaded into
    `cache_dir` (default: the user's cache folder) unless `download_missing` is false.
    `levels`: quantise grey values to so many states. `binarize`: "fixed", "threshold" or "dynamic" (see `prepare`).
    `white`: the greatest grey value, for arrays where it cannot be told from the values.
    `image_shape`: height and width of vectors that are images, for drawing; a square is assumed where D is one.
    """
    if levels is not None and binarize is not None:
        raise DataError("choose one of --levels and --binarize, not both")
    roots = _roots(data_dir)
    cache = Path(cache_dir) if cache_dir is not None else download.default_cache_dir()
    choice = {"levels": levels, "binarize": binarize}
    if name in DATASET_NAMES:
        _only_for_arrays(name, white, image_shape)
    if name == "digits":
        return _digits(**choice)
    if name in ("mnist", "fashion-mnist"):
        return _idx_dataset(name, roots, cache, download_missing, progress, **choice)
    if name == "binarized-mnist":
        if levels is not None or binarize is not None:
            raise DataError("binarized-mnist is binary already; --levels and --binarize are for --data mnist")
        return _binarized_mnist(roots, cache, download_missing, progress)
    path = _find_path(name, roots)
    if path.is_dir():
        _only_for_arrays(str(path), white, image_shape)
        if _idx_file(path, "train-images-idx3-ubyte"):
            return _from_idx(path.name, path, **choice)
        return _image_folder(path, **choice)
    if path.suffix in (".npy", ".npz"):
        return _array_file(path, white=white, image_shape=image_shape, **choice)
    raise DataError(f"{path} is neither .npy, .npz nor a folder; --data takes those or {', '.join(DATASET_NAMES)}")


def _only_for_arrays(name: str, white: int | None, image_shape: tuple[int, int] | None) -> None:
    for option, value in (("--white", white), ("--image-shape", image_shape)):
        if value is not None:
            raise DataError(f"{option} is for .npy and .npz files; {name} says itself what it is")


def _roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    if data_dir is None:
        data_dir = os.environ.get("PYAR_DATA") or None
        if data_dir is None:
            return []
        source = "PYAR_DATA"
    else:
        source = "--data-dir"
    if not Path(data_dir).is_dir():
        raise DataError(f"{source} names {data_dir}, which is not a folder")
    return [Path(data_dir)]


def _find_path(name: str, roots: list[Path]) -> Path:
    for path in [Path(name), *(root / name for root in roots)]:
        if path.exists():
            return path
    raise DataError(f"there is no data set and no file {name!r}; the data sets are {', '.join(DATASET_NAMES)}")


# --- Named data sets ---


def _digits(levels: int | None, binarize: str | None) -> Dataset:
    """1,797 images of 8×8 pixels with values 0 … 16 (scikit-learn ships them); 17 states, nothing lost, by default."""
    from sklearn.datasets import load_digits

    x = load_digits().data.astype(np.uint8)
    if levels is None and binarize is None:
        levels = 17
    return prepare("digits", split_one(x), white=16, image_shape=(8, 8), levels=levels, binarize=binarize)


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _idx_dataset(
    name: str,
    roots: list[Path],
    cache: Path,
    download_missing: bool,
    progress: bool,
    levels: int | None,
    binarize: str | None,
) -> Dataset:
    remote, torchvision = {
        "mnist": (download.MNIST, "MNIST/raw"),
        "fashion-mnist": (download.FASHION_MNIST, "FashionMNIST/raw"),
    }[name]
    for root in roots:
        for folder in (root / name, root / name.replace("-", "_"), root / torchvision, root):
            if _idx_file(folder, "train-images-idx3-ubyte") and _idx_file(folder, "t10k-images-idx3-ubyte"):
                return _from_idx(name, folder, levels, binarize)
    folder = cache / name
    if download_missing:
        for file in remote.sha256:
            download.fetch(remote, file, folder, progress=progress)
    elif not all((folder / file).is_file() for file in remote.sha256):
        raise DataError(_missing(name, remote, roots))
    return _from_idx(name, folder, levels, binarize)


def _missing(name: str, remote: download.RemoteFiles, roots: list[Path]) -> str:
    looked = " and ".join(str(root) for root in roots) or "no --data-dir was given and PYAR_DATA is not set"
    return f"{name} was not found ({looked}). It needs {', '.join(remote.sha256)}, for example from {remote.mirrors[0]}"


def _from_idx(name: str, folder: Path, levels: int | None, binarize: str | None) -> Dataset:
    """The first 5/6 of the train file are train, the rest valid (MNIST: 50,000 / 10,000); t10k is the test split."""
    parts = []
    for stem in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        path = _idx_file(folder, stem)
        if path is None:
            raise DataError(f"{folder} has no {stem} or {stem}.gz")
        images = read_idx(path)
        if images.ndim != 3:
            raise DataError(f"{path} should hold images [N, height, width], but has the shape {images.shape}")
        parts.append(images)
    train, test = parts
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{folder}: train images are {train.shape[1:]}, test images {test.shape[1:]}")
    shape = (int(train.shape[1]), int(train.shape[2]))
    flat = train.reshape(len(train), -1)
    border = len(flat) * 5 // 6
    splits = (flat[:border], flat[border:], test.reshape(len(test), -1))
    if levels is None and binarize is None:
        levels = DEFAULT_LEVELS
    return prepare(name, splits, white=255, image_shape=shape, levels=levels, binarize=binarize)


def _binarized_mnist(roots: list[Path], cache: Path, download_missing: bool, progress: bool) -> Dataset:
    remote = download.BINARIZED_MNIST
    for root in roots:
        for folder in (root, root / "binarized-mnist", root / "binarized_mnist"):
            npz = folder / "binarized_mnist.npz"
            if npz.is_file():
                return _fixed(*_array_splits(read_numpy(npz), npz), npz)
            if all((folder / file).is_file() for file in remote.sha256):
                return _fixed_amat(folder)
    folder = cache / "binarized-mnist"
    if download_missing:
        for file in remote.sha256:
            download.fetch(remote, file, folder, progress=progress)
    elif not all((folder / file).is_file() for file in remote.sha256):
        raise DataError(_missing("binarized-mnist", remote, roots) + ", or binarized_mnist.npz")
    return _fixed_amat(folder)


def _fixed_amat(folder: Path) -> Dataset:
    train, valid, test = (read_amat(folder / f"binarized_mnist_{split}.amat") for split in ("train", "valid", "test"))
    return _fixed(train, valid, test, folder)


def _fixed(train: NDArray, valid: NDArray, test: NDArray, source: Path) -> Dataset:
    splits = []
    for split, x in (("train", train), ("valid", valid), ("test", test)):
        if x.ndim != 2 or x.dtype.kind not in "bu" or x.max(initial=0) > 1 or x.shape[1] != train.shape[1]:
            raise DataError(
                f"{source}: {split} should hold 0s and 1s [N, {train.shape[-1]}], but is {x.dtype} {x.shape}"
            )
        splits.append(x.astype(np.uint8))
    digests = tuple(hashlib.sha256(np.packbits(x).data).hexdigest() for x in splits)
    published = digests == _FIXED_BINARISATION
    preparation = (
        "fixed binarisation of Salakhutdinov & Murray 2008"
        if published
        else "binary as stored; not the published fixed binarisation"
    )
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in splits]
    return Dataset("binarized-mnist", 2, _image_shape(train.shape[1], None), preparation, *tensors)


# --- The user's own data ---


def _image_folder(folder: Path, levels: int | None, binarize: str | None) -> Dataset:
    subfolders = [folder / split for split in ("train", "valid", "test")]
    if any(sub.is_dir() for sub in subfolders):
        missing = [sub.name for sub in subfolders if not sub.is_dir()]
        if missing:
            raise DataError(f"{folder} has some of the subfolders train, valid, test, but not {', '.join(missing)}")
        if any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
            raise DataError(f"{folder} has both images and subfolders train, valid, test; keep one of the two")
        read = [read_images(sub) for sub in subfolders]
        shapes = {shape for _, shape in read}
        if len(shapes) > 1:
            raise DataError(f"{folder}: the splits' images differ in size: {sorted(shapes)}")
        splits, shape = (read[0][0], read[1][0], read[2][0]), read[0][1]
    else:
        x, shape = read_images(folder)
        splits = split_one(x)
    if levels is None and binarize is None:
        levels = 2 if all(np.isin(x, (0, 255)).all() for x in splits) else DEFAULT_LEVELS
    return prepare(folder.name, splits, white=255, image_shape=shape, levels=levels, binarize=binarize)


_ALIASES = {
    "val": "valid",
    "validation": "valid",
    "x_train": "train",
    "x_valid": "valid",
    "x_val": "valid",
    "x_test": "test",
}


def _array_splits(arrays: dict[str, NDArray], path: Path) -> tuple[NDArray, NDArray, NDArray]:
    """train, valid, test of a file: named so; or train and test, valid a tenth of train; or one array, 80/10/10."""
    named: dict[str, NDArray] = {}
    for key, x in arrays.items():
        split = _ALIASES.get(key, key)
        if split in ("train", "valid", "test"):
            if split in named:
                raise DataError(f"{path} names the {split} split twice: {', '.join(arrays)}")
            named[split] = x
    if {"train", "valid", "test"} <= named.keys():
        return named["train"], named["valid"], named["test"]
    if {"train", "test"} <= named.keys():
        train = named["train"]
        border = split_sizes(len(train))[1]
        order = permutation(len(train), 0)
        return train[order[border:]], train[order[:border]], named["test"]
    single = (
        [arrays[key] for key in ("x", "data", "images") if key in arrays] if len(arrays) > 1 else list(arrays.values())
    )
    if named or len(single) != 1:
        raise DataError(
            f"{path} holds {', '.join(map(repr, arrays)) or 'nothing'}; "
            "expected train, valid and test, or train and test, or one array (or one of the names x, data, images)"
        )
    if single[0].ndim == 0:
        raise DataError(f"{path} holds a single number, not an array of examples")
    return split_one(single[0])


def _array_file(
    path: Path,
    *,
    levels: int | None,
    binarize: str | None,
    white: int | None,
    image_shape: tuple[int, int] | None,
) -> Dataset:
    splits = _array_splits(read_numpy(path), path)
    shape = image_shape
    flat = []
    for x in splits:
        if x.ndim == 4 and x.shape[-1] == 1:
            x = x[..., 0]
        if x.ndim not in (2, 3):
            raise DataError(
                f"{path}: an example should be a vector or a grey image [height, width], but is {list(x.shape[1:])}"
            )
        if x.ndim == 3:
            if shape is not None and shape != x.shape[1:]:
                raise DataError(f"{path}: images are {x.shape[1:]}, not {shape}")
            shape = (int(x.shape[1]), int(x.shape[2]))
        flat.append(x.reshape(len(x), math.prod(x.shape[1:])))
    if len({x.shape[1] for x in flat}) > 1:
        raise DataError(f"{path}: the splits have different lengths D: {[x.shape[1] for x in flat]}")
    name, transformed = path.stem, levels is not None or binarize is not None
    integers, scaled = _to_integers(path, flat, transformed)
    shape = _image_shape(flat[0].shape[1], shape)
    top = max((int(x.max()) for x in integers if x.size), default=0)
    if not transformed or (levels is not None and top < levels and not scaled and white is None):
        num_states = levels if levels is not None else max(2, top + 1)
        tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in integers]
        return Dataset(name, num_states, shape, f"{num_states} states as stored", *tensors)
    if scaled:
        white = 255
    elif white is None:
        if top <= 127:
            raise DataError(
                f"{path}: the values reach {top}, which does not tell which value is white; say so with --white {top} "
                "(or --white 255)"
            )
        white = 255
    if top > white:
        raise DataError(f"{path}: the values reach {top}, more than --white {white}")
    return prepare(name, integers, white=white, image_shape=shape, levels=levels, binarize=binarize)


def _to_integers(path: Path, splits: list[NDArray], transformed: bool) -> tuple[tuple[Uint8, Uint8, Uint8], bool]:
    """uint8 arrays, and whether they were intensities in [0, 1] (then scaled to 0 … 255)."""
    if all(x.dtype.kind in "bui" for x in splits) or all(
        x.dtype.kind in "buif" and np.isfinite(x).all() and (x == np.floor(x)).all() for x in splits
    ):
        for x in splits:
            if x.size and (x.min() < 0 or x.max() > 255):
                raise DataError(f"{path}: states should be 0 … 255, but the values are {x.min()} … {x.max()}")
        train, valid, test = (x.astype(np.uint8) for x in splits)
        return (train, valid, test), False
    if not all(x.dtype.kind in "buif" for x in splits):
        raise DataError(f"{path}: expected numbers, but the arrays are {', '.join(str(x.dtype) for x in splits)}")
    for x in splits:
        if not np.isfinite(x).all():
            raise DataError(f"{path}: real values should be intensities in [0, 1], but some are NaN or infinite")
        if x.size and (x.min() < 0 or x.max() > 1):
            raise DataError(
                f"{path}: real values should be intensities in [0, 1], but are {x.min():g} … {x.max():g}; "
                "store integers 0 … K − 1 for states"
            )
    if not transformed:
        raise DataError(
            f"{path} holds real values in [0, 1]; choose how to make them states: --levels K or --binarize …"
        )
    train, valid, test = (np.round(x * 255).astype(np.uint8) for x in splits)
    return (train, valid, test), True


def _image_shape(dim: int, shape: tuple[int, int] | None) -> tuple[int, int] | None:
    if shape is not None:
        if math.prod(shape) != dim:
            raise DataError(
                f"--image-shape {shape[0]}x{shape[1]} has {math.prod(shape)} pixels, but the vectors have {dim}"
            )
        return shape
    side = math.isqrt(dim)
    return (side, side) if side * side == dim and side > 1 else None
