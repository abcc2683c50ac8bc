"""TableDensity: scikit-learn's contract, frames in and out, and right answers on a law that is known."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.stats
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from pyar.sklearn import TableDensity
from pyar.tables import Integer, Real

LIBRARIES = {"pandas": lambda frame: frame, "polars": pl.from_pandas, "pyarrow": pa.Table.from_pandas}


def visits(rows: int = 900, seed: int = 0) -> pd.DataFrame:
    """A known law: group a third each; value ~ N(2·group, ½); count ~ 3 + Bin(4, .2 + .3·group)."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, 3, rows)
    return pd.DataFrame(
        {
            "group": pd.Categorical(np.array(["a", "b", "c"])[group], categories=["c", "b", "a"], ordered=True),
            "value": 2.0 * group + 0.5 * generator.normal(size=rows),
            "count": (3 + generator.binomial(4, 0.2 + 0.3 * group)).astype(np.int16),
        },
        index=np.arange(rows) * 10,
    )


def log_density(frame: pd.DataFrame) -> np.ndarray:
    group = frame["group"].map({"a": 0, "b": 1, "c": 2}).astype(int).to_numpy()
    value = scipy.stats.norm.logpdf(frame["value"], 2.0 * group, 0.5)
    return math.log(1 / 3) + value + scipy.stats.binom.logpmf(frame["count"] - 3, 4, 0.2 + 0.3 * group)


def with_holes(frame: pd.DataFrame, part: float = 0.2, seed: int = 1) -> pd.DataFrame:
    frame = frame.astype({"count": "Int16"})
    return frame.mask(np.random.default_rng(seed).random(frame.shape) < part)


@pytest.fixture(scope="module")
def fitted() -> TableDensity:
    torch.set_num_threads(1)
    return TableDensity(hidden_sizes=(64,), max_steps=1200, orders=6, dropout=0.0).fit(visits())


def test_scikit_learns_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(TableDensity(max_steps=3, hidden_sizes=(4,), orders=1), on_fail=None, on_skip=None)
    assert len(results) > 30
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert failed == {}


def test_scores_are_near_the_truth(fitted: TableDensity) -> None:
    fresh = visits(2000, seed=5)
    scores = fitted.score_samples(fresh)
    excess = log_density(fresh).mean() - scores.mean()
    assert 0 < excess < 0.12  # KL, in nats
    assert fitted.score(fresh) == pytest.approx(scores.mean())
    thousandth = fresh.assign(value=fresh["value"] / 1000)
    scaled = TableDensity(hidden_sizes=(8,), max_steps=3).fit(visits().assign(value=visits()["value"] / 1000))
    plain = TableDensity(hidden_sizes=(8,), max_steps=3).fit(visits())
    np.testing.assert_allclose(
        scaled.score_samples(thousandth) - plain.score_samples(fresh), math.log(1000), rtol=0, atol=1e-3
    )


def test_conditionals_are_near_the_truth(fitted: TableDensity) -> None:
    asked = pd.DataFrame({"group": ["a", "b", "c"]})
    expected = fitted.conditional(asked, given=["group"])
    assert list(expected) == ["value", "count"]
    np.testing.assert_allclose(expected["value"], [0, 2, 4], atol=0.15)
    np.testing.assert_allclose(expected["count"], 3 + 4 * np.array([0.2, 0.5, 0.8]), atol=0.2)
    inverse = fitted.conditional(pd.DataFrame({"value": [0.0, 2.0, 4.0]}), given=["value"])
    assert list(inverse) == ["group=c", "group=b", "group=a", "count"]
    np.testing.assert_allclose(inverse[["group=a", "group=b", "group=c"]], np.eye(3), atol=0.1)


def test_samples_follow_the_law(fitted: TableDensity) -> None:
    drawn = fitted.sample(3000, random_state=1)
    assert drawn.dtypes.equals(visits().dtypes)
    assert drawn["count"].between(3, 7).all()
    np.testing.assert_allclose(drawn["group"].value_counts(normalize=True), 1 / 3, atol=0.05)
    means = drawn.groupby("group", observed=True)["value"].mean()
    np.testing.assert_allclose(means[["a", "b", "c"]], [0, 2, 4], atol=0.15)
    pd.testing.assert_frame_equal(drawn, fitted.sample(3000, random_state=1))
    assert not drawn.equals(fitted.sample(3000, random_state=2))
    given = fitted.sample(400, given={"group": "c", "count": 7}, random_state=1)
    assert (given["group"] == "c").all()
    assert (given["count"] == 7).all()
    assert given["value"].mean() == pytest.approx(4, abs=0.2)


def test_imputation_keeps_what_is_there_and_draws_the_rest(fitted: TableDensity) -> None:
    frame = visits(500, seed=3)
    holes = with_holes(frame)
    filled = fitted.impute(holes, random_state=1)
    assert not filled.isna().any().any()
    assert filled.dtypes.equals(holes.dtypes)
    assert filled.index.equals(holes.index)
    for name in holes:
        there = holes[name].notna()
        assert (filled.loc[there, name] == holes.loc[there, name]).all()
    hidden = holes["value"].isna() & holes["group"].notna()
    guess = fitted.impute(holes, best_guess=True, random_state=1)
    error = np.sqrt(np.mean((guess.loc[hidden, "value"] - frame.loc[hidden, "value"]) ** 2))
    assert error < 0.65  # 0.5 is the noise; the column's own deviation is 1.7
    several = fitted.impute(holes, 3, random_state=1)
    assert len(several) == 3
    assert not several[0].equals(several[1])
    pd.testing.assert_frame_equal(fitted.impute(frame), frame)


def test_best_guesses_are_centres_of_whole_conditionals(fitted: TableDensity) -> None:
    """Where one value is missing nothing is drawn: the guess is what the conditional says, whatever the seed."""
    frame = visits(200, seed=4)
    for name in frame:
        others = [other for other in frame if other != name]
        told = fitted.conditional(frame, given=others)
        guess = fitted.impute(frame.assign(**{name: frame[name].mask(frame[name].notna())}), best_guess=True)[name]
        if name == "value":
            np.testing.assert_allclose(guess, told["value"], rtol=1e-4, atol=1e-5)
        elif name == "count":  # the median is never farther from the mean than a standard deviation
            assert (np.abs(guess.to_numpy() - told["count"].to_numpy()) < 1.2).all()
            assert (guess == guess.round()).all()
        else:
            assert list(guess) == [column.removeprefix("group=") for column in told.idxmax(axis=1)]


def test_imputation_where_a_columns_type_says_too_little(fitted: TableDensity) -> None:
    """Categories that new rows do not have are drawn all the same, and a column without a value has no type."""
    frame = visits(60, seed=1)
    some = frame.assign(group=frame["group"].where(frame["group"] == "c").cat.set_categories(["c"]))
    filled = fitted.impute(some, random_state=0)
    assert set(filled["group"]) == {"a", "b", "c"}
    assert (filled["group"][frame["group"] == "c"] == "c").all()
    nothing = fitted.impute(frame.assign(group=None, count=None), random_state=0)
    assert set(nothing["group"]) == {"a", "b", "c"}
    assert nothing["count"].between(3, 7).all()


def test_anomalies_are_above_the_threshold(fitted: TableDensity) -> None:
    fresh = visits(2000, seed=6)
    scores = fitted.anomaly_scores(fresh)
    assert (scores > fitted.threshold_).mean() < 0.05
    odd = fresh.assign(value=fresh["value"] + 5)
    assert (fitted.anomaly_scores(odd) > fitted.threshold_).mean() > 0.9
    surprise = fitted.surprise(odd.head(50))
    assert list(surprise) == list(fresh)
    assert (surprise["value"] > surprise["count"]).mean() > 0.9
    assert fitted.surprise(with_holes(fresh)).isna().equals(with_holes(fresh).isna().reset_index(drop=True))


@pytest.mark.parametrize("library", LIBRARIES)
def test_frames_come_out_as_they_went_in(library: str) -> None:
    holes = with_holes(visits(200).reset_index(drop=True))
    frame: Any = LIBRARIES[library](holes)
    density = TableDensity(hidden_sizes=(8,), max_steps=5, orders=2).fit(frame)
    drawn, filled = density.sample(5, random_state=0), density.impute(frame, random_state=0)
    for result in (drawn, filled):
        assert type(result) is type(frame)
        if library == "pandas":
            assert result.dtypes.equals(frame.dtypes)
        else:
            assert result.schema == frame.schema
    assert filled.shape == frame.shape
    assert type(density.surprise(frame)) is type(frame)
    assert density.score_samples(frame).shape == (200,)
    given = frame[["value"]] if library != "pyarrow" else frame.select(["value"])
    assert type(density.conditional(given, given=["value"])) is type(frame)


def test_arrays_come_out_as_arrays() -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[4, 1] = np.nan
    density = TableDensity(hidden_sizes=(8,), max_steps=5).fit(X)
    assert density.sample(4).shape == (4, 3)
    filled = density.impute(X)
    assert np.isfinite(filled).all()
    kept = ~np.isnan(X)
    assert (filled[kept] == X[kept]).all()
    assert density.surprise(X).shape == (60, 3)
    assert density.conditional(X, given=["x1"]).shape == (60, 2)


def test_the_same_random_state_fits_the_same(fitted: TableDensity) -> None:
    frame = visits(200)
    one, two = (TableDensity(hidden_sizes=(8,), max_steps=20, random_state=3).fit(frame) for _ in range(2))
    np.testing.assert_array_equal(one.score_samples(frame), two.score_samples(frame))
    other = TableDensity(hidden_sizes=(8,), max_steps=20, random_state=4).fit(frame)
    assert not np.array_equal(one.score_samples(frame), other.score_samples(frame))
    before = torch.get_rng_state()
    clone(one).fit(frame)
    assert torch.equal(torch.get_rng_state(), before)  # the user's own random numbers go on as they were
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.score_samples(frame), fitted.score_samples(frame))


def test_what_does_not_fit_is_refused(fitted: TableDensity) -> None:
    frame = visits(20)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: TableDensity().score_samples(frame), NotFittedError, "not fitted"),
        (lambda: TableDensity().sample(), NotFittedError, "not fitted"),
        (lambda: fitted.score_samples(frame.drop(columns="count")), ValueError, "lacks a column: 'count'"),
        (lambda: fitted.score_samples(frame.astype({"group": str}).assign(group="z")), ValueError, "unknown: 'z'"),
        (lambda: fitted.score_samples(frame.assign(count=8)), ValueError, "8 in row 0 is outside 3 … 7"),
        (lambda: fitted.sample(2, given={"grop": "a"}), ValueError, "'grop'; did you mean 'group'"),
        (lambda: fitted.sample(2, given={"group": "z"}), ValueError, "unknown: 'z'"),
        (lambda: fitted.conditional(frame, given=["x"]), ValueError, "no column 'x'"),
        (lambda: fitted.conditional(frame[["count"]], given=["value"]), ValueError, "X lacks the column 'value'"),
        (lambda: fitted.impute(frame, 0), ValueError, "num_samples must be at least 1"),
        (lambda: TableDensity(validation_fraction=0).fit(frame), ValueError, "validation_fraction must be in"),
        (lambda: TableDensity(validation_fraction=0.99).fit(frame), ValueError, "leaves none of 20 rows"),
        (lambda: TableDensity(contamination=1).fit(frame), ValueError, "contamination must be in"),
        (lambda: TableDensity(max_steps=0).fit(frame), ValueError, "max_steps must be positive"),
        (lambda: TableDensity(kinds={"x": Real()}).fit(frame), ValueError, "kinds names the column 'x'"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    wider = TableDensity(kinds={"count": Integer(0, 20)}, max_steps=3, hidden_sizes=(4,)).fit(frame)
    assert np.isfinite(wider.score_samples(frame.assign(count=15))).all()
