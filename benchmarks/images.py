"""Sampling a gated PixelCNN on 28×28 images: pyar's native call, the same steps as batched PyTorch operations, and the
usual loop with a whole forward pass for every pixel. Their samples are compared before anything is measured."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

import pyar
from benchmarks.machine import describe_environment
from benchmarks.runner import significant
from pyar.files import write_text
from pyar.native import _C
from pyar.ops.pixel_cnn import cached_sample

SHAPE, LAYERS = (28, 28), 7
CASES = ((32, 1), (32, 100), (64, 1), (64, 16), (64, 100))


def multiply_adds(features: int) -> int:
    """Of one image: vertical 2·3 taps, cross, horizontal 2 taps, residual and skip; the first layer and the head."""
    F, pixels = features, SHAPE[0] * SHAPE[1]
    first, middle, last = (3 * 7 + 3) * 2 * F + 6 * F * F, 22 * F * F, 21 * F * F
    return pixels * (first + (LAYERS - 2) * middle + last + F * F + F)


def contenders(features: int, batch: int) -> dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """Functions that draw the same samples. The loop's forward passes are all alike: it makes one, and no samples."""
    torch.manual_seed(0)
    model = pyar.PixelCNN(SHAPE, 2, features, LAYERS)
    layers, head = [layer.parameters_now() for layer in model.layers], model._head_parameters()
    x = model.sample(batch, seed=0)

    @torch.inference_mode()
    def cached() -> tuple[torch.Tensor, torch.Tensor]:
        return cached_sample(layers, head, SHAPE, 2, "softmax", torch.tensor(1), batch)

    @torch.inference_mode()
    def one_pass() -> tuple[torch.Tensor, torch.Tensor]:
        return x, model.log_prob(x)

    return {"pyar": lambda: model.sample_and_log_prob(batch, seed=1), "cached PyTorch": cached, "one pass": one_pass}


def check(features: int) -> None:
    """Whether native and cached draw the same, with the log-probability that a forward pass gives."""
    torch.manual_seed(0)
    model = pyar.PixelCNN(SHAPE, 2, features, LAYERS)
    native, cached = (contenders(features, 8)[name]() for name in ("pyar", "cached PyTorch"))
    if not torch.equal(native[0], cached[0]):
        raise SystemExit("the samplers draw different images: nothing is measured")
    torch.testing.assert_close(native[1], model.log_prob(native[0]).detach(), rtol=1e-5, atol=1e-3)


def run_images(options: argparse.Namespace) -> None:
    """Milliseconds of each, taken in turn: median, 20 and 80 %; the loop is D times its forward pass."""
    torch.set_num_threads(options.threads)
    for features in sorted({features for features, _ in CASES}):
        check(features)
    print(f"gated PixelCNN, {LAYERS} layers, {SHAPE[0]}×{SHAPE[1]}, {options.threads} threads; all results match")
    records = []
    for features, batch in CASES:
        parts, readings, peaks = contenders(features, batch), {}, []
        end = time.perf_counter() + options.budget * len(parts)
        while time.perf_counter() < end or len(peaks) < 3:
            peaks.append(_C.multiply_add_peak(options.threads, 0.05))
            for name, draw in parts.items():
                start = time.perf_counter()
                draw()
                readings.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        readings["loop over pixels"] = [SHAPE[0] * SHAPE[1] * value for value in readings.pop("one pass")]
        for name, values in readings.items():
            p20, median, p80 = (significant(value) for value in np.percentile(values, (20, 50, 80)))
            rate = 2 * multiply_adds(features) * batch / (1e-3 * median) / float(np.median(peaks))
            share = "" if name == "loop over pixels" else f"  {100 * rate:.0f} % of the multiply-add peak"
            print(
                f"  F={features:<4}B={batch:<5}{name:<18}{median:10.4g} ms  ({p20:.3g}–{p80:.3g}, {len(values)}×)"
                f"{share}",
                flush=True,
            )
            records.append({"F": features, "B": batch, "contender": name, "median_ms": median, "p20_ms": p20})
            records[-1] |= {"p80_ms": p80, "readings": len(values)}
    environment = describe_environment(options.level)
    document = {"job": "images", "environment": environment, "records": records}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "images.json", json.dumps(document, indent=1) + "\n")
