"""What is measured: a case names the work, `build_inputs` makes its parameters, data and uniforms.

Everybody gets the same arrays. The uniforms are pyar's own (Philox4x32-10 of seed, sample and dimension), drawn before
the clock starts, so that every contender must draw the same samples; pyar gets the seed and computes them inside.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pyar.data.files import read_idx

# Shares of background pixels in MNIST's training images, as their readers quantise them.
MNIST_ZEROS = {2: 0.8677, 10: 0.8258, 256: 0.8088}
MODELS = ("nade", "lstm", "made", "deep-nade")
TASKS = ("log_prob", "gradient", "sample")
DATA = ("mnist-like", "dense")
SEED = 20161
# Larger batches repeat their rows, so that the float64 reference has this many to do.
DISTINCT_ROWS = 200
# Of DeepNADE's: each takes the reference D passes. A row has an order of its own.
DISTINCT_WALKS = 50
# The share of a DeepNADE's units that are active: as in one that was trained on MNIST (dense: with random weights).
ACTIVE = {"mnist-like": 0.16, "dense": 0.5}
ENLARGED_DIGITS = "scikit-learn's 8×8 digits enlarged to 28×28 with MNIST's share of zeros"


@dataclass(frozen=True)
class Case:
    """One piece of work. `gradient` is the mean negative log-likelihood with the gradients of all parameters."""

    model: str
    task: str
    K: int
    B: int
    D: int = 784
    H: int = 500
    num_layers: int = 1
    data: str = "mnist-like"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("model", self.model, MODELS),
            ("task", self.task, TASKS),
            ("data", self.data, DATA),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got '{value}'")

    @property
    def outputs(self) -> int:
        """Outputs a dimension: one Bernoulli logit for two states, else K; PixelLSTM has K always."""
        return 1 if self.model != "lstm" and self.K == 2 else self.K

    @property
    def distinct_rows(self) -> int:
        """So many rows are different; a larger batch repeats them."""
        return min(self.B, DISTINCT_WALKS if self.model == "deep-nade" else DISTINCT_ROWS)

    def describe(self) -> str:
        layers = f", {self.num_layers} layers" if self.num_layers > 1 else ""
        return f"{self.model} {self.task}, B={self.B}, K={self.K}, D={self.D}, H={self.H}{layers}, {self.data} data"

    def to_json(self) -> dict:
        return asdict(self)


@dataclass
class Inputs:
    """x uint8 [B, D] · uniforms float32 [B, D] · seed · parameters by name, float32."""

    x: np.ndarray
    uniforms: np.ndarray
    seed: int
    parameters: dict[str, np.ndarray]

    @property
    def changing_share(self) -> float:
        """The share of dimensions whose state is not 0: where NADE's hidden units change."""
        return float((self.x != 0).mean()) if self.x.size else 0.0


def find_mnist(data_dir: str | None) -> np.ndarray | None:
    """MNIST's training images uint8 [N, 784] from `data_dir` or PYAR_DATA; None where there are none."""
    for folder in filter(None, (data_dir, os.environ.get("PYAR_DATA"))):
        for path in sorted(Path(folder).rglob("train-images-idx3-ubyte*")):
            return read_idx(path).reshape(-1, 784)
    return None


@cache
def grey_images(data_dir: str | None) -> tuple[np.ndarray, str]:
    """Grey images in [0, 1], float32 [N, 784], and what they are."""
    mnist = find_mnist(data_dir)
    if mnist is not None:
        return mnist[:10_000].astype(np.float32) / 255, "MNIST"
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images.astype(np.float32) / 16)[:, None]
    large = torch.nn.functional.interpolate(digits, size=(20, 20), mode="bilinear", align_corners=False)
    large = torch.nn.functional.pad(large, (4, 4, 4, 4))
    return large.reshape(len(large), 784).numpy(), ENLARGED_DIGITS


def mnist_like(num_rows: int, D: int, K: int, data_dir: str | None) -> np.ndarray:
    """States uint8 [num_rows, D] whose share of zeros is MNIST's; other D than 784 skip or repeat columns evenly."""
    grey, _ = grey_images(data_dir)
    zeros = MNIST_ZEROS.get(K, 0.82)
    threshold = np.quantile(grey, zeros)
    # The states above the background are spread evenly over 1 … K−1.
    levels = np.ceil((grey - threshold) / (1 - threshold) * (K - 1))
    states = np.clip(levels, 0, K - 1).astype(np.uint8)
    rows = np.resize(np.arange(len(states)), num_rows)
    columns = np.arange(D) * 784 // D
    return np.ascontiguousarray(states[rows][:, columns])


def build_inputs(case: Case, data_dir: str | None = None) -> Inputs:
    """The arrays of a case: the same for every contender and every run."""
    rng = np.random.default_rng(SEED)
    build = BUILDERS[case.model]
    distinct = case.distinct_rows
    if case.data == "mnist-like":
        x = mnist_like(distinct, case.D, case.K, data_dir)
        population = mnist_like(1797, case.D, case.K, data_dir)
        counts = np.stack([(population == k).mean(0) for k in range(case.K)], -1) * 1797 + 0.05
        marginals = counts / counts.sum(-1, keepdims=True)
    else:
        x = rng.integers(0, case.K, (distinct, case.D)).astype(np.uint8)
        marginals = np.full((case.D, case.K), 1 / case.K)
    x = np.resize(x, (case.B, case.D))
    parameters = build(case, rng, marginals)
    return Inputs(x, uniforms(SEED, case.B, case.D), SEED, {k: v.astype(np.float32) for k, v in parameters.items()})


def nade_parameters(case: Case, rng: np.random.Generator, marginals: np.ndarray) -> dict[str, np.ndarray]:
    """Random weights and the output biases that give samples the marginals [D, K], and so the data's share of zeros."""
    W = 0.05 * rng.standard_normal((case.D, case.K - 1, case.H), dtype=np.float32)
    V = 0.05 * rng.standard_normal((case.D, case.outputs, case.H), dtype=np.float32)
    b = marginal_biases(case, marginals)
    return {"W": W, "c": rng.normal(0, 0.05, case.H), "V": V, "b": b - 0.5 * V.sum(-1)}


def lstm_parameters(case: Case, rng: np.random.Generator, marginals: np.ndarray) -> dict[str, np.ndarray]:
    """torch.nn.LSTM's parameters, uniform in ±1/√H as it starts them, and a head with the data's mean marginal."""
    bound = case.H**-0.5
    parameters = {}
    for layer in range(case.num_layers):
        width = case.K if layer == 0 else case.H
        shapes = {"weight_ih": (4 * case.H, width), "weight_hh": (4 * case.H, case.H)}
        shapes |= {"bias_ih": (4 * case.H,), "bias_hh": (4 * case.H,)}
        parameters |= {f"{name}_l{layer}": rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    parameters["head_weight"] = rng.uniform(-1, 1, (case.K, case.H))
    parameters["head_bias"] = np.log(marginals.mean(0))
    return parameters


def made_parameters(case: Case, rng: np.random.Generator, marginals: np.ndarray) -> dict[str, np.ndarray]:
    """Random weights of two states or more, without direct connections, and the marginals' output biases."""
    W = normal(rng, (case.D, case.K - 1, case.H), (2 / case.D) ** 0.5)
    V = normal(rng, (case.D, case.outputs, case.H), 0.05)
    return {
        "W": W,
        "c": rng.normal(0, 0.05, case.H),
        **dense_layers(case, rng),
        "V": V,
        "b": marginal_biases(case, marginals) - 0.2 * V.sum(-1),
    }


def deep_nade_parameters(case: Case, rng: np.random.Generator, marginals: np.ndarray) -> dict[str, np.ndarray]:
    """Random weights, with biases that make the share ACTIVE of every layer's units active, on average over the units
    and over the steps of walks along states of those marginals."""
    share, std = ACTIVE[case.data], (2 / case.D) ** 0.5
    W, U = normal(rng, (case.D, case.K - 1, case.H), std), normal(rng, (case.D, case.H), std / 4)
    seen = rng.random((256, case.D)) < rng.random((256, 1))
    states = (rng.random((256, case.D, 1)) > marginals.cumsum(-1)).sum(-1).clip(max=case.K - 1)
    a = seen @ U + sum((seen & (states == k)) @ W[:, k - 1] for k in range(1, case.K))
    parameters = {"W": W, "U": U, "c": biases(a, share, rng)}
    h = np.maximum(a + parameters["c"], 0)
    for name, value in dense_layers(case, rng).items():
        if name.startswith("weight"):
            a = h @ value.T
            parameters[name] = value
        else:
            parameters[name] = biases(a, share, rng)
            h = np.maximum(a + parameters[name], 0)
    V = normal(rng, (case.D, case.outputs, case.H), 0.05)
    return {**parameters, "V": V, "b": marginal_biases(case, marginals) - V @ h.mean(0)}


def biases(a: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """What makes unit j of a [n, H] positive in a part of the rows; the parts spread widely around `share`."""
    parts = rng.beta(2 * share, 2 * (1 - share), a.shape[1])
    return -np.array([np.quantile(column, 1 - part) for column, part in zip(a.T, parts, strict=True)])


def dense_layers(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """weight_2, bias_2, …: the layers behind the first one, all of H units."""
    parameters = {}
    for number in range(2, case.num_layers + 1):
        parameters[f"weight_{number}"] = normal(rng, (case.H, case.H), (2 / case.H) ** 0.5)
        parameters[f"bias_{number}"] = rng.normal(0, 0.05, case.H)
    return parameters


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    return np.float32(std) * rng.standard_normal(shape, dtype=np.float32)


def marginal_biases(case: Case, marginals: np.ndarray) -> np.ndarray:
    """The output biases [D, P] of the marginals [D, K]."""
    logits = np.log(marginals)
    return logits[:, 1:] - logits[:, :1] if case.outputs == 1 else logits


BUILDERS = {
    "nade": nade_parameters,
    "lstm": lstm_parameters,
    "made": made_parameters,
    "deep-nade": deep_nade_parameters,
}


def orders_of(case: Case) -> torch.Tensor:
    """DeepNADE's order of every row: int64 [B, D]."""
    from pyar.models.deep_nade import random_orders

    return random_orders(case.distinct_rows, case.D, SEED)[torch.arange(case.B) % max(case.distinct_rows, 1)]


def uniforms(seed: int, num_samples: int, D: int) -> np.ndarray:
    """pyar's uniforms float32 [num_samples, D] of samples 0 … num_samples − 1."""
    from pyar.reference.philox import uniforms as philox_uniforms

    return philox_uniforms(seed, 0, num_samples, D).to(torch.float32).numpy()


def describe_data(data: str, data_dir: str | None) -> str:
    if data == "dense":
        return "dense: every state equally likely"
    return f"mnist-like: {grey_images(data_dir)[1]}"
