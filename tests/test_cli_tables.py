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
from pyar.data import DataError, load_table
from pyar.table_plots import dependence, save_surprise, save_table_samples
from pyar.tables import Binary, Categorical, Integer, Real


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
        (["sample", trained, "--temperature", "0.5", "--out", folder / "a.csv"], "temperature must be 1"),
        (["evaluate", trained, "--data", table], "pyar score"),
        (["complete", trained], "pyar impute"),
        (["train", "table"], "say which table"),
        (["train", "rnade"], "trained in Python"),
        (["train", "table", "--data", table, "--levels", "4"], "--levels is for states"),
        (["train", "table", "--data", table, "--drop", "nope"], "no column 'nope' to leave out"),
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
    np.savez(tmp_path / "b.npz", a=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"an array \[N\] for each column"):
        load_table(tmp_path / "b.npz")
    (tmp_path / "c.txt").write_text("1")
    with pytest.raises(DataError, match="tables are read from"):
        load_table(tmp_path / "c.txt")


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
