"""The face of image models: pixels in the order of a scan, colour channels one given the other, labels as context.

A subclass is a trunk. It gets the image as the scan goes through it, `rows` × `columns` pixels of `channels` channels,
and defines

    _features(steps, context) → [B, pixels, F]
        features of every pixel that depend on the pixels before it alone; steps uint8 [B, D], context float32 [B, S]
        or None
    _sample(num_samples, seed, first_index, temperature, given, context) → (steps uint8 [N, D], log_prob [N])
        by whatever computes every feature once
    _config() → the arguments that are its own, and _layers() → those of the head and its own

It calls `super().__init__`, builds its layers for `context_width` = S numbers of context (0: none), and inherits the
output head: see pyar.reference.plane for its equations.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyar.models.base import (
    AutoregressiveModel,
    check_choice,
    check_sizes,
    marginal_logits,
    new_parameter,
    positive_int,
)
from pyar.models.layers import check_linear, linear_parameters, require_parameter
from pyar.ops.validate import check_sampling, check_weights, has_values
from pyar.reference.draw import log_probability
from pyar.reference.plane import HeadParameters, mixture_log_probabilities, mixture_log_probability

Scan = Literal["right-down", "left-down", "right-up", "left-up", "down-right", "down-left", "up-right", "up-left"]


def scan_order(image_shape: Sequence[int], scan: str) -> list[int]:
    """The dimensions of an image (height, width, channels) in the order of a scan, channels innermost."""
    pixels = torch.arange(torch.Size(image_shape).numel(), device="cpu").view(tuple(image_shape))
    along, across = scan.split("-")
    flipped = [axis for axis, way in enumerate(("up", "left")) if way in (along, across)]
    pixels = pixels.flip(flipped)
    return (pixels if along in ("right", "left") else pixels.transpose(0, 1)).flatten().tolist()


class Head(nn.Module):
    """From a pixel's features to the conditionals of its channels, each given those before it.

    Args:
        features: F.
        head_size: M.
        channels: C.
        num_states: K.
        outputs: P.

    Attributes:
        hidden: torch.nn.Linear(F, M).
        E: [C(C−1)/2, K, M], what channel c receives from the state of channel j < c, at c(c−1)/2 + j; None for C = 1.
        outputs: torch.nn.Linear(M, P) for every channel.
    """

    def __init__(self, features: int, head_size: int, channels: int, num_states: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, head_size, dtype=torch.float32)
        pairs = channels * (channels - 1) // 2
        self.E = new_parameter(pairs, num_states, head_size) if pairs else None
        self.outputs = nn.ModuleList(nn.Linear(head_size, outputs, dtype=torch.float32) for _ in range(channels))

    def forward(self, features: Tensor, steps: Tensor) -> Tensor:
        """features [B, pixels, F], steps uint8 [B, D] → outputs [B, D, P], never of less than float32."""
        channels = len(self.outputs)
        pixels = steps.unflatten(1, (-1, channels)).long()
        a = self.hidden(torch.relu(features))
        parts = []
        for c, layer in enumerate(self.outputs):
            h = a
            for j in range(c):
                h = h + functional.embedding(pixels[..., j], self.E[c * (c - 1) // 2 + j])
            parts.append(layer(torch.relu(h)))
        outputs = torch.stack(parts, dim=2).flatten(1, 2)
        return outputs if outputs.dtype == torch.float64 else outputs.float()


class ImageModel(AutoregressiveModel):
    """A distribution over images, pixel after pixel and channel after channel, perhaps given a label or features.

    Args:
        image_shape: (height, width), or (height, width, channels). Images are flattened row by row, channels last:
            D = height·width·channels.
        num_states: K, 2 … 256.
        features: F, the numbers that the trunk has for every pixel.
        head_size: M, the hidden units of the output head; None for F.
        output: "softmax", or "logistic-mixture" for grey values (K > 2): a mixture of logistic distributions.
        num_mixtures: of the logistic mixture.
        num_classes: the model is one given a label 0 … num_classes − 1.
        context_size: the model is one given so many features.
        scan: the way along a line of pixels, and from line to line. "right-down" is row by row from the top; "right-up"
            has the bottom half first, "down-right" the left half, "down-left" the right half.

    A model of labels or features takes them as `context`, the last keyword of every method that computes or draws:
    labels int64 [B], or features float32 [B, context_size]; where samples are drawn, one label int64 [] or one row
    [context_size] serves all of them.

    Attributes:
        image_shape: as given.
        rows, columns, channels: of the image as the scan goes through it: for scans along columns height and width
            have changed places.
        scan: as given.
        head: the output head.
    """

    _other_masks: ClassVar[str] = (
        "A model trained with another scan has another side of the image first, and pyar.DeepNADE completes from any "
        "dimensions"
    )

    def __init__(
        self,
        image_shape: Sequence[int],
        num_states: int,
        *,
        features: int,
        head_size: int | None = None,
        output: Literal["softmax", "logistic-mixture"] = "softmax",
        num_mixtures: int = 10,
        num_classes: int | None = None,
        context_size: int | None = None,
        scan: Scan = "right-down",
    ) -> None:
        shape = _checked_shape(image_shape)
        height, width, channels = (*shape, 1)[:3]
        check_choice("scan", scan, Scan.__args__)
        order = None if scan == "right-down" else scan_order((height, width, channels), scan)
        super().__init__(height * width * channels, num_states, order)
        self.register_buffer("order", self.order, persistent=False)  # the scan says it
        self.image_shape = shape
        self.rows, self.columns = (height, width) if scan.startswith(("right", "left")) else (width, height)
        self.channels = channels
        self.scan = scan
        self.output = check_choice("output", output, ("softmax", "logistic-mixture"))
        if self.output == "logistic-mixture" and self.num_states == 2:
            raise ValueError("output='logistic-mixture' is for grey values, num_states > 2, got num_states=2")
        self.num_mixtures = positive_int("num_mixtures", num_mixtures)
        if num_classes is not None and context_size is not None:
            raise ValueError(f"give num_classes or context_size, not both, got {num_classes} and {context_size}")
        self.num_classes = None if num_classes is None else positive_int("num_classes", num_classes)
        self.context_size = None if context_size is None else positive_int("context_size", context_size)
        self.context_width = self.num_classes or self.context_size or 0
        self.features = positive_int("features", features)
        self.head_size = self.features if head_size is None else positive_int("head_size", head_size)
        self.head = Head(self.features, self.head_size, channels, self.num_states, self._num_outputs)

    def _reset_head(self) -> None:
        """The initial head: nearly the same conditionals for all pixels, a mixture's spread over all values."""
        nn.init.kaiming_normal_(self.head.hidden.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.hidden.bias)
        if self.head.E is not None:
            nn.init.normal_(self.head.E, std=0.1)
        for layer in self.head.outputs:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
            if self.output == "logistic-mixture":
                _, means, log_scales = layer.bias.data.chunk(3)
                means.copy_((2 * torch.arange(self.num_mixtures) + 1) / self.num_mixtures - 1)
                log_scales.fill_(-2.0)

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> ImageModel:
        """Sets the softmax's biases so that an untrained model is near the frequencies of each channel's states.

        They are taken over all images and pixels. A logistic mixture stays as it is.

        Args:
            x: uint8 or int64 [N, D], states 0 … K−1.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.
        """
        steps = self._steps(x)
        if self.output == "softmax":
            logits = marginal_logits(steps.reshape(-1, self.channels), self.num_states)
            for channel, layer in enumerate(self.head.outputs):
                require_parameter(f"head.outputs[{channel}].bias", layer.bias)
                layer.bias.copy_(logits[channel])
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values that JSON can hold."""
        return {
            "image_shape": list(self.image_shape),
            "num_states": self.num_states,
            **self._config(),
            "head_size": self.head_size,
            "output": self.output,
            "num_mixtures": self.num_mixtures,
            "num_classes": self.num_classes,
            "context_size": self.context_size,
            "scan": self.scan,
        }

    # --- What a trunk defines ---

    @abc.abstractmethod
    def _features(self, steps: Tensor, context: Tensor | None) -> Tensor:
        """Features [B, pixels, F] of every pixel from those before it; steps uint8 [B, D], context float32 [B, S]."""

    @abc.abstractmethod
    def _sample(
        self,
        num_samples: int,
        seed: Tensor,
        first_index: int,
        temperature: float,
        given: Tensor | None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As AutoregressiveModel's; context float32 [N, S] or None."""

    def _layers(self) -> dict[str, nn.Module]:
        head = self.head
        check_linear("head.hidden", head.hidden, self.features, self.head_size)
        layers = {"head.hidden": head.hidden}
        for channel, layer in enumerate(head.outputs):
            check_linear(f"head.outputs[{channel}]", layer, self.head_size, self._num_outputs)
            layers[f"head.outputs[{channel}]"] = layer
        return layers

    @property
    def _num_outputs(self) -> int:
        """P, the outputs of the head for every channel."""
        if self.output == "logistic-mixture":
            return 3 * self.num_mixtures
        return 1 if self.num_states == 2 else self.num_states

    def _head_parameters(self) -> HeadParameters:
        """The head's parameters as they are at this call."""
        weights, biases = zip(*map(linear_parameters, self.head.outputs), strict=True)
        W, w = linear_parameters(self.head.hidden)
        E = W.new_empty(0, self.num_states, self.head_size) if self.head.E is None else self.head.E
        return HeadParameters(W, w, E, torch.stack(weights), torch.stack(biases))

    # --- The face, with context ---

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The log-probability log p(x | context) in nats, differentiable with respect to the parameters.

        Args:
            x: uint8 or int64 [B, D], states 0 … K−1.
            context: labels int64 [B] or features float32 [B, context_size], for a model given such.

        Returns:
            float32 [B].

        Raises:
            TypeError: x or context is of another dtype.
            ValueError: x or context is of another shape, on another device or has values out of range, or the model
                takes no context or needs one.
        """
        steps = self._steps(x)
        return self._log_prob(steps, self._check_context(context, len(steps)))

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log_prob(x, context=context), so that `model(x)` and what wraps modules work."""
        return self.log_prob(x, context=context)

    def logits(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The logits of every conditional p(x_d | the dimensions before it, context), differentiable.

        Args, Raises: as log_prob.

        Returns:
            float32 [B, D, K]; for K = 2 [B, D], the Bernoulli logits. Column d is dimension d, whatever the scan.
        """
        steps = self._steps(x)
        return self._dimensions(self._logits(steps, self._check_context(context, len(steps))))

    def conditional_log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """The log-probability log p(x_d | the dimensions before it, context) of every dimension: float32 [B, D].

        Their sum over the dimensions is log_prob(x). Differentiable.

        Args, Raises: as log_prob.
        """
        steps = self._steps(x)
        return self._dimensions(self._conditional_log_prob(steps, self._check_context(context, len(steps))))

    def mean_nll(self, x: Tensor, weights: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """The training loss −1/B Σ_b w_b log p(x_b | context_b) in nats, a scalar; NaN for an empty batch.

        Args:
            x, context: as log_prob.
            weights: float32 [B], the weight of every example, of any sign; None weighs each with 1.

        Raises:
            TypeError, ValueError: as log_prob, or weights are of another dtype, shape or device.
        """
        steps = self._steps(x)
        weights = None if weights is None else check_weights(weights, steps)
        return self._mean(self._log_prob(steps, self._check_context(context, len(steps))), weights)

    def training_loss(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """What training minimises, a scalar: mean_nll(x, context=context)."""
        return self.mean_nll(x, context=context)

    def validation_log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """What training compares weights by, float32 [B]: log_prob(x, context=context)."""
        return self.log_prob(x, context=context)

    def sample(
        self,
        num_samples: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_index: int = 0,
        temperature: float = 1.0,
        given: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Exact samples, one uniform for each (sample, dimension): sample i of a seed and context is always the same.

        Args:
            num_samples, seed, generator, first_index, temperature, given: as AutoregressiveModel.sample.
            context: labels int64 [N], or [] for all samples alike; features float32 [N, context_size], or
                [context_size] for all alike.

        Returns:
            uint8 [N, D].

        Raises:
            TypeError, ValueError: an argument is not as described.
            RuntimeError: the model's parameters give NaN or infinite logits.
        """
        return self.sample_and_log_prob(
            num_samples,
            seed=seed,
            generator=generator,
            first_index=first_index,
            temperature=temperature,
            given=given,
            context=context,
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
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Exact samples and, from the same pass, the log-probability of what was drawn given the context.

        Args, Raises: as sample.

        Returns:
            x uint8 [N, D], and float32 [N] as AutoregressiveModel.sample_and_log_prob.
        """
        number, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        context = self._check_context(context, number, one_for_all=True)
        sample = functools.partial(self._sample, context=context)
        return self._draw(sample, number, seed, generator, first_index, temperature, given)

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
        context: Tensor | None = None,
    ) -> Tensor:
        """Exact samples of the unobserved dimensions given the observed ones, which must come first in the scan.

        Args:
            x, observed, num_samples, seed, generator, first_index, temperature: as AutoregressiveModel.complete.
            context: of every row of x, as log_prob, or one for all rows alike, as sample.

        Returns:
            uint8 [B, num_samples, D].

        Raises:
            TypeError, ValueError: an argument is not as described, or the observed dimensions are not first in the
                scan.
            RuntimeError: as sample.
        """
        num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
        given = self._observed_part(x, observed)
        context = self._check_context(context, len(x), one_for_all=True)
        if context is not None:
            context = context.repeat_interleave(num_samples, dim=0)
        sample = functools.partial(self._sample, context=context)
        given = given.repeat_interleave(num_samples, dim=0)
        completed, _ = self._draw(sample, len(given), seed, generator, first_index, temperature, given)
        return completed.view(len(x), num_samples, self.dim)

    # --- In step order ---

    def _log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._conditional_log_prob(x, context).sum(dim=1)

    def _conditional_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        outputs = self._outputs(x, context)
        if self.output == "softmax":
            return log_probability(outputs, x)
        return mixture_log_probability(outputs, x, self.num_states)

    def _logits(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        outputs = self._outputs(x, context)
        if self.output == "logistic-mixture":
            return mixture_log_probabilities(outputs, self.num_states)
        return outputs.squeeze(-1) if self.num_states == 2 else outputs

    def _outputs(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The conditionals' outputs [B, D, P], float32."""
        self._layers()  # a layer that sampling could not compute is refused here too
        return self.head(self._features(x, context), x)

    def _check_context(self, context: Tensor | None, count: int, *, one_for_all: bool = False) -> Tensor | None:
        """The context as numbers float32 [count, S], labels one-hot; None for a model without."""
        if self.context_width == 0:
            if context is not None:
                raise ValueError("context must be None: the model was built without num_classes and context_size")
            return None
        expected = (
            f"labels int64 [{count}], 0 … {self.num_classes - 1}"
            if self.num_classes is not None
            else f"features float32 [{count}, {self.context_size}]"
        )
        if not isinstance(context, Tensor):
            raise (ValueError if context is None else TypeError)(
                f"context must be {expected}, got {None if context is None else type(context).__name__}"
            )
        dtype, row = (torch.int64, ()) if self.num_classes is not None else (torch.float32, (self.context_size,))
        if context.dtype != dtype:
            raise TypeError(f"context must be {expected}, got {context.dtype}")
        if context.shape != (count, *row) and not (one_for_all and context.shape == row):
            raise ValueError(f"context must be {expected}, got {list(context.shape)}")
        if context.device != self._device():
            raise ValueError(
                f"context is on {context.device}, the parameters on {self._device()}: they must be on the same"
            )
        context = context.expand(count, *row)
        if self.num_classes is None:
            return context
        if count and has_values(context):
            lowest, highest = map(int, torch.aminmax(context))
            if not 0 <= lowest <= highest < self.num_classes:
                raise ValueError(f"context must be {expected}, got values {lowest} … {highest}")
        one_hot = context[:, None] == torch.arange(self.num_classes, device=context.device)
        return one_hot.to(self.head.hidden.weight.dtype)


def _checked_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    expected = "(height, width) or (height, width, channels)"
    if image_shape is None:
        raise ValueError(f"image_shape must be {expected}, got None: the model is one of images")
    shape = check_sizes("image_shape", image_shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"image_shape must be {expected}, got {shape}")
    return shape
