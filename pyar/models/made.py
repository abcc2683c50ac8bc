"""MADE as a module: masked dense layers, sampled with every unit computed once, computed by pyar.ops.made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyar.models.base import (
    AutoregressiveModel,
    check_choice,
    check_dropout,
    check_sizes,
    marginal_logits,
    new_parameter,
    positive_int,
)
from pyar.models.layers import check_linears, has_hooks, linear_parameters, require_parameter
from pyar.ops.made import made_log_prob, made_logits, made_sample, permute
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.philox import indexed_uniforms
from pyar.scalars import plain_bool


class MADE(AutoregressiveModel):
    r"""The masked autoencoder for distribution estimation: all conditionals from one pass through masked dense layers.

        p(x_d = k | x_{<d}) = softmax_k(b_d + V_d h + Σ_{i<d} A_id[x_i])     (K = 2: σ of one logit)
        h = f(c + Σ_i W_i[x_i]), h ← f(weight h + bias) for every further layer

    where a unit of degree m sees the first m dimensions alone and output d the units of degrees up to d. A sample costs
    one such pass too: a unit is final, and computed, once the dimensions that it sees are drawn.

    With num_masks = M > 1 the model is the equal mixture of M distributions that share the weights, each with its own
    order and its own degrees: p(x) = 1/M Σ_m p_m(x). Training takes one of them a batch at random, log_prob is exact
    for all M. The first has the order of `order`, the others random ones.

    Reference: Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015,
    https://arxiv.org/abs/1502.03509.

    Args:
        dim: D, the number of dimensions.
        num_states: K, 2 … 256.
        hidden_sizes: units of every hidden layer.
        direct: connect inputs to later outputs directly, D²/2 weights for every pair of states.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.
        activation: "relu", "sigmoid" or "tanh".
        input: "onehot", a weight vector for every state of a dimension but 0, or "scalar", one for each dimension,
            multiplied by x/(K−1).
        num_masks: M, the number of orders and masks.
        dropout: the part of the hidden units that a training step leaves out.

    Attributes:
        W: [D, K−1, H_1], or [D, H_1] for scalar input. W, V, b and A are indexed by step.
        c: [H_1].
        hidden: the further layers, torch.nn.Linear each, whose weights the masks apply to.
        V: [D, P, H_L], P = 1 for K = 2 and K otherwise.
        b: [D, P].
        A: [D, K−1, D, P], or [D, D, P] for scalar input, from input i to output d; None without direct connections.

    Example:
        >>> model = pyar.MADE(dim=64, hidden_sizes=(100,))
        >>> x = model.sample(16, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([16, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([16])
    """

    name = "made"

    def __init__(
        self,
        dim: int,
        num_states: int = 2,
        hidden_sizes: Sequence[int] = (500, 500),
        *,
        direct: bool = True,
        order: Sequence[int] | None = None,
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        input: Literal["onehot", "scalar"] = "onehot",
        num_masks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_states, order)
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes)
        self.direct = plain_bool("direct", direct)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.input = check_choice("input", input, ("onehot", "scalar"))
        self.num_masks = positive_int("num_masks", num_masks)
        self.dropout = check_dropout(dropout)

        D, K, sizes = self.dim, self.num_states, self.hidden_sizes
        P, states = 1 if K == 2 else K, () if input == "scalar" else (K - 1,)
        self.W = new_parameter(D, *states, sizes[0])
        self.c = new_parameter(sizes[0])
        self.hidden = nn.ModuleList(nn.Linear(*pair, dtype=torch.float32) for pair in itertools.pairwise(sizes))
        self.V = new_parameter(D, P, sizes[-1])
        self.b = new_parameter(D, P)
        self.A = new_parameter(D, *states, D, P) if self.direct else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of variance 1/inputs (2/inputs before a ReLU) as if all inputs were let through, zeros elsewhere."""
        gain = math.sqrt(2.0) if self.activation == "relu" else 1.0
        nn.init.normal_(self.W, std=gain / math.sqrt(self.dim))
        nn.init.zeros_(self.c)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.V, std=0.01)
        nn.init.zeros_(self.b)
        if self.A is not None:
            nn.init.zeros_(self.A)

    def _config(self) -> dict[str, Any]:
        return {
            "hidden_sizes": list(self.hidden_sizes),
            "direct": self.direct,
            "activation": self.activation,
            "input": self.input,
            "num_masks": self.num_masks,
            "dropout": self.dropout,
        }

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> MADE:
        """Sets b so that a model whose other weights are near zero starts at the data's marginals.

        That is at the log-frequencies of the states of each dimension (K = 2: at their log-odds), each state counted
        once more than it was seen.

        Args:
            x: uint8 or int64 [N, D], states 0 … K−1.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        x = self._steps(x)
        require_parameter("b", self.b)
        self.b.copy_(marginal_logits(x, self.num_states))
        return self

    def training_loss(self, x: Tensor) -> Tensor:
        """The mean NLL under one of the M distributions, drawn from torch's default generator.

        In training mode hidden units are left out as `dropout` says.

        Args, Raises: as mean_nll.
        """
        steps = self._steps(x)
        if self._has_hooks():
            self._called_logits(steps)
        component = int(torch.randint(self.num_masks, ())) if self.num_masks > 1 else 0
        dropout = self.dropout if self.training else 0.0
        return -self._component_log_prob(steps, component, dropout=dropout).mean()

    def logits(self, x: Tensor) -> Tensor:
        """The logits of every conditional p(x_d | the dimensions before it), differentiable.

        Args, Returns, Raises: as the other models'; with num_masks > 1 ValueError, since a mixture over orders has no
        conditionals in closed form.
        """
        return super().logits(x)

    def _layers(self) -> dict[str, nn.Module]:
        return check_linears("hidden", self.hidden, self.hidden_sizes)

    def _called_logits(self, x: Tensor) -> Tensor:
        names = [name for name, layer in self._layers().items() if has_hooks(layer)]
        raise RuntimeError(
            f"{names[0]} has forward or backward hooks, which MADE cannot run: masks apply to its weights, so it is "
            "never called. Remove them, or use torch.nn.utils.parametrize for what changes its parameters"
        )

    def _arguments(self) -> tuple[Any, ...]:
        """The parameters as the operations take them."""
        self._layers()
        hidden = [parameter for layer in self.hidden for parameter in linear_parameters(layer)]
        return self.W, self.c, hidden, self.V, self.b, self.A, self.activation

    def _draw_masks(self, component: int) -> tuple[Tensor, list[Tensor]]:
        """Which row of W, V, b and A a component visits at every step, and its units by degree, layer after layer."""
        generator = torch.Generator().manual_seed(component)
        device = self.b.device
        visited, *units = [torch.randperm(n, generator=generator).to(device) for n in (self.dim, *self.hidden_sizes)]
        return visited, units

    def _sorted_arguments(self, component: int) -> tuple[tuple[Any, ...], Tensor | None]:
        """The parameters of a component as the operations take them, degrees sorted, and the columns of x it visits.

        None stands for all columns as they are.
        """
        W, c, hidden, V, b, A, activation = self._arguments()
        if component == 0:
            return (W, c, hidden, V, b, A, activation), None
        visited, units = self._draw_masks(component)
        layers = []
        for weight, bias, before, after in zip(hidden[::2], hidden[1::2], units[:-1], units[1:], strict=True):
            layers += [permute(weight, {0: after, 1: before}), permute(bias, {0: after})]
        direct = None if A is None else permute(A, {0: visited, A.dim() - 2: visited})
        W = permute(W, {0: visited, W.dim() - 1: units[0]})
        c, V, b = permute(c, {0: units[0]}), permute(V, {0: visited, 2: units[-1]}), permute(b, {0: visited})
        return (W, c, layers, V, b, direct, activation), visited

    def _component_log_prob(self, x: Tensor, component: int, **settings: float) -> Tensor:
        arguments, visited = self._sorted_arguments(component)
        return made_log_prob(x if visited is None else x[:, visited], *arguments, **settings)

    def _log_prob(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        components = [self._component_log_prob(x, index, temperature=temperature) for index in range(self.num_masks)]
        if self.num_masks == 1:
            return components[0]
        return torch.logsumexp(torch.stack(components), dim=0) - math.log(self.num_masks)

    def _logits(self, x: Tensor) -> Tensor:
        self._refuse_mixture("logits of conditionals")
        return made_logits(x, *self._arguments())

    def _conditional_log_prob(self, x: Tensor) -> Tensor:
        self._refuse_mixture("log-probabilities of conditionals")
        return super()._conditional_log_prob(x)

    def _refuse_mixture(self, what: str) -> None:
        if self.num_masks > 1:
            raise ValueError(
                f"a mixture over num_masks={self.num_masks} orders has no {what} in closed form; num_masks=1 has them, "
                "and pyar.DeepNADE has those given any dimensions"
            )

    def _sample(
        self, num_samples: int, seed: Tensor, first_index: int, temperature: float, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        indices = first_index + torch.arange(num_samples, device=self.b.device)
        settings = {"seed": seed, "temperature": temperature}
        if self.num_masks == 1:
            return made_sample(*self._arguments(), indices=indices, given=given, dims=self.order, **settings)
        if given is not None and given.shape[1] > 0:
            self._refuse_mixture("conditional samples")
        u = indexed_uniforms(int(seed), indices, 1, number=1)[:, 0]
        chosen = (u * self.num_masks).long()
        x = torch.empty(num_samples, self.dim, dtype=torch.uint8, device=self.b.device)
        for component in chosen.unique().tolist():
            arguments, visited = self._sorted_arguments(component)
            visited = torch.arange(self.dim, device=x.device) if visited is None else visited
            dims = visited if self.order is None else self.order[visited]
            rows = torch.nonzero(chosen == component).squeeze(1)
            states, _ = made_sample(*arguments, indices=indices[rows], dims=dims, **settings)
            x[rows[:, None], visited] = states  # columns of x are the steps of the first component
        return x, self._log_prob(x, temperature)
