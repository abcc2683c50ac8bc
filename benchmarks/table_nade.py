"""TableNADE on a table of measurements, one of mixed columns and a wide one: pyar's native calls beside the loop over
columns that one writes by hand in PyTorch, all prefixes stacked, and a pass through the network for every column. Their
results are compared with each other and with float64 before anything is measured."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyar
from benchmarks.machine import describe_environment
from benchmarks.runner import significant
from pyar.files import write_text
from pyar.native import _C
from pyar.ops.table_nade import Layout, table_nade_log_probs, table_nade_path_log_probs, table_nade_sample
from pyar.reference import table_nade as reference
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms
from pyar.tables import Binary, Categorical, Columns, Integer, Real

BATCHES = (1, 100, 1000)
HIDDEN = (200, 200)  # the recipe's
SEED = 7
Call = Callable[[], tuple[Tensor, ...]]


def tables() -> dict[str, Columns]:
    """Red wine's eleven measurements, adult's columns, and a hundred of all kinds."""
    sizes = {"workclass": 9, "education": 16, "status": 7, "occupation": 15, "relation": 6, "race": 5, "country": 42}
    adult = {name: Categorical(tuple(range(size))) for name, size in sizes.items()}
    adult |= {"sex": Binary(), "income": Binary(), "weight": Real(), "age": Integer(17, 90), "hours": Integer(1, 99)}
    adult |= {"years": Integer(1, 16), "gain": Real(resolution=0.05), "loss": Real(resolution=0.05)}
    wide = [Real(), Binary(), Categorical(tuple(range(5))), Integer(0, 20), Real(components=5, family="laplace")]
    return {
        "11 measurements": Columns({f"x{d}": Real() for d in range(11)}),
        "adult's columns": Columns(adult),
        "100 columns": Columns({f"x{d}": wide[d % 5] for d in range(100)}),
    }


def build(columns: Columns) -> pyar.TableNADE:
    """Random weights, with which half of the units are active and every conditional hangs on what is seen."""
    generator = torch.Generator().manual_seed(SEED)
    model = pyar.TableNADE(columns, HIDDEN).requires_grad_(False)
    for parameter in (model.W, model.U):
        parameter.normal_(std=(2 / model.dim) ** 0.5, generator=generator)
    for layer in model.hidden:
        layer.weight.normal_(std=(2 / HIDDEN[0]) ** 0.5, generator=generator)
    model.V.normal_(std=0.05, generator=generator)
    return model


def contenders(model: pyar.TableNADE, x: Tensor) -> tuple[dict[str, Call], dict[str, Call]]:
    """Calls that score x [B, D] in the model's base order, column by column, and calls that draw so many samples."""
    B, D = x.shape
    layout, arguments = Layout(model.columns.conditionals), model._arguments()
    W, U, c, hidden, V, b, _ = arguments
    order = model.order.expand(B, -1)
    everything, nothing = torch.ones(B, D, dtype=torch.bool), torch.zeros(B, D, dtype=torch.bool)
    layers = [(weight.T.contiguous(), bias) for weight, bias in zip(hidden[::2], hidden[1::2], strict=True)]
    inputs = [W[place].contiguous() for place in layout.inputs]
    outputs = [(V[place].T.contiguous(), b[place]) for place in layout.outputs]
    index = torch.arange(B)
    u, v = indexed_uniforms(SEED, index, D), indexed_fine_uniforms(SEED, index, D, number=1)

    def units(a: Tensor) -> Tensor:
        h = torch.relu(a)
        for weight, bias in layers:
            h = torch.addmm(bias, h, weight).relu_()
        return h

    def loop() -> tuple[Tensor, ...]:
        features, a = layout.features(x), c.repeat(B, 1)
        found: list[Tensor] = [x] * D
        for d in model.order.tolist():
            found[d] = torch.addmm(outputs[d][1], units(a), outputs[d][0])
            a = torch.addmm(a.add_(U[d]), features[:, layout.inputs[d]], inputs[d])
        return (layout.log_probs(torch.cat(found, dim=1), x),)

    def stacked() -> tuple[Tensor, ...]:
        features = layout.features(x)
        a = torch.empty(D, B, HIDDEN[0])
        a[0] = c
        for step, d in enumerate(model.order[:-1].tolist()):
            torch.addmm(a[step] + U[d], features[:, layout.inputs[d]], inputs[d], out=a[step + 1])
        h = units(a.flatten(0, 1)).unflatten(0, (D, B))
        found: list[Tensor] = [x] * D
        for step, d in enumerate(model.order.tolist()):
            found[d] = torch.addmm(outputs[d][1], h[step], outputs[d][0])
        return (layout.log_probs(torch.cat(found, dim=1), x),)

    def passes() -> tuple[Tensor, ...]:
        seen, total = nothing.clone(), torch.zeros_like(x)
        for d in model.order.tolist():
            total[:, d] = table_nade_log_probs(x, seen, layout, *arguments)[:, d]
            seen[:, d] = True
        return (total,)

    def drawn_by_loop() -> tuple[Tensor, ...]:
        a, result, total = c.repeat(B, 1), torch.empty(B, D), torch.empty(B, D)
        for d in model.order.tolist():
            column, h = layout.columns[d], units(a)
            parameters = torch.addmm(outputs[d][1], h, outputs[d][0])
            value = column.draw(parameters, u[:, d], v[:, d]).float()
            result[:, d], total[:, d] = value, column.log_prob(parameters, value)
            a = torch.addmm(a.add_(U[d]), column.inputs(value), inputs[d])
        return result, total

    seed = torch.tensor(SEED)
    scores = {
        "pyar": lambda: (table_nade_path_log_probs(x, order, nothing, everything, layout, *arguments),),
        "PyTorch, hand-cached": loop,
        "PyTorch, prefixes stacked": stacked,
        "PyTorch, D passes": passes,
    }
    samples = {
        "pyar": lambda: table_nade_sample(x, order, nothing, layout, *arguments, seed=seed, indices=index),
        "PyTorch, hand-cached": drawn_by_loop,
    }
    return scores, samples


def check(model: pyar.TableNADE, scores: dict[str, Call], samples: dict[str, Call], x: Tensor) -> None:
    """Ends the run if a contender's result is not that of the float64 reference, or draws are not the same."""
    *parameters, activation = model._arguments()
    hidden = [tensor.double() for tensor in parameters[3]]
    exact = [*(tensor.double() for tensor in parameters[:3]), hidden, *(tensor.double() for tensor in parameters[4:])]
    everything = torch.ones(x.shape, dtype=torch.bool)
    walk = model.order.expand(len(x), -1), ~everything, everything, model.columns.conditionals, exact, activation
    expected = reference.path_log_probs(x.double(), *walk)
    for name, call in scores.items():
        close(call()[0], expected, f"{name}, log-probabilities")
    draws = {name: call() for name, call in samples.items()}
    theirs, ours = draws.values()
    # A uniform beside a boundary may fall on either side of it; what comes after then differs too.
    same = torch.isclose(ours[0], theirs[0], rtol=1e-3, atol=1e-3).all(dim=1)
    if same.double().mean() < 0.9:
        raise SystemExit("the samplers draw different rows: nothing is measured")
    for name, (drawn, log_probs) in draws.items():
        close(log_probs, reference.path_log_probs(drawn.double(), *walk), f"{name}, of samples")


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    error = ((actual - expected).abs().sum(dim=1) / expected.abs().sum(dim=1)).max().item()
    if not error < 1e-4:
        raise SystemExit(f"{what}: a relative error of {error:.2g}: nothing is measured")


def measure(calls: dict[str, Call], options: argparse.Namespace, multiply_adds: float) -> list[dict[str, Any]]:
    """Milliseconds of each, taken in turn: median, 20 and 80 %."""
    readings: dict[str, list[float]] = {name: [] for name in calls}
    peaks = []
    for call in calls.values():
        call()
    end = time.perf_counter() + options.budget * len(calls)
    while time.perf_counter() < end or len(peaks) < 3:
        peaks.append(_C.multiply_add_peak(options.threads, 0.02))
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            readings[name].append(1e3 * (time.perf_counter() - start))
    records = []
    for name, values in readings.items():
        p20, median, p80 = (significant(value) for value in np.percentile(values, (20, 50, 80)))
        share = 2 * multiply_adds / (1e-3 * median) / float(np.median(peaks))
        records.append({"contender": name, "median_ms": median, "p20_ms": p20, "p80_ms": p80, "share_of_peak": share})
        records[-1]["readings"] = len(values)
    return records


@torch.inference_mode()
def run_table_nade(options: argparse.Namespace) -> None:
    """Prints and stores how long each takes."""
    torch.set_num_threads(options.threads)
    print(f"TableNADE, hidden layers of {HIDDEN}, {options.threads} threads")
    records = []
    for title, columns in tables().items():
        model = build(columns)
        x = model.sample(50, seed=SEED)
        check(model, *contenders(model, x), x)
        for B in BATCHES:
            x = model.sample(B, seed=SEED + 1)
            scores, samples = contenders(model, x)
            if len(x) > 100:
                del scores["PyTorch, D passes"]  # seconds a call
            hidden = sum(inputs * units for inputs, units in itertools.pairwise(HIDDEN))
            work = B * (model.dim * hidden + HIDDEN[-1] * len(model.b))
            for task, calls in (("log_prob", scores), ("sample", samples)):
                if options.only not in f"{title}, {task}, B={B},":
                    continue
                for record in measure(calls, options, work):
                    record |= {"table": title, "D": model.dim, "task": task, "B": B}
                    records.append(record)
                    print(
                        f"  {title:<16}{task:<9}B={B:<5}{record['contender']:<26}{record['median_ms']:10.4g} ms  "
                        f"({record['p20_ms']:.3g}–{record['p80_ms']:.3g}, {record['readings']}×)  "
                        f"{100 * record['share_of_peak']:.0f} % of the multiply-add peak",
                        flush=True,
                    )
    document = {"job": "table-nade", "environment": describe_environment(options.level), "records": records}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "table-nade.json", json.dumps(document, indent=1) + "\n")
