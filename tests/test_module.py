"""A model as a module among modules: numbers of any library, forward, processes, other default dtypes and devices."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import random_states
from torch._dynamo.utils import counters

import pyar
from pyar.training.config import TrainingConfig

ROOT = Path(__file__).parent.parent


def plain(value: object) -> bool:
    """Whether a value holds Python's own types alone."""
    if isinstance(value, dict):
        return all(plain(item) for item in value.values())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return type(value) in (int, float, str, bool, type(None))


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.int32, np.array, torch.tensor])
def test_sizes_may_be_numbers_of_any_library(number: type) -> None:
    nade = pyar.NADE(number(4), number(3), number(5), mlp_sizes=[number(6)], order=np.array([3, 1, 0, 2]))
    lstm = pyar.PixelLSTM(number(4), number(3), number(5), number(2), checkpoint_steps=number(2))
    assert nade.config == pyar.NADE(4, 3, 5, mlp_sizes=[6], order=[3, 1, 0, 2]).config
    assert lstm.config == pyar.PixelLSTM(4, 3, 5, 2, checkpoint_steps=2).config
    for model in (nade, lstm):
        assert plain(model.config)
        json.dumps(model.config)
        numbers = {"seed": number(3), "first_index": number(2), "temperature": np.float32(0.5)}
        x, log_prob = model.sample_and_log_prob(number(6), **numbers)
        expected, expected_log_prob = model.sample_and_log_prob(6, seed=3, first_index=2, temperature=0.5)
        assert torch.equal(x, expected)
        assert torch.equal(log_prob, expected_log_prob)
        observed = torch.zeros(4, dtype=torch.bool)
        completed = model.complete(x, observed, number(3), **numbers)
        assert torch.equal(completed, model.complete(x, observed, 3, seed=3, first_index=2, temperature=0.5))
    assert pyar.NADE(np.prod((4, 4))).dim == 16


@pytest.mark.parametrize("temperature", [np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)])
def test_temperatures_may_be_numbers_of_any_library(temperature: object) -> None:
    model = pyar.NADE(4, 3, 5)
    assert torch.equal(model.sample(20, seed=1, temperature=temperature), model.sample(20, seed=1, temperature=0.5))
    assert torch.equal(model.sample(20, seed=1, temperature=np.int64(1)), model.sample(20, seed=1))


@pytest.mark.parametrize("bad", [True, np.True_, np.array(True), torch.tensor(True), np.float64(4), "4", None, [4]])
def test_what_is_no_integer_is_refused(bad: object) -> None:
    for name, make in {
        "dim": lambda: pyar.NADE(bad),
        "num_states": lambda: pyar.NADE(4, bad),
        "hidden_size": lambda: pyar.PixelLSTM(4, 2, bad),
        "num_layers": lambda: pyar.PixelLSTM(4, 2, 5, bad),
        "mlp_sizes": lambda: pyar.NADE(4, mlp_sizes=[bad]),
        "order": lambda: pyar.NADE(2, order=[0, bad]),
        "num_samples": lambda: pyar.NADE(4).sample(bad),
        "first_index": lambda: pyar.NADE(4).sample(1, first_index=bad),
        "batch_size": lambda: TrainingConfig(batch_size=bad),
    }.items():
        with pytest.raises(TypeError, match=f"{name} must be an integer, got {type(bad).__name__}"):
            make()
    if bad is not None:
        with pytest.raises(TypeError, match=r"seed must be an integer in \[0, 2\*\*64\) or None"):
            pyar.NADE(4).sample(1, seed=bad)


@pytest.mark.parametrize("bad", [True, np.True_, np.complex64(1), "1", None, [1.0], torch.tensor(True)])
def test_what_is_no_number_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match=f"temperature must be a number, got {type(bad).__name__}"):
        pyar.NADE(4).sample(1, temperature=bad)
    with pytest.raises(TypeError, match="learning_rate must be a number"):
        TrainingConfig(learning_rate=bad)


def test_mlp_sizes_must_be_a_sequence() -> None:
    with pytest.raises(TypeError, match="mlp_sizes must be a sequence of integers, got int 7"):
        pyar.NADE(4, mlp_sizes=7)


def test_training_settings_may_be_numpys() -> None:
    config = TrainingConfig(
        batch_size=np.int64(20), learning_rate=np.float32(0.5), epochs=np.int32(3), seed=np.uint8(1), amp=np.False_
    )
    assert config == TrainingConfig(batch_size=20, learning_rate=0.5, epochs=3, seed=1)
    assert plain(config.to_json())
    with pytest.raises(TypeError, match="amp must be True or False, got int 1"):
        TrainingConfig(amp=1)


@pytest.mark.parametrize("family", [pyar.NADE, pyar.PixelLSTM])
def test_forward_is_log_prob(family: type) -> None:
    model, x = family(5, 3, 8, order=[4, 0, 2, 1, 3]), random_states(6, 5, 3)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(model(x), model.log_prob(x))
    assert len(seen) == 1
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(x), model.log_prob(x))
    with pytest.raises(ValueError, match=r"x must be \[B, 5\]"):
        model(x[:, :4])


PROCESS = """
import copy
import torch, pyar
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

class MeanNLL(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.mean_nll(x)

dist.init_process_group("gloo")
torch.manual_seed(0)
for model in (pyar.NADE(6, 2, 5), pyar.PixelLSTM(6, 3, 5)):
    x = torch.randint(2, (8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    part = x[4 * dist.get_rank() :][:4]
    model.mean_nll(x).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.mean_nll(part).backward()
    assert not all(torch.allclose(one.grad, two) for one, two in zip(model.parameters(), whole))
    for wrap in (lambda one: one, MeanNLL):
        one = copy.deepcopy(model)
        one.zero_grad()
        parallel = DistributedDataParallel(wrap(one))
        (-parallel(part).mean() if wrap is not MeanNLL else parallel(part)).backward()
        for parameter, expected in zip(one.parameters(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, expected)
            assert expected.abs().sum() > 0
dist.barrier()
dist.destroy_process_group()
"""


def test_data_parallel_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Both ways that forward's docstring names synchronise; a part's own gradients differ from the batch's."""
    processes = []
    for rank in (0, 1):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"},
            **{"MASTER_PORT": str(20_000 + os.getpid() % 20_000), "PYTHONPATH": str(ROOT)},
        }
        processes.append(subprocess.Popen([sys.executable, "-c", PROCESS], env=environment, stderr=subprocess.PIPE))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    """Parameters are float32, and an existing model computes what it computed."""

    def build() -> list[pyar.models.AutoregressiveModel]:
        torch.manual_seed(0)
        return [
            pyar.NADE(6, 2, 5, mlp_sizes=[4]),
            pyar.NADE(6, 4, 5, order=[5, 0, 4, 1, 3, 2]),
            pyar.PixelLSTM(6, 3, 5, 2, input="scalar", weight_dtype="bfloat16"),
        ]

    def outcome(model: pyar.models.AutoregressiveModel) -> list[torch.Tensor]:
        x = random_states(7, 6, model.num_states)
        loss = model.mean_nll(x, torch.linspace(-1, 1, 7, dtype=torch.float32))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        observed = torch.zeros(6, dtype=torch.bool)
        values = [model.log_prob(x), model.logits(x), model.conditional_log_prob(x), model.mean_nll(x), loss]
        drawn = [*model.sample_and_log_prob(5, seed=2, temperature=0.7), model.complete(x, observed, seed=1)]
        return [*values, *gradients, *drawn, next(model.initialize_from_marginals(x).parameters())]

    expected = [outcome(model) for model in build()]
    models = build()
    torch.set_default_dtype(dtype)
    try:
        actual = [outcome(model) for model in models]
        new = build()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(expected, actual, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, two, strict=True))
    for one, two in zip(build(), new, strict=True):
        assert all(parameter.dtype == torch.float32 for parameter in two.parameters())
        two.load_state_dict(one.state_dict())
        assert torch.equal(two.sample(3, seed=1), one.sample(3, seed=1))


@pytest.mark.parametrize("family", [pyar.NADE, pyar.PixelLSTM])
def test_another_default_device_changes_nothing(family: type) -> None:
    model, x = family(5, 3, 8, order=[4, 0, 2, 1, 3]), random_states(6, 5, 3)
    observed = torch.tensor([False, False, False, False, True])

    def outcome() -> list[torch.Tensor]:
        values = [model.log_prob(x), model.logits(x), model.conditional_log_prob(x), model.mean_nll(x)]
        drawn = [
            model.sample(9, seed=4),
            model.complete(x, observed, 2, seed=3),
            model.sample(2, seed=1, given=x[0, :1]),
        ]
        gradients = torch.autograd.grad(model.mean_nll(x), list(model.parameters()))
        return [*values, *drawn, *gradients, *copy.deepcopy(model).initialize_from_marginals(x).parameters()]

    expected = outcome()
    with torch.device("meta"):
        actual = outcome()
        torch.manual_seed(1)
        assert model.sample(3).device.type == "cpu"
    assert all(torch.equal(one, two) for one, two in zip(expected, actual, strict=True))


@pytest.mark.parametrize("family", [pyar.NADE, pyar.PixelLSTM])
@pytest.mark.parametrize("order", [None, [4, 0, 2, 1, 3]])
def test_models_are_built_on_the_meta_device_and_filled_later(family: type, order: list[int] | None) -> None:
    like = family(5, 3, 8, order=order)
    with torch.device("meta"):
        model = family(5, 3, 8, order=order)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.config == like.config
    model.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    like.reset_parameters()
    x = random_states(6, 5, 3)
    assert torch.equal(model.log_prob(x), like.log_prob(x))
    assert torch.equal(model.sample(6, seed=1), like.sample(6, seed=1))
    with torch.device("meta"):
        other = family(5, 3, 8, order=order)
    other.load_state_dict(like.state_dict(), assign=True)
    assert torch.equal(other.log_prob(x), like.log_prob(x))


@pytest.mark.parametrize("method", ["log_prob", "mean_nll", "conditional_log_prob"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: pyar.NADE(6, 3, 5, order=[5, 4, 3, 2, 1, 0]),
        lambda: pyar.NADE(6, 2, 5, mlp_sizes=[4]),
        lambda: pyar.PixelLSTM(6, 3, 5, 2),
    ],
    ids=["nade", "nade-mlp", "pixel-lstm"],
)
def test_one_graph_serves_every_batch_size(build: Callable, method: str) -> None:
    """And its gradients are the model's; the sizes differ in how many steps PixelLSTM's gradients group."""
    torch._dynamo.reset()
    counters.clear()
    model = build()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(getattr(model, method), backend="aot_eager", dynamic=True, fullgraph=True)
        for size in (5, 100, 400, 1100, 2):
            x = random_states(size, 6, model.num_states)
            actual, expected = compiled(x), getattr(model, method)(x)
            torch.testing.assert_close(actual, expected)
            gradients = torch.autograd.grad(actual.sum(), list(model.parameters()))
            for one, two in zip(gradients, torch.autograd.grad(expected.sum(), list(model.parameters())), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("family", [pyar.NADE, pyar.PixelLSTM])
def test_export_leaves_the_batch_size_open(family: type, strict: bool) -> None:
    model = family(6, 3, 5, order=[5, 4, 3, 2, 1, 0])
    batch = torch.export.Dim("batch")
    with torch._dynamo.config.patch(allow_rnn=True):
        program = torch.export.export(model, (random_states(4, 6, 3),), dynamic_shapes=({0: batch},), strict=strict)
    exported = program.module()
    for size in (1, 2, 7, 1500):
        x = random_states(size, 6, 3)
        torch.testing.assert_close(exported(x), model(x))
