"""The Row LSTM as a module, computed by pyar.ops.pixel_rnn."""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.models.base import new_parameter
from pyar.models.pixel_rnn import PixelRNN, PixelRNNLayer, gate_bias, reset_gates
from pyar.ops.pixel_rnn import row_lstm_layer


class RowLSTMLayer(PixelRNNLayer):
    """A layer of the Row LSTM, see pyar.reference.row_lstm.

    Attributes:
        W: [2, 4h, F], of the pixel to the left and of the pixel itself; gates in the order i, f, g, o.
        U: [3, 4h, h], of the columns j − 1, j and j + 1 of the row above.
        b: [4h].
        Z: [4h, S], of the context; None without.
        up, up_bias: [F, h] and [F].
    """

    def __init__(self, features: int, hidden_size: int, channels: int, context_width: int) -> None:
        super().__init__(features, hidden_size)
        self.W = new_parameter(2, 4 * hidden_size, features)
        self.U = new_parameter(3, 4 * hidden_size, hidden_size)
        self.b = new_parameter(4 * hidden_size)
        self.Z = new_parameter(4 * hidden_size, context_width) if context_width else None

    @torch.no_grad()
    def reset_parameters(self, num_layers: int) -> None:
        reset_gates(self.W, self.U, self.b, self.Z)
        self.W /= len(self.W) ** 0.5
        self._reset_up(num_layers)

    def weights(self, context: Tensor | None) -> list[Tensor]:
        return [self.W, self.U, gate_bias(self.b, self.Z, context), self.up, self.up_bias]

    def forward(self, x: Tensor, image: Tensor, context: Tensor | None) -> Tensor:
        return row_lstm_layer(x, *self.weights(context))


class RowLSTM(PixelRNN):
    r"""An LSTM that goes down the rows of an image, for all its columns at once.

    The state of a pixel comes from three pixels of the row above, its input from the pixel itself and the one to its
    left in the map x below,

        (i, f, g, o) = K^ss ⊛ h_{i−1} + K^is ⊛ x_i,   c_i = σ(f) ⊙ c_{i−1} + σ(i) ⊙ tanh(g),   h_i = σ(o) ⊙ tanh(c_i)

    and a layer adds up · h_i to x_i. So a pixel sees a triangle of the pixels above it. A sample costs about one
    forward pass in all.

    Reference: van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.1,
    https://arxiv.org/abs/1601.06759.

    Args:
        image_shape: (height, width), or (height, width, channels); D = height·width·channels.
        num_states: K, 2 … 256.
        hidden_size: h, the hidden units of a layer; the map between the layers has 2h features.
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
        >>> model = pyar.RowLSTM((8, 8), num_states=4, hidden_size=8, num_layers=2)
        >>> x = model.sample(5, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([5, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([5])
    """

    name = "row-lstm"
    layer = RowLSTMLayer
