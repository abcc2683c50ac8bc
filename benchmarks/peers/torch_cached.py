"""The loops that one writes by hand in PyTorch so that nothing is computed twice. MADE: a unit is computed once, as
soon as all that it sees is drawn, from weights that were masked beforehand. DeepNADE: the first layer's sum goes along,
and a step computes one row of outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs, orders_of
from benchmarks.peers import NotApplicable, Work, require_model
from benchmarks.peers.torch_common import further_layers, masked, setup, tensors, unit_starts, work

NAME = "PyTorch, hand-cached"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "made", "deep-nade")
    if case.K != 2:
        raise NotApplicable("written for two states")
    setup(case, threads)
    x, uniforms, parameters = tensors(case, inputs)
    if case.model == "made":
        if case.task != "sample":
            raise NotApplicable("known states need no loop: see the dense layers")
        return work(case, made_sampler(case, uniforms.T.contiguous(), masked(case, parameters)))
    if case.task == "gradient":
        raise NotApplicable("training takes a loss of one pass, not the gradient of a walk")
    return work(case, deep_nade_walk(case, x, uniforms, parameters))


def made_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """uniforms [D, B] → a call that draws x [B, D]."""
    V, b = parameters["V"][:, 0], parameters["b"][:, 0]
    layers = [(parameters["W"][:, 0].T.contiguous(), parameters["c"]), *further_layers(parameters)]
    starts = unit_starts(case)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        x = torch.zeros_like(uniforms)
        units = [torch.zeros(case.H, case.B) for _ in layers]
        for d, u in enumerate(uniforms):
            begin, end = starts[d], starts[d + 1]
            below, known = x, d
            for (weight, bias), h in zip(layers, units, strict=True):
                if end > begin:
                    rows = weight[begin:end, :known]
                    torch.addmm(bias[begin:end, None], rows, below[:known], out=h[begin:end]).relu_()
                below, known = h, end
            logit = torch.mv(below[:end].T, V[d, :end]) + b[d]
            x[d] = u >= torch.sigmoid(-logit)
        return {"x": x.T.to(torch.uint8)}

    return call


def deep_nade_walk(
    case: Case, x: Tensor, uniforms: Tensor, parameters: dict[str, Tensor]
) -> Callable[[], dict[str, Tensor]]:
    """Every row along its own order: its log-probability, or a sample."""
    order = orders_of(case)
    columns = order.T.contiguous()  # [D, B], the dimensions by step
    states, u = (value.gather(1, order).T.contiguous() for value in (x.long(), uniforms))
    # Rows 2d and 2d + 1: what dimension d adds in states 0 and 1.
    table = torch.stack((parameters["U"], parameters["U"] + parameters["W"][:, 0]), dim=1).flatten(0, 1)
    V, b, c = parameters["V"][:, 0], parameters["b"][:, 0], parameters["c"]
    layers = [(weight.T.contiguous(), bias) for weight, bias in further_layers(parameters)]
    buffers = [torch.empty(case.B, case.H) for _ in range(3 + len(layers))]

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        row, weights, first, *others = buffers
        a = c.repeat(case.B, 1)
        logits = torch.empty(case.D, case.B)
        drawn = torch.empty(case.D, case.B, dtype=torch.int64)
        for s, dims in enumerate(columns):
            h = torch.relu(a) if not layers else torch.clamp_min(a, 0, out=first)
            for (weight, bias), out in zip(layers, others, strict=True):
                h = torch.addmm(bias, h, weight, out=out).relu_()
            torch.index_select(V, 0, dims, out=weights)
            torch.add(weights.mul_(h).sum(dim=1), b[dims], out=logits[s])
            if case.task == "log_prob":
                state = states[s]
            else:
                state = drawn[s] = (u[s] >= torch.sigmoid(-logits[s])).long()
            a += torch.index_select(table, 0, 2 * dims + state, out=row)
        if case.task == "log_prob":
            return {"log_prob": -functional.softplus((1 - 2 * states) * logits).sum(dim=0)}
        return {"x": torch.empty(case.B, case.D, dtype=torch.int64).scatter_(1, order, drawn.T).to(torch.uint8)}

    return call
