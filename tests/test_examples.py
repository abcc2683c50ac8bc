"""The examples run, in a short form, and what they compute is right."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from pyar.data import DataNotice, load_table
from pyar.reference import nade as reference

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Work this small gains nothing from threads, and waits for them on a busy machine."""
    torch.set_num_threads(1)


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))  # as running a script does: one may import another
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up here
    importlib.sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
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


def test_categories_of_bits(tmp_path, capsys):
    example = load("categories_of_bits")
    generator = np.random.default_rng(0)
    codes = np.stack([generator.integers(0, 3, 60), generator.integers(0, 2, 60), generator.integers(0, 5, 60)], axis=1)
    groups = [slice(0, 3), slice(3, 5), slice(5, 9)]  # the last has none of its four bits set in a fifth of the rows
    bits = example.to_bits(codes, groups)
    assert bits.sum(axis=1).tolist() == [3 - (row[2] == 4) for row in codes]
    assert example.find_groups(bits) == groups
    np.testing.assert_array_equal(example.to_categories(bits, groups), codes)
    with pytest.raises(ValueError, match="not one-hot"):
        example.to_categories(bits, [slice(0, 4), slice(4, 9)])

    np.savez(tmp_path / "bits.npz", train=bits[:30], valid=bits[30:40], test=bits[40:])
    example.main([str(tmp_path / "bits.npz"), str(tmp_path / "table.npz")])
    assert "60 rows of 3 columns, a bijection" in capsys.readouterr().out
    with pytest.warns(DataNotice, match="says which split"):
        data = load_table(tmp_path / "table.npz")
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [30, 10, 20]
    assert list(data.columns["bits 5-8"].levels) == ["bit 5", "bit 6", "bit 7", "bit 8", "none"]
    assert data.columns.decode(data.test)["bits 0-2"].tolist() == [f"bit {code}" for code in codes[40:, 0]]


def test_scale_floor(tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(90, 3)).round(1)
    np.savez(tmp_path / "a.npz", data=values, fold=np.arange(90) % 3)
    text = load("scale_floor").main(
        [str(tmp_path / "a.npz"), "--floors", "0.02,0.5", "--folds", "2", "--steps", "60",
         "--table", str(tmp_path / "a.md"), "--picture", str(tmp_path / "a.png")]
    )  # fmt: skip
    assert text == (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    held_out = [float(cell.split()[0]) for cell in text.splitlines()[2].split("|")[2:4]]
    assert -7 < held_out[0] < -2
    assert "fold 1, floor 0.5" in capsys.readouterr().out


def test_compare_tables_has_fair_contenders():
    """On columns whose states can be counted every contender's probabilities come to one, but for its tails."""
    example = load("compare_tables")
    generator = np.random.default_rng(0)
    a = generator.integers(0, 3, 400)
    frame = pd.DataFrame({"a": np.array(["x", "y", "z"])[a], "n": a + generator.integers(0, 4, 400)})
    table = example.Table(frame)
    x = table.numbers(frame)
    everything = np.stack(np.meshgrid(np.arange(3.0), np.arange(-3.0, 12.0), indexing="ij"), axis=-1).reshape(-1, 2)
    (_, fit), *_ = example.standardised(table, lambda n: example.GaussianMixture(int(n), random_state=0), [3])
    assert 0.85 < np.exp(fit(x)(everything)).sum() < 1.02  # some of it lies beyond the categories
    pytest.importorskip("pgmpy")
    seen = everything[(everything[:, 1] >= 0) & (everything[:, 1] <= 6)]
    for _, fit in example.bayesian_networks(table, [3]):
        assert np.exp(fit(x)(seen)).sum() == pytest.approx(1, abs=0.02)


def test_compare_tables(tmp_path, capsys):
    example = load("compare_tables")
    frame = example.load("law", 200)
    table = example.Table(frame)
    x = table.numbers(frame)
    np.testing.assert_allclose(table.from_onehot(table.onehot(x) + 0.2), x + 0.2 * (table.widths == 0))
    mixed, wrong = example.planted(frame, 0)
    changed = (table.numbers(mixed) != x).sum(axis=1)
    assert (changed[~wrong] == 0).all()
    assert (changed[wrong] <= 3).all()
    assert changed[wrong].mean() > 1.5
    text = example.main(["--rows", "200", "--steps", "30", "--out", str(tmp_path / "a.md")])
    assert text == (tmp_path / "a.md").read_text()
    rows = {line.split("|")[1].strip().split(" (")[0]: line.split("|")[2:-1] for line in text.splitlines()[2:]}
    assert -20 < float(rows["**TableDensity**"][0].split()[0]) < -7
    assert 0.4 < float(rows["IsolationForest"][-1]) < 1
    assert 0.3 < float(rows["IterativeImputer"][1]) < 1.5


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
