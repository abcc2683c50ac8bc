"""Writes what README and site show of the recipes between its marks: `python tools/write_pages.py`.

The tables of speed are written by `python -m benchmarks report`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pyar.cli.recipes import render_results  # noqa: E402
from pyar.files import write_text  # noqa: E402

BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"


def main() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        head, begin, rest = page.read_text().partition(BEGIN)
        if begin:
            write_text(page, f"{head}{BEGIN}\n{render_results()}\n{END}{rest.partition(END)[2]}")
            print(f"wrote the results of {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
