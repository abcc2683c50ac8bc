"""Where results are written, checked before they are computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyar.cli.errors import UserError


def check_outputs(paths: Sequence[str], allowed: tuple[str, ...], option: str = "--out") -> None:
    """Raises UserError for what could not be written, before it is computed; `option` is what the user said."""
    for path in map(Path, paths):
        folder = Path(os.path.abspath(path)).parent
        if path.suffix not in allowed:
            raise UserError(f"{option} {path}: the name should end in {' or '.join(allowed)}")
        if not folder.is_dir():
            raise UserError(f"{option} {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{option} {path}: the folder {path.parent} may not be written to")
