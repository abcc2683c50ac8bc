"""torch.compile: of the B×D×H form where the vector is given, of one step of the loop where it is drawn.

The whole loop of 784 steps would be unrolled by the compiler, which takes it many minutes; the step is what users
compile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, torch_vectorised
from benchmarks.peers.torch_common import draw, setup, tensors, with_zero_state, work

NAME = "torch.compile"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    setup(case, threads)
    if case.model == "nade" and case.task != "sample":
        compiled = torch.compile(torch_vectorised.nade_log_prob, fullgraph=True, dynamic=False)
        return torch_vectorised.prepare(case, inputs, threads, compiled)
    if case.task != "sample":
        raise NotApplicable("nn.LSTM is one call that the compiler passes through: see nn.LSTM")
    _, uniforms, parameters = tensors(case, inputs)
    sampler = nade_sampler if case.model == "nade" else lstm_sampler
    return work(case, sampler(case, uniforms.T.contiguous(), parameters))


def nade_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    W, c, V, b = (parameters[name] for name in ("W", "c", "V", "b"))
    W = with_zero_state(W)

    @torch.compile(fullgraph=True, dynamic=False)
    def step(a: Tensor, W_d: Tensor, V_d: Tensor, b_d: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.sigmoid(a) @ V_d.T + b_d
        if case.K == 2:
            state = (u >= torch.sigmoid(-logits[:, 0])).long()
            return a + state[:, None] * W_d[1], state
        state = draw(logits, u)
        return a + W_d[state], state

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        a = c.repeat(case.B, 1)
        x = torch.empty(case.D, case.B, dtype=torch.uint8, device=c.device)
        for d in range(case.D):
            a, x[d] = step(a, W[d], V[d], b[d], uniforms[d])
        return {"x": x.T}

    return call


def lstm_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    layers = range(case.num_layers)
    bias = [parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"] for layer in layers]
    recurrent = [parameters[f"weight_hh_l{layer}"].T.contiguous() for layer in layers]
    below = [parameters[f"weight_ih_l{layer}"].T.contiguous() for layer in layers]
    table = torch.cat((below[0] + bias[0], bias[0][None]))
    head, head_bias = parameters["head_weight"].T.contiguous(), parameters["head_bias"]

    @torch.compile(fullgraph=True, dynamic=False)
    def step(previous: Tensor, h: list[Tensor], cell: list[Tensor], u: Tensor):
        next_h, next_cell = [], []
        for layer in layers:
            into = table[previous] if layer == 0 else torch.addmm(bias[layer], next_h[-1], below[layer])
            i, f, g, o = torch.addmm(into, h[layer], recurrent[layer]).chunk(4, 1)
            next_cell.append(torch.sigmoid(f) * cell[layer] + torch.sigmoid(i) * torch.tanh(g))
            next_h.append(torch.sigmoid(o) * torch.tanh(next_cell[-1]))
        return draw(torch.addmm(head_bias, next_h[-1], head), u), next_h, next_cell

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        h = [torch.zeros(case.B, case.H, device=uniforms.device) for _ in layers]
        cell = [torch.zeros_like(value) for value in h]
        x = torch.empty(case.D, case.B, dtype=torch.uint8, device=uniforms.device)
        previous = torch.full((case.B,), case.K, device=uniforms.device)
        for d in range(case.D):
            previous, h, cell = step(previous, h, cell, uniforms[d])
            x[d] = previous
        return {"x": x.T}

    return call
