"""Standard output and error that can show every text, whatever the terminal's encoding."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
from collections.abc import Iterator

_HANDLER = "pyar.legible"
_PLAIN = {"×": "x", "…": "...", "·": "*", "±": "+/-", "−": "-", "–": "-", "≤": "<=", "≥": ">=", "→": "->"}


def _legible(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for text that an encoding lacks: bytes of a file's name as they are, signs in ASCII, else \\uXXXX."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if "\udc80" <= text[0] <= "\udcff":  # how Python holds a byte of a name that is not UTF-8
        return bytes([ord(text[0]) - 0xDC00]), error.start + 1
    return _PLAIN.get(text[0]) or text[0].encode("ascii", "backslashreplace").decode(), error.start + 1


@contextlib.contextmanager
def legible_streams() -> Iterator[None]:
    """Within the block, writing to standard output and error never fails for want of a character."""
    codecs.register_error(_HANDLER, _legible)
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [(stream, stream.errors) for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in before:
            stream.reconfigure(errors=errors)
