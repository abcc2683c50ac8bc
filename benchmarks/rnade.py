"""RNADE with ten Gaussians: log-densities, gradients and samples by pyar's native calls, an eager PyTorch loop over the
dimensions, PyTorch's operations on all dimensions at once, JAX's lax.scan and numba.

Everybody gets the same arrays, and for samples the uniforms and normal deviates drawn beforehand; pyar gets the seed.
Results are compared with the float64 reference before anything is measured.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe_environment
from benchmarks.runner import significant
from pyar.files import write_text
from pyar.native import _C
from pyar.ops import rnade as ops
from pyar.reference import rnade as reference
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms

TASKS = ("log_prob", "gradient", "sample")
SIZES = ((11, 50), (100, 50), (500, 50), (100, 200))  # D, H
BATCHES = (100, 1, 1000)
COMPONENTS, MIN_SCALE, SEED = 10, 0.02, 20131
LAW = ("gaussian", "relu", MIN_SCALE)
# Largest error over the largest magnitude; and the share of samples in which a component may be another, where its
# uniform is at a boundary: what follows in such a row differs too.
TOLERANCE = {"log_prob": 1e-5, "gradient": 1e-4, "sample": 1e-3}
OTHER_ROWS = 0.02

Call = Callable[[], Any]


class Inputs:
    """What every contender gets: parameters float32 as in pyar.reference.rnade, x [B, D], u and z [B, D]."""

    def __init__(self, D: int, H: int, B: int) -> None:
        self.D, self.H, self.B, self.P = D, H, B, 3 * COMPONENTS
        rng = np.random.default_rng(SEED)

        def normal(*shape: int, std: float) -> np.ndarray:
            return (std * rng.standard_normal(shape)).astype(np.float32)

        self.parameters = {
            "W": normal(D, H, std=0.3),
            "c": normal(H, std=0.3),
            "rho": np.arange(1, D + 1, dtype=np.float32) ** -0.5,
            "V": normal(D, self.P, H, std=0.5 * H**-0.5),
            "b": normal(D, self.P, std=0.5),
        }
        self.parameters["V"][:, 2 * COMPONENTS :] *= 0.1  # else scales that grow with what was drawn run away
        index = torch.arange(B)
        self.x = normal(B, D, std=1.0)
        self.u = indexed_uniforms(SEED, index, D).numpy()
        self.z = torch.special.ndtri(indexed_fine_uniforms(SEED, index, D, number=1)).float().numpy()

    def tensors(self) -> list[Tensor]:
        return [torch.from_numpy(value) for value in self.parameters.values()]

    def multiply_adds(self, task: str) -> int:
        """The products with V, and a row of W: three times as many with gradients."""
        return self.B * self.D * (self.P + 1) * self.H * (3 if task == "gradient" else 1)

    def expected(self, task: str) -> list[np.ndarray]:
        """The float64 reference's results."""
        leaves = [tensor.double().requires_grad_(task == "gradient") for tensor in self.tensors()]
        if task == "sample":
            return [reference.sample(self.B, *leaves, *LAW, seed=SEED)[0].numpy()]
        log_prob = reference.conditional_log_prob(torch.from_numpy(self.x).double(), *leaves, *LAW).sum(dim=1)
        if task == "log_prob":
            return [log_prob.numpy()]
        (-log_prob.mean()).backward()
        return [leaf.grad.numpy() for leaf in leaves]


def is_right(task: str, result: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """Whether a result is that of the float64 reference, as far as float32 goes. NaN is not."""
    tolerance = TOLERANCE[task]
    if len(result) != len(expected) or any(a.shape != b.shape for a, b in zip(result, expected, strict=True)):
        return False
    if task == "sample":
        rows = (np.abs(result[0] - expected[0]) <= tolerance * (1 + np.abs(expected[0]))).all(axis=1)
        return float(rows.mean()) >= 1 - OTHER_ROWS
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(result, expected, strict=True)]
    return bool(np.max(errors) <= tolerance)


# --- Contenders: prepare(inputs, task, threads) → a call, and what makes arrays of its result ---


def leaves_and_loss(inputs: Inputs, log_prob: Callable[..., Tensor]) -> Call:
    """A call that returns the gradients of the mean negative log-density."""
    x, leaves = torch.from_numpy(inputs.x), [tensor.requires_grad_() for tensor in inputs.tensors()]
    return lambda: torch.autograd.grad(-log_prob(x, *leaves).mean(), leaves)


def arrays_of(result: Any) -> list[np.ndarray]:
    return [np.asarray(value) for value in (result if isinstance(result, (tuple, list)) else [result])]


def ours(inputs: Inputs, task: str, threads: int) -> Call:
    if task == "gradient":
        return leaves_and_loss(inputs, lambda x, *parameters: ops.rnade_log_prob(x, *parameters, *LAW))
    x, parameters, seed = torch.from_numpy(inputs.x), inputs.tensors(), torch.tensor(SEED)

    @torch.inference_mode()
    def call() -> Tensor:
        if task == "log_prob":
            return ops.rnade_log_prob(x, *parameters, *LAW)
        return ops.rnade_sample(*parameters, *LAW, seed=seed, num_samples=inputs.B)[0]

    return call


def vectorised(inputs: Inputs, task: str, threads: int) -> Call | None:
    def log_prob(x: Tensor, *parameters: Tensor) -> Tensor:
        return ops._conditional_log_prob(x, *parameters, *LAW).sum(dim=1)

    if task == "sample":
        return None
    if task == "gradient":
        return leaves_and_loss(inputs, log_prob)
    x, parameters = torch.from_numpy(inputs.x), inputs.tensors()
    return torch.inference_mode()(lambda: log_prob(x, *parameters))


def torch_density(outputs: Tensor, x: Tensor) -> Tensor:
    logits, means, log_scales = outputs.chunk(3, dim=-1)
    scales = log_scales.exp() + MIN_SCALE
    z = (x[:, None] - means) / scales
    joint = torch.log_softmax(logits, dim=-1) - 0.5 * z * z - scales.log()
    return torch.logsumexp(joint, dim=-1) - 0.5 * math.log(2 * math.pi)


def eager(inputs: Inputs, task: str, threads: int) -> Call:
    def log_prob(x: Tensor, W: Tensor, c: Tensor, rho: Tensor, V: Tensor, b: Tensor) -> Tensor:
        a, total = c.expand(len(x), -1), torch.zeros(len(x))
        for column, w, r, v, bias in zip(x.T, *(value.unbind() for value in (W, rho, V, b)), strict=True):
            outputs = torch.addmm(bias, torch.relu(r * a), v.T)
            total = total + torch_density(outputs, column)
            a = torch.addcmul(a, column[:, None], w)
        return total

    if task == "gradient":
        return leaves_and_loss(inputs, log_prob)
    x, parameters = torch.from_numpy(inputs.x), inputs.tensors()
    if task == "log_prob":
        return torch.inference_mode()(lambda: log_prob(x, *parameters))
    W, c, rho, V, b = parameters
    u, z = torch.from_numpy(inputs.u).T.contiguous(), torch.from_numpy(inputs.z).T.contiguous()
    rows = torch.arange(inputs.B)

    @torch.inference_mode()
    def call() -> Tensor:
        a, drawn = c.repeat(inputs.B, 1), torch.empty(inputs.D, inputs.B)
        for d in range(inputs.D):
            outputs = torch.addmm(b[d], torch.relu(rho[d] * a), V[d].T)
            logits, means, log_scales = outputs.chunk(3, dim=-1)
            prefix = torch.softmax(logits, dim=-1).cumsum(dim=-1)
            k = (prefix <= u[d][:, None]).sum(dim=-1).clamp(max=COMPONENTS - 1)
            drawn[d] = means[rows, k] + (log_scales[rows, k].exp() + MIN_SCALE) * z[d]
            a.addcmul_(drawn[d][:, None], W[d])
        return drawn.T

    return call


def jax_scan(inputs: Inputs, task: str, threads: int) -> Call:
    import jax
    from jax import lax
    from jax import numpy as jnp

    def outputs_of(a, rho, V, b):
        return jnp.split(jax.nn.relu(rho * a) @ V.T + b, 3, axis=1)

    def log_prob(parameters, columns):
        def body(carry, step):
            a, total = carry
            W, rho, V, b, x = step
            logits, means, log_scales = outputs_of(a, rho, V, b)
            scales = jnp.exp(log_scales) + MIN_SCALE
            z = (x[:, None] - means) / scales
            joint = jax.nn.log_softmax(logits) - 0.5 * z * z - jnp.log(scales)
            return (a + x[:, None] * W, total + jax.nn.logsumexp(joint, axis=1)), None

        W, c, rho, V, b = parameters
        start = jnp.broadcast_to(c, (columns.shape[1], c.shape[0])), jnp.zeros(columns.shape[1])
        total = lax.scan(body, start, (W, rho, V, b, columns))[0][1]
        return total - 0.5 * columns.shape[0] * math.log(2 * math.pi)

    def sample(parameters, noise):
        def body(a, step):
            W, rho, V, b, u, z = step
            logits, means, log_scales = outputs_of(a, rho, V, b)
            prefix = jnp.cumsum(jax.nn.softmax(logits), axis=1)
            k = jnp.minimum((prefix <= u[:, None]).sum(axis=1), COMPONENTS - 1)[:, None]
            mean, log_scale = (jnp.take_along_axis(value, k, axis=1)[:, 0] for value in (means, log_scales))
            x = mean + (jnp.exp(log_scale) + MIN_SCALE) * z
            return a + x[:, None] * W, x

        W, c, rho, V, b = parameters
        return lax.scan(body, jnp.broadcast_to(c, (inputs.B, c.shape[0])), (W, rho, V, b, *noise))[1].T

    def gradients(parameters, columns):
        return jax.grad(lambda values: -log_prob(values, columns).mean())(parameters)

    function = {"log_prob": log_prob, "sample": sample, "gradient": gradients}[task]
    parameters = tuple(map(jnp.asarray, inputs.parameters.values()))
    data = (jnp.asarray(inputs.u.T), jnp.asarray(inputs.z.T)) if task == "sample" else jnp.asarray(inputs.x.T)
    program = jax.jit(function).lower(parameters, data).compile()
    return lambda: jax.block_until_ready(program(parameters, data))


def numba_loop(inputs: Inputs, task: str, threads: int) -> Call | None:
    if task == "gradient":
        return None
    import numba

    numba.set_num_threads(threads)
    loops = numba_loops()
    parameters = tuple(inputs.parameters.values())
    if task == "log_prob":
        return lambda: loops[0](inputs.x, *parameters, np.float32(MIN_SCALE))
    return lambda: loops[1](inputs.u, inputs.z, *parameters, np.float32(MIN_SCALE))


def numba_loops() -> tuple[Callable, Callable]:
    """Log-densities and samples: one sample after the other, samples in parallel."""
    global compiled_loops
    if compiled_loops is not None:
        return compiled_loops
    from numba import njit, prange

    @njit(fastmath=True)
    def outputs_of(a, h, rho, V, b, out):
        for j in range(a.shape[0]):
            h[j] = max(rho * a[j], np.float32(0))
        for p in range(V.shape[0]):
            total = b[p]
            for j in range(a.shape[0]):
                total += V[p, j] * h[j]
            out[p] = total

    @njit(fastmath=True)
    def add_row(a, x, row):
        for j in range(a.shape[0]):
            a[j] += x * row[j]

    @njit(fastmath=True, parallel=True)
    def log_prob(x, W, c, rho, V, b, min_scale):
        B, D = x.shape
        C = b.shape[1] // 3
        result = np.empty(B, np.float32)
        for i in prange(B):
            a, h = c.copy(), np.empty_like(c)
            out, joint = np.empty(3 * C, np.float32), np.empty(C, np.float32)
            total = np.float32(0)
            for d in range(D):
                outputs_of(a, h, rho[d], V[d], b[d], out)
                highest = out[:C].max()
                weights = np.float32(0)
                for k in range(C):
                    weights += np.exp(out[k] - highest)
                    scale = np.exp(out[2 * C + k]) + min_scale
                    z = (x[i, d] - out[C + k]) / scale
                    joint[k] = out[k] - highest - np.float32(0.5) * z * z - np.log(scale)
                best = joint.max()
                density = np.float32(0)
                for k in range(C):
                    density += np.exp(joint[k] - best)
                total += best + np.log(density) - np.log(weights) - np.float32(0.9189385)
                add_row(a, x[i, d], W[d])
            result[i] = total
        return result

    @njit(fastmath=True, parallel=True)
    def sample(u, z, W, c, rho, V, b, min_scale):
        B, D = u.shape
        C = b.shape[1] // 3
        x = np.empty((B, D), np.float32)
        for i in prange(B):
            a, h = c.copy(), np.empty_like(c)
            out, prefix = np.empty(3 * C, np.float32), np.empty(C, np.float32)
            for d in range(D):
                outputs_of(a, h, rho[d], V[d], b[d], out)
                highest = out[:C].max()
                total = np.float32(0)
                for k in range(C):
                    total += np.exp(out[k] - highest)
                    prefix[k] = total
                k = 0
                while k < C - 1 and prefix[k] <= u[i, d] * total:
                    k += 1
                x[i, d] = out[C + k] + (np.exp(out[2 * C + k]) + min_scale) * z[i, d]
                add_row(a, x[i, d], W[d])
        return x

    compiled_loops = log_prob, sample
    return compiled_loops


compiled_loops: tuple[Callable, Callable] | None = None

CONTENDERS: dict[str, tuple[Callable[[Inputs, str, int], Call | None], str | None]] = {
    "pyar": (ours, None),
    "PyTorch eager loop": (eager, None),
    "PyTorch vectorised": (vectorised, None),
    "JAX lax.scan": (jax_scan, "jax"),
    "numba": (numba_loop, "numba"),
}


def calls_of(inputs: Inputs, task: str, threads: int) -> dict[str, Call]:
    """Those that have such a job and are installed, each checked: pyar must be right, a wrong peer has no time."""
    expected, calls = inputs.expected(task), {}
    for name, (prepare, package) in CONTENDERS.items():
        try:
            if package is not None:
                importlib.import_module(package)
        except ImportError:
            print(f"  {name}: not installed")
            continue
        call = prepare(inputs, task, threads)
        if call is None:
            continue
        if not is_right(task, arrays_of(call()), expected):
            if name == "pyar":
                raise SystemExit(f"pyar's {task} is not the reference's: nothing is measured")
            print(f"  {name}: not the reference's result, so it has no time")
            continue
        calls[name] = call
    return calls


def run_rnade(options: argparse.Namespace) -> None:
    """Milliseconds of each, taken in turn: median, 20 and 80 %; pyar beside the best peer and the multiply-add peak."""
    torch.set_num_threads(options.threads)
    print(f"RNADE, {COMPONENTS} Gaussians, {options.threads} threads; every result is checked before its time is taken")
    records: list[dict[str, Any]] = []
    peaks = [_C.multiply_add_peak(options.threads, 0.06) for _ in range(8)]
    environment = describe_environment(options.level)
    options.out.mkdir(parents=True, exist_ok=True)
    for B, (D, H), task in itertools.product(BATCHES, SIZES, TASKS):
        case = f"rnade {task}, B={B}, D={D}, H={H}"
        if options.only not in case:
            continue
        records += measure(case, Inputs(D, H, B), task, options, peaks)
        machine = {"threads": options.threads, "multiply_add_peak_gflops": significant(max(peaks) / 1e9)}
        document = {"job": "rnade", "environment": environment, "machine": machine}
        document |= {"components": COMPONENTS, "records": records}
        write_text(options.out / "rnade.json", json.dumps(document, indent=1) + "\n")  # a run may be ended early


def measure(
    case: str, inputs: Inputs, task: str, options: argparse.Namespace, peaks: list[float]
) -> list[dict[str, Any]]:
    """The case's records. peaks: operations per second; whatever else runs can only have lowered one."""
    calls = calls_of(inputs, task, options.threads)
    readings: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + options.budget * len(calls)
    while time.perf_counter() < end or len(readings["pyar"]) < 3:
        peaks.append(_C.multiply_add_peak(options.threads, 0.02))
        for name, call in calls.items():
            start, times = time.perf_counter(), 0
            while times == 0 or time.perf_counter() - start < 0.01:  # short work several times for one reading
                call()
                times += 1
            readings[name].append(1e3 * (time.perf_counter() - start) / times)
    floor = 1e3 * 2 * inputs.multiply_adds(task) / max(peaks)
    medians = {name: float(np.median(values)) for name, values in readings.items()}
    best = min((value for name, value in medians.items() if name != "pyar"), default=math.nan)
    print(
        f"{case}: pyar {best / medians['pyar']:.1f}× the best peer, {100 * floor / medians['pyar']:.0f} % of the floor"
    )
    records = []
    for name, values in readings.items():
        p20, median, p80 = (significant(value) for value in np.percentile(values, (20, 50, 80)))
        print(f"  {name:<20}{median:10.4g} ms  ({p20:.3g}–{p80:.3g}, {len(values)}×)", flush=True)
        records.append({"task": task, "D": inputs.D, "H": inputs.H, "B": inputs.B, "contender": name})
        records[-1] |= {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "readings": len(values)}
        records[-1] |= {"floor_ms": significant(floor), "fraction_of_floor": significant(floor / median)}
    return records
