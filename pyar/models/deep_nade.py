"""DeepNADE as a module: one network for every order, so that any part of a vector can be asked for given any other."""

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
    check_tensor,
    marginal_logits,
    new_parameter,
)
from pyar.models.layers import check_linears, has_hooks, linear_parameters, require_parameter
from pyar.models.orders import check_orders, check_sets, draw_orders, mixture_log_prob, random_orders
from pyar.ops.deep_nade import deep_nade_log_prob, deep_nade_outputs, deep_nade_path_outputs, deep_nade_sample
from pyar.ops.transforms import is_wrapped
from pyar.ops.validate import check_given, check_sampling, check_states, has_values
from pyar.random import resolve_seed
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.draw import log_probability
from pyar.reference.philox import indexed_uniforms
from pyar.scalars import plain_integer

_PAIRS = 2048  # (row, order) pairs that walk together where no gradient is wanted


class DeepNADE(AutoregressiveModel):
    r"""One network for the conditionals of every order: each dimension given any set S of others.

        p(x_d = k | x_S) = softmax_k(V_d h + b_d)                (K = 2: σ of one logit)
        h = f(c + Σ_{i ∈ S} (U_i + W_i[x_i])), h ← f(weight h + bias) for every further layer

    An order o makes a distribution of it, p_o(x) = Π_s p(x_{o(s)} | x_{o(0)} … x_{o(s−1)}). Different orders are
    different distributions: training brings them near to one another, not together. What is asked without naming orders
    is answered in the base order, every subset in its sub-order, so that each marginal has one value. M orders are the
    mixture 1/M Σ_o p_o(x), an exact distribution again (EoNADE), and a better one than most of its parts.

    Reference: Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014,
    https://arxiv.org/abs/1310.1757; Uria et al., JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html, sections 4
    to 6. One canonical order for all subsets: Shih, Sadigh & Ermon, NeurIPS 2022, https://arxiv.org/abs/2205.13554.

    Args:
        dim: D, the number of dimensions.
        num_states: K, 2 … 256.
        hidden_sizes: units of every hidden layer.
        activation: "relu", "sigmoid" or "tanh".
        dropout: the part of the hidden units that a training step leaves out.

    Attributes:
        W: [D, K−1, H_1]; state 0 has no row. W, U, V and b are indexed by dimension.
        U: [D, H_1], what says that a dimension is seen.
        c: [H_1].
        hidden: the further layers, torch.nn.Linear each.
        V: [D, P, H_L], P = 1 for K = 2 and K otherwise.
        b: [D, P].
        order: int64 [D], the base order: order 0 of seed 0, see log_prob.

    Example:
        >>> model = pyar.DeepNADE(dim=4, hidden_sizes=(20,))
        >>> x = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]])
        >>> corners = torch.tensor([True, False, False, True])
        >>> model.log_prob(x, target=corners).shape  # a marginal
        torch.Size([2])
        >>> model.complete(x, observed=corners, num_samples=3, seed=1).shape
        torch.Size([2, 3, 4])
    """

    name = "deep-nade"
    any_order = True

    order: Tensor

    def __init__(
        self,
        dim: int,
        num_states: int = 2,
        hidden_sizes: Sequence[int] = (500, 500),
        *,
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_states, random_orders(1, int(dim))[0].tolist() if _is_size(dim) else None)
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        self.dropout = check_dropout(dropout)

        D, K, sizes = self.dim, self.num_states, self.hidden_sizes
        P = 1 if K == 2 else K
        self.W = new_parameter(D, K - 1, sizes[0])
        self.U = new_parameter(D, sizes[0])
        self.c = new_parameter(sizes[0])
        self.hidden = nn.ModuleList(nn.Linear(*pair, dtype=torch.float32) for pair in itertools.pairwise(sizes))
        self.V = new_parameter(D, P, sizes[-1])
        self.b = new_parameter(D, P)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of variance 1/inputs (2/inputs before a ReLU), V of standard deviation 0.01, zeros elsewhere."""
        gain = math.sqrt(2.0) if self.activation == "relu" else 1.0
        nn.init.normal_(self.W, std=gain / math.sqrt(self.dim))
        nn.init.normal_(self.U, std=gain / math.sqrt(self.dim))
        nn.init.zeros_(self.c)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.V, std=0.01)
        nn.init.zeros_(self.b)

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> DeepNADE:
        """Sets b so that a model whose V is near zero starts at the data's marginals.

        That is at the log-frequencies of the states of each dimension (K = 2: at their log-odds), each state counted
        once more than it was seen.

        Args:
            x: uint8 or int64 [N, D], states 0 … K−1.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        x = self._dimensions(self._steps(x))
        require_parameter("b", self.b)
        self.b.copy_(marginal_logits(x, self.num_states))
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold."""
        return {"dim": self.dim, "num_states": self.num_states, **self._config()}

    # --- Training ---

    def order_agnostic_nll(
        self, x: Tensor, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training loss: an estimate, from one pass, of the NLL averaged over all orders, in nats; a scalar.

        Every row sees n dimensions drawn at random, n uniform on 0 … D−1 (stratified over the batch), and the others
        give D/(D − n) Σ −log p(x_d | seen), whose mean over all draws is the mean over orders of −log p_o(x). In
        training mode hidden units are left out as `dropout` says.

        Reference: Uria et al. 2016, equation (17); Hoogeboom et al., "Autoregressive Diffusion Models", ICLR 2022.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.
            seed: of what is drawn; None takes `generator`, or without one torch's default generator.
            generator: a generator on the model's device; only without a seed.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> model = pyar.DeepNADE(dim=3, hidden_sizes=(8,))
            >>> model.order_agnostic_nll(torch.zeros(5, 3, dtype=torch.uint8), seed=1).backward()
            >>> model.b.grad.shape
            torch.Size([3, 1])
        """
        if seed is not None:
            if generator is not None:
                raise ValueError(f"give a seed or a generator, not both (got seed={seed!r} and a generator)")
            generator = torch.Generator(self._device()).manual_seed(plain_integer("seed", seed))
        return self._order_agnostic_nll(x, generator, self.dropout if self.training else 0.0).mean()

    def _order_agnostic_nll(self, x: Tensor, generator: torch.Generator | None, dropout: float) -> Tensor:
        """`order_agnostic_nll` of every row: [B]."""
        x = self._dimensions(self._steps(x))
        (B, D), device = x.shape, x.device
        # With p uniform, one dimension unseen for sure and every other seen with probability p, the number of seen ones
        # is uniform on 0 … D−1, and the set uniform among those of its size: nothing has to be sorted.
        place = torch.randperm(B, generator=generator, device=device)
        p = (place + torch.rand(B, generator=generator, device=device)) / max(B, 1)
        seen = torch.rand(B, D, generator=generator, device=device) < p[:, None]
        seen.scatter_(1, torch.randint(D, (B, 1), generator=generator, device=device), False)
        outputs = deep_nade_outputs(x, seen, *self._arguments(), dropout=dropout)
        nll = -log_probability(outputs, x).masked_fill(seen, 0.0).sum(dim=1)
        return nll * (D / (D - seen.sum(dim=1)))

    def training_loss(self, x: Tensor) -> Tensor:
        """order_agnostic_nll(x) with torch's default generator.

        Args, Raises: as mean_nll.
        """
        return self.order_agnostic_nll(x)

    def validation_log_prob(self, x: Tensor) -> Tensor:
        """An estimate of the mean over orders of log p_o(x), float32 [B], from four passes with draws of a fixed seed.

        Args, Raises: as log_prob.
        """
        generator = torch.Generator(self._device()).manual_seed(0)
        return -torch.stack([self._order_agnostic_nll(x, generator, 0.0) for _ in range(4)]).mean(dim=0)

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
        """log p(x_target | x_observed) in nats, for any two sets of dimensions; log p(x) without either.

        Dimensions in neither set are summed out: they are never visited, and x may hold any state there. A marginal is
        log_prob(x, target=mask). Under one order, and under several, the probabilities of all states of the target sum
        to 1, and log p(x_a, x_b) = log p(x_a) + log p(x_b | x_a) holds exactly where a comes before b in that order;
        with the default, marginals agree with one another whatever is asked.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.
            observed: bool [D] or [B, D], the dimensions that are known; None for none.
            target: bool [D] or [B, D], the dimensions whose probability is asked; None for all that is not observed.
            orders: a number M of orders, 0 … M−1 of `seed` (1 with seed 0 is the base order); or orders, int64 [D],
                [M, D] for all rows alike, or [B, M, D] for every row its own. Each is restricted to the sets:
                observed ones first, then the target, and several are a mixture of the joint distributions,
                log 1/M Σ_o p_o(x_observed, x_target) − log 1/M Σ_o p_o(x_observed).
            seed: of the orders, where they are a number.

        Returns:
            float32 [B], differentiable with respect to the parameters. With gradients, torch keeps every step.

        Raises:
            TypeError: an argument is of another type or dtype.
            ValueError: an argument is of another shape, on another device or has values out of range, or observed and
                target overlap.

        Example:
            >>> import itertools
            >>> model = pyar.DeepNADE(dim=3, hidden_sizes=(8,))
            >>> everything = torch.tensor(list(itertools.product([0, 1], repeat=3)))
            >>> round(model.log_prob(everything, orders=5).exp().sum().item(), 5)
            1.0
        """
        x = self._dimensions(self._steps(x))
        observed, target = self._sets(x, observed, target)
        orders = self._orders(orders, seed, len(x))
        return mixture_log_prob(*self._path_log_prob(x, orders, observed, target))

    def order_log_probs(self, x: Tensor, orders: int | Tensor, *, seed: int = 0) -> Tensor:
        """log p_o(x) under each of several orders, in nats, which tells how far they disagree: float32 [B, M].

        log_prob(x, orders=orders, seed=seed) is their log mean exp.

        Args:
            x, orders, seed: as log_prob.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        x = self._dimensions(self._steps(x))
        observed, target = self._sets(x, None, None)
        return self._path_log_prob(x, self._orders(orders, seed, len(x)), observed, target)[1]

    def conditionals(self, x: Tensor, observed: Tensor) -> Tensor:
        """The logits of p(x_d | x_observed) for every single unseen dimension, from one pass, differentiable.

        Args:
            x: uint8 or int64 [B, D]; only its observed entries matter.
            observed: bool [D] or [B, D].

        Returns:
            float32 [B, D, K]; for K = 2 [B, D], the Bernoulli logits. NaN for dimensions that are observed.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> model = pyar.DeepNADE(dim=3, hidden_sizes=(8,))
            >>> model.conditionals(torch.tensor([[1, 0, 0]]), torch.tensor([True, False, False])).isnan()
            tensor([[ True, False, False]])
        """
        x = self._dimensions(self._steps(x))
        observed, _ = self._sets(x, observed, None)
        outputs = deep_nade_outputs(x, observed, *self._arguments())
        outputs = torch.where(observed[..., None], math.nan, outputs)
        return outputs.squeeze(-1) if self.num_states == 2 else outputs

    @torch.no_grad()
    def sample_and_log_prob(
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

        Args:
            num_samples, seed, generator, first_index, temperature: as the other models'.
            given: uint8 or int64 [N, G], or [G] for all samples alike: the states of the dimensions at the first G
                steps of the base order, `order[:G]`. What is known elsewhere is completed by `complete`.
            orders: as log_prob, numbers with seed 0: each sample comes from one of them, drawn at random.

        Returns:
            x uint8 [N, D], and float32 [N], in nats: the log-probability of the drawn dimensions given the others, of
            all orders together; at temperature 1 and with nothing given it is log_prob(x, orders=orders).

        Raises:
            TypeError, ValueError, RuntimeError: as the other models'.
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        given = check_given(given, num_samples, self.dim, self.num_states, self._device())
        x = torch.zeros(num_samples, self.dim, dtype=torch.uint8, device=self._device())
        observed = torch.zeros(self.dim, dtype=torch.bool, device=x.device)
        if given is not None:
            first = self.order[: given.shape[1]]
            x[:, first] = given
            observed[first] = True
        return self._complete(x, observed.expand_as(x), orders, seed, generator, first_index, temperature)

    def sample(self, num_samples: int, **options: Any) -> Tensor:
        """Exact samples: the first result of sample_and_log_prob, with the same arguments.

        Example:
            >>> pyar.DeepNADE(dim=3, hidden_sizes=(8,)).sample(10, seed=1, orders=4).shape
            torch.Size([10, 3])
        """
        return self.sample_and_log_prob(num_samples, **options)[0]

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        observed: Tensor,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        orders: int | Tensor = 1,
    ) -> Tensor:
        """Exact samples of the unobserved dimensions given the observed ones, whichever they are.

        Args:
            x: uint8 or int64 [B, D]; only its observed entries are read.
            observed: bool [D] or [B, D], True for the dimensions that are kept.
            num_samples: completions for each row of x.
            seed, generator, temperature: as sample.
            first_index: completion j of row b is sample first_index + b·num_samples + j of the seed.
            orders: as log_prob, numbers with seed 0. Each completion draws one of them, in proportion to the
                probability that the order gives to what is observed: so it is exact for their mixture.

        Returns:
            uint8 [B, num_samples, D].

        Raises:
            TypeError, ValueError, RuntimeError: as sample.

        Example:
            >>> model = pyar.DeepNADE(dim=4, hidden_sizes=(8,))
            >>> x = torch.tensor([[1, 0, 1, 0]])
            >>> completions = model.complete(x, torch.tensor([True, False, True, False]), num_samples=5, seed=1)
            >>> bool((completions[..., ::2] == 1).all())
            True
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        check_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be [B, {self.dim}], got {list(x.shape)}")
        observed, _ = self._sets(x, observed, None)
        states = check_states(
            "x's observed part", torch.where(observed, x, 0), self.dim, self.num_states, self._device()
        )
        if isinstance(orders, Tensor) and orders.dim() == 3:
            orders = orders.repeat_interleave(num_samples, dim=0)
        completed, _ = self._complete(
            states.repeat_interleave(num_samples, dim=0),
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
        """Draws all that is not observed, uint8 [N, D], and its log-probability [N]."""
        seed_tensor = resolve_seed(seed, generator, x.device)
        orders = self._orders(orders, 0, len(x))
        self._refuse_hooks()
        indices = first_index + torch.arange(len(x), device=x.device)
        if orders.shape[1] == 1:
            chosen, before = orders[:, 0], None
        else:
            nothing = torch.zeros_like(observed)
            before = self._path_log_prob(x, orders, nothing, observed, temperature)[1]
            u = indexed_uniforms(int(seed_tensor), indices, 1, number=1)
            chosen = draw_orders(orders, before, u)
        path = _sub_orders(chosen.expand(len(x), -1), observed, ~observed)
        begin = observed.sum(dim=1)
        parts = []
        for rows in torch.arange(len(x), device=x.device).split(_PAIRS):
            parts.append(
                deep_nade_sample(
                    x[rows],
                    path[rows],
                    begin[rows],
                    torch.full_like(begin[rows], self.dim),
                    *self._arguments(),
                    seed=seed_tensor,
                    indices=indices[rows],
                    temperature=temperature,
                )
            )
        if not parts:
            return x.clone(), self.b.new_zeros(0)
        x, log_prob = (torch.cat(part) for part in zip(*parts, strict=True))
        if before is None:
            return x, log_prob
        after = self._path_log_prob(x, orders, observed, ~observed, temperature)[1]
        return x, mixture_log_prob(before, after)

    def _path_log_prob(
        self, x: Tensor, orders: Tensor, observed: Tensor, target: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """log p_o(x_observed) and log p_o(x_target | x_observed) of every order: [B, M] both.

        With one order the first is not computed, and zeros.
        """
        B, M = len(x), orders.shape[1]
        arguments = self._arguments()
        pairs = torch.arange(B * M, device=x.device)
        wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        # Nothing is observed and everything asked: then the walks are the orders themselves.
        everything = has_values(target) and bool(target.all())
        before, after = [], []
        for part in pairs.split(max(B * M, 1) if wanted or is_wrapped(x) else _PAIRS):
            row, order = part // M, part % M
            seen, asked = observed[row], target[row]
            path = orders[row % len(orders), order]
            path = path if everything else _sub_orders(path, seen, asked)
            begin = seen.sum(dim=1)
            walk = (x[row], path)
            end = begin + asked.sum(dim=1)
            if M > 1:
                start = torch.zeros_like(begin)
                before.append(deep_nade_log_prob(*walk, start, begin, *arguments, temperature=temperature))
            after.append(deep_nade_log_prob(*walk, begin, end, *arguments, temperature=temperature))
        zeros = self.b.new_zeros(B * M)
        return (torch.cat(before) if before else zeros).view(B, M), (torch.cat(after) if after else zeros).view(B, M)

    def _sets(self, x: Tensor, observed: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two masks, bool [B, D]."""
        return check_sets(x, observed, target)

    def _orders(self, orders: int | Tensor, seed: int, num_rows: int) -> Tensor:
        """Orders as int64 [1 or num_rows, M, D]."""
        return check_orders(orders, seed, num_rows, self.order)

    def _config(self) -> dict[str, Any]:
        return {"hidden_sizes": list(self.hidden_sizes), "activation": self.activation, "dropout": self.dropout}

    def _layers(self) -> dict[str, nn.Module]:
        return check_linears("hidden", self.hidden, self.hidden_sizes)

    def _refuse_hooks(self) -> None:
        for name, layer in self._layers().items():
            if has_hooks(layer):
                raise RuntimeError(
                    f"{name} has forward or backward hooks, which DeepNADE does not run, since it never calls the "
                    "layer: remove them, or use torch.nn.utils.parametrize for what changes its parameters"
                )

    def _called_logits(self, x: Tensor) -> Tensor:
        self._refuse_hooks()
        return self._logits(x)

    def _arguments(self) -> tuple[Any, ...]:
        """The parameters as the operations take them."""
        self._refuse_hooks()
        hidden = [parameter for layer in self.hidden for parameter in linear_parameters(layer)]
        return self.W, self.U, self.c, hidden, self.V, self.b, self.activation

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob(self._dimensions(x))

    def _logits(self, x: Tensor) -> Tensor:
        x = self._dimensions(x)
        outputs = deep_nade_path_outputs(x, self.order.expand(len(x), -1), *self._arguments())
        return outputs.squeeze(-1) if self.num_states == 2 else outputs

    def _sample(
        self, num_samples: int, seed: Tensor, first_index: int, temperature: float, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("sample_and_log_prob is DeepNADE's own")


def _sub_orders(orders: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Every row's order with one set before the other, and these before all else: int64 [R, D] → [R, D].

    Within each set the order is kept.
    """
    group = torch.where(first, 0, torch.where(second, 1, 2)).gather(1, orders)
    return orders.gather(1, torch.argsort(group, dim=1, stable=True))


def _is_size(dim: Any) -> bool:
    """Whether dim can be a number of dimensions; if not, the base class says what is wrong with it."""
    try:
        return plain_integer("dim", dim) > 0
    except TypeError:
        return False
