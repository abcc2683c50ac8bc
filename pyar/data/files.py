"""Readers of files: IDX, AMAT text, NumPy arrays, folders of images. Each refuses what it does not understand."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError, Uint8

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".pbm", ".webp")


def read_idx(path: Path) -> Uint8:
    """An IDX file of unsigned bytes, gzipped or not, as uint8 [N, …].

    Format (LeCun, http://yann.lecun.com/exdb/mnist/): two zero bytes, the type (8 = unsigned byte), the number of
    dimensions, each dimension as a big-endian 32-bit number, then the values.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file: it begins with {content[:4]!r}, not two zero bytes")
    kind, ndim = content[2], content[3]
    if kind != 8:
        raise DataError(f"{path} holds IDX type 0x{kind:02x}; only unsigned bytes (0x08) are read")
    header = 4 + 4 * ndim
    if ndim == 0 or len(content) < header:
        raise DataError(f"{path} is cut off within its IDX header ({len(content)} bytes, {ndim} dimensions)")
    shape = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path} has {len(content)} bytes; its header {shape} asks for {expected}")
    return (
        np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
    )  # a copy, because a view of `bytes` is read-only


def read_amat(path: Path) -> Uint8:
    """A text file of 0s and 1s, one example a line, separated by blanks, as uint8 [N, D]."""
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if content.size and content[-1] != ord("\n"):
        content = np.append(content, np.uint8(ord("\n")))
    is_value = (content == ord("0")) | (content == ord("1"))
    is_newline = content == ord("\n")
    is_blank = is_newline | (content == ord(" ")) | (content == ord("\t")) | (content == ord("\r"))
    strange = ~(is_value | is_blank)
    strange[1:] |= is_value[1:] & is_value[:-1]  # a number of two digits
    if strange.any():
        position = int(np.argmax(strange))
        line = int(np.count_nonzero(is_newline[:position])) + 1
        raise DataError(f"{path}, line {line}: expected 0s and 1s separated by blanks")
    per_line = np.diff(np.cumsum(is_value)[is_newline], prepend=0)
    lines = np.flatnonzero(per_line) + 1
    per_line = per_line[per_line > 0]
    if per_line.size == 0:
        raise DataError(f"{path} holds no examples")
    if (per_line != per_line[0]).any():
        odd = int(np.argmax(per_line != per_line[0]))
        raise DataError(f"{path}, line {lines[odd]}: {per_line[odd]} values where line {lines[0]} has {per_line[0]}")
    return (content[is_value] - ord("0")).reshape(-1, int(per_line[0]))


def read_numpy(path: Path) -> dict[str, NDArray]:
    """The arrays of a .npz file by name, or of a .npy file as {"": array}. Pickled objects are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"there is no file {path}") from error
        if "allow_pickle" in str(error):  # NumPy's remedy would run code from the file
            raise DataError(
                f"{path} cannot be read as NumPy data: it holds pickled objects, or is something else"
            ) from error
        raise DataError(f"{path} cannot be read as NumPy data: {error}") from error


def read_images(folder: Path) -> tuple[Uint8, tuple[int, int]]:
    """The images of a folder in the order of their names, as grey uint8 [N, height·width] and (height, width)."""
    from PIL import Image

    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images: list[Uint8] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"), dtype=np.uint8)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        if images and pixels.shape != images[0].shape:
            first = "×".join(map(str, images[0].shape))
            raise DataError(
                f"images differ in size: {path.name} is {'×'.join(map(str, pixels.shape))} (height × width), "
                f"{paths[0].name} is {first}; crop or scale them to one size first"
            )
        images.append(pixels)
    height, width = images[0].shape
    return np.stack(images).reshape(len(images), height * width), (height, width)
