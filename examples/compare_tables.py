"""TableDensity beside what else there is for a table: held-out log-likelihood, imputation, anomalies.

    pip install "pyar[tables]" pgmpy
    python examples/compare_tables.py --out compare.md

The table is drawn from the law of known_law.py. `--data diamonds` takes the one that the package plotnine ships,
`--data california` the one that scikit-learn downloads, and any csv can be given. All contenders learn from the same
rows, are judged by the same others, and have settings that were best on validation rows.

Log-likelihoods are nats a row, in the same units for all. Where a column has categories, or values on a grid, what
counts is the probability of the value: densities are fitted to values with uniform noise over their cell, and
integrated over a test value's cell, which is the mean over 32 draws of that noise times the cell's volume. The Bayesian
network is one of bins, whose probability is shared among a bin's values as they were seen, and evenly where there is a
density.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import known_law
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import BayesianRidge
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from pyar.files import write_text
from pyar.sklearn import TableDensity
from pyar.tables import Categorical, Columns, Integer

Score = Callable[[NDArray], NDArray]  # rows as numbers [N, D] → nats [N]
DRAWS = 32  # of the noise over a cell
HOLES = 0.1  # the part of the cells that is hidden


def load(name: str, rows: int) -> pd.DataFrame:
    """A table's rows in random order, `rows` at most, without those with holes."""
    if name == "law":
        frame = known_law.draw(rows, 0).astype({"group": str, "grade": str})
    elif name == "diamonds":
        from plotnine.data import diamonds as frame
    elif name == "california":
        from sklearn.datasets import fetch_california_housing

        frame = fetch_california_housing(as_frame=True).frame
    else:
        frame = pd.read_csv(name)
    return frame.dropna().sample(frac=1, random_state=0).head(rows).reset_index(drop=True)


class Table:
    """A frame's columns as contenders see them: categories by their number, cells, limits, and category bits."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.columns = Columns.from_frame(frame)
        kinds = self.columns.values()
        self.categories = [len(kind.levels) if isinstance(kind, Categorical) else 0 for kind in kinds]
        self.widths = np.array(
            [1.0 if isinstance(kind, Categorical | Integer) else kind.resolution or 0.0 for kind in kinds]
        )
        x = self.numbers(frame)
        self.low, self.high = x.min(axis=0) - self.widths / 2, x.max(axis=0) + self.widths / 2

    def numbers(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """[N, D], NaN for missing."""
        return np.stack(
            [
                frame[name].map({level: code for code, level in enumerate(kind.levels)}).to_numpy(float)
                if isinstance(kind, Categorical)
                else frame[name].to_numpy(float)
                for name, kind in self.columns.items()
            ],
            axis=1,
        )

    def onehot(self, x: NDArray) -> NDArray[np.float64]:
        """Numbers as they are, and a bit for each category; NaN in all of a missing one."""
        parts = [
            np.where(np.isnan(x[:, [d]]), np.nan, x[:, [d]] == np.arange(K)) if K else x[:, [d]]
            for d, K in enumerate(self.categories)
        ]
        return np.concatenate(parts, axis=1)

    def from_onehot(self, bits: NDArray) -> NDArray[np.float64]:
        """The inverse of `onehot`: the likeliest category, and the nearest value on a column's grid."""
        starts = np.cumsum([0, *(K or 1 for K in self.categories)])
        x = np.stack(
            [bits[:, s : s + K].argmax(1) if K else bits[:, s] for s, K in zip(starts, self.categories, strict=False)],
            axis=1,
        )
        grid = np.where(self.widths > 0, self.widths, 1.0)
        return np.where(self.widths > 0, grid * np.round(x / grid), x)


# --- Densities: each yields what its settings are called, and what fits it to rows and returns its score ---


def standardised(table: Table, make: Callable[[float], Any], settings: list[float]) -> Iterator[tuple[str, Callable]]:
    """A density of scikit-learn, of standardised numbers with noise over the cells."""

    def fit(train: NDArray, setting: float) -> Score:
        mean, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-9)
        volume = np.log(np.where(table.widths > 0, table.widths, 1.0) / scale).sum()

        def noisy(x: NDArray, generator: np.random.Generator) -> NDArray:
            return (x + table.widths * generator.uniform(-0.5, 0.5, x.shape) - mean) / scale

        model = make(setting).fit(noisy(train, np.random.default_rng(0)))

        def score(x: NDArray) -> NDArray:
            generator, draws = np.random.default_rng(1), DRAWS if table.widths.any() else 1
            logs = [model.score_samples(noisy(x, generator)) for _ in range(draws)]
            return logsumexp(logs, axis=0) - math.log(draws) + volume

        return score

    for setting in settings:
        yield f"{setting:g}", lambda train, setting=setting: fit(train, setting)


def bayesian_networks(table: Table, settings: list[int]) -> Iterator[tuple[str, Callable]]:
    """pgmpy's networks of columns in bins of equally many rows, found by hill climbing with one or two parents."""
    from pgmpy.causal_discovery import HillClimbSearch
    from pgmpy.models import DiscreteBayesianNetwork
    from pgmpy.parameter_estimator import DiscreteBayesianEstimator

    names = [str(d) for d in range(len(table.columns))]

    def fit(train: NDArray, bins: int, parents: int) -> Score:
        edges = [
            np.arange(K + 1) - 0.5
            if K
            else np.unique([table.low[d], *np.quantile(train[:, d], np.arange(1, bins) / bins), table.high[d]])
            for d, K in enumerate(table.categories)
        ]

        def binned(x: NDArray) -> NDArray[np.int64]:
            return np.stack([np.searchsorted(e[1:-1], x[:, d], side="right") for d, e in enumerate(edges)], axis=1)

        states = binned(train)
        frame = pd.DataFrame(states, columns=names)
        search = HillClimbSearch("bic-d", max_indegree=parents, return_type="dag", show_progress=False).fit(frame)
        network = DiscreteBayesianNetwork()
        network.add_nodes_from(names)
        network.add_edges_from(search.causal_graph_.edges)
        possible = {name: list(range(len(e) - 1)) for name, e in zip(names, edges, strict=True)}
        network.fit(frame, DiscreteBayesianEstimator(possible, "BDeu", equivalent_sample_size=10))

        def score(x: NDArray) -> NDArray:
            new, total = binned(x), np.zeros(len(x))
            for cpd in network.get_cpds():
                total += np.log(cpd.values[tuple(new[:, int(name)] for name in cpd.variables)])
            for d, K in enumerate(table.categories):
                bin_width = np.diff(edges[d])[new[:, d]]
                if table.widths[d] == 0:
                    total -= np.log(bin_width)
                elif not K:  # one row more, spread evenly, so that values that were not seen are possible
                    values, counts = np.unique(train[:, d], return_counts=True)
                    place = np.searchsorted(values, x[:, d]).clip(max=len(values) - 1)
                    seen = np.where(values[place] == x[:, d], counts[place], 0)
                    rows = np.bincount(states[:, d], minlength=len(edges[d]) - 1)[new[:, d]]
                    total += np.log((seen + np.minimum(1.0, table.widths[d] / bin_width)) / (rows + 1))
            return total

        return score

    for bins in settings:
        for parents in (1, 2):
            name = f"{bins} bins, {parents} parent{'s' if parents > 1 else ''}"
            yield name, lambda train, bins=bins, parents=parents: fit(train, bins, parents)


def best(name: str, contenders: Iterator[tuple[str, Callable]], train: NDArray, valid: NDArray) -> tuple[str, Score]:
    """The setting that is best on the validation rows, fitted to all rows."""
    figures = {}
    for setting, fit in contenders:
        figures[setting] = (fit(train)(valid).mean(), fit)
        print(f"  {name} {setting}: {figures[setting][0]:.3f} on validation rows", flush=True)
    setting = max(figures, key=lambda key: figures[key][0])
    return f"{name} ({setting})", figures[setting][1](np.concatenate([train, valid]))


# --- Holes, and rows that are put together wrongly ---


def hide(shape: tuple[int, int], seed: int) -> NDArray[np.bool_]:
    """Which cells are hidden."""
    return np.random.default_rng(seed).random(shape) < HOLES


def planted(frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Every second row with three columns from another row, and which they are: only their dependence is wrong."""
    generator = np.random.default_rng(seed)
    wrong = np.arange(len(frame)) % 2 == 1
    values = frame.astype(object).to_numpy()
    mixed, others = values.copy(), np.roll(np.arange(len(frame)), 2)
    for row in np.flatnonzero(wrong):
        block = generator.choice(values.shape[1], min(3, values.shape[1] - 1), replace=False)
        mixed[row, block] = values[others[row], block]
    result = pd.DataFrame(mixed, columns=frame.columns)
    return result.astype(frame.dtypes.to_dict()), wrong


def imputation_errors(table: Table, guess: NDArray, truth: NDArray, hidden: NDArray) -> tuple[float, float]:
    """Root mean squared error of numbers in their standard deviations, error rate of categories; over hidden cells."""
    whole = np.array(table.categories) > 0
    wrong = hidden[:, whole] & (guess[:, whole] != truth[:, whole])
    off = ((guess - truth) / truth.std(axis=0))[:, ~whole][hidden[:, ~whole]]
    return float(np.sqrt((off**2).mean())), float(wrong.sum() / max(1, hidden[:, whole].sum()))


def main(arguments: list[str] | None = None) -> str:
    """Prints the table of results, and returns it as markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="law", help="law, diamonds, california or a csv [%(default)s]")
    parser.add_argument("--rows", type=int, default=12_000, help="of the table, at most [%(default)s]")
    parser.add_argument("--steps", type=int, default=10_000, help="of training, at most [%(default)s]")
    parser.add_argument("--out", help="file for the results, in markdown")
    options = parser.parse_args(arguments)

    frame = load(options.data, options.rows)
    table, N = Table(frame), len(frame)
    print(table.columns.describe())
    held = max(2, N // 10)
    fit_rows, test_rows = frame.iloc[: N - held], frame.iloc[N - held :].reset_index(drop=True)
    known, test = table.numbers(fit_rows), table.numbers(test_rows)
    train, valid = known[:-held], known[-held:]
    test_mixed, wrong = planted(test_rows, 0)
    mixed = table.numbers(test_mixed)
    hidden = hide(test.shape, 0)
    rows: list[list[str]] = []

    def tell(
        name: str, started: float, scores: NDArray | None, errors: tuple[float, float] | None, auroc: float
    ) -> None:
        likelihood = "–" if scores is None else f"{scores.mean():.2f} ± {scores.std() / math.sqrt(len(scores)):.2f}"
        guesses = ["–", "–"] if errors is None else [f"{errors[0]:.3f}", f"{errors[1]:.1%}"]
        rows.append([name, likelihood, *guesses, "–" if math.isnan(auroc) else f"{auroc:.3f}"])
        print(" | ".join(rows[-1]), f"({time.monotonic() - started:.0f} s)", flush=True)

    started = time.monotonic()
    density = TableDensity(
        kinds=dict(table.columns), validation_fraction=held / len(fit_rows), max_steps=options.steps
    ).fit(fit_rows)
    guess = table.numbers(density.impute(test_rows.mask(hidden), best_guess=True, random_state=0))
    errors = imputation_errors(table, guess, test, hidden)
    auroc = roc_auc_score(wrong, density.anomaly_scores(test_mixed))
    tell("**TableDensity**", started, density.score_samples(test_rows), errors, auroc)

    components, bandwidths = [5, 10, 20, 40, 80], [0.1, 0.15, 0.2, 0.3]
    contenders = {
        "GaussianMixture": standardised(
            table, lambda n: GaussianMixture(int(n), reg_covar=1e-5, random_state=0), components
        ),
        "KernelDensity": standardised(table, lambda h: KernelDensity(bandwidth=h, rtol=1e-2), bandwidths),
    }
    if importlib.util.find_spec("pgmpy") is None:
        print("without Bayesian networks, which need pgmpy: pip install pgmpy")
    else:
        contenders["Bayesian network"] = bayesian_networks(table, [8, 16, 32])
    for name, settings in contenders.items():
        started = time.monotonic()
        title, score = best(name, settings, train, valid)
        tell(title, started, score(test), None, roc_auc_score(wrong, -score(mixed)))

    for name, estimator in (("linear", BayesianRidge()), ("boosted trees", HistGradientBoostingRegressor(max_iter=50))):
        started = time.monotonic()
        imputer = IterativeImputer(estimator, max_iter=5, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that five rounds do not settle
            imputer.fit(table.onehot(np.where(hide(known.shape, 1), np.nan, known)))
            filled = table.from_onehot(imputer.transform(table.onehot(np.where(hidden, np.nan, test))))
        errors = imputation_errors(table, np.where(hidden, filled, test), test, hidden)
        tell(f"IterativeImputer ({name})", started, None, errors, math.nan)

    started, figures = time.monotonic(), {}
    valid_mixed, valid_wrong = planted(fit_rows.iloc[-held:].reset_index(drop=True), 1)
    for part in (256, 1.0):
        forest = IsolationForest(n_estimators=300, max_samples=part, random_state=0)
        forest.fit(table.onehot(train))
        figures[part] = roc_auc_score(valid_wrong, -forest.score_samples(table.onehot(table.numbers(valid_mixed))))
    part = max(figures, key=figures.get)
    forest = IsolationForest(n_estimators=300, max_samples=part, random_state=0).fit(table.onehot(known))
    auroc = roc_auc_score(wrong, -forest.score_samples(table.onehot(mixed)))
    tell(f"IsolationForest ({'all' if part == 1.0 else part} rows a tree)", started, None, None, auroc)

    title = ["", "log-likelihood a row", "error of numbers (sd)", "error of categories", "AUROC of planted anomalies"]
    lines = [title, ["---"] * len(title), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    print("\n" + text)
    if options.out:
        write_text(options.out, text)
    return text


if __name__ == "__main__":
    main()
