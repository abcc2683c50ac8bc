"""What the PyTorch peers share: tensors from arrays, results to arrays, the inverse CDF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work
from pyar.reference.made import degrees


def setup(case: Case, threads: int) -> torch.device:
    torch.set_num_threads(threads)
    if case.device == "cuda":
        if not torch.cuda.is_available():
            raise NotApplicable("there is no CUDA device")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(case.device)


def tensors(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x uint8, uniforms and parameters on the case's device."""
    device = torch.device(case.device)
    parameters = {name: torch.from_numpy(value).to(device) for name, value in inputs.parameters.items()}
    return torch.from_numpy(inputs.x).to(device), torch.from_numpy(inputs.uniforms).to(device), parameters


def work(case: Case, call: Callable[[], dict[str, Tensor]], note: str = "") -> Work:
    """A Work that waits for the GPU, and hands out arrays."""

    def finished() -> Any:
        result = call()
        if case.device == "cuda":
            torch.cuda.synchronize()
        return result

    def to_numpy(raw: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {name: value.detach().cpu().numpy() for name, value in raw.items()}

    return Work(finished, to_numpy, note, {"call": call})


def gradient_call(
    parameters: dict[str, Tensor], mean_nll: Callable[[dict[str, Tensor]], Tensor]
) -> Callable[[], dict[str, Tensor]]:
    """A call that computes the loss and the gradients of all parameters by autograd."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}

    def call() -> dict[str, Tensor]:
        loss = mean_nll(leaves)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"loss": loss, **dict(zip(leaves, gradients, strict=True))}

    return call


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """The inverse CDF: logits [B, K], u [B] → states int64 [B]."""
    prefix = torch.softmax(logits, 1).cumsum(1)
    return torch.searchsorted(prefix, u[:, None], right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


def with_zero_state(W: Tensor) -> Tensor:
    """W [D, K−1, H] → [D, K, H] with the row of zeros that state 0 contributes."""
    return torch.cat((torch.zeros_like(W[:, :1]), W), 1)


def further_layers(parameters: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(weight [H, H], bias [H]) of the layers behind the first one, of a MADE or DeepNADE."""
    numbers = [name.removeprefix("weight_") for name in parameters if name.startswith("weight_")]
    return [(parameters[f"weight_{number}"], parameters[f"bias_{number}"]) for number in numbers]


def unit_starts(case: Case) -> list[int]:
    """Where a MADE's units of degrees 0 … D begin, which are sorted."""
    return torch.searchsorted(degrees(case.D, case.H), torch.arange(case.D + 1)).tolist()


def masked(case: Case, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """A MADE's parameters, or their gradients, with zeros where the masks hide them."""
    degree, dims = degrees(case.D, case.H), torch.arange(case.D)[:, None]
    masks = {"W": (dims < degree)[:, None], "V": (degree <= dims)[:, None], "weight": degree <= degree[:, None]}
    return {
        name: value * masks[name.split("_")[0]] if name.split("_")[0] in masks else value
        for name, value in parameters.items()
    }
