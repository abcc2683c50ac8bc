"""Recipes: complete, constructible, and what the pages show of them is what they promise."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

import pyar
from pyar.cli import main
from pyar.cli.recipes import compare, render_results
from pyar.data import load_dataset
from pyar.models import model_class, model_names
from pyar.recipes import Published, Reached, Recipe, default_recipe, model_settings, recipes, training_settings
from pyar.training import TrainingConfig, model_defaults, training_defaults

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"


@pytest.mark.parametrize("recipe", recipes().values(), ids=recipes().keys())
def test_a_recipe_fits_its_model_and_the_training(recipe):
    assert recipe.model in model_names()
    assert set(recipe.model_options) <= set(inspect.signature(model_class(recipe.model)).parameters)
    TrainingConfig(**recipe.training)
    assert recipe.log is None or (ROOT / recipe.log).is_file()
    assert recipe.tolerance > 0


@pytest.mark.parametrize("name", model_names())
def test_every_model_has_a_general_recipe(name):
    assert default_recipe(name, "somebody's file").data is None
    assert training_defaults(name, "somebody's file") == TrainingConfig(**training_settings(name, None))
    assert model_defaults(name, None) == model_settings(name, None)


def test_the_logs_are_those_of_the_recipes():
    for recipe in recipes().values():
        if recipe.log is None:
            continue
        lines = [json.loads(line) for line in (ROOT / recipe.log).read_text().splitlines()]
        assert lines[0]["model"] == recipe.model
        assert lines[0]["data"] == recipe.data
        stored = lines[0]["training"]
        assert {name: stored[name] for name in recipe.training} == recipe.training
        # A run of a model of any order is judged by an estimate of the mean over orders, its recipe by the base order.
        assert lines[-1]["best_valid_nll"] == pytest.approx(
            recipe.reached.valid_nll, abs=0.005 if recipe.orders == 1 else 0.1
        )
    logs = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "runs").glob("*.jsonl")}
    assert logs <= {recipe.log for recipe in recipes().values()}


def test_pages_show_what_the_recipes_promise():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    marked = [page for page in pages if BEGIN in page.read_text()]
    assert ROOT / "README.md" in marked
    for page in marked:
        shown = page.read_text().partition(BEGIN)[2].partition(END)[0].strip()
        assert shown == render_results(), f"{page.name} differs from `pyar recipes --markdown`"


REACHED = Reached(
    test_nll=10.0, test_error=0.1, valid_nll=9.9, seconds=60, threads=2, processor="a processor", commit="1234567"
)
PAPER = Published(10.1, "X", "a paper")
PROMISE = Recipe("toy", "nade", "digits", reached=REACHED, tolerance=0.2, published=(PAPER,))


@pytest.mark.parametrize(("nll", "holds"), [(9.0, True), (10.19, True), (10.21, False), (float("nan"), False)])
def test_a_promise_is_kept_or_not(nll, holds):
    verdict = compare(PROMISE, nll, 0.1)
    assert verdict["holds"] is holds
    assert ("toy holds" in verdict["words"][0]) == holds
    assert "promised 10.00 ± 0.10" in verdict["words"][0]


def test_the_published_figure_stands_beside():
    assert "1.10 nats below (better than) the published 10.10 (X), a paper" in compare(PROMISE, 9.0, 0.1)["words"][1]
    assert "0.10 nats above (worse than)" in compare(PROMISE, 10.2, 0.1)["words"][1]


def test_a_mixture_keeps_its_own_promise():
    reached = dataclasses.replace(REACHED, mixture_nll=8.0)
    papers = (PAPER, Published(8.5, "Y", "a paper", orders=4))
    recipe = dataclasses.replace(PROMISE, reached=reached, orders=4, published=papers)
    verdict = compare(recipe, 10.0, 0.1, 8.1)
    assert verdict["holds"] is True
    assert "10.00 ± 0.10 in one order, 8.10 with 4 nats on test, promised 10.00 ± 0.10 and 8.00" in verdict["words"][0]
    assert "0.10 nats below (better than) the published 10.10 (X)" in verdict["words"][1]
    assert "0.40 nats below (better than) the published 8.50 (Y)" in verdict["words"][2]
    assert compare(recipe, 10.0, 0.1, 8.3)["holds"] is False


def reproduced(recipe: Recipe, monkeypatch, capsys, tmp_path) -> tuple[int, dict]:
    monkeypatch.setattr("pyar.cli.recipes.recipes", lambda: {recipe.name: recipe})
    monkeypatch.setattr("pyar.cli.parser.recipes", lambda: {recipe.name: recipe})
    monkeypatch.chdir(tmp_path)
    code = main(["reproduce", recipe.name, "--no-progress", "--json", "--threads", "1"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("promised", "code"), [(1000.0, 0), (1.0, 1)])
def test_reproduce_trains_as_the_recipe_says(promised, code, monkeypatch, capsys, tmp_path):
    reached = Reached(promised, 0.1, promised, 1, 1, "a processor", "1234567")
    recipe = Recipe(
        name="toy",
        model="nade",
        data="digits",
        preparation={"binarize": "threshold"},
        model_options={"hidden_size": 7},
        training={"epochs": 1, "batch_size": 200},
        reached=reached,
    )
    assert reproduced(recipe, monkeypatch, capsys, tmp_path)[0] == code
    settings = json.loads((tmp_path / "runs" / "toy" / "config.json").read_text())
    assert settings["model_options"] == {"hidden_size": 7}
    assert settings["training"]["batch_size"] == 200
    assert settings["data_spec"] == {"data": "digits", "binarize": "threshold"}


def test_reproduce_evaluates_the_mixture_over_orders(monkeypatch, capsys, tmp_path):
    recipe = Recipe(
        name="toy",
        model="deep-nade",
        data="digits",
        preparation={"binarize": "threshold"},
        model_options={"hidden_sizes": [8]},
        training={"epochs": 1, "batch_size": 200},
        orders=3,
        reached=Reached(100.0, 0.1, 100.0, 1, 1, "a processor", "1234567", mixture_nll=1.0),
    )
    code, told = reproduced(recipe, monkeypatch, capsys, tmp_path)
    assert code == 1, "its mixture is not at 1 nat"
    model = pyar.load(tmp_path / "runs" / "toy")
    x = load_dataset("digits", binarize="threshold").test
    expected = -model.log_prob(x, orders=3).double().mean().item()
    assert f"{expected:.2f} with 3 nats" in told["words"][0]


def test_lists(capsys):
    assert main(["recipes"]) == 0
    assert "nade-binarized-mnist" in capsys.readouterr().out
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == recipes().keys()
    assert main(["recipes", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == render_results()
    assert main(["reproduce", "nade"]) == 1
    assert "general recipe" in capsys.readouterr().err
