"""The loop that everyone writes: eager PyTorch, one iteration a dimension; nn.LSTM called for one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, require_model
from benchmarks.peers.nn_lstm import build_lstm
from benchmarks.peers.torch_common import draw, gradient_call, setup, tensors, with_zero_state, work

NAME = "PyTorch eager loop"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "nade", "lstm")
    setup(case, threads)
    x, uniforms, parameters = tensors(case, inputs)
    if case.model == "lstm":
        if case.task != "sample":
            raise NotApplicable("teacher-forced work needs no loop: see nn.LSTM")
        return work(case, lstm_sampler(case, uniforms, parameters))
    columns = x.long().T.contiguous()
    if case.task == "gradient":
        return work(case, gradient_call(parameters, lambda p: -nade_log_prob(case, columns, p).mean()))
    if case.task == "log_prob":

        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            return {"log_prob": nade_log_prob(case, columns, parameters)}

        return work(case, call)
    return work(case, nade_sampler(case, uniforms.T.contiguous(), parameters))


def nade_log_prob(case: Case, columns: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """columns int64 [D, B] → log p [B]."""
    a = parameters["c"].expand(columns.shape[1], -1)
    total = torch.zeros(columns.shape[1], device=a.device)
    for state, W, V, b in zip(columns, *dimensions(case, parameters), strict=True):
        logits = torch.addmm(b, torch.sigmoid(a), V.T)
        if case.K == 2:
            total = total - functional.softplus((1 - 2 * state) * logits[:, 0])
            a = torch.addcmul(a, state[:, None].to(a.dtype), W)
        else:
            total = total - functional.cross_entropy(logits, state, reduction="none")
            a = a + functional.embedding(state, W)
    return total


def dimensions(case: Case, parameters: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    """W, V and b by dimension. Taken apart at once: W[d] in the loop would have a gradient as large as all of W."""
    W = parameters["W"][:, 0] if case.K == 2 else with_zero_state(parameters["W"])
    return [value.unbind() for value in (W, parameters["V"], parameters["b"])]


def nade_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    """uniforms [D, B] → a call that draws x [B, D]."""
    c = parameters["c"]
    W, V, b = dimensions(case, parameters)
    V = [value.T for value in V]
    h = torch.empty(case.B, case.H, device=c.device)

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        a = c.repeat(case.B, 1)
        x = torch.empty(case.D, case.B, dtype=torch.uint8, device=c.device)
        for d, u in enumerate(uniforms):
            logits = torch.addmm(b[d], torch.sigmoid(a, out=h), V[d])
            if case.K == 2:
                state = u >= torch.sigmoid(-logits[:, 0])
                a.addcmul_(state[:, None].to(a.dtype), W[d])
            else:
                state = draw(logits, u)
                a += functional.embedding(state, W[d])
            x[d] = state
        return {"x": x.T}

    return call


def lstm_sampler(case: Case, uniforms: Tensor, parameters: dict[str, Tensor]):
    lstm, head = build_lstm(case, parameters)
    columns = uniforms.T.contiguous()

    @torch.inference_mode()
    def call() -> dict[str, Tensor]:
        x = torch.empty(case.D, case.B, dtype=torch.uint8, device=uniforms.device)
        step_input = torch.zeros(1, case.B, case.K, device=uniforms.device)
        state = None
        for d in range(case.D):
            hidden, state = lstm(step_input, state)
            drawn = draw(head(hidden[0]), columns[d])
            x[d] = drawn
            step_input = functional.one_hot(drawn, case.K).to(hidden.dtype)[None]
        return {"x": x.T}

    return call
