"""DeepNADE's table: the log-probabilities of pairs of a vector and an order, and samples, on 784 dimensions and two
layers of 500 units; weights as sparse in use as trained ones (mnist-like), and random ones (dense)."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import Case

OURS, CACHED, PASSES, STACKED = (
    f"benchmarks.{name}" for name in ("ours", "peers.torch_cached", "peers.torch_passes", "peers.torch_stacked")
)


def cases(device: str = "cpu") -> Iterator[tuple[Case, list[str]]]:
    for data in ("mnist-like", "dense"):
        for B in (1, 100, 1280):
            # D passes are a hundred times the work.
            slow = [PASSES] if B <= 100 and data == "mnist-like" else []
            case = Case("deep-nade", "log_prob", 2, B, num_layers=2, data=data, device=device)
            if B <= 100 or data == "mnist-like":
                yield case, [OURS, CACHED, STACKED, *slow]
        for B in (1, 100):
            slow = [PASSES] if data == "mnist-like" else []
            yield Case("deep-nade", "sample", 2, B, num_layers=2, data=data, device=device), [OURS, CACHED, *slow]
