"""A model of another package: registered once, it trains, evaluates, samples and completes through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyar
from pyar import models
from pyar.cli import main
from pyar.models import model_class, model_names, register_model

TOY = '''
from typing import Literal
import torch
import pyar
from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms

@pyar.register_model
class Independent(pyar.AutoregressiveModel):
    """Independent dimensions.

    Args:
        dim: D.
        num_states: K.
        spread: standard deviation of the initial logits.
        kind: a word that changes nothing.
        image_shape: height and width, asked of the data.
    """

    name = "independent"

    def __init__(self, dim: int, num_states: int = 2, *, spread: float = 0.1, kind: Literal["a", "b"] = "a",
                 image_shape: tuple[int, int] | None = None) -> None:
        super().__init__(dim, num_states)
        self.spread, self.kind, self.image_shape = spread, kind, image_shape
        self.b = torch.nn.Parameter(spread * torch.randn(dim, 1 if num_states == 2 else num_states))

    def _config(self):
        shape = self.image_shape
        return {"spread": self.spread, "kind": self.kind, "image_shape": None if shape is None else list(shape)}

    def _logits(self, x):
        return self.b.expand(len(x), -1, -1)

    def _log_prob(self, x):
        return log_probability(self._logits(x), x).sum(1)

    def _sample(self, num_samples, seed, first_index, temperature, given):
        u = uniforms(int(seed), first_index, num_samples, self.dim)
        outputs = self.b.expand(num_samples, -1, -1) / temperature
        x = torch.stack([draw(outputs[:, d], u[:, d]) for d in range(self.dim)], 1).to(torch.uint8)
        start = 0 if given is None else given.shape[1]
        if start:
            x[:, :start] = given
        return x, log_probability(outputs, x)[:, start:].sum(1)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch) -> str:
    """The name of a module that registers the toy model; afterwards neither is known."""
    (tmp_path / "toy_family.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(models, "_registered", {})
    monkeypatch.delitem(sys.modules, "toy_family", raising=False)
    return "toy_family"


def test_it_trains_evaluates_samples_and_completes(toy, capsys):
    common = ["--import", toy, "--no-progress", "--json"]
    assert (
        main(["train", "independent", "--spread", "0.25", "--kind", "b", "--epochs", "2", "--out", "run", *common]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    model, extra = pyar.checkpoint.load_with_extra("run")
    assert (model.name, model.spread, model.kind, model.image_shape) == ("independent", 0.25, "b", [8, 8])
    assert extra["data_spec"]["data"] == "digits"

    assert main(["evaluate", "run", *common]) == 0
    assert json.loads(capsys.readouterr().out)["nll_nats"] == pytest.approx(result["test"]["nll_nats"], rel=1e-6)

    assert main(["sample", "run", "-n", "7", "--out", "x.npz", *common]) == 0
    with np.load("x.npz") as drawn:
        torch.testing.assert_close(model.log_prob(torch.from_numpy(drawn["x"])), torch.from_numpy(drawn["log_prob"]))

    assert main(["complete", "run", "-n", "2", "--completions", "3", "--out", "c.npz", *common]) == 0
    with np.load("c.npz") as completed:
        assert completed["completions"].shape == (2, 3, 64)

    assert main(["train", "--resume", "run", "--epochs", "3", *common]) == 0
    assert main(["info", "run", "--import", toy]) == 0


def test_its_options_are_its_constructors(toy, capsys):
    with pytest.raises(SystemExit):
        main(["train", "independent", "--import", toy, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--spread X standard deviation of the initial logits [0.1]" in shown
    assert "--kind {a,b} a word that changes nothing [a]" in shown
    assert "--image-shape" not in shown.split("independent (defaults")[1].split("optimiser")[0]
    assert "--order" not in shown


def test_a_checkpoint_of_an_unknown_model_says_what_to_do(toy, capsys, monkeypatch):
    assert main(["train", "independent", "--import", toy, "--epochs", "1", "--out", "run", "--no-progress"]) == 0
    monkeypatch.setattr(models, "_registered", {})
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 1
    assert "holds the model 'independent', which is not known here" in capsys.readouterr().err


def test_a_module_that_is_not_there_is_one_line(toy, capsys):
    assert main(["train", "nade", "--import", "nowhere_at_all"]) == 1
    assert capsys.readouterr().err == "pyar: --import: No module named 'nowhere_at_all'\n"


def test_names_are_taken_once(toy):
    class Second(pyar.NADE):
        name = "nade"

    with pytest.raises(ValueError, match="'nade' is taken by NADE"):
        register_model(Second)
    with pytest.raises(TypeError, match=r"subclass of pyar\.AutoregressiveModel"):
        register_model(dict)

    class Nameless(pyar.NADE):
        pass

    with pytest.raises(TypeError, match="name must be a word"):
        register_model(Nameless)
    with pytest.raises(KeyError, match="no model is called 'nadir'"):
        model_class("nadir")


def test_every_family_has_a_public_class_of_its_own_file():
    for name in model_names():
        assert getattr(pyar, model_class(name).__name__) is model_class(name)
        assert model_class(name).name == name
        assert model_class(name).__name__ in pyar.__all__
    assert not hasattr(models, "Nothing")
    assert Path(models.__file__).parent.joinpath("nade.py").exists()
