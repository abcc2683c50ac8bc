"""Training: it learns, it is repeatable, it resumes bit for bit, it divides its work without changing the gradient."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import pyar
from pyar.checkpoint import STATE_FILE, CheckpointError, load, load_state, save_state
from pyar.cli import main
from pyar.data import Dataset, load_dataset
from pyar.evaluation import evaluate
from pyar.models import model_class
from pyar.recipes import Size
from pyar.training import Trainer, TrainingConfig, TrainingError, model_defaults, training_defaults
from pyar.training.parallel import Group


@pytest.fixture(autouse=True)
def _one_thread():
    """Steps as small as these are slower, and much slower on a busy machine, when several threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(dynamic: bool = False) -> Dataset:
    """Vectors of 8 bits, each bit likely to repeat the one before it: entropy well below 8 ln 2 = 5.5 nats."""
    generator = torch.Generator().manual_seed(0)
    flips = torch.rand(330, 8, generator=generator) < 0.15
    x = (flips.cumsum(1) % 2).to(torch.uint8)
    grey = (x[:250] * 200 + 20).to(torch.uint8) if dynamic else None
    return Dataset("toy", 2, (2, 4), "2 states as stored", x[:250], x[250:290], x[290:], grey)


def make(folder, dataset=None, group=None, hidden_size=12, **settings) -> Trainer:
    dataset = dataset or toy()
    config = TrainingConfig(**{"epochs": 3, "batch_size": 32, "learning_rate": 0.02, **settings})
    torch.manual_seed(config.seed)
    model = pyar.NADE(dataset.dim, dataset.num_states, hidden_size)
    return Trainer(model, dataset, config, folder, group=group)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def evaluations(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["event"] == "evaluation"]


def test_training_learns_and_keeps_the_best_weights(tmp_path):
    trainer = make(tmp_path, epochs=20, learning_rate=0.1)
    before = -trainer.model.log_prob(toy().test).mean().item()
    result = trainer.run()
    after = -trainer.model.log_prob(toy().test).mean().item()
    assert before == pytest.approx(8 * 0.6931, abs=0.1)
    assert after < 4.2  # the entropy is 8·0.423 = 3.38
    assert (result.reason, result.steps, result.epochs) == ("budget", 160, 20)
    logged = evaluations(tmp_path)
    assert [r["step"] for r in logged] == list(range(8, 161, 8))
    assert result.best_valid_nll == min(r["valid_nll"] for r in logged)
    valid = -trainer.model.log_prob(toy().valid).double().mean().item()
    assert valid == pytest.approx(result.best_valid_nll, rel=1e-6)
    again = load(tmp_path)
    for a, b in zip(again.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "learning_curve.png").stat().st_size > 0


def test_the_same_settings_give_the_same_bits(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    first.run()
    second.run()
    assert torch.equal(weights(first), weights(second))
    assert evaluations(tmp_path / "a") == evaluations(tmp_path / "b")
    other = make(tmp_path / "c", seed=1)
    other.run()
    assert not torch.equal(weights(first), weights(other))


class Stopper:
    """Raises a signal in this process while a certain step is being made."""

    def __init__(self, trainer: Trainer, step: int, number: int) -> None:
        self.inner, self.trainer = trainer._step, trainer
        self.step, self.number = step, number
        trainer._step = self

    def __call__(self, *arguments):
        if self.trainer.step == self.step:
            signal.raise_signal(self.number)
        return self.inner(*arguments)


@pytest.mark.parametrize("stop_at", [0, 5, 7, 8, 19])  # 8 steps an epoch: within one, at its end, at its begin
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "clip_norm": 0.5, "weight_decay": 0.01, "warmup_steps": 3}])
def test_stopped_and_resumed_gives_the_same_bits(tmp_path, stop_at, settings):
    whole = make(tmp_path / "whole", **settings)
    wanted = whole.run()
    parts = make(tmp_path / "parts", **settings)
    Stopper(parts, stop_at, signal.SIGINT)
    stopped = parts.train()
    assert (stopped.reason, stopped.signal, stopped.steps) == ("interrupted", signal.SIGINT, stop_at + 1)
    again = make(tmp_path / "parts", **settings)
    again.resume()
    assert again.seconds >= stopped.seconds > 0  # a budget of time counts what was used before
    result = again.run()
    assert torch.equal(weights(again), weights(whole))
    assert (result.best_valid_nll, result.best_step) == (wanted.best_valid_nll, wanted.best_step)
    assert evaluations(tmp_path / "parts") == evaluations(tmp_path / "whole")
    for name, theirs in load_state(tmp_path / "whole" / STATE_FILE)["weights"].items():
        assert torch.equal(load_state(tmp_path / "parts" / STATE_FILE)["weights"][name], theirs)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_reaches_the_caller_of_run_once_all_is_saved(tmp_path, number, error):
    """A loop of runs ends with the run that was stopped."""
    trainers = [make(tmp_path / str(seed), seed=seed) for seed in range(3)]
    Stopper(trainers[1], 12, number)

    def run_all():
        for trainer in trainers:
            trainer.run()

    with pytest.raises(error) as caught:
        run_all()
    assert trainers[2].step == 0
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    for name in ("model.safetensors", "training_state.pt", "learning_curve.png"):
        assert (tmp_path / "1" / name).stat().st_size > 0
    again = make(tmp_path / "1", seed=1)
    again.resume()
    assert again.step == 13
    whole = make(tmp_path / "whole", seed=1)
    whole.run()
    again.run()
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_program_handles_itself_is_handed_to_it(tmp_path, number):
    seen = []
    before = signal.signal(number, lambda number, frame: seen.append(number))
    try:
        trainer = make(tmp_path)
        Stopper(trainer, 4, number)
        result = trainer.run()
    finally:
        signal.signal(number, before)
    assert (result.reason, result.steps, seen) == ("interrupted", 5, [number])
    assert load_state(tmp_path / STATE_FILE)["step"] == 5


def test_a_picture_that_fails_does_not_cost_the_run(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no ink")

    monkeypatch.setattr("pyar.training.loop.save_learning_curve", fail)
    trainer = make(tmp_path)
    assert trainer.run().reason == "budget"
    assert capsys.readouterr().err == f"pyar: {tmp_path / 'learning_curve.png'} could not be drawn: no ink\n"
    assert load(tmp_path).config == trainer.model.config


def test_dynamic_binarisation_resumes_too(tmp_path):
    whole = make(tmp_path / "whole", toy(dynamic=True))
    whole.run()
    parts = make(tmp_path / "parts", toy(dynamic=True))
    Stopper(parts, 11, signal.SIGTERM)
    assert parts.train().signal == signal.SIGTERM
    again = make(tmp_path / "parts", toy(dynamic=True))
    again.resume()
    again.run()
    assert torch.equal(weights(again), weights(whole))


def test_steps_after_the_last_saving_are_repeated(tmp_path):
    """As after kill -9: the log has more lines than the state knows of."""
    whole = make(tmp_path / "whole")
    whole.run()
    parts = make(tmp_path / "parts")
    Stopper(parts, 9, signal.SIGTERM)
    parts.train()
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"event": "evaluation", "step": 16, "epoch": 2.0, "valid_nll": 1.0, "train_nll": 1.0}\n{"eve')
    again = make(tmp_path / "parts")
    again.resume()
    again.run()
    assert evaluations(tmp_path / "parts") == evaluations(tmp_path / "whole")


def test_a_finished_run_stays_finished_unless_its_budget_grows(tmp_path):
    make(tmp_path).run()
    again = make(tmp_path)
    again.resume()
    result = again.run()
    assert (result.reason, result.steps) == ("budget", 24)
    longer = make(tmp_path, epochs=5)
    longer.resume()
    assert longer.run().steps == 40


def test_resuming_something_else_is_refused(tmp_path):
    make(tmp_path).run()
    for other, message in (
        ({"batch_size": 16}, "batch size"),
        ({"seed": 3}, "seed"),
        ({"ema": 0.9}, "moving average"),
        ({"hidden_size": 13}, "arguments"),
        ({"dataset": toy(dynamic=True)}, "data"),
    ):
        with pytest.raises(CheckpointError, match=message):
            make(tmp_path, **other).resume()
    with pytest.raises(CheckpointError, match="no training state"):
        make(tmp_path / "nothing").resume()


def test_a_state_of_an_earlier_or_later_release(tmp_path):
    """What the constructor has got since stands at its default; what this release does not know is refused."""
    make(tmp_path).run()
    state = load_state(tmp_path / STATE_FILE)
    config = json.loads(state["model_config"])
    assert config.pop("input") == "onehot"
    save_state({**state, "model_config": json.dumps(config)}, tmp_path / STATE_FILE)
    make(tmp_path).resume()
    save_state({**state, "model_config": json.dumps({**config, "skip": True})}, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match=r"does not fit nade.*skip"):
        make(tmp_path).resume()
    save_state({**state, "version": 2}, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match="format 2; this version of pyar reads 1: update pyar"):
        make(tmp_path).resume()


def test_an_epoch_sees_every_example_once_in_a_new_order(tmp_path):
    trainer = make(tmp_path, seed=5)
    orders = [trainer._epoch_data(epoch)[1] for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(250))
    assert not torch.equal(*orders)
    assert torch.equal(make(tmp_path, seed=5)._epoch_data(1)[1], orders[1])


def test_only_what_ended_a_run_lets_it_go_on(tmp_path):
    settings = {"epochs": 500, "learning_rate": 0.3, "patience": 2, "schedule": "constant"}
    steps = make(tmp_path, **settings).run().steps
    for change, more in (({"epochs": 600}, 0), ({"patience": 3}, 1)):
        again = make(tmp_path, **{**settings, **change})
        again.resume()
        result = again.run()
        assert result.reason == "patience"
        assert (result.steps > steps) == bool(more)


def test_patience_ends_the_run(tmp_path):
    settings = {"epochs": 500, "learning_rate": 0.3, "patience": 2, "schedule": "constant"}
    result = make(tmp_path, **settings).run()
    assert result.reason == "patience"
    logged = evaluations(tmp_path)
    assert [r["best"] for r in logged[-2:]] == [False, False]
    assert logged[-3]["best"]
    # Stopped between the two evaluations without a better one, it ends at the same step.
    parts = make(tmp_path / "parts", **settings)
    Stopper(parts, result.steps - 4, signal.SIGTERM)
    parts.train()
    again = make(tmp_path / "parts", **settings)
    again.resume()
    end = again.run()
    assert (end.reason, end.steps) == ("patience", result.steps)
    for patience, finished in ((2, "patience"), (9, None)):
        later = make(tmp_path / "parts", **{**settings, "patience": patience})
        later.resume()
        assert later.finished == finished


PLATEAU = {"epochs": None, "max_steps": 4000, "schedule": "plateau", "plateau_patience": 3, "learning_rate": 0.1}


def test_at_a_plateau_the_rate_falls_from_the_best_weights_until_that_brings_nothing(tmp_path):
    trainer = make(tmp_path, ema=0.9, **PLATEAU)
    starts, step = {}, trainer._step

    def look(*arguments):
        starts.setdefault(trainer.plateau.falls, weights(trainer).clone())
        return step(*arguments)

    trainer._step = look
    restored, follow = [], trainer.plateau.follow

    def note_best(nll, config):
        falls = follow(nll, config)
        if falls:
            best = [trainer.best_weights[name] for name, _ in trainer.model.named_parameters()]
            restored.append(torch.cat([w.flatten() for w in best]))
        return falls

    trainer.plateau.follow = note_best
    result = trainer.run()
    assert (result.reason, result.still_improving, result.advice) == ("plateau", False, None)
    assert result.steps < 4000
    logged = evaluations(tmp_path)
    rates = sorted({r["learning_rate"] for r in logged}, reverse=True)
    assert rates == pytest.approx([0.1 * 0.3**n for n in range(len(rates))])
    assert len(rates) == len(restored) + 1 >= 2
    for fall, best in enumerate(restored, start=1):
        assert torch.equal(starts[fall], best)
    # The stages, cut by hand: each lasts until three evaluations in a row gain less than a ten-thousandth.
    reference, waited, gained, rate = math.inf, 0, False, 0
    for record in logged:
        assert record["learning_rate"] == pytest.approx(0.1 * 0.3**rate)
        if record["valid_nll"] < reference * (1 - 1e-4):
            reference, waited, gained = record["valid_nll"], 0, True
        else:
            waited += 1
        if waited == 3 and gained:
            waited, gained, rate = 0, False, rate + 1
    assert (waited, gained) == (3, False)


def test_the_least_learning_rate_ends_the_run(tmp_path):
    result = make(tmp_path, **PLATEAU, min_learning_rate=0.05).run()
    assert result.reason == "plateau"
    assert {r["learning_rate"] for r in evaluations(tmp_path)} == {0.1}


def test_a_plateau_is_resumed_bit_for_bit(tmp_path):
    settings = PLATEAU | {"ema": 0.9}
    whole = make(tmp_path / "whole", **settings)
    wanted = whole.run()
    falls = [
        b["step"]
        for a, b in itertools.pairwise(evaluations(tmp_path / "whole"))
        if a["learning_rate"] > b["learning_rate"]
    ]
    assert falls
    for stop_at in (falls[0] - 9, falls[0] - 8, falls[0] + 3, wanted.steps - 2):
        folder = tmp_path / str(stop_at)
        parts = make(folder, **settings)
        Stopper(parts, stop_at, signal.SIGTERM)
        assert parts.train().reason == "interrupted"
        again = make(folder, **settings)
        again.resume()
        result = again.run()
        assert (result.reason, result.steps, result.best_valid_nll) == ("plateau", wanted.steps, wanted.best_valid_nll)
        assert torch.equal(weights(again), weights(whole))
        assert evaluations(folder) == evaluations(tmp_path / "whole")
    done = make(tmp_path / "whole", **settings)
    done.resume()
    assert done.run().steps == wanted.steps
    more = make(tmp_path / "whole", **{**settings, "plateau_patience": 9})
    more.resume()
    assert more.run().steps > wanted.steps


def test_the_first_of_two_budgets_ends_the_run(tmp_path):
    for settings, steps in (({"epochs": 2, "max_steps": 99}, 16), ({"epochs": 9, "max_steps": 21}, 21)):
        result = make(tmp_path, **settings).run()
        assert (result.reason, result.steps) == ("budget", steps)


def test_a_run_that_ends_while_it_improves_says_what_to_raise(tmp_path):
    result = make(tmp_path / "short", epochs=None, max_steps=40, learning_rate=0.02, schedule="constant").run()
    logged = evaluations(tmp_path / "short")
    gain = logged[-2]["valid_nll"] - logged[-1]["valid_nll"]
    assert gain > 0
    assert result.still_improving
    assert result.advice == (
        f"the valid NLL was still falling, by {gain:.2g} nats over the last tenth of the run: raise max_steps"
    )
    end = json.loads((tmp_path / "short" / "log.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["advice"]) == ("end", result.advice)
    # A run that is past its best, and one that its rate of zero has stopped, have nothing to gain by more of the same.
    past = make(tmp_path / "past", epochs=60, learning_rate=0.3, schedule="constant").run()
    still = make(tmp_path / "still", epochs=3, learning_rate=1e-9).run()
    assert (past.reason, past.still_improving, past.advice) == ("budget", False, None)
    assert (still.reason, still.still_improving) == ("budget", False)
    one = make(tmp_path / "one", epochs=1).run()
    assert one.advice == "the valid NLL was still falling, as far as one evaluation tells: raise epochs"


def test_a_time_budget_ends_the_run_with_the_rate_near_zero(tmp_path):
    result = make(tmp_path, epochs=None, time_budget=0.5).run()
    assert result.reason == "budget"
    last = evaluations(tmp_path)[-1]
    assert last["progress"] == 1.0
    assert last["learning_rate"] < 0.02
    assert load_state(tmp_path / STATE_FILE)["seconds"] >= 0.5


def test_divergence_is_told(tmp_path):
    trainer = make(tmp_path)
    with torch.no_grad():
        trainer.model.b.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"no longer a number at step 8 .*Lower --learning-rate"):
        trainer.run()


def test_what_was_best_before_a_divergence_is_kept(tmp_path):
    trainer = make(tmp_path)
    inner = trainer._step

    def step(*arguments):
        if trainer.step == 10:
            with torch.no_grad():
                trainer.model.b.fill_(float("nan"))
        return inner(*arguments)

    trainer._step = step
    with pytest.raises(TrainingError, match="no longer a number at step 16"):
        trainer.run()
    best = evaluations(tmp_path)[0]
    valid = -load(tmp_path).log_prob(toy().valid).double().mean().item()
    assert valid == pytest.approx(best["valid_nll"], rel=1e-6)


def test_the_log_tells_the_means_and_the_error(tmp_path):
    trainer = make(tmp_path, epochs=2, learning_rate=1e-12)  # so that every step is of the same weights
    trainer.run()
    train = -trainer.model.log_prob(toy().train).double().mean().item()
    valid = evaluate(trainer.model, toy(), "valid")
    for record in evaluations(tmp_path):
        assert record["train_nll"] == pytest.approx(train, rel=1e-6)
        assert record["valid_nll"] == pytest.approx(valid.nll, rel=1e-6)
        # Of the population, not of the sample.
        assert record["valid_standard_error"] == pytest.approx(valid.standard_error * (39 / 40) ** 0.5, rel=1e-4)


def test_weights_decay_and_biases_do_not(tmp_path):
    trainer = make(tmp_path, weight_decay=0.25)
    decays = {p: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    model = trainer.model
    assert (decays[model.W], decays[model.V], decays[model.c]) == (0.25, 0.25, 0.0)


def test_the_average_forgets_the_first_weights_soon(tmp_path):
    """After one step it is nine tenths of the new weights, whatever its later memory."""
    start = weights(make(tmp_path / "start"))
    one_step = {"epochs": 1 / 8}
    plain, averaged = make(tmp_path / "plain", **one_step), make(tmp_path / "average", ema=0.99, **one_step)
    plain.run()
    averaged.run()
    torch.testing.assert_close(weights(averaged), 0.1 * start + 0.9 * weights(plain))


class OtherIsStopped(Group):
    """The first of two processes, of which the second has no rows, and is told to stop."""

    def share(self, count: int) -> slice:
        return slice(0, count)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() > 2:  # gradients, loss, progress, and whether to stop
            tensor[-1] += 1
        return tensor

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_all_processes_stop_when_one_is_told_to(tmp_path):
    result = make(tmp_path, group=OtherIsStopped(0, 2)).train()
    assert (result.reason, result.steps, result.signal) == ("interrupted", 1, signal.SIGTERM)


def test_the_average_is_what_is_kept(tmp_path):
    trainer = make(tmp_path, ema=0.9)
    trainer.run()
    assert trainer.best_step == 24
    for average, p in zip(trainer.average, trainer.model.parameters(), strict=True):
        assert torch.equal(average, p)


def test_gradient_clipping_limits_the_norm(tmp_path):
    trainer = make(tmp_path, clip_norm=1e-3, epochs=1)
    trainer.run()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in trainer.model.parameters()))
    assert norm <= 1e-3 * 1.0001


def test_schedules():
    for schedule, half in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        config = TrainingConfig(learning_rate=2.0, schedule=schedule)
        assert config.rate(0, 0.0) == 2.0
        assert config.rate(10, 0.5) == pytest.approx(2.0 * half)
        assert config.rate(10, 1.0) == pytest.approx(2.0 if schedule == "constant" else 0.0)
    plateau = TrainingConfig(learning_rate=2.0, schedule="plateau", plateau_factor=0.5)
    assert [plateau.rate(9, progress, 2) for progress in (0.0, 0.8, 0.9, 1.0)] == pytest.approx([0.5, 0.5, 0.25, 0.0])
    assert TrainingConfig(learning_rate=1.0, warmup_steps=4, schedule="constant").rate(1, 0.1) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"schedule": "stepwise"},
        {"epochs": None},
        {"ema": 1.0},
        {"seed": -1},
        {"time_budget": 0.0},
        {"patience": -1},
        {"max_steps": 0},
        {"plateau_factor": 1.0},
        {"plateau_factor": 0.0},
        {"plateau_patience": 0},
        {"plateau_threshold": -1.0},
        {"min_learning_rate": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "epochs" not in wrong else "budget"):
        TrainingConfig(**wrong)


def test_settings_survive_json_and_unknown_ones_are_refused():
    config = TrainingConfig(epochs=None, time_budget=3.0, ema=0.5)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert TrainingConfig.from_json({"epochs": 3}) == TrainingConfig(epochs=3)  # of a release that had no others
    with pytest.raises(ValueError, match="unknown training settings: momentum; a later version"):
        TrainingConfig.from_json({"momentum": 1})


@pytest.mark.parametrize("model", ["nade", "pixel-lstm"])
@pytest.mark.parametrize("data", ["digits", "binarized-mnist", "mnist", "fashion-mnist", "mine.npz"])
def test_every_pair_has_defaults(model, data):
    assert training_defaults(model, data).batch_size > 0
    assert "hidden_size" in model_defaults(model, data)


@pytest.mark.parametrize("model", ["nade", "pixel-lstm"])
@pytest.mark.parametrize("rows", [1, 99, 1_400, 30_000, 1_000_000])
@pytest.mark.parametrize(("dim", "num_states"), [(10, 2), (180, 3), (784, 10), (3000, 256)])
def test_general_settings_suit_the_size_of_the_data(model, rows, dim, num_states):
    """Evaluations neither rare nor many for the rows, a run that ends by itself, weights that fit into memory."""
    size = Size(rows, dim, num_states)
    config = training_defaults(model, "mine.npz", size)
    assert (config.schedule, config.epochs, config.time_budget) == ("plateau", None, None)
    epoch = math.ceil(rows / config.batch_size)
    assert epoch >= min(rows / 20, 50)
    assert 50 <= round(config.eval_every * epoch) <= max(2000, epoch / 5)
    with torch.device("meta"):  # takes no memory
        built = model_class(model)(dim, num_states, **model_defaults(model, "mine.npz", size))
    assert sum(p.numel() for p in built.parameters()) < 60e6
    assert built.hidden_size >= 64


def test_mismatched_model_and_empty_valid_are_refused(tmp_path):
    with pytest.raises(ValueError, match="states"):
        Trainer(pyar.NADE(8, 3, 4), toy(), TrainingConfig(), tmp_path)
    x = toy().train
    with pytest.raises(ValueError, match="valid"):
        Trainer(pyar.NADE(8, 2, 4), Dataset("x", 2, None, "", x, x[:0], x), TrainingConfig(), tmp_path)


def test_shares_cover_every_row_once():
    for count in (0, 1, 5, 100):
        for size in (1, 2, 3, 7):
            rows = [r for rank in range(size) for r in range(count)[Group(rank, size).share(count)]]
            assert rows == list(range(count))


STEP = """
import glob, sys, torch
import test_training
from pyar.training.parallel import process_group
torch.set_num_threads(1)
with process_group("cpu") as group:
    for batch_size in map(int, sys.argv[2:]):
        # A learning rate of almost nothing: the gradients of all batches are of the same weights.
        folder = f"{sys.argv[1]}/{batch_size}"
        settings = dict(group=group, batch_size=batch_size, epochs=1, learning_rate=1e-12)
        trainer = test_training.make(folder, **settings)
        if not group.is_main:  # what the processes start from is rank 0's
            for p in trainer.parameters:
                p.detach().zero_()
        trainer.run()
        if group.is_main:
            torch.save([p.grad for p in trainer.model.parameters()], f"{folder}/gradient.pt")
# The group is gone, not only left: its threads could otherwise bring the process down as the interpreter ends.
names = [open(path).read() for path in glob.glob("/proc/self/task/*/comm")]
assert not [name for name in names if "gloo" in name], names
"""


def torchrun(processes: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a Python script or module under torchrun on this machine."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1",
        *arguments,
    ]
    tests = os.path.dirname(__file__)
    path = os.pathsep.join([os.path.dirname(tests), tests, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        timeout=180,
    )


def test_two_processes_have_the_gradient_of_one(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP)
    batch_sizes = (33, 249)  # the last batches have 19 rows, and 1: a process without rows
    done = torchrun(2, str(script), str(tmp_path), *map(str, batch_sizes))
    assert done.returncode == 0, done.stderr
    for batch_size in batch_sizes:
        folder = tmp_path / str(batch_size)
        theirs = torch.load(folder / "gradient.pt", weights_only=True)
        alone = make(tmp_path / f"alone-{batch_size}", batch_size=batch_size, epochs=1, learning_rate=1e-12)
        alone.run()
        for gradient, p in zip(theirs, alone.model.parameters(), strict=True):
            assert torch.allclose(gradient, p.grad, rtol=1e-5, atol=1e-7)
        mine, together = evaluations(tmp_path / f"alone-{batch_size}")[-1], evaluations(folder)[-1]
        for key in ("train_nll", "valid_nll", "valid_standard_error"):
            assert together[key] == pytest.approx(mine[key], rel=1e-5)


def test_the_command_under_torchrun_trains_one_model(tmp_path):
    """Two processes name one folder, write it once and end where one process ends."""
    arguments = ["train", "nade", "--epochs", "2", "--hidden-size", "8", "--binarize", "threshold", "--clip-norm", "1"]
    arguments += ["--samples", "0", "--no-progress", "--json"]
    done = torchrun(2, "--no-python", sys.executable, "-m", "pyar", *arguments, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert json.loads(done.stdout) == two
    assert two["steps"] == one["steps"]
    for split in ("valid", "test"):
        assert two[split]["nll_nats"] == pytest.approx(one[split]["nll_nats"], rel=1e-4)
    logged = evaluations(tmp_path / "two")
    assert [record["step"] for record in logged] == [record["step"] for record in evaluations(tmp_path / "one")]


def test_two_processes_come_to_the_same_plateaus(tmp_path):
    """Falls of the rate, the way back to the best weights and the end are every process's alike."""
    np.save(tmp_path / "x.npy", toy().train.numpy())
    arguments = ["train", "nade", "--data", str(tmp_path / "x.npy"), "--hidden-size", "8", "--plateau-patience", "2"]
    arguments += ["--learning-rate", "0.05", "--samples", "0", "--no-progress"]
    done = torchrun(2, "--no-python", sys.executable, "-m", "pyar", *arguments, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = evaluations(tmp_path / "one"), evaluations(tmp_path / "two")
    assert len({record["learning_rate"] for record in one}) > 1
    for key in ("step", "learning_rate", "valid_nll"):
        assert [record[key] for record in two] == pytest.approx([record[key] for record in one], rel=1e-4)


def test_digits_train_in_a_moment(tmp_path):
    data = load_dataset("digits", binarize="threshold")
    trainer = make(tmp_path, data, epochs=2, batch_size=200)
    trainer.model.initialize_from_marginals(data.train)
    before = -trainer.model.log_prob(data.valid).mean().item()
    assert trainer.run().best_valid_nll < before
