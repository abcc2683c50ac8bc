"""The step of variational Monte Carlo on spins: draw a batch, then the gradient of Σ_i w_i log p(x_i), by pyar's NADE
and by a PyTorch MADE of equal parameters with a cached sampler. What w_i is, the energy, costs both the same."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_environment
from benchmarks.peers.torch_made import Made
from benchmarks.runner import significant
from pyar.files import write_text
from pyar.ops.nade import nade_log_prob, nade_sample

B, D, H = 1000, 256, 256
PARTS = ("step", "sample", "gradient")


def pyar_parts() -> dict[str, Callable[[], Any]]:
    """The step and its two parts, on a model whose samples are half ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((D, 1, H), (H,), (D, 1, H), (D, 1))
    parameters = [(0.05 * torch.randn(shape, generator=generator)).requires_grad_() for shape in shapes]
    weights, seed = torch.randn(B, generator=generator), torch.tensor(1)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        return nade_sample(*parameters, seed=seed, num_samples=B)[0]

    def gradient(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(nade_log_prob(x, *parameters), parameters, weights)

    drawn = sample()
    return {"step": lambda: gradient(sample()), "sample": sample, "gradient": lambda: gradient(drawn)}


def made_parts() -> dict[str, Callable[[], Any]]:
    made, generator = Made(D, H), torch.Generator().manual_seed(0)
    weights, uniforms = torch.randn(B, generator=generator), torch.rand(D, B, generator=generator)
    drawn = made.sample(uniforms).clone()

    def gradient() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(made.log_prob(drawn), made.parameters, weights)

    return {"step": lambda: made.step(uniforms, weights), "sample": lambda: made.sample(uniforms), "gradient": gradient}


def run_physics(options: argparse.Namespace) -> None:
    """Milliseconds of both, taken in turn: median, 20 and 80 %."""
    torch.set_num_threads(options.threads)
    print(f"B={B}, D={D}, H={H}, half ones, {options.threads} threads")
    contenders = {"pyar NADE": pyar_parts(), "PyTorch MADE": made_parts()}
    records = []
    for part in PARTS:
        readings: dict[str, list[float]] = {name: [] for name in contenders}
        end = time.perf_counter() + options.budget * len(contenders)
        while time.perf_counter() < end or len(readings["pyar NADE"]) < 3:
            for name, parts in contenders.items():
                parts[part]()  # warm: the other has taken the caches
                start = time.perf_counter()
                parts[part]()
                readings[name].append(1e3 * (time.perf_counter() - start))
        for name, values in readings.items():
            p20, median, p80 = (significant(value) for value in np.percentile(values, (20, 50, 80)))
            print(f"  {part:<10}{name:<14}{median:9.4g} ms  ({p20:.3g}–{p80:.3g}, {len(values)}×)", flush=True)
            records.append({"part": part, "contender": name, "median_ms": median, "p20_ms": p20, "p80_ms": p80})
    environment = describe_environment(options.level)
    document = {"job": "physics", "environment": environment, "B": B, "D": D, "H": H, "records": records}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "physics.json", json.dumps(document, indent=1) + "\n")
