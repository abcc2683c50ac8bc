"""PixelLSTM's table: sampling, also with H = 512 and two layers; teacher-forced log-probability and gradient; all of
them for K = 2 and 256 too."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import TASKS, Case
from benchmarks.peers import CONTENDERS

PEERS = [name for name in CONTENDERS if name.split(".")[-1] != "torch_vectorised"]
# The slow loops are shown where they take seconds, not a minute.
FAST_PEERS = [f"benchmarks.{name}" for name in ("ours", "peers.jax_scan", "peers.addmm_lstm", "peers.nn_lstm")]


def cases(device: str = "cpu") -> Iterator[tuple[Case, list[str]]]:
    for B in (1, 100, 1000):
        yield Case("lstm", "sample", 10, B, H=256, device=device), PEERS if B < 1000 else FAST_PEERS
    for H, layers, B in ((512, 1, 1), (512, 1, 100), (256, 2, 1), (256, 2, 100)):
        yield Case("lstm", "sample", 10, B, H=H, num_layers=layers, device=device), FAST_PEERS
    for task in ("log_prob", "gradient"):
        yield Case("lstm", task, 10, 100, H=256, device=device), FAST_PEERS
    for K in (2, 256):
        for task in TASKS:
            yield Case("lstm", task, K, 100, H=256, device=device), FAST_PEERS
