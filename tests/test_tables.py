"""Columns: what is decided from a frame, and the way from frames to numbers and back."""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pyar.tables import Binary, Categorical, Columns, Integer, MissingPackageError, Real, RepeatedValues


def people(rows: int = 60, *, holes: bool = True) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": generator.integers(17, 90, rows),
            "pay": np.exp(generator.normal(size=rows)),
            "ph": np.round(generator.normal(3, 0.1, rows), 2),
            "sex": generator.choice(["f", "m"], rows),
            "job": pd.Categorical(generator.choice(["a", "b", "c"], rows), categories=["c", "a", "b", "z"]),
            "ok": pd.array(generator.integers(0, 2, rows), dtype="boolean"),
            "gain": generator.choice([0, 0, 0, 5000, 12345], rows),
            "n": pd.array(generator.integers(0, 9, rows), dtype="Int64"),
            "const": 1.5,
        }
    )
    if holes:
        for row, name in enumerate(["sex", "ok", "pay", "n", "job"]):
            frame.loc[row, name] = None
    return frame


def numbers(*values: Any) -> pd.DataFrame:
    return pd.DataFrame({"v": list(values)})


def test_kinds_are_decided_with_their_reasons() -> None:
    columns = Columns.from_frame(people())
    assert columns["sex"] == Binary(("f", "m"))
    assert columns["job"] == Categorical(("c", "a", "b", "z"))  # the order and the level that no row has
    assert columns["ok"] == Binary()
    assert columns["const"] == Categorical((1.5,))
    assert isinstance(columns["age"], Integer)
    assert (columns["n"].low, columns["n"].high) == (0, 8)
    assert columns["gain"].resolution == 1
    assert columns["pay"].resolution is None
    assert columns["ph"].resolution == 0.01
    described = columns.describe()
    assert re.search(
        r"pay .* density, scales of at least 0.01 .*59 different values in 59 rows; 1 of 60 missing", described
    )
    assert re.search(r"ph .* probability of ± 0.005 .* rounded to 2 decimals", described)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 2, 1], Binary((1, 2))),
        ([1.0, 2.0, None, 1.0], Binary((1, 2))),
        ([0.5, 2.0, 0.5], Binary((0.5, 2))),
        ([7, 7, 7], Categorical((7,))),
        (["x", "x", None], Categorical(("x",))),
        (["b", "a", "c"] * 3, Categorical(("a", "b", "c"))),
        ([True, True], Binary()),
        ([True, None, False], Binary()),
        (pd.Series([1, None, 2], dtype=object), Binary((1, 2))),
    ],
)
def test_few_values(values: list, expected: Any) -> None:
    assert Columns.from_frame(numbers(*values))["v"] == expected


def test_whole_numbers_of_any_size() -> None:
    def decided(*values: float) -> Any:
        return Columns.from_frame(numbers(*values))["v"]

    assert isinstance(decided(0, 5, 1023), Integer)
    assert decided(0, 5, 1024).resolution == 1
    assert isinstance(decided(10**12, 10**12 + 5, 10**12 + 9), Integer)
    assert decided(*(10**9 * np.arange(9))).resolution is None  # more cells than float32 tells apart
    assert decided(1e300, 2e300, 4e300).resolution is None


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_whole_numbers_that_no_float_tells_apart_are_refused(library: Any) -> None:
    """Identifiers of 64 bits: as floats they would be one value."""
    for values in ([2**62 + k for k in range(30)], [-(2**62) - k for k in range(30)]):
        with pytest.raises(ValueError, match=r"column 'a' holds -?46116860184273.* beyond 2\*\*53"):
            Columns.from_frame(library({"a": values}))
    with pytest.raises(ValueError, match=r"beyond 2\*\*53"):
        Columns.from_frame(pd.DataFrame({"a": [2**70 + k for k in range(30)]}))
    assert isinstance(Columns.from_frame(pd.DataFrame({"a": [2**53 - 1 - k for k in range(30)]}))["a"], Integer)


def test_a_spread_that_is_small_beside_the_mean_is_a_spread() -> None:
    values = 1e9 + 1e-3 * np.random.default_rng(0).normal(size=100)
    kind = Columns.from_frame(pd.DataFrame({"a": values}))["a"]
    assert kind.scale == pytest.approx(values.std(), rel=1e-3)
    assert Columns.from_frame(pd.DataFrame({"a": [1e9] * 3 + [1e9 + 1e-6]}), kinds={"a": Real()})["a"].scale == 1.0


def test_dates_as_texts_are_told() -> None:
    dates = pd.date_range("2020-01-31", periods=60)
    for texts in (dates.strftime("%Y-%m-%d"), dates.strftime("%d.%m.%Y"), dates.strftime("%m/%d/%y %H:%M")):
        with pytest.raises(ValueError, match="column 'day' has dates and times as texts: turn them into numbers"):
            Columns.from_frame(pd.DataFrame({"day": texts}))


def test_texts_among_numbers_are_told() -> None:
    texts = [f"{k * 0.37:.2f}" if k % 5 else "-" for k in range(60)]
    with pytest.raises(ValueError, match="column 'a' has numbers, but also texts such as '-': leave empty"):
        Columns.from_frame(pd.DataFrame({"a": texts}))
    with pytest.raises(ValueError, match=r"60 different texts in 60 rows \('\$0', '\$1', …\)"):
        Columns.from_frame(pd.DataFrame({"a": [f"${k}" for k in range(60)]}))


def test_repeats_without_a_grid_are_told() -> None:
    spiked = np.where(np.arange(100) % 2 == 0, np.pi, np.random.default_rng(0).normal(size=100))
    with pytest.warns(RepeatedValues, match=r"'v' has 51 different values in 100 rows .* Real\(resolution"):
        columns = Columns.from_frame(numbers(*spiked))
    assert "say a resolution" in columns.describe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Columns.from_frame(numbers(*spiked), kinds={"v": Real(min_scale=0.1)})
        Columns.from_frame(numbers(*np.random.default_rng(0).normal(size=100)))


@pytest.mark.parametrize(("step", "resolution"), [(0.1, 0.1), (0.25, 0.01), (500.0, 1.0), (1e-6, 1e-6), (0.7, 0.1)])
def test_values_on_a_grid_get_its_resolution(step: float, resolution: float) -> None:
    values = step * np.random.default_rng(0).integers(0, 3000, 20_000)
    frame = numbers(*values)
    columns = Columns.from_frame(frame)
    assert columns["v"].resolution == resolution
    assert (
        columns.decode(columns.encode(frame))["v"].tolist() == np.round(values, 8).tolist()
    )  # not 0.30000000000000004


def test_numbers_are_standardised_and_the_jacobian_is_known() -> None:
    frame = numbers(*np.random.default_rng(0).normal(50, 7, 200))
    columns = Columns.from_frame(frame)
    x = columns.encode(frame)
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert columns.log_scales.item() == pytest.approx(math.log(frame["v"].std(ddof=0)))
    in_other_units = Columns.from_frame(1000 * frame)
    torch.testing.assert_close(in_other_units.encode(1000 * frame), x)
    assert (in_other_units.log_scales - columns.log_scales).item() == pytest.approx(math.log(1000), rel=1e-6)
    assert Columns({"v": Real(resolution=0.1, scale=7.0)}).log_scales.item() == 0


@pytest.mark.parametrize("unit", [1e-290, 1e-12, 1.0, 1e12, 1e290])
def test_huge_and_tiny_numbers_are_as_good_as_others(unit: float) -> None:
    values = unit * np.random.default_rng(0).normal(3, 1, 50)
    frame = numbers(*values)
    columns = Columns.from_frame(frame)
    x = columns.encode(frame)
    torch.testing.assert_close(x.std(correction=0), torch.tensor(1.0))
    np.testing.assert_allclose(columns.decode(x)["v"], values, rtol=1e-5, atol=1e-6 * unit)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_frame_comes_back_as_it_was(library: str) -> None:
    frame: Any = people()
    frame = {"pandas": lambda f: f, "polars": pl.from_pandas, "pyarrow": pa.Table.from_pandas}[library](frame)
    columns = Columns.from_frame(frame)
    x = columns.encode(frame)
    assert x.dtype == torch.float32
    assert x.isnan().sum().item() == 5
    back = columns.decode(x, like=frame)
    assert type(back) is type(frame)
    torch.testing.assert_close(columns.encode(back), x, equal_nan=True, rtol=1e-5, atol=1e-6)
    if library == "pandas":
        exact = [name for name in frame if name != "pay"]
        pd.testing.assert_frame_equal(back[exact], frame[exact])
    elif library == "polars":
        assert back.schema == frame.schema
        assert back.drop("pay").equals(frame.drop("pay"))
    else:
        assert back.schema.types == frame.schema.types
        assert back.drop(["pay"]).to_pylist() == frame.drop(["pay"]).to_pylist()
    assert (
        torch.equal(x.nan_to_num(9), Columns.from_frame(people()).encode(people()).nan_to_num(9)) or library != "pandas"
    )


def test_plain_values_say_all() -> None:
    columns = Columns.from_frame(people())
    stored = json.loads(json.dumps(columns.to_json()))
    assert Columns.from_json(stored) == columns
    assert Columns.from_json(stored).describe() == columns.describe()
    assert Columns({0: Real(), "a": Binary()}).names == [0, "a"]


def test_columns_are_matched_by_name() -> None:
    frame = people()
    columns = Columns.from_frame(frame)
    torch.testing.assert_close(columns.encode(frame[frame.columns[::-1]]), columns.encode(frame), equal_nan=True)


def test_what_does_not_fit_is_refused_by_name() -> None:
    frame = people(holes=False)
    columns = Columns.from_frame(frame)
    twice = pd.concat([frame, frame[["age"]]], axis=1)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (frame.drop(columns="age"), ValueError, "lacks a column: 'age'"),
        (frame.assign(id=1), ValueError, "not known: 'id'"),
        (frame.rename(columns={"age": "Age"}), ValueError, "not known: 'Age', and lacks 'age'"),
        (twice, ValueError, "several columns of one name: 'age'"),
        (frame.assign(sex="d"), ValueError, "column 'sex' holds a category that is unknown: 'd'; known are 'f', 'm'"),
        (frame.assign(sex=1), ValueError, "column 'sex' holds a category that is unknown: 1"),
        (frame.assign(const=2.5), ValueError, "column 'const' .* unknown: 2.5"),
        (frame.assign(age="old"), TypeError, "column 'age' should hold numbers, but holds texts .'old'"),
        (frame.assign(pay=True), TypeError, "column 'pay' should hold numbers, but holds truth values"),
        (frame.assign(age=16), ValueError, "column 'age': 16 in row 0 is outside"),
        (frame.assign(age=20.5), ValueError, "column 'age': 20.5 in row 0 is no whole number"),
        (frame.assign(pay=np.inf), ValueError, "column 'pay': inf in row 0 is infinite"),
        (frame.assign(pay=1e300), ValueError, "column 'pay': 1e.300 in row 0 is more than 1e.12 standard deviations"),
        (frame.assign(ph=3.001), ValueError, "column 'ph': 3.001 in row 0 is no multiple of the resolution 0.01"),
        (frame.assign(pay=pd.Timestamp("2020-01-01")), TypeError, "column 'pay' is of the type Datetime"),
        ([1, 2], TypeError, "expected a frame of pandas, polars or pyarrow, got list"),
        (frame["age"], TypeError, "expected a frame"),
    ]
    for bad, error, message in wrong:
        with pytest.raises(error, match=message):
            columns.encode(bad)


def test_what_nothing_can_be_decided_from_is_refused_by_name() -> None:
    dates = pd.DataFrame({"v": pd.date_range("2020-01-01", periods=3)})
    wrong: list[tuple[pd.DataFrame, type[Exception], str]] = [
        (numbers(), ValueError, "no rows"),
        (pd.DataFrame(index=[1]), ValueError, "no columns"),
        (numbers(None, None), ValueError, "'v' has no value in any row"),
        (numbers(math.nan, math.nan), ValueError, "'v' has no value in any row"),
        (numbers(1.0, math.inf), ValueError, "'v': inf in row 1 is infinite"),
        (numbers("a", 1, "b"), ValueError, "'v' mixes texts and numbers"),
        (numbers([1], [2]), TypeError, "'v'"),
        (numbers(*map(str, range(50))), ValueError, "column 'v' has numbers that are written as texts"),
        (dates, TypeError, "Datetime"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "one name: 'a'"),
    ]
    for frame, error, message in wrong:
        with pytest.raises(error, match=message):
            Columns.from_frame(frame)
    with pytest.raises(ValueError, match=r"'agee', which the frame lacks; did you mean 'age'\?"):
        Columns.from_frame(people(), kinds={"agee": Real()})
    with pytest.raises(ValueError, match="there is no column 'sx'; did you mean 'sex'"):
        Columns.from_frame(people()).index("sx")


def test_a_column_that_is_all_missing_can_be_declared() -> None:
    frame = numbers(None, None).assign(w=[1.0, 2.0])
    columns = Columns.from_frame(frame, kinds={"v": Real(), "w": Real()})
    assert columns.encode(frame)[:, 0].isnan().all()
    assert columns["v"].scale == 1
    text = pd.DataFrame({"v": [None, None], "w": [1.0, 2.0]}, dtype=object).astype({"w": float})
    assert columns.encode(text)[:, 0].isnan().all()


def test_kinds_refuse_what_makes_no_sense() -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: Categorical(()), ValueError, "one category at least"),
        (lambda: Categorical("ab"), TypeError, "levels must be a sequence"),
        (lambda: Categorical(("a", "a")), ValueError, "'a' stands twice"),
        (lambda: Categorical((1, True)), ValueError, "stands twice"),
        (lambda: Categorical((None,)), TypeError, "NoneType None"),
        (lambda: Binary(("a",)), ValueError, "must be two"),
        (lambda: Integer(3, 2), ValueError, "got 3 and 2"),
        (lambda: Integer(0.5, 2), TypeError, "low must be an integer"),
        (lambda: Integer(0, 2**23), ValueError, r"Real\(resolution=1\)"),
        (lambda: Real(components=0), ValueError, "components must be at least 1, got 0"),
        (lambda: Real(family="normal"), ValueError, "'gaussian' or 'logistic' or 'laplace', got 'normal'"),
        (lambda: Real(resolution=0), ValueError, "resolution must be positive"),
        (lambda: Real(min_scale=0), ValueError, "min_scale must be positive"),
        (lambda: Real(scale=math.inf), ValueError, "scale must be positive and finite"),
        (lambda: Real(location=math.nan), ValueError, "location must be finite"),
        (lambda: Columns({}), ValueError, "one column at least"),
        (lambda: Columns([Real()]), TypeError, "mapping"),
        (lambda: Columns({"a": "real"}), TypeError, "column 'a' must be Binary"),
        (lambda: Columns({1.5: Real()}), TypeError, "names must be texts or integers"),
        (lambda: Columns.from_json([{"name": "a", "kind": "complex"}]), ValueError, "got 'complex'"),
        (lambda: Columns({"a": Real()}).decode(torch.zeros(2, 2)), ValueError, r"x must be \[B, 1\], got \[2, 2\]"),
    ]
    for make, error, message in wrong:
        with pytest.raises(error, match=message):
            make()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "narwhals.stable.v2", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyar\[tables\]'"):
        Columns.from_frame(numbers(1.0, 2.5))
