"""NADE's table: log-probability, loss with all gradients, sampling, for K = 2 and 10, on sparse and dense data; and for
K = 256 on a quarter of the dimensions, whose parameters are a gigabyte otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import TASKS, Case
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
    for task in TASKS:
        yield Case("nade", task, 256, 100, D=196, device=device), PEERS
