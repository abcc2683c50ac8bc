"""A run's log: one JSON object a line, appended as things happen, cut back when a run resumes from before its end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class RunLog:
    """`log.jsonl` of a run folder; `evaluations` are its records of that kind. Only the main process writes."""

    def __init__(self, path: Path, *, is_main: bool) -> None:
        self.path, self.is_main = path, is_main
        self.evaluations: list[dict[str, Any]] = []

    def clear(self) -> None:
        """An empty file, for a run that begins."""
        if self.is_main:
            self._put("w", "")

    def write(self, event: str, **facts: Any) -> None:
        """Appends a record."""
        record = {"event": event, **facts}
        if event == "evaluation":
            self.evaluations.append(record)
        if self.is_main:
            self._put("a", json.dumps(record) + "\n")

    def _put(self, mode: str, text: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            error.filename = str(self.path)  # a full disk names no file
            raise

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def restore(self, size: int) -> None:
        """Cuts what was logged after the first `size` bytes, because the resumed run repeats it."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            content = file.read(size)
        if self.is_main:
            os.truncate(self.path, len(content))
        lines = [json.loads(line) for line in content.decode().splitlines()]
        self.evaluations = [line for line in lines if line.get("event") == "evaluation"]
