"""pyar's own operations, as its models call them."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.peers import Work
from benchmarks.peers.torch_common import gradient_call, setup, tensors, work
from pyar.ops.lstm import lstm_log_prob, lstm_sample
from pyar.ops.nade import nade_log_prob, nade_mean_nll, nade_sample
from pyar.random import resolve_seed

NAME = "pyar"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    device = setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    seed = resolve_seed(inputs.seed, device=device)

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
