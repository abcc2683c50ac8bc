"""pyar's own operations, as its models call them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, orders_of
from benchmarks.peers import NotApplicable, Work
from benchmarks.peers.torch_common import gradient_call, setup, tensors, work
from pyar.ops.deep_nade import deep_nade_log_prob, deep_nade_sample
from pyar.ops.lstm import lstm_log_prob, lstm_sample
from pyar.ops.made import made_log_prob, made_sample
from pyar.ops.nade import nade_log_prob, nade_mean_nll, nade_sample
from pyar.random import resolve_seed

NAME = "pyar"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    device = setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    seed = resolve_seed(inputs.seed, device=device)
    if case.model == "made":
        return work(case, made_call(case, x, seed, parameters))
    if case.model == "deep-nade":
        return work(case, deep_nade_call(case, x, seed, parameters))

    if case.task == "gradient":
        mean_nll = nade_loss if case.model == "nade" else lstm_loss
        return work(case, gradient_call(parameters, lambda leaves: mean_nll(x, leaves)))

    arguments = list(parameters.values()) if case.model == "nade" else lstm_arguments(parameters)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        if case.task == "log_prob":
            log_prob = nade_log_prob if case.model == "nade" else lstm_log_prob
            return {"log_prob": log_prob(x, *arguments)}
        if case.model == "nade":
            samples, log_prob = nade_sample(*arguments, seed=seed, num_samples=case.B)
        else:
            samples, log_prob = lstm_sample(*arguments, seed=seed, num_samples=case.B, num_dims=case.D)
        return {"x": samples, "log_prob": log_prob}

    return work(case, call)


def nade_loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return nade_mean_nll(x, *parameters.values())


def lstm_arguments(parameters: dict[str, Tensor]) -> list:
    """weights of all layers, head_weight, head_bias."""
    weights = [value for name, value in parameters.items() if not name.startswith("head_")]
    return [weights, parameters["head_weight"], parameters["head_bias"]]


def lstm_loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return -lstm_log_prob(x, *lstm_arguments(parameters)).mean()


def layered(parameters: dict[str, Tensor]) -> list:
    """The parameters with those of the dense layers as one list, as MADE's and DeepNADE's operations take them."""
    hidden = [value for name, value in parameters.items() if name.startswith(("weight_", "bias_"))]
    first = [value for name, value in parameters.items() if name in ("W", "U", "c")]
    return [*first, hidden, parameters["V"], parameters["b"]]


def made_call(case: Case, x: Tensor, seed: Tensor, parameters: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    if case.task == "gradient":
        return gradient_call(parameters, lambda leaves: -made_log_prob(x, *layered(leaves)).mean())
    arguments, indices = layered(parameters), torch.arange(case.B)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        if case.task == "log_prob":
            return {"log_prob": made_log_prob(x, *arguments)}
        samples, log_prob = made_sample(*arguments, seed=seed, indices=indices)
        return {"x": samples, "log_prob": log_prob}

    return call


def deep_nade_call(
    case: Case, x: Tensor, seed: Tensor, parameters: dict[str, Tensor]
) -> Callable[[], dict[str, Tensor]]:
    if case.task == "gradient":
        raise NotApplicable("training takes a loss of one pass, not the gradient of a walk")
    arguments, order, indices = layered(parameters), orders_of(case), torch.arange(case.B)
    walks = x, order, torch.zeros_like(indices), torch.full_like(indices, case.D)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        if case.task == "log_prob":
            return {"log_prob": deep_nade_log_prob(*walks, *arguments)}
        samples, log_prob = deep_nade_sample(*walks, *arguments, seed=seed, indices=indices)
        return {"x": samples, "log_prob": log_prob}

    return call
