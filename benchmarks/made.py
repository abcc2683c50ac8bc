"""MADE's table: sampling beside D passes and a hand-cached sampler, log-probability and gradients beside plain dense
layers; spins (256 dimensions, 131,600 parameters) and digits."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import Case

OURS, CACHED, PASSES, DENSE = (
    f"benchmarks.{name}" for name in ("ours", "peers.torch_cached", "peers.torch_passes", "peers.torch_dense")
)
SIZES = ({"D": 256, "H": 188, "data": "dense"}, {"D": 784, "H": 500, "data": "mnist-like"})


def cases(device: str = "cpu") -> Iterator[tuple[Case, list[str]]]:
    for sizes in SIZES:
        for B in (1, 100, 1000):
            slow = [PASSES] if B * sizes["D"] <= 256_000 else []
            yield Case("made", "sample", 2, B, num_layers=2, device=device, **sizes), [OURS, CACHED, *slow]
        if sizes["D"] == 256:
            yield Case("made", "sample", 2, 100_000, num_layers=2, device=device, **sizes), [OURS, CACHED]
        for task in ("log_prob", "gradient"):
            for B in (100, 1000):
                yield Case("made", task, 2, B, num_layers=2, device=device, **sizes), [OURS, DENSE]
