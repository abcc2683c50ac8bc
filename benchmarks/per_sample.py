"""Per-sample gradients of NADE: torch.func's vmap(grad), which is one native call, beside a loop of single gradients.

Both give the gradients [B, …] of log p(x_b) with respect to every parameter, and are compared before they are timed.
The loop is timed twice: as it is, and with its results put together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from pyar.models import NADE

# (B, D, H, K, sizes of added layers)
CASES = ((256, 256, 256, 2, ()), (64, 256, 256, 10, ()), (256, 256, 256, 2, (64,)))
REPETITIONS = 9


def run_per_sample(threads: int) -> int:
    """Prints a line for every case; 1 if a result is wrong."""
    torch.set_num_threads(threads)
    print(f"per-sample gradients of log p, {threads} threads, medians of {REPETITIONS} in ms")
    status = 0
    for B, D, H, K, mlp_sizes in CASES:
        contenders = prepare(B, D, H, K, mlp_sizes)
        name = f"nade, B={B}, D={D}, H={H}, K={K}" + (f", added layers {list(mlp_sizes)}" if mlp_sizes else "")
        if not agree(contenders["vmap(grad)"](), contenders["loop, stacked"]()):
            print(f"  {name}: WRONG, the loop gives other gradients")
            status = 1
            continue
        medians = measure(contenders)
        ours = medians["vmap(grad)"]
        shown = ", ".join(f"{key} {1e3 * value:.1f} ({value / ours:.1f}×)" for key, value in medians.items())
        print(f"  {name}: {shown}", flush=True)
    return status


def prepare(
    B: int, D: int, H: int, K: int, mlp_sizes: tuple[int, ...]
) -> dict[str, Callable[[], list[Tensor] | list[tuple[Tensor, ...]]]]:
    generator = torch.Generator().manual_seed(0)
    model = NADE(D, K, H, mlp_sizes=mlp_sizes)
    x = torch.randint(K, (B, D), dtype=torch.uint8, generator=generator)
    parameters = dict(model.named_parameters())

    def log_prob(own: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, own, (row[None],)).sum()

    each = vmap(grad(log_prob), in_dims=(None, 0))

    def loop() -> list[tuple[Tensor, ...]]:
        return [torch.autograd.grad(model.log_prob(row).sum(), list(parameters.values())) for row in x[:, None]]

    return {
        "vmap(grad)": lambda: list(each(parameters, x).values()),
        "loop": loop,
        "loop, stacked": lambda: [torch.stack(parts) for parts in zip(*loop(), strict=True)],
    }


def agree(ours: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(one, two, rtol=1e-4, atol=1e-6) for one, two in zip(ours, expected, strict=True))


def measure(contenders: dict[str, Callable]) -> dict[str, float]:
    """Seconds of each, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPETITIONS):
        for name, call in contenders.items():
            start = time.perf_counter()
            result = call()
            seconds[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(values) for name, values in seconds.items()}
