"""What one would use instead of pyar, each at its best, one file each.

A peer module has `NAME` and `prepare(case, inputs, threads) -> Work`; it raises NotApplicable where it has no such job.
Its imports are its dependencies: where one is missing the peer is reported as missing. Every module runs in a process
of its own, so that thread pools do not meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OURS = "benchmarks.ours"
# Module → the name that tables use, in their order. The first is ours, what the others are compared with.
CONTENDERS = {
    OURS: "pyar",
    "benchmarks.peers.jax_scan": "JAX lax.scan",
    "benchmarks.peers.numba_loop": "numba",
    "benchmarks.peers.addmm_lstm": "addmm cell",
    "benchmarks.peers.nn_lstm": "nn.LSTM",
    "benchmarks.peers.torch_eager": "PyTorch eager loop",
    "benchmarks.peers.torch_vectorised": "PyTorch B×D×H",
    "benchmarks.peers.torch_compiled": "torch.compile",
    "benchmarks.peers.cuda_graph": "CUDA graph of the loop",
    "benchmarks.peers.torch_cached": "PyTorch, hand-cached",
    "benchmarks.peers.torch_passes": "PyTorch, D passes",
    "benchmarks.peers.torch_stacked": "PyTorch, prefixes stacked",
    "benchmarks.peers.torch_dense": "PyTorch dense layers",
}


class NotApplicable(Exception):  # noqa: N818  (not an error: the peer has no such job)
    """This peer has no such job; the message says why."""


@dataclass
class Work:
    """`call()` does the job once and returns when it is done; `to_numpy(raw)` turns what it returned into arrays.

    The arrays: log_prob → {"log_prob": [B]}; gradient → {"loss": [], and one gradient under each parameter's name};
    sample → {"x": [B, D]}, and "log_prob" [B] where the peer gives it.
    """

    call: Callable[[], Any]
    to_numpy: Callable[[Any], dict[str, np.ndarray]]
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # what another peer builds on


def require_model(model: str, *models: str) -> None:
    """Raises NotApplicable where the case's model is none of these."""
    if model not in models:
        raise NotApplicable(f"has no work of {model}")


def choose(modules: list[str], peers: str | None) -> list[str]:
    """The contenders' modules that --peers keeps: pyar always, all where it is not given."""
    if peers is None:
        return modules
    return [module for module in modules if module == OURS or module.split(".")[-1] in peers.split(",")]
