"""The command line for tables: a file in, a trained run, scored, filled and synthetic files out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image

import pyar
from pyar.cli import main
from pyar.cli.tables import _given
from pyar.data import DataError, DataNotice, load_table
from pyar.table_plots import dependence, save_surprise, save_table_samples
from pyar.tables import Binary, Categorical, Integer, Real, RepeatedValues


def people(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    sex = generator.choice(["female", "male"], rows)
    frame = pd.DataFrame(
        {
            "id": 1000 + np.arange(rows),
            "sex": sex,
            "age": generator.integers(18, 80, rows),
            "height": np.where(sex == "male", 1.78, 1.65) + 0.07 * generator.normal(size=rows),
            "zip": generator.choice([1010, 2020, 3030], rows),
        }
    )
    hidden = generator.random(frame.shape) < 0.1
    hidden[:, 0] = False
    return frame.mask(hidden)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    people().to_csv(folder / "people.csv", index=False)
    people(40, seed=1).sample(frac=1, axis=1, random_state=0).to_csv(folder / "new.csv", index=False)
    options = ["--drop", "id", "--kind", "zip=categorical", "--kind", "age=integer:0..120", "--hidden-sizes", "16"]
    run = folder / "run"
    assert main(["train", "table", "--data", str(folder / "people.csv"), "--out", str(run), "--max-steps", "60",
                 "--no-progress", *options]) == 0  # fmt: skip
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([*map(str, arguments), "--no-progress"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_training_decides_and_stores_the_columns(folder: Path) -> None:
    model = pyar.load(folder / "run")
    assert isinstance(model, pyar.TableNADE)
    assert dict(model.columns) == {
        "sex": Binary(("female", "male")),
        "age": model.columns["age"],
        "height": model.columns["height"],
        "zip": Categorical((1010, 2020, 3030)),
    }
    assert (model.columns["age"].low, model.columns["age"].high) == (0, 120)
    assert isinstance(model.columns["height"], Real)
    result = json.loads((folder / "run" / "result.json").read_text())
    difference = result["test"]["nll_standardised_nats"] - result["test"]["nll_nats"]
    assert difference == pytest.approx(-np.log(model.columns["height"].scale) * 0.9, rel=0.15)  # a tenth is missing
    assert image.imread(folder / "run" / "samples.png").ndim == 3


def test_scores_are_the_models(folder: Path, capsys) -> None:
    code, out, _ = run(capsys, "score", folder / "run", "--data", folder / "new.csv", "--out", folder / "scored.csv",
                       "--picture", folder / "surprise.png", "--orders", 3)  # fmt: skip
    assert code == 0
    assert "40 rows, mean log-density" in out
    scored, new = pd.read_csv(folder / "scored.csv"), pd.read_csv(folder / "new.csv")
    pd.testing.assert_frame_equal(scored[list(new)], new)
    model = pyar.load(folder / "run")
    x = model.columns.encode(new.drop(columns="id"))
    np.testing.assert_allclose(scored["log_prob"], model.log_prob(x, orders=3).detach(), rtol=1e-4, atol=1e-4)
    surprise = model.surprise(x).detach()
    np.testing.assert_allclose(scored["surprise of height"], surprise[:, 2], rtol=1e-4, atol=1e-4)
    assert image.imread(folder / "surprise.png").ndim == 3
    code, out, _ = run(capsys, "score", folder / "run", "--data", folder / "new.csv", "--json")
    told = json.loads(out)
    assert told["rows"] == 40
    assert [row["row"] for row in told["least_probable"]] == scored["log_prob"].argsort()[:5].tolist()


def test_imputing_keeps_what_is_there(folder: Path, capsys) -> None:
    code, out, _ = run(capsys, "impute", folder / "run", "--data", folder / "new.csv", "--out", folder / "full.csv")
    assert code == 0
    new, full = pd.read_csv(folder / "new.csv"), pd.read_csv(folder / "full.csv")
    assert f"{int(new.isna().sum().sum())} missing values of 40 rows" in out
    assert list(full) == list(new)
    assert not full.isna().any().any()
    assert full["age"].dtype == np.int64
    for name in new:
        there = new[name].notna()
        assert (full.loc[there, name] == new.loc[there, name]).all()
    before = (folder / "full.csv").read_bytes()
    run(capsys, "impute", folder / "run", "--data", folder / "new.csv", "--out", folder / "full.csv")
    assert (folder / "full.csv").read_bytes() == before
    code, _, _ = run(
        capsys, "impute", folder / "run", "--data", folder / "new.csv", "--out", folder / "m.parquet", "-n", 2
    )
    assert code == 0
    assert not pd.read_parquet(folder / "m-0.parquet").equals(pd.read_parquet(folder / "m-1.parquet"))


def test_samples_with_given_values(folder: Path, capsys) -> None:
    code, out, _ = run(capsys, "sample", folder / "run", "-n", 30, "--out", folder / "s.csv", "--out", folder / "s.png",
                       "--given", "age=40, sex=female", "--chunk-size", 7)  # fmt: skip
    assert code == 0
    assert "30 rows in" in out
    drawn = pd.read_csv(folder / "s.csv")
    assert list(drawn) == ["sex", "age", "height", "zip"]
    assert (drawn["age"] == 40).all()
    assert (drawn["sex"] == "female").all()
    assert set(drawn["zip"]) <= {1010, 2020, 3030}
    run(capsys, "sample", folder / "run", "-n", 30, "--out", folder / "t.csv", "--given", "age=40,sex=female")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "t.csv"), drawn)


def test_evaluating_and_telling(folder: Path, capsys) -> None:
    code, out, _ = run(capsys, "evaluate", folder / "run", "--orders", "1,3", "--json")
    assert code == 0
    curve = json.loads(out)["curve"]
    assert [point["orders"] for point in curve] == [1, 3]
    assert curve[0]["preparation"] == "1 density with scales of at least 0.01 sd, 3 probabilities"
    assert main(["info", str(folder / "run")]) == 0
    assert "binary ('female', 'male')" in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(folder: Path, capsys) -> None:
    new = pd.read_csv(folder / "new.csv")
    new.drop(columns="age").to_csv(folder / "less.csv", index=False)
    new.assign(sex="x").to_csv(folder / "other.csv", index=False)
    trained, table = folder / "run", folder / "new.csv"
    for arguments, message in [
        (["score", trained, "--data", folder / "less.csv"], "less.csv: the frame lacks a column: 'age'"),
        (["score", trained, "--data", folder / "other.csv"], "column 'sex' holds a category that is unknown: 'x'"),
        (["score", trained, "--data", "nothing.csv"], "no file 'nothing.csv'"),
        (["score", trained, "--data", table, "--out", "a.npz"], "should end in .csv or .parquet"),
        (["impute", trained, "--data", table, "--out", folder / "no" / "a.csv"], "there is no folder"),
        (["sample", trained, "--given", "agee=4"], "no column 'agee'; did you mean 'age'?"),
        (["sample", trained, "--given", "age"], 'like "age=40,sex=female"'),
        (["sample", trained, "--given", "age=old"], "holds numbers, 'old' is none"),
        (["sample", trained, "--given", "sex=x"], "unknown: 'x'"),
        (["sample", trained, "--given", "age=40,age=41"], "'age' stands twice"),
        (["sample", trained, "--given", "age=nan"], "holds numbers, 'nan' is none"),
        (["score", trained, "--data", table, "--picture", "a.jpg"], "--picture a.jpg: the name should end in .png"),
        (["sample", trained, "--temperature", "0.5", "--out", folder / "a.csv"], "temperature must be 1"),
        (["evaluate", trained, "--data", table], "pyar score"),
        (["complete", trained], "pyar impute"),
        (["train", "table"], "say which table"),
        (["train", "table", "--data", "digits"], "digits is a data set of states; a table is a file"),
        (["train", "rnade"], "say which table"),
        (["train", "rnade", "--data", table], "column 'sex' should hold numbers, but holds texts"),
        (["train", "rnade", "--data", table, "--drop", "sex,id"], "missing values, the first in row"),
        (["train", "rnade", "--data", table, "--min-scale", "0"], "min_scale must be positive"),
        (["train", "table", "--data", table, "--levels", "4"], "--levels is for states"),
        (["train", "table", "--data", table, "--drop", "nope"], "no column 'nope' to leave out"),
        (["train", "table", "--data", table, "--drop", "id,sex,age,height,zip"], "no columns that are not left out"),
        (["train", "table", "--data", folder], "is a folder; a table is one file"),
        (["train", "table", "--data", table, "--kind", "age=complex"], "got 'complex'"),
        (["train", "table", "--data", table, "--kind", "agee=real"], "did you mean 'age'"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, ""), arguments
        assert message in err
        assert err.strip().count("\n") == 0


def test_options_of_columns_are_those_of_models_of_tables(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "nade", "--drop", "a"])
    assert "--drop is not an option of nade" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "pixel", "--data", "a.csv"])  # two begin so
    assert "invalid choice: 'pixel'" in capsys.readouterr().err


def test_files_that_are_tables(tmp_path: Path) -> None:
    frame = people(50).drop(columns="id").dropna()
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";", decimal=",")
    frame.to_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", **{name: frame[name].to_numpy(dtype=None if name != "sex" else str) for name in frame})
    datas = [load_table(tmp_path / f"a.{suffix}") for suffix in ("csv", "parquet", "npz")]
    for data in datas:
        assert data.columns.names == list(frame)
        assert isinstance(data.columns["age"], Integer)
        torch.testing.assert_close(data.train, datas[0].train)
        assert abs(data.train[:, 2].mean().item()) < 1e-5  # standardised with the train split
    for shapes in ({"a": (20, 2), "b": 20}, {"a": 3, "b": 4}, {"a": ()}, {"a": (20, 2), "b": (20, 2)}):
        np.savez(tmp_path / "b.npz", **{name: np.zeros(shape) for name, shape in shapes.items()})
        with pytest.raises(DataError, match=r"an array \[N\] for each column"):
            load_table(tmp_path / "b.npz")
    (tmp_path / "c.txt").write_text("1")
    with pytest.raises(DataError, match="tables are read from"):
        load_table(tmp_path / "c.txt")


def test_one_array_of_all_columns_and_arrays_that_are_splits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x_test=x[:10], x_train=x[10:40], x_valid=x[40:])
    data = load_table(tmp_path / "a.npy")
    assert data.columns.names == ["0", "1"]
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [40, 5, 5]
    with pytest.warns(DataNotice, match="'split' says which split"):
        data = load_table(tmp_path / "b.npz")
    assert data.columns.names == ["0", "1"]
    assert data.columns["0"].scale == pytest.approx(x[10:40, 0].std())
    np.testing.assert_allclose(data.columns.decode(data.test)["1"], x[:10, 1], rtol=1e-5, atol=1e-6)


def test_a_column_says_the_splits(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(40) / 8, "set": ["train"] * 20 + ["dev"] * 5 + ["Test"] * 15})
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(DataNotice, match="'set' says which split"):
        data = load_table(tmp_path / "a.csv")
    assert data.columns.names == ["a"]
    first = [data.columns.decode(data.split(split))["a"].iloc[0] for split in ("train", "valid", "test")]
    assert first == pytest.approx([0, 20 / 8, 25 / 8], abs=1e-6)
    frame.replace({"set": {"dev": "train"}}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.warns(DataNotice):
        data = load_table(tmp_path / "b.csv")  # valid is a tenth of train
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [23, 2, 15]
    frame.assign(set=["red", "blue"] * 20).to_csv(tmp_path / "c.csv", index=False)
    assert load_table(tmp_path / "c.csv").columns["set"] == Binary(("blue", "red"))


def test_a_column_that_numbers_the_rows_is_left_out(folder: Path, tmp_path: Path, capsys) -> None:
    people(60).to_csv(tmp_path / "a.csv")  # with pandas' index
    with pytest.warns(DataNotice, match="the first column numbers the rows"):
        data = load_table(tmp_path / "a.csv")
    assert data.columns.names == ["id", "sex", "age", "height", "zip"]
    code, _, _ = run(capsys, "score", folder / "run", "--data", tmp_path / "a.csv", "--out", tmp_path / "b.csv")
    assert code == 0
    assert (pd.read_csv(tmp_path / "b.csv").iloc[:, 0] == np.arange(60)).all()  # but comes out as it was
    people(60).assign(id=np.arange(60)[::-1]).rename(columns={"id": ""}).to_csv(tmp_path / "c.csv", index=False)
    assert "" in load_table(tmp_path / "c.csv").columns  # numbers, but not the rows'


def test_a_table_of_single_values_is_certain(tmp_path: Path, capsys) -> None:
    pd.DataFrame({"a": [1] * 20, "b": ["x"] * 20}).to_csv(tmp_path / "a.csv", index=False)
    code, out, err = run(capsys, "train", "table", "--data", tmp_path / "a.csv", "--out", tmp_path / "run", "--json",
                         "--max-steps", 4, "--samples", 0)  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["test"]["nll_nats"] == 0


def test_columns_that_are_pandas_index_are_columns(tmp_path: Path) -> None:
    people(60).set_index("sex").to_parquet(tmp_path / "a.parquet")
    assert load_table(tmp_path / "a.parquet").columns.names == ["sex", "id", "age", "height", "zip"]


@pytest.mark.parametrize("decimal", [".", ","])
def test_semicolons_with_either_decimal_sign(tmp_path: Path, decimal: str) -> None:
    frame = people(50).drop(columns="id")
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";", decimal=decimal)
    data = load_table(tmp_path / "a.csv")
    assert data.columns["height"].scale == pytest.approx(frame["height"].std(), rel=0.3)


def test_given_values_as_people_write_them(tmp_path: Path) -> None:
    columns = pyar.tables.Columns(
        {"yes": Binary(), "size, cm": Real(), "zip": Categorical((1010, 2020)), "word": Categorical(("1", "a, b"))}
    )
    for text, expected in [
        ("yes=true", [1, None, None, None]),
        ("yes=False", [0, None, None, None]),
        ("yes=1,zip=2020.0", [1, None, 1, None]),
        ('"size, cm=3.5", word=1', [None, 3.5, None, 0]),
        ('"word=a, b"', [None, None, None, 1]),
    ]:
        encoded = _given(text, columns)
        torch.testing.assert_close(encoded, torch.tensor([torch.nan if e is None else float(e) for e in expected]),
                                   equal_nan=True)  # fmt: skip


def test_imputing_a_column_that_has_no_value(folder: Path, tmp_path: Path, capsys) -> None:
    """Its type in the new file says nothing: in csv and pandas it is that of missing numbers."""
    people(20).assign(sex=None, age=None).to_csv(tmp_path / "a.csv", index=False)
    code, _, err = run(capsys, "impute", folder / "run", "--data", tmp_path / "a.csv", "--out", tmp_path / "b.csv")
    assert code == 0, err
    full = pd.read_csv(tmp_path / "b.csv")
    assert set(full["sex"]) == {"female", "male"}
    assert full["age"].between(0, 120).all()


# --- Real vectors: RNADE ---


@pytest.fixture(scope="module")
def reals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an RNADE whose order is reversed, on columns of very different units."""
    folder = tmp_path_factory.mktemp("reals")
    generator = np.random.default_rng(0)
    a = generator.normal(size=400)
    frame = pd.DataFrame({"a": 5 + 0.01 * a, "b": 1000 * a + 300 * generator.normal(size=400), "c": a**2})
    frame.to_csv(folder / "reals.csv", index=False)
    options = ["--order", "reverse", "--hidden-size", "8", "--num-components", "3", "--min-scale", "0.05"]
    assert main(["train", "rnade", "--data", str(folder / "reals.csv"), "--out", str(folder / "run"), "--max-steps",
                 "60", "--no-progress", *options]) == 0  # fmt: skip
    return folder


def test_real_vectors_are_standardised_and_told_in_both_units(reals: Path, capsys) -> None:
    result = json.loads((reals / "run" / "result.json").read_text())
    assert result["test"]["preparation"] == "3 densities with scales of at least 0.05 sd"
    data = load_table(reals / "reals.csv", every=Real(min_scale=0.05))
    jacobian = sum(np.log(kind.scale) for kind in data.columns.values())
    assert result["test"]["nll_nats"] - result["test"]["nll_standardised_nats"] == pytest.approx(jacobian, abs=1e-4)
    with torch.no_grad():
        nll = -pyar.load(reals / "run").log_prob(data.test).mean().item()
    assert result["test"]["nll_standardised_nats"] == pytest.approx(nll, abs=1e-4)
    assert image.imread(reals / "run" / "samples.png").ndim == 3
    code, out, _ = run(capsys, "evaluate", reals / "run", "--json")
    assert (code, json.loads(out)["nll_nats"]) == (0, pytest.approx(result["test"]["nll_nats"], abs=1e-5))
    assert main(["info", str(reals / "run")]) == 0
    assert "at least 0.05 of" in capsys.readouterr().out


def test_scores_of_real_vectors(reals: Path, capsys) -> None:
    new = pd.read_csv(reals / "reals.csv").head(20)[["c", "b", "a"]]
    new.to_csv(reals / "new.csv", index=False)
    code, _, _ = run(capsys, "score", reals / "run", "--data", reals / "new.csv", "--out", reals / "scored.csv",
                     "--picture", reals / "s.png")  # fmt: skip
    assert code == 0
    scored = pd.read_csv(reals / "scored.csv")
    columns = load_table(reals / "reals.csv", every=Real(min_scale=0.05)).columns
    with torch.no_grad():
        log_prob = pyar.load(reals / "run").log_prob(columns.encode(new)).double()
    np.testing.assert_allclose(scored["log_prob"], log_prob - columns.log_scales.sum(), rtol=1e-4, atol=1e-4)
    surprise = scored[[f"surprise of {name}" for name in "abc"]].sum(axis=1)
    np.testing.assert_allclose(surprise, -scored["log_prob"], rtol=1e-4, atol=1e-4)
    code, out, _ = run(capsys, "score", reals / "run", "--data", reals / "new.csv", "--json")
    assert json.loads(out)["mean_log_prob_nats"] == pytest.approx(scored["log_prob"].mean(), abs=1e-4)


def test_samples_of_real_vectors(reals: Path, capsys) -> None:
    code, out, _ = run(capsys, "sample", reals / "run", "-n", 200, "--out", reals / "s.csv", "--out", reals / "s.png",
                       "--given", "c=0.25", "--json")  # fmt: skip
    assert code == 0
    drawn = pd.read_csv(reals / "s.csv")
    np.testing.assert_allclose(drawn["c"], 0.25, rtol=1e-5)
    assert abs(drawn["a"].mean() - 5) < 0.01
    assert drawn["b"].std() > 100
    model, columns = pyar.load(reals / "run"), load_table(reals / "reals.csv", every=Real(min_scale=0.05)).columns
    with torch.no_grad():
        each = model.conditional_log_prob(columns.encode(drawn)) - columns.log_scales
    assert json.loads(out)["mean_log_prob_nats"] == pytest.approx(each[:, :2].sum(1).mean().item(), abs=1e-3)


def test_what_real_vectors_are_not_asked(reals: Path, capsys) -> None:
    trained, table = reals / "run", reals / "reals.csv"
    pd.read_csv(table).mask(lambda frame: frame > 1000).to_csv(reals / "holes.csv", index=False)
    pyar.checkpoint.save_model(pyar.RNADE(2), reals / "bare.safetensors")
    for arguments, message in [
        (["impute", trained, "--data", table, "--out", reals / "x.csv"], "fills no holes"),
        (["score", trained, "--data", reals / "holes.csv"], "column 'b' has"),
        (["score", trained, "--data", table, "--orders", 2], "which has one order"),
        (["score", reals / "bare.safetensors", "--data", table], "does not say what its columns are"),
        (["evaluate", trained, "--orders", "2"], "which has one order"),
        (["sample", trained, "--given", "a=5", "--out", reals / "x.csv"], "its first columns alone, here 'c'"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, ""), arguments
        assert message in err


def test_repeated_values_of_real_vectors_are_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "b": np.arange(60) // 2})
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(RepeatedValues, match="values of 'b' repeat"):
        load_table(tmp_path / "a.csv", every=Real())


def test_dependence_is_that_of_normal_variables() -> None:
    generator = np.random.default_rng(0)
    a, b, c = generator.normal(size=(3, 20_000))
    matrix = dependence([a, 0.8 * a + 0.6 * b, c, (a > 0).astype(float)])
    assert matrix[0, 1] == pytest.approx(0.8, abs=0.05)
    assert matrix[0, 2] < 0.05
    assert matrix[0, 3] > 0.6
    assert (matrix == matrix.T).all()
    a[::2] = np.nan
    assert dependence([a, c])[0, 1] < 0.08


def test_pictures_of_hard_columns(tmp_path: Path) -> None:
    """One value, all missing, many levels, names that are no words."""
    columns = pyar.tables.Columns(
        {"$a_b$": Categorical((1,)), 3: Real(), "many": Categorical(tuple(map(str, range(40)))), "n": Integer(0, 3)}
    )
    x = torch.stack([torch.zeros(20), torch.full((20,), torch.nan), torch.arange(20.0), torch.zeros(20)], dim=1)
    save_table_samples(x, x, columns, tmp_path / "a.png")
    save_surprise(x, x[:, 2], columns, tmp_path / "b.png")
    assert image.imread(tmp_path / "a.png").std() > 0.01
    assert image.imread(tmp_path / "b.png").std() > 0.01
