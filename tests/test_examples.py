"""The examples run, in a short form, and what they compute is right."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pyar.reference import nade as reference

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


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


def test_readme_runs():
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["log_prob"].mean() > -22  # nats; independent pixels give −24.8
    assert names["completions"].shape == (8, 5, 64)
    torch.testing.assert_close(names["log_q"][:100], names["model"].log_prob(names["x"][:100]))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


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


def test_ising_starts_as_a_local_model():
    ising = load("ising")
    torch.manual_seed(0)
    model = ising.local_nade(4, 0.4)
    x = torch.randint(0, 2, (20, 16))
    logits = model.logits(x).detach()
    for d, earlier in ((0, []), (1, [0]), (5, [1, 4]), (15, [3, 11, 12, 14])):  # the torus closes rows and columns
        total = (2 * x[:, earlier] - 1).sum(1)
        torch.testing.assert_close(logits[:, d], 9 * 0.4 * (torch.sigmoid(total) - 0.5), atol=0.5, rtol=0)


def test_ising_samples_come_with_the_normalised_symmetric_ansatz():
    ising = load("ising")
    torch.manual_seed(0)
    model = ising.local_nade(4, 0.4)
    x, log_q = ising.sample_symmetric(model, 50, seed=1)
    everything = torch.arange(2**16)[:, None] >> torch.arange(16) & 1
    with torch.no_grad():
        q = ((model.log_prob(everything).exp() + model.log_prob(1 - everything).exp()) / 2).double()
    assert q.sum().item() == pytest.approx(1, abs=1e-4)
    drawn = (x.long() << torch.arange(16)).sum(1)
    torch.testing.assert_close(log_q.exp().double(), q[drawn], rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", [0.3, 0.44])
def test_ising_finds_the_free_energy(beta, tmp_path, capsys):
    out = tmp_path / "ising.png"
    arguments = ["--side", "6", "--steps", "150", "--batch", "200", "--beta", str(beta), "--out", str(out)]
    for result in load("ising").main(arguments):
        value, error = result.variational
        # No model is below the exact free energy, and reweighting removes what is above.
        assert result.exact - 4 * error < value < 0.99 * result.exact
        value, error = result.reweighted
        assert abs(value - result.exact) < 4 * error
        assert 0.2 < result.effective_sample_size <= 1
        assert result.samples.shape == (16, result.side**2)
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "variational" in printed
    assert "effective sample size" in printed


def test_known_law(capsys):
    example = load("known_law")
    rows = example.draw(200_000, 3)
    # E exp(log of a wrong law − log of the law) = 1 only for the law's own density: here rows are moved by a shift.
    shifted = rows.assign(x=rows["x"] + 0.1)
    ratio = math.e ** (example.log_density(shifted) - example.log_density(rows))
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    divergences = example.main(["--steps", "150", "--rows", "3000"])
    assert 0 < divergences[8] < divergences[1] < 1.5
    assert "in truth 0.881" in capsys.readouterr().out
