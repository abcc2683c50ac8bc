"""NADE's table: log-probability, loss with all gradients, sampling, for K = 2 and 10, on sparse and dense data."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import Case
from benchmarks.peers import CONTENDERS

PEERS = [name for name in CONTENDERS if name.split(".")[-1] not in ("addmm_lstm", "nn_lstm")]
# The peers' work does not depend on the data, so that on dense data the fastest of them is enough.
DENSE_PEERS = ["benchmarks.ours", "benchmarks.peers.jax_scan"]
WORK = (("log_prob", 100), ("gradient", 100), ("sample", 1), ("sample", 100), ("sample", 1000))


def cases(device: str = "cpu") -> Iterator[tuple[Case, list[str]]]:
    for data in ("mnist-like", "dense"):
        for K in (2, 10):
            for task, B in WORK:
                yield Case("nade", task, K, B, data=data, device=device), PEERS if data == "mnist-like" else DENSE_PEERS
