"""The eager loops captured once in a CUDA graph and replayed: no launch costs, the strongest PyTorch loop on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work, addmm_lstm, torch_eager
from benchmarks.peers.torch_common import work

NAME = "CUDA graph of the loop"


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    if case.device != "cuda":
        raise NotApplicable("needs a CUDA device")
    if case.task == "gradient":
        raise NotApplicable("captures the forward loops")
    loop = (addmm_lstm if case.model == "lstm" else torch_eager).prepare(case, inputs, threads)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        loop.call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    captured: dict[str, Tensor] = {}
    with torch.cuda.graph(graph):
        captured.update(loop.facts["call"]())

    def call() -> dict[str, Tensor]:
        graph.replay()
        return captured

    return work(case, call)
