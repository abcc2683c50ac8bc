"""Checkpoints: round trip, atomic writing under kill -9, refusal of damaged, foreign and malicious files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import pyar
from pyar.checkpoint import (
    FORMAT_VERSION,
    STATE_FILE,
    CheckpointError,
    load,
    load_state,
    load_with_extra,
    save_model,
    save_state,
)
from pyar.cli import main


@pytest.fixture
def model():
    torch.manual_seed(0)
    return pyar.NADE(dim=6, num_states=3, hidden_size=5, mlp_sizes=(4,), order=[5, 4, 3, 2, 1, 0])


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path, {"data": "digits"})
    return path


def test_round_trip(model, saved):
    again, extra = load_with_extra(saved)
    assert type(again) is pyar.NADE
    assert again.config == model.config
    assert extra == {"data": "digits"}
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_run_folder_can_be_named(model, saved):
    assert load(saved.parent).config == model.config
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(saved.parent / "other.safetensors")
    (saved.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a run folder"):
        load(saved.parent / "empty")


def test_other_weights_can_be_stored(model, tmp_path):
    weights = {name: value + 1 for name, value in model.state_dict().items() if name != "order"}
    save_model(model, tmp_path / "x.safetensors", state_dict={**model.state_dict(), **weights})
    assert torch.equal(load(tmp_path / "x.safetensors").c, model.c + 1)


def test_transposed_and_shared_storage_are_saved_as_seen(tmp_path):
    model = pyar.NADE(dim=4, hidden_size=4, input="scalar")
    whole = torch.arange(32.0)
    model.W = torch.nn.Parameter(whole[:16].view(4, 4).T)
    save_model(model, tmp_path / "x.safetensors")
    assert torch.equal(load(tmp_path / "x.safetensors").W, model.W)


def test_every_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    positions = [*range(0, 8), *rng.integers(8, header, 60), *rng.integers(header, len(content), 30)]
    for position in positions:
        bit = int(rng.integers(0, 8))
        content[position] ^= 1 << bit
        saved.write_bytes(content)
        try:
            reread = load(saved)
        except CheckpointError:
            reread = None
        # A flip in padding or in an unused part of the header may be harmless; then nothing has changed.
        content[position] ^= 1 << bit
        if reread is not None:
            saved.write_bytes(content)
            original = load(saved)
            assert all(torch.equal(a, b) for a, b in zip(reread.parameters(), original.parameters(), strict=True))
            assert reread.config == original.config


def test_no_length_of_the_header_is_taken_for_something_else(tmp_path):
    """A file begins with that length, so its first byte is any byte, that of a pickle (0x80) too."""
    path, first_bytes = tmp_path / "model.safetensors", set()
    torch.manual_seed(0)
    model = pyar.NADE(3, hidden_size=4)
    for n in range(512):
        save_model(model, path, {"note": "x" * n})
        content = path.read_bytes()
        first_bytes.add(content[0])
        again, extra = load_with_extra(path)
        assert torch.equal(again.W, model.W)
        assert extra == {"note": "x" * n}
        if content[0] == 0x80:
            path.write_bytes(content[:-1])
            with pytest.raises(CheckpointError, match="damaged"):
                load(path)
    assert len(first_bytes) == 32  # the header is padded to whole words


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_truncated_files_are_refused(saved, size):
    content = saved.read_bytes()
    saved.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("writer", ["pickle", "torch", "legacy"])
def test_pickles_are_refused_without_being_run(tmp_path, writer):
    path, trap = tmp_path / "model.safetensors", tmp_path / "trap"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trap)))
    else:
        torch.save({"x": Malicious(trap)}, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match="can run code"):
        load(path)
    assert not trap.exists()


def test_a_training_state_with_code_is_refused(tmp_path):
    path, trap = tmp_path / "training_state.pt", tmp_path / "trap"
    torch.save({"x": Malicious(trap)}, path)
    with pytest.raises(CheckpointError, match="more than plain data"):
        load_state(path)
    assert not trap.exists()


def rewrite(path, **changes):
    """The checkpoint with some of its metadata changed and everything else, the checksum included, as it was."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyar": None}, "not written by pyar"),
        ({"sha256": None}, "not written by pyar"),
        ({"pyar": "99"}, "update pyar"),
        ({"extra": '{"data": "other"}'}, "checksum"),
        ({"config": '{"dim": 6}'}, "checksum"),
        ({"model": "Popen"}, "checksum"),
    ],
)
def test_foreign_and_changed_metadata_are_refused(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "Popen", "not known here"),
        ("config", '{"dim": 7}', "does not fit"),
        ("config", '{"nonsense": 7}', "does not fit"),
        ("config", "[", "does not fit"),
        ("config", "[]", "does not fit"),
        ("extra", "nothing", "does not fit"),
    ],
)
def test_what_cannot_be_built_is_refused_even_with_a_right_checksum(saved, field, value, message):
    from pyar.checkpoint import _digest

    with safetensors.safe_open(saved, "pt") as file:
        metadata = {**file.metadata(), field: value}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = _digest([metadata["model"], metadata["config"], metadata["extra"]], tensors)
    rewrite(saved, **{field: value, "sha256": checksum})
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_training_state_round_trip_and_damage(tmp_path):
    path = tmp_path / "state.pt"
    state = {"step": 3, "weights": {"x": torch.arange(1000.0)}, "list": [1.5, None, "text"]}
    save_state(state, path)
    again = load_state(path)
    assert torch.equal(again.pop("weights")["x"], state.pop("weights")["x"])
    assert again == state
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
    path.write_bytes(content[:500])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
    with pytest.raises(CheckpointError, match="no training state"):
        load_state(tmp_path / "other")


WRITER = """
import sys, torch
from pyar.checkpoint import save_model, save_state
import pyar
folder = sys.argv[1]
model = pyar.NADE(dim=100, hidden_size=200)
for version in range(10**9):
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float(version))
    save_model(model, folder + "/model.safetensors", {"version": version})
    save_state({"version": version, "weights": model.state_dict()}, folder + "/state.pt")
    if version == 1:
        print("ready", flush=True)
"""


def test_kill_during_a_save_leaves_the_old_or_the_new_file(tmp_path):
    rng = np.random.default_rng(0)
    last = -1
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.15))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        model, extra = load_with_extra(tmp_path)
        assert all((p == extra["version"]).all() for p in model.parameters())
        state = load_state(tmp_path / "state.pt")
        assert all((value == state["version"]).all() for value in state["weights"].values())
        assert state["version"] in (extra["version"], extra["version"] - 1)
        last = max(last, extra["version"])
    assert last > 0  # files were indeed replaced


def test_config_is_plain_json(saved):
    with safetensors.safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["config"])["dim"] == 6


# --- Files of earlier releases ---

FORMATS = Path(__file__).parent / "formats"
STORED_MODELS = sorted(path for path in FORMATS.glob("*/*.safetensors"))
STORED_RUNS = sorted(path.parent for path in FORMATS.glob("*/*/training_state.pt"))


def by_name(path: Path) -> str:
    return str(path.relative_to(FORMATS))


def test_every_format_is_kept():
    formats = {path.parent.name for path in STORED_MODELS}
    assert formats == {path.parent.name for path in STORED_RUNS} == set(map(str, range(1, int(FORMAT_VERSION) + 1)))


@pytest.mark.parametrize("path", STORED_MODELS, ids=by_name)
def test_a_model_of_an_earlier_release_loads(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    model, extra = load_with_extra(path)
    assert extra == {"note": "weights at random"}
    log_prob = model.log_prob(torch.tensor(expected["x"]))
    torch.testing.assert_close(log_prob, torch.tensor(expected["log_prob"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", STORED_RUNS, ids=by_name)
def test_a_run_of_an_earlier_release_is_resumed(stored, tmp_path, monkeypatch):
    """To the end that the release itself came to when it went on with it."""
    monkeypatch.delenv("PYAR_DATA", raising=False)
    folder = shutil.copytree(stored, tmp_path / "run")
    before = load_state(folder / STATE_FILE)["step"]
    assert main(["train", "--resume", str(folder), "--samples", "0", "--no-progress", "--threads", "1"]) == 0
    expected = json.loads((stored / "expected.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    assert 0 < before < result["steps"]
    for name in ("reason", "steps", "best_step"):
        assert result[name] == expected[name]
    assert result["best_valid_nll"] == pytest.approx(expected["best_valid_nll"], rel=1e-5)
    assert result["test"]["nll_nats"] == pytest.approx(expected["test"]["nll_nats"], rel=1e-5)
    assert main(["evaluate", str(folder), "--no-progress"]) == 0
