"""Rows for a model that is there already: all of a file, in its order, as the model's own states."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pyar.data import DataError, Rows, load_dataset, load_rows

BINARY = np.random.default_rng(0).integers(0, 2, (30, 4))


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("PYAR_DATA", raising=False)


def load(tmp_path, array=None, *, dim: int = 4, num_states: int = 2, arrays=None, **options) -> Rows:
    if array is not None:
        np.save(tmp_path / "own.npy", array)
    else:
        np.savez(tmp_path / "own.npz", **arrays)
    name = "own.npy" if array is not None else "own.npz"
    return load_rows(tmp_path / name, dim=dim, num_states=num_states, **options)


@pytest.mark.parametrize("count", [0, 1, 2, 9, 30])
@pytest.mark.parametrize("dtype", ["u1", "?", "f4", ">i8"])
def test_every_row_in_the_files_order(tmp_path, count, dtype):
    rows = load(tmp_path, BINARY[:count].astype(dtype))
    assert rows.x.tolist() == BINARY[:count].tolist()
    assert (rows.name, rows.split, rows.num_states, rows.dim) == ("own", "all rows", 2, 4)


@pytest.mark.parametrize("value", [0, 1, 4])
def test_fewer_states_than_the_model_has(tmp_path, value):
    rows = load(tmp_path, np.full((3, 4), value), num_states=5)
    assert rows.x.tolist() == [[value] * 4] * 3
    assert (rows.num_states, rows.preparation) == (5, "5 states as stored, of which 1 occur")


@pytest.mark.parametrize("count", [1, 30])
def test_two_states_by_other_names(tmp_path, count):
    for stored in (2 * BINARY - 1, 255 * BINARY):
        assert load(tmp_path, stored[:count]).x.tolist() == BINARY[:count].tolist()
    # One of the two may be absent: the model says what there could be.
    assert load(tmp_path, -np.ones((2, 4))).x.tolist() == [[0] * 4] * 2
    assert load(tmp_path, np.full((2, 4), 255)).x.tolist() == [[1] * 4] * 2
    assert load(tmp_path, np.full((2, 4), 255), num_states=256).x.tolist() == [[255] * 4] * 2


def test_a_single_vector_and_images(tmp_path):
    assert load(tmp_path, BINARY[0]).x.tolist() == [BINARY[0].tolist()]
    assert load(tmp_path, BINARY.reshape(30, 1, 2, 2)).x.tolist() == BINARY.tolist()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (BINARY, {"dim": 5}, "the model is of 5 dimensions, own of 4"),
        (BINARY * 7, {"num_states": 5}, "reach 7, but the model has the states 0 … 4"),
        (BINARY * 300, {"num_states": 256}, "reach 300"),
        (-BINARY, {"num_states": 5}, "number them from 0"),
        (2 * BINARY - 1, {"num_states": 3}, "number them from 0"),
        (BINARY + 0.5, {}, r"0\.5 … 1\.5"),
        (BINARY / 2, {}, "--levels K or --binarize"),
        (np.where(np.arange(120).reshape(30, 4) == 9, np.nan, BINARY), {}, "missing.*the first is 2"),
        (BINARY, {"levels": 3}, "--levels 3 makes 3 states, but the model has 2"),
        (BINARY, {"binarize": "fixed", "num_states": 3}, "--binarize fixed makes 2 states, but the model has 3"),
        (BINARY.reshape(30, 1, 4), {"image_shape": (2, 2)}, "images of 2×2 .*, own holds images of 1×4"),
        (BINARY, {"split": "all"}, "no split 'all'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, x, options, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, x, **options)


def test_grey_values_become_the_models_levels_when_asked(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3, 4))
    x[0, 0] = 255
    assert load(tmp_path, x, num_states=4, levels=4).x.tolist() == (x // 64).tolist()
    assert load(tmp_path, x, binarize="threshold").x.tolist() == (x > 127).tolist()
    assert load(tmp_path, x / 255, num_states=4, levels=4).x.tolist() == (x // 64).tolist()


def test_splits_are_for_files_that_have_them_or_when_asked(tmp_path):
    arrays = {"train": BINARY, "valid": BINARY[:3], "test": BINARY[3:5]}
    assert load(tmp_path, arrays=arrays).x.tolist() == BINARY[3:5].tolist()
    rows = load(tmp_path, arrays=arrays, split="valid")
    assert (rows.split, rows.x.tolist()) == ("valid", BINARY[:3].tolist())
    assert load(tmp_path, arrays={"test": BINARY}).x.tolist() == BINARY.tolist()
    with pytest.raises(DataError, match="no test split; choose one by --split: train, valid"):
        load(tmp_path, arrays={"train": BINARY, "valid": BINARY})
    for split in ("train", "valid", "test"):
        x = np.arange(120).reshape(30, 4)
        part = load(tmp_path, x, num_states=120, split=split).x
        assert part.tolist() == load_dataset(tmp_path / "own.npy").split(split).tolist()


def test_labels_come_along(tmp_path):
    rows = load(tmp_path, arrays={"x": BINARY[:3], "y": np.array([7, 8, 9])})
    assert rows.labels.tolist() == [7, 8, 9]
    assert load(tmp_path, BINARY).labels is None


def test_images_become_the_models_levels(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 2, 4), dtype=np.uint8)
    for index, name in enumerate(("b.png", "c.png", "a.png")):
        Image.fromarray(grey[index]).save(tmp_path / name)
    rows = load_rows(tmp_path, dim=8, num_states=4)
    assert rows.x.tolist() == (grey[[2, 0, 1]].reshape(3, 8) // 64).tolist()  # in the order of the names
    assert (rows.files, rows.image_shape) == (("a.png", "b.png", "c.png"), (2, 4))
    one = load_rows(tmp_path / "c.png", dim=8, num_states=256)
    assert (one.x.tolist(), one.files) == ([grey[1].ravel().tolist()], ("c.png",))
    with pytest.raises(DataError, match="--binarize threshold"):
        load_rows(tmp_path, dim=8, num_states=2)
    assert load_rows(tmp_path, dim=8, num_states=2, binarize="threshold").x.max() == 1
    with pytest.raises(DataError, match="images of 4×2"):
        load_rows(tmp_path, dim=8, num_states=4, image_shape=(4, 2))


def test_black_and_white_images(tmp_path):
    Image.fromarray(BINARY[:2].astype(bool)).save(tmp_path / "a.png")
    assert load_rows(tmp_path, dim=8, num_states=2).x.tolist() == [BINARY[:2].ravel().tolist()]
    assert load_rows(tmp_path, dim=8, num_states=10).x.tolist() == [(9 * BINARY[:2]).ravel().tolist()]


def test_one_idx_file_is_that_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 2, 2), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "mine.idx"):
        (tmp_path / name).write_bytes(header + images.tobytes())
        rows = load_rows(tmp_path / name, dim=4, num_states=256)
        assert (rows.split, rows.x.tolist()) == ("all rows", images.reshape(12, 4).tolist())
    assert len(load_dataset(tmp_path / "train-images-idx3-ubyte").test) == 12  # the file beside it


def test_named_data_sets_give_a_split(tmp_path):
    rows = load_rows("digits", dim=64, num_states=17)
    assert (rows.split, rows.x.tolist()) == ("test", load_dataset("digits").test.tolist())
    assert rows.labels.tolist() == load_dataset("digits").labels["test"].tolist()
    assert load_rows("digits", dim=64, num_states=4, split="valid").preparation == "4 grey levels"
    binary = load_rows("digits", dim=64, num_states=2, binarize="threshold", split="train")
    assert binary.x.tolist() == load_dataset("digits", binarize="threshold").train.tolist()
    with pytest.raises(DataError, match="--binarize"):
        load_rows("digits", dim=64, num_states=2)
    with pytest.raises(DataError, match="63 dimensions"):
        load_rows("digits", dim=63, num_states=17)
