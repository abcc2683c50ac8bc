"""Draws digits by the thousand, and shows what pyar promises about its samples.

A NADE learns scikit-learn's 8×8 digits for a few seconds. Then

1. the same model is sampled by the loop that one would write in PyTorch, one step a pixel, and by pyar, where the loop
   is one native call: samples a second, for small and large batches;
2. sample i of a seed is the same picture whatever the batch: all at once, one by one, or starting in the middle.

    python examples/fast_sampling.py --out fast_sampling.png

It takes less than a minute on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import pyar

SIDE = 8
SEED = 2016


def train(steps: int) -> tuple[pyar.NADE, float]:
    """A NADE of the digits, ink or no ink, and its loss on the last batch in nats."""
    torch.manual_seed(SEED)
    x = torch.from_numpy((load_digits().images.reshape(-1, SIDE * SIDE) > 7).astype(np.uint8))
    model = pyar.NADE(SIDE * SIDE, num_states=2, hidden_size=500).initialize_from_marginals(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        loss = model.mean_nll(x[torch.randint(len(x), (100,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, loss.item()


@torch.inference_mode()
def sample_in_a_loop(model: pyar.NADE, num_samples: int) -> torch.Tensor:
    """The textbook loop in PyTorch: a = c + Σ x_i W_i, one dimension after the other. uint8 [num_samples, D]."""
    a = model.c.repeat(num_samples, 1)
    x = torch.empty(model.dim, num_samples, dtype=torch.uint8)
    for d in range(model.dim):
        probability = torch.sigmoid(torch.addmm(model.b[d], torch.sigmoid(a), model.V[d].T)[:, 0])
        x[d] = torch.rand(num_samples) < probability
        a.addcmul_(x[d][:, None].to(a.dtype), model.W[d])
    return x.T


def speed(call: Callable[[], object], num_samples: int, seconds: float) -> float:
    """Samples a second: the fastest call of as many as fit into the time, after one to warm up."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return num_samples / best


def same_pictures(model: pyar.NADE, num_samples: int) -> torch.Tensor:
    """Draws the samples in three ways; they must agree, and are returned."""
    together = model.sample(num_samples, seed=SEED)
    one_by_one = torch.cat([model.sample(1, seed=SEED, first_index=i) for i in range(num_samples)])
    middle = num_samples // 2
    second_half = model.sample(num_samples - middle, seed=SEED, first_index=middle)
    if not (torch.equal(together, one_by_one) and torch.equal(together[middle:], second_half)):
        raise RuntimeError("the same seed gave different pictures in different batches")
    return together


def draw(pictures: torch.Tensor, batches: list[int], speeds: dict[str, list[float]], path: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    columns = 10
    rows = len(pictures) // columns
    sheet = np.ones((rows * (SIDE + 1) + 1, columns * (SIDE + 1) + 1))
    for i, picture in enumerate(pictures[: rows * columns].numpy().reshape(-1, SIDE, SIDE)):
        top, start = (SIDE + 1) * (i // columns) + 1, (SIDE + 1) * (i % columns) + 1
        sheet[top : top + SIDE, start : start + SIDE] = 0.85 * (1 - picture)
    left.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    left.set_title(f"samples 0 … {rows * columns - 1} of seed {SEED}: the same in every batch size", fontsize=10)
    for (name, values), style in zip(speeds.items(), ("o-k", "s--k"), strict=True):
        right.plot(batches, values, style, markerfacecolor="black" if style[0] == "o" else "white", label=name)
    right.set(xscale="log", yscale="log", xlabel="batch size", ylabel="samples a second")
    right.set_title(f"sampling a NADE, D = {SIDE * SIDE}, H = 500", fontsize=10)
    right.grid(color="0.85")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    parser.add_argument("--largest", type=int, default=10_000, help="largest batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement (default: %(default)s)")
    parser.add_argument("--out", default="fast_sampling.png", help="the picture to draw (default: %(default)s)")
    options = parser.parse_args(arguments)

    model, loss = train(options.steps)
    print(f"trained {options.steps} steps; training loss {loss:.1f} nats an image")
    pictures = same_pictures(model, 50)
    print("50 samples of one seed: together, one by one and from the middle on, the same pictures")

    batches = [n for n in (1, 10, 100, 1000, 10_000) if n <= options.largest]
    speeds: dict[str, list[float]] = {"pyar": [], "loop in PyTorch": []}
    for n in batches:
        speeds["pyar"].append(speed(lambda n=n: model.sample(n, seed=SEED), n, options.seconds))
        speeds["loop in PyTorch"].append(speed(lambda n=n: sample_in_a_loop(model, n), n, options.seconds))
        ours, loop = speeds["pyar"][-1], speeds["loop in PyTorch"][-1]
        print(f"batch {n:>6}: pyar {ours:>10,.0f} samples/s, the loop {loop:>9,.0f}: {ours / loop:.1f} times as many")
    draw(pictures, batches, speeds, options.out)
    print(f"drew {options.out}")
    return speeds


if __name__ == "__main__":
    main()
