"""PixelLSTM as a module: torch.nn.LSTM's parameters, computed by pyar.ops.lstm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyar.models.base import AutoregressiveModel, positive_int
from pyar.models.layers import check_linear, check_lstm, linear_parameters, lstm_parameters, require_parameter
from pyar.ops.lstm import (
    lstm_conditional_log_prob,
    lstm_log_prob,
    lstm_logits,
    lstm_sample,
    round_weights,
    step_inputs,
)
from pyar.scalars import plain_integer


class PixelLSTM(AutoregressiveModel):
    r"""An LSTM that reads the dimensions one after the other and predicts the next.

        p(x_d = k | x_{<d}) = softmax_k(head(h_d)),     (h_d, c_d) = LSTM(x_{d−1}, (h_{d−1}, c_{d−1}))

    where h_d is the last layer's output; at step 0 the input and the state are zero.

    Reference: the one-dimensional case of van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks",
    ICML 2016, https://arxiv.org/abs/1601.06759; the cell is Hochreiter & Schmidhuber's (1997) as torch.nn.LSTM has it.

    Args:
        dim: D, the number of dimensions.
        num_states: K, 2 … 256.
        hidden_size: H, the number of hidden units of a layer.
        num_layers: the number of layers, 1 … 4.
        input: "onehot", or "scalar" for the number x/(K−1).
        checkpoint_steps: gradients of log_prob keep the state of every checkpoint_steps-th step alone and compute the
            steps between them again, for a fraction of the memory; 0 keeps every step, None decides by their size. The
            numbers are the same.
        weight_dtype: "float32", or "bfloat16" for the model whose weight_hh, and weight_ih of all layers but the first,
            are rounded to bfloat16; see below.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.

    weight_dtype="bfloat16" is another distribution, as exact as the first: log_prob, logits, sample and complete all
    use the rounded weights, so that Σ p = 1 and the log-probability that comes with a sample is its log_prob. What it
    gains: sampling on the CPU stores these weights in 16 bits and so reads half as much in every step. That is faster
    for few samples of models too large for the processor's caches (H ≥ 512 or so); for small models and large batches
    it is not, and may be slower, since all arithmetic stays float32. What it costs: a relative error of up to 2⁻⁸ in
    each weight, whose effect on the NLL `pyar evaluate RUN --weight-dtype bfloat16` measures. The parameters stay
    float32, and gradients with respect to the rounded weights are handed to them as they are (straight-through), so
    that a model can be trained as it will be used. The attribute can be set at any time.

    torch.compile traces no module that holds a torch.nn.LSTM unless torch._dynamo.config.allow_rnn is True.

    Attributes:
        lstm: torch.nn.LSTM with batch_first=True; its input has K or 1 features.
        head: torch.nn.Linear(H, K).
        weight_dtype: "float32" or "bfloat16".

    Example:
        >>> model = pyar.PixelLSTM(dim=64, num_states=17, hidden_size=32)
        >>> x = model.sample(16, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([16, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([16])
    """

    name = "pixel-lstm"

    def __init__(
        self,
        dim: int,
        num_states: int = 2,
        hidden_size: int = 256,
        num_layers: int = 1,
        *,
        input: Literal["onehot", "scalar"] = "onehot",
        checkpoint_steps: int | None = None,
        weight_dtype: Literal["float32", "bfloat16"] = "float32",
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dim, num_states, order)
        if input not in ("onehot", "scalar"):
            raise ValueError(f"input must be 'onehot' or 'scalar', got {input!r}")
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.num_layers = positive_int("num_layers", num_layers)
        if self.num_layers > 4:
            raise ValueError(f"num_layers must be in 1 … 4, got {num_layers}")
        if checkpoint_steps is not None:
            checkpoint_steps = plain_integer("checkpoint_steps", checkpoint_steps)
            if checkpoint_steps < 0:
                raise ValueError(f"checkpoint_steps must not be negative, got {checkpoint_steps}")
        self.input = input
        self.checkpoint_steps = checkpoint_steps
        self.weight_dtype = weight_dtype
        features = self.num_states if input == "onehot" else 1
        self.lstm = nn.LSTM(features, self.hidden_size, self.num_layers, batch_first=True, dtype=torch.float32)
        self.head = nn.Linear(self.hidden_size, self.num_states, dtype=torch.float32)
        self.reset_parameters()

    @property
    def weight_dtype(self) -> str:
        return self._weight_dtype

    @weight_dtype.setter
    def weight_dtype(self, value: str) -> None:
        if value not in ("float32", "bfloat16"):
            raise ValueError(f"weight_dtype must be 'float32' or 'bfloat16', got {value!r}")
        self._weight_dtype = value

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Recurrent blocks orthogonal, W_ih ~ U(±√(1/H)) (one input at a time is not zero), head small.

        The forget gate starts at bias 1 (Jozefowicz, Zaremba & Sutskever 2015) and every other bias at 0, so that
        gradients reach far back from the first step of training.
        """
        bound = self.hidden_size**-0.5
        for layer in range(self.num_layers):
            nn.init.uniform_(getattr(self.lstm, f"weight_ih_l{layer}"), -bound, bound)
            for block in getattr(self.lstm, f"weight_hh_l{layer}").chunk(4):
                nn.init.orthogonal_(block)
            nn.init.zeros_(getattr(self.lstm, f"bias_hh_l{layer}"))
            bias = getattr(self.lstm, f"bias_ih_l{layer}")
            nn.init.zeros_(bias)
            nn.init.ones_(bias[self.hidden_size : 2 * self.hidden_size])
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> PixelLSTM:
        """Sets the head's bias so that an untrained model starts near the frequencies of the states over all of x.

        Args:
            x: uint8 or int64 [N, D], states 0 … K−1.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> x = torch.tensor([[0, 1], [0, 0]])
            >>> pyar.PixelLSTM(dim=2, hidden_size=8).initialize_from_marginals(x).head.bias.softmax(0)
            tensor([0.6667, 0.3333], grad_fn=<SoftmaxBackward0>)
        """
        x = self._steps(x)
        require_parameter("head.bias", self.head.bias)
        counts = torch.ones(self.num_states, dtype=torch.int64, device=x.device)
        for rows in x.split(1024):  # so that the int64 copy stays small
            counts += torch.bincount(rows.flatten(), minlength=self.num_states)
        self.head.bias.copy_(counts.double().log() - counts.sum().double().log())
        return self

    def _config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "input": self.input,
            "checkpoint_steps": self.checkpoint_steps,
            "weight_dtype": self.weight_dtype,
        }

    def _layers(self) -> dict[str, nn.Module]:
        features = self.num_states if self.input == "onehot" else 1
        check_lstm("lstm", self.lstm, features, self.hidden_size, self.num_layers)
        check_linear("head", self.head, self.hidden_size, self.num_states)
        return {"lstm": self.lstm, "head": self.head}

    def _weights(self) -> list[Tensor]:
        """weight_ih, weight_hh, bias_ih, bias_hh of every layer, as the operations take them."""
        return lstm_parameters(self.lstm)

    def _rounded_weights(self) -> list[Tensor]:
        """_weights() as weight_dtype has them."""
        return round_weights(self._weights(), getattr(torch, self.weight_dtype))

    def _log_prob(self, x: Tensor) -> Tensor:
        return lstm_log_prob(
            x, self._rounded_weights(), *linear_parameters(self.head), checkpoint_steps=self.checkpoint_steps
        )

    def _conditional_log_prob(self, x: Tensor) -> Tensor:
        return lstm_conditional_log_prob(
            x, self._rounded_weights(), *linear_parameters(self.head), checkpoint_steps=self.checkpoint_steps
        )

    def _logits(self, x: Tensor) -> Tensor:
        return lstm_logits(x, self._rounded_weights(), *linear_parameters(self.head))

    def _called_logits(self, x: Tensor) -> Tensor:
        if self.weight_dtype != "float32":
            raise RuntimeError(
                f"layers with hooks are computed in float32, but weight_dtype is {self.weight_dtype!r}: remove the "
                "hooks or set weight_dtype='float32'"
            )
        if x.shape[0] == 0:  # which torch.nn.LSTM refuses
            return self._logits(x)
        h, _ = self.lstm(step_inputs(x, self.lstm.weight_ih_l0, self.num_states))
        outputs = self.head(h)
        return outputs[..., 1] - outputs[..., 0] if self.num_states == 2 else outputs

    def _sample(
        self, num_samples: int, seed: Tensor, first_index: int, temperature: float, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return lstm_sample(
            self._weights(),
            *linear_parameters(self.head),
            seed=seed,
            num_samples=num_samples,
            num_dims=self.dim,
            first_index=first_index,
            temperature=temperature,
            given=given,
            weight_dtype=getattr(torch, self.weight_dtype),
        )
