"""What the operations of models for any order share: their layers, and when a walk is a native call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from pyar.ops.transforms import leaves_to_kernels, needs_gradient
from pyar.reference.activations import ACTIVATIONS


def last_units(a: Tensor, hidden: Sequence[Tensor], activation: str, dropout: float = 0.0) -> Tensor:
    """The last layer's units from the first one's sums: [R, H_1] → [R, H_L].

    Args:
        hidden: weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …
        dropout: the part of the units that is left out, drawn from torch's default generator.
    """
    f = ACTIVATIONS[activation]
    h = functional.dropout(f(a), dropout, training=dropout > 0)
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        h = functional.dropout(f(functional.linear(h, weight, bias)), dropout, training=dropout > 0)
    return h


def is_native(*parameters: Tensor) -> bool:
    """Whether a walk is a native call; says so if it would be one, were the extension there."""
    return not needs_gradient(parameters) and leaves_to_kernels(parameters[0])
