"""Data sets: formats, splits, quantisation, binarisation, download, and what is refused."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import pwd
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyar.data import DataError, Dataset, download, load_dataset
from pyar.data.dataset import bernoulli, permutation, prepare, quantise
from pyar.data.files import read_amat, read_idx


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("PYAR_DATA", raising=False)


def write_idx(path: Path, x: np.ndarray, compress: bool, kind: int = 8) -> bytes:
    content = bytes([0, 0, kind, x.ndim]) + b"".join(n.to_bytes(4, "big") for n in x.shape) + x.tobytes()
    content = gzip.compress(content, mtime=0) if compress else content
    path.write_bytes(content)
    return content


def idx_folder(folder: Path, compress: bool, num_train: int = 60, num_test: int = 10) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (num_train, 4, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (num_test, 4, 3), dtype=np.uint8)
    end = ".gz" if compress else ""
    write_idx(folder / f"train-images-idx3-ubyte{end}", train, compress)
    write_idx(folder / f"t10k-images-idx3-ubyte{end}", test, compress)
    return train, test


def write_amat(path: Path, x: np.ndarray) -> None:
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in x))


# --- digits ---


def test_digits_default():
    data = load_dataset("digits")
    assert (data.num_states, data.image_shape, data.dim) == (17, (8, 8), 64)
    assert [len(data.train), len(data.valid), len(data.test)] == [1439, 179, 179]
    assert int(data.train.max()) == 16
    # The splits are one fixed partition of scikit-learn's array.
    from sklearn.datasets import load_digits

    whole = load_digits().data.astype(np.uint8)
    together = torch.cat([data.train, data.valid, data.test]).numpy()
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole))
    assert load_dataset("digits").fingerprint() == data.fingerprint()


@pytest.mark.parametrize(("choice", "states"), [({"levels": 4}, 4), ({"binarize": "threshold"}, 2)])
def test_digits_prepared(choice, states):
    data = load_dataset("digits", **choice)
    assert data.num_states == states
    assert sorted(data.train.unique().tolist()) == list(range(states))


def test_digits_labels():
    from sklearn.datasets import load_digits

    whole = load_digits()
    known = dict(zip(map(bytes, whole.data.astype(np.uint8)), whole.target.tolist(), strict=True))
    data = load_dataset("digits")
    for split in ("train", "valid", "test"):
        assert data.labels[split].tolist() == [known[bytes(row)] for row in data.split(split).numpy()]


def test_the_choice_is_named():
    assert "4 grey levels" in load_dataset("digits", levels=4).describe()
    assert "threshold" in load_dataset("digits", binarize="threshold").describe()
    assert "drawn anew each epoch" in load_dataset("digits", binarize="dynamic").describe()


# --- IDX ---


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("where", ["", "mnist", "MNIST/raw"])
def test_mnist_from_idx_files(tmp_path, compress, where):
    train, test = idx_folder(tmp_path / where, compress)
    data = load_dataset("mnist", data_dir=tmp_path, levels=256)
    assert data.image_shape == (4, 3)
    assert np.array_equal(torch.cat([data.train, data.valid]).numpy(), train.reshape(60, 12))
    assert np.array_equal(data.test.numpy(), test.reshape(10, 12))
    assert (len(data.train), len(data.valid)) == (50, 10)


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
    idx_folder(tmp_path / "fashion-mnist", True)
    monkeypatch.setenv("PYAR_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").num_states == 10  # the default of grey images
    monkeypatch.setenv("PYAR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="PYAR_DATA"):
        load_dataset("fashion-mnist")


def test_a_folder_of_idx_files_by_path(tmp_path):
    idx_folder(tmp_path / "mine", False)
    assert load_dataset(str(tmp_path / "mine")).name == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b" + b"nothing", "damaged gzip"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab")[:-6], "damaged gzip"),
        (b"PK\x03\x04", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "0x0d"),
        (b"\0\0\x08\x03\0\0", "cut off"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "asks for"),
        (b"\0\0\x08\x01\0\0\0\x02abcd", "asks for"),
        (b"", "not an IDX file"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


NAMES_OF_IDX_FILES = {
    "as published": ("{}-images-idx3-ubyte", "t10k", "{}-labels-idx1-ubyte"),
    "with a dot": ("{}-images.idx3-ubyte", "t10k", "{}-labels.idx1-ubyte"),
    "test, not t10k": ("{}-images-idx3-ubyte", "test", "{}-labels-idx1-ubyte"),
    "EMNIST": ("emnist-letters-{}-images-idx3-ubyte.gz", "test", "emnist-letters-{}-labels-idx1-ubyte.gz"),
    "QMNIST": ("qmnist-{}-images-idx3-ubyte.gz", "test", "qmnist-{}-labels-idx2-int.gz"),
    "a folder for each": (
        "{0}-images-idx3-ubyte/{0}-images-idx3-ubyte",
        "t10k",
        "{0}-labels-idx1/{0}-labels-idx1-ubyte",
    ),
}


@pytest.mark.parametrize("where", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("names", NAMES_OF_IDX_FILES.values(), ids=NAMES_OF_IDX_FILES)
def test_idx_files_by_their_many_names(tmp_path, names, where):
    images_name, test, labels_name = names
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (n, 4, 3), dtype=np.uint8) for split, n in (("train", 60), (test, 10))}
    labels = {split: rng.integers(0, 10, len(x), dtype=np.uint8) for split, x in images.items()}
    for split, x in images.items():
        for name, values in ((images_name.format(split), x), (labels_name.format(split), labels[split])):
            path = tmp_path / where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if "idx2-int" in name:  # the class, then who wrote the digit
                values = np.stack([values, 50 + values], axis=1).astype(">i4")
            write_idx(path, values, name.endswith(".gz"), kind=0x0C if "int" in name else 0x08)
    (tmp_path / where / "mapping.txt").write_text("0 48")
    data = load_dataset(tmp_path, levels=256)
    assert np.array_equal(torch.cat([data.train, data.valid]).numpy(), images["train"].reshape(60, 12))
    assert np.array_equal(data.test.numpy(), images[test].reshape(10, 12))
    assert torch.cat([data.labels["train"], data.labels["valid"]]).tolist() == labels["train"].tolist()
    assert data.labels["test"].tolist() == labels[test].tolist()


def test_several_idx_data_sets_are_not_mixed_up(tmp_path):
    for folder in ("MNIST/raw", "FashionMNIST/raw"):
        idx_folder(tmp_path / folder, False)
    with pytest.raises(DataError, match=r"several data sets.*FashionMNIST.*MNIST"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "MNIST").name == "MNIST"
    assert load_dataset("fashion-mnist", data_dir=tmp_path).name == "fashion-mnist"
    write_idx(tmp_path / "letters-train-images-idx3-ubyte", np.zeros((60, 4, 3), np.uint8), False)
    write_idx(tmp_path / "letters-test-images-idx3-ubyte", np.zeros((5, 4, 3), np.uint8), False)
    write_idx(tmp_path / "digits-train-images-idx3-ubyte", np.zeros((60, 4, 3), np.uint8), False)
    with pytest.raises(DataError, match="several data sets"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "letters-train-images-idx3-ubyte").test) == 5  # by one of its files


def test_an_archive_beside_its_unpacked_file(tmp_path):
    for compress in (True, False):
        train, _ = idx_folder(tmp_path, compress)
    data = load_dataset(tmp_path, levels=256)
    assert np.array_equal(torch.cat([data.train, data.valid]).numpy(), train.reshape(60, 12))


def test_idx_files_that_do_not_fit_are_refused(tmp_path):
    idx_folder(tmp_path, False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(7, np.uint8), False)
    with pytest.raises(DataError, match="7 labels, train-images-idx3-ubyte 60 images"):
        load_dataset(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((10, 5, 5), np.uint8), False)
    with pytest.raises(DataError, match="test images are"):
        load_dataset(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="holds only train"):
        load_dataset(tmp_path)


# --- Machines without a home directory ---


@pytest.fixture
def homeless(monkeypatch):
    """A user whom the system does not know, as in a container with an arbitrary uid."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_what_is_there_needs_no_home_directory(homeless, tmp_path):
    assert load_dataset("digits").dim == 64
    idx_folder(tmp_path, False)
    assert load_dataset("mnist", data_dir=tmp_path).dim == 12
    with pytest.raises(DataError, match=r"no data set and no file '~/x\.npy'"):
        load_dataset("~/x.npy")


def test_a_download_without_a_home_directory_says_where_to_put_it(homeless, server, remote, tmp_path):
    with pytest.raises(DataError, match="no home directory for downloads; say --cache-dir"):
        load_dataset("mnist", progress=False)
    assert len(load_dataset("mnist", cache_dir=tmp_path / "cache", progress=False).train) == 50


@pytest.mark.skipif("PYAR_DATA" not in os.environ, reason="PYAR_DATA does not name a folder with the real MNIST")
def test_real_mnist():
    data = load_dataset("mnist", data_dir=REAL_DATA)
    assert [len(data.train), len(data.valid), len(data.test), data.dim] == [50_000, 10_000, 10_000, 784]
    fixed = load_dataset("binarized-mnist", data_dir=REAL_DATA)
    assert [len(fixed.train), len(fixed.valid), len(fixed.test), fixed.dim] == [50_000, 10_000, 10_000, 784]
    assert fixed.preparation == "fixed binarisation of Salakhutdinov & Murray 2008"
    means = [fixed.split(split).float().mean().item() for split in ("train", "valid", "test")]
    assert means == pytest.approx([0.13056, 0.13113, 0.13251], abs=5e-6)


REAL_DATA = os.environ.get("PYAR_DATA")  # read before the fixture hides it


# --- The fixed binarisation ---


def test_binarized_mnist_from_amat_and_npz(tmp_path):
    rng = np.random.default_rng(0)
    splits = {
        split: rng.integers(0, 2, (n, 9), dtype=np.uint8) for split, n in (("train", 7), ("valid", 3), ("test", 2))
    }
    (tmp_path / "text").mkdir()
    for split, x in splits.items():
        write_amat(tmp_path / "text" / f"binarized_mnist_{split}.amat", x)
    np.savez(tmp_path / "binarized_mnist.npz", **splits)
    from_text = load_dataset("binarized-mnist", data_dir=tmp_path / "text")
    from_npz = load_dataset("binarized-mnist", data_dir=tmp_path)
    for split, x in splits.items():
        assert np.array_equal(from_text.split(split).numpy(), x)
    assert from_text.fingerprint() == from_npz.fingerprint()
    assert "not the published" in from_npz.preparation
    with pytest.raises(DataError, match="binary already"):
        load_dataset("binarized-mnist", data_dir=tmp_path, levels=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n0 2\n", "line 2"),
        ("0 1\n0 1 1\n", "line 2: 3 values where line 1 has 2"),
        ("0 1\n\n01 0\n", "line 3"),
        ("0 1\n0.0 1\n", "line 2"),
        ("\n \n", "no examples"),
        ("", "no examples"),
    ],
)
def test_bad_amat_is_refused(tmp_path, text, message):
    path = tmp_path / "x.amat"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_amat(path)


@pytest.mark.parametrize("text", ["0 1 1\n1 0 0\n", "0 1 1 \n1 0 0 ", "0\t1 1\r\n1 0 0\r\n\r\n"])
def test_amat_blanks(tmp_path, text):
    path = tmp_path / "x.amat"
    path.write_bytes(text.encode())
    assert read_amat(path).tolist() == [[0, 1, 1], [1, 0, 0]]


# --- Download ---


@pytest.fixture
def server(tmp_path):
    """A file server on this machine, for `tmp_path/served`, and the requests it got."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder, asked
        httpd.shutdown()
        thread.join()


@pytest.fixture
def remote(server, monkeypatch):
    """MNIST as four tiny files on the local server; the first mirror has nothing, the second a damaged copy."""
    url, folder, _ = server
    idx_folder(folder / "good", True)
    (folder / "bad").mkdir()
    names = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    names += ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    for name, count in zip(names[2:], (60, 10), strict=True):
        write_idx(folder / "good" / name, np.arange(count, dtype=np.uint8) % 10, True)
    checksums = {}
    for name in names:
        content = (folder / "good" / name).read_bytes()
        checksums[name] = hashlib.sha256(content).hexdigest()
        (folder / "bad" / name).write_bytes(content[:-1] + b"!")
    mirrors = tuple(url + mirror for mirror in ("missing/", "bad/", "good/"))
    monkeypatch.setattr(download, "MNIST", download.RemoteFiles(mirrors, checksums))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


def test_download_tries_mirrors_checks_and_caches(tmp_path, server, remote, capsys):
    _, _, asked = server
    data = load_dataset("mnist", cache_dir=tmp_path / "cache")
    assert len(data.train) == 50
    assert {path.split("/")[1] for path in asked} == {"missing", "bad", "good"}
    assert "100%" in capsys.readouterr().err  # the progress bar
    asked.clear()
    again = load_dataset("mnist", cache_dir=tmp_path / "cache")
    assert not asked
    assert again.fingerprint() == data.fingerprint()


def test_labels_are_downloaded_when_they_are_wanted(tmp_path, server, remote):
    _, _, asked = server
    load_dataset("mnist", cache_dir=tmp_path / "cache", progress=False)
    assert not [path for path in asked if "labels" in path]
    data = load_dataset("mnist", cache_dir=tmp_path / "cache", progress=False, labels=True)
    assert data.context("valid").tolist() == [*range(10)]  # the last sixth of train
    (tmp_path / "cache" / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"needs .*t10k-labels-idx1-ubyte\.gz"):
        load_dataset("mnist", cache_dir=tmp_path / "cache", download_missing=False, labels=True)
    assert load_dataset("mnist", cache_dir=tmp_path / "cache", download_missing=False).num_classes is None


def test_a_damaged_cached_file_is_fetched_again(tmp_path, remote):
    data = load_dataset("mnist", cache_dir=tmp_path / "cache", progress=False)
    cached = tmp_path / "cache" / "mnist" / "train-images-idx3-ubyte.gz"
    cached.write_bytes(cached.read_bytes()[:50])
    assert load_dataset("mnist", cache_dir=tmp_path / "cache", progress=False).fingerprint() == data.fingerprint()


def test_failed_download_names_every_mirror_and_the_remedy(tmp_path, server, monkeypatch):
    url, _, _ = server
    files = download.RemoteFiles((url + "a/", url + "b/"), {"x.gz": "0" * 64})
    with pytest.raises(DataError) as caught:
        download.fetch(files, "x.gz", tmp_path / "cache", progress=False)
    message = str(caught.value)
    assert url + "a/x.gz" in message
    assert url + "b/x.gz" in message
    assert "--data-dir" in message


def test_nothing_is_downloaded_when_told_not_to(tmp_path, server, remote):
    _, _, asked = server
    with pytest.raises(DataError, match="was not found"):
        load_dataset("mnist", cache_dir=tmp_path / "cache", download_missing=False)
    assert not asked


# --- The user's own arrays and images ---


def test_npz_with_splits(tmp_path):
    rng = np.random.default_rng(0)
    splits = {
        split: rng.integers(0, 5, (n, 6), dtype=np.int64) for split, n in (("train", 7), ("valid", 3), ("test", 2))
    }
    np.savez(tmp_path / "mine.npz", **splits)
    data = load_dataset(str(tmp_path / "mine.npz"))
    assert (data.name, data.num_states, data.image_shape) == ("mine", 5, None)
    for split, x in splits.items():
        assert np.array_equal(data.split(split).numpy(), x)


def test_one_array_is_split_the_same_way_every_time(tmp_path):
    x = np.arange(200, dtype=np.uint8).reshape(50, 4)
    np.save(tmp_path / "x.npy", x)
    data = load_dataset(str(tmp_path / "x.npy"))
    assert [len(data.train), len(data.valid), len(data.test)] == [40, 5, 5]
    assert sorted(torch.cat([data.train, data.valid, data.test])[:, 0].tolist()) == list(range(0, 200, 4))
    assert data.test[:, 0].tolist() == (4 * permutation(50, 0)[45:]).tolist()
    assert permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]  # from NumPy's PCG64, on every machine


def test_train_and_test_only(tmp_path):
    rows = np.arange(80, dtype=np.uint8).reshape(20, 4)
    np.savez(tmp_path / "x.npz", train=rows, test=np.zeros((3, 4), np.uint8))
    data = load_dataset(str(tmp_path / "x.npz"))
    assert [len(data.train), len(data.valid), len(data.test)] == [18, 2, 3]
    assert sorted(torch.cat([data.train, data.valid]).tolist()) == rows.tolist()


def test_images_as_arrays(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 1), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    data = load_dataset(str(tmp_path / "x.npy"), levels=4)
    assert (data.num_states, data.image_shape) == (4, (5, 4))
    assert "4 grey levels" in data.preparation
    flat = load_dataset(str(tmp_path / "x.npy"), levels=256)
    assert torch.equal(data.train, flat.train // 64)


def test_real_intensities_need_a_choice(tmp_path):
    x = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="--levels"):
        load_dataset(str(tmp_path / "x.npy"))
    assert load_dataset(str(tmp_path / "x.npy"), binarize="threshold").num_states == 2
    nearest = (np.arange(256) - 0.4).clip(0) / 255  # 0, 0.6, 1.6, … of 255
    np.save(tmp_path / "x.npy", np.tile(nearest.astype(np.float32), (10, 1)))
    assert load_dataset(str(tmp_path / "x.npy"), levels=256).train[0].tolist() == list(range(256))


def test_white_is_asked_for_where_it_is_ambiguous(tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (30, 4))
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="--white 16"):
        load_dataset(str(tmp_path / "x.npy"), binarize="threshold")
    data = load_dataset(str(tmp_path / "x.npy"), binarize="threshold", white=16)
    assert data.num_states == 2
    assert "1 above 8 of 16" in data.preparation
    with pytest.raises(DataError, match="reach 16, more than --white 10"):
        load_dataset(str(tmp_path / "x.npy"), binarize="threshold", white=10)
    # Values that fit into the asked-for states are those states.
    assert load_dataset(str(tmp_path / "x.npy"), levels=20).num_states == 20


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((5, 4)), "valid": np.zeros((5, 4))}, "expected train, valid and test"),
        ({"a": np.zeros((50, 4)), "b": np.zeros((50, 4))}, "expected train, valid and test"),
        ({"val": np.zeros((5, 4)), "valid": np.zeros((5, 4))}, "twice"),
        ({"x": np.zeros((50, 4, 4, 3))}, "a grey image"),
        ({"x": np.full((50, 4), -1)}, "0 … 255"),
        ({"x": np.full((50, 4), 300)}, "0 … 255"),
        ({"x": np.full((50, 4), np.nan)}, "some are NaN"),
        ({"x": np.zeros(50)}, "a vector or a grey image"),
        ({"x": np.full((50, 4), 1.5)}, "intensities"),
        ({"x": np.full((50, 4), "a")}, "numbers"),
        ({"x": np.zeros((3, 4))}, "too few"),
        ({"x": np.zeros(())}, "single number"),
        ({"train": np.zeros((5, 4)), "valid": np.zeros((5, 3)), "test": np.zeros((5, 4))}, "different lengths"),
        ({"train": np.zeros((0, 4)), "valid": np.zeros((5, 4)), "test": np.zeros((5, 4))}, "empty"),
    ],
)
def test_ambiguous_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / "x.npz"))


def test_a_split_of_intensities_may_be_empty(tmp_path):
    half = np.full((20, 4), 0.5)
    np.savez(tmp_path / "x.npz", train=half, valid=half, test=half[:0])
    assert len(load_dataset(str(tmp_path / "x.npz"), levels=3).test) == 0


def test_options_of_arrays_are_refused_elsewhere(tmp_path):
    for name in ("digits", str(tmp_path)):
        for options, text in (({"white": 16}, "--white"), ({"image_shape": (8, 8)}, "--image-shape")):
            with pytest.raises(DataError, match=text):
                load_dataset(name, **options)


def test_pickles_and_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(str(tmp_path / "x.npy"))
    np.savez(tmp_path / "x.npz", x=np.zeros((50, 4), np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(str(tmp_path / "cut.npz"))
    with pytest.raises(DataError, match="no data set and no file"):
        load_dataset("mnits")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(DataError, match="neither"):
        load_dataset(str(tmp_path / "x.txt"))


def test_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (4, 6), dtype=np.uint8)).save(tmp_path / f"{index:03}.png")
    data = load_dataset(str(tmp_path))
    assert (data.num_states, data.image_shape, len(data.train)) == (10, (4, 6), 16)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is 4×5"):
        load_dataset(str(tmp_path))
    (tmp_path / "x.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        load_dataset(str(tmp_path))


def test_folder_of_images_with_splits(tmp_path):
    for split, n in (("train", 3), ("valid", 2), ("test", 1)):
        (tmp_path / split).mkdir()
        for index in range(n):
            Image.fromarray(np.full((2, 2), 255, np.uint8)).save(tmp_path / split / f"{index}.png")
    data = load_dataset(str(tmp_path))
    assert [len(data.train), len(data.valid), len(data.test), data.num_states] == [3, 2, 1, 2]
    (tmp_path / "test" / "0.png").unlink()
    with pytest.raises(DataError, match="no images"):
        load_dataset(str(tmp_path))


# --- Quantisation and binarisation ---


def test_quantise_has_equal_bins():
    grey = np.arange(256, dtype=np.uint8)
    assert np.array_equal(quantise(grey, 256, 255), grey)
    assert np.bincount(quantise(grey, 10, 255)).tolist() == [26, 26, 25, 26, 25, 26, 26, 25, 26, 25]
    with pytest.raises(DataError, match="2 … 17"):
        quantise(grey[:17], 18, 16)


def test_bernoulli_frequencies_and_seeds():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None], 4000, axis=0)
    drawn = bernoulli(grey, 0)
    frequencies = drawn.mean(axis=0)
    p = np.arange(256) / 255
    assert np.abs(frequencies - p).max() < 5 * np.sqrt(0.25 / 4000)
    assert (frequencies[0], frequencies[255]) == (0, 1)
    assert np.array_equal(drawn, bernoulli(grey, 0))
    assert not np.array_equal(drawn, bernoulli(grey, 1))


def test_binarisation_of_every_grey_value():
    grey = np.tile(np.arange(17, dtype=np.uint8), (3000, 1))

    def prepared(binarize: str) -> Dataset:
        return prepare("x", (grey, grey, grey), white=16, image_shape=None, levels=None, binarize=binarize)

    assert prepared("threshold").test[0].tolist() == [0] * 9 + [1] * 8
    fixed, dynamic = prepared("fixed"), prepared("dynamic")
    for x in (fixed.train, fixed.valid, fixed.test, dynamic.train_states(0, 0)):
        frequencies = x.double().mean(dim=0)
        assert (frequencies - torch.arange(17) / 16).abs().max() < 0.04
        assert (frequencies[0], frequencies[16]) == (0, 1)
    # Equal images of different splits are drawn by themselves.
    assert not torch.equal(fixed.train, fixed.valid)
    assert not torch.equal(fixed.valid, fixed.test)


def test_dynamic_binarisation_depends_on_seed_and_epoch_alone():
    data = load_dataset("digits", binarize="dynamic")
    assert torch.equal(data.train_states(3, 5), load_dataset("digits", binarize="dynamic").train_states(3, 5))
    assert not torch.equal(data.train_states(3, 5), data.train_states(3, 6))
    assert not torch.equal(data.train_states(3, 5), data.train_states(4, 5))
    assert torch.equal(data.test, load_dataset("digits", binarize="fixed").test)


def test_a_fingerprint_tells_states_splits_and_intensities_apart():
    x, y = torch.zeros(3, 4, dtype=torch.uint8), torch.ones(3, 4, dtype=torch.uint8)
    sets = [
        Dataset("x", 2, None, "", x, y, y),
        Dataset("x", 3, None, "", x, y, y),
        Dataset("x", 2, None, "", y, x, y),
        Dataset("x", 2, None, "", x, y, y, intensities=x + 100),
        Dataset("x", 2, None, "", x, y, y, intensities=x + 101),
    ]
    assert len({data.fingerprint() for data in sets}) == len(sets)
    assert Dataset("another name", 2, (2, 2), "told otherwise", x, y, y).fingerprint() == sets[0].fingerprint()


def test_dataset_checks_itself():
    good = torch.zeros(3, 4, dtype=torch.uint8)
    for labels in (torch.zeros(2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(DataError, match=r"the labels of valid should be int64 \[3\]"):
            Dataset("x", 2, None, "", good, good, good, labels={"valid": labels})
    Dataset("x", 2, (2, 2), "", good, good, good)
    with pytest.raises(DataError, match="state 1"):
        Dataset("x", 1, None, "", good + 1, good, good)
    with pytest.raises(DataError, match="uint8"):
        Dataset("x", 2, None, "", good, good.long(), good)
    with pytest.raises(DataError, match="pixels"):
        Dataset("x", 2, (2, 3), "", good, good, good)
    with pytest.raises(DataError, match="no split"):
        Dataset("x", 2, None, "", good, good, good).split("tests")
