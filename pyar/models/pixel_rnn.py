"""What the Row LSTM and the Diagonal BiLSTM share as modules: the first convolution, and layers one on the other."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyar.models.base import new_parameter, positive_int
from pyar.models.layers import check_convolution, convolution_parameters, reparametrize
from pyar.models.plane import ImageModel, Scan
from pyar.ops.pixel_rnn import pixel_rnn_sample
from pyar.reference.pixel_rnn import First
from pyar.reference.plane import numbers


class PixelRNN(ImageModel):
    """Recurrent layers over the plane, each added to its input, on a convolution of mask A.

    A subclass names its kind of `layer`; its arguments are explained there.
    """

    layer: ClassVar[type[PixelRNNLayer]]

    def __init__(
        self,
        image_shape: Sequence[int],
        num_states: int = 2,
        hidden_size: int = 16,
        num_layers: int = 7,
        *,
        head_size: int | None = None,
        output: Literal["softmax", "logistic-mixture"] = "softmax",
        num_mixtures: int = 10,
        num_classes: int | None = None,
        context_size: int | None = None,
        scan: Scan = "right-down",
    ) -> None:
        super().__init__(
            image_shape,
            num_states,
            features=2 * positive_int("hidden_size", hidden_size),
            head_size=head_size,
            output=output,
            num_mixtures=num_mixtures,
            num_classes=num_classes,
            context_size=context_size,
            scan=scan,
        )
        self.hidden_size = self.features // 2
        self.num_layers = positive_int("num_layers", num_layers)
        self.above = nn.Conv2d(self.channels, self.features, (3, 7), dtype=torch.float32)
        self.left = nn.Conv2d(self.channels, self.features, (1, 3), bias=False, dtype=torch.float32)
        self.layers = nn.ModuleList(
            self.layer(self.features, self.hidden_size, self.channels, self.context_width)
            for _ in range(self.num_layers)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Convolutions of variance 1/inputs, recurrent blocks orthogonal, forget gates at bias 1, other biases zero.

        What the layers add to their inputs has variance 1/num_layers.
        """
        inputs = self.above.weight[0].numel() + self.left.weight[0].numel()
        for layer in (self.above, self.left):
            nn.init.normal_(layer.weight, std=inputs**-0.5)
        nn.init.zeros_(self.above.bias)
        for layer in self.layers:
            layer.reset_parameters(self.num_layers)
        self._reset_head()

    def _config(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "num_layers": self.num_layers}

    def _layers(self) -> dict[str, nn.Module]:
        check_convolution("above", self.above, self.channels, self.features, (3, 7), bias=True)
        check_convolution("left", self.left, self.channels, self.features, (1, 3), bias=False)
        if not isinstance(self.layers, nn.ModuleList) or len(self.layers) != self.num_layers:
            raise TypeError(
                f"layers must be the torch.nn.ModuleList of {self.num_layers} that the model was built with, "
                f"got {self.layers}"
            )
        named = super()._layers() | {"above": self.above, "left": self.left}
        for number, layer in enumerate(self.layers):
            is_ours = isinstance(layer, self.layer) and type(layer).forward is self.layer.forward
            if not is_ours or "forward" in vars(layer):
                raise TypeError(
                    f"layers[{number}] must be a {self.layer.__name__}, which is what the kernels compute, got "
                    f"{type(layer).__name__}; to change its parameters use torch.nn.utils.parametrize"
                )
            named[f"layers[{number}]"] = layer
        return named

    def _features(self, steps: Tensor, context: Tensor | None) -> Tensor:
        values = numbers(steps, self.num_states, self.above.weight.dtype)
        image = values.view(len(steps), self.rows, self.columns, self.channels)
        planes = image.movedim(3, 1)
        above = self.above(functional.pad(planes, (3, 3, 3, -1)))
        x = (above + self.left(functional.pad(planes, (3, -1)))).movedim(1, 3)
        for layer in self.layers:
            x = layer(x, image, context)
        return x.flatten(1, 2)

    def _sample(
        self,
        num_samples: int,
        seed: Tensor,
        first_index: int,
        temperature: float,
        given: Tensor | None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return pixel_rnn_sample(
            self._first(),
            [layer.weights_now(context) for layer in self.layers],
            self._head_parameters(),
            shape=(self.rows, self.columns),
            num_states=self.num_states,
            output=self.output,
            seed=seed,
            num_samples=num_samples,
            first_index=first_index,
            temperature=temperature,
            given=given,
            dims=self.order,
        )

    def _first(self) -> First:
        """The first convolution's parameters as they are at this call."""
        (above, bias), (left, _) = map(convolution_parameters, (self.above, self.left))
        return First(above, left, bias)


class PixelRNNLayer(nn.Module, abc.ABC):
    """A recurrent layer of h hidden units that is added to its input map of F features."""

    def __init__(self, features: int, hidden_size: int) -> None:
        super().__init__()
        self.up = new_parameter(features, hidden_size)
        self.up_bias = new_parameter(features)

    @abc.abstractmethod
    def forward(self, x: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        """x [B, rows, columns, F], the pixels' numbers [B, rows, columns, C], context [B, S] → as x."""

    @abc.abstractmethod
    def weights(self, context: Tensor | None) -> list[Tensor]:
        """The layer's weights as the operations take them, with what the context adds to the biases."""

    @abc.abstractmethod
    def reset_parameters(self, num_layers: int) -> None:
        """Initial values for one of num_layers layers."""

    def weights_now(self, context: Tensor | None) -> list[Tensor]:
        """`weights` outside of a call, after what PyTorch does before a call."""
        reparametrize(self)
        return self.weights(context)

    def _reset_up(self, num_layers: int) -> None:
        nn.init.normal_(self.up, std=(self.up.shape[1] * num_layers) ** -0.5)
        nn.init.zeros_(self.up_bias)


def reset_gates(W: Tensor, U: Tensor, b: Tensor, Z: Tensor | None) -> None:
    """Initial values of gates: W [4h, inputs] · U [taps, 4h, h] · b [4h] · Z [4h, S], of the context."""
    nn.init.normal_(W, std=W.shape[-1] ** -0.5)
    for tap in U:
        for block in tap.chunk(4):
            nn.init.orthogonal_(block)
    U /= len(U) ** 0.5
    nn.init.zeros_(b)
    nn.init.ones_(b.chunk(4)[1])
    if Z is not None:
        nn.init.normal_(Z, std=0.1)


def gate_bias(b: Tensor, Z: Tensor | None, context: Tensor | None) -> Tensor:
    """b [4h], and with a context [B, S] what it adds: [B, 4h]."""
    return b if Z is None or context is None else torch.addmm(b, context, Z.T)
