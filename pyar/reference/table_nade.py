"""TableNADE, one network for the conditionals of a table's columns in every order, in plain PyTorch.

As DeepNADE (pyar.reference.deep_nade), but every column has its own inputs φ_i and its own outputs: given the columns S
that are seen, every other column d has the distribution that its conditional makes of outputs_d,

    outputs_d = V_d h + b_d
    h = f(c + Σ_{i ∈ S} (U_i + φ_i(x_i) W_i)),   h ← f(weight h + bias) for every further layer

The rows of W and V of all columns stand one below the other. The arguments everywhere are

    x [B, D], values in columns of any kind, NaN nowhere · columns, a Conditional each ·
    parameters = (W [ΣF_i, H_1], U [D, H_1], c [H_1], hidden = (weight_2 [H_2, H_1], bias_2 [H_2], …), V [ΣP_d, H_L],
    b [ΣP_d]) · activation f, a name in ACTIVATIONS
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyar.reference.activations import ACTIVATIONS
from pyar.reference.conditionals import Conditional
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms

Parameters = tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Tensor, Tensor]


def outputs(
    x: Tensor, observed: Tensor, columns: Sequence[Conditional], parameters: Parameters, activation: str
) -> tuple[Tensor, ...]:
    """The outputs [B, P_d] of every column given those that are observed, bool [B, D].

    Only those of columns that are not observed mean anything.
    """
    W, U, c, hidden, V, b = parameters
    f = ACTIVATIONS[activation]
    seen = observed.to(U.dtype)
    inputs = [column.inputs(x[:, d]) * seen[:, d, None] for d, column in enumerate(columns)]
    h = f(c + seen @ U + torch.cat(inputs, dim=1) @ W)
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        h = f(bias + h @ weight.T)
    return (h @ V.T + b).split([column.num_outputs for column in columns], dim=1)


def log_probs(
    x: Tensor, observed: Tensor, columns: Sequence[Conditional], parameters: Parameters, activation: str
) -> Tensor:
    """log p(x_d | x_observed) in nats of every column that is not observed, and zero of the others: [B, D]."""
    parts = outputs(x, observed, columns, parameters, activation)
    result = [column.log_prob(part, x[:, d]) for d, (column, part) in enumerate(zip(columns, parts, strict=True))]
    return torch.stack(result, dim=1).masked_fill(observed, 0.0)


def path_log_probs(
    x: Tensor,
    order: Tensor,
    observed: Tensor,
    target: Tensor,
    columns: Sequence[Conditional],
    parameters: Parameters,
    activation: str,
) -> Tensor:
    """log p(x_d | x_observed, the target's columns before d in the order) in nats: [B, D], zero outside the target.

    Args:
        order: int64 [B, D], a permutation for every row.
        observed, target: bool [B, D], without a common column.
    """
    seen = observed.clone()
    total = torch.zeros_like(x)
    for d in order.unbind(1):
        step = torch.nn.functional.one_hot(d, x.shape[1]).bool() & target
        total = torch.where(step, log_probs(x, seen, columns, parameters, activation), total)
        seen = seen | step
    return total


def sample(
    x: Tensor,
    order: Tensor,
    observed: Tensor,
    columns: Sequence[Conditional],
    parameters: Parameters,
    activation: str,
    seed: int,
    first_index: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draws what is not observed, in every row's order. Row i is sample first_index + i of the seed.

    Returns:
        x with what was drawn, and the log-probabilities [B, D] of that, zero where a column is observed.

    Raises:
        RuntimeError: outputs are NaN or infinite.
    """
    index = first_index + torch.arange(len(x), device=x.device)
    u, v = indexed_uniforms(seed, index, x.shape[1]), indexed_fine_uniforms(seed, index, x.shape[1], number=1)
    x, seen, total = torch.where(observed, x, 0.0), observed.clone(), torch.zeros_like(x)
    for step in order.unbind(1):
        parts = outputs(x, seen, columns, parameters, activation)
        drawn = [
            column.draw(part, u[:, d], v[:, d]) for d, (column, part) in enumerate(zip(columns, parts, strict=True))
        ]
        now = torch.nn.functional.one_hot(step, x.shape[1]).bool() & ~seen
        x = torch.where(now, torch.stack(drawn, dim=1).to(x.dtype), x)
        total = torch.where(now, log_probs(x, seen, columns, parameters, activation), total)
        seen = seen | now
    return x, total
