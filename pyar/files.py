"""Files that are there whole or not at all: below everything in pyar that writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is complete.

    Bytes go to a temporary name in the same folder; on leaving without an error they are forced to disk, the file takes
    the name `path` in one step, and the folder's entry is forced to disk too. A kill at any moment leaves the old file
    or the new one, and at most a stray `.tmp` file beside it.

    Raises:
        OSError: with `filename` set to `path`, whatever step failed.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile's: its files are private, and this one shall have the permissions that any new file has. Within
        # the try, so that no interrupt between two statements leaves the file behind.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is None:  # NumPy's, which says how many values it wrote, not why
            raise OSError(f"{path} could not be written whole, is the disk full? ({error})") from error
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):  # a full disk names no file
            error.filename, error.filename2 = str(path), None
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())
