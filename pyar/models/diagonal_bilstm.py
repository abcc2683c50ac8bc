"""The Diagonal BiLSTM as a module, computed by pyar.ops.pixel_rnn."""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.models.base import new_parameter
from pyar.models.pixel_rnn import PixelRNN, PixelRNNLayer, gate_bias, reset_gates
from pyar.ops.pixel_rnn import diagonal_bilstm_layer


class DiagonalBiLSTMLayer(PixelRNNLayer):
    """A layer of the Diagonal BiLSTM, see pyar.reference.diagonal_bilstm.

    Attributes:
        W_left, W_right: [4h, F] and [4h, F + C], of the two directions; gates in the order i, f, g, o.
        U_left, U_right: [2, 4h, h], of the pixel beside and of the pixel above.
        b_left, b_right: [4h].
        Z_left, Z_right: [4h, S], of the context; None without.
        up, up_bias: [F, h] and [F].
    """

    def __init__(self, features: int, hidden_size: int, channels: int, context_width: int) -> None:
        super().__init__(features, hidden_size)
        for direction, inputs in (("left", features), ("right", features + channels)):
            setattr(self, f"W_{direction}", new_parameter(4 * hidden_size, inputs))
            setattr(self, f"U_{direction}", new_parameter(2, 4 * hidden_size, hidden_size))
            setattr(self, f"b_{direction}", new_parameter(4 * hidden_size))
            Z = new_parameter(4 * hidden_size, context_width) if context_width else None
            setattr(self, f"Z_{direction}", Z)

    @torch.no_grad()
    def reset_parameters(self, num_layers: int) -> None:
        for direction in ("left", "right"):
            reset_gates(*(getattr(self, f"{name}_{direction}") for name in "WUbZ"))
        self._reset_up(num_layers)

    def weights(self, context: Tensor | None) -> list[Tensor]:
        left = [self.W_left, self.U_left, gate_bias(self.b_left, self.Z_left, context)]
        right = [self.W_right, self.U_right, gate_bias(self.b_right, self.Z_right, context)]
        return [*left, *right, self.up, self.up_bias]

    def forward(self, x: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        return diagonal_bilstm_layer(x, image, *self.weights(context))


class DiagonalBiLSTM(PixelRNN):
    r"""Two LSTMs a layer that go over the diagonals of an image, one from the left and one from the right.

    The state of a pixel comes from the pixel beside it and the pixel above, its input from the pixel itself in the map
    x below,

        (i, f, g, o) = K^ss ⊛ h_{i−1} + K^is x_i,   c_i = σ(f) ⊙ c_{i−1} + σ(i) ⊙ tanh(g),   h_i = σ(o) ⊙ tanh(c_i)

    where i counts diagonals, and a layer adds up · (h from the left + h from the right) to x; the states from the right
    are moved down by one row and also read the pixel at their own place, so that every pixel sees all before it and
    nothing else. A sample costs about one forward pass in all.

    Reference: van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.2,
    https://arxiv.org/abs/1601.06759.

    Args:
        image_shape: (height, width), or (height, width, channels); D = height·width·channels.
        num_states: K, 2 … 256.
        hidden_size: h, the hidden units of a layer in each direction; the map between the layers has 2h features.
        num_layers: the number of recurrent layers.
        head_size: M, the hidden units of the output head; 2h if it is not given.
        output: "softmax", or "logistic-mixture" for grey values: a mixture of logistic distributions.
        num_mixtures: distributions in the logistic mixture.
        num_classes: the model is one given a label 0 … num_classes − 1.
        context_size: the model is one given so many features.
        scan: the way along a line of pixels, and from line to line. "right-down" is row by row from the top; "right-up"
            has the bottom half first, "down-right" the left half, "down-left" the right half.

    Labels or features are the `context` of every method that computes or draws, and go into every gate.

    Attributes:
        above, left: torch.nn.Conv2d of the first layer, what mask A leaves of a 7×7 convolution.
        layers: torch.nn.ModuleList of the recurrent layers.
        head: the output head: a hidden layer, and a torch.nn.Linear for every channel.

    Example:
        >>> model = pyar.DiagonalBiLSTM((8, 8), num_states=4, hidden_size=8, num_layers=2)
        >>> x = model.sample(5, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([5, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([5])
    """

    name = "diagonal-bilstm"
    layer = DiagonalBiLSTMLayer
