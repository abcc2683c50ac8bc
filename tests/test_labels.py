"""Labels as context: where they come from, that they stay with their examples, and what is refused; training,
evaluation, samples and completions given labels, in Python and on the command line."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_training import torchrun

import pyar
from pyar import models
from pyar.checkpoint import CheckpointError, load_with_extra, save_model
from pyar.cli import main
from pyar.data import DataError, Dataset, load_dataset, load_rows
from pyar.data.labels import find_class
from pyar.evaluation import evaluate, log_probs
from pyar.plots import save_sheet
from pyar.sampling import labels_in_turn, open_writer, sample_chunks
from pyar.tables import Columns
from pyar.training import Trainer, TrainingConfig

# Class k has the first state k, so that an example tells its label.
CLASSES = np.array([2, 0, 1, 1, 2, 0] * 10)
X = np.random.default_rng(0).integers(0, 3, (60, 6)).astype(np.uint8)
X[:, 0] = CLASSES
WORDS = np.array(["ape", "elk", "ox"])
SPLITS = {"train": slice(0, 42), "valid": slice(42, 48), "test": slice(48, 60)}


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch):
    monkeypatch.delenv("PYAR_DATA", raising=False)


# --- Where labels come from ---


def npz(path: Path, labels: np.ndarray, **others: np.ndarray) -> Path:
    np.savez(path / "x.npz", x=X, y=labels, **others)
    return path / "x.npz"


def npz_with_splits(path: Path, labels: np.ndarray) -> Path:
    arrays = {f"x_{split}": X[rows] for split, rows in SPLITS.items()}
    np.savez(path / "x.npz", **arrays, **{f"y_{split}": labels[rows] for split, rows in SPLITS.items()})
    return path / "x.npz"


def safetensors(path: Path, labels: np.ndarray) -> Path:
    from safetensors.numpy import save_file

    save_file({"images": X, "labels": labels}, path / "x.safetensors")
    return path / "x.safetensors"


def folder_of_arrays(path: Path, labels: np.ndarray) -> Path:
    np.save(path / "x.npy", X)
    np.save(path / "y.npy", labels)
    return path


def csv(path: Path, labels: np.ndarray, name: str = "label", header: bool = True) -> Path:
    rows = [[name, *"abcdef"]] * header + [[label, *row] for label, row in zip(labels, X, strict=True)]
    (path / "x.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path / "x.csv"


def folder_of_a_table(path: Path, labels: np.ndarray) -> Path:
    csv(path, labels).rename(path / "mine.csv")
    return path


def parquet(path: Path, labels: np.ndarray) -> Path:
    frame = pd.DataFrame(X, columns=list("abcdef"))
    frame["class"] = pd.Categorical(labels) if labels.dtype.kind == "U" else labels
    frame.to_parquet(path / "x.parquet")
    return path / "x.parquet"


def class_folders(path: Path, labels: np.ndarray) -> Path:
    for number, (label, row) in enumerate(zip(labels, X, strict=True)):
        (path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(row.reshape(2, 3) * 100).save(path / str(label) / f"{number:02}.png")
    return path


def class_folders_in_splits(path: Path, labels: np.ndarray) -> Path:
    for split, rows in SPLITS.items():
        for number, (label, row) in enumerate(zip(labels[rows], X[rows], strict=True)):
            folder = path / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(2, 3) * 100).save(folder / f"{number:02}.png")
    return path


def idx(path: Path, labels: np.ndarray) -> Path:
    for split, rows in (("train", slice(0, 48)), ("t10k", SPLITS["test"])):
        for what, values in (("images-idx3", 100 * X[rows].reshape(-1, 2, 3)), ("labels-idx1", labels[rows])):
            values = values.astype(np.uint8)
            sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
            (path / f"{split}-{what}-ubyte").write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())
    return path


Writer = Callable[[Path, np.ndarray], Path]
TAKE_TEXT: list[Writer] = [npz, npz_with_splits, folder_of_arrays, csv, folder_of_a_table, parquet, class_folders]
TAKE_TEXT += [class_folders_in_splits]


def assert_labels_tell_the_first_state(data: Dataset, names: list[str]) -> None:
    assert (data.num_classes, data.class_names) == (3, tuple(names))
    for split in ("train", "valid", "test"):
        assert torch.equal(data.context(split), data.split(split)[:, 0].long())


@pytest.mark.filterwarnings("error::pyar.data.DataNotice")  # nothing is told to be ignored
@pytest.mark.parametrize("write", TAKE_TEXT)
def test_classes_called_by_words(tmp_path, write):
    data = load_dataset(write(tmp_path, WORDS[CLASSES]), labels=True, levels=3)
    assert_labels_tell_the_first_state(data, ["ape", "elk", "ox"])
    assert data.preparation.endswith("; given the label, one of 3")
    assert "read as one set" not in data.preparation


@pytest.mark.filterwarnings("error::pyar.data.DataNotice")
@pytest.mark.parametrize("write", [*TAKE_TEXT, safetensors, idx])
def test_classes_called_by_numbers_keep_them_as_names(tmp_path, write):
    """3, 7, 10 in the order of numbers, not of text."""
    data = load_dataset(write(tmp_path, np.array([3, 7, 10])[CLASSES]), labels=True, levels=3)
    assert_labels_tell_the_first_state(data, ["3", "7", "10"])
    assert (find_class("10", data.class_names), find_class("3", data.class_names)) == (2, 0)


@pytest.mark.filterwarnings("ignore::pyar.data.DataNotice")
@pytest.mark.parametrize("write", [npz, csv, class_folders, idx])
def test_labels_that_are_not_asked_for_are_not_used(tmp_path, write):
    data = load_dataset(write(tmp_path, CLASSES), levels=3)
    assert (data.num_classes, data.context("train")) == (None, None)
    assert "given" not in data.preparation


def test_a_column_by_its_name(tmp_path):
    for name in ("animal", "split", "id"):  # what else a column of that name might be, it is the label now
        data = load_dataset(csv(tmp_path, WORDS[CLASSES], name), labels=name)
        assert_labels_tell_the_first_state(data, ["ape", "elk", "ox"])
    data = load_dataset(csv(tmp_path, CLASSES, header=False), labels="0")
    assert_labels_tell_the_first_state(data, ["0", "1", "2"])
    with pytest.raises(DataError, match=r"no column 'species' of labels; its columns are animal, a, b, c, d, e, f"):
        load_dataset(csv(tmp_path, CLASSES, "animal"), labels="species")
    with pytest.raises(DataError, match=r"several columns of labels or splits \('label', 'a'\)"):
        load_dataset(csv(tmp_path, CLASSES), labels="a")
    for other in (npz(tmp_path, CLASSES), "digits"):
        with pytest.raises(DataError, match=r"--labels animal names a column of a table, which .* is not"):
            load_dataset(other, labels="animal")


def test_the_digits_are_what_their_labels_say():
    data = load_dataset("digits", labels=True)
    assert (data.num_classes, data.class_names) == (10, tuple("0123456789"))
    assert torch.equal(data.context("test"), load_dataset("digits").labels["test"])


def test_fashion_has_names(tmp_path):
    (tmp_path / "fashion-mnist").mkdir()
    idx(tmp_path / "fashion-mnist", CLASSES)
    data = load_dataset("fashion-mnist", data_dir=tmp_path, labels=True, levels=3)
    assert (data.num_classes, data.class_names[7]) == (10, "Sneaker")
    assert torch.equal(data.context("train"), data.train[:, 0].long())


def test_labels_are_part_of_what_a_run_is_trained_on(tmp_path):
    plain, labelled = load_dataset("digits"), load_dataset("digits", labels=True)
    train = labelled.labels["train"].clone()
    train[0] = (train[0] + 1) % 10
    other = replace(labelled, labels={**labelled.labels, "train": train})
    prints = {data.fingerprint() for data in (plain, labelled, other)}
    assert len(prints) == 3
    assert replace(labelled, num_classes=None).fingerprint() == plain.fingerprint()


# --- What is refused ---


def _no_test_labels(path: Path) -> Path:
    np.savez(path / "x.npz", x_train=X, y_train=CLASSES, x_test=X)
    return path / "x.npz"


def _array(path: Path) -> Path:
    np.save(path / "x.npy", X)
    return path / "x.npy"


def _class_in_test_alone(path: Path) -> Path:
    return npz_with_splits(path, np.where(np.arange(60) < 48, WORDS[CLASSES], "emu"))


def _missing_labels(path: Path) -> Path:
    text = csv(path, CLASSES).read_text()
    (path / "x.csv").write_text(text.replace("\n2,", "\n,", 1))
    return path / "x.csv"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_array, "^x has no labels; labels are an array called labels or y beside the examples"),
        (_no_test_labels, "^x has no labels of test; "),
        (_class_in_test_alone, "^x: the class 'emu' occurs in test and not in train"),
        (lambda path: npz_with_splits(path, np.arange(60)), "the classes 42, 43, 44, 45, 46 and 1 more occur in valid"),
        (_missing_labels, "1 labels in the column 'label' are missing"),
        (lambda path: npz(path, CLASSES + 0.5), r"the labels are no whole numbers \[N\], but float64 \[60\]"),
        (lambda path: npz(path, np.eye(3)[CLASSES]), r"the labels are no whole numbers \[N\], but float64 \[60, 3\]"),
        (lambda path: npz(path, CLASSES, target=CLASSES), r"several arrays of labels \(y, target\)"),
        (lambda path: npz(path, WORDS[CLASSES].astype(object)), "hold pickled objects; save text as y.astype"),
        (lambda path: npz(path, CLASSES[:-1]), "60 examples, but 59 labels"),
        (lambda path: "binarized-mnist", "binarized-mnist has no labels, its files hold images alone"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, write, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path), labels=True)


def test_images_of_mnist_without_their_labels(tmp_path):
    idx(tmp_path, CLASSES)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"images without their labels; it should also hold t10k-labels-idx1-ubyte$"):
        load_dataset("mnist", data_dir=tmp_path, labels=True)
    assert load_dataset("mnist", data_dir=tmp_path).num_classes is None


def test_data_sets_whose_labels_do_not_fit():
    x, y = torch.zeros(3, 4, dtype=torch.uint8), torch.tensor([0, 1, 2])
    labels = dict.fromkeys(SPLITS, y)
    Dataset("mine", 2, None, "", x, x, x, labels=labels, num_classes=3)
    with pytest.raises(DataError, match="the labels of train should be 0 … 1, but are 0 … 2"):
        Dataset("mine", 2, None, "", x, x, x, labels=labels, num_classes=2)
    with pytest.raises(DataError, match="num_classes is 3, but test has no labels"):
        Dataset("mine", 2, None, "", x, x, x, labels={"train": y, "valid": y}, num_classes=3)
    with pytest.raises(DataError, match="num_classes is 3, but 2 have names"):
        Dataset("mine", 2, None, "", x, x, x, labels=labels, num_classes=3, class_names=("a", "b"))


# --- Rows for a model that is there already ---


def test_rows_have_the_models_numbers_for_their_classes(tmp_path):
    names = ["ox", "yak", "ape", "elk"]
    rows = load_rows(npz(tmp_path, WORDS[CLASSES]), dim=6, num_states=3, class_names=names)
    assert rows.context.tolist() == [[2, 3, 0][k] for k in CLASSES]
    assert (rows.num_classes, rows.class_names) == (4, tuple(names))
    assert rows.preparation == "3 states as stored; given the label, one of 4"
    rows = load_rows(npz(tmp_path, CLASSES), dim=6, num_states=3, class_names=names)  # numbers, where names are words
    assert rows.context.tolist() == CLASSES.tolist()
    folder = tmp_path / "one"
    folder.mkdir()
    class_folders(folder, np.full(60, "yak"))  # of one class alone
    rows = load_rows(folder, dim=6, num_states=3, levels=3, class_names=names)
    assert rows.context.tolist() == [1] * 60
    table = csv(tmp_path, WORDS[CLASSES], "animal")
    assert load_rows(table, dim=6, num_states=3, class_names=names, labels="animal").context.tolist()[:2] == [0, 2]
    test = load_rows("digits", dim=64, num_states=17, class_names=[*"9876543210"])
    assert test.context.tolist() == (9 - load_dataset("digits").labels["test"]).tolist()
    assert load_rows("digits", dim=64, num_states=17).context is None


def test_rows_that_a_model_of_labels_cannot_be_given(tmp_path):
    with pytest.raises(DataError, match="no class 'ape'; its classes are elk, ox"):
        load_rows(npz(tmp_path, WORDS[CLASSES]), dim=6, num_states=3, class_names=["elk", "ox"])
    with pytest.raises(DataError, match="x has no labels, and the model is one of examples given their labels"):
        load_rows(_array(tmp_path), dim=6, num_states=3, class_names=["elk", "ox"])


def test_a_class_by_name_or_number():
    fashion = ["T-shirt/top", "Trouser", "Sneaker"]
    assert [find_class(label, fashion) for label in ("Sneaker", "sneaker", "1")] == [2, 2, 1]
    for label in ("3", "-1", "Shoe", ""):
        with pytest.raises(DataError, match=f"no class '{label}'; its classes are T-shirt/top, Trouser, Sneaker"):
            find_class(label, fashion)
    with pytest.raises(DataError, match="no class '0'"):
        find_class("0", ["3", "7"])


# --- Models given labels ---

TOY = '''
import torch
import pyar
from pyar.models.plane import ImageModel
from pyar.reference import plane

@pyar.register_model
class Shades(ImageModel):
    """Independent pixels given the label.

    Args:
        features: F.
    """

    name = "shades"

    def __init__(self, image_shape: tuple[int, int], num_states: int = 2, *, features: int = 8,
                 num_classes: int | None = None, context_size: int | None = None) -> None:
        super().__init__(image_shape, num_states, features=features, num_classes=num_classes, context_size=context_size)
        self.pixels = torch.nn.Parameter(torch.randn(self.dim, self.features))
        self.gate = torch.nn.Parameter(torch.randn(max(1, self.context_width), self.dim, self.features))
        self._reset_head()

    def _config(self):
        return {"features": self.features}

    @property
    def config(self):
        names = ("image_shape", "num_states", "features", "num_classes", "context_size")
        return {name: super(Shades, self).config[name] for name in names}

    def _features(self, steps, context):
        if context is None:
            context = torch.ones(len(steps), 1)
        return self.pixels + torch.einsum("bs,sdf->bdf", context, self.gate)

    def _sample(self, num_samples, seed, first_index, temperature, given, context=None):
        def conditionals(x):
            logits = self._logits(x, context)
            return logits[..., None] if self.num_states == 2 else logits
        return plane.sample(conditionals, self.dim, int(seed), num_samples, first_index, temperature, given)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch) -> str:
    """The name of a module that registers a model of labels; afterwards neither is known."""
    (tmp_path / "toy_of_labels.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(models, "_registered", {})
    monkeypatch.delitem(sys.modules, "toy_of_labels", raising=False)
    return "toy_of_labels"


@pytest.fixture
def shades(toy) -> type[pyar.models.AutoregressiveModel]:
    __import__(toy)
    return models.model_class("shades")


def labelled() -> Dataset:
    """Vectors whose first state is their label, in splits of 42, 6 and 12."""
    parts = [torch.from_numpy(X[rows]) for rows in SPLITS.values()]
    labels = {split: torch.from_numpy(CLASSES[rows]) for split, rows in SPLITS.items()}
    return Dataset("mine", 3, (2, 3), "3 states as stored", *parts, labels=labels, num_classes=3)


def make(shades: type, folder: Path, **settings) -> Trainer:
    torch.manual_seed(0)
    config = TrainingConfig(**{"epochs": 30, "batch_size": 8, "learning_rate": 0.02, **settings})
    return Trainer(shades((2, 3), 3, num_classes=3), labelled(), config, folder)


def test_every_batch_comes_with_its_own_labels(shades, tmp_path, monkeypatch):
    trainer = make(shades, tmp_path, epochs=2, eval_batch_size=4)
    seen = []
    model = trainer.model

    def checked(name: str) -> Callable:
        method = getattr(model, name)

        def told(x, *, context):
            assert torch.equal(context, x[:, 0].long())
            seen.append((name, len(x)))
            return method(x, context=context)

        return told

    for name in ("training_loss", "validation_log_prob"):
        monkeypatch.setattr(model, name, checked(name))
    trainer.run()
    assert seen[:6] == [("training_loss", 8)] * 5 + [("training_loss", 2)]
    assert [size for name, size in seen if name == "validation_log_prob"] == [4, 2, 4, 2]


def test_training_learns_what_a_label_says(shades, tmp_path):
    trainer = make(shades, tmp_path)
    trainer.run()
    result = evaluate(trainer.model, trainer.dataset, "test", batch_size=5)
    x, labels = trainer.dataset.test, trainer.dataset.context("test")
    log_prob = trainer.model.log_prob(x, context=labels).double()
    assert result.nll == pytest.approx(-log_prob.mean().item(), rel=1e-6)
    # The other five states are uniform; the first costs ln 3 without its label, and next to nothing with it.
    assert result.nll < 5 * math.log(3) + 0.6
    wrong = log_probs(trainer.model, x, context=(labels + 1) % 3)
    assert (wrong < log_prob - 2).all()
    _, extra = load_with_extra(tmp_path)
    assert extra["class_names"] is None


def test_stopped_and_resumed_with_labels_gives_the_same_bits(shades, tmp_path, monkeypatch):
    whole = make(shades, tmp_path / "whole", epochs=3)
    whole.run()
    parts = make(shades, tmp_path / "parts", epochs=3)
    step = parts._step

    def stop(*arguments):
        if parts.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(parts, "_step", stop)
    assert parts.train().reason == "interrupted"
    again = make(shades, tmp_path / "parts", epochs=3)
    again.resume()
    assert again.step == 8
    again.run()
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.best_nll == whole.best_nll


def test_a_run_is_not_resumed_with_other_labels(shades, tmp_path):
    make(shades, tmp_path, epochs=1).run()
    other = make(shades, tmp_path, epochs=2)
    labels = {split: (y + 1) % 3 for split, y in other.dataset.labels.items()}
    other = Trainer(other.model, replace(other.dataset, labels=labels), other.config, tmp_path)
    with pytest.raises(CheckpointError, match="its data is"):
        other.resume()


def test_model_and_data_agree_about_labels(shades, tmp_path):
    data, config = labelled(), TrainingConfig(epochs=1)
    for model, dataset, message in (
        (pyar.NADE(6, 3, 4), data, "the nade takes no labels, but mine was loaded with labels of 3 classes"),
        (shades((2, 3), 3, num_classes=5), data, "is given labels of 5 classes, but mine was loaded with .* 3 classes"),
        (shades((2, 3), 3, num_classes=3), replace(data, num_classes=None), r"loaded without: load_dataset\(…, labels"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(model, dataset, config, tmp_path)
        with pytest.raises(ValueError, match=message):
            evaluate(model, dataset)
    Trainer(pyar.NADE(6, 3, 4), replace(data, num_classes=None), config, tmp_path).run()


# --- Samples ---


def test_labels_in_turn_go_by_the_samples_numbers():
    whole = labels_in_turn([4, 0, 2], 10)
    assert whole.tolist() == [4, 0, 2, 4, 0, 2, 4, 0, 2, 4]
    assert torch.equal(torch.cat([labels_in_turn([4, 0, 2], 4), labels_in_turn([4, 0, 2], 6, 4)]), whole)


def test_chunks_and_files_have_each_samples_label(shades, tmp_path):
    torch.manual_seed(0)
    model = shades((2, 3), 3, num_classes=3).eval()
    labels = labels_in_turn([2, 0, 1], 10)
    x, log_prob = model.sample_and_log_prob(10, seed=5, context=labels)
    chunks = list(sample_chunks(model, 10, seed=5, context=labels, chunk_size=4))
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks]), x)
    for name in ("x.npz", "x.npy"):
        with open_writer(tmp_path / name, 10, 6, seed=5, labels=labels) as writer:
            writer.write(x, log_prob)
    with np.load(tmp_path / "x.npz") as arrays:
        assert set(arrays.files) == {"x", "log_prob", "labels", "seed", "first_index"}
        assert arrays["labels"].tolist() == labels.tolist()
    assert np.load(tmp_path / "x.labels.npy").tolist() == labels.tolist()
    # What was drawn is read again with its labels.
    assert load_rows(tmp_path / "x.npz", dim=6, num_states=3, class_names=[*"012"]).context.tolist() == labels.tolist()


def test_a_sheet_has_a_row_for_each_label(tmp_path):
    """Labels 0, 1, 2 with 2, 3 and 1 images of one pixel, shades by label; empty tiles at the ends."""
    labels = torch.tensor([1, 0, 1, 2, 0, 1])
    save_sheet(labels[:, None].to(torch.uint8), tmp_path / "x.png", 3, (1, 1), labels=labels)
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    unit = pixels.shape[0] // 7
    tiles = pixels[unit + unit // 2 :: 2 * unit, unit + unit // 2 :: 2 * unit]
    assert np.where(abs(tiles - 204) < 3, -1, tiles).tolist() == [[255, 255, -1], [128, 128, 128], [0, -1, -1]]


# --- The command line ---

QUICK = ["--epochs", "3", "--batch-size", "100", "--learning-rate", "0.02", "--no-progress"]


@pytest.fixture
def trained(toy, capsys) -> str:
    """A run on the binary digits with labels, in the folder "run"."""
    data = ["--labels", "--binarize", "threshold"]
    assert main(["train", "shades", "--import", toy, *data, "--out", "run", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "given the label, one of 10" in out
    assert "given the label, one of 10" in err
    return toy


def result_of(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_with_labels(trained, capsys):
    common = ["--import", trained, "--no-progress"]
    model, extra = load_with_extra("run")
    assert (model.num_classes, extra["class_names"], extra["data_spec"]["labels"]) == (10, [*"0123456789"], True)
    data = load_dataset("digits", binarize="threshold", labels=True)
    right = log_probs(model, data.test, context=data.context("test"))

    told = result_of(capsys, "evaluate", "run", "--out", "scores.npy", *common)
    assert told["nll_nats"] == pytest.approx(-right.double().mean().item(), rel=1e-6)
    assert told["preparation"].endswith("; given the label, one of 10")
    assert np.array_equal(np.load("scores.npy"), right.numpy())
    again = result_of(capsys, "evaluate", "run", "--data", "digits", *common)
    assert again["nll_nats"] == told["nll_nats"]

    threes = result_of(capsys, "sample", "run", "-n", "5", "--label", "3", "--out", "x.npz", *common)
    assert threes["labels"] == ["3"]
    with np.load("x.npz") as drawn:
        assert drawn["labels"].tolist() == [3] * 5
        x = torch.from_numpy(drawn["x"])
        assert torch.equal(x, model.sample(5, seed=0, context=torch.tensor(3)))
        expected = model.log_prob(x, context=torch.full((5,), 3))
        torch.testing.assert_close(torch.from_numpy(drawn["log_prob"]), expected, rtol=1e-5, atol=1e-4)

    result_of(capsys, "sample", "run", "--out", "x.npz", "--out", "x.png", *common)
    assert "a row for each of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in capsys.readouterr().err + _err(capsys, common)
    with np.load("x.npz") as drawn:
        assert drawn["labels"].tolist() == [*range(10)] * 10
    with Image.open("x.png") as image:
        assert image.size[0] == image.size[1]  # ten rows of ten square images

    result_of(capsys, "complete", "run", "-n", "3", "--completions", "2", "--out", "c.npz", *common)
    with np.load("c.npz") as done:
        index = torch.arange(3) * len(data.test) // 3
        assert done["labels"].tolist() == data.context("test")[index].tolist()
        context = torch.from_numpy(done["labels"])
        observed = torch.from_numpy(done["observed"])
        expected = model.complete(data.test[index], observed, 2, seed=0, context=context)
        assert np.array_equal(done["completions"], expected.numpy())
    np.save("bare.npy", data.test[:20].numpy())  # without labels of its own
    for examples in ([], ["--data", "bare.npy"], ["--examples", "bare.npy"]):
        result_of(capsys, "complete", "run", *examples, "-n", "3", "--label", "7", "--out", "c.npz", *common)
        with np.load("c.npz") as done:
            assert done["labels"].tolist() == [7] * 3

    assert main(["info", "run", "--import", trained]) == 0
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in capsys.readouterr().out
    assert main(["train", "--resume", "run", "--epochs", "4", *common]) == 0


def _err(capsys, common: list[str]) -> str:
    assert main(["sample", "run", "--out", "x.png", *common]) == 0
    return capsys.readouterr().err


def test_labels_of_shards_are_those_of_the_whole(trained, capsys):
    common = ["--import", trained, "--label", "9", "--label", "4", "--label", "5"]
    result_of(capsys, "sample", "run", "-n", "7", "--out", "whole.npz", *common)
    result_of(capsys, "sample", "run", "-n", "4", "--out", "a.npz", *common)
    result_of(capsys, "sample", "run", "-n", "3", "--first-index", "4", "--out", "b.npz", *common)
    whole, *parts = (np.load(f"{name}.npz") for name in ("whole", "a", "b"))
    assert whole["labels"].tolist() == [9, 4, 5, 9, 4, 5, 9]
    for name in ("x", "labels"):
        assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train nade --labels", "--labels: nade takes no labels; models that do: .*shades"),
        ("train --labels shades", "say which model to train.*; write shades before --labels"),
        ("train shades --labels --data binarized-mnist", "binarized-mnist has no labels"),
        ("train shades --labels digit", "--labels digit names a column of a table, which digits is not"),
        ("train --resume run --labels", "--labels cannot be changed in a resumed run"),
        ("sample run --label 10", "the model knows no class '10'; its classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("complete run --label ten", "the model knows no class 'ten'"),
        ("complete run --examples x.npy", "is given labels, which --examples has not; say one for all: --label L"),
        ("evaluate run --data x.npy", "x has no labels, and the model is one of examples given their labels"),
        ("sample plain --label 3", "--label 3: plain is a nade that was trained without labels"),
        ("sample plain --label all", "--label all: plain is a nade that was trained without labels"),
        ("complete plain --label 3", "--label 3: plain is a nade that was trained without labels"),
        ("evaluate plain --labels", "--labels: plain is a nade that was trained without labels"),
        ("evaluate frame --labels", "--labels: frame is a table-nade that was trained without labels"),
        ("sample frame --label 3", "--label 3: frame is a table-nade that was trained without labels"),
    ],
)
def test_what_the_command_line_refuses(trained, capsys, arguments, message):
    np.save("x.npy", np.zeros((12, 64), np.uint8))
    if "plain" in arguments:
        save_model(pyar.NADE(64, 2, 4), Path("plain"))
    if "frame" in arguments:
        columns = Columns.from_frame(pd.DataFrame({"a": np.arange(20.0), "b": [*"xy"] * 10}))
        save_model(pyar.TableNADE(columns, hidden_sizes=(4,)), Path("frame"))
    assert main([*arguments.split(), "--import", trained]) == 1
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1


def test_a_model_of_features_is_for_python(toy, shades, capsys):
    save_model(shades((8, 8), 17, context_size=2), Path("features"), {"data_spec": {"data": "digits"}})
    for command in ("sample", "evaluate", "complete"):
        assert main([command, "features", "--import", toy]) == 1
        assert capsys.readouterr().err == (
            "pyar: the shades is given features of every example, which only Python can: context=…\n"
        )


@pytest.mark.parametrize("model", ["shades", "pixel-cnn --features 4 --num-layers 2"])
def test_words_and_a_named_column_from_training_to_sampling(toy, capsys, model):
    csv(Path(), WORDS[CLASSES], "animal")
    common = ["--import", toy, "--no-progress"]
    data = ["--data", "x.csv", "--image-shape", "2x3", "--labels", "animal"]
    assert main(["train", *model.split(), *data, "--epochs", "2", "--out", "run", *common]) == 0
    model, extra = load_with_extra("run")
    assert extra["class_names"] == ["ape", "elk", "ox"]
    result_of(capsys, "sample", "run", "-n", "4", "--label", "Elk", "--out", "x.npz", *common)
    assert np.load("x.npz")["labels"].tolist() == [1] * 4
    told = result_of(capsys, "evaluate", "run", "--data", "x.csv", *common)
    expected = -model.log_prob(torch.from_numpy(X), context=torch.from_numpy(CLASSES)).mean().item()
    assert told["nll_nats"] == pytest.approx(expected, rel=1e-5)
    csv(Path(), WORDS[CLASSES], "species")
    told = result_of(capsys, "evaluate", "run", "--data", "x.csv", "--labels", "species", *common)
    assert told["nll_nats"] == pytest.approx(expected, rel=1e-5)
    assert main(["evaluate", "run", *common]) == 1
    assert "no column 'animal' of labels" in capsys.readouterr().err


def test_two_processes_train_with_labels_as_one(toy, tmp_path):
    arguments = ["train", "shades", "--import", toy, "--labels", "--binarize", "threshold", *QUICK, "--samples", "0"]
    done = torchrun(2, "--no-python", sys.executable, "-m", "pyar", *arguments, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert main([*arguments, "--out", "one"]) == 0
    one, two = (json.loads((tmp_path / out / "result.json").read_text())["test"]["nll_nats"] for out in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
