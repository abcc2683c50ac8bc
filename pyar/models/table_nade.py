"""TableNADE as a module: one network for the columns of a table in every order, with holes, given any of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyar.models.base import (
    DensityModel,
    check_choice,
    check_dropout,
    check_sizes,
    marginal_logits,
    marginal_mixture,
    new_parameter,
)
from pyar.models.layers import check_linears, has_hooks, linear_parameters, reparametrize, require_parameter
from pyar.models.orders import check_orders, check_sets, draw_orders, mixture_log_prob, random_orders
from pyar.ops.table_nade import (
    Layout,
    table_nade_log_probs,
    table_nade_outputs,
    table_nade_path_log_probs,
    table_nade_sample,
)
from pyar.ops.validate import check_sampling, check_values
from pyar.random import resolve_seed
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.conditionals import Categories
from pyar.reference.philox import indexed_uniforms
from pyar.scalars import plain_integer
from pyar.tables import Columns

_PAIRS = 4096  # (row, order) pairs that walk together where no gradient is wanted
_ORDER_NUMBER = 2  # of the uniforms that choose an order; 0 and 1 draw categories and values


class TableNADE(DensityModel):
    r"""One network for the conditionals of a table's columns: each column given any set S of others.

        h = f(c + Σ_{i ∈ S} (U_i + φ_i(x_i) W_i)), h ← f(weight h + bias) for every further layer
        p(x_d | x_S) = the column's distribution with the parameters V_d h + b_d

    A column of K categories has a softmax of K logits, a number a mixture of C components (its density, or the exact
    probability of its cell). Rows are float32 [B, D] as `Columns.encode` makes them, and what is missing is NaN: it is
    never seen. So a row's log_prob is that of what is there, its marginal, and training takes rows with holes as they
    are. Log-probabilities are in the columns' own units: log p = log p(encoded) − Σ log scale over the densities.

    Orders are as DeepNADE's: what is asked without naming orders is answered in the base order, every subset in its
    sub-order, and M orders are an exact mixture.

    Reference: Uria, Murray & Larochelle, ICML 2014, https://arxiv.org/abs/1310.1757 (orders), and NIPS 2013,
    https://arxiv.org/abs/1306.0186 (mixtures); Uria et al., JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html.

    Args:
        columns: pyar.tables.Columns, or the plain values that its `to_json` gives.
        hidden_sizes: units of every hidden layer.
        activation: "relu", "sigmoid" or "tanh".
        dropout: the part of the hidden units that a training step leaves out.

    Attributes:
        columns: the Columns.
        W: [ΣF, H_1], the rows of all columns one below the other: K−1 for categories, 2 for numbers.
        U: [D, H_1], what says that a column is seen.
        c: [H_1].
        hidden: the further layers, torch.nn.Linear each.
        V: [ΣP, H_L]: 1 row for two categories, K for others, 3C for a mixture of C components.
        b: [ΣP].
        order: int64 [D], the base order: order 0 of seed 0.

    Example:
        >>> from pyar.tables import Binary, Columns, Integer, Real
        >>> model = pyar.TableNADE(Columns({"sex": Binary(), "age": Integer(0, 99), "height": Real()}), (20,))
        >>> x = torch.tensor([[1.0, -0.5, torch.nan], [0.0, 0.3, 1.2]])  # the first row's height is missing
        >>> model.log_prob(x).shape
        torch.Size([2])
        >>> model.complete(x, num_samples=5, seed=1).shape
        torch.Size([2, 5, 3])
    """

    name = "table-nade"
    any_order = True

    order: Tensor

    def __init__(
        self,
        columns: Columns | Sequence[Mapping[str, Any]],
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        columns = columns if isinstance(columns, Columns) else Columns.from_json(columns)
        super().__init__(len(columns), random_orders(1, len(columns))[0].tolist())
        self.columns = columns
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.dropout = check_dropout(dropout)
        self._layout = Layout(columns.conditionals)

        D, sizes = self.dim, self.hidden_sizes
        self.W = new_parameter(self._layout.num_inputs, sizes[0])
        self.U = new_parameter(D, sizes[0])
        self.c = new_parameter(sizes[0])
        self.hidden = nn.ModuleList(nn.Linear(*pair, dtype=torch.float32) for pair in itertools.pairwise(sizes))
        self.V = new_parameter(self._layout.num_outputs, sizes[-1])
        self.b = new_parameter(self._layout.num_outputs)
        # What a density in the columns' own units lacks; not a parameter, and no part of the checkpoint's weights.
        self.register_buffer("log_scales", columns.log_scales.to(self.b.device), persistent=False)
        states = [column.num_states if isinstance(column, Categories) else 0 for column in self._layout.columns]
        self._num_states = torch.tensor(states, dtype=torch.float32, device="cpu")  # of categories
        self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TableNADE:
        """As torch.nn.Module's; to_empty() leaves what the columns say."""
        super()._apply(fn, recurse)
        if not self.log_scales.is_meta:
            self.log_scales.copy_(self.columns.log_scales)
        return self

    def reset_parameters(self) -> None:
        """Weights of variance 1/inputs (2/inputs before a ReLU), V = 0; b as for standard normal values."""
        gain = math.sqrt(2.0) if self.activation == "relu" else 1.0
        nn.init.normal_(self.W, std=gain / math.sqrt(self.dim))
        nn.init.normal_(self.U, std=gain / math.sqrt(self.dim))
        nn.init.zeros_(self.c)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.V)
        self._set_marginals(torch.empty(0, self.dim, dtype=torch.float32, device="cpu"))

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> TableNADE:
        """Sets b so that an untrained model, whose V is zero, has columns near the data's marginals.

        That is at the log-frequencies of categories, each counted once more than it was seen, and with a mixture's
        components at the quantiles of what is there.

        Args:
            x: float32 [N, D], NaN for missing.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        require_parameter("b", self.b)
        self._set_marginals(self._checked(x))
        return self

    @torch.no_grad()
    def _set_marginals(self, x: Tensor) -> None:
        for d, (column, place) in enumerate(zip(self._layout.columns, self._layout.outputs, strict=True)):
            values = x[~x[:, d].isnan(), d]
            if not isinstance(column, Categories):
                self.b[place] = marginal_mixture(values, column.num_components, column.min_scale).to(self.b.device)
            elif column.num_states > 1:
                states = values.long()[:, None]
                self.b[place] = marginal_logits(states, column.num_states)[0].to(self.b)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold."""
        return self._config()

    def extra_repr(self) -> str:
        return f"{self.dim} columns, hidden_sizes={list(self.hidden_sizes)}, activation={self.activation!r}"

    # --- Training ---

    def order_agnostic_nll(
        self, x: Tensor, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training loss: an estimate, from one pass, of the NLL averaged over all orders, in nats; a scalar.

        Of the m values that are there in a row, n are seen, n uniform on 0 … m−1 and the set uniform among those of its
        size, and the others give m/(m − n) Σ −log p(x_d | seen): its mean over all draws is the mean over orders of
        −log p_o(what is there).

        Reference: Uria et al. 2016, equation (17).

        Args:
            x: float32 [B, D], NaN for missing.
            seed: of what is drawn; None takes `generator`, or without one torch's default generator.
            generator: a generator on the model's device; only without a seed.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        if seed is not None:
            if generator is not None:
                raise ValueError(f"give a seed or a generator, not both (got seed={seed!r} and a generator)")
            generator = torch.Generator(self._device()).manual_seed(plain_integer("seed", seed))
        return self._order_agnostic_nll(x, generator, self.dropout if self.training else 0.0).mean()

    def _order_agnostic_nll(self, x: Tensor, generator: torch.Generator | None, dropout: float) -> Tensor:
        """`order_agnostic_nll` of every row: [B]."""
        x = self._checked(x)
        there = ~x.isnan()
        x = torch.where(there, x, 0.0)
        (B, D), device = x.shape, x.device
        # With p uniform, one value unseen for sure and every other seen with probability p, the number of seen ones is
        # uniform on 0 … m−1, and the set uniform among those of its size: nothing has to be sorted.
        place = torch.randperm(B, generator=generator, device=device)
        p = (place + torch.rand(B, generator=generator, device=device)) / max(B, 1)
        seen = there & (torch.rand(B, D, generator=generator, device=device) < p[:, None])
        unseen = torch.rand(B, D, generator=generator, device=device).masked_fill(~there, -1.0).argmax(dim=1)
        seen.scatter_(1, unseen[:, None], False)
        log_probs = table_nade_log_probs(x, seen, self._layout, *self._arguments(), dropout=dropout) - self.log_scales
        m = there.sum(dim=1)
        weight = m / (m - seen.sum(dim=1)).clamp(min=1)
        return -weight * log_probs.masked_fill(~there | seen, 0.0).sum(dim=1)

    def training_loss(self, x: Tensor) -> Tensor:
        """order_agnostic_nll(x) with torch's default generator.

        Args, Raises: as mean_nll.
        """
        return self.order_agnostic_nll(x)

    def validation_log_prob(self, x: Tensor) -> Tensor:
        """An estimate of the mean over orders of log p_o(x), float32 [B], from eight passes with draws of a fixed seed.

        Args, Raises: as log_prob.
        """
        generator = torch.Generator(self._device()).manual_seed(0)
        return -torch.stack([self._order_agnostic_nll(x, generator, 0.0) for _ in range(8)]).mean(dim=0)

    # --- Questions ---

    def log_prob(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        observed: Tensor | None = None,
        target: Tensor | None = None,
        orders: int | Tensor = 1,
        seed: int = 0,
    ) -> Tensor:
        """log p(x_target | x_observed) in nats and the columns' own units; log p of what is there without either.

        What is missing belongs to neither set: it is summed out. The probability is a density in the columns that have
        one, and a probability in the others.

        Args:
            x: float32 [B, D], NaN for missing.
            observed: bool [D] or [B, D], the columns that are known; None for none.
            target: bool [D] or [B, D], the columns whose probability is asked; None for all that is not observed.
            orders: a number M of orders, 0 … M−1 of `seed` (1 with seed 0 is the base order); or orders, int64 [D],
                [M, D] for all rows alike, or [B, M, D] for every row its own. Each is restricted to the sets: observed
                ones first, then the target, and several are a mixture of the joint distributions.
            seed: of the orders, where they are a number.

        Returns:
            float32 [B], differentiable with respect to the parameters. 0 for a row without a target.

        Raises:
            TypeError: an argument is of another type or dtype.
            ValueError: an argument is of another shape, on another device or holds infinite values or categories that
                are none, or observed and target overlap.

        Example:
            >>> from pyar.tables import Binary, Categorical, Columns
            >>> model = pyar.TableNADE(Columns({"a": Binary(), "b": Categorical(("x", "y", "z"))}), (8,))
            >>> rows = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0))
            >>> round(model.log_prob(rows, orders=2).exp().sum().item(), 5)
            1.0
        """
        x, observed, target = self._sets(x, observed, target)
        orders = check_orders(orders, seed, len(x), self.order)
        return mixture_log_prob(*self._path_log_prob(x, orders, observed, target))

    def order_log_probs(self, x: Tensor, orders: int | Tensor, *, seed: int = 0) -> Tensor:
        """log p_o(x) under each of several orders, in nats, which tells how far they disagree: float32 [B, M].

        log_prob(x, orders=orders, seed=seed) is their log mean exp.

        Args:
            x, orders, seed: as log_prob.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        x, observed, target = self._sets(x, None, None)
        return self._path_log_prob(x, check_orders(orders, seed, len(x), self.order), observed, target)[1]

    def conditional_log_prob(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """log p(x_d | what is there before it in the order) of every column, in nats: float32 [B, D], NaN for missing.

        The sum of what is there is log_prob(x, orders=order).

        Args:
            x: float32 [B, D], NaN for missing.
            order: int64 [D]; None for the base order.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        there, (x, observed, target) = ~self._checked(x).isnan(), self._sets(x, None, None)
        orders = check_orders(1 if order is None else order, 0, len(x), self.order)
        walk = orders[0, :1].expand(len(x), -1)
        result = table_nade_path_log_probs(x, walk, observed, target, self._layout, *self._arguments())
        return torch.where(there, result - self.log_scales, math.nan)

    def surprise(self, x: Tensor) -> Tensor:
        """−log p(x_d | all else that is there in the row) of every column, in nats: float32 [B, D], NaN for missing.

        It says which cell of an unusual row is the unusual one. One pass for each column.

        Args:
            x: float32 [B, D], NaN for missing.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> model = pyar.TableNADE(pyar.tables.Columns({"a": pyar.tables.Real(), "b": pyar.tables.Real()}), (8,))
            >>> surprise = model.surprise(torch.tensor([[0.0, 9.0]]))
            >>> bool(surprise[0, 1] > surprise[0, 0])
            True
        """
        there = ~self._checked(x).isnan()
        x = torch.where(there, x, 0.0)
        parts = []
        for d in range(self.dim):
            others = there.clone()
            others[:, d] = False
            log_probs = table_nade_log_probs(x, others, self._layout, *self._arguments())
            parts.append(self.log_scales[d] - log_probs[:, d])
        return torch.where(there, torch.stack(parts, dim=1), math.nan)

    def conditionals(self, x: Tensor, observed: Tensor | None = None) -> dict[str | int, Tensor]:
        """The parameters of p(x_d | x_observed) of every single unseen column, from one pass, differentiable.

        Args:
            x: float32 [B, D]; only its observed entries matter. What is missing is unseen.
            observed: bool [D] or [B, D]; None for all that is there.

        Returns:
            float32 [B, P_d] by the column's name: the logit of two categories, the logits of others, and of a mixture
            logits, means and log-scales [B, 3C] in encoded units. NaN in rows where the column is observed.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        there = ~self._checked(x).isnan()
        _, observed, _ = self._sets(x, there if observed is None else observed, None)
        outputs = table_nade_outputs(torch.where(there, x, 0.0), observed, self._layout, *self._arguments())
        return {
            name: torch.where(observed[:, d, None], math.nan, outputs[:, place])
            for d, (name, place) in enumerate(zip(self.columns, self._layout.outputs, strict=True))
        }

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
        orders: int | Tensor = 1,
    ) -> tuple[Tensor, Tensor]:
        """Exact samples and, from the same pass, the log-probability of what was drawn.

        A number takes two uniforms of (sample, column), one for its component and one with 32 bits for its value, a
        category one, all by inverse CDF: sample i of a seed is always the same.

        Args:
            num_samples: N ≥ 0.
            seed: 0 … 2⁶⁴−1; None draws one from `generator`, or without one from torch's default generator.
            generator: a generator on the model's device; only without a seed.
            first_index: ≥ 0; samples first_index … first_index + num_samples − 1 of the seed are returned.
            temperature: divides the logits; other than 1 it is refused where a column is a mixture.
            given: float32 [D], or [N, D], encoded: what is known, NaN where a value is to be drawn.
            orders: as log_prob, numbers with seed 0: each sample comes from one of them, drawn at random.

        Returns:
            x float32 [N, D], and float32 [N], in nats: the log-probability of what was drawn given the rest, of all
            orders together.

        Raises:
            TypeError, ValueError: an argument is not as described.
            RuntimeError: the model's parameters give outputs that are NaN or infinite.
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        x = torch.full((num_samples, self.dim), math.nan, dtype=torch.float32, device=self._device())
        if given is not None:
            if not isinstance(given, Tensor):
                raise TypeError(f"given must be a tensor or None, got {type(given).__name__}")
            if given.shape not in ((self.dim,), x.shape):
                raise ValueError(f"given must be [{self.dim}] or {list(x.shape)}, got {list(given.shape)}")
            x = self._checked(torch.atleast_2d(given), "given").expand(x.shape)
        return self._complete(x, ~x.isnan(), orders, seed, generator, first_index, temperature)

    @torch.no_grad()
    def complete(  # type: ignore[override]
        self,
        x: Tensor,
        observed: Tensor | None = None,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        orders: int | Tensor = 1,
    ) -> Tensor:
        """Exact samples of what is not observed given what is.

        Args:
            x: float32 [B, D]; only its observed entries are read. What is missing is drawn.
            observed: bool [D] or [B, D], True for what is kept; None for all that is there.
            num_samples: completions for each row of x.
            seed, generator, temperature: as sample_and_log_prob.
            first_index: completion j of row b is sample first_index + b·num_samples + j of the seed.
            orders: as log_prob, numbers with seed 0. Each completion draws one of them, in proportion to the
                probability that the order gives to what is observed: so it is exact for their mixture.

        Returns:
            float32 [B, num_samples, D].

        Raises:
            TypeError, ValueError, RuntimeError: as sample_and_log_prob.
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        there = ~self._checked(x).isnan()
        _, observed, _ = self._sets(x, there if observed is None else observed, None)
        if isinstance(orders, Tensor) and orders.dim() == 3:
            orders = orders.repeat_interleave(num_samples, dim=0)
        completed, _ = self._complete(
            x.repeat_interleave(num_samples, dim=0),
            observed.repeat_interleave(num_samples, dim=0),
            orders,
            seed,
            generator,
            first_index,
            temperature,
        )
        return completed.view(len(x), num_samples, self.dim)

    # --- How they are answered ---

    def _complete(
        self,
        x: Tensor,
        observed: Tensor,
        orders: int | Tensor,
        seed: int | None,
        generator: torch.Generator | None,
        first_index: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Draws all that is not observed, float32 [N, D], and its log-probability [N]."""
        if temperature != 1.0 and not all(isinstance(column, Categories) for column in self._layout.columns):
            raise ValueError(f"temperature must be 1 for mixtures, got {temperature}: a mixture's power is no mixture")
        seed_tensor = resolve_seed(seed, generator, x.device)
        orders = check_orders(orders, 0, len(x), self.order)
        indices = first_index + torch.arange(len(x), device=x.device)
        x = torch.where(observed, x, 0.0)
        walk, before = orders[:, 0].expand(len(x), -1), None
        if orders.shape[1] > 1:
            if temperature != 1.0:
                raise ValueError(f"temperature must be 1 where several orders are mixed, got {temperature}")
            before = self._path_log_prob(x, orders, torch.zeros_like(observed), observed)[1]
            u = indexed_uniforms(int(seed_tensor), indices, 1, number=_ORDER_NUMBER)
            walk = draw_orders(orders, before, u)
        parts, log_probs = [x[:0]], [x[:0]]
        for rows in torch.arange(len(x), device=x.device).split(_PAIRS):
            part, log_prob = table_nade_sample(
                x[rows],
                walk[rows],
                observed[rows],
                self._layout,
                *self._arguments(),
                seed=seed_tensor,
                indices=indices[rows],
                temperature=temperature,
            )
            parts.append(part)
            log_probs.append(log_prob)
        drawn, log_prob = torch.cat(parts), torch.cat(log_probs)
        if before is None:
            return drawn, self._total(log_prob, ~observed)
        after = self._path_log_prob(drawn, orders, observed, ~observed)[1]
        return drawn, mixture_log_prob(before, after)

    def _path_log_prob(self, x: Tensor, orders: Tensor, observed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """log p_o(x_observed) and log p_o(x_target | x_observed) of every order: [B, M] both.

        With one order the first is not computed, and zeros.
        """
        B, M = len(x), orders.shape[1]
        arguments = self._arguments()
        nothing = torch.zeros_like(observed)
        wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        before, after = [x.new_empty(0)], [x.new_empty(0)]
        for part in torch.arange(B * M, device=x.device).split(max(B * M, 1) if wanted else _PAIRS):
            row, order = part // M, part % M
            walk, seen, asked = orders[row % len(orders), order], observed[row], target[row]
            if M > 1:
                log_probs = table_nade_path_log_probs(x[row], walk, nothing[row], seen, self._layout, *arguments)
                before.append(self._total(log_probs, seen))
            log_probs = table_nade_path_log_probs(x[row], walk, seen, asked, self._layout, *arguments)
            after.append(self._total(log_probs, asked))
        first = torch.cat(before) if M > 1 else x.new_zeros(B)
        return first.view(B, M), torch.cat(after).view(B, M)

    def _total(self, log_probs: Tensor, columns: Tensor) -> Tensor:
        """The sum of these columns' log-probabilities, in their own units: [R, D], bool [R, D] → [R]."""
        return (log_probs - torch.where(columns, self.log_scales, 0.0)).sum(dim=1, dtype=torch.float64).float()

    def _sets(self, x: Tensor, observed: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x with zeros where values are missing, and the two masks without these, bool [B, D]."""
        x = self._checked(x)
        observed, target = check_sets(x, observed, target)
        there = ~x.isnan()
        return torch.where(there, x, 0.0), observed & there, target & there

    def _checked(self, x: Tensor, name: str = "x") -> Tensor:
        """x, if it holds such rows."""
        x = check_values(name, x, self.dim, self._device(), holes=True)
        states = self._num_states.to(x.device)
        wrong = ((x < 0) | (x >= states) | ((x != x.floor()) & ~x.isnan())) & (states > 0)
        if bool(wrong.any()):
            d = int(wrong.any(dim=0).int().argmax())
            row = int(wrong[:, d].int().argmax())
            raise ValueError(
                f"{name} must hold 0 … {int(states[d]) - 1} or NaN in column {self.columns.names[d]!r}, "
                f"got {x[row, d].item():g} in row {row}"
            )
        return x

    def _config(self) -> dict[str, Any]:
        return {
            "columns": self.columns.to_json(),
            "hidden_sizes": list(self.hidden_sizes),
            "activation": self.activation,
            "dropout": self.dropout,
        }

    def _layers(self) -> dict[str, nn.Module]:
        return check_linears("hidden", self.hidden, self.hidden_sizes)

    def _arguments(self) -> tuple[Any, ...]:
        """The parameters as the operations take them."""
        reparametrize(self)
        for name, layer in self._layers().items():
            if has_hooks(layer):
                raise RuntimeError(
                    f"{name} has forward or backward hooks, which TableNADE does not run, since it never calls the "
                    "layer: remove them, or use torch.nn.utils.parametrize for what changes its parameters"
                )
        hidden = [parameter for layer in self.hidden for parameter in linear_parameters(layer)]
        return self.W, self.U, self.c, hidden, self.V, self.b, self.activation
