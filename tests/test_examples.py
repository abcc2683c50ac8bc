"""The examples run, in a short form, and what they compute is right."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pyar.reference import nade as reference

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Work this small gains nothing from threads, and waits for them on a busy machine."""
    torch.set_num_threads(1)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up here
    importlib.sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_fast_sampling(tmp_path, capsys):
    out = tmp_path / "fast_sampling.png"
    speeds = load("fast_sampling").main(["--steps", "20", "--largest", "10", "--seconds", "0.01", "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert all(len(values) == 2 and min(values) > 0 for values in speeds.values())
    assert "the same pictures" in capsys.readouterr().out


def test_the_loop_that_fast_sampling_times_draws_from_the_same_model():
    example = load("fast_sampling")
    torch.manual_seed(0)
    model = example.pyar.NADE(4, num_states=2, hidden_size=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    states = torch.arange(16)[:, None] >> torch.arange(4)[None] & 1
    parameters = [parameter.detach().double() for parameter in (model.W, model.c, model.V, model.b)]
    expected = reference.log_prob(states, *parameters).exp()
    drawn = (example.sample_in_a_loop(model, 20_000).long() << torch.arange(4)).sum(1)
    frequencies = torch.bincount(drawn, minlength=16) / 20_000
    assert torch.all((frequencies - expected).abs() < 5 * (expected / 20_000).sqrt() + 1e-3)


@pytest.mark.parametrize("beta", [0.2, 0.44, 0.6])
def test_ising_exact_answers(beta):
    ising = load("ising")
    # On 2×2 every bond counts twice: two states of energy −8, twelve of 0, two of 8.
    partition = 2 * math.exp(8 * beta) + 12 + 2 * math.exp(-8 * beta)
    assert ising.enumerated_free_energy(2, beta) == pytest.approx(-math.log(partition) / beta, rel=1e-12)
    for side in (2, 4):
        exact = ising.enumerated_free_energy(side, beta)
        assert ising.kaufman_free_energy(side, beta) == pytest.approx(exact, rel=1e-12)


def test_ising_comes_close_from_above(tmp_path):
    out = tmp_path / "ising.png"
    ising = load("ising")
    arguments = ["--side", "6", "--steps", "150", "--batch", "200", "--hidden-size", "16", "--lr", "2e-2"]
    small, large = ising.main([*arguments, "--beta", "0.3", "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    for result in (small, large):
        # No model is below the exact free energy; one that has learnt nothing is at −ln 2 / β a spin. This short
        # training goes more than a third of the way.
        assert result.exact - 4 * result.standard_error < result.variational
        assert result.variational - result.exact < 0.66 * (-math.log(2) / 0.3 - result.exact)
        assert 0 < result.effective_sample_size <= 1
        assert result.samples.shape == (16, result.side**2)
