"""The hand-written LSTM cell: one addmm a step and layer, the input as a row of a table, everything preallocated."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work
from benchmarks.peers.torch_common import draw, setup, tensors, work

NAME = "addmm cell"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    if case.model != "lstm" or case.task != "sample":
        raise NotApplicable("a sampling loop of an LSTM")
    setup(case, threads)
    _, uniforms, parameters = tensors(case, inputs)
    columns = uniforms.T.contiguous()
    layers = range(case.num_layers)
    bias = [parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"] for layer in layers]
    recurrent = [parameters[f"weight_hh_l{layer}"].T.contiguous() for layer in layers]
    below = [parameters[f"weight_ih_l{layer}"].T.contiguous() for layer in layers]
    # Row k is what state k feeds to the gates, row K what the zero vector before the first step does.
    table = torch.cat((below[0] + bias[0], bias[0][None]))
    head = parameters["head_weight"].T.contiguous()
    head_bias = parameters["head_bias"]
    gates = torch.empty(case.B, 4 * case.H, device=uniforms.device)
    i, f, g, o = gates.chunk(4, 1)
    scratch = torch.empty(case.B, case.H, device=uniforms.device)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        h = [torch.zeros_like(scratch) for _ in layers]
        cell = [torch.zeros_like(scratch) for _ in layers]
        x = torch.empty(case.D, case.B, dtype=torch.uint8, device=uniforms.device)
        previous = torch.full((case.B,), case.K, device=uniforms.device)
        for d in range(case.D):
            for layer in layers:
                if layer == 0:
                    torch.index_select(table, 0, previous, out=gates)
                else:
                    torch.addmm(bias[layer], h[layer - 1], below[layer], out=gates)
                gates.addmm_(h[layer], recurrent[layer])
                cell[layer].mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), g.tanh_())
                torch.tanh(cell[layer], out=scratch)
                torch.mul(o.sigmoid_(), scratch, out=h[layer])
            previous = draw(torch.addmm(head_bias, h[-1], head), columns[d])
            x[d] = previous
        return {"x": x.T}

    return work(case, call)
