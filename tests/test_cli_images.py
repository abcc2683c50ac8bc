"""Image models end to end: grey levels, mixtures and every half plane on the command line, colour in Python."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pyar
from pyar.checkpoint import save_model
from pyar.cli import main
from pyar.models.plane import ImageModel

MODELS = {
    pyar.PixelCNN: {"features": 8, "num_layers": 2},
    pyar.RowLSTM: {"hidden_size": 4, "num_layers": 2},
    pyar.DiagonalBiLSTM: {"hidden_size": 4, "num_layers": 2},
}


def colours(count: int, seed: int = 0) -> Tensor:
    """Images [count, 4·4·3] of three levels: a row has one red or goes over to another, green is red, blue its
    opposite."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, 3, (count, 4, 1))
    second = np.where(generator.random((count, 4, 1)) < 0.2, generator.integers(0, 3, (count, 4, 1)), first)
    red = np.concatenate((first, first, second, second), axis=2)
    return torch.from_numpy(np.stack((red, red, 2 - red), axis=-1).reshape(count, 48).astype(np.uint8))


@pytest.mark.parametrize("kind", MODELS)
def test_colour_trains_samples_and_completes(kind: type[ImageModel]) -> None:
    torch.manual_seed(0)
    model = kind((4, 4, 3), 3, **MODELS[kind])
    x, held_out = colours(256), colours(64, seed=1)
    model.initialize_from_marginals(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = model.mean_nll(held_out).item()
    for step in range(150):
        optimizer.zero_grad()
        model.mean_nll(x[64 * (step % 4) :][:64]).backward()
        optimizer.step()
    # Of 48 ln 3 nats, green and blue, which red tells, are two thirds.
    assert before == pytest.approx(48 * np.log(3), rel=0.05)
    assert model.mean_nll(held_out).item() < before / 4

    drawn = model.sample(200, seed=0).view(200, 16, 3)
    red, green, blue = drawn.long().unbind(-1)
    assert (green == red).float().mean() > 0.95
    assert (blue == 2 - red).float().mean() > 0.95
    observed = torch.arange(48) < 24
    completed = model.complete(held_out[:20], observed, 3, seed=1)
    assert torch.equal(completed[..., :24], held_out[:20, None, :24].expand(20, 3, 24))
    assert not torch.equal(completed[:, 0], completed[:, 1])
    assert (completed.view(60, 16, 3)[..., 0] == completed.view(60, 16, 3)[..., 1]).float().mean() > 0.95

    # The values of a pixel, by channels, given those before it.
    for pixel in (0, 6, 15):
        every = held_out[:1].repeat(27, 1)
        every[:, 3 * pixel : 3 * pixel + 3] = torch.tensor(list(itertools.product(range(3), repeat=3)))
        log_prob = model.conditional_log_prob(every)[:, 3 * pixel : 3 * pixel + 3].sum(dim=1)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images, each around a value of its own."""
    generator = np.random.default_rng(0)
    middle = generator.integers(20, 236, (240, 1, 1))
    x = (middle + generator.integers(-15, 16, (240, 5, 6))).astype(np.uint8)
    path = tmp_path_factory.mktemp("shades") / "shades.npz"
    np.savez(path, train=x[:160], valid=x[160:200], test=x[200:])
    return path


@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("pixel-cnn --features 6 --num-layers 2", 10),
        ("row-lstm --hidden-size 4 --num-layers 2 --scan down-left", 256),
        ("diagonal-bilstm --hidden-size 4 --num-layers 2 --output logistic-mixture --num-mixtures 3", 256),
        ("pixel-cnn --features 6 --num-layers 2 --output logistic-mixture --num-mixtures 2 --scan right-up", 256),
    ],
    ids=["10-levels", "256-levels", "mixture", "pixel-cnn-mixture"],
)
def test_grey_levels_from_training_to_completions(
    model: str, levels: int, shades: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = str(tmp_path / "run")
    options = ["--data", str(shades), "--white", "255", "--levels", str(levels), "--epochs", "8", "--batch-size", "20"]
    options += ["--learning-rate", "0.01", "--samples", "4", "--no-progress"]
    assert main(["train", *model.split(), *options, "--out", run]) == 0
    trained = pyar.load(run)
    assert isinstance(trained, ImageModel)
    assert (trained.image_shape, trained.num_states) == ((5, 6), levels)
    result = json.loads(Path(run, "result.json").read_text())["test"]
    assert result["nll_nats"] < 0.95 * 30 * np.log(levels)
    assert result["bits_per_dim"] == pytest.approx(result["nll_nats"] / 30 / np.log(2), rel=1e-6)
    capsys.readouterr()
    assert main(["evaluate", run, "--json", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["nll_nats"] == pytest.approx(result["nll_nats"], rel=1e-6)

    drawn, completed = str(tmp_path / "x.npz"), str(tmp_path / "c.npz")
    pictures = [str(tmp_path / name) for name in ("x.png", "c.png")]
    assert main(["sample", run, "-n", "20", "--out", drawn, "--out", pictures[0], "--no-progress"]) == 0
    with np.load(drawn) as file:
        assert torch.equal(torch.from_numpy(file["x"]), trained.sample(20, seed=0))
    half = {"left": "right", "up": "bottom", "down": "top"}[trained.scan.split("-")[1]]
    assert main(["complete", run, "--observed", half, "-n", "3", "--out", completed, "--out", pictures[1],
                 "--no-progress"]) == 0  # fmt: skip
    with np.load(completed) as file:
        assert np.array_equal(file["completions"][..., file["observed"]][:, 0], file["original"][:, file["observed"]])
    assert all(Path(picture).stat().st_size > 0 for picture in pictures)


# The scans that have a half of the image first, and that half.
HALVES = {"right-down": "top", "right-up": "bottom", "down-right": "left", "down-left": "right",
          "left-down": "top", "left-up": "bottom", "up-right": "left", "up-left": "right"}  # fmt: skip


@pytest.mark.parametrize("scan", HALVES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_half_that_a_scan_has_first_is_completed_from_and_no_other(
    kind: type[ImageModel], scan: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    path, out = str(tmp_path / "model.safetensors"), str(tmp_path / "c.npz")
    spec = {"data": "digits", "binarize": "threshold", "levels": None, "white": None, "image_shape": None}
    save_model(kind((8, 8), 2, **MODELS[kind], scan=scan), Path(path), {"data_spec": spec, "image_shape": [8, 8]})
    command = ["complete", path, "-n", "2", "--completions", "3", "--out", out, "--no-progress"]
    assert main([*command, "--observed", HALVES[scan]]) == 0
    with np.load(out) as file:
        observed, original, completions = file["observed"], file["original"], file["completions"]
    rows, columns = np.divmod(np.arange(64), 8)
    is_first = {"top": rows < 4, "bottom": rows >= 4, "left": columns < 4, "right": columns >= 4}
    assert np.array_equal(observed, is_first[HALVES[scan]])
    assert np.array_equal(completions[..., observed], np.repeat(original[:, None][..., observed], 3, axis=1))
    expected = pyar.load(path).complete(torch.from_numpy(original), torch.from_numpy(observed), 3, seed=0)
    assert np.array_equal(completions, expected.numpy())
    opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}[HALVES[scan]]
    assert main([*command, "--observed", opposite]) == 1
    assert "another scan has another side" in capsys.readouterr().err
