"""Files of a run, written atomically: weights as safetensors with the constructor's arguments, training state."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pyar.files import atomic_write
from pyar.models import DensityModel, model_class, model_names

MODEL_FILE = "model.safetensors"
STATE_FILE = "training_state.pt"
FORMAT_VERSION = "1"


class CheckpointError(ValueError):
    """The file is damaged, foreign or not to be trusted; the message says which and what to do."""


# --- Weights ---


def _digest(texts: list[str], tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the metadata's texts and every tensor's name, type, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(
    model: DensityModel,
    path: str | os.PathLike[str],
    extra: dict[str, Any] | None = None,
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a model's weights and constructor arguments to one safetensors file, atomically.

    `extra`: JSON-serialisable facts kept with the weights (the data set's description, the validation NLL, …).
    `state_dict`: weights to store in place of the model's current ones, for instance the best of a training run.
    What parametrizations, weight_norm or prune compute is stored as it is used, so that the file holds a plain model.
    """
    weights = model.plain_state_dict(state_dict)
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in weights.items()}
    name = model.name
    config, extra_text = json.dumps(model.config), json.dumps(extra or {})
    metadata = {
        "pyar": FORMAT_VERSION,
        "model": name,
        "config": config,
        "extra": extra_text,
        "sha256": _digest([name, config, extra_text], tensors),
    }
    content = safetensors.torch.save(tensors, metadata)
    with atomic_write(path) as file:
        file.write(content)


def _model_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise CheckpointError(f"{path} is not a run folder: it has no {MODEL_FILE}")
        path = path / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    return path


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    content = path.read_bytes()  # safetensors.safe_open takes no path that is not UTF-8
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        if _is_pickle(content):
            raise CheckpointError(
                f"{path} is a pickle (torch.save), which can run code when loaded; pyar reads only the safetensors "
                "files that it writes"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    return metadata, tensors


def _is_pickle(content: bytes) -> bool:
    """Whether a file that is no whole safetensors file looks like a pickle, or an archive of torch.save.

    A safetensors file begins with the length of its header in 8 bytes, any bytes, and then the header's brace.
    """
    return content[8:9] != b"{" and (content[:4] == b"PK\x03\x04" or content[:1] == b"\x80")


def load_with_extra(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[DensityModel, dict[str, Any]]:
    """The model of a checkpoint file or run folder, in evaluation mode, and the facts stored with it."""
    path = _model_path(path)
    metadata, tensors = _read(path)
    missing = {"pyar", "model", "config", "extra", "sha256"} - metadata.keys()
    if missing:
        raise CheckpointError(f"{path} was not written by pyar: its metadata lack {', '.join(sorted(missing))}")
    if metadata["pyar"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has the format {metadata['pyar']!r}; this version of pyar reads {FORMAT_VERSION!r}: update pyar"
        )
    if _digest([metadata["model"], metadata["config"], metadata["extra"]], tensors) != metadata["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its contents")
    if metadata["model"] not in model_names():  # nothing but these classes is ever constructed from a file
        raise CheckpointError(
            f"{path} holds the model {metadata['model']!r}, which is not known here (known are "
            f"{', '.join(model_names())}); import the package that registers it first"
        )
    try:
        config, extra = json.loads(metadata["config"]), json.loads(metadata["extra"])
        model = model_class(metadata["model"])(**config)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {metadata['model']}: {error}") from error
    return model.eval().to(device), extra


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> DensityModel:
    """Loads a model that `pyar train` or `save_model` wrote.

    `path`: a `.safetensors` file or a run folder. The model comes back in evaluation mode on `device`.
    Raises `CheckpointError` if the file is damaged, was not written by pyar or is a pickle; it never runs code from it.
    """
    return load_with_extra(path, device)[0]


# --- Training state ---


def save_state(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a training state (tensors, numbers, strings, lists, dicts) atomically, as a torch file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_state` wrote, with `weights_only=True`: a file can hold data, never code."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no training state {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares every member with its CRC-32
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than plain data, so it is not loaded: {error}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or not a training state: {error}") from error
