"""The command line's questions to a model of any order: masks of every kind, mixtures of orders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyar
from pyar.checkpoint import save_model
from pyar.cli import main
from pyar.data import load_dataset


def saved(folder: Path, model: pyar.AutoregressiveModel) -> str:
    """A model in a file that says that it was trained on the digits made binary."""
    spec = {"data": "digits", "binarize": "threshold", "levels": None, "white": None, "image_shape": None}
    path = folder / f"{model.name}.safetensors"
    save_model(model, path, {"data_spec": spec, "image_shape": [8, 8]})
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    torch.manual_seed(0)
    model = pyar.DeepNADE(64, hidden_sizes=(16, 12))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return saved(tmp_path_factory.mktemp("any-order"), model)


REGIONS = {
    "left": lambda row, column: column < 4,
    "right": lambda row, column: column >= 4,
    "top": lambda row, column: row < 4,
    "bottom": lambda row, column: row >= 4,
    "center": lambda row, column: (2 <= row < 6) and (2 <= column < 6),
    "0.25": lambda row, column: row < 2,
}


@pytest.mark.parametrize("what", REGIONS)
def test_regions_of_an_image(what: str, run: str, tmp_path: Path) -> None:
    outputs = [str(tmp_path / name) for name in ("c.npz", "c.png")]
    assert main(["complete", run, "--observed", what, "-n", "3", "--completions", "2",
                 "--out", outputs[0], "--out", outputs[1], "--no-progress"]) == 0  # fmt: skip
    with np.load(outputs[0]) as file:
        observed, original, completions = file["observed"], file["original"], file["completions"]
    expected = [[REGIONS[what](row, column) for column in range(8)] for row in range(8)]
    assert np.array_equal(observed.reshape(8, 8), expected)
    assert np.array_equal(completions[:, :, observed], np.repeat(original[:, None][..., observed], 2, axis=1))
    assert not np.array_equal(completions[:, 0], completions[:, 1])
    assert Path(outputs[1]).stat().st_size > 0


def test_masks_from_a_file_and_at_random(run: str, tmp_path: Path) -> None:
    mask = np.arange(64) % 3 == 0
    np.save(tmp_path / "mask.npy", mask.reshape(8, 8))
    out = str(tmp_path / "c.npz")
    for what in (str(tmp_path / "mask.npy"), "random:0.3"):
        assert main(["complete", run, "--observed", what, "-n", "2", "--out", out, "--no-progress"]) == 0
        with np.load(out) as file:
            assert file["observed"].sum() == (mask.sum() if what.endswith("npy") else 19)


@pytest.mark.parametrize("what", ["middle", "1.5", "random:2", "random:", "mask.npz"])
def test_what_is_no_mask_is_a_usage_error(what: str, run: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["complete", run, "--observed", what])
    assert "left, right, top, bottom, center" in capsys.readouterr().err


def test_a_mask_of_another_size(run: str, tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "mask.npy", np.ones(63, dtype=bool))
    assert main(["complete", run, "--observed", str(tmp_path / "mask.npy")]) == 1
    assert "expected 64 times true or false" in capsys.readouterr().err


def test_a_model_of_one_order_names_the_one_of_any(tmp_path: Path, capsys) -> None:
    path = saved(tmp_path, pyar.NADE(64, hidden_size=4))
    assert main(["complete", path, "--observed", "left", "--out", str(tmp_path / "c.png")]) == 1
    assert "pyar.DeepNADE completes from any dimensions" in capsys.readouterr().err
    assert main(["evaluate", path, "--orders", "1,2", "--no-progress"]) == 1
    assert "deep-nade; nade has one order" in capsys.readouterr().err


def test_the_curve_over_orders(run: str, tmp_path: Path, capsys) -> None:
    out, plot = tmp_path / "log_prob.npy", tmp_path / "orders.png"
    command = ["evaluate", run, "--orders", "4,1,2", "--no-progress"]
    assert main([*command, "--json", "--out", str(out), "--out", str(plot)]) == 0
    with Image.open(plot) as image:
        assert image.format == "PNG"
    report = json.loads(capsys.readouterr().out)
    assert [point["orders"] for point in report["curve"]] == [1, 2, 4]
    model = pyar.load(run)
    x = load_dataset("digits", binarize="threshold").test
    for point in report["curve"]:
        expected = -model.log_prob(x, orders=point["orders"]).double().mean().item()
        assert math.isclose(point["nll_nats"], expected, rel_tol=1e-5)
    assert np.allclose(np.load(out), model.log_prob(x, orders=4).detach().numpy(), rtol=1e-5)
    single = report["single_orders"]
    assert single["lowest_nll_nats"] < report["curve"][0]["nll_nats"] + 1e-6 < single["highest_nll_nats"] + 1e-5
    assert main(command) == 0
    assert "single orders are different distributions" in capsys.readouterr().out
    assert main(["evaluate", run, "--no-progress", "--out", str(plot)]) == 1
    assert "orders.png: the name should end in .npy or .csv" in capsys.readouterr().err


@pytest.mark.parametrize("orders", ["0", "1,x", "", "-1"])
def test_orders_are_numbers(orders: str, run: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", run, f"--orders={orders}"])
    assert "numbers of orders such as 1,2,4" in capsys.readouterr().err
