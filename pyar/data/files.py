"""Readers of files: IDX, AMAT text, NumPy arrays, safetensors. Each refuses what it does not understand."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyar.data.dataset import DataError, Uint8

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4"}


def read_idx(path: Path) -> NDArray:
    """An IDX file of integers, gzipped or not, as an array [N, …]; uint8 for unsigned bytes.

    Format (LeCun, http://yann.lecun.com/exdb/mnist/): two zero bytes, the type (8 = unsigned byte), the number of
    dimensions, each dimension as a big-endian 32-bit number, then the values, big-endian too.
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
    if kind not in _IDX_TYPES:
        raise DataError(f"{path} holds IDX type 0x{kind:02x}; only integers (0x08, 0x09, 0x0b, 0x0c) are read")
    dtype = np.dtype(_IDX_TYPES[kind])
    header = 4 + 4 * ndim
    if ndim == 0 or len(content) < header:
        raise DataError(f"{path} is cut off within its IDX header ({len(content)} bytes, {ndim} dimensions)")
    shape = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(content) != expected:
        raise DataError(f"{path} has {len(content)} bytes; its header {shape} asks for {expected}")
    values = np.frombuffer(content, dtype=dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))  # a copy, because a view of `bytes` is read-only


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
    """The arrays of a .npz file by name, or of a .npy file as {"": array}.

    Pickled objects are never loaded; a file of nothing else is refused.
    """
    arrays, objects = read_numpy_arrays(path)
    if objects and not arrays:
        raise _pickled(path)
    return arrays


def read_numpy_arrays(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """The arrays of a NumPy file, and the names of those that are pickled objects, which are never loaded."""
    arrays: dict[str, NDArray] = {}
    objects: list[str] = []
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}, []
        with loaded:
            for key in loaded.files:
                try:
                    member = loaded[key]
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
                    objects.append(key)
                else:
                    if isinstance(member, np.ndarray):  # not so for a text file in the archive
                        arrays[key] = member
        return arrays, objects
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"there is no file {path}") from error
        if "allow_pickle" in str(error):  # NumPy's remedy would run code from the file
            raise _pickled(path) from error
        raise DataError(f"{path} cannot be read as NumPy data: {error}") from error


def _pickled(path: Path) -> DataError:
    return DataError(f"{path} cannot be read as NumPy data: it holds pickled objects, or is something else")


def read_safetensors(path: Path) -> dict[str, NDArray]:
    """The tensors of a .safetensors file by name."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:  # TypeError: no such type in NumPy
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
