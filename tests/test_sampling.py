"""Samples into files: independence of chunks and shards, readable formats, nothing left half-written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyar
from pyar.sampling import open_writer, sample_chunks, shard_path, shard_range


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return pyar.NADE(dim=6, num_states=3, hidden_size=4)


def write(model, path, number, *, first_index=0, chunk_size=4, given=None):
    with open_writer(path, number, model.dim, seed=7, first_index=first_index) as writer:
        for x, log_prob in sample_chunks(
            model, number, seed=7, first_index=first_index, chunk_size=chunk_size, given=given
        ):
            writer.write(x, log_prob)


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_npz_holds_what_the_model_draws(model, tmp_path):
    write(model, tmp_path / "x.npz", 10)
    arrays = read(tmp_path / "x.npz")
    x, log_prob = model.sample_and_log_prob(10, seed=7)
    assert np.array_equal(arrays["x"], x.numpy())
    assert np.array_equal(arrays["log_prob"], log_prob.numpy())
    assert (arrays["x"].dtype, arrays["log_prob"].dtype) == (np.uint8, np.float32)
    assert (int(arrays["seed"]), int(arrays["first_index"])) == (7, 0)


def test_npy_and_its_log_probabilities(model, tmp_path):
    write(model, tmp_path / "x.npy", 10)
    x, log_prob = model.sample_and_log_prob(10, seed=7)
    assert np.array_equal(np.load(tmp_path / "x.npy"), x.numpy())
    assert np.array_equal(np.load(tmp_path / "x.log_prob.npy"), log_prob.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_the_file_does_not_depend_on_chunks(model, tmp_path, suffix):
    write(model, tmp_path / f"a{suffix}", 10, chunk_size=3)
    write(model, tmp_path / f"b{suffix}", 10, chunk_size=100)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_shards_put_together_are_the_whole(model, tmp_path):
    write(model, tmp_path / "x.npz", 11)
    whole, parts = read(tmp_path / "x.npz"), []
    for rank in range(3):
        first, number = shard_range(11, rank, 3)
        path = shard_path(tmp_path / "x.npz", rank, 3)
        write(model, path, number, first_index=first)
        parts.append(read(path))
    assert path.name == "x.rank-2-of-3.npz"
    for name in ("x", "log_prob"):
        assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_given_rows_follow_their_chunks(model, tmp_path):
    given = torch.randint(0, 3, (10, 2), dtype=torch.uint8)
    write(model, tmp_path / "x.npz", 10, given=given)
    x, _ = model.sample_and_log_prob(10, seed=7, given=given)
    arrays = read(tmp_path / "x.npz")
    assert np.array_equal(arrays["x"], x.numpy())
    assert np.array_equal(arrays["x"][:, :2], given.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_too_few_samples_leave_no_file(model, tmp_path, suffix):
    def short():
        with open_writer(tmp_path / f"x{suffix}", 10, model.dim, seed=7) as writer:
            writer.write(*model.sample_and_log_prob(4, seed=7))

    with pytest.raises(RuntimeError, match="4 samples were written where 10"):
        short()
    assert not list(tmp_path.iterdir())


def test_no_samples_and_unknown_suffix(model, tmp_path):
    write(model, tmp_path / "x.npz", 0)
    assert read(tmp_path / "x.npz")["x"].shape == (0, 6)
    with pytest.raises(ValueError, match=r"\.npy or \.npz"):
        write(model, tmp_path / "x.txt", 1)
