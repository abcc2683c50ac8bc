"""The face that every model shares: exact log-probabilities, conditionals, sampling and completion."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from pyar.models.layers import has_hooks, refuse_hooks, reparametrize
from pyar.ops.validate import check_given, check_sampling, check_states, check_weights
from pyar.random import resolve_seed
from pyar.reference.draw import log_probability
from pyar.scalars import plain_integer, plain_number


class DensityModel(nn.Module, abc.ABC):
    r"""A distribution over vectors of D dimensions as the product of its conditionals, one dimension after the other:

        p(x) = Π_s p(x_{o(s)} | x_{o(0)} … x_{o(s−1)})

    where o is the model's order: step s visits dimension o(s). Every log-probability is exact and in nats. This is what
    models share whatever their vectors hold; `AutoregressiveModel` is for states, RNADE for real values, TableNADE for
    a table's columns.

    A subclass defines `name`, calls `super().__init__`, and answers `log_prob`, `sample_and_log_prob` and `complete`.

    Args:
        dim: D.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.

    Attributes:
        dim: D.
        order: int64 [D] buffer, or None.
        config: the constructor's arguments, plain values, from which `type(model)(**model.config)` builds its like.
    """

    #: What the command line and the checkpoints call this family.
    name: ClassVar[str]

    #: Whether `complete` takes every mask, and log_prob any sets of dimensions and orders.
    any_order: ClassVar[bool] = False

    #: How many classes the labels are of that the model is given as `context`; None for a model without labels.
    num_classes: int | None = None

    #: What `complete` says where it refuses a mask.
    _other_masks: ClassVar[str] = "pyar.DeepNADE completes from any dimensions"

    order: Tensor | None

    def __init__(self, dim: int, order: Sequence[int] | None = None) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        if order is not None:
            order = [plain_integer("order", step) for step in order]
            if sorted(order) != list(range(self.dim)):
                raise ValueError(f"order must be a permutation of 0 … {self.dim - 1}, got {order}")
        self.register_buffer("order", None if order is None else torch.tensor(order, dtype=torch.int64))
        self._meta_order = order  # what a buffer on the meta device stands for

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DensityModel:
        """As torch.nn.Module's; to_empty() leaves the order, which no reset_parameters could bring back."""
        self._meta_order = self._plain_order()
        super()._apply(fn, recurse)
        if self.order is not None and not self.order.is_meta:
            self.order.copy_(torch.tensor(self._meta_order, dtype=torch.int64, device="cpu"))
        return self

    def _plain_order(self) -> list[int] | None:
        return self._meta_order if self.order is None or self.order.is_meta else self.order.tolist()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold."""
        return {"dim": self.dim, **self._config(), **({} if self.order is None else {"order": self._plain_order()})}

    @torch.no_grad()
    def plain_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights as they are used, under the names of a model without parametrizations, weight_norm or prune.

        Args:
            state_dict: one of this model's, whose weights are taken instead of the current ones.

        Example:
            >>> model = pyar.NADE(dim=3, hidden_size=8)
            >>> _ = torch.nn.utils.prune.identity(model, "W")
            >>> sorted(model.state_dict()), sorted(model.plain_state_dict())
            (['V', 'W_mask', 'W_orig', 'b', 'c'], ['V', 'W', 'b', 'c'])
        """
        own = self.state_dict() if state_dict is None else state_dict
        with torch.device("meta"):
            names = list(type_before_parametrizations(self)(**self.config).state_dict())
        if set(own) == set(names):
            return own
        for module in self.modules():
            reparametrize(module)  # without a graph, which deepcopy refuses
        model = self
        if state_dict is not None:
            model = copy.deepcopy(self)
            model.load_state_dict(state_dict)
            for module in model.modules():
                reparametrize(module)
        return {name: getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}

    def extra_repr(self) -> str:
        shown = {key: value for key, value in self.config.items() if key != "order"}
        parts = [f"{key}={value!r}" for key, value in shown.items()]
        return ", ".join(parts + ([] if self.order is None else ["order=[…]"]))

    @abc.abstractmethod
    def _config(self) -> dict[str, Any]:
        """The constructor's arguments beside dim and order."""

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [B], differentiable with respect to the parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """log_prob(x), so that `model(x)` and what wraps modules work.

        DistributedDataParallel sums gradients over its processes for what went through its own forward alone. So use
        −ddp(x).mean() as the loss there, or wrap a module whose forward is mean_nll:

            class MeanNLL(torch.nn.Module):
                def __init__(self, model):
                    super().__init__()
                    self.model = model

                def forward(self, x):
                    return self.model.mean_nll(x)

            loss = DistributedDataParallel(MeanNLL(model))(x)

        Args, Returns, Raises: as log_prob.
        """
        return self.log_prob(x)

    def mean_nll(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss −1/B Σ_b w_b log p(x_b) in nats, a scalar; NaN for an empty batch.

        Args:
            x: as log_prob.
            weights: float32 [B], the weight w of every example, of any sign; None weighs each with 1.

        Raises:
            TypeError, ValueError: as log_prob, or weights are of another dtype, shape or device.
        """
        log_prob = self.log_prob(x)
        return self._mean(log_prob, None if weights is None else check_weights(weights, x))

    @staticmethod
    def _mean(log_prob: Tensor, weights: Tensor | None) -> Tensor:
        return -(log_prob if weights is None else weights * log_prob).mean()

    def training_loss(self, x: Tensor) -> Tensor:
        """What training minimises, a scalar: mean_nll(x), unless the model learns from a draw of something.

        What is drawn comes from torch's default generator.

        Args:
            x: as log_prob.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        return self.mean_nll(x)

    def validation_log_prob(self, x: Tensor) -> Tensor:
        """What training compares weights by, float32 [B]: log_prob(x), or an estimate where that takes far longer.

        The same weights always give the same numbers.

        Args:
            x: as log_prob.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        return self.log_prob(x)

    @abc.abstractmethod
    def sample_and_log_prob(self, num_samples: int, **options: Any) -> tuple[Tensor, Tensor]:
        """Exact samples [N, D] and, from the same pass, the log-probability [N] of what was drawn."""

    def sample(self, num_samples: int, **options: Any) -> Tensor:
        """Exact samples: the first result of sample_and_log_prob, with the same arguments."""
        return self.sample_and_log_prob(num_samples, **options)[0]

    @abc.abstractmethod
    def complete(self, x: Tensor, observed: Tensor, num_samples: int = 1, **options: Any) -> Tensor:
        """Exact samples of what is not observed given what is: [B, num_samples, D]."""

    def _first_part(self, x: Tensor, observed: Tensor) -> Tensor:
        """x at the observed dimensions, if these are the first of the order, in that order: [B, G]."""
        check_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be [B, {self.dim}], got {list(x.shape)}")
        check_tensor("observed", observed)
        if observed.dtype != torch.bool:
            raise TypeError(f"observed must be a bool mask, got {observed.dtype}")
        if observed.shape != (self.dim,):
            raise ValueError(f"observed must be [{self.dim}], one mask for all rows of x, got {list(observed.shape)}")
        order = torch.arange(self.dim, device="cpu") if self.order is None else self.order.cpu()
        in_order = observed.cpu()[order]
        num_observed = int(in_order.sum())
        if not bool(in_order[:num_observed].all()):
            first_gap = int((~in_order).int().argmax())
            later = int(in_order[first_gap:].int().argmax()) + first_gap
            raise ValueError(
                "the observed dimensions must come first in the model's order, so that completion is exact: dimension "
                f"{int(order[later])} (step {later}) is observed, but dimension {int(order[first_gap])} "
                f"(step {first_gap}) before it is not. {self._other_masks}"
            )
        return x[:, order[:num_observed].to(x.device)]

    def _layers(self) -> dict[str, nn.Module]:
        """The model's layers by the names that errors call them, checked to be what the kernels compute."""
        return {}

    def _has_hooks(self) -> bool:
        return any(map(has_hooks, self._layers().values()))

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _dimensions(self, values: Tensor) -> Tensor:
        """Values [B, D, …] whose columns are steps, with columns that are dimensions."""
        return values if self.order is None else values.index_select(1, torch.argsort(self.order))


class AutoregressiveModel(DensityModel):
    r"""A distribution over x ∈ {0 … K−1}^D as the product of its conditionals, one dimension after the other:

        p(x) = Π_s p(x_{o(s)} | x_{o(0)} … x_{o(s−1)})

    where o is the model's order: step s visits dimension o(s). Every log-probability is exact and in nats.

    Layers are as PyTorch users expect: parametrizations, weight_norm, spectral_norm and prune take effect at every
    call. A layer replaced by something else is refused. Hooks on layers make log_prob, conditional_log_prob, logits and
    mean_nll call them, by torch's slower code, and sampling refuses them.

    A subclass defines `name`, calls `super().__init__`, and computes in step order: `_log_prob`, `_logits`, `_sample`.

    Args:
        dim: D.
        num_states: K, 2 … 256.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.

    Attributes:
        dim: D.
        num_states: K.
        order: int64 [D] buffer, or None.
        config: the constructor's arguments, plain values, from which `type(model)(**model.config)` builds its like.
    """

    def __init__(self, dim: int, num_states: int, order: Sequence[int] | None = None) -> None:
        super().__init__(dim, order)
        self.num_states = positive_int("num_states", num_states)
        if not 2 <= self.num_states <= 256:
            raise ValueError(f"num_states must be in 2 … 256, got {num_states}")

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold."""
        return {
            "dim": self.dim,
            "num_states": self.num_states,
            **self._config(),
            **({} if self.order is None else {"order": self._plain_order()}),
        }

    @abc.abstractmethod
    def _config(self) -> dict[str, Any]:
        """The constructor's arguments beside dim, num_states and order."""

    @abc.abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor:
        """`log_prob` of states whose columns are steps."""

    @abc.abstractmethod
    def _logits(self, x: Tensor) -> Tensor:
        """`logits` of states whose columns are steps; so are the result's."""

    def _called_logits(self, x: Tensor) -> Tensor:
        """_logits by calling the layers, so that their hooks run; for models with _layers."""
        raise NotImplementedError

    def _conditional_log_prob(self, x: Tensor) -> Tensor:
        """`conditional_log_prob` of states whose columns are steps; so are the result's."""
        return self._choose(self._logits(x), x)

    def _mean_nll(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """`mean_nll` of states whose columns are steps."""
        return self._mean(self._log_prob(x), weights)

    def _choose(self, logits: Tensor, x: Tensor) -> Tensor:
        """The log-probabilities [B, D] of states from their conditionals' logits."""
        return log_probability(logits.unsqueeze(-1) if self.num_states == 2 else logits, x)

    @abc.abstractmethod
    def _sample(
        self, num_samples: int, seed: Tensor, first_index: int, temperature: float, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`sample_and_log_prob` with columns that are steps; seed int64 [], given uint8 [num_samples, G]."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-probability log p(x) in nats, differentiable with respect to the parameters.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.

        Returns:
            float32 [B].

        Raises:
            TypeError: x is of another dtype.
            ValueError: x is of another shape, on another device or has states out of range.

        Example:
            >>> import itertools
            >>> model = pyar.NADE(dim=3, hidden_size=8)
            >>> everything = torch.tensor(list(itertools.product([0, 1], repeat=3)))
            >>> round(model.log_prob(everything).exp().sum().item(), 5)
            1.0
        """
        steps = self._steps(x)
        if self._has_hooks():
            return self._choose(self._called_logits(steps), steps).sum(dim=1)
        return self._log_prob(steps)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of every conditional p(x_d | the dimensions before it), differentiable.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.

        Returns:
            float32 [B, D, K]; for K = 2 [B, D], the Bernoulli logits log p(x_d = 1 | …) − log p(x_d = 0 | …). Column d
            is dimension d, whatever the order.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> pyar.NADE(dim=3, num_states=4, hidden_size=8).logits(torch.zeros(5, 3, dtype=torch.uint8)).shape
            torch.Size([5, 3, 4])
        """
        steps = self._steps(x)
        return self._dimensions(self._called_logits(steps) if self._has_hooks() else self._logits(steps))

    def conditional_log_prob(self, x: Tensor) -> Tensor:
        """The log-probability log p(x_d | the dimensions before it) of every dimension, in nats, differentiable.

        Their sum over the dimensions is log_prob(x).

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.

        Returns:
            float32 [B, D]. Column d is dimension d, whatever the order.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> model = pyar.NADE(dim=3, num_states=4, hidden_size=8)
            >>> x = torch.tensor([[0, 3, 1]])
            >>> torch.allclose(model.conditional_log_prob(x).sum(dim=1), model.log_prob(x))
            True
        """
        steps = self._steps(x)
        if self._has_hooks():
            return self._dimensions(self._choose(self._called_logits(steps), steps))
        return self._dimensions(self._conditional_log_prob(steps))

    def mean_nll(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The training loss −1/B Σ_b w_b log p(x_b) in nats, a scalar; NaN for an empty batch.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.
            weights: float32 [B], the weight w of every example, of any sign; None weighs each with 1. For REINFORCE
                the advantages, for importance sampling the ratios. Differentiable too, with −log p(x_b)/B.

        Raises:
            TypeError, ValueError: as log_prob, or weights are of another dtype, shape or device.

        Example:
            >>> model = pyar.NADE(dim=3, hidden_size=8)
            >>> model.mean_nll(torch.zeros(5, 3, dtype=torch.uint8)).backward()
            >>> model.b.grad.shape
            torch.Size([3, 1])
            >>> model.mean_nll(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0.5, -1.5])).shape
            torch.Size([])
        """
        steps = self._steps(x)
        weights = None if weights is None else check_weights(weights, steps)
        if self._has_hooks():
            return self._mean(self._choose(self._called_logits(steps), steps).sum(dim=1), weights)
        return self._mean_nll(steps, weights)

    def sample(
        self,
        num_samples: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        given: Tensor | None = None,
    ) -> Tensor:
        """Exact samples, one uniform for each (sample, dimension): sample i of a seed is always the same.

        Samples first_index … first_index + num_samples − 1 of the seed are returned, so that any division of the
        samples into calls or processes gives the same samples.

        Args:
            num_samples: N ≥ 0.
            seed: 0 … 2⁶⁴−1; None draws one from `generator`, or without one from torch's default generator.
            generator: a generator on the model's device; only without a seed.
            first_index: ≥ 0.
            temperature: > 0; divides the logits of every conditional. 1 is the model's own distribution.
            given: uint8 or int64 [N, G], or [G] for all samples alike: the states of the dimensions at the first G
                steps of the model's order, which are not drawn.

        Returns:
            uint8 [N, D].

        Raises:
            TypeError, ValueError: an argument is not as described.
            RuntimeError: the model's parameters give NaN or infinite logits.

        Example:
            >>> model = pyar.NADE(dim=3, hidden_size=8)
            >>> x = model.sample(10, seed=1)
            >>> torch.equal(x[4:], model.sample(6, seed=1, first_index=4))
            True
        """
        return self.sample_and_log_prob(
            num_samples,
            seed=seed,
            generator=generator,
            first_index=first_index,
            temperature=temperature,
            given=given,
        )[0]

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
    ) -> tuple[Tensor, Tensor]:
        """Exact samples and, from the same pass, the log-probability of what was drawn.

        Args:
            num_samples, seed, generator, first_index, temperature, given: as sample.

        Returns:
            x uint8 [N, D], and float32 [N]: the log-probability, in nats, of the drawn dimensions given the others
            under the distribution they were drawn from, at that temperature. At temperature 1 and with nothing given
            it is log_prob(x). It carries no gradient; log_prob(x) does.

        Raises:
            TypeError, ValueError, RuntimeError: as sample.

        Example:
            >>> model = pyar.NADE(dim=3, hidden_size=8)
            >>> x, log_prob = model.sample_and_log_prob(10, seed=1)
            >>> torch.allclose(log_prob, model.log_prob(x))
            True
        """
        return self._draw(self._sample, num_samples, seed, generator, first_index, temperature, given)

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
    ) -> Tensor:
        """Exact samples of the unobserved dimensions given the observed ones.

        A fixed order makes this exact only where all that is observed comes before all that is not: there the
        conditionals to draw from are the model's own. Anything else would need a sum over all completions, and is
        refused.

        Args:
            x: uint8 or int64 [B, D]; only its observed entries are read.
            observed: bool [D], True for the dimensions that are kept; its True part must be the first steps of the
                model's order.
            num_samples: completions for each row of x.
            seed, generator, temperature: as sample.
            first_index: the sample index of the first completion of the first row; completion j of row b is sample
                first_index + b·num_samples + j of the seed.

        Returns:
            uint8 [B, num_samples, D].

        Raises:
            TypeError, ValueError: an argument is not as described, or the observed dimensions are not first in order.
            RuntimeError: as sample.

        Example:
            >>> model = pyar.NADE(dim=4, hidden_size=8)
            >>> x = torch.tensor([[1, 1, 0, 0]])
            >>> completions = model.complete(x, torch.tensor([True, True, False, False]), num_samples=5, seed=1)
            >>> completions.shape, bool((completions[..., :2] == 1).all())
            (torch.Size([1, 5, 4]), True)
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        given = self._observed_part(x, observed)
        completed, _ = self.sample_and_log_prob(
            x.shape[0] * num_samples,
            seed=seed,
            generator=generator,
            first_index=first_index,
            temperature=temperature,
            given=given.repeat_interleave(num_samples, dim=0),
        )
        return completed.view(x.shape[0], num_samples, self.dim)

    def _draw(
        self,
        sample: Callable[[int, Tensor, int, float, Tensor | None], tuple[Tensor, Tensor]],
        num_samples: int,
        seed: int | None,
        generator: torch.Generator | None,
        first_index: int,
        temperature: float,
        given: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`sample_and_log_prob` by a function with the arguments and results of `_sample`."""
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        device = self._device()
        given = check_given(given, num_samples, self.dim, self.num_states, device)
        reparametrize(self)
        refuse_hooks(**self._layers())
        seed_tensor = resolve_seed(seed, generator, device)
        steps, log_prob = sample(num_samples, seed_tensor, first_index, temperature, given)
        return self._dimensions(steps), log_prob

    def _observed_part(self, x: Tensor, observed: Tensor) -> Tensor:
        """The states of the observed dimensions, if these are the first of the order: uint8 [B, G]."""
        kept = self._first_part(x, observed)
        return check_states("x's observed part", kept, kept.shape[1], self.num_states, self._device())

    def _steps(self, x: Tensor) -> Tensor:
        """x as uint8, once it is checked, its columns in the order of the steps; and the parameters made ready."""
        reparametrize(self)
        x = check_states("x", x, self.dim, self.num_states, self._device())
        return x if self.order is None else x.index_select(1, self.order)


def check_tensor(name: str, value: Tensor) -> None:
    """Raises TypeError unless the value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def new_parameter(*shape: int) -> nn.Parameter:
    """An uninitialised float32 parameter, whatever torch's default dtype, on torch's default device."""
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


def positive_int(name: str, value: int) -> int:
    """The value as a plain int, if it is an integer above 0."""
    number = plain_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return number


def check_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of layers as a tuple, if there is one at least and all are integers above 0."""
    if isinstance(sizes, str) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"{name} must be a sequence of integers, got {type(sizes).__name__} {sizes!r}")
    checked = tuple(positive_int(name, size) for size in sizes)
    if len(checked) == 0:
        raise ValueError(f"{name} must hold one size at least, got {sizes!r}")
    return checked


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """The value, if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def check_dropout(value: float) -> float:
    """The part of the units that is left out, if it is in [0, 1)."""
    number = float(plain_number("dropout", value))
    if not 0 <= number < 1:
        raise ValueError(f"dropout must be in [0, 1), got {value}")
    return number


@torch.no_grad()
def marginal_mixture(values: Tensor, num_components: int, min_scale: float) -> Tensor:
    """The outputs of a mixture that lies along such values: components of equal weight, each at a quantile.

    Args:
        values: [N], finite; none at all count as a standard normal's.
        num_components: C.
        min_scale: what the mixture adds to every scale.

    Returns:
        float32 [3C]: logits, means, log-scales, as pyar.reference.mixtures has them. A component's scale is half the
        distance between the quantiles half a component beside it, and at least `min_scale`.
    """
    C, values = num_components, values.double()
    borders = torch.linspace(0, 1, 2 * C + 1, dtype=torch.float64, device=values.device)
    if len(values):
        ordered = values.sort().values  # torch.quantile takes no more than 16 million
        place = borders * (len(ordered) - 1)
        low = place.long()
        high = (low + 1).clamp(max=len(ordered) - 1)
        quantiles = torch.lerp(ordered[low], ordered[high], place - low)
    else:
        quantiles = torch.special.ndtri(borders.clamp(0.02, 0.98))
    means, spans = quantiles[1::2], 0.5 * (quantiles[2::2] - quantiles[:-1:2])
    log_scales = (spans - min_scale).clamp(min=max(min_scale, 1e-12)).log()
    return torch.cat((torch.zeros_like(means), means, log_scales)).float()


def marginal_logits(x: Tensor, num_states: int) -> Tensor:
    """The logits of the data's marginals, each state counted once more than it was seen: float64 [D, P].

    Args:
        x: uint8 [N, D].
        num_states: K.

    Returns:
        Log-frequencies, P = K; for K = 2 log-odds, P = 1.
    """
    (_, D), K = x.shape, num_states
    counts = torch.ones(D * K, dtype=torch.int64, device=x.device)
    first_state = K * torch.arange(D, device=x.device)
    for rows in x.split(1024):  # so that the int64 copy stays small
        counts += torch.bincount((rows + first_state).flatten(), minlength=D * K)
    log_frequency = counts.view(D, K).double().log()
    log_frequency = log_frequency - counts.view(D, K).sum(dim=1, keepdim=True).double().log()
    return log_frequency[:, 1:] - log_frequency[:, :1] if K == 2 else log_frequency
