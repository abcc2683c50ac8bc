"""Dense layers of MADE's sizes, whose weights were masked beforehand: what the layers alone cost, without masks. The
gradients of weights that a mask hides are cleared after the clock has stopped."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, require_model
from benchmarks.peers.torch_common import further_layers, gradient_call, masked, setup, tensors, work

NAME = "PyTorch dense layers"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "made")
    if case.task == "sample" or case.K != 2:
        raise NotApplicable("for known states, two of them")
    setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    parameters = masked(case, parameters)

    def log_prob(parameters: dict[str, Tensor]) -> Tensor:
        states = x.float()
        h = torch.addmm(parameters["c"], states, parameters["W"][:, 0]).relu()
        for weight, bias in further_layers(parameters):
            h = functional.linear(h, weight, bias).relu()
        logits = functional.linear(h, parameters["V"][:, 0], parameters["b"][:, 0])
        return -functional.binary_cross_entropy_with_logits(logits, states, reduction="none").sum(dim=1)

    if case.task == "gradient":
        of_layers = work(case, gradient_call(parameters, lambda leaves: -log_prob(leaves).mean()))
        return Work(of_layers.call, lambda raw: of_layers.to_numpy(masked(case, raw)))

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        return {"log_prob": log_prob(parameters)}

    return work(case, call)
