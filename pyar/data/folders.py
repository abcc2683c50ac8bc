"""Folders as people have them: with hidden files, files of the operating system, broken links."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from pyar.data.dataset import DataError, DataNotice

_OF_THE_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


@dataclass(frozen=True)
class Folder:
    """What a folder holds, each sorted by name; hidden entries and the operating system's own are left out."""

    path: Path
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    skipped: tuple[str, ...]

    def tell_skipped(self) -> None:
        """Says which hidden files and files of the system are not read."""
        if self.skipped:
            notice(f"{self.path}: hidden files and the system's are not read: {listed(self.skipped)}")


def list_folder(path: Path) -> Folder:
    """The visible contents of a folder. A link that leads nowhere is an error: what it stood for would be missing."""
    files, folders, skipped = [], [], []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in _OF_THE_SYSTEM:
            skipped.append(entry.name)
        elif entry.is_dir():
            folders.append(entry)
        elif entry.is_file():
            files.append(entry)
        elif entry.is_symlink():
            raise DataError(f"{entry} is a link to nothing; mend or remove it")
    return Folder(path, tuple(files), tuple(folders), tuple(skipped))


def notice(text: str) -> None:
    """Warns of what was left out or decided."""
    warnings.warn(text, DataNotice, stacklevel=2)


def listed(names: tuple[str, ...] | list[str], limit: int = 5) -> str:
    """Names in a sentence: all of a few, else the first ones and the number of the others."""
    shown = [name.encode("utf-8", "replace").decode() for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
