"""The training loop. A run is a function of its settings: stopped at any step and resumed, it gives the same bits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyar.checkpoint import MODEL_FILE, STATE_FILE, CheckpointError, load_state, save_model, save_state
from pyar.data import Dataset, TableData
from pyar.evaluation import check_fits, log_probs
from pyar.models import DensityModel
from pyar.plots import decoration, save_learning_curve
from pyar.training.config import BUDGETS, TrainingConfig
from pyar.training.log import RunLog
from pyar.training.parallel import Group
from pyar.training.progress import ProgressBar
from pyar.training.signals import StopSignals, pass_on

LOG_FILE = "log.jsonl"
CURVE_FILE = "learning_curve.png"
STATE_VERSION = 1  # what follows is added with a default, so that states of earlier releases are read
_DISPLAY_SECONDS = 0.25


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    `reason`: "budget" (used up), "patience", "plateau" (a lower learning rate no longer helps) or "interrupted"; then
    `signal` is the signal's number. `still_improving`: the budget ended the run while the valid NLL was falling;
    `advice` then says by how much and what to raise.
    """

    reason: str
    steps: int
    epochs: float
    seconds: float
    best_valid_nll: float | None
    best_step: int | None
    signal: int | None = None
    still_improving: bool = False
    advice: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dict(vars(self))


@dataclass
class _Plateau:
    """Where the schedule "plateau" stands; part of the training state."""

    falls: int = 0
    reference: float | None = None  # the valid NLL of the last evaluation that gained enough
    waited: int = 0  # evaluations since then, or since the last fall
    gained: bool = False  # whether any has gained since the last fall
    ended: bool = False

    def follow(self, nll: float, config: TrainingConfig) -> bool:
        """Takes note of an evaluation; whether the learning rate falls now."""
        if self.reference is None or nll < self.reference - config.plateau_threshold * abs(self.reference):
            self.reference, self.waited, self.gained = nll, 0, True
            return False
        self.waited += 1
        if self.waited < config.plateau_patience:
            return False
        lower = config.learning_rate * config.plateau_factor ** (self.falls + 1)
        if not self.gained or lower < config.min_learning_rate:
            self.ended = True
            return False
        self.falls, self.waited, self.gained = self.falls + 1, 0, False
        return True


class Trainer:
    """Trains a model on a data set in a run folder.

        trainer = Trainer(model, dataset, TrainingConfig(epochs=10), "runs/first")
        result = trainer.run()

    A model that is given labels gets those of its examples; the data set is loaded with labels=True for it.
    After `run` the model has the weights with the best validation NLL, which are also in the folder
    (`model.safetensors`), beside the log (`log.jsonl`), the learning curve and the training state. `resume` before
    `run` continues a run.

    Args:
        model: on the device to train on.
        dataset: of the model's dimension, number of states and number of classes, or of its columns.
        config: the settings.
        folder: the run folder, made if it is missing.
        group: the processes that share the work.
        progress: whether to draw a progress bar on stderr.
        extra: facts to store with the weights.
    """

    def __init__(
        self,
        model: DensityModel,
        dataset: Dataset | TableData,
        config: TrainingConfig,
        folder: str | os.PathLike[str],
        *,
        group: Group | None = None,
        progress: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        check_fits(model, dataset)
        if len(dataset.valid) == 0:
            raise ValueError(f"{dataset.name} has no valid split, which training chooses the best weights by")
        self.model, self.dataset, self.config = model, dataset, config
        self.folder, self.group = Path(folder), group or Group()
        self.progress, self.extra = progress and self.group.is_main, dict(extra or {})
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.fingerprint = dataset.fingerprint()
        labels = dataset.context("train")
        self.labels = None if labels is None else labels.to(self.device)

        self.steps_per_epoch = -(-len(dataset.train) // config.batch_size)
        self.eval_steps = max(1, round(config.eval_every * self.steps_per_epoch))
        limits = [] if config.max_steps is None else [config.max_steps]
        if config.epochs is not None:
            limits.append(max(1, math.ceil(config.epochs * self.steps_per_epoch)))
        self.total_steps = min(limits, default=None)
        self.optimizer = self._make_optimizer()
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else None

        # What a training state holds beside the weights.
        self.step = 0
        self.seconds = 0.0  # of earlier sessions of this run
        self.train_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # NLL since the last evaluation
        self.train_count = 0
        self.best_nll: float | None = None
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.evaluations_since_best = 0
        self.plateau = _Plateau()
        self.finished: str | None = None
        self.log = RunLog(self.folder / LOG_FILE, is_main=self.group.is_main)

        self.started = time.monotonic()
        self.stop_requested = False
        self.rate = config.learning_rate
        self._states: Tensor | None = None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        decayed = [p for p in self.parameters if p.ndim >= 2]
        others = [p for p in self.parameters if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,  # one pass over each parameter: 0.2 ms for 800,000 of them, where the loop takes 1.5 ms
        )

    # --- The loop ---

    def run(self) -> TrainingResult:
        """Trains until the run ends; then the model has the best weights, and the folder everything.

        Raises:
            KeyboardInterrupt, SystemExit: a SIGINT or a SIGTERM came and nobody else handles it. The run is saved, and
                `resume` goes on with it.
            TrainingError: training diverged.
        """
        result = self.train()
        self.draw_learning_curve()
        if result.signal is not None:
            pass_on(result.signal)
        return result

    def train(self) -> TrainingResult:
        """As `run`, but draws nothing, and a signal is told by the result alone: its `signal`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0:
            self.log.clear()
        for p in self.parameters:
            self.group.broadcast_(p.detach())
        self.log.write("start", **self._facts())
        self.started = time.monotonic()
        reason = self.finished
        signals = StopSignals()
        bar = ProgressBar(self.total_steps, self.config.time_budget, self.step, self.seconds, enabled=self.progress)
        with signals.installed(), contextlib.closing(bar):
            if reason is None:
                reason = self._loop(signals, bar)
            seconds = self._elapsed()
            if reason != "interrupted":
                self.finished = reason
            self._save()
        if reason != "interrupted":
            assert self.best_weights is not None
            self.model.load_state_dict(self.best_weights)
        number = signals.caught if reason == "interrupted" else None
        if reason == "interrupted" and number is None:
            number = signal.SIGTERM  # another process of the group was told to stop
        advice = self._advice() if reason == "budget" else None
        result = TrainingResult(
            reason=reason,
            steps=self.step,
            epochs=self.step / self.steps_per_epoch,
            seconds=seconds,
            best_valid_nll=self.best_nll,
            best_step=self.best_step,
            signal=None if number is None else int(number),
            still_improving=advice is not None,
            advice=advice,
        )
        self.log.write("end", **result.to_json())
        return result

    def _advice(self) -> str | None:
        """What to raise, if the valid NLL was still falling in the last tenth of the run."""
        earlier = [r["valid_nll"] for r in self.log.evaluations if r["step"] <= 0.9 * self.step]
        assert self.best_nll is not None
        gain = min(earlier, default=math.inf) - self.best_nll
        if not gain > self.config.plateau_threshold * abs(self.best_nll):
            return None
        names = [name for name in BUDGETS if getattr(self.config, name) is not None]
        fell = f"by {gain:.2g} nats over the last tenth of the run" if earlier else "as far as one evaluation tells"
        return f"the valid NLL was still falling, {fell}: raise {' or '.join(names)}"

    def draw_learning_curve(self) -> None:
        """Draws the run so far into its folder; what fails there is told on stderr."""
        if self.group.is_main and self.log.evaluations:
            title = f"{self.model.name} on {self.dataset.name} ({self.dataset.preparation})"
            with decoration(self.folder / CURVE_FILE):
                save_learning_curve(self.log.evaluations, self.folder / CURVE_FILE, title)

    def _loop(self, signals: StopSignals, bar: ProgressBar) -> str:
        """Steps until there is a reason to stop, which it returns."""
        config, model = self.config, self.model
        model.train()
        batch = self.dataset.train.new_empty(config.batch_size, self.dataset.dim, device=self.device)
        last_save = last_display = time.monotonic()
        epoch = -1
        while True:
            if self.step // self.steps_per_epoch != epoch:
                epoch = self.step // self.steps_per_epoch
                states, order = self._epoch_data(epoch)
            first = (self.step - epoch * self.steps_per_epoch) * config.batch_size
            rows = order[first : first + config.batch_size]
            mine = rows[self.group.share(len(rows))]
            x = torch.index_select(states, 0, mine, out=batch[: len(mine)])
            context = None if self.labels is None else self.labels[mine]

            progress = self._step(x, context, len(rows), signals)
            self.step += 1

            now = time.monotonic()
            done = progress >= 1.0 or self.step == self.total_steps
            if now - last_display >= _DISPLAY_SECONDS:
                last_display = now
                self._show(bar)
            if done or self.step % self.eval_steps == 0:
                self._evaluate(bar)
            if done:
                return "budget"
            if config.patience and self.evaluations_since_best >= config.patience:
                return "patience"
            if self.plateau.ended:
                return "plateau"
            if self.stop_requested:
                return "interrupted"
            if now - last_save >= config.save_every:
                self._save()
                last_save = time.monotonic()

    def _step(self, x: Tensor, context: Tensor | None, total: int, signals: StopSignals) -> float:
        """One optimiser step on this process's part x of a batch of `total` rows; returns the progress after it."""
        config, parameters = self.config, self.parameters
        self.optimizer.zero_grad(set_to_none=True)
        if len(x):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp):
                loss = self.model.training_loss(x, **({} if context is None else {"context": context}))
            if self.group.size > 1:
                loss = loss * (len(x) / total)
            loss.backward()
            loss = loss.detach()
        else:  # more processes than rows
            loss = torch.zeros((), device=self.device)
        progress, stop = self._progress(self.step), signals.caught is not None
        if self.group.size > 1:
            loss, progress, stop = self._reduce_gradients(loss, progress, stop)
        self.train_sum.add_(loss, alpha=total)
        self.train_count += total
        self.stop_requested = stop
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
        rate = config.rate(self.step, progress, self.plateau.falls)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.rate = rate
        self.optimizer.step()
        if self.average is not None:
            # Early on a shorter memory, so that the average forgets the initial weights.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1 - decay)
        return progress if self.total_steps is None else max(progress, (self.step + 1) / self.total_steps)

    def _reduce_gradients(self, loss: Tensor, progress: float, stop: bool) -> tuple[Tensor, float, bool]:
        """Sums gradients and loss over the processes; progress is rank 0's, stop is any process's."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        told = loss.new_tensor([progress if self.group.is_main else 0.0, float(stop)])
        flat = torch.cat([*(p.grad.reshape(-1) for p in self.parameters), loss.reshape(1), told])
        self.group.sum_(flat)
        offset = 0
        for p in self.parameters:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
        return flat[offset], flat[offset + 1].item(), flat[offset + 2].item() > 0

    def _epoch_data(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The states [N, D] of an epoch and the order of its examples, functions of (seed, epoch) alone."""
        if self.dataset.dynamic or self._states is None:
            self._states = self.dataset.train_states(self.config.seed, epoch).to(self.device)
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
        return self._states, torch.randperm(len(self._states), generator=generator).to(self.device)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def _progress(self, step: int) -> float:
        """The part of the budget that is used when `step` begins."""
        parts = [0.0]
        if self.total_steps is not None:
            parts.append(step / self.total_steps)
        if self.config.time_budget is not None:
            parts.append(self._elapsed() / self.config.time_budget)
        return min(1.0, max(parts))

    # --- Evaluation ---

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The model with the averaged weights, where there are any, within the block."""
        if self.average is None:
            yield
            return
        current = [p.detach() for p in self.parameters]
        kept = [p.clone() for p in current]
        torch._foreach_copy_(current, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(current, kept)

    def _evaluate(self, bar: ProgressBar) -> None:
        """Validation NLL, the best weights so far, a line in the log."""
        train_nll = self.train_sum.item() / self.train_count if self.train_count else None
        if train_nll is not None and not math.isfinite(train_nll):
            self._diverged()
        self.train_sum.zero_()
        self.train_count = 0
        valid = self.dataset.valid
        with self._averaged_weights():
            share, labels = self.group.share(len(valid)), self.dataset.context("valid")
            log_prob = log_probs(
                self.model,
                valid[share],
                self.config.eval_batch_size,
                amp=self.config.amp,
                validation=True,
                context=None if labels is None else labels[share],
            ).double()
            sums = torch.stack([log_prob.sum(), log_prob.square().sum()]).to(self.device)
            total, squares = self.group.sum_(sums).tolist()
            nll = -total / len(valid)
            better = math.isfinite(nll) and (self.best_nll is None or nll < self.best_nll)
            if better:
                self.best_nll, self.best_step, self.evaluations_since_best = nll, self.step, 0
                self.best_weights = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
            else:
                self.evaluations_since_best += 1
        if not math.isfinite(nll):
            self._diverged()
        variance = max(0.0, squares / len(valid) - nll**2)
        self.log.write(
            "evaluation",
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            train_nll=train_nll,
            valid_nll=nll,
            valid_standard_error=math.sqrt(variance / len(valid)),
            best=better,
            learning_rate=self.rate,
            progress=self._progress(self.step),
            seconds=self._elapsed(),
        )
        self._show(bar, train_nll)
        if self.config.schedule == "plateau" and self.plateau.follow(nll, self.config):
            assert self.best_weights is not None
            self.model.load_state_dict(self.best_weights)
            if self.average is not None:
                self.average = [p.detach().clone() for p in self.parameters]

    def _diverged(self) -> None:
        where = f"step {self.step} (epoch {self.step / self.steps_per_epoch:.1f})"
        if self.best_weights is not None and self.group.is_main:
            save_model(self.model, self.folder / MODEL_FILE, self._model_facts(), state_dict=self.best_weights)
        raise TrainingError(
            f"the NLL is no longer a number at {where}: training diverged. Lower --learning-rate or limit the gradient "
            "with --clip-norm"
        )

    # --- Files ---

    def _facts(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "model_config": self.model.config,
            "data": self.dataset.name,
            "preparation": self.dataset.preparation,
            "fingerprint": self.fingerprint,
            "training": self.config.to_json(),
            "step": self.step,
            "processes": self.group.size,
            "device": str(self.device),
            "torch": torch.__version__,
        }

    def _model_facts(self) -> dict[str, Any]:
        return {
            **self.extra,
            "image_shape": self.dataset.image_shape,
            "fingerprint": self.fingerprint,
            "data": self.dataset.name,
            "preparation": self.dataset.preparation,
            **({} if self.dataset.num_classes is None else {"class_names": self.dataset.class_names}),
            "best_valid_nll": self.best_nll,
            "best_step": self.best_step,
        }

    def _save(self) -> None:
        """Writes the best weights, then the training state.

        A kill between the two is harmless: resuming repeats the steps and finds those best weights again.
        """
        if not self.group.is_main:
            return
        save_model(self.model, self.folder / MODEL_FILE, self._model_facts(), state_dict=self.best_weights)
        save_state(
            {
                "version": STATE_VERSION,
                "fingerprint": self.fingerprint,
                "model": self.model.name,
                "model_config": json.dumps(self.model.config),
                "training": self.config.to_json(),
                "weights": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "best_weights": self.best_weights,
                "best_nll": self.best_nll,
                "best_step": self.best_step,
                "evaluations_since_best": self.evaluations_since_best,
                "plateau": asdict(self.plateau),
                "step": self.step,
                "seconds": self._elapsed(),
                "train_sum": self.train_sum,
                "train_count": self.train_count,
                "finished": self.finished,
                "log_bytes": self.log.size(),
                "random_state": torch.get_rng_state(),
                "cuda_random_state": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
            self.folder / STATE_FILE,
        )

    def resume(self) -> None:
        """Takes up the training state of the run folder, to continue as if the run had never stopped.

        The budget may have changed; a run that had used it up then goes on. Raises `CheckpointError` if the state is
        not of this model, data and batch size.
        """
        path = self.folder / STATE_FILE
        state = load_state(path)
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"{path} has the format {state.get('version')}; this version of pyar reads {STATE_VERSION}: update pyar"
            )
        theirs = state.get("training", {})
        for what, found, wanted in (
            ("model", state.get("model"), self.model.name),
            ("data", state.get("fingerprint"), self.fingerprint),
            ("batch size", theirs.get("batch_size"), self.config.batch_size),
            ("seed", theirs.get("seed"), self.config.seed),
            ("moving average", bool(theirs.get("ema")), bool(self.config.ema)),
        ):
            if found != wanted:
                raise CheckpointError(f"{self.folder} cannot be resumed: its {what} is {found}, not {wanted}")
        try:
            # By way of the constructor, because an earlier release may not have had all of its arguments.
            with torch.device("meta"):
                same_model = type(self.model)(**json.loads(state["model_config"])).config == self.model.config
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit {self.model.name}: {error}") from error
        if not same_model:
            raise CheckpointError(
                f"{self.folder} cannot be resumed: its model's arguments are {state['model_config']}, not "
                f"{json.dumps(self.model.config)}"
            )
        try:
            self.model.load_state_dict(state["weights"])
            weight_decays = [group["weight_decay"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, decay in zip(self.optimizer.param_groups, weight_decays, strict=True):
                group.update(weight_decay=decay, betas=(self.config.beta1, self.config.beta2), eps=self.config.epsilon)
            if self.average is not None:
                self.average = [a.to(self.device) for a in state["average"]]
            self.best_weights, self.best_nll, self.best_step = (
                state["best_weights"],
                state["best_nll"],
                state["best_step"],
            )
            self.evaluations_since_best = state["evaluations_since_best"]
            self.plateau = _Plateau(**state.get("plateau", {}))
            self.step, self.seconds = state["step"], state["seconds"]
            self.train_sum.copy_(state["train_sum"])
            self.train_count = state["train_count"]
            log_bytes = state["log_bytes"]
            torch.set_rng_state(state["random_state"])
            if self.device.type == "cuda" and state["cuda_random_state"] is not None:
                torch.cuda.set_rng_state(state["cuda_random_state"], self.device)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / STATE_FILE} does not fit this model: {error}") from error
        deciding = {"budget": BUDGETS, "patience": ("patience",), "plateau": ("plateau_patience", "min_learning_rate")}
        if all(theirs.get(name) == getattr(self.config, name) for name in deciding.get(state["finished"], ())):
            self.finished = state["finished"]
        else:
            self.plateau.ended = False
        self.log.restore(log_bytes)

    def _show(self, bar: ProgressBar, train_nll: float | None = None) -> None:
        if not bar.enabled:
            return
        if train_nll is None and self.train_count:
            train_nll = self.train_sum.item() / self.train_count
        valid_nll = self.log.evaluations[-1]["valid_nll"] if self.log.evaluations else None
        epoch = self.step / self.steps_per_epoch
        bar.show(self.step, self._elapsed(), epoch, train=train_nll, valid=valid_nll, best=self.best_nll)
