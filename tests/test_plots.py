"""Pictures: exact pixels of sheets and completions, valid files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyar import plots

ROOT = Path(__file__).parents[1]


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def cells(sheet: np.ndarray, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """The tiles of a sheet whose separators are one unit wide, [rows, columns, height, width, 3]."""
    unit = sheet.shape[0] // (rows * (height + 1) + 1)
    small = sheet[::unit, ::unit]
    assert np.array_equal(small.repeat(unit, 0).repeat(unit, 1), sheet)  # every pixel a sharp square
    return np.array(
        [
            [
                small[1 + r * (height + 1) : 1 + r * (height + 1) + height, 1 + c * (width + 1) :][:, :width]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )


def test_sheet_shows_every_pixel(tmp_path):
    x = torch.randint(0, 5, (6, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plots.save_sheet(x, tmp_path / "x.png", 5, (4, 3), columns=3)
    tiles = cells(read(tmp_path / "x.png"), 4, 3, 2, 3).reshape(6, 4, 3, 3)
    expected = np.round(255 * (1 - x.numpy().reshape(6, 4, 3) / 4)).astype(np.uint8)
    for channel in range(3):
        assert np.array_equal(tiles[..., channel], expected)


def test_vectors_without_a_shape_become_rows(tmp_path):
    x = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    plots.save_sheet(x, tmp_path / "x.png", 2, None, columns=1)
    tiles = cells(read(tmp_path / "x.png"), 1, 3, 2, 1)
    assert (tiles[:, 0, 0, :, 0] // 255).tolist() == [[1, 0, 0], [0, 1, 1]]


def test_empty_sheet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.save_sheet(torch.zeros(0, 4, dtype=torch.uint8), tmp_path / "x.png", 2, (2, 2))


def test_columns_make_a_square():
    assert plots._columns(100, 28, 28) == 10
    assert plots._columns(1, 28, 28) == 1
    assert plots._columns(64, 1, 64) == 1


def test_completions_show_what_was_observed(tmp_path):
    original = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    completions = torch.tensor([[[0, 1, 0, 0], [0, 1, 1, 1]]], dtype=torch.uint8)
    observed = torch.tensor([True, True, False, False])
    plots.save_completions(original, observed, completions, tmp_path / "x.png", 2, (2, 2))
    sheet = read(tmp_path / "x.png")
    unit = sheet.shape[0] // 4
    small = sheet[::unit, ::unit]
    lefts = [1, 1 + 2 + 3, 1 + 2 * (2 + 3), 1 + 2 * (2 + 3) + 3]  # the first two separators are three units wide
    tiles = [small[1:3, left : left + 2] for left in lefts]
    white, black, unseen = [255] * 3, [0] * 3, list(plots._UNSEEN)
    assert tiles[0].tolist() == [[white, black], [black, white]]
    assert tiles[1].tolist() == [[white, black], [unseen, unseen]]
    assert tiles[2].tolist() == [[white, black], [white, white]]
    assert tiles[3].tolist() == [[white, black], [black, black]]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"epoch": 0.0, "train_nll": None, "valid_nll": 5.0}],
        [
            {"epoch": e, "train_nll": 100 / (e + 1), "valid_nll": math.nan if e == 3 else 101 / (e + 1)}
            for e in range(50)
        ],
        [{"epoch": 1.0, "train_nll": 5.0, "valid_nll": 5.0}] * 2,
    ],
)
def test_learning_curve_draws_whatever_there_is(tmp_path, records):
    plots.save_learning_curve(records, tmp_path / "x.png", "title")
    assert read(tmp_path / "x.png").std() > 0


@pytest.mark.parametrize("title", ["word " * 30, "Ba$$in", r"$\frac$", "caf\udce9 on 数据"])
def test_a_title_is_text_and_is_not_cut_off(tmp_path, title):
    records = [{"epoch": e + 1.0, "train_nll": 9.0 - e, "valid_nll": 9.5 - e} for e in range(3)]
    plots.save_learning_curve(records, tmp_path / "x.png", title)
    assert read(tmp_path / "x.png").std() > 0
    with plots.clean_matplotlib():
        figure = plots._learning_curve(records, title)
        plots.save_figure(figure, tmp_path / "again.png")
        box, edge = figure.axes[0].title.get_window_extent(), figure.bbox
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert figure.axes[0].title.get_text().split() == title.replace("\udce9", "?").split()
    assert edge.x0 <= box.x0
    assert box.x1 <= edge.x1
    assert box.y1 <= edge.y1
    assert labels == ["train", "valid, best 7.50 at epoch 3"]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "x.png").read_bytes()


CURVE = """
import sys
from pyar import plots
records = [{"epoch": e, "train_nll": 9 - e, "valid_nll": 9 - e} for e in range(4)]
plots.save_learning_curve(records, sys.argv[1], "title")
import matplotlib
print(matplotlib.rcParams["text.usetex"], matplotlib.rcParams["backend"], "matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.parametrize(
    ("backend", "settings", "seen"),
    [
        (None, "", "False agg False"),
        ("nonsense", "", "False agg False"),
        ("svg", "text.usetex: True\naxes.facecolor: red", "True svg False"),  # without LaTeX here
        ("svg", "backend: pdf", "False svg False"),
    ],
)
def test_the_users_matplotlib_neither_shows_nor_changes(tmp_path, backend, settings, seen):
    (tmp_path / "matplotlibrc").write_text("backend: agg\n" + settings)
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("MPLBACKEND", None)
    if backend is not None:
        environment["MPLBACKEND"] = backend
    done = subprocess.run(
        [sys.executable, "-c", CURVE, tmp_path / "x.png"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout.strip()) == (0, seen), done.stderr
    records = [{"epoch": e, "train_nll": 9 - e, "valid_nll": 9 - e} for e in range(4)]
    plots.save_learning_curve(records, tmp_path / "plain.png", "title")
    assert np.array_equal(read(tmp_path / "x.png"), read(tmp_path / "plain.png"))


def test_what_a_program_has_set_is_as_before(tmp_path):
    import matplotlib

    before = matplotlib.get_backend()
    try:
        with matplotlib.rc_context({"font.size": 30}):
            matplotlib.use("svg")
            plots.save_learning_curve([], tmp_path / "x.png", "title")
            assert matplotlib.get_backend() == "svg"
            assert matplotlib.rcParams["font.size"] == 30
    finally:
        matplotlib.use(before)


def test_a_decoration_that_fails_is_one_line(tmp_path, capsys):
    with plots.decoration(tmp_path / "x.png"):
        raise RuntimeError("out of\nink")
    assert capsys.readouterr().err == f"pyar: {tmp_path / 'x.png'} could not be drawn: out of ink\n"
    with pytest.raises(KeyboardInterrupt), plots.decoration(tmp_path / "x.png"):
        raise KeyboardInterrupt
