"""Samples into files: any number of them, in chunks, with bounded memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyar.files import atomic_write
from pyar.models import AutoregressiveModel

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal samples make equal files


def _npy_header(file: IO[bytes], dtype: type, shape: tuple[int, ...]) -> None:
    descriptor = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descriptor, "fortran_order": False, "shape": shape})


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return archive.open(entry, "w", force_zip64=True)


class SampleWriter:
    """Takes samples chunk by chunk and writes them as .npy or .npz.

    .npz: `x` uint8 [N, D], `log_prob` float32 [N], `labels` int64 [N] where the samples have such, and the numbers
    `seed` and `first_index` that draw the same samples again. .npy: `x` alone, and the others as NAME.log_prob.npy and
    NAME.labels.npy beside it. Made by `open_writer`.
    """

    def __init__(self, samples: IO[bytes], log_probs: IO[bytes]) -> None:
        self._samples, self._log_probs = samples, log_probs
        self.count = 0

    def write(self, x: Tensor, log_prob: Tensor) -> None:
        """Appends samples uint8 [n, D] and their log-probabilities float32 [n]."""
        self._samples.write(np.ascontiguousarray(x.cpu().numpy()).data)
        self._log_probs.write(np.ascontiguousarray(log_prob.cpu().numpy()).data)
        self.count += len(x)


@contextlib.contextmanager
def open_writer(
    path: str | os.PathLike[str],
    num_samples: int,
    dim: int,
    *,
    seed: int,
    first_index: int = 0,
    labels: Tensor | None = None,
) -> Iterator[SampleWriter]:
    """A writer for exactly `num_samples` samples; the file gets its name when all of them are in it.

    The suffix of `path` (.npy or .npz) chooses the format. `labels`: int64 [num_samples], what they are drawn given.
    """
    path = Path(path)
    if path.suffix == ".npy":
        with contextlib.ExitStack() as stack:
            if labels is not None:
                file = stack.enter_context(atomic_write(path.with_suffix(".labels.npy")))
                np.save(file, labels.cpu().numpy(), allow_pickle=False)
            log_probs = stack.enter_context(atomic_write(path.with_suffix(".log_prob.npy")))
            samples = stack.enter_context(atomic_write(path))
            _npy_header(samples, np.uint8, (num_samples, dim))
            _npy_header(log_probs, np.float32, (num_samples,))
            writer = SampleWriter(samples, log_probs)
            yield writer
            _check_count(writer, num_samples)
        return
    if path.suffix != ".npz":
        raise ValueError(f"samples are written as .npy or .npz, not {path.name!r}")
    with (
        atomic_write(path) as file,
        tempfile.TemporaryFile(dir=path.parent) as log_probs,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        # A zip archive is written one member at a time, so the log-probabilities wait in a file of their own.
        with _member(archive, "x") as samples:
            _npy_header(samples, np.uint8, (num_samples, dim))
            writer = SampleWriter(samples, log_probs)
            yield writer
        _check_count(writer, num_samples)
        log_probs.seek(0)
        with _member(archive, "log_prob") as member:
            _npy_header(member, np.float32, (num_samples,))
            shutil.copyfileobj(log_probs, member, 1 << 20)
        others = {"seed": np.asarray(np.uint64(seed)), "first_index": np.asarray(np.int64(first_index))}
        if labels is not None:
            others["labels"] = labels.cpu().numpy()
        for name, array in others.items():
            with _member(archive, name) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _check_count(writer: SampleWriter, num_samples: int) -> None:
    if writer.count != num_samples:
        raise RuntimeError(f"{writer.count} samples were written where {num_samples} were announced")


def sample_chunks(
    model: AutoregressiveModel,
    num_samples: int,
    *,
    seed: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    context: Tensor | None = None,
    chunk_size: int = 10_000,
    progress: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples first_index … first_index + num_samples − 1 of a seed and their log-probabilities, chunk by chunk.

    `given`: uint8 [G] for all samples, or [num_samples, G], the states of the first G steps. `context`: for models that
    take it, labels int64 [num_samples] or features float32 [num_samples, C]. What comes out does not depend on
    `chunk_size`. `progress` draws a bar with samples per second.
    """
    device = next(model.parameters()).device
    if given is not None:
        given = given.to(device)
    with tqdm(
        total=num_samples, unit=" samples", desc="sampling", disable=not progress, unit_scale=num_samples >= 10_000
    ) as bar:
        for first in range(0, num_samples, chunk_size):
            number = min(chunk_size, num_samples - first)
            part = given if given is None or given.ndim == 1 else given[first : first + number]
            told = {} if context is None else {"context": context[first : first + number].to(device)}
            x, log_prob = model.sample_and_log_prob(
                number, seed=seed, first_index=first_index + first, temperature=temperature, given=part, **told
            )
            bar.update(number)
            yield x, log_prob


def labels_in_turn(labels: Sequence[int], num_samples: int, first_index: int = 0) -> Tensor:
    """Labels int64 [num_samples] in turn, by the samples' own numbers, so that any division of them gives the same.

    >>> labels_in_turn([7, 3], 3), labels_in_turn([7, 3], 2, first_index=1)
    (tensor([7, 3, 7]), tensor([3, 7]))
    """
    return torch.tensor(labels, dtype=torch.int64)[(first_index + torch.arange(num_samples)) % len(labels)]


def shard_path(path: str | os.PathLike[str], rank: int, size: int) -> Path:
    """Where process `rank` of `size` writes its part: NAME.rank-0-of-2.npz, …; NAME.npz if there is one process."""
    path = Path(path)
    return path if size == 1 else path.with_name(f"{path.stem}.rank-{rank}-of-{size}{path.suffix}")


def shard_range(num_samples: int, rank: int, size: int) -> tuple[int, int]:
    """(first, number): the samples of process `rank` of `size`; in order of rank they make up 0 … num_samples − 1."""
    first = rank * num_samples // size
    return first, (rank + 1) * num_samples // size - first
