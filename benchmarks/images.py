"""Image models on 28×28 images of two states: the gated PixelCNN samples; the Row LSTM and the Diagonal BiLSTM sample
and give their loss with all gradients.

The peers of a sampler are a jitted JAX program and batched PyTorch operations that compute every feature once as well,
and the usual loop with a whole forward pass for every pixel. Those of a gradient are a jitted JAX scan and the plain
PyTorch form, which is pyar's reference. Everybody has the same parameters, images and uniforms, and the results are
compared before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyar
from benchmarks.cases import uniforms
from benchmarks.machine import describe_environment
from benchmarks.runner import LONG_REPETITIONS, LONG_SECONDS, MAX_REPETITIONS, MIN_REPETITIONS, significant
from pyar.files import write_text
from pyar.native import _C
from pyar.ops import pixel_cnn, pixel_rnn

SHAPE, SEED = (28, 28), 1
KINDS = {"pixel-cnn": pyar.PixelCNN, "row-lstm": pyar.RowLSTM, "diagonal-bilstm": pyar.DiagonalBiLSTM}
NAMES = {"pixel-cnn": "gated PixelCNN", "row-lstm": "Row LSTM", "diagonal-bilstm": "Diagonal BiLSTM"}
TASKS = {"gradient": "loss + all gradients", "sample": "sample"}
CONTENDERS = ("pyar", "JAX", "cached PyTorch", "plain PyTorch", "loop over pixels")
# A sampled pixel may differ where its uniform lies between two roundings of a probability: so many images of 1,000.
MOST_DIFFERING = 5


@dataclass(frozen=True)
class ImageCase:
    """`size`: the features of a PixelCNN, the hidden units of the others."""

    model: str
    task: str
    size: int
    B: int
    layers: int = 7

    def describe(self) -> str:
        letter = "F" if self.model == "pixel-cnn" else "h"
        return f"{NAMES[self.model]}, {letter}={self.size}, {self.layers} layers: {TASKS[self.task]}, B={self.B}"


CASES = (
    *(ImageCase("pixel-cnn", "sample", 32, B) for B in (1, 100)),
    *(ImageCase("pixel-cnn", "sample", 64, B) for B in (1, 16, 100)),
    *(ImageCase("row-lstm", "sample", 16, B) for B in (1, 16, 100, 1000)),
    *(ImageCase("diagonal-bilstm", "sample", 16, B) for B in (1, 16, 100, 1000)),
    ImageCase("row-lstm", "gradient", 16, 50),
    ImageCase("diagonal-bilstm", "gradient", 16, 50),
)


def multiply_adds(case: ImageCase) -> int:
    """Of one image: with gradients three times those of the forward pass, but the first layer needs none of its input.

    PixelCNN: a layer's vertical 2·3 taps, cross, horizontal 2 taps, residual and skip. The recurrent ones: of every
    direction input and states to four gates, and what goes up.
    """
    h, pixels = case.size, SHAPE[0] * SHAPE[1]
    if case.model == "pixel-cnn":
        F = h
        first, middle, last = (3 * 7 + 3) * 2 * F + 6 * F * F, 22 * F * F, 21 * F * F
        return pixels * (first + (case.layers - 2) * middle + last + F * F + F)
    F = 2 * h
    gates = 2 * F + 3 * h if case.model == "row-lstm" else (F + 2 * h) + (F + 1 + 2 * h)
    first, rest = (3 * 7 + 3) * F, case.layers * (4 * h * gates + h * F) + F * F + F
    return pixels * (2 * first + 3 * rest if case.task == "gradient" else first + rest)


def build(case: ImageCase) -> pyar.AutoregressiveModel:
    torch.manual_seed(0)
    return KINDS[case.model](SHAPE, 2, case.size, case.layers)


Contenders = dict[str, Callable[[], Any]]


def samplers(case: ImageCase) -> tuple[Contenders, Contenders]:
    """Functions that draw the same images, → x [B, D]; and a forward pass, of which the loop makes one a pixel."""
    model = build(case)
    head, seed = model._head_parameters(), torch.tensor(SEED)
    if case.model == "pixel-cnn":
        parameters = [layer.parameters_now() for layer in model.layers], head
        cached_sample = pixel_cnn.cached_sample
    else:
        parameters = model._first(), [layer.weights_now(None) for layer in model.layers], head
        cached_sample = pixel_rnn.cached_sample

    @torch.inference_mode()
    def cached() -> Tensor:
        return cached_sample(*parameters, SHAPE, 2, "softmax", seed, case.B)[0]

    functions: Contenders = {"pyar": lambda: model.sample(case.B, seed=SEED), "cached PyTorch": cached}
    if case.model != "row-lstm":
        import jax

        from benchmarks.peers import jax_images

        program = {"pixel-cnn": jax_images.sample_pixel_cnn, "diagonal-bilstm": jax_images.sample_diagonal_bilstm}
        u = jax.device_put(uniforms(SEED, case.B, model.dim).T.reshape(*SHAPE, case.B))
        arguments = jax_parameters(model), u

        def jitted() -> Tensor:
            states = np.array(program[case.model](*arguments).block_until_ready())
            return torch.from_numpy(states.reshape(model.dim, case.B).T).byte()

        functions["JAX"] = jitted
    x = model.sample(case.B, seed=SEED)
    return functions, {"loop over pixels": torch.inference_mode()(lambda: model.log_prob(x))}


def gradients(case: ImageCase) -> Contenders:
    """Functions that give (the loss, the gradients by parameter's name)."""
    import jax

    from benchmarks.peers import jax_images

    model = build(case)
    x = model.sample(case.B, seed=SEED)
    names, leaves = zip(*model.named_parameters(), strict=True)

    def pyar_gradients() -> tuple[Tensor, dict[str, Tensor]]:
        loss = model.mean_nll(x)
        return loss.detach(), dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))

    def plain() -> tuple[Tensor, dict[str, Tensor]]:
        loss = reference_loss(model, x)
        return loss.detach(), dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))

    parameters = jax_parameters(model)
    states = jax.device_put(x.view(case.B, *SHAPE).float().numpy())

    def run(program: Callable) -> Any:
        return jax.block_until_ready(program(parameters, states))

    programs = [jax_images.loss_and_gradients(unroll) for unroll in (1, 4)]
    for one in programs:
        run(one)  # compiles
    program = min(programs, key=lambda one: seconds_of(lambda: run(one)))

    def jitted() -> tuple[Tensor, dict[str, Tensor]]:
        loss, found = run(program)
        return torch.tensor(float(loss)), {name: torch.from_numpy(np.array(found[name])) for name in names}

    return {"pyar": pyar_gradients, "JAX": jitted, "plain PyTorch": plain}


def reference_loss(model: torch.nn.Module, x: Tensor) -> Tensor:
    """The mean negative log-likelihood by pyar.reference alone."""
    from pyar.reference import diagonal_bilstm, pixel_rnn, plane, row_lstm

    kind = row_lstm if isinstance(model, pyar.RowLSTM) else diagonal_bilstm
    first = pixel_rnn.First(model.above.weight, model.left.weight, model.above.bias)
    layers = [kind.Layer(**{name: getattr(layer, name) for name in kind.Layer._fields}) for layer in model.layers]
    image = plane.numbers(x, 2, torch.float32).view(len(x), *SHAPE, 1)
    outputs = plane.outputs(kind.features(image, first, layers).flatten(1, 2), x, *model._head_parameters())
    return -plane.log_probability(outputs, x).sum(dim=1).mean()


def jax_parameters(model: torch.nn.Module) -> dict[str, Any]:
    import jax

    return {name: jax.device_put(p.detach().numpy()) for name, p in model.named_parameters()}


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check_samples(functions: Contenders, B: int) -> None:
    expected = functions["pyar"]()
    for name, draw in functions.items():
        differing = int((draw() != expected).any(dim=1).sum())
        if 1000 * differing > MOST_DIFFERING * max(B, 200):
            raise SystemExit(f"{name} draws {differing} of {B} images otherwise than pyar: nothing is measured")


def check_gradients(functions: Contenders) -> None:
    """Against the reference: that of plain PyTorch, in float32."""
    loss, expected = functions["plain PyTorch"]()
    for name, compute in functions.items():
        found_loss, found = compute()
        torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
        for parameter, value in expected.items():
            error = (found[parameter] - value).abs().max() / value.abs().max()
            if not error < 1e-3:
                raise SystemExit(f"{name}: the gradient of {parameter} is off by {error:.2g} of its largest")


def measure(functions: Contenders, budget: float, threads: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each, taken in turn, a long one's fewer; and the multiply-add peak, in operations a second.

    Everybody has been called once before.
    """
    readings: dict[str, list[float]] = {}
    wanted = {}
    for name, call in functions.items():
        seconds = seconds_of(call)
        fewest = MIN_REPETITIONS if seconds < LONG_SECONDS else LONG_REPETITIONS
        wanted[name] = int(np.clip(budget / seconds, fewest, MAX_REPETITIONS))
        readings[name] = [1e3 * seconds] if seconds > budget else []
    peak = 0.0
    rounds = max(wanted.values())
    for turn in range(rounds):
        if turn < 8:
            peak = max(peak, _C.multiply_add_peak(threads, 0.05))
        for name, call in functions.items():
            due = (turn + 1) * wanted[name] // rounds > turn * wanted[name] // rounds
            if due and len(readings[name]) < wanted[name]:
                time.sleep(0.03)  # the threads of the one before may still spin for work
                readings[name].append(1e3 * seconds_of(call))
    return readings, peak


def run_images(options: argparse.Namespace) -> None:
    """Prints the tables and writes images.json. What --only leaves out stays from an earlier run of this commit."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # JAX takes the cores it may use
    torch.set_num_threads(options.threads)
    environment = describe_environment(options.level)
    path = options.out / "images.json"
    records: dict[str, dict[str, Any]] = {}
    if options.only and path.exists():
        stored = json.loads(path.read_text())
        if stored["environment"]["commit"] == environment["commit"] and stored["threads"] == options.threads:
            records = {record["job"]: record for record in stored["records"]}
    for case in CASES:
        job = case.describe()
        if options.only not in job:
            continue
        if case.task == "sample":
            functions, passes = samplers(case)
            check_samples(functions, case.B)
            passes["loop over pixels"]()
            readings, peak = measure(functions | passes, options.budget, options.threads)
            readings["loop over pixels"] = [SHAPE[0] * SHAPE[1] * value for value in readings["loop over pixels"]]
        else:
            functions = gradients(case)
            check_gradients(functions)
            readings, peak = measure(functions, options.budget, options.threads)
        print(f"{job}, {options.threads} threads; the results match", flush=True)
        outcomes = []
        for name in filter(readings.__contains__, CONTENDERS):
            p20, median, p80 = (significant(value) for value in np.percentile(readings[name], (20, 50, 80)))
            share = 2 * multiply_adds(case) * case.B / (1e-3 * median) / peak
            print(
                f"  {name:<18}{median:10.4g} ms  ({p20:.3g}–{p80:.3g}, {len(readings[name])}×)"
                f"{100 * share:6.1f} % of the multiply-add peak",
                flush=True,
            )
            outcomes.append({"contender": name, "median_ms": median, "p20_ms": p20, "p80_ms": p80})
            outcomes[-1] |= {"readings": len(readings[name]), "share_of_peak": significant(share)}
        records[job] = asdict(case) | {"job": job, "peak_gflops": round(peak / 1e9, 1), "outcomes": outcomes}
        ordered = [records[case.describe()] for case in CASES if case.describe() in records]
        document = {"job": "images", "environment": environment, "threads": options.threads, "records": ordered}
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(document, indent=1) + "\n")
