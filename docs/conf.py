"""The site: `python -m sphinx -W docs docs/_build/html` from the repository's root."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "pyar"
author = copyright = "the pyar authors"
version = release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
    "sphinxcontrib.programoutput",
]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "runs", "conftest.py"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"pyar {release}"
html_static_path = ["_static"]
html_css_files = ["pyar.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db3f0", "color-brand-content": "#7db3f0"},
}


def set_equations_apart(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings write equations as indented lines, which would flow into one paragraph."""
    shown, in_section, before = [], False, ""
    for line in lines:
        in_section = in_section or re.fullmatch(r"[A-Z]\w+:", line) is not None
        if line.startswith("    ") and not in_section and not before.startswith("    "):
            shown += ["::", ""]
        shown.append(line)
        before = line if line.strip() else before
    lines[:] = shown


def setup(app) -> None:
    app.connect("autodoc-process-docstring", set_equations_apart, priority=400)  # before the sections are read
