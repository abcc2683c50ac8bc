"""PixelCNN as a module: convolutions whose kernels hold what the mask lets through, sampled by pyar.ops.pixel_cnn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyar.models.base import positive_int
from pyar.models.layers import check_convolution, check_linear_without_bias, convolution_parameters, reparametrize
from pyar.models.plane import ImageModel, Scan
from pyar.ops.pixel_cnn import pixel_cnn_sample
from pyar.reference.pixel_cnn import GatedLayer, PlainLayer, gate
from pyar.reference.plane import numbers
from pyar.scalars import plain_bool


class PixelCNN(ImageModel):
    r"""Convolutions over the pixels above and to the left; a sample costs about one forward pass in all.

    The gated form has a vertical stack, which sees the rows above, and a horizontal one, which sees the vertical stack
    and what is left of the pixel in its row; v' are the sums of the vertical stack before its gates:

        v = tanh(v'_1) ⊙ σ(v'_2),   v' = vertical ∗ v_below
        g = tanh(h'_1) ⊙ σ(h'_2),   h' = horizontal ∗ h_below + cross v'
        h = h_below + residual g,   features = Σ_layers skip g

    and no blind spot: `receptive_field` rows above and columns to either side, every pixel of this rectangle that comes
    before is seen. The plain form is one stack of ReLU layers, which has one. What a mask would hide is not in the
    kernels at all.

    References: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016,
    https://arxiv.org/abs/1606.05328; the plain form van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural
    Networks", ICML 2016, https://arxiv.org/abs/1601.06759; the logistic mixture Salimans, Karpathy, Chen & Kingma,
    "PixelCNN++", ICLR 2017, https://arxiv.org/abs/1701.05517.

    Args:
        image_shape: (height, width), or (height, width, channels); D = height·width·channels.
        num_states: K, 2 … 256.
        features: F, the features of a layer.
        num_layers: the number of layers, the first among them.
        kernel_size: k of all layers but the first, odd.
        first_kernel_size: k of the first layer, odd.
        gated: the gated form, or else the plain one of the first paper.
        head_size: M, the hidden units of the output head; features if it is not given.
        output: "softmax", or "logistic-mixture" for grey values: a mixture of logistic distributions.
        num_mixtures: distributions in the logistic mixture.
        num_classes: the model is one given a label 0 … num_classes − 1.
        context_size: the model is one given so many features.
        scan: the way along a line of pixels, and from line to line. "right-down" is row by row from the top; "right-up"
            has the bottom half first, "down-right" the left half, "down-left" the right half.

    Labels or features are the `context` of every method that computes or draws, and go into every gate (in the plain
    form into every masked convolution).

    Attributes:
        layers: torch.nn.ModuleList of the layers, whose convolutions are torch.nn.Conv2d.
        head: the output head: a hidden layer, and a torch.nn.Linear for every channel.
        receptive_field: how far a pixel sees, up and to either side.

    Example:
        >>> model = pyar.PixelCNN((8, 8), num_states=4, features=16, num_layers=3)
        >>> x = model.sample(5, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([5, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([5])
        >>> model = pyar.PixelCNN((8, 8), features=16, num_layers=3, num_classes=10)
        >>> model.sample(5, seed=0, context=torch.tensor(3)).shape
        torch.Size([5, 64])
    """

    name = "pixel-cnn"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_states: int = 2,
        features: int = 64,
        num_layers: int = 7,
        *,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        gated: bool = True,
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
            features=features,
            head_size=head_size,
            output=output,
            num_mixtures=num_mixtures,
            num_classes=num_classes,
            context_size=context_size,
            scan=scan,
        )
        self.num_layers = positive_int("num_layers", num_layers)
        self.kernel_size = _odd("kernel_size", kernel_size)
        self.first_kernel_size = _odd("first_kernel_size", first_kernel_size)
        self.gated = plain_bool("gated", gated)
        layers = []
        for number in range(self.num_layers):
            first, last = number == 0, number == self.num_layers - 1
            k, inputs = (self.first_kernel_size, self.channels) if first else (self.kernel_size, self.features)
            if self.gated:
                layers.append(_Gated(inputs, self.features, k, first, last, self.context_width))
            else:
                layers.append(_Plain(inputs, self.features, k, first, self.context_width))
        self.layers = nn.ModuleList(layers)
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """How many rows up, and columns to either side, a pixel sees."""
        return self.first_kernel_size // 2 + (self.num_layers - 1) * (self.kernel_size // 2)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights of variance 1/inputs (2/inputs after a ReLU), biases zero, what is added up smaller by its number."""
        for layer in self.layers:
            layer.reset_parameters(self.num_layers)
        self._reset_head()

    def _config(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "num_layers": self.num_layers,
            "kernel_size": self.kernel_size,
            "first_kernel_size": self.first_kernel_size,
            "gated": self.gated,
        }

    def _layers(self) -> dict[str, nn.Module]:
        named = super()._layers()
        for number, layer in enumerate(self.layers):
            for name, (inputs, outputs, kernel, bias) in layer.convolutions.items():
                full = f"layers[{number}].{name}"
                named[full] = getattr(layer, name)
                check_convolution(full, named[full], inputs, outputs, kernel, bias=bias)
            if layer.context is not None:
                full = f"layers[{number}].context"
                named[full] = layer.context
                check_linear_without_bias(full, layer.context, self.context_width, layer.context_outputs)
        return named

    def _features(self, steps: Tensor, context: Tensor | None) -> Tensor:
        x = numbers(steps, self.num_states, self.head.hidden.weight.dtype)
        image = x.view(len(x), self.rows, self.columns, self.channels).permute(0, 3, 1, 2)
        if self.gated:
            v, h, features = image, None, None
            for layer in self.layers:
                v, h, features = layer(image, v, h, features, context)
        else:
            features = image
            for layer in self.layers:
                features = layer(features, context)
        return features.flatten(2).transpose(1, 2)

    def _sample(
        self,
        num_samples: int,
        seed: Tensor,
        first_index: int,
        temperature: float,
        given: Tensor | None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return pixel_cnn_sample(
            [layer.parameters_now() for layer in self.layers],
            self._head_parameters(),
            shape=(self.rows, self.columns),
            num_states=self.num_states,
            output=self.output,
            seed=seed,
            num_samples=num_samples,
            first_index=first_index,
            temperature=temperature,
            given=given,
            context=context,
            dims=self.order,
        )


def _odd(name: str, value: int) -> int:
    number = positive_int(name, value)
    if number % 2 == 0 or number == 1:
        raise ValueError(f"{name} must be odd and at least 3, got {value}")
    return number


class _Layer(nn.Module):
    """What the two kinds of layers share.

    `convolutions`: inputs, outputs, kernel size and whether it has a bias of every one, by its name.
    """

    convolutions: dict[str, tuple[int, int, tuple[int, int], bool]]
    context: nn.Linear | None

    def _build(self, context_width: int, context_outputs: int) -> None:
        for name, (inputs, outputs, kernel, bias) in self.convolutions.items():
            setattr(self, name, nn.Conv2d(inputs, outputs, kernel, bias=bias, dtype=torch.float32))
        self.context_outputs = context_outputs
        self.context = (
            nn.Linear(context_width, context_outputs, bias=False, dtype=torch.float32) if context_width else None
        )

    def _reset(self, gains: dict[str, float]) -> None:
        """Weights of variance gain²/inputs."""
        for name in self.convolutions:
            layer = getattr(self, name)
            nn.init.normal_(layer.weight, std=gains.get(name, 1.0) * layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.context is not None:
            nn.init.normal_(self.context.weight, std=0.1)

    def _pairs(self) -> dict[str, Tensor | None]:
        """Weight and bias of every convolution, and the context's weight, by the names of the reference."""
        found: dict[str, Tensor | None] = {}
        for name in self.convolutions:
            found[name], found[f"{name}_bias"] = convolution_parameters(getattr(self, name))
        if self.context is not None:
            reparametrize(self.context)
            found["context"] = self.context.weight
        return found


class _Gated(_Layer):
    def __init__(self, inputs: int, features: int, k: int, first: bool, last: bool, context_width: int) -> None:
        super().__init__()
        self.first, self.reach = first, k // 2
        own = 0 if first else 1  # the pixel's own row and column
        self.convolutions = {
            "vertical": (inputs, 2 * features, (self.reach + own, k), True),
            "horizontal": (inputs, 2 * features, (1, self.reach + own), True),
            "cross": (2 * features, 2 * features, (1, 1), False),
            "skip": (features, features, (1, 1), True),
        }
        if not last:
            self.convolutions["residual"] = (features, features, (1, 1), True)
        self._build(context_width, 4 * features)

    def reset_parameters(self, num_layers: int) -> None:
        self._reset({"skip": num_layers**-0.5, "horizontal": 0.5**0.5, "cross": 0.5**0.5})

    def parameters_now(self) -> GatedLayer:
        found = dict.fromkeys(GatedLayer._fields) | self._pairs()
        found.pop("cross_bias")
        return GatedLayer(**found)

    def forward(
        self, image: Tensor, v: Tensor, h: Tensor | None, features: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """v, h and the features so far → those after the layer; the last has neither v nor h, the first gets no h."""
        reach, skipped = self.reach, -1 if self.first else 0
        above = self.vertical(functional.pad(v, (reach, reach, reach, skipped)))
        left = self.horizontal(functional.pad(image if h is None else h, (reach, skipped)))
        if self.context is not None:
            to_vertical, to_horizontal = self.context(context)[..., None, None].chunk(2, dim=1)
            above, left = above + to_vertical, left + to_horizontal
        g = gate(left + self.cross(above))
        through = self.skip(g)
        features = through if features is None else features + through
        if "residual" not in self.convolutions:
            return None, None, features
        through = self.residual(g)
        return gate(above), through if h is None else h + through, features


class _Plain(_Layer):
    def __init__(self, inputs: int, features: int, k: int, first: bool, context_width: int) -> None:
        super().__init__()
        self.first, self.reach = first, k // 2
        if first:
            outputs = features
            self.convolutions = {}
        else:
            inputs = outputs = max(1, features // 2)
            self.convolutions = {
                "reduce": (features, inputs, (1, 1), True),
                "expand": (inputs, features, (1, 1), True),
            }
        self.convolutions["above"] = (inputs, outputs, (self.reach, k), True)
        self.convolutions["left"] = (inputs, outputs, (1, self.reach + (0 if first else 1)), False)
        self._build(context_width, outputs)

    def reset_parameters(self, num_layers: int) -> None:
        self._reset({"reduce": 2**0.5, "expand": (2 / num_layers) ** 0.5})

    def parameters_now(self) -> PlainLayer:
        found = dict.fromkeys(PlainLayer._fields) | self._pairs()
        found.pop("left_bias")
        return PlainLayer(**found)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        reach, skipped = self.reach, -1 if self.first else 0
        a = h if self.first else torch.relu(self.reduce(torch.relu(h)))
        a = self.above(functional.pad(a, (reach, reach, reach, -1))) + self.left(functional.pad(a, (reach, skipped)))
        if self.context is not None:
            a = a + self.context(context)[..., None, None]
        return a if self.first else h + self.expand(torch.relu(a))
