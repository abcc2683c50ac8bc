"""`load_dataset`: a name or a path to a `Dataset`. `load_rows`: to rows for a model that is there already."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyar.data import download
from pyar.data.arrays import array_files, source_of_arrays, source_of_folder, source_of_table, stem
from pyar.data.dataset import SPLITS, DataError, Dataset, dataset_of
from pyar.data.files import read_amat, read_numpy, read_numpy_arrays, read_safetensors
from pyar.data.folders import list_folder
from pyar.data.frames import TableData, read_frame, split_table
from pyar.data.idx import IdxFiles, find_idx, idx_of_file, read_idx_file, read_idx_files
from pyar.data.images import ImageOptions, is_image, read_image_folder, read_images, white_of_images
from pyar.data.labels import labels_for_model, with_classes
from pyar.data.source import Source
from pyar.data.states import Choice, check_numbers, to_states
from pyar.data.tables import is_table
from pyar.tables import KindOrName, Real

DATASET_NAMES = ("digits", "mnist", "fashion-mnist", "binarized-mnist")

_NAMED_IDX = re.compile(r"(?:idx\d[-_.].*|[-_.]idx(?:\d)?(?:\.gz)?)$", re.IGNORECASE)
# What people have and pyar does not read: how to make it something that it reads.
_PICKLED = "may run code when it is read; save it as .npy, .npz or .safetensors"
_REMEDIES = {
    **dict.fromkeys(
        (".pt", ".pth"), f"{_PICKLED}: numpy.save('x.npy', torch.load('{{0}}', weights_only=True).numpy())"
    ),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), f"{_PICKLED}: numpy.save('x.npy', …)"),
    ".mat": "is not read; save it as .npy: numpy.save('x.npy', scipy.io.loadmat('{0}')['NAME'])",
    **dict.fromkeys(
        (".h5", ".hdf5", ".hdf", ".nc"),
        "is not read; save it as .npy: numpy.save('x.npy', h5py.File('{0}')['NAME'][:])",
    ),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), "is an archive; unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as .csv"),
    **dict.fromkeys(
        (".feather", ".arrow", ".json", ".jsonl", ".dta", ".sav"),
        "is not read; save it as .csv or .parquet with pandas",
    ),
    **dict.fromkeys((".txt", ".dat"), "may be anything; if it is a table of numbers, give it a name that ends in .csv"),
}

# Xiao, Rasul & Vollgraf, "Fashion-MNIST", 2017, table 2.
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

# SHA-256 of np.packbits(train), …(valid), …(test): tells the published binarisation from other files of that name.
_FIXED_BINARISATION = (
    "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906",
    "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d",
    "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2",
)


def load_dataset(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    levels: int | None = None,
    binarize: str | None = None,
    white: int | None = None,
    image_shape: tuple[int, int] | None = None,
    grey: bool = False,
    background: str | None = None,
    labels: bool | str = False,
    download_missing: bool = True,
    progress: bool = True,
) -> Dataset:
    """The data set of that name, or the one at that path.

    `name`: "digits" (scikit-learn's 8×8 digits, always there), "mnist", "fashion-mnist", "binarized-mnist" (the fixed
    binarisation of Salakhutdinov & Murray 2008), or a path: .npy, .npz, .safetensors, .csv, .tsv, .parquet, .amat, an
    IDX file, or a folder of images, of IDX files, or of arrays and tables. Names say the splits (train, valid, test and
    what else they are called); train and test alone give a tenth of train to valid; what has no splits is split
    80/10/10 in a fixed random order.
    `data_dir`: a folder to look in first, else the environment variable PYAR_DATA; what is not there is downloaded into
    `cache_dir` (default: the user's cache folder) unless `download_missing` is false. "~" is the home directory in all.
    `levels`: quantise grey values to so many states. `binarize`: "fixed", "threshold" or "dynamic" (see `prepare`).
    `white`: the greatest grey value, for arrays and tables where it cannot be told from the values.
    `image_shape`: height and width of vectors that are images, for drawing; a square is assumed where D is one.
    `grey`: convert colour images. `background`: "white" or "black", what lies behind transparent images.
    `labels`: the labels are to be used, for a model that is given them: the data set says `num_classes`, and has labels
    0 … num_classes − 1 for all examples. A text names the column of a table that holds them.

    Raises `DataError` for what cannot be read exactly; warns with `DataNotice` of what was left out.

    >>> load_dataset("digits", binarize="threshold").describe()
    'digits (binarised by threshold: 1 above 8 of 16), 8×8, 2 states, 1,439 / 179 / 179 train/valid/test'
    >>> load_dataset("digits", labels=True).num_classes
    10
    """
    choice = Choice(levels, binarize, white)
    roots = _roots(data_dir)
    cache = None if cache_dir is None else Path(os.path.expanduser(cache_dir))
    if name in DATASET_NAMES:
        _only_for_arrays(str(name), white, image_shape)
        _only_for_images(str(name), grey, background)
        _only_for_tables(str(name), labels)
        dataset = _named(str(name), roots, cache, download_missing, progress, choice, bool(labels))
    else:
        path = _find_path(name, roots)
        source = _read(path, image_shape, white, ImageOptions(grey, background), labels=labels).with_splits()
        shape = _image_shape(source.dim, source.image_shape)
        dataset = dataset_of(_title(path), shape, to_states(source, choice), source.labels, source.class_names)
    return with_classes(dataset) if labels else dataset


def load_table(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    kinds: Mapping[str, KindOrName] | None = None,
    drop: Sequence[str] = (),
    every: Real | None = None,
) -> TableData:
    """The table at that path in three splits, its numbers standardised with the train split.

    `name`: .csv, .tsv (also compressed), .parquet, .npz with an array [N] for each column, or .npz or .npy with one of
    all; also in `data_dir`, else PYAR_DATA. A column "split" that holds train, valid and test tells the splits, without
    which rows are split 80/10/10 in a fixed random order. `kinds`: what columns are that shall not be decided, see
    `Columns.from_frame`. `drop`: columns to leave out. `every`: what every column is, for models of real vectors.

    Raises `DataError` for what cannot be read exactly, naming the column.
    """
    return split_table(_table_path(name, data_dir), kinds=kinds, drop=drop, every=every)


def find_table(name: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """The whole table at that path as a pandas frame; `name` and errors as `load_table`."""
    return read_frame(_table_path(name, data_dir))


def _table_path(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None) -> Path:
    if name in DATASET_NAMES and not Path(name).exists():
        raise DataError(f"{name} is a data set of states; a table is a file, such as people.csv")
    return _find_path(name, _roots(data_dir))


@dataclass(frozen=True)
class Rows:
    """Examples for a model that is there already, in the order of their files.

    `x`: uint8 [N, D] of states 0 … num_states − 1, of which any may be absent; N may be 0. `split`: "train", "valid",
    "test" or "all rows". `labels`: int64 [N] or None; the model's own where it is given them, and then `num_classes` is
    its number of classes. `files`: each row's file, where each has its own. The other fields are a `Dataset`'s.
    """

    name: str
    split: str
    num_states: int
    image_shape: tuple[int, int] | None
    preparation: str
    x: torch.Tensor
    labels: torch.Tensor | None = None
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None
    num_classes: int | None = None

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return self.x.shape[1]

    @property
    def context(self) -> torch.Tensor | None:
        """The labels int64 [N] that the model is given with the rows; None for a model that takes none."""
        return None if self.num_classes is None else self.labels


def load_rows(
    name: str | os.PathLike[str],
    *,
    dim: int,
    num_states: int,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    levels: int | None = None,
    binarize: str | None = None,
    white: int | None = None,
    image_shape: tuple[int, int] | None = None,
    grey: bool = False,
    background: str | None = None,
    labels: bool | str = False,
    class_names: Sequence[str] | None = None,
    download_missing: bool = True,
    progress: bool = True,
) -> Rows:
    """The examples of a data set or file for a model of `dim` dimensions with `num_states` states, which decides.

    A file or folder without splits gives all its rows in its own order, whatever their number. One that has splits
    gives `split` ("test" if that is None), and so do the named data sets. `split` for a file without splits takes that
    part of the partition that `load_dataset` makes.
    Integers 0 … K − 1 are states as they are, −1 and +1 or 0 and 255 the states of a model that has two; grey values of
    images become `num_states` levels; other choices are those of `load_dataset`. `image_shape`: the model's, if it is
    known; images of another are refused, also if they have `dim` pixels.
    `class_names`: of the model's classes, if it is given labels; every row then has a label, one of these. `labels` may
    name the column of a table that holds them.

    Raises `DataError` where the values or their number do not fit the model.

    >>> rows = load_rows("digits", dim=64, num_states=17)
    >>> rows.split, list(rows.x.shape), rows.preparation
    ('test', [179, 64], '17 grey levels')
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    choice = Choice(levels, binarize, white, num_states)
    roots = _roots(data_dir)
    if name in DATASET_NAMES:
        own_levels = num_states if not choice.made and name != "binarized-mnist" and num_states > 2 else levels
        if own_levels is None and binarize is None and name != "binarized-mnist":
            raise DataError(f"{name} holds grey values; say how to make them binary, as for the model: --binarize …")
        _only_for_arrays(str(name), white, None)
        _only_for_images(str(name), grey, background)
        _only_for_tables(str(name), labels)
        cache = None if cache_dir is None else Path(os.path.expanduser(cache_dir))
        choice = Choice(own_levels, binarize)
        dataset = _named(str(name), roots, cache, download_missing, progress, choice, class_names is not None)
        split = split or "test"
        rows = Rows(
            dataset.name,
            split,
            dataset.num_states,
            dataset.image_shape,
            dataset.preparation,
            dataset.split(split),
            dataset.labels.get(split),
            dataset.class_names,
        )
        if dataset.num_states != num_states:
            raise DataError(f"{name} ({dataset.preparation}) has {dataset.num_states} states, the model {num_states}")
        return _for_model(_checked(rows, dim, image_shape), class_names)
    path = _find_path(name, roots)
    shape_of_vectors = None if image_shape is None or math.prod(image_shape) != dim else image_shape
    source = _read(path, None, white, ImageOptions(grey, background), dim, labels or class_names is not None)
    if split is not None or len(source.parts) > 1:
        part = split or "test"
        if split is None and part not in source.parts:
            raise DataError(f"{path} has no test split; choose one by --split: {', '.join(source.parts)}")
        source = source.with_splits() if part not in source.parts else source
    else:
        (part,) = source.parts
    # All parts together, so that a file's spins are spins also where one part happens to have only +1.
    states = to_states(source, choice)
    index = list(source.parts).index(part)
    found = source.labels.get(part)
    rows = Rows(
        _title(path),
        part or "all rows",
        states.num_states,
        source.image_shape or shape_of_vectors or _image_shape(source.dim, None),
        states.preparation,
        torch.from_numpy(np.ascontiguousarray(states.arrays[index])),
        None if found is None else torch.from_numpy(np.ascontiguousarray(found)),
        source.class_names,
        source.files.get(part),
    )
    return _for_model(_checked(rows, dim, image_shape), class_names)


def _for_model(rows: Rows, class_names: Sequence[str] | None) -> Rows:
    """The rows with their labels as a model of these classes numbers them, if it is given labels."""
    if class_names is None:
        return rows
    labels, given = labels_for_model(rows.name, rows.labels, rows.class_names, class_names)
    return replace(
        rows,
        labels=labels,
        class_names=tuple(class_names),
        num_classes=len(class_names),
        preparation=f"{rows.preparation}; {given}",
    )


def _checked(rows: Rows, dim: int, image_shape: tuple[int, int] | None) -> Rows:
    if rows.dim != dim:
        raise DataError(f"the model is of {dim} dimensions, {rows.name} of {rows.dim}")
    if image_shape is not None and rows.image_shape is not None and tuple(image_shape) != tuple(rows.image_shape):
        sizes = ["×".join(map(str, shape)) for shape in (image_shape, rows.image_shape)]
        raise DataError(
            f"the model is of images of {sizes[0]} (height × width), {rows.name} holds images of {sizes[1]}"
        )
    return rows


def _only_for_arrays(name: str, white: int | None, image_shape: tuple[int, int] | None) -> None:
    for option, value in (("--white", white), ("--image-shape", image_shape)):
        if value is not None:
            raise DataError(f"{option} is for .npy and .npz files and tables; {name} says itself what it is")


def _only_for_images(name: str, grey: bool, background: str | None) -> None:
    for option, value in (("--grey", grey), ("--background", background)):
        if value:
            raise DataError(f"{option} is for images; {name} holds none that it could apply to")


def _only_for_tables(name: str, labels: bool | str) -> None:
    if isinstance(labels, str):
        raise DataError(f"--labels {labels} names a column of a table, which {name} is not; say --labels alone")


def _roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    source = "PYAR_DATA" if data_dir is None else "--data-dir"
    named = (os.environ.get("PYAR_DATA") or None) if data_dir is None else data_dir
    if named is None:
        return []
    folder = Path(os.path.expanduser(named))
    if not folder.is_dir():
        raise DataError(f"{source} names {named}, which is not a folder")
    return [folder]


def _find_path(name: str | os.PathLike[str], roots: list[Path]) -> Path:
    if not os.fspath(name):
        raise DataError("the name of the data is empty")
    path = Path(os.path.expanduser(name))
    for candidate in [path, *(root / path for root in roots)]:
        try:
            if candidate.exists():
                return candidate
        except OSError as error:  # a name too long, a folder that may not be entered
            raise DataError(f"{candidate} cannot be read: {error.strerror}") from error
    if path.is_symlink():
        raise DataError(f"{path} is a link to nothing")
    raise DataError(
        f"there is no data set and no file {os.fspath(name)!r}; the data sets are {', '.join(DATASET_NAMES)}"
    )


def _title(path: Path) -> str:
    """What a file's data are called: printable, whatever the bytes of its name."""
    whole = Path(os.path.abspath(path))  # the name of "." too
    return os.fsencode(whole.name if path.is_dir() else stem(whole)).decode("utf-8", "replace")


# --- Files and folders ---


def _read(
    path: Path,
    image_shape: tuple[int, int] | None,
    white: int | None,
    images: ImageOptions,
    dim: int | None = None,
    labels: bool | str = False,
) -> Source:
    """What is at a path. `dim`: of the model that is there already. `labels`: as load_dataset."""
    try:
        source = (_read_folder if path.is_dir() else _read_file)(path, image_shape, white, images, dim, labels)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    check_numbers(source)
    return source


def _read_folder(
    path: Path,
    image_shape: tuple[int, int] | None,
    white: int | None,
    images: ImageOptions,
    dim: int | None,
    labels: bool | str,
) -> Source:
    folder = list_folder(path)
    if not any(map(is_table, folder.files)):
        _only_for_tables(str(path), labels)
    if array_files(folder) and not any(map(is_image, folder.files)):
        _only_for_images(str(path), images.grey, images.background)
        return source_of_folder(folder, image_shape, dim, labels)
    _only_for_arrays(str(path), white, image_shape)
    if files := find_idx(path, depth=3):
        _only_for_images(str(path), images.grey, images.background)
        return read_idx_files(path, files)
    return read_image_folder(path, images, labels_wanted=bool(labels))


def _read_file(
    path: Path,
    image_shape: tuple[int, int] | None,
    white: int | None,
    images: ImageOptions,
    dim: int | None,
    labels: bool | str,
) -> Source:
    suffix = path.suffix.lower()
    if is_table(path):
        _only_for_images(str(path), images.grey, images.background)
        return source_of_table(path, image_shape, dim, labels)
    _only_for_tables(str(path), labels)
    if is_image(path):
        _only_for_arrays(str(path), white, image_shape)
        pixels, shape = read_images([path], images)
        return Source(
            path, {"": pixels}, image_shape=shape, white=white_of_images(path, [pixels]), files={"": (path.name,)}
        )
    _only_for_images(str(path), images.grey, images.background)
    if _NAMED_IDX.search(path.name):
        _only_for_arrays(str(path), white, image_shape)
        files = idx_of_file(path) if dim is None else None  # a model scores the file that is named, and no other
        return read_idx_files(path, files) if files else read_idx_file(path)
    if suffix == ".amat":
        return Source(path, {"": read_amat(path)}, image_shape=image_shape)
    if suffix in (".npy", ".npz"):
        arrays, objects = read_numpy_arrays(path)
        if objects and not arrays:
            read_numpy(path)  # says what is wrong with it
    elif suffix == ".safetensors":
        arrays, objects = read_safetensors(path), []
    else:
        remedy = _REMEDIES.get(suffix, "is nothing that is read").format(path.name)
        raise DataError(
            f"{path} is neither an array, nor a table, nor a folder: {suffix or 'a file without a suffix'} {remedy}. "
            "--data takes .npy, .npz, .safetensors, .csv, .tsv, .parquet, .amat, folders, or "
            f"{', '.join(DATASET_NAMES)}"
        )
    if dim is not None and len(arrays) == 1:
        ((key, x),) = arrays.items()
        if x.shape == (dim,):  # one vector
            arrays = {key: x[None]}
    return source_of_arrays(path, arrays, objects, image_shape, labels_wanted=bool(labels))


def _image_shape(dim: int, shape: tuple[int, int] | None) -> tuple[int, int] | None:
    if shape is not None:
        if math.prod(shape) != dim:
            raise DataError(
                f"--image-shape {shape[0]}x{shape[1]} has {math.prod(shape)} pixels, but the vectors have {dim}"
            )
        return shape
    side = math.isqrt(dim)
    return (side, side) if side * side == dim and side > 1 else None


# --- Named data sets ---


def _named(
    name: str,
    roots: list[Path],
    cache: Path | None,
    download_missing: bool,
    progress: bool,
    choice: Choice,
    labels: bool,
) -> Dataset:
    if name == "binarized-mnist":
        if choice.made:
            raise DataError("binarized-mnist is binary already; --levels and --binarize are for --data mnist")
        if labels:
            raise DataError("binarized-mnist has no labels, its files hold images alone; --data mnist has labels")
        return _binarized_mnist(roots, cache, download_missing, progress)
    if name == "digits":
        source = _digits()
        choice = choice if choice.made else Choice(levels=17)  # nothing is lost
    else:
        source = _idx_source(name, roots, cache, download_missing, progress, labels)
    source = source.with_splits()
    return dataset_of(name, source.image_shape, to_states(source, choice), source.labels, source.class_names)


def _digits() -> Source:
    """1,797 images of 8×8 pixels with values 0 … 16, which scikit-learn ships."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    values, labels = digits.data.astype(np.uint8), digits.target.astype(np.int64)
    return Source(Path("digits"), {"": values}, {"": labels}, image_shape=(8, 8), white=16)


def _idx_source(
    name: str, roots: list[Path], cache: Path | None, download_missing: bool, progress: bool, labels: bool
) -> Source:
    remote, torchvision, class_names = {
        "mnist": (download.MNIST, "MNIST", None),
        "fashion-mnist": (download.FASHION_MNIST, "FashionMNIST", _FASHION_CLASSES),
    }[name]
    for root in roots:
        for folder in (root / name, root / name.replace("-", "_"), root / torchvision):
            if folder.is_dir() and (files := find_idx(folder, depth=1)):
                return _named_idx(folder, files, class_names, labels)
        if (files := _plain_files(root)) is not None:
            return _named_idx(root, files, class_names, labels)
    folder = (download.default_cache_dir() if cache is None else cache) / name
    wanted = [file for file in remote.sha256 if labels or "labels" not in file]
    if download_missing:
        for file in wanted:
            download.fetch(remote, file, folder, progress=progress)
    elif not all((folder / file).is_file() for file in wanted):
        raise DataError(_missing(name, remote, wanted, roots))
    files = find_idx(folder, depth=0)
    if files is None:
        raise DataError(f"{folder} holds no IDX files of images")
    return _named_idx(folder, files, class_names, labels)


def _named_idx(folder: Path, files: IdxFiles, class_names: tuple[str, ...] | None, labels: bool) -> Source:
    bare = [path.name for split, path in files.images.items() if split not in files.labels]
    if labels and bare:
        missing = [name.replace("images", "labels").replace("idx3", "idx1") for name in sorted(bare)]
        raise DataError(f"{folder} has images without their labels; it should also hold {' and '.join(missing)}")
    source = read_idx_files(folder, files)
    return replace(source, class_names=class_names) if source.labels else source


def _plain_files(root: Path) -> IdxFiles | None:
    """The files of MNIST or Fashion-MNIST, which are called the same, in the folder itself; others may lie beside."""
    for path in list_folder(root).files:
        if path.name.lower().startswith(("train-images-idx3", "train-images.idx3")):
            return idx_of_file(path)
    return None


def _missing(name: str, remote: download.RemoteFiles, files: Iterable[str], roots: list[Path]) -> str:
    looked = " and ".join(str(root) for root in roots) or "no --data-dir was given and PYAR_DATA is not set"
    return f"{name} was not found ({looked}). It needs {', '.join(files)}, for example from {remote.mirrors[0]}"


def _binarized_mnist(roots: list[Path], cache: Path | None, download_missing: bool, progress: bool) -> Dataset:
    remote = download.BINARIZED_MNIST
    for root in roots:
        for folder in (root, root / "binarized-mnist", root / "binarized_mnist"):
            npz = folder / "binarized_mnist.npz"
            if npz.is_file():
                return _fixed_npz(npz)
            if all((folder / file).is_file() for file in remote.sha256):
                return _fixed_amat(folder)
    folder = (download.default_cache_dir() if cache is None else cache) / "binarized-mnist"
    if download_missing:
        for file in remote.sha256:
            download.fetch(remote, file, folder, progress=progress)
    elif not all((folder / file).is_file() for file in remote.sha256):
        raise DataError(_missing("binarized-mnist", remote, remote.sha256, roots) + ", or binarized_mnist.npz")
    return _fixed_amat(folder)


def _fixed_npz(path: Path) -> Dataset:
    arrays = read_numpy(path)
    if not set(SPLITS) <= arrays.keys():
        raise DataError(f"{path} should hold train, valid and test, but holds {', '.join(arrays) or 'nothing'}")
    return _fixed(arrays["train"], arrays["valid"], arrays["test"], path)


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
