"""Arrays by name and value: which are the splits, which the labels, what becomes a state, and what is refused."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pyar.data import DataError, DataNotice, Dataset, load_dataset
from pyar.data.names import by_split, is_split, looks_like_split, meaning

RNG = np.random.default_rng(0)
BINARY = RNG.integers(0, 2, (30, 4))
LABELS = np.arange(30) % 10
OBJECTS = np.array([{}, [1]], dtype=object)


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("PYAR_DATA", raising=False)


def load(tmp_path, array=None, *, options=None, **arrays) -> Dataset:
    """The data set of one array (.npy) or of several (.npz)."""
    if array is not None:
        np.save(tmp_path / "mine.npy", array)
        return load_dataset(tmp_path / "mine.npy", **(options or {}))
    np.savez(tmp_path / "mine.npz", **arrays)
    return load_dataset(tmp_path / "mine.npz", **(options or {}))


def rows_of(data: Dataset) -> list[list[int]]:
    return sorted(torch.cat([data.train, data.valid, data.test]).tolist())


def sizes(data: Dataset) -> list[int]:
    return [len(data.train), len(data.valid), len(data.test)]


# --- Names ---


@pytest.mark.parametrize("name", ["train", "TRAIN", "Train", "x_train", "X_train", "xtrain", "trainX", "train-images",
                                  "train_data", "training data", "train_set_x", "TrainImages", "XTrain"])  # fmt: skip
def test_names_of_train(name):
    assert is_split(name)
    assert meaning(name) == ("train", "examples", ())


@pytest.mark.parametrize("split", ["valid", "test"])
def test_names_of_the_other_splits(split):
    names = {
        "valid": ("val", "x_val", "validation", "dev", "valid_data", "X_DEV"),
        "test": ("test", "X_test", "test_images", "Testing", "testdata"),
    }
    for name in names[split]:
        assert meaning(name) == (split, "examples", ())


@pytest.mark.parametrize("name", ["y_train", "train_labels", "ytrain", "trainY", "TrainLabels", "train_target"])
def test_names_of_labels(name):
    assert meaning(name) == ("train", "labels", ())
    assert not is_split(name)


@pytest.mark.parametrize("name", ["latest", "contest", "trainable", "valuation", "x", "images", "developer", "energy"])
def test_names_that_say_no_split(name):
    assert meaning(name).split is None
    assert not looks_like_split(name)


@pytest.mark.parametrize("name", ["train_2", "test_mask", "x_train_small", "fold", "train_test"])
def test_names_that_must_not_be_left_out(name):
    assert looks_like_split(name)


def test_a_shared_word_is_the_name_of_the_data():
    assert by_split(["faces_train", "faces_test", "faces_train_labels"]) == (
        {"train": ["faces_train"], "test": ["faces_test"]},
        {"train": ["faces_train_labels"]},
    )
    assert by_split(["dev_board", "phone"]) == ({}, {})
    assert by_split(["train", "test_small"]) == ({"train": ["train"]}, {})


@pytest.mark.parametrize(
    "names",
    [
        ("train_data", "val_data", "test_data"),
        ("train_images", "validation_images", "test_images"),
        ("x_train", "x_dev", "x_test"),
        ("X_TRAIN", "X_Val", "X_test"),
        ("mine_train", "mine_valid", "mine_test"),
    ],
)
def test_splits_are_found_by_their_names(tmp_path, names):
    data = load(tmp_path, **{name: BINARY[:count] for name, count in zip(names, (9, 5, 3), strict=True)})
    assert sizes(data) == [9, 5, 3]


def test_labels_beside_the_splits(tmp_path):
    data = load(tmp_path, x_train=BINARY, y_train=LABELS, x_val=BINARY[:3], X_test=BINARY[:5], Y_test=LABELS[:5])
    assert {split: labels.tolist() for split, labels in data.labels.items()} == {
        "train": LABELS.tolist(),
        "test": LABELS[:5].tolist(),
    }
    assert data.labels["train"].dtype == torch.int64


def test_labels_follow_their_rows(tmp_path):
    x = np.arange(30).reshape(30, 1) + np.zeros((1, 4), int)
    for arrays in (
        {"x": x, "y": 3 * x[:, 0]},
        {"x_train": x, "y_train": 3 * x[:, 0], "x_test": x, "y_test": 3 * x[:, :1]},
    ):
        data = load(tmp_path, **arrays)
        for split in ("train", "valid", "test"):
            assert data.labels[split].tolist() == (3 * data.split(split)[:, 0].long()).tolist()


def test_labels_that_are_text_or_none(tmp_path):
    data = load(tmp_path, x=BINARY, labels=np.array(["ox", "ape", "elk"] * 10))
    assert data.class_names == ("ape", "elk", "ox")
    assert set(data.labels["train"].tolist()) == {0, 1, 2}
    for y in (RNG.random(30), np.eye(3)[LABELS % 3]):
        with pytest.warns(DataNotice, match="no whole numbers"):
            assert load(tmp_path, x=BINARY, y=y).labels == {}
    with pytest.raises(DataError, match="30 examples, but 7 labels"):
        load(tmp_path, x=BINARY, y=LABELS[:7])


@pytest.mark.filterwarnings("ignore::pyar.data.DataNotice")
@pytest.mark.parametrize(
    "arrays",
    [
        {"arr_0": BINARY},
        {"x": BINARY, "y": LABELS},
        {"spins": BINARY, "beta": np.float64(0.4)},
        {"anything": BINARY, "labels": LABELS},
        {"data": BINARY, "meta": OBJECTS},
    ],
)
def test_one_array_among_others(tmp_path, arrays):
    assert sizes(load(tmp_path, **arrays)) == [24, 3, 3]


def test_what_is_left_out_is_told(tmp_path):
    with pytest.warns(DataNotice, match="not used: energy, meta"):
        load(tmp_path, spins=2 * BINARY - 1, energy=RNG.random(30), meta=OBJECTS)
    with pytest.warns(DataNotice, match="not used: extra"):
        load(tmp_path, train=BINARY, test=BINARY, extra=BINARY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataNotice)
        load(tmp_path, x=BINARY, y=LABELS)


def test_objects_do_not_matter_unless_they_are_the_data(tmp_path):
    with pytest.warns(DataNotice, match="not used: info"):
        assert sizes(load(tmp_path, train=BINARY, valid=BINARY, test=BINARY, info=OBJECTS)) == [30, 30, 30]
    with pytest.raises(DataError, match="'x_train' holds pickled objects"):
        load(tmp_path, x_train=OBJECTS, x_test=BINARY)
    with pytest.raises(DataError, match="pickled objects"):
        load(tmp_path, only=OBJECTS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": BINARY, "test": BINARY, "train_2": BINARY}, "train split twice"),
        ({"train": BINARY, "test": BINARY, "test_small": BINARY}, "'test_small' would not be used"),
        ({"train": BINARY, "test": BINARY, "val_idx": LABELS}, "'val_idx' would not be used"),
        ({"x": BINARY, "train_mask": LABELS, "test_mask": LABELS}, "'x' would not be used"),
        ({"x": BINARY, "fold": LABELS}, "'fold' would not be used"),
        ({"x": BINARY, "train_more": OBJECTS}, "'train_more' would not be used"),
        ({"test": BINARY}, "holds only test"),
        ({"x_train": BINARY, "y_train": LABELS}, "holds only train"),
        ({"arr_0": BINARY, "arr_1": LABELS, "arr_2": BINARY, "arr_3": LABELS}, "holds 'arr_0', 'arr_1'"),
        ({"x": BINARY, "images": BINARY}, "holds 'x', 'images'"),
        ({}, "nothing"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, **arrays)


# --- Values ---


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "<i8", ">i4", "f2", "f4", ">f8", "u2", "u8"])
@pytest.mark.parametrize("binarize", [None, "threshold", "fixed"])
def test_binary_data_of_every_type(tmp_path, dtype, binarize):
    data = load(tmp_path, BINARY.astype(dtype), options={"binarize": binarize})
    assert (data.num_states, data.preparation) == (2, "2 states as stored")
    assert rows_of(data) == sorted(BINARY.tolist())


@pytest.mark.parametrize("shape", [(30, 2, 2), (30, 1, 2, 2), (30, 2, 2, 1), (30, 4)])
def test_shapes_of_images(tmp_path, shape):
    data = load(tmp_path, BINARY.reshape(shape))
    assert data.image_shape == (2, 2)
    assert rows_of(data) == sorted(BINARY.tolist())


def test_fortran_order_and_views(tmp_path):
    x = RNG.integers(0, 5, (30, 3, 4))
    expected = sorted(x.reshape(30, 12).tolist())
    assert rows_of(load(tmp_path, np.asfortranarray(x))) == expected
    assert rows_of(load(tmp_path, np.swapaxes(np.swapaxes(x, 1, 2).copy(), 1, 2))) == expected


@pytest.mark.parametrize("dtype", ["i1", "i8", "f4"])
def test_spins(tmp_path, dtype):
    data = load(tmp_path, (2 * BINARY - 1).astype(dtype))
    assert (data.num_states, data.preparation) == (2, "spins −1 and +1 as the states 0 and 1")
    assert rows_of(data) == sorted(BINARY.tolist())


def test_spins_are_decided_on_all_splits_together(tmp_path):
    data = load(tmp_path, train=2 * BINARY - 1, valid=np.ones((3, 4)), test=-np.ones((2, 4)))
    assert (data.valid.min(), data.test.max()) == (1, 0)


def test_black_and_white_as_states(tmp_path):
    data = load(tmp_path, (255 * BINARY).astype(np.uint8))
    assert (data.num_states, data.preparation) == (2, "0 and 255 as the states 0 and 1")
    assert rows_of(data) == sorted(BINARY.tolist())
    assert load(tmp_path, (255 * BINARY).astype(np.uint8), options={"levels": 256}).num_states == 256


def test_states_with_gaps_stay_as_they_are_and_it_is_told(tmp_path):
    data = load(tmp_path, RNG.choice([0, 128, 255], (30, 4)).astype(np.uint8))
    assert (data.num_states, data.preparation) == (256, "256 states as stored, of which 3 occur")


def test_sixteen_bit_values(tmp_path):
    x = RNG.integers(0, 4096, (30, 4)).astype(np.uint16)
    x[0] = 4095
    with pytest.raises(DataError, match=r"0 … 255.*--levels K --white W"):
        load(tmp_path, x)
    with pytest.raises(DataError, match="--white 4095"):
        load(tmp_path, x, options={"levels": 4})
    assert rows_of(load(tmp_path, x, options={"levels": 4, "white": 4095})) == sorted((x // 1024).tolist())
    full = x * 16 + 15
    assert rows_of(load(tmp_path, full, options={"levels": 4})) == sorted((full // 16384).tolist())
    assert rows_of(load(tmp_path, x % 200)) == sorted((x % 200).tolist())  # small values of any type are states
    with pytest.raises(DataError, match="2 … 256"):
        load(tmp_path, full, options={"levels": 1000})


def test_missing_values_are_counted_and_placed(tmp_path):
    x = BINARY.astype(float)
    x[7, 2] = x[7, 3] = x[20, 2] = np.nan
    with pytest.raises(DataError) as caught:
        load(tmp_path, x)
    text = str(caught.value)
    assert "3 of 120 values, in 2 of 30 rows (the first is 7, counted from 0)" in text
    assert "column 2: 2, column 3: 1" in text
    with pytest.raises(DataError, match=r"mine\.npz, test: some are infinite: 1 of 120"):
        load(tmp_path, train=BINARY, test=np.where(np.arange(120).reshape(30, 4) == 5, np.inf, BINARY))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(30, dtype=[("a", "i4"), ("b", "i4")]), "the fields a, b"),
        (np.zeros((30, 4), complex), "complex"),
        (np.zeros((30, 4), "M8[s]"), "datetime64"),
        (np.full((30, 4), "red"), "text"),
        (np.zeros((30, 0)), "at least one column"),
        (np.zeros((30, 3, 4, 4)), r"a grey image .* is \[3, 4, 4\]; take one colour"),
        (np.zeros((30, 4, 4, 3)), "take one colour"),
        (np.zeros((3, 2, 2, 2, 2)), "a vector or a grey image"),
        (RNG.integers(-1, 2, (30, 4)), "-1 … 1; number them from 0"),
        (-np.ones((30, 4)), "number them from 0"),
        (np.full((30, 4), 12.5), r"intensities in \[0, 1\]"),
    ],
)
def test_values_that_are_refused(tmp_path, x, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, x)


def test_constant_wide_and_empty_are_read(tmp_path):
    assert load(tmp_path, np.ones((30, 4), int)).num_states == 2
    assert load(tmp_path, np.zeros((10, 50_000), np.uint8)).dim == 50_000
    assert sizes(load(tmp_path, train=BINARY, valid=BINARY[:0], test=BINARY[:0])) == [30, 0, 0]


# --- Files ---


def test_a_folder_of_arrays(tmp_path):
    for name, x in {"x_train": BINARY, "y_train": LABELS, "x_test": BINARY[:5]}.items():
        np.save(tmp_path / f"{name}.npy", x)
    (tmp_path / "notes.txt").write_text("")
    with pytest.warns(DataNotice, match=r"not read.*: notes\.txt"):
        data = load_dataset(tmp_path)
    assert sizes(data) == [27, 3, 5]
    assert set(data.labels) == {"train", "valid"}
    (tmp_path / "notes.txt").unlink()
    np.save(tmp_path / "x_train_2.npy", BINARY)
    with pytest.raises(DataError, match="train split twice"):
        load_dataset(tmp_path)


def test_a_file_for_each_example_is_refused_with_the_remedy(tmp_path):
    for index in range(8):
        np.save(tmp_path / f"{index}.npy", BINARY[index])
    with pytest.raises(DataError, match=r"'4' and 3 more;.*one example, save them as one array \(numpy\.stack\)"):
        load_dataset(tmp_path)


def test_safetensors(tmp_path):
    save_file({"train": BINARY, "test": BINARY[:5]}, tmp_path / "x.safetensors")
    assert sizes(load_dataset(tmp_path / "x.safetensors")) == [27, 3, 5]
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_dataset(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("x.pt", r"numpy\.save\('x\.npy', torch\.load\('x\.pt', weights_only=True\)"),
        ("x.PTH", r"torch\.load"),
        ("x.pkl", r"\.npy"),
        ("x.mat", r"scipy\.io\.loadmat\('x\.mat'\)"),
        ("x.h5", r"h5py\.File"),
        ("x.npy.gz", "unpack"),
        ("x.zip", "unpack"),
        ("x.xlsx", r"\.csv"),
        ("x.json", r"\.csv or \.parquet"),
        ("x.txt", r"ends in \.csv"),
        ("x.what", "nothing that is read"),
        ("x", "without a suffix"),
    ],
)
def test_other_files_are_refused_with_the_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataError, match=f"neither.*{remedy}"):
        load_dataset(tmp_path / name)


def test_suffixes_in_any_case_links_and_odd_names(tmp_path):
    np.save(tmp_path / "x.npy", BINARY)
    (tmp_path / "x.npy").rename(tmp_path / "MY DATA.NPY")
    assert load_dataset(tmp_path / "MY DATA.NPY").name == "MY DATA"
    (tmp_path / "link.npy").symlink_to(tmp_path / "MY DATA.NPY")
    assert load_dataset(tmp_path / "link.npy").name == "link"
    odd = os.fsencode(tmp_path) + b"/\xffx.npy"
    os.rename(tmp_path / "MY DATA.NPY", odd)
    assert load_dataset(os.fsdecode(odd)).name == "\ufffdx"
    with pytest.raises(DataError, match="link to nothing"):
        load_dataset(tmp_path / "link.npy")
    with pytest.raises(DataError, match="empty"):
        load_dataset("")


def test_the_home_directory_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", BINARY)
    assert load_dataset("~/data/x.npy").name == "x"
    assert load_dataset("x.npy", data_dir="~/data").name == "x"
    monkeypatch.setenv("PYAR_DATA", "~/data")
    assert load_dataset("x.npy").name == "x"


def test_options_for_images_are_refused_for_arrays(tmp_path):
    for options in ({"grey": True}, {"background": "white"}):
        with pytest.raises(DataError, match=f"--{next(iter(options))} is for images"):
            load(tmp_path, BINARY, options=options)
        with pytest.raises(DataError, match="is for images"):
            load_dataset("digits", **options)
