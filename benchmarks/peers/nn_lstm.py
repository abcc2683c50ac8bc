"""torch.nn.LSTM over the whole sequence (cuDNN on a GPU): teacher-forced log-probability and gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import Case, Inputs
from benchmarks.peers import NotApplicable, Work
from benchmarks.peers.torch_common import setup, tensors, work

NAME = "nn.LSTM"


def build_lstm(case: Case, parameters: dict[str, Tensor]) -> tuple[nn.LSTM, nn.Linear]:
    """The modules, in nn.LSTM's own layout (steps first, its faster one), holding these parameters."""
    device = torch.device(case.device)
    lstm = nn.LSTM(case.K, case.H, case.num_layers, device=device)
    lstm.load_state_dict({name: value for name, value in parameters.items() if not name.startswith("head_")})
    head = nn.Linear(case.H, case.K, device=device)
    head.load_state_dict({"weight": parameters["head_weight"], "bias": parameters["head_bias"]})
    return lstm, head


def prepare(case: Case, inputs: Inputs, threads: int) -> Work:
    if case.model != "lstm" or case.task == "sample":
        raise NotApplicable("nn.LSTM reads given sequences of an LSTM only")
    setup(case, threads)
    x, _, parameters = tensors(case, inputs)
    lstm, head = build_lstm(case, parameters)
    columns = x.long().T.contiguous()  # [D, B]

    def log_prob() -> Tensor:
        one_hot = functional.one_hot(columns[:-1], case.K).to(torch.float32)
        hidden, _ = lstm(functional.pad(one_hot, (0, 0, 0, 0, 1, 0)))
        nll = functional.cross_entropy(head(hidden).flatten(0, 1), columns.flatten(), reduction="none")
        return -nll.view_as(columns).sum(0)

    if case.task == "log_prob":

        @torch.inference_mode()
        def call() -> dict[str, Tensor]:
            return {"log_prob": log_prob()}

        return work(case, call)

    names = [name for name, _ in lstm.named_parameters()] + ["head_weight", "head_bias"]
    leaves = [*lstm.parameters(), *head.parameters()]

    def call_gradient() -> dict[str, Tensor]:
        loss = -log_prob().mean()
        return {"loss": loss, **dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))}

    return work(case, call_gradient)
