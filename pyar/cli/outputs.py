"""Where results are written, checked before they are computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyar.cli.errors import UserError


def check_outputs(paths: Sequence[str], allowed: tuple[str, ...]) -> None:
    """Raises UserError for what could not be written, before it is computed."""
    for path in map(Path, paths):
        folder = Path(os.path.abspath(path)).parent
        if path.suffix not in allowed:
            raise UserError(f"--out {path}: the name should end in {' or '.join(allowed)}")
        if not folder.is_dir():
            raise UserError(f"--out {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise UserError(f"--out {path}: is a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"--out {path}: the folder {path.parent} may not be written to")
