"""RNADE as a module: NADE for real values, with a mixture for every conditional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyar.models.base import DensityModel, check_choice, marginal_mixture, new_parameter, positive_int
from pyar.models.layers import reparametrize, require_parameter
from pyar.ops.rnade import rnade_conditional_log_prob, rnade_log_prob, rnade_sample
from pyar.ops.validate import check_sampling, check_values
from pyar.random import resolve_seed
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.mixtures import FAMILIES
from pyar.scalars import plain_number


class RNADE(DensityModel):
    r"""NADE for real values: one hidden layer whose units grow by a row of W with each value, and mixtures for outputs.

        a_0 = c,   a_{d+1} = a_d + x_d W_d,   h_d = f(ρ_d a_d)
        p(x_d | x_{<d}) = Σ_k π_k f((x_d − μ_k)/σ_k)/σ_k,   (logits of π, μ, log(σ − min_scale)) = V_d h_d + b_d

    ρ_d keeps the units' range while a_d grows with every step. Values should be standardised: log_prob is the density
    of what the model is given, so that of values in other units x = m + s z it is log p(z) − Σ_d log s_d.

    Reference: Uria, Murray & Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NIPS 2013,
    https://arxiv.org/abs/1306.0186; Uria et al., JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html, section 3.2.
    Every component's scale is e^s + min_scale, where the paper has e^s: without a least scale the likelihood of data
    with repeated values has no bound.

    Args:
        dim: D, the number of dimensions.
        num_components: C, of every mixture.
        hidden_size: H.
        family: of the components, "gaussian", "logistic" or "laplace".
        activation: "relu", "sigmoid" or "tanh".
        min_scale: the least scale of a component, ≥ 0.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.

    Attributes:
        W: [D, H]; W, rho, V and b are indexed by step.
        c: [H].
        rho: [D].
        V: [D, 3C, H], rows of logits, means and log-scales.
        b: [D, 3C].

    Example:
        >>> model = pyar.RNADE(dim=2, hidden_size=8)
        >>> x = torch.tensor([[0.5, -1.0], [0.0, 2.0]])
        >>> model.log_prob(x).shape
        torch.Size([2])
        >>> model.sample(3, seed=1).shape
        torch.Size([3, 2])
    """

    name = "rnade"
    _other_masks = "pyar.TableNADE completes from any columns"

    def __init__(
        self,
        dim: int,
        num_components: int = 10,
        hidden_size: int = 50,
        *,
        family: Literal["gaussian", "logistic", "laplace"] = "gaussian",
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        min_scale: float = 0.01,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dim, order)
        self.num_components = positive_int("num_components", num_components)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.family = check_choice("family", family, FAMILIES)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.min_scale = float(plain_number("min_scale", min_scale))
        if not 0 <= self.min_scale < math.inf:
            raise ValueError(f"min_scale must not be negative, and finite, got {min_scale}")

        D, P, H = self.dim, 3 * self.num_components, self.hidden_size
        self.W = new_parameter(D, H)
        self.c = new_parameter(H)
        self.rho = new_parameter(D)
        self.V = new_parameter(D, P, H)
        self.b = new_parameter(D, P)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W and c ~ N(0, 1/10), ρ_d = 1/√(d + 1), V ~ N(0, 0.01²); b as for standard normal values."""
        nn.init.normal_(self.W, std=math.sqrt(0.1))
        nn.init.normal_(self.c, std=math.sqrt(0.1))
        nn.init.normal_(self.V, std=0.01)
        with torch.no_grad():
            self.rho.copy_(torch.arange(1, self.dim + 1, device=self.rho.device).rsqrt())
            standard = marginal_mixture(torch.empty(0, device="cpu"), self.num_components, self.min_scale)
            self.b.copy_(standard)

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> RNADE:
        """Sets b so that an untrained model starts near the data's marginals: components at each dimension's quantiles.

        Args:
            x: float32 [N, D], finite.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        require_parameter("b", self.b)
        for step, values in enumerate(self._steps(x).unbind(1)):
            self.b[step] = marginal_mixture(values, self.num_components, self.min_scale)
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density log p(x) in nats, differentiable with respect to the parameters and to x.

        Args:
            x: float32 [B, D], finite.

        Returns:
            float32 [B].

        Raises:
            TypeError: x is of another dtype.
            ValueError: x is of another shape, on another device, or holds NaN or infinite values.

        Example:
            >>> model = pyar.RNADE(dim=1, hidden_size=8)
            >>> grid = torch.linspace(-8, 8, 1001)
            >>> round(torch.trapezoid(model.log_prob(grid[:, None]).exp(), grid).item(), 3)
            1.0
        """
        return rnade_log_prob(self._steps(x), *self._arguments())

    def conditional_log_prob(self, x: Tensor) -> Tensor:
        """The log-density log p(x_d | the dimensions before it) of every dimension, in nats, differentiable.

        Args:
            x: float32 [B, D], finite.

        Returns:
            float32 [B, D]. Column d is dimension d, whatever the order. Their sum is log_prob(x).

        Raises:
            TypeError, ValueError: as log_prob.
        """
        return self._dimensions(rnade_conditional_log_prob(self._steps(x), *self._arguments()))

    @torch.no_grad()
    def sample_and_log_prob(  # type: ignore[override]
        self,
        num_samples: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Exact samples and, from the same pass, the log-density of what was drawn.

        Two uniforms for each (sample, dimension) draw a component and, with 32 bits, a value, both by inverse CDF:
        sample i of a seed is always the same, whatever the batch.

        Args:
            num_samples: N ≥ 0.
            seed: 0 … 2⁶⁴−1; None draws one from `generator`, or without one from torch's default generator.
            generator: a generator on the model's device; only without a seed.
            first_index: ≥ 0; samples first_index … first_index + num_samples − 1 of the seed are returned.
            temperature: 1. Others are refused: a mixture raised to a power is no such mixture.
            given: float32 [N, G], or [G] for all samples alike: the values of the dimensions at the first G steps of
                the model's order, which are not drawn.

        Returns:
            x float32 [N, D], and float32 [N], the log-density, in nats, of the drawn dimensions given the others.

        Raises:
            TypeError, ValueError: an argument is not as described.
            RuntimeError: the model's parameters give outputs that are NaN or infinite.

        Example:
            >>> model = pyar.RNADE(dim=3, hidden_size=8)
            >>> x, log_prob = model.sample_and_log_prob(10, seed=1)
            >>> torch.allclose(log_prob, model.log_prob(x), atol=1e-5)
            True
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        if temperature != 1.0:
            raise ValueError(f"temperature must be 1 for mixtures, got {temperature}")
        steps, log_prob = rnade_sample(
            *self._arguments(),
            seed=resolve_seed(seed, generator, self._device()),
            num_samples=num_samples,
            first_index=first_index,
            given=self._check_given(given, num_samples),
            order=self.order,
        )
        return self._dimensions(steps), log_prob

    def complete(  # type: ignore[override]
        self, x: Tensor, observed: Tensor, num_samples: int = 1, *, first_index: int = 0, **options: Any
    ) -> Tensor:
        """Exact samples of the unobserved dimensions given the observed ones, where these come first in the order.

        Args:
            x: float32 [B, D]; only its observed entries are read.
            observed: bool [D], True for the dimensions that are kept; its True part must be the first steps of the
                model's order. pyar.TableNADE takes every mask.
            num_samples: completions for each row of x.
            first_index: completion j of row b is sample first_index + b·num_samples + j of the seed.
            options: seed, generator, temperature as sample_and_log_prob.

        Returns:
            float32 [B, num_samples, D].

        Raises:
            TypeError, ValueError, RuntimeError: as sample_and_log_prob, or the observed dimensions are not first.
        """
        num_samples, first_index, _ = check_sampling(num_samples, first_index, 1.0)
        given = self._first_part(x, observed)
        given = check_values("x's observed part", given, given.shape[1], self._device())
        completed = self.sample(
            len(x) * num_samples,
            given=given.repeat_interleave(num_samples, dim=0),
            first_index=first_index,
            **options,
        )
        return completed.view(len(x), num_samples, self.dim)

    def _check_given(self, given: Tensor | None, num_samples: int) -> Tensor | None:
        """float32 [num_samples, G], or None."""
        if given is None:
            return None
        if not isinstance(given, Tensor):
            raise TypeError(f"given must be a tensor or None, got {type(given).__name__}")
        if given.dim() not in (1, 2) or given.shape[-1] > self.dim or (given.dim() == 2 and len(given) != num_samples):
            raise ValueError(
                f"given must be [{num_samples}, G] or [G] with G at most {self.dim}, got {list(given.shape)}"
            )
        rows = torch.atleast_2d(given)
        return check_values("given", rows, rows.shape[1], self._device()).expand(num_samples, -1)

    def _steps(self, x: Tensor) -> Tensor:
        x = check_values("x", x, self.dim, self._device())
        return x if self.order is None else x.index_select(1, self.order)

    def _arguments(self) -> tuple[Any, ...]:
        """The parameters as the operations take them."""
        reparametrize(self)
        return self.W, self.c, self.rho, self.V, self.b, self.family, self.activation, self.min_scale

    def _config(self) -> dict[str, Any]:
        return {
            "num_components": self.num_components,
            "hidden_size": self.hidden_size,
            "family": self.family,
            "activation": self.activation,
            "min_scale": self.min_scale,
        }
