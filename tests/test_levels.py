"""The same bits on every processor: the instruction-set levels that have fused multiply-add compute the same numbers.

A process has one level (PYAR_CPU_LEVEL), so each level computes everything in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import test_deep_nade_kernels as deep_nade
import test_made as made
import test_pixel_cnn as pixel_cnn
import test_pixel_rnn as pixel_rnn
import test_rnade_kernels as rnade
import test_table_nade_kernels as table_nade
import torch
from oracle import nade_parameters, random_states
from torch import Tensor

import pyar
from pyar.ops import deep_nade as deep_nade_ops
from pyar.ops import nade as nade_ops

SUPPORTED = pyar.build_info().get("cpu_levels_supported", [])
FUSED = ("avx2", "avx512")

# Odd sizes, and sizes at which blocks, panels and passes end at different places on different levels.
NADE_CASES = [
    # D, K, H, options, scale of the parameters
    (1, 2, 1, {}, 1.0),
    (50, 2, 33, {}, 1.0),
    (61, 2, 500, {}, 1.0),
    (40, 2, 40, {}, 60.0),
    (29, 2, 56, {"scalar": True}, 1.0),
    (33, 2, 30, {"mlp_sizes": (19, 41)}, 1.0),
    (30, 10, 67, {}, 1.0),
    (24, 7, 130, {"scalar": True}, 1.0),
    (5, 256, 21, {}, 1.0),
    (20, 5, 18, {"mlp_sizes": (23, 9), "scalar": True}, 1.0),
]
LSTM_CASES = [
    # D, K, H, layers, input
    (9, 2, 1, 1, "onehot"),
    (12, 3, 25, 2, "scalar"),
    (11, 10, 40, 1, "onehot"),
    (7, 256, 72, 2, "onehot"),
    (6, 17, 136, 3, "scalar"),
]


def nade_results() -> Iterator[tuple[str, Tensor]]:
    for number, (D, K, H, options, scale) in enumerate(NADE_CASES):
        parameters = nade_parameters(D, K, H, scale=scale, **options).leaves()
        for B, zeros in ((1, 0.0), (37, 0.0), (150, 0.8)):
            name = f"nade {number}, B={B}"
            x = random_states(B, D, K, zeros=zeros)
            weights = torch.linspace(-1, 1, B)
            for label, function in (
                ("log_prob", nade_ops.nade_log_prob),
                ("conditional_log_prob", nade_ops.nade_conditional_log_prob),
                ("logits", nade_ops.nade_logits),
                ("mean_nll", nade_ops.nade_mean_nll),
                ("weighted mean_nll", partial(nade_ops.nade_mean_nll, weights=weights)),
            ):
                value = function(x, *parameters)
                yield f"{name}: {label}", value
                upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
                gradients = torch.autograd.grad(
                    value, parameters.tensors, upstream, allow_unused=True, materialize_grads=True
                )
                for i, gradient in enumerate(gradients):
                    yield f"{name}: gradient {i} of {label}", gradient
            seed = torch.tensor(3)
            drawn, log_prob = nade_ops.nade_sample(*parameters, seed=seed, num_samples=B, temperature=1.3)
            yield f"{name}: samples", drawn
            yield f"{name}: log-probabilities of samples", log_prob


def lstm_results() -> Iterator[tuple[str, Tensor]]:
    for number, (D, K, H, layers, form) in enumerate(LSTM_CASES):
        for weight_dtype in ("float32", "bfloat16"):
            torch.manual_seed(number)
            model = pyar.PixelLSTM(D, K, H, layers, input=form, weight_dtype=weight_dtype)
            for B in (1, 37):
                name = f"lstm {number}, {weight_dtype}, B={B}"
                x = random_states(B, D, K)
                value = model.log_prob(x)
                yield f"{name}: log_prob", value
                yield f"{name}: conditional_log_prob", model.conditional_log_prob(x)
                for i, gradient in enumerate(torch.autograd.grad(value.sum(), list(model.parameters()))):
                    yield f"{name}: gradient {i}", gradient
                drawn, log_prob = model.sample_and_log_prob(B, seed=5)
                yield f"{name}: samples", drawn
                yield f"{name}: log-probabilities of samples", log_prob


def made_results() -> Iterator[tuple[str, Tensor]]:
    for case in made.LARGER:
        D, K, options = case.values
        parameters = made.made_parameters(D, K, **options)
        for N in (1, 37, 150):
            for temperature in (1.0, 0.8):
                drawn, log_prob = made.sample(parameters, N, temperature=temperature)
                yield f"made {case.id}, N={N}, temperature {temperature}: samples", drawn
                yield f"made {case.id}, N={N}, temperature {temperature}: log-probabilities", log_prob
            leaves, x = parameters.leaves(), random_states(N, D, K)
            value = made.ops.made_log_prob(x, *leaves)
            yield f"made {case.id}, B={N}: log_prob", value
            for i, gradient in enumerate(torch.autograd.grad(value, leaves.tensors, torch.linspace(-1, 2, N))):
                yield f"made {case.id}, B={N}: gradient {i}", gradient


def deep_nade_results() -> Iterator[tuple[str, Tensor]]:
    for case in deep_nade.CASES:
        D, K, options = case.values
        parameters = deep_nade.deep_nade_parameters(D, K, **options)
        for R in (1, 37, 150):
            name = f"deep-nade {case.id}, R={R}"
            x = random_states(R, D, K)
            order, _, _ = deep_nade.walks(R, D)
            yield f"{name}: log_prob", deep_nade.log_prob(x, parameters)
            yield f"{name}: log_prob, temperature 0.8", deep_nade.log_prob(x, parameters, temperature=0.8)
            yield f"{name}: outputs", deep_nade_ops.deep_nade_path_outputs(x, order, *parameters)
            drawn, log_prob = deep_nade.sample(x, parameters)
            yield f"{name}: samples", drawn
            yield f"{name}: log-probabilities of samples", log_prob


def rnade_results() -> Iterator[tuple[str, Tensor]]:
    for case in rnade.CASES:
        D, C, H, options = case.values
        parameters = rnade.rnade_parameters(D, C, H, **options)
        for B in (1, 37, 150):
            name = f"rnade {case.id}, B={B}"
            x = rnade.random_values(B, D)
            yield f"{name}: log_prob", rnade.ops.rnade_log_prob(x, *parameters)
            yield f"{name}: conditional_log_prob", rnade.ops.rnade_conditional_log_prob(x, *parameters)
            upstream = torch.linspace(-1, 2, B)
            for i, gradient in enumerate(rnade.gradients(rnade.ops.rnade_log_prob, x, parameters, upstream)):
                yield f"{name}: gradient {i}", gradient
            drawn, log_prob = rnade.sample(parameters, B)
            yield f"{name}: samples", drawn
            yield f"{name}: log-probabilities of samples", log_prob


def image_results() -> Iterator[tuple[str, Tensor]]:
    for sizes in pixel_rnn.SIZES:
        for diagonal in (False, True):
            case = pixel_rnn.layer_case(diagonal, sizes, by_sample=sizes[0] > 1).to(torch.float32)
            for number, value in enumerate(pixel_rnn.value_and_gradients(pixel_rnn.ops._layer, case)):
                yield f"{'diagonal' if diagonal else 'row'} layer {sizes}: result {number}", value
    models = {}
    for case in pixel_rnn.VARIANTS:
        (height, width, *rest), K, options = case.values
        for kind in pixel_rnn.MODELS:
            shape = (height + 3, width + 4, *rest)
            models[f"{kind.name} {case.id}"] = pixel_rnn.image_model(kind, shape, K, hidden_size=19, **options)
    for case in pixel_cnn.VARIANTS:
        shape, K, options = case.values
        if options.get("gated", True):  # the plain form is sampled by torch's operations
            models[f"pixel-cnn {case.id}"] = pixel_cnn.random_model(shape, K, **options)
    for name, model in models.items():
        for N in (1, 41):
            drawn, log_prob = model.sample_and_log_prob(N, seed=2, temperature=0.9, **pixel_rnn.context_of(model, N))
            yield f"{name}, N={N}: samples", drawn
            yield f"{name}, N={N}: log-probabilities of samples", log_prob


def table_nade_results() -> Iterator[tuple[str, Tensor]]:
    for case in table_nade.CASES:
        columns, options = case.values
        parameters = table_nade.table_parameters(columns, **options)
        for R in (1, 37, 150):
            name = f"table-nade {case.id}, R={R}"
            rows = table_nade.table(columns, R)
            yield f"{name}: log-probabilities", table_nade.log_probs(columns, parameters, rows)
            drawn, log_probs = table_nade.sample(columns, parameters, rows)
            yield f"{name}: samples", drawn
            yield f"{name}: log-probabilities of samples", log_probs


def digests() -> dict[str, str]:
    """Name → hash of the bytes of every result."""
    torch.set_num_threads(2)
    results = [
        *nade_results(),
        *lstm_results(),
        *made_results(),
        *deep_nade_results(),
        *rnade_results(),
        *image_results(),
        *table_nade_results(),
    ]
    return {name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest() for name, value in results}


@pytest.mark.skipif(not set(FUSED) <= set(SUPPORTED), reason="this processor does not have both avx2 and avx512")
def test_levels_with_fused_multiply_add_give_the_same_bits() -> None:
    found = {}
    for level in FUSED:
        command = [sys.executable, str(Path(__file__)), level]
        environment = {**os.environ, "PYAR_CPU_LEVEL": level, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found[level] = json.loads(result.stdout)
    assert len(found["avx2"]) > 500
    differing = [name for name, digest in found["avx2"].items() if found["avx512"][name] != digest]
    assert not differing


if __name__ == "__main__":
    assert pyar.build_info()["cpu_level"] == sys.argv[1]
    print(json.dumps(digests()))
