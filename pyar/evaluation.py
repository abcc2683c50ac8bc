"""Exact negative log-likelihoods of a split, and how they are told: with data, number, standard error, two units."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyar.data import Dataset, Rows, TableData
from pyar.models import DensityModel


@dataclass(frozen=True)
class Evaluation:
    """The mean negative log-likelihood of a split, and all that is needed to compare it with another.

    `nll`: nats per example; None without examples. `standard_error`: of that mean, the examples' standard deviation/√N;
    None for fewer than two. Of a table `num_states` is None, `nll` is in the columns' own units, and `nll_standardised`
    that of the standardised numbers, which lacks the Jacobian.
    """

    data: str
    split: str
    preparation: str
    num_examples: int
    dim: int
    num_states: int | None
    nll: float | None
    standard_error: float | None
    nll_standardised: float | None = None

    @property
    def bits_per_dim(self) -> float | None:
        """The same mean in bits per dimension."""
        return None if self.nll is None else self.nll / (self.dim * math.log(2))

    def to_json(self) -> dict[str, Any]:
        """Plain values under their full names."""
        values = asdict(self)
        facts = {key: values[key] for key in ("data", "split", "preparation", "num_examples", "dim")}
        figures = {"nll_nats": self.nll, "standard_error_nats": self.standard_error}
        if self.num_states is None:
            return {**facts, **figures, "nll_standardised_nats": self.nll_standardised}
        return {**facts, "num_states": self.num_states, **figures, "bits_per_dim": self.bits_per_dim}

    def __str__(self) -> str:
        if self.nll is None:
            return f"{self.data} {self.split}: no examples (of {self.dim} dimensions, {self.preparation})"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        if self.num_states is None:
            return (
                f"{self.data} {self.split}: NLL {self.nll:.2f}{error} nats in the columns' own units, "
                f"{self.nll_standardised:.2f} standardised ({self.num_examples:,} rows of {self.dim} columns, "
                f"{self.preparation})"
            )
        return (
            f"{self.data} {self.split}: NLL {self.nll:.2f}{error} nats = {self.bits_per_dim:.4f} bits/dim "
            f"({self.num_examples:,} examples of {self.dim} dimensions, {self.preparation})"
        )


@torch.inference_mode()
def log_probs(
    model: DensityModel,
    x: Tensor,
    batch_size: int = 500,
    *,
    progress: bool = False,
    amp: bool = False,
    validation: bool = False,
    context: Tensor | None = None,
) -> Tensor:
    """log p of every row of x [N, D] in nats, float32 [N] on the CPU, computed `batch_size` rows at a time.

    `x` and `context` may be on another device than the model. `amp` runs in bfloat16 where autocast does so.
    `validation` takes the model's validation_log_prob instead. `context`: what the model is given with every row,
    labels int64 [N] or features float32 [N, C].
    """
    device = next(model.parameters()).device
    was_training = model.training
    log_prob = model.validation_log_prob if validation else model.log_prob
    model.eval()
    result = torch.empty(len(x), dtype=torch.float32)
    try:
        with (
            tqdm(total=len(x), unit="example", desc="evaluating", disable=not progress, leave=False) as bar,
            torch.autocast(device.type, torch.bfloat16, enabled=amp),
        ):
            for first in range(0, len(x), batch_size):
                rows = slice(first, first + batch_size)
                part = x[rows].to(device)
                told = {} if context is None else {"context": context[rows].to(device)}
                result[rows] = log_prob(part, **told).float()
                bar.update(len(part))
    finally:
        model.train(was_training)
    return result


@torch.inference_mode()
def order_log_probs(
    model: DensityModel, x: Tensor, num_orders: int, batch_size: int = 500, *, progress: bool = False
) -> Tensor:
    """log p_o of every row of x [N, D] under orders 0 … num_orders − 1 of seed 0, float32 [N, num_orders] on the CPU.

    `model` is one with any_order. The log mean exp over the first M columns is log_prob(x, orders=M).
    """
    device = next(model.parameters()).device
    parts = []
    with tqdm(total=len(x), unit="example", desc="evaluating", disable=not progress, leave=False) as bar:
        for part in x.split(batch_size):
            parts.append(model.order_log_probs(part.to(device), num_orders).cpu())
            bar.update(len(part))
    return torch.cat(parts) if parts else torch.empty(0, num_orders)


def summarise(log_prob: Tensor, dataset: Dataset | Rows | TableData, split: str) -> Evaluation:
    """An `Evaluation` from the log-probabilities [N] of a split's examples."""
    nll = -log_prob.double()
    count = len(nll)
    jacobian = None
    if isinstance(dataset, TableData) and count:
        there = ~dataset.split(split).isnan()
        jacobian = (there.double() @ dataset.columns.log_scales.double()).mean().item()
    return Evaluation(
        data=dataset.name,
        split=split,
        preparation=dataset.preparation,
        num_examples=count,
        dim=dataset.dim,
        num_states=None if isinstance(dataset, TableData) else dataset.num_states,
        nll=nll.mean().item() if count else None,
        standard_error=(nll.std() / math.sqrt(count)).item() if count > 1 else None,
        nll_standardised=None if jacobian is None else nll.mean().item() - jacobian,
    )


def check_fits(model: DensityModel, dataset: Dataset | TableData) -> None:
    """Raises ValueError unless the model is one of such vectors."""
    num_states = getattr(model, "num_states", None)
    columns = getattr(model, "columns", None) if num_states is None else None  # an image has such too
    if columns is None and num_states is None:
        if not isinstance(dataset, TableData):
            raise ValueError(f"{model.name} is of real vectors, {dataset.name} holds states")
        if model.dim != dataset.dim:
            raise ValueError(f"{model.name} is of {model.dim} dimensions, {dataset.name} has {dataset.dim} columns")
        return
    if columns is not None or isinstance(dataset, TableData):
        if not isinstance(dataset, TableData):
            raise ValueError(f"{model.name} is of a table's columns, {dataset.name} holds states")
        if columns != dataset.columns:
            raise ValueError(f"{model.name} is of other columns than {dataset.name}'s")
        return
    if (model.dim, model.num_states) != (dataset.dim, dataset.num_states):
        raise ValueError(
            f"the model is of {model.dim} dimensions with {model.num_states} states, {dataset.name} "
            f"({dataset.preparation}) of {dataset.dim} with {dataset.num_states}"
        )
    if model.num_classes != dataset.num_classes:
        raise ValueError(_labels_differ(model, dataset))


def _labels_differ(model: DensityModel, dataset: Dataset) -> str:
    if dataset.num_classes is None:
        return (
            f"the {model.name} is given labels of {model.num_classes} classes, but {dataset.name} was loaded without: "
            "load_dataset(…, labels=True)"
        )
    given = "takes no labels" if model.num_classes is None else f"is given labels of {model.num_classes} classes"
    return f"the {model.name} {given}, but {dataset.name} was loaded with labels of {dataset.num_classes} classes"


def evaluate(
    model: DensityModel,
    dataset: Dataset | TableData,
    split: str = "test",
    batch_size: int = 500,
    *,
    progress: bool = False,
    amp: bool = False,
) -> Evaluation:
    """The exact mean negative log-likelihood of a split of the data set under the model, given the labels if it is
    given such."""
    check_fits(model, dataset)
    x = dataset.split(split)
    if len(x) == 0:
        raise ValueError(f"the {split} split of {dataset.name} has no examples")
    log_prob = log_probs(model, x, batch_size, progress=progress, amp=amp, context=dataset.context(split))
    return summarise(in_own_units(model, log_prob, dataset), dataset, split)


def in_own_units(model: DensityModel, log_prob: Tensor, dataset: Dataset | TableData) -> Tensor:
    """Log-densities of a table's rows in the columns' own units, of which a model of real vectors knows nothing."""
    if isinstance(dataset, TableData) and not hasattr(model, "columns"):
        return log_prob - dataset.columns.log_scales.sum()
    return log_prob
