"""What the published code does: a pass through the whole network for every dimension, which is told what is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs, orders_of
from benchmarks.peers import NotApplicable, Work, require_model
from benchmarks.peers.torch_common import further_layers, masked, setup, tensors, work

NAME = "PyTorch, D passes"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "made", "deep-nade")
    if case.K != 2:
        raise NotApplicable("written for two states")
    setup(case, threads)
    x, uniforms, parameters = tensors(case, inputs)
    if case.task == "gradient":
        raise NotApplicable("gradients take one pass")
    if case.model == "made":
        if case.task != "sample":
            raise NotApplicable("known states take one pass")
        return work(case, made_sampler(case, uniforms, masked(case, parameters)))
    return work(case, deep_nade_walk(case, x, uniforms, parameters))


def network(weight: Tensor, bias: Tensor, parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """From inputs [B, ·] to the logits of all dimensions [B, D]; weight and bias are the first layer's."""
    layers = [(weight, bias), *((weight.T, bias) for weight, bias in further_layers(parameters))]
    V, b = parameters["V"][:, 0].T, parameters["b"][:, 0]

    def logits(h: Tensor) -> Tensor:
        for weight, bias in layers:
            h = torch.addmm(bias, h, weight).relu_()
        return torch.addmm(b, h, V)

    return logits


def made_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    logits = network(parameters["W"][:, 0], parameters["c"], parameters)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        x = torch.zeros_like(uniforms)
        for d in range(case.D):
            x[:, d] = uniforms[:, d] >= torch.sigmoid(-logits(x)[:, d])
        return {"x": x.to(torch.uint8)}

    return call


def deep_nade_walk(
    case: Case, x: Tensor, uniforms: Tensor, parameters: dict[str, Tensor]
) -> Callable[[], dict[str, Tensor]]:
    """The inputs are the states that are seen, and which those are: [B, 2 D]."""
    order = orders_of(case)
    logits = network(torch.cat((parameters["W"][:, 0], parameters["U"])), parameters["c"], parameters)
    known = x.float()

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        inputs = torch.zeros(case.B, 2 * case.D)
        states, seen = inputs[:, : case.D], inputs[:, case.D :]
        total = torch.zeros(case.B)
        for dims in order.T.unsqueeze(-1):
            logit = logits(inputs).gather(1, dims)
            if case.task == "log_prob":
                state = known.gather(1, dims)
                total -= functional.softplus((1 - 2 * state) * logit)[:, 0]
            else:
                state = (uniforms.gather(1, dims) >= torch.sigmoid(-logit)).float()
            states.scatter_(1, dims, state)
            seen.scatter_(1, dims, 1.0)
        return {"log_prob": total} if case.task == "log_prob" else {"x": states.to(torch.uint8)}

    return call
