"""DeepNADE's log-probability from known states: the first layer's sums of all steps by a running sum, then all of them
stacked in one product a layer; a few vectors at a time, as many as are fastest."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs, orders_of
from benchmarks.peers import NotApplicable, Work, require_model
from benchmarks.peers.torch_common import further_layers, setup, tensors, work

NAME = "PyTorch, prefixes stacked"
CHUNKS = (1, 2, 4, 16)  # vectors at a time


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    require_model(case.model, "deep-nade")
    if case.task != "log_prob" or case.K != 2:
        raise NotApplicable("for known states, two of them")
    setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    order = orders_of(case)
    states = x.long().gather(1, order)
    table = torch.stack((parameters["U"], parameters["U"] + parameters["W"][:, 0]), dim=1).flatten(0, 1)
    V, b, c = parameters["V"][:, 0], parameters["b"][:, 0], parameters["c"]
    layers = [(weight.T.contiguous(), bias) for weight, bias in further_layers(parameters)]

    def log_prob(dims: Tensor, state: Tensor) -> Tensor:
        """dims, state int64 [n, D] by step → [n]."""
        a = torch.empty(*dims.shape, case.H)
        a[:, 0] = c
        torch.index_select(table, 0, (2 * dims + state)[:, :-1].flatten(), out=(rows := torch.empty(0)))
        a[:, 1:] = rows.view(len(dims), -1, case.H)
        h = torch.cumsum(a, dim=1, out=a).relu_().flatten(0, 1)
        for weight, bias in layers:
            h = torch.addmm(bias, h, weight).relu_()
        logits = (h.mul_(V[dims.flatten()])).sum(dim=1).view(dims.shape) + b[dims]
        return -functional.softplus((1 - 2 * state) * logits).sum(dim=1)

    def caller(size: int, rows: int) -> Callable[[], dict[str, Tensor]]:
        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            parts = zip(order[:rows].split(size), states[:rows].split(size), strict=True)
            return {"log_prob": torch.cat([log_prob(*part) for part in parts])}

        return call

    def seconds(size: int) -> float:
        call = caller(size, max(CHUNKS))
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    size = min(CHUNKS, key=seconds)
    return work(case, caller(size, case.B), f"{size} vectors at a time")
