"""What the least scale of a component does to the likelihood of real values that repeat: RNADE over folds.

    python examples/scale_floor.py red_wine.npz --table floors.md --picture floors.png

Rounded measurements, such as UCI's red wine, have no density: a component that narrows on a value that stands in
training and test rows gains without end. So a figure for such data means something only beside its floor. Every fold
is tested once: a tenth of the other rows says when to stop, the rest are learnt from and standardise the columns.
"""

from __future__ import annotations

import argparse
import math
import tempfile

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import pyar
from pyar.data import TableData
from pyar.evaluation import evaluate
from pyar.files import write_text
from pyar.plots import save_figure
from pyar.tables import Columns, Real
from pyar.training import Trainer, TrainingConfig


def load(path: str) -> tuple[NDArray, NDArray]:
    """Rows [N, D] of a .npz and their folds [N], or of a .csv with ten folds at random."""
    if path.endswith(".csv"):
        values = np.genfromtxt(path, delimiter=",", skip_header=1)
        return values, np.random.default_rng(0).permutation(len(values)) % 10
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["data"].astype(float), arrays["fold"]


def split(values: NDArray, fold: NDArray, tested: int, floor: float) -> TableData:
    """The fold as test, a tenth of the others as valid, all standardised with the rest."""
    import pandas as pd

    frame = pd.DataFrame(values, columns=[f"x{d}" for d in range(values.shape[1])])
    others = np.random.default_rng(tested).permutation(np.flatnonzero(fold != tested))
    border = len(others) // 10
    columns = Columns(dict.fromkeys(frame, Real(min_scale=floor))).standardized(frame.iloc[others[border:]])
    x = columns.encode(frame)
    return TableData("rows", columns, x[others[border:]], x[others[:border]], x[np.flatnonzero(fold == tested)])


def log_likelihoods(data: TableData, floor: float, steps: int, seed: int) -> dict[str, float]:
    """Mean log-density of standardised train and test rows under an RNADE that learnt the first of them."""
    torch.manual_seed(seed)
    model = pyar.RNADE(data.dim, hidden_size=100, activation="sigmoid", min_scale=floor)
    model.initialize_from_marginals(data.train)
    settings = TrainingConfig(
        batch_size=50, learning_rate=3e-3, weight_decay=0.3, epochs=None, max_steps=steps, eval_every=4, clip_norm=5.0,
        ema=0.99, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, data, settings, folder).train()
    return {name: -evaluate(model, data, name).nll_standardised for name in ("train", "test")}


def draw(floors: list[float], means: dict[str, list[float]], errors: list[float], path: str) -> None:
    """Both log-likelihoods against the floor."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(floors, means["train"], "o--", color="#8a8f98", label="rows that were learnt")
    axes.errorbar(floors, means["test"], errors, fmt="o-", color="#1f6feb", capsize=3, label="held-out rows")
    axes.set_xscale("log")
    axes.set_xticks(floors, [f"{floor:g}" for floor in floors])
    axes.minorticks_off()
    axes.set_xlabel("least scale of a component, in standard deviations")
    axes.set_ylabel("log-density a row, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> str:
    """Prints the table, and returns it as markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help=".npz with data [N, D] and fold [N], or a .csv of numbers with a header")
    parser.add_argument("--floors", default="0.01,0.02,0.05,0.1", help="[%(default)s]")
    parser.add_argument("--folds", type=int, default=10, help="that are tested, the first ones [%(default)s]")
    parser.add_argument("--steps", type=int, default=1500, help="of training [%(default)s]")
    parser.add_argument("--table", help="file for the table, in markdown")
    parser.add_argument("--picture", help="file for the picture, .png")
    options = parser.parse_args(arguments)

    values, fold = load(options.data)
    floors, tested = [float(floor) for floor in options.floors.split(",")], np.unique(fold)[: options.folds]
    figures = np.empty((len(floors), len(tested), 2))
    for j, each in enumerate(tested):
        for i, floor in enumerate(floors):
            result = log_likelihoods(split(values, fold, each, floor), floor, options.steps, int(each))
            figures[i, j] = result["train"], result["test"]
            print(
                f"fold {each}, floor {floor:g}: {result['test']:.3f} held out, {result['train']:.3f} learnt", flush=True
            )
    means = {"train": list(figures[..., 0].mean(1)), "test": list(figures[..., 1].mean(1))}
    errors = list(figures[..., 1].std(1, ddof=min(1, len(tested) - 1)) / math.sqrt(len(tested)))
    rows = [
        ["least scale, sd", *(f"{floor:g}" for floor in floors)],
        ["---"] * (len(floors) + 1),
        ["held-out rows", *(f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means["test"], errors, strict=True))],
        ["rows that were learnt", *(f"{mean:.2f}" for mean in means["train"])],
    ]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    print("\n" + text)
    if options.table:
        write_text(options.table, text)
    if options.picture:
        draw(floors, means, errors, options.picture)
    return text


if __name__ == "__main__":
    torch.set_num_threads(1)  # steps of so small a network gain nothing from a second
    main()
