"""Tables: how text is laid out, which columns are dimensions, and what is refused."""

from __future__ import annotations

import gzip
import lzma
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pyar.data import DataError, DataNotice, load_dataset, load_rows
from pyar.data.tables import read_table

X = np.random.default_rng(0).integers(0, 3, (20, 5))
BODY = "".join(",".join(map(str, row)) + "\n" for row in X)
HEADER = "a,b,c,d,e\n"


def values(tmp_path, text: str | bytes, name: str = "x.csv") -> list:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(tmp_path / name).values.tolist()


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        HEADER + BODY,
        (HEADER + BODY).replace(",", ";"),
        (HEADER + BODY).replace(",", "\t"),
        BODY.replace(",", "|"),
        BODY.replace(",", " "),
        "  " + BODY.replace(",", "   ").replace("\n", "\n  "),
        (HEADER + BODY).replace(",", " , "),
        (HEADER + BODY).replace("\n", "\r\n"),
        BODY.replace("\n", "\r"),
        "\n\n" + HEADER + BODY + "\n\n",
        BODY.rstrip(),
        BODY.replace("\n", ",\n"),
        HEADER + BODY.replace("\n", ",\n"),
        "".join(",".join(f'"{v}"' for v in row) + "\n" for row in X),
        '"a, first","b;2",c,d,e\n' + BODY,
        "sep=;\n" + BODY.replace(",", ";"),
        "# made by hand\n" + BODY,
        "# a b c d e\n" + BODY.replace(",", " "),
        "\n".join(" ".join(f"{v:.18e}" for v in row) for row in X),
        b"\xef\xbb\xbf" + (HEADER + BODY).encode(),
        (HEADER + BODY).encode("utf-16"),
        ("é" + HEADER + BODY).encode("latin-1"),
        gzip.compress((HEADER + BODY).encode()),
        lzma.compress(BODY.encode()),
    ],
)
def test_layouts(tmp_path, text):
    assert values(tmp_path, text) == X.tolist()


@pytest.mark.parametrize("name", ["x.tsv", "x.csv.gz", "X.CSV", "x.tsv.xz"])
def test_names_of_tables(tmp_path, name):
    text = BODY.replace(",", "\t").encode()
    compress = {"gz": gzip.compress, "xz": lzma.compress}.get(name.rsplit(".", 1)[-1], bytes)
    (tmp_path / name).write_bytes(compress(text))
    assert load_dataset(tmp_path / name).name in ("x", "X")


@pytest.mark.parametrize("first", [0, 1])
def test_columns_that_are_numbered_are_no_row(tmp_path, first):
    header = ",".join(str(first + i) for i in range(5)) + "\n"
    with pytest.warns(DataNotice, match="taken for the columns' names"):
        assert values(tmp_path, header + BODY) == X.tolist()


def test_as_pandas_writes_them(tmp_path):
    for frame in (pd.DataFrame(X), pd.DataFrame(X, columns=list("abcde"))):
        frame.to_csv(tmp_path / "x.csv")
        with pytest.warns(DataNotice, match="the first column numbers the rows"):
            assert read_table(tmp_path / "x.csv").values.tolist() == X.tolist()
    pd.DataFrame(X).to_csv(tmp_path / "x.csv", header=False)
    with pytest.warns(DataNotice, match="numbers the rows"):
        assert read_table(tmp_path / "x.csv").values.tolist() == X.tolist()
    pd.DataFrame(X > 1).to_csv(tmp_path / "x.csv", header=False, index=False)
    assert read_table(tmp_path / "x.csv").values.tolist() == (X > 1).tolist()


def test_as_r_writes_them(tmp_path):
    text = '"a" "b"\n' + "".join(f'"row {i}" {i % 2} 1\n' for i in range(12))
    with pytest.warns(DataNotice, match="numbers the rows"):
        assert values(tmp_path, text) == [[i % 2, 1] for i in range(12)]


def test_a_column_of_identifiers_is_told(tmp_path):
    with pytest.warns(DataNotice, match="the column 'id' numbers the rows"):
        assert values(tmp_path, "id,a\n7,1\n9,0\n3,1\n") == [[1], [0], [1]]
    assert values(tmp_path, "row,a\n0,1\n0,0\n1,1\n") == [[0, 1], [0, 0], [1, 1]]  # not one for each row


def test_labels(tmp_path):
    (tmp_path / "x.csv").write_text("label," + HEADER[2:] + BODY)
    with pytest.warns(DataNotice, match="'label' is taken for labels"):
        data = load_dataset(tmp_path / "x.csv", image_shape=(2, 2))
    assert data.dim == 4
    rows = [torch.cat([data.labels[split][:, None], data.split(split)], dim=1) for split in ("train", "valid", "test")]
    assert sorted(torch.cat(rows).tolist()) == sorted(X.tolist())
    text = "a,class\n" + "".join(f"{i % 2},{'ox' if i % 2 else 'é #1'}\n" for i in range(20))
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.warns(DataNotice):
        data = load_dataset(tmp_path / "x.csv")
    assert data.class_names == ("ox", "é #1")
    assert data.labels["train"].tolist() == (1 - data.train[:, 0].long()).tolist()
    assert values(tmp_path, "x,y\n" + "0,1\n" * 3) == [[0, 1]] * 3  # coordinates


def test_labels_without_a_name_are_wondered_about(tmp_path):
    rows = np.zeros((12, 26), int)
    with pytest.warns(DataNotice, match="5×5 and one more"):
        values(tmp_path, "".join(",".join(map(str, row)) + "\n" for row in rows))


def test_many_columns(tmp_path):
    names = ",".join(f"gene {i}" for i in range(20_000)) + "\n"  # a line longer than a field of csv may be
    assert values(tmp_path, names + ("1,0," * 9_999 + "1,0\n") * 2) == [[1, 0] * 10_000] * 2


def test_a_column_of_splits(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,split\n" + "0,1,train\n" * 3 + "1,1,val\n" * 2 + "1,0,test\n")
    with pytest.warns(DataNotice, match="'split' says which split"):
        data = load_dataset(tmp_path / "x.csv")
    assert data.train.tolist() == [[0, 1]] * 3
    assert data.valid.tolist() == [[1, 1]] * 2
    assert data.test.tolist() == [[1, 0]]


def test_a_folder_of_tables(tmp_path):
    (tmp_path / "mine_train.csv").write_text("label," + HEADER[2:] + BODY)
    (tmp_path / "mine_test.csv").write_text("label," + HEADER[2:] + BODY[: 10 * 3])
    with pytest.warns(DataNotice):
        data = load_dataset(tmp_path)
    assert [len(data.train), len(data.valid), len(data.test), data.dim] == [18, 2, 3, 4]
    assert data.labels["test"].tolist() == X[:3, 0].tolist()


def test_decimal_commas_and_intensities(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n" + "0,5;1,0\n" * 12)
    assert load_dataset(tmp_path / "x.csv", levels=4).train[0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n0,1,0\n0,,1\n", r"missing.*1 of 6 values.*the first is 1.*column 'b': 1"),
        ("0,NA,0\n0,1,1\n", "missing.*the first is 0.*column 1: 1"),
        (",1,0\n0,1,1\n", "missing.*column 0: 1"),
        ("0,?\n0,1\n", "missing"),
        ("0,1\n1\n0,1\n", "missing"),
        ("a\nTrue\n\nFalse\nNA\n", "missing"),
        ("a,b\n0,red\n1,blue\n", r"column 'b' holds no numbers \('red', …\); number its values"),
        ("a,d\n0,2020-01-01\n", "column 'd' holds no numbers"),
        ("a,b\n0,1\n0,1,1\n", "line 3, saw 3"),
        ("0,1\n0,1,1\n", "line 2, saw 3"),
        ("a,b\n0,1,1,1\n", "names 2 columns, the first row has 4"),
        ("unknown,0,1\n1,0,1\n", "mixes text and numbers"),
        ("label,class,a\n0,1,1\n", "several columns of labels"),
        ("label,a\n0,1\n,1\n", "1 labels in the column 'label' are missing"),
        ("fold,a\n1,0\n2,1\n", "'fold' looks like a split, but holds 1, 2"),
        ("label\n0\n1\n", "no columns of values"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        (bytes(range(256)), "no text"),
        (b"PK\x03\x04", "zip archive"),
        (gzip.compress(BODY.encode())[:-9], "cannot be read"),
        (b"\x1f\x8bnothing", "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::pyar.data.DataNotice")
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        values(tmp_path, text)
    assert "x.csv" in str(caught.value)


def test_a_header_alone_has_no_rows(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c\n")
    with pytest.raises(DataError, match="0 examples are too few"):
        load_dataset(tmp_path / "x.csv")
    assert load_rows(tmp_path / "x.csv", dim=3, num_states=2).x.shape == (0, 3)


def test_the_model_decides_which_columns_are_dimensions(tmp_path):
    (tmp_path / "x.csv").write_text("0,1,0\n")
    assert load_rows(tmp_path / "x.csv", dim=3, num_states=2).x.tolist() == [[0, 1, 0]]
    with pytest.warns(DataNotice, match="the first column numbers the rows"):
        assert load_rows(tmp_path / "x.csv", dim=2, num_states=2).x.tolist() == [[1, 0]]
    (tmp_path / "x.csv").write_text("label,a,b\n1,1,0\n")
    assert load_rows(tmp_path / "x.csv", dim=3, num_states=2).x.tolist() == [[1, 1, 0]]
    with pytest.warns(DataNotice, match="labels"):
        rows = load_rows(tmp_path / "x.csv", dim=2, num_states=2)
    assert (rows.x.tolist(), rows.labels.tolist()) == ([[1, 0]], [1])


# --- Parquet ---


def test_parquet(tmp_path):
    frame = pd.DataFrame(X.astype(np.int8), columns=list("abcde"))
    frame["a"] = frame["a"].astype("Int64")
    frame["b"] = (frame["b"] > 1).astype("boolean")
    frame["label"] = ["ox", "elk"] * 10
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.warns(DataNotice, match="'label' is taken for labels"):
        data = load_dataset(tmp_path / "x.parquet")
    expected = X.copy()
    expected[:, 1] = X[:, 1] > 1
    assert sorted(np.concatenate([data.train, data.valid, data.test]).tolist()) == sorted(expected.tolist())
    assert data.class_names == ("elk", "ox")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.array([0, None] * 6, dtype="Int64"), "missing.*6 of 24 values.*column 'a': 6"),
        (pd.Categorical(["x", "y"] * 6), "column 'a' holds no numbers"),
        ([[0, 1]] * 12, "column 'a' holds no numbers"),
        ([{"bytes": b"x"}] * 12, "column 'a' holds no numbers"),
    ],
)
def test_parquet_that_is_refused(tmp_path, column, message):
    pd.DataFrame({"a": column, "b": [0] * 12}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "x.parquet")


def test_damaged_parquet_and_a_missing_reader(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_dataset(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'pyar\[parquet\]'"):
        load_dataset(tmp_path / "x.parquet")
