"""NADE without a loop over dimensions: all their hidden units at once, a B×D×H tensor, in chunks of the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work
from benchmarks.peers.torch_common import setup, tensors, work

NAME = "PyTorch B×D×H"
# The B×D×H tensor of one chunk. Larger ones spend their time on page faults, smaller ones on calls.
CHUNK_BYTES = 16 << 20


def chunk_rows(case: Case) -> int:
    return max(1, CHUNK_BYTES // (4 * case.D * case.H))


def nade_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """x int64 [D, B] → log p [B]; a_d = c + Σ_{e<d} W_e[x_e] as a cumulative sum. Dimensions come first, so that the
    products with V are those of a batch of matrices as they lie."""
    earlier = x[:-1]
    if V.shape[1] == 1:
        added = earlier[:, :, None].to(c.dtype) * W[:-1]
    else:
        added = functional.one_hot(earlier, V.shape[1])[:, :, 1:].to(c.dtype) @ W[:-1]
    before = torch.cat((c.expand(1, x.shape[1], -1), added))
    h = torch.sigmoid(torch.cumsum(before, 0))
    logits = torch.baddbmm(b[:, None], h, V.mT)
    if V.shape[1] == 1:
        return -functional.softplus((1 - 2 * x) * logits[:, :, 0]).sum(0)
    return torch.log_softmax(logits, -1).gather(-1, x[:, :, None]).sum((0, 2))


def prepare(case: Case, inputs: Inputs, threads: int, log_prob=nade_log_prob) -> Work:
    if case.model != "nade" or case.task == "sample":
        raise NotApplicable("needs the whole vector beforehand, and a NADE")
    setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    chunks = [chunk.T.contiguous() for chunk in x.long().split(chunk_rows(case))]
    if case.task == "log_prob":
        values = list(parameters.values())

        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            return {"log_prob": torch.cat([log_prob(chunk, *values) for chunk in chunks])}

        return work(case, call)

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}

    def call_gradient() -> dict[str, Tensor]:
        for leaf in leaves.values():
            leaf.grad = None
        loss = torch.zeros((), device=x.device)
        for chunk in chunks:
            part = -log_prob(chunk, *leaves.values()).sum() / case.B
            part.backward()
            loss += part.detach()
        return {"loss": loss, **{name: leaf.grad for name, leaf in leaves.items()}}

    return work(case, call_gradient)
