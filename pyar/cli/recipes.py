"""`pyar recipes` and `pyar reproduce`, and the table of results that README and site show."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pyar.checkpoint import load
from pyar.cli import train
from pyar.cli.common import UserError, load_data, note, set_up
from pyar.cli.parser import make_parser
from pyar.evaluation import order_log_probs
from pyar.recipes import Published, Reached, Recipe, recipes


def list_recipes(arguments: argparse.Namespace) -> int:
    """Prints all recipes with what they promise."""
    if arguments.json:
        print(json.dumps({name: asdict(recipe) for name, recipe in recipes().items()}))
        return 0
    if arguments.markdown:
        print(render_results())
        return 0
    width = max(map(len, recipes()))
    for name, recipe in recipes().items():
        print(f"{name:<{width}}  {describe(recipe)}")
    return 0


def describe(recipe: Recipe) -> str:
    """What a recipe is for and what it promises, on one line."""
    if recipe.data is None:
        return f"for all data that have no recipe of their own: {recipe.model}'s defaults"
    if recipe.reached is None:
        return f"{recipe.model} on {recipe.data}: not measured, so nothing is promised"
    text = f"{recipe.model} on {recipe.data}: {figure(recipe.reached)} nats on test in {duration(recipe.reached)}"
    if recipe.reached.mixture_nll is not None:
        text += f", {recipe.reached.mixture_nll:.2f} with {recipe.orders} orders"
    return "; ".join([text, *(f"published {describe_published(one)}" for one in recipe.published)])


def figure(reached: Reached) -> str:
    return f"{reached.test_nll:.2f} ± {reached.test_error:.2f}"


def duration(reached: Reached) -> str:
    if reached.seconds < 100:
        return f"{reached.seconds:.0f} s"
    return f"{reached.seconds / 60:.1f} min" if reached.seconds < 600 else f"{reached.seconds / 60:.0f} min"


def describe_published(published: Published) -> str:
    return f"{published.nll:.2f} ({published.model})"


def render_results() -> str:
    """Markdown: a row for every recipe that promises something."""
    lines = ["| command | time, threads | test NLL, nats | published |", "|---|---|---|---|"]
    promising = [recipe for recipe in recipes().values() if recipe.reached is not None]
    for recipe in promising:
        reached = recipe.reached
        more = "" if reached.bits_per_dimension is None else f" ({reached.bits_per_dimension:.3f} bits/dim)"
        if reached.mixture_nll is not None:
            more += f"; {reached.mixture_nll:.2f} with {recipe.orders} orders"
        published = ", ".join(map(describe_published, recipe.published)) or "–"
        lines.append(
            f"| `{recipe.command()}` | {duration(reached)}, {reached.threads} | {figure(reached)}{more} | {published} |"
        )
    sources = dict.fromkeys(one.source for recipe in promising for one in recipe.published)
    processors = dict.fromkeys(recipe.reached.processor for recipe in promising)
    lines += ["", f"Mean ± standard error over the test split; {'; '.join(processors)}. Published figures: "]
    lines[-1] += f"{'; '.join(sources)}." if sources else "none."
    return "\n".join(lines)


def reproduce(arguments: argparse.Namespace) -> int:
    """Runs a recipe; 1 if it reaches less than it promises."""
    recipe = recipes()[arguments.recipe]
    if recipe.data is None:
        raise UserError(f"{recipe.name} is the general recipe: run it with `pyar train {recipe.model} --data FILE`")
    folder = Path(arguments.out) if arguments.out is not None else _new_folder(recipe.name)
    told = _train_arguments(arguments, recipe, folder)
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        code = train.run(told)
    result_file = folder / train.RESULT_FILE
    if code != 0 or not result_file.is_file():  # interrupted, or another process of the group tells the result
        return code
    test = json.loads(result_file.read_text())["test"]
    mixture = _mixture_nll(arguments, recipe, folder) if recipe.orders > 1 else None
    verdict = compare(recipe, test["nll_nats"], test["standard_error_nats"], mixture)
    if arguments.json:
        print(json.dumps({"recipe": recipe.name, **verdict, "test": test}))
    else:
        print("\n".join(verdict["words"]))
    return 0 if verdict["holds"] in (True, None) else 1


def _mixture_nll(arguments: argparse.Namespace, recipe: Recipe, folder: Path) -> float:
    """The test NLL of the run's model as a mixture over the recipe's number of orders."""
    where = {"data_dir": arguments.data_dir, "cache_dir": arguments.cache_dir, "progress": arguments.progress}
    test = load_data({"data": recipe.data, **recipe.preparation}, **where).split("test")
    model = load(folder, device=set_up(arguments))
    each = order_log_probs(model, test, recipe.orders, progress=arguments.progress).double()
    return math.log(recipe.orders) - torch.logsumexp(each, dim=1).mean().item()


def compare(recipe: Recipe, nll: float, error: float | None, mixture: float | None = None) -> dict[str, Any]:
    """Whether a test NLL keeps the recipe's promise (None: there is none), and what is to be said of it."""
    shown = f"{nll:.2f}" + ("" if error is None else f" ± {error:.2f}")
    words, holds = [], None
    if recipe.reached is None:
        words.append(f"{recipe.name} promises nothing yet; this run reached {shown} nats.")
    else:
        holds = nll <= recipe.reached.test_nll + recipe.tolerance
        promised = f"promised {figure(recipe.reached)}"
        if mixture is not None and recipe.reached.mixture_nll is not None:
            holds = holds and mixture <= recipe.reached.mixture_nll + recipe.tolerance
            shown += f" in one order, {mixture:.2f} with {recipe.orders}"
            promised += f" and {recipe.reached.mixture_nll:.2f}"
        kept = "holds" if holds else "does not hold"
        words.append(
            f"{recipe.name} {kept}: {shown} nats on test, {promised} (runs may differ by {recipe.tolerance:g})."
        )
    for published in recipe.published:
        reached = nll if published.orders == 1 or mixture is None else mixture
        side = "below (better than)" if reached < published.nll else "above (worse than)"
        words.append(
            f"That is {abs(reached - published.nll):.2f} nats {side} the published {describe_published(published)}, "
            f"{published.source}."
        )
    return {"holds": holds, "words": words}


def _new_folder(name: str) -> Path:
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def _train_arguments(arguments: argparse.Namespace, recipe: Recipe, folder: Path) -> argparse.Namespace:
    """What `pyar train` is told: the recipe in full, and where and how it runs."""
    command = ["train", recipe.model, "--data", recipe.data, "--out", str(folder)]
    for name, value in recipe.preparation.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    told = make_parser(command).parse_args(command)
    for name in ("data_dir", "cache_dir", "device", "progress", "imports"):
        setattr(told, name, getattr(arguments, name))
    told.threads = arguments.threads if arguments.threads is not None else recipe.threads
    told.recipe = recipe
    if recipe.reached is not None:
        note(f"recipe {recipe.name}: {describe(recipe)}")
    return told
