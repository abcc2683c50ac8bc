"""What the samplers of image models share where there are no kernels: from a pixel's features to its states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import uniforms
from pyar.reference.plane import HeadParameters, mixture_log_probabilities

Output = Literal["softmax", "logistic-mixture"]


class PixelDraws:
    """Draws pixel after pixel, channel after channel, and keeps what it has drawn.

    Args:
        head: the output head's parameters, on the device to draw on.
        num_states: K.
        output: what the head's outputs are.
        num_pixels: of an image.
        seed, num_samples, first_index, temperature, given, dims: as the samplers of the operations take them.

    Attributes:
        x: uint8 [N, D], what is drawn or given so far; a column a step.
        log_prob: [N], in nats, of what is drawn so far.
    """

    def __init__(
        self,
        head: HeadParameters,
        num_states: int,
        output: Output,
        num_pixels: int,
        seed: Tensor,
        num_samples: int,
        first_index: int,
        temperature: float,
        given: Tensor | None,
        dims: Tensor | None,
    ) -> None:
        self.head, self.num_states, self.output, self.temperature = head, num_states, output, temperature
        self.channels = len(head.V)
        u = uniforms(int(seed), first_index, num_samples, num_pixels * self.channels, head.W.device)
        self.u = u if dims is None else u[:, dims]
        self.x = torch.zeros_like(u, dtype=torch.uint8)
        self.log_prob = head.W.new_zeros(num_samples)
        self.num_given = 0 if given is None else given.shape[1]
        if given is not None:
            self.x[:, : self.num_given] = given

    def pixel(self, number: int, features: Tensor) -> Tensor:
        """The states uint8 [N, C] of a pixel, drawn from its features [N, F] but for what is given."""
        steps = range(number * self.channels, (number + 1) * self.channels)
        if steps.stop > self.num_given:
            W, w, E, V, b = self.head
            a = torch.addmm(w, torch.relu(features), W.T)
            for c, step in enumerate(steps):
                if step < self.num_given:
                    continue
                h = a
                for j in range(c):
                    h = h + E[c * (c - 1) // 2 + j][self.x[:, steps.start + j].long()]
                outputs = functional.linear(torch.relu(h), V[c], b[c])
                if self.output == "logistic-mixture":
                    outputs = mixture_log_probabilities(outputs, self.num_states)
                outputs = outputs / self.temperature
                self.x[:, step] = draw(outputs, self.u[:, step])
                self.log_prob += log_probability(outputs, self.x[:, step])
        return self.x[:, steps.start : steps.stop]
