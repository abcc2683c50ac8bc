"""torch.compile: of the B×D×H form where the vector is given, of a few steps of the loop where it is drawn.

The compiler would unroll the whole loop of 784 steps, which takes it many minutes; a few steps at a time share the cost
of a call, more gain nothing. On a GPU the compiler may try all it knows (max-autotune), CUDA graphs included: these
keep a result only until their next call, so it is copied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, require_model, torch_vectorised
from benchmarks.peers.torch_common import draw, setup, tensors, with_zero_state, work

NAME = "torch.compile"
STEPS = 4


def compiled(function: Callable, case: Case) -> Callable:
    if case.device == "cpu":
        return torch.compile(function, fullgraph=True, dynamic=False)
    fast = torch.compile(function, fullgraph=True, dynamic=False, mode="max-autotune")

    def call(*arguments):
        torch.compiler.cudagraph_mark_step_begin()
        return pytree.tree_map_only(Tensor, Tensor.clone, fast(*arguments))

    return call


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "nade", "lstm")
    setup(case, threads)
    if case.model == "nade" and case.task != "sample":
        return torch_vectorised.prepare(case, inputs, threads, compiled(torch_vectorised.nade_log_prob, case))
    if case.task != "sample":
        raise NotApplicable("nn.LSTM is one call that the compiler passes through: see nn.LSTM")
    _, uniforms, parameters = tensors(case, inputs)
    sampler = nade_sampler if case.model == "nade" else lstm_sampler
    return work(case, sampler(case, uniforms.T.contiguous(), parameters))


def nade_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    W, c, V, b = (parameters[name] for name in ("W", "c", "V", "b"))
    W = with_zero_state(W)

    def advance(a: Tensor, W: Tensor, V: Tensor, b: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        drawn = []
        for W_d, V_d, b_d, u in zip(W, V, b, uniforms, strict=True):
            logits = torch.sigmoid(a) @ V_d.T + b_d
            if case.K == 2:
                state = u >= torch.sigmoid(-logits[:, 0])
                a = a + state[:, None] * W_d[1]
            else:
                state = draw(logits, u)
                a = a + W_d[state]
            drawn.append(state)
        return a, torch.stack(drawn).to(torch.uint8)

    advance = compiled(advance, case)
    steps = list(zip(*(value.split(STEPS) for value in (W, V, b, uniforms)), strict=True))

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        a = c.repeat(case.B, 1)
        drawn = []
        for chunk in steps:
            a, states = advance(a, *chunk)
            drawn.append(states)
        return {"x": torch.cat(drawn).T}

    return call


def lstm_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    layers = range(case.num_layers)
    bias = [parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"] for layer in layers]
    recurrent = [parameters[f"weight_hh_l{layer}"].T.contiguous() for layer in layers]
    below = [parameters[f"weight_ih_l{layer}"].T.contiguous() for layer in layers]
    table = torch.cat((below[0] + bias[0], bias[0][None]))
    head, head_bias = parameters["head_weight"].T.contiguous(), parameters["head_bias"]

    def advance(previous: Tensor, h: list[Tensor], cell: list[Tensor], uniforms: Tensor):
        drawn, h, cell = [], list(h), list(cell)
        for u in uniforms:
            for layer in layers:
                into = table[previous] if layer == 0 else torch.addmm(bias[layer], h[layer - 1], below[layer])
                i, f, g, o = torch.addmm(into, h[layer], recurrent[layer]).chunk(4, 1)
                cell[layer] = torch.sigmoid(f) * cell[layer] + torch.sigmoid(i) * torch.tanh(g)
                h[layer] = torch.sigmoid(o) * torch.tanh(cell[layer])
            previous = draw(torch.addmm(head_bias, h[-1], head), u)
            drawn.append(previous)
        return previous, h, cell, torch.stack(drawn).to(torch.uint8)

    advance = compiled(advance, case)
    steps = uniforms.split(STEPS)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        h = [torch.zeros(case.B, case.H, device=uniforms.device) for _ in layers]
        cell = [torch.zeros_like(value) for value in h]
        previous = torch.full((case.B,), case.K, device=uniforms.device)
        drawn = []
        for chunk in steps:
            previous, h, cell, states = advance(previous, h, cell, chunk)
            drawn.append(states)
        return {"x": torch.cat(drawn).T}

    return call
