"""The command line, end to end: what it writes and prints, how it stops and goes on, what it says of mistakes."""

from __future__ import annotations

import csv
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyar
from pyar.checkpoint import load
from pyar.cli import main
from pyar.cli.options import DATA_FACTS, NO_OPTIONS, constructor_options
from pyar.cli.parser import duration, make_parser, shape, sizes
from pyar.data import load_dataset
from pyar.models import model_class, model_names
from pyar.training import TrainingConfig

QUICK = ["--epochs", "2", "--hidden-size", "8", "--binarize", "threshold", "--batch-size", "200", "--no-progress"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Work as small as this is slower, and much slower on a busy machine, when several threads share it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYAR_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small NADE trained on the binary digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "nade", "--out", str(folder), *QUICK]) == 0
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    try:
        code = main([*map(str, arguments)])
    except SystemExit as exit:  # argparse's way out
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


def command(*arguments: str, **options) -> subprocess.Popen:
    """`python -m pyar …` in a process of its own."""
    root = str(Path(pyar.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "pyar", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


# --- train ---


def test_train_leaves_a_complete_run_folder(trained, capsys):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "model.safetensors",
        "training_state.pt",
        "config.json",
        "result.json",
        "log.jsonl",
        "learning_curve.png",
        "samples.png",
    }
    result = json.loads((trained / "result.json").read_text())
    assert result["test"]["num_examples"] == 179
    assert "threshold" in result["test"]["preparation"]
    assert result["valid"]["nll_nats"] == pytest.approx(result["best_valid_nll"], rel=1e-6)


def test_train_prints_its_result_with_everything_that_names_it(tmp_path, capsys):
    code, out, err = run(capsys, "train", "nade", "--out", tmp_path / "x", *QUICK)
    assert code == 0
    for part in ("digits test: NLL", "±", "nats", "bits/dim", "179 examples", "binarised by threshold", "samples.png"):
        assert part in out
    assert "8×8" in err
    code, out, _ = run(capsys, "train", "nade", "--out", tmp_path / "y", "--json", *QUICK)
    assert json.loads(out)["test"]["split"] == "test"


def test_new_runs_get_names_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/nade-digits", "runs/nade-digits-2"):
        assert run(capsys, "train", "nade", *QUICK)[0] == 0
        assert load(expected).config["hidden_size"] == 8


def test_a_used_folder_is_not_overwritten(trained, capsys):
    code, _, err = run(capsys, "train", "nade", "--out", trained, *QUICK)
    assert code == 1
    assert "--resume" in err


@pytest.mark.parametrize("order", ["random", "reverse"])
def test_model_options_reach_the_model(tmp_path, capsys, order):
    options = ["--order", order, "--mlp-sizes", "5,4", "--input", "scalar", "--seed", "3"]
    assert run(capsys, "train", "nade", "--out", tmp_path / "x", *options, *QUICK)[0] == 0
    config = load(tmp_path / "x").config
    assert (config["mlp_sizes"], config["input"], config["hidden_size"]) == ([5, 4], "scalar", 8)
    assert sorted(config["order"]) == list(range(64))
    assert config["order"] != list(range(64))
    assert (config["order"] == list(range(63, -1, -1))) == (order == "reverse")
    # What a completion keeps is first in that order.
    arguments = ["complete", tmp_path / "x", "--observed", "0.25", "--out", tmp_path / "c.npz", "--no-progress"]
    assert run(capsys, *arguments)[0] == 0
    with np.load(tmp_path / "c.npz") as arrays:
        assert np.flatnonzero(arrays["observed"]).tolist() == sorted(config["order"][:16])


def test_a_run_remembers_its_data_and_starts_at_their_marginals(tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    x = np.random.default_rng(0).integers(0, 3, (60, 6), dtype=np.uint8)
    np.save(tmp_path / "data" / "mine.npy", x)
    arguments = ["--data", "mine.npy", "--data-dir", tmp_path / "data", "--out", tmp_path / "run", *QUICK[:4]]
    assert run(capsys, "train", "nade", *arguments, "--learning-rate", "1e-9", "--no-progress")[0] == 0
    data = load_dataset(str(tmp_path / "data" / "mine.npy"))
    start = pyar.NADE(6, 3, 8).initialize_from_marginals(data.train)
    torch.testing.assert_close(load(tmp_path / "run").b, start.b, rtol=0, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "evaluate", "run", "--json", "--no-progress")
    assert code == 0
    assert json.loads(out)["data"] == "mine"


def test_a_budget_of_time_replaces_the_default_of_epochs(tmp_path, capsys):
    options = ["--time-budget", "0.1s", "--hidden-size", "4", "--samples", "0", "--no-progress"]
    assert run(capsys, "train", "nade", "--out", tmp_path / "x", *options)[0] == 0
    assert json.loads((tmp_path / "x" / "config.json").read_text())["training"]["epochs"] is None


def test_a_pixel_lstm_trains_samples_and_completes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--num-layers", "2", "--checkpoint-steps", "8", *QUICK]
    assert run(capsys, "train", "pixel-lstm", "--out", "lstm", *options)[0] == 0
    assert load("lstm").config["num_layers"] == 2
    assert run(capsys, "evaluate", "lstm", "--no-progress")[0] == 0
    assert run(capsys, "sample", "lstm", "-n", "10", "--no-progress")[0] == 0
    assert run(capsys, "complete", "lstm", "--no-progress", "-n", "2", "--completions", "2")[0] == 0
    assert Path("samples.png").is_file()
    assert Path("completions.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "say which model"),
        (["train", "nade", "--data", "nothing"], "no data set and no file 'nothing'"),
        (["train", "nade", "--levels", "4", "--binarize", "fixed"], "one of --levels and --binarize"),
        (["train", "nade", "--data", "mnist", "--data-dir", "/nowhere"], "not a folder"),
        (["train", "--resume", "nowhere"], "not a run that can be resumed"),
        (["evaluate", "nowhere"], "no checkpoint nowhere"),
        (["sample", "nowhere"], "no checkpoint nowhere"),
        (["train", "nade", "--device", "abacus"], "abacus"),
        (["evaluate", "nowhere", "--device", "meta"], "meta"),
        (["evaluate", "nowhere", "--out", "x.txt"], "should end in .npy"),
        (["evaluate", "nowhere", "--out", "missing/x.npy"], "no folder missing"),
        (["train", "nade", "--white", "255"], "--white is for .npy and .npz"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert not out
    assert err.startswith("pyar: ")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # no half-made run folder is left behind


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train", "nadir"],
        ["train", "nade", "--epochs", "0"],
        ["train", "nade", "--epochs", "nan"],
        ["train", "nade", "--time-budget", "soon"],
        ["train", "nade", "--ema", "1"],
        ["train", "nade", "--levels", "1"],
        ["sample", "x", "-n", "0"],
        ["sample", "x", "--temperature", "0"],
        ["sample", "x", "--seed", "-1"],
        ["complete", "x", "--observed", "1.5"],
        ["evaluate", "x", "--threads", "100000"],
        ["evaluate", "x", "--splits", "test"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert not out
    if arguments:
        assert err.count("\n") == 1
        assert "--help" in err
    else:
        assert err.startswith("usage")


@pytest.mark.parametrize("option", ["--num-layers", "--weight-dtype"])
def test_an_option_of_another_model_is_refused(capsys, option):
    code, _, err = run(capsys, "train", "nade", option, "2")
    assert code == 2
    assert f"{option} is not an option of nade" in err


def test_a_misspelt_option_is_told_its_name(capsys):
    code, _, err = run(capsys, "train", "nade", "--epocs", "3")
    assert code == 2
    assert "did you mean --epochs?" in err


def test_a_run_that_still_improves_says_how_to_go_on(tmp_path, capsys):
    options = ["--max-steps", "9", "--hidden-size", "8", "--binarize", "threshold", "--no-progress", "--samples", "0"]
    code, out, err = run(capsys, "train", "nade", "--out", tmp_path / "run", *options)
    assert (code, "trained 0.6 epochs" in out) == (0, True)
    assert "budget 9 steps" in err
    advice = json.loads((tmp_path / "run" / "result.json").read_text())["advice"]
    assert "still falling" in advice
    assert err.splitlines()[-1] == f"{advice}; go on with: pyar train --resume {tmp_path / 'run'} --max-steps 18"
    command = err.splitlines()[-1].split("pyar ")[-1].split()
    assert run(capsys, *command, "--no-progress", "--samples", "0")[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 18


def test_a_run_that_ends_at_a_plateau_says_so(tmp_path, capsys):
    options = ["--schedule", "plateau", "--plateau-patience", "1", "--min-learning-rate", "0.01"]
    options += ["--learning-rate", "0.02", "--plateau-threshold", "0.5", "--max-steps", "500"]
    quick = ["--hidden-size", "4", "--no-progress", "--samples", "0"]
    code, out, err = run(capsys, "train", "nade", "--out", tmp_path / "run", *options, *quick)
    assert (code, "(a lower learning rate no longer helps)" in out) == (0, True)
    assert "budget at most 500 steps" in err
    assert "still falling" not in err
    _, _, err = run(capsys, "train", "--resume", tmp_path / "run", "--no-progress", "--samples", "0")
    assert "another --plateau-patience or --min-learning-rate lets it go on" in err


def test_unknown_data_train_until_they_no_longer_improve(tmp_path, capsys):
    """Rows of a mixture of four products, whose entropy is known: NADE comes near it unattended."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(4, 16, generator=generator).round() * 0.9 + 0.05
    x = torch.bernoulli(means[torch.randint(4, (1000,), generator=generator)], generator=generator)
    density = (x @ means.log().T + (1 - x) @ (1 - means).log().T).logsumexp(1) - math.log(4)
    np.save(tmp_path / "mixture.npy", x.numpy().astype(np.uint8))
    options = ["--data", tmp_path / "mixture.npy", "--hidden-size", "32", "--no-progress", "--samples", "0"]
    code, _, err = run(capsys, "train", "nade", *options, "--out", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (code, result["reason"], result["still_improving"]) == (0, "plateau", False)
    assert "still falling" not in err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len({line["learning_rate"] for line in log if line["event"] == "evaluation"}) > 1
    entropy = -density.mean().item()
    p = x.mean(0)
    marginals = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum().item()
    assert result["test"]["nll_nats"] < entropy + 0.3 * (marginals - entropy)


def test_pictures_come_last_and_their_failure_is_a_line_each(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"

    def fail(*arguments, **options):
        assert load(folder)
        assert "test" in json.loads((folder / "result.json").read_text())
        raise RuntimeError("no ink")

    monkeypatch.setattr("pyar.training.loop.save_learning_curve", fail)
    monkeypatch.setattr("pyar.cli.train.save_sheet", fail)
    code, out, err = run(capsys, "train", "nade", "--out", folder, *QUICK)
    assert code == 0
    assert [line for line in err.splitlines() if "drawn" in line] == [
        f"pyar: {folder / name} could not be drawn: no ink" for name in ("learning_curve.png", "samples.png")
    ]
    assert "digits test: NLL" in out
    assert ".png" not in out


@pytest.mark.parametrize("name", ["Ba$$in.npy", r"$\frac$ {} %s.npy", "数据.npy"])
def test_data_of_any_name_get_their_pictures(tmp_path, capsys, name):
    np.save(tmp_path / name, np.random.default_rng(0).integers(0, 2, (60, 6)))
    options = ["--epochs", "2", "--hidden-size", "4", "--no-progress", "--samples", "9"]
    code, _, err = run(capsys, "train", "nade", "--data", tmp_path / name, "--out", tmp_path / "run", *options)
    assert code == 0
    assert "could not" not in err
    assert {"learning_curve.png", "samples.png"} < {path.name for path in (tmp_path / "run").iterdir()}


# --- stopping and going on ---


def wait_for(path: Path, process: subprocess.Popen, lines: int) -> None:
    """Waits until the log of a run has so many lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text().count("\n") >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("the run did not get going")


LONG = [  # of which a signal that comes a second late still finds some
    "train",
    "nade",
    "--epochs",
    "40",
    "--hidden-size",
    "8",
    "--binarize",
    "dynamic",
    "--ema",
    "0.9",
    "--no-progress",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The run that the stopped ones must equal."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = command(*LONG, "--out", folder, "--threads", "1")
    assert process.wait() == 0, process.communicate()
    process.communicate()
    return folder


def same_result(folder: Path, other: Path) -> None:
    for a, b in zip(load(folder).parameters(), load(other).parameters(), strict=True):
        assert torch.equal(a, b)
    results = [json.loads((path / "result.json").read_text()) for path in (folder, other)]
    for key in ("steps", "best_valid_nll", "best_step", "test", "valid"):
        assert results[0][key] == results[1][key]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, uninterrupted, capsys, number, code):
    folder = tmp_path / "run"
    process = command(*LONG, "--out", folder, "--threads", "1", "--save-every", "0.01s")
    wait_for(folder / "log.jsonl", process, 3)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert f"pyar train --resume {folder}" in err
    assert not (folder / "result.json").exists()
    options = ["--no-progress", "--threads", "1", "--save-every", "60s"]
    assert run(capsys, "train", "--resume", folder, *options)[0] == 0
    same_result(folder, uninterrupted)


def test_a_run_killed_before_its_first_saving_begins_again(tmp_path, uninterrupted, capsys):
    folder = tmp_path / "run"
    process = command(*LONG, "--out", folder, "--threads", "1", "--save-every", "1h")
    wait_for(folder / "log.jsonl", process, 3)
    process.kill()
    process.communicate()
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl"}
    assert run(capsys, "train", "--resume", folder, "--no-progress", "--threads", "1")[0] == 0
    same_result(folder, uninterrupted)


def test_a_model_without_its_training_state_is_not_overwritten(trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "training_state.pt").unlink()
    code, _, err = run(capsys, "train", "--resume", folder)
    assert code == 1
    assert "no training_state.pt" in err


def test_a_run_finds_its_data_from_any_folder_or_is_told_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(400).reshape(100, 4) % 3)
    quick = ["--hidden-size", "4", "--epochs", "1", "--no-progress", "--samples", "0"]
    assert run(capsys, "train", "nade", "--data", "x.npy", "--out", "run", *quick)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(capsys, "evaluate", "../run", "--no-progress")[0] == 0
    Path("../x.npy").rename("y.npy")
    code, _, err = run(capsys, "evaluate", "../run", "--no-progress")
    assert code == 1
    assert "the data that ../run was trained on" in err
    assert "--data" in err
    assert run(capsys, "evaluate", "../run", "--data", "y.npy", "--no-progress")[0] == 0
    np.save("../x.npy", np.arange(400)[::-1].reshape(100, 4) % 3)
    code, _, err = run(capsys, "evaluate", "../run", "--no-progress")
    assert code == 1
    assert "x.npy has changed since ../run was trained on it" in err
    Path("../x.npy").unlink()
    more = ["train", "--resume", "../run", "--epochs", "2", "--no-progress", "--samples", "0"]
    assert run(capsys, *more)[0] == 1
    assert run(capsys, *more, "--data", "y.npy")[0] == 0
    np.save("y.npy", np.zeros((100, 4), dtype=int) + 2)
    code, _, err = run(capsys, *more, "--data", "y.npy")
    assert code == 1
    assert "its data is" in err


def test_a_run_remembers_where_pyar_data_was(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "binarized_mnist.npz", **{s: np.eye(12, dtype=np.uint8) for s in ("train", "valid", "test")})
    monkeypatch.setenv("PYAR_DATA", str(tmp_path))
    options = ["--hidden-size", "4", "--epochs", "1", "--no-progress"]
    assert run(capsys, "train", "nade", "--data", "binarized-mnist", "--out", tmp_path / "run", *options)[0] == 0
    monkeypatch.delenv("PYAR_DATA")
    assert run(capsys, "evaluate", tmp_path / "run", "--no-progress")[0] == 0


def test_a_finished_run_says_that_it_has_ended(trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    code, out, err = run(capsys, "train", "--resume", folder, "--no-progress")
    assert code == 0
    assert "has ended already (the budget is used up)" in err
    assert "digits test: NLL" in out


def test_resuming_changes_only_the_budget(trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    code, _, err = run(capsys, "train", "--resume", folder, "--hidden-size", "9")
    assert code == 1
    assert "--hidden-size cannot be changed" in err
    code, _, err = run(capsys, "train", "pixel-lstm", "--resume", folder)
    assert code == 1
    assert "run of nade" in err
    assert run(capsys, "train", "--resume", folder, "--epochs", "3", "--no-progress")[0] == 0
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3
    assert run(capsys, "train", "--resume", folder, "--time-budget", "0.1s", "--no-progress")[0] == 0
    assert json.loads((folder / "config.json").read_text())["training"]["epochs"] is None
    (folder / "config.json").write_text("{")
    code, _, err = run(capsys, "train", "--resume", folder)
    assert code == 1
    assert "damaged" in err


# --- evaluate ---


def test_evaluate_repeats_the_training_result(trained, tmp_path, capsys):
    wanted = json.loads((trained / "result.json").read_text())["test"]
    code, out, _ = run(capsys, "evaluate", trained, "--json", "--no-progress", "--out", tmp_path / "scores.npy")
    assert code == 0
    result = json.loads(out)
    for key, value in wanted.items():
        assert result[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    scores = np.load(tmp_path / "scores.npy")
    assert scores.shape == (179,)
    assert -scores.mean(dtype=np.float64) == pytest.approx(result["nll_nats"], rel=1e-6)
    code, out, _ = run(capsys, "evaluate", trained / "model.safetensors", "--split", "valid", "--no-progress")
    assert code == 0
    assert "digits valid" in out


def test_evaluate_on_other_data(trained, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (50, 64), dtype=np.uint8))
    code, out, _ = run(capsys, "evaluate", trained, "--data", tmp_path / "x.npy", "--json", "--no-progress")
    assert code == 0
    assert json.loads(out)["data"] == "x"
    code, _, err = run(capsys, "evaluate", trained, "--levels", "4", "--no-progress")
    assert code == 1
    assert "4 grey levels" in err


def binary_rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, 64), dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_every_row_of_a_file_is_scored_in_its_order(trained, tmp_path, capsys, count):
    x = binary_rows(count)
    np.save(tmp_path / "own.npy", x)
    wanted = load(trained).log_prob(torch.from_numpy(x)).detach().numpy()
    arguments = ["evaluate", trained, "--data", tmp_path / "own.npy", "--batch-size", "50", "--no-progress"]
    code, out, _ = run(capsys, *arguments, "--json", "--out", tmp_path / "scores.npy")
    assert code == 0
    scores = np.load(tmp_path / "scores.npy")
    assert scores.dtype == np.float32
    assert np.allclose(scores, wanted, rtol=1e-6, atol=0)
    result = json.loads(out)
    assert (result["data"], result["split"], result["num_examples"]) == ("own", "all rows", count)
    if count:
        assert result["nll_nats"] == pytest.approx(-scores.mean(dtype=np.float64), rel=1e-9)
    else:
        assert (result["nll_nats"], result["bits_per_dim"], result["standard_error_nats"]) == (None, None, None)
    assert (result["standard_error_nats"] is None) == (count < 2)
    assert run(capsys, *arguments, "--out", tmp_path / "scores.csv")[0] == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "row,log_prob"
    assert [line.split(",")[0] for line in lines[1:]] == [str(row) for row in range(count)]
    assert np.array_equal(np.array([line.split(",")[1] for line in lines[1:]], np.float32), scores)
    code, out, _ = run(capsys, *arguments)
    assert ("own all rows: NLL" if count else "own all rows: no examples") in out


@pytest.mark.parametrize("kind", ["zeros", "signs", "int64", "csv", "one row"])
def test_the_model_decides_what_the_values_of_a_file_mean(trained, tmp_path, capsys, kind):
    """Fewer states than the model has, spins, any integer type: all are its states 0 and 1."""
    x = np.zeros((5, 64), np.uint8) if kind == "zeros" else binary_rows(5)
    path = tmp_path / "own.npy"
    if kind == "csv":
        path = tmp_path / "own.csv"
        np.savetxt(path, x, fmt="%d", delimiter=",")
    else:
        stored = {"signs": x.astype(np.int8) * 2 - 1, "int64": x.astype(np.int64), "one row": x[0]}
        np.save(path, stored.get(kind, x))
    arguments = ["evaluate", trained, "--data", path, "--out", tmp_path / "scores.npy", "--no-progress"]
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    wanted = load(trained).log_prob(torch.from_numpy(x[:1] if kind == "one row" else x)).detach().numpy()
    assert np.allclose(np.load(tmp_path / "scores.npy"), wanted, rtol=1e-6, atol=0)


def test_splits_are_for_files_that_have_them_or_for_split(trained, tmp_path, capsys):
    splits = {name: binary_rows(count, count) for name, count in (("train", 20), ("valid", 12), ("test", 11))}
    np.savez(tmp_path / "own.npz", **splits)
    arguments = ["evaluate", trained, "--data", tmp_path / "own.npz", "--out", tmp_path / "s.npy", "--no-progress"]
    for options, split in (([], "test"), (["--split", "valid"], "valid")):
        code, out, _ = run(capsys, *arguments, *options)
        assert code == 0
        assert f"own {split}: NLL" in out
        wanted = load(trained).log_prob(torch.from_numpy(splits[split])).detach().numpy()
        assert np.allclose(np.load(tmp_path / "s.npy"), wanted, rtol=1e-6, atol=0)
    np.save(tmp_path / "one.npy", binary_rows(50))
    arguments[3] = tmp_path / "one.npy"
    assert run(capsys, *arguments, "--split", "test")[0] == 0
    part = load_dataset(tmp_path / "one.npy").test
    wanted = load(trained).log_prob(part).detach().numpy()
    assert np.allclose(np.load(tmp_path / "s.npy"), wanted, rtol=1e-6, atol=0)


def test_scores_of_images_name_their_files(tmp_path, capsys):
    """Grey images become states as they did in training."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{index:02}, big.png")
    options = ["--data", tmp_path / "images", "--out", tmp_path / "run", "--binarize", "threshold"]
    assert run(capsys, "train", "nade", *options, "--epochs", "1", "--hidden-size", "4", "--no-progress")[0] == 0
    arguments = ["evaluate", tmp_path / "run", "--data", tmp_path / "images", "--out", tmp_path / "scores.csv"]
    code, out, err = run(capsys, *arguments, "--no-progress")
    assert code == 0, err
    assert "images all rows: NLL" in out
    assert "binarised by threshold" in out
    with open(tmp_path / "scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [f"{index:02}, big.png" for index in range(30)]
    x = torch.from_numpy((images.reshape(30, 16) > 127).astype(np.uint8))
    wanted = load(tmp_path / "run").log_prob(x).tolist()
    assert [float(row["log_prob"]) for row in table] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "top", "message"),
    [((5, 63), 1, "of 64 dimensions"), ((5, 64), 2, "the values reach 2"), ((5, 4, 16), 1, "images of 8×8")],
)
def test_rows_that_do_not_fit_the_model_are_refused(trained, tmp_path, capsys, shape, top, message):
    np.save(tmp_path / "own.npy", np.full(shape, top, np.uint8))
    code, out, err = run(capsys, "evaluate", trained, "--data", tmp_path / "own.npy", "--no-progress")
    assert (code, out) == (1, "")
    assert message in err


# --- sample ---


def test_sample_files_and_sheet(trained, tmp_path, capsys):
    outputs = ["--out", tmp_path / "x.npz", "--out", tmp_path / "x.png"]
    code, out, _ = run(capsys, "sample", trained, "-n", "30", "--seed", "9", "--chunk-size", "7", "--json", *outputs)
    assert code == 0
    assert json.loads(out)["num_samples"] == 30
    x, log_prob = load(trained).sample_and_log_prob(30, seed=9)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["x"], x.numpy())
        assert np.array_equal(arrays["log_prob"], log_prob.numpy())
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 200


def test_sample_options_reach_the_model(trained, tmp_path, capsys):
    np.save(tmp_path / "given.npy", np.ones(10, np.uint8))
    options = ["--given", tmp_path / "given.npy", "--temperature", "0.5", "--first-index", "4", "--no-progress"]
    assert run(capsys, "sample", trained, "-n", "5", "--out", tmp_path / "x.npy", *options)[0] == 0
    given = torch.ones(10, dtype=torch.uint8)
    wanted = load(trained).sample(5, seed=0, first_index=4, temperature=0.5, given=given)
    assert np.array_equal(np.load(tmp_path / "x.npy"), wanted.numpy())


def test_the_rows_of_given_set_the_number(trained, tmp_path, capsys):
    np.save(tmp_path / "given.npy", np.eye(3, 10, dtype=np.uint8))
    arguments = ["sample", trained, "--given", tmp_path / "given.npy", "--out", tmp_path / "x.npy", "--no-progress"]
    assert run(capsys, *arguments)[0] == 0
    assert np.array_equal(np.load(tmp_path / "x.npy")[:, :10], np.eye(3, 10))
    code, _, err = run(capsys, *arguments, "-n", "4")
    assert code == 1
    assert "3 rows" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.txt"], "should end in"),
        (["--out", "nowhere/x.npz"], "no folder nowhere"),
        (["--given", "given.txt"], "expected a .npy or .npz"),
        (["--given", "missing.npy"], "no file missing.npy"),
        (["--given", "long.npy"], "G ≤ 64"),
        (["--given", "high.npy"], "0 … 1"),
        (["--given", "real.npy"], "integer states"),
    ],
)
def test_wrong_sample_requests(trained, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("long.npy", np.zeros(65, np.uint8))
    np.save("high.npy", np.full(3, 2))
    np.save("real.npy", np.zeros(3))
    before = set(tmp_path.iterdir())
    code, _, err = run(capsys, "sample", trained, "--no-progress", *arguments)
    assert code == 1
    assert message in err
    assert set(tmp_path.iterdir()) == before


def test_shards_of_two_processes_equal_one_file(trained, tmp_path, capsys, monkeypatch):
    """Each process needs its rank and the number of processes alone, so they can run here one after the other."""
    np.save(tmp_path / "given.npy", np.random.default_rng(0).integers(0, 2, (25, 5), dtype=np.uint8))
    arguments = ["sample", trained, "--given", tmp_path / "given.npy", "--first-index", "7", "--no-progress"]
    assert run(capsys, *arguments, "--out", tmp_path / "x.npz")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(capsys, *arguments, "--out", tmp_path / "x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as whole:
        parts = [np.load(tmp_path / f"x.rank-{rank}-of-2.npz") for rank in (0, 1)]
        for name in ("x", "log_prob"):
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])
        assert [int(file["first_index"]) for file in (whole, *parts)] == [7, 7, 19]
    code, _, err = run(capsys, "sample", trained, "--out", tmp_path / "x.png")
    assert code == 1
    assert "torchrun" in err


# --- complete ---


def test_completions_keep_what_was_observed(trained, tmp_path, capsys):
    outputs = ["--out", tmp_path / "x.npz", "--out", tmp_path / "x.png"]
    options = ["--completions", "4", "--observed", "0.3", "--seed", "2", "--temperature", "0.7"]
    arguments = ["complete", trained, "-n", "3", *options, *outputs]
    code, out, _ = run(capsys, *arguments, "--json", "--no-progress")
    assert code == 0
    assert json.loads(out)["observed_dimensions"] == 16  # two of eight rows
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        original, observed, completions = (arrays[name] for name in ("original", "observed", "completions"))
    assert completions.shape == (3, 4, 64)
    assert observed.tolist() == [True] * 16 + [False] * 48
    assert (completions[:, :, :16] == original[:, None, :16]).all()
    test = load_dataset("digits", binarize="threshold").test
    assert np.array_equal(original, test[[0, 59, 119]].numpy())  # spread over the 179 of the split
    wanted = load(trained).complete(test[[0, 59, 119]], torch.from_numpy(observed), 4, seed=2, temperature=0.7)
    assert np.array_equal(completions, wanted.numpy())
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"


def test_completing_the_users_own_examples(trained, tmp_path, capsys):
    np.save(tmp_path / "mine.npy", np.ones((2, 64), np.uint8))
    arguments = ["complete", trained, "--examples", tmp_path / "mine.npy", "--out", tmp_path / "x.npz", "--no-progress"]
    assert run(capsys, *arguments)[0] == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["original"].shape == (2, 64)
    code, _, err = run(capsys, *arguments, "--first", "2")
    assert code == 1
    assert "no example number 2" in err


# --- the weights' dtype ---


def test_weight_dtype_and_what_it_does_to_the_nll(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "train", "pixel-lstm", "--out", "lstm", *QUICK)[0] == 0
    assert run(capsys, "train", "pixel-lstm", "--out", "rounded", "--weight-dtype", "bfloat16", *QUICK)[0] == 0
    rounded = ["--weight-dtype", "bfloat16", "--no-progress"]

    code, out, _ = run(capsys, "evaluate", "lstm", "--no-progress", "--json", "--out", "own.npy")
    assert code == 0
    assert json.loads(out)["weight_dtype"] == "float32"
    assert "nll_change_nats" not in json.loads(out)
    code, out, _ = run(capsys, "evaluate", "lstm", *rounded, "--json", "--out", "rounded.npy")
    assert code == 0
    result = json.loads(out)
    assert result["weight_dtype"] == "bfloat16"
    difference = np.load("own.npy").astype(np.float64) - np.load("rounded.npy")
    assert (difference != 0).any()
    assert result["nll_change_nats"] == pytest.approx(difference.mean(), rel=1e-9)
    error = difference.std(ddof=1) / len(difference) ** 0.5
    assert result["nll_change_standard_error_nats"] == pytest.approx(error, rel=1e-9)
    code, out, _ = run(capsys, "evaluate", "lstm", *rounded)
    assert f"weights in bfloat16: NLL {difference.mean():+.2g} ± {error:.2g} nats against float32" in out

    # What a run was trained with is its own; either can be asked for.
    assert load("rounded").weight_dtype == "bfloat16"
    code, out, _ = run(capsys, "evaluate", "rounded", *rounded)
    assert code == 0
    assert "against" not in out
    code, out, _ = run(capsys, "evaluate", "rounded", "--weight-dtype", "float32", "--no-progress")
    assert "weights in float32" in out

    model = load("lstm")
    model.weight_dtype = "bfloat16"
    assert run(capsys, "sample", "lstm", "-n", "20", "--seed", "3", "--out", "x.npz", *rounded)[0] == 0
    with np.load("x.npz") as arrays:
        assert np.array_equal(arrays["log_prob"], model.sample_and_log_prob(20, seed=3)[1].numpy())
    options = ["-n", "2", "--completions", "3", "--observed", "0", "--seed", "5", "--out", "c.npz"]
    assert run(capsys, "complete", "lstm", *options, *rounded)[0] == 0
    with np.load("c.npz") as arrays:
        assert np.array_equal(arrays["completions"].reshape(6, 64), model.sample(6, seed=5).numpy())


@pytest.mark.parametrize("name", ["evaluate", "sample", "complete"])
def test_a_nade_has_no_weight_dtype(trained, capsys, name):
    code, _, err = run(capsys, name, trained, "--weight-dtype", "bfloat16", "--no-progress")
    assert code == 1
    assert f"--weight-dtype: {trained} is a nade, whose weights have float32 alone" in err


# --- info and help ---


def test_info_says_what_is_built_and_what_a_run_is(trained, capsys):
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    assert json.loads(out)["torch"] == torch.__version__
    code, out, _ = run(capsys, "info", trained)
    assert code == 0
    assert "hidden_size" in out
    code, out, _ = run(capsys, "info", trained, "--json")
    assert json.loads(out)["run"]["model"] == "nade"


@pytest.mark.parametrize("name", ["", "train", "evaluate", "sample", "complete", "recipes", "reproduce", "info"])
def test_help_explains_every_command(name, capsys):
    code, out, _ = run(capsys, *([name] if name else []), "--help")
    assert code == 0
    assert out.startswith("usage: pyar")


@pytest.mark.parametrize("name", model_names())
def test_the_parser_knows_every_setting_and_every_argument_of_a_model(name):
    known = vars(make_parser(["train", name]).parse_args(["train", name]))
    assert set(TrainingConfig().to_json()) <= known.keys()
    arguments = set(inspect.signature(model_class(name)).parameters) - {*DATA_FACTS, *NO_OPTIONS}
    assert {f"option_{argument}" for argument in arguments} <= known.keys()
    assert ("order" in known) == ("order" in inspect.signature(model_class(name)).parameters)
    assert all(option.help for option in constructor_options(model_class(name)))


def test_small_parsers():
    assert [duration(text) for text in ("90", "90s", "4.5m", "1h", ".5min")] == [90, 90, 270, 3600, 30]
    assert shape("28x20") == (28, 20)
    assert sizes("500,300") == (500, 300)


def test_the_module_and_its_exit_code():
    process = command("evaluate", "nowhere")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.strip().count("\n") == 0
