"""A table's columns as the conditionals of a model: categories, and mixtures over the line or over a grid.

Each says how many outputs of the network it takes, how a value becomes inputs, and the distribution that the outputs
stand for. Values are floating numbers, a category's its number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyar.reference import mixtures
from pyar.reference.draw import draw, log_probability

_BEND = 8.0  # standard deviations


@dataclass(frozen=True)
class Categories:
    """K categories 0 … K−1, by one logit for K = 2 and by K logits otherwise; one category alone takes none."""

    num_states: int

    @property
    def num_outputs(self) -> int:
        """P."""
        return {1: 0, 2: 1}.get(self.num_states, self.num_states)

    @property
    def num_inputs(self) -> int:
        """F: one-hot, without state 0."""
        return self.num_states - 1

    def inputs(self, x: Tensor) -> Tensor:
        """[...] → [..., F]."""
        return (x[..., None] == torch.arange(1, self.num_states, device=x.device)).to(x.dtype)

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats: [..., P], [...] → [...]."""
        return log_probability(outputs, x) if self.num_states > 1 else torch.zeros_like(x)

    def draw(self, outputs: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The inverse CDF at u: [B, P], [B], [B] → float64 [B]; v is not used."""
        if self.num_states == 1:
            return torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
        return draw(outputs, u).double()


@dataclass(frozen=True)
class Mixture:
    """A mixture over the line, or with a `step` over the grid origin + k·step from `low` to `high`: see mixtures.

    Inputs are the value, bent from some eight units on so that it stays within ±8, and its arsinh: a value far out
    moves the network by its logarithm, and neither the other columns' scores nor samples run away.
    """

    num_components: int
    family: str = "gaussian"
    min_scale: float = 0.01
    step: float = 0.0
    origin: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    @property
    def num_outputs(self) -> int:
        """P = 3C."""
        return 3 * self.num_components

    @property
    def num_inputs(self) -> int:
        """F."""
        return 2

    @property
    def cells(self) -> mixtures.Cells | None:
        """The grid, if there is one."""
        return mixtures.Cells(self.step, self.origin, self.low, self.high) if self.step else None

    def inputs(self, x: Tensor) -> Tensor:
        """[...] → [..., F]."""
        return torch.stack((_BEND * torch.tanh(x / _BEND), torch.asinh(x)), dim=-1)

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """The log-density, or on a grid the log-probability, in nats: [..., P], [...] → [...]."""
        return mixtures.log_prob(outputs, x, self.family, self.min_scale, self.cells)

    def draw(self, outputs: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The inverse CDF at v of a component drawn at u: [B, P], [B], [B] → float64 [B]."""
        return mixtures.draw(outputs, u, v, self.family, self.min_scale, self.cells)


Conditional = Categories | Mixture
