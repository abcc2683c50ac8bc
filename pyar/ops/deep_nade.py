"""DeepNADE's operations: the outputs given what is seen, and walks along any order, for many rows at once.

One network for the conditionals of every order (Uria, Murray & Larochelle, ICML 2014, https://arxiv.org/abs/1310.1757;
Uria et al., JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html); its equations are in pyar.reference.deep_nade.
Every function takes the parameters, float32 and on one device, in this order:

    W [D, K−1, H_1] · U [D, H_1] · c [H_1] · hidden (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) ·
    V [D, P, H_L] · b [D, P] · activation "relu", "sigmoid" or "tanh"

with P = 1 for K = 2 states and P = K otherwise. A walk carries the first layer's sum along, a ← a + U_i + W_i[x_i], so
that a step costs the dense layers and one row of outputs. On the CPU a walk whose gradient nobody wants is one native
call, in float32, with the same bits for every batch and number of threads; behind a ReLU only the units that are active
are added up. Where a gradient is wanted, within torch.func's transforms and on other devices, it is torch's own
products, differentiable in all parameters; in torch.autocast these have its precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.ops.any_order import is_native, last_units
from pyar.ops.validate import (
    check_dimensions,
    check_layers,
    check_parameters,
    check_seed,
    check_states,
    check_temperature,
    has_values,
)
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.draw import draw, log_probability
from pyar.reference.philox import indexed_uniforms


def deep_nade_outputs(
    x: Tensor,
    observed: Tensor,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str = "relu",
    *,
    dropout: float = 0.0,
) -> Tensor:
    """The outputs of every dimension given the observed ones, in one pass: [B, D, P] float32.

    Args:
        x: uint8 or int64 [B, D], states 0 … K−1; only its observed entries matter.
        observed: bool [B, D]. The outputs of dimensions that are observed mean nothing.
        dropout: the part of the hidden units that is left out, drawn from torch's default generator.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds a state out of range.
    """
    K = _check_parameters(W, U, c, hidden, V, b, activation)
    x = check_states("x", x, len(V), K, V.device)
    seen = observed.to(U.dtype)
    if K == 2:
        states = x.to(W.dtype) * seen
    else:
        states = ((x[..., None] == torch.arange(1, K, device=x.device)) & observed[..., None]).to(W.dtype).flatten(1)
    a = torch.addmm(torch.addmm(c, seen, U), states, W.flatten(0, 1))
    h = last_units(a, hidden, activation, dropout)
    return functional.linear(h, V.flatten(0, 1), b.flatten()).float().view(-1, *b.shape)


def deep_nade_log_prob(
    x: Tensor,
    order: Tensor,
    begin: Tensor,
    end: Tensor,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str = "relu",
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Σ_{s = begin}^{end−1} log p(x_{o(s)} | x_{o(0)} … x_{o(s−1)}) in nats, for every row: [R] float32.

    Args:
        x: uint8 or int64 [R, D], states 0 … K−1; only what the walk visits matters.
        order: int64 [R, D], a permutation o for every row.
        begin, end: int64 [R], 0 ≤ begin ≤ end ≤ D.
        temperature: positive; divides the logits of every conditional.

    Raises:
        TypeError, ValueError: as deep_nade_outputs.
    """
    K = _check_parameters(W, U, c, hidden, V, b, activation)
    x = check_states("x", x, len(V), K, V.device)
    temperature = check_temperature(temperature)
    if is_native(W, U, c, *hidden, V, b):
        place = list(ACTIVATIONS).index(activation)
        return torch.ops.pyar.deep_nade_log_prob(x, order, begin, end, W, U, c, list(hidden), V, b, place, temperature)
    total = b.new_zeros(len(x), dtype=torch.float32)
    for step in _walk(x, order, begin, end, W, U, c, hidden, V, b, activation, temperature):
        state = x.gather(1, step.dims[:, None]).squeeze(1)
        total = total + torch.where(step.active, log_probability(step.outputs, state), 0.0)
        step.state = state
    return total


def deep_nade_path_outputs(
    x: Tensor,
    order: Tensor,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str = "relu",
) -> Tensor:
    """The outputs of x_{o(s)} given x_{o(0)} … x_{o(s−1)} for every step s: [R, D, P] float32, a column a step.

    Args:
        x: uint8 or int64 [R, D], states 0 … K−1.
        order: int64 [R, D], a permutation o for every row.

    Raises:
        TypeError, ValueError: as deep_nade_outputs.
    """
    K = _check_parameters(W, U, c, hidden, V, b, activation)
    x = check_states("x", x, len(V), K, V.device)
    if is_native(W, U, c, *hidden, V, b):
        place = list(ACTIVATIONS).index(activation)
        return torch.ops.pyar.deep_nade_path_outputs(x, order, W, U, c, list(hidden), V, b, place)
    begin = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    columns = [b.new_zeros(0, V.shape[1])] * len(V) if len(x) == 0 else []
    for step in _walk(x, order, begin, begin + len(V), W, U, c, hidden, V, b, activation, 1.0):
        columns.append(step.outputs)
        step.state = x.gather(1, step.dims[:, None]).squeeze(1)
    return torch.stack(columns, dim=1)


def deep_nade_sample(
    x: Tensor,
    order: Tensor,
    begin: Tensor,
    end: Tensor,
    W: Tensor,
    U: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    activation: str = "relu",
    *,
    seed: Tensor,
    indices: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draws x_{o(begin)} … x_{o(end−1)} of every row given what comes before in its order.

    The state drawn for dimension d of sample i is the inverse CDF of the conditional at the uniform of (seed, i, d), in
    every order, see pyar.random.

    Args:
        x: uint8 or int64 [R, D]; its states at steps before `begin` are read, those behind overwritten in the result.
        order, begin, end, temperature: as deep_nade_log_prob.
        seed: int64 [], the seed's 64 bits; pyar.random.resolve_seed makes it.
        indices: int64 [R], the samples' numbers.

    Returns:
        x uint8 [R, D], zero where the walk did not come, and float32 [R], in nats, the log-probability of what was
        drawn under the distribution it was drawn from.

    Raises:
        TypeError, ValueError: as deep_nade_outputs.
        RuntimeError: logits are NaN or infinite, so that there is nothing to draw from.
    """
    K = _check_parameters(W, U, c, hidden, V, b, activation)
    temperature = check_temperature(temperature)
    check_seed(seed, V.device)
    x = torch.where(_visited(order, begin), x, 0)
    x = check_states("x", x, len(V), K, V.device)
    with torch.no_grad():
        if is_native(V):
            place = list(ACTIVATIONS).index(activation)
            return torch.ops.pyar.deep_nade_sample(
                x, order, begin, end, W, U, c, list(hidden), V, b, place, seed, indices, temperature
            )
    x = x.clone()
    u = indexed_uniforms(int(seed), indices, len(V))
    total = b.new_zeros(len(x), dtype=torch.float32)
    with torch.no_grad(), torch.autocast(V.device.type, enabled=False):
        for step in _walk(x, order, begin, end, W, U, c, hidden, V, b, activation, temperature):
            place = step.dims[:, None]
            outputs = torch.where(step.active[:, None], step.outputs, 0.0)
            state = draw(outputs, u.gather(1, place).squeeze(1)).to(torch.uint8)
            total += torch.where(step.active, log_probability(outputs, state), 0.0)
            step.state = torch.where(step.active, state, x.gather(1, place).squeeze(1))
            x.scatter_(1, place, step.state[:, None])
    return x, total


class _Step:
    """One step of a walk, the same for all rows: the dimensions they visit, their outputs, whether they are under way.

    Whoever walks sets `state`, the states [R] to go on with.
    """

    def __init__(self, dims: Tensor, outputs: Tensor, active: Tensor) -> None:
        self.dims, self.outputs, self.active = dims, outputs, active
        self.state: Tensor | None = None


def _walk(x: Tensor, order: Tensor, begin: Tensor, end: Tensor, *arguments: Any) -> Iterator[_Step]:
    """Yields the steps begin, begin + 1, … of every row until all have come to their end."""
    W, U, c, hidden, V, b, activation, temperature = arguments
    known = _visited(order, begin)
    K = W.shape[1] + 1
    states = ((x[..., None] == torch.arange(1, K, device=x.device)) & known[..., None]).to(W.dtype).flatten(1)
    a = torch.addmm(torch.addmm(c, known.to(U.dtype), U), states, W.flatten(0, 1)).float()
    # A row of zeros for state 0, behind the others.
    rows = torch.cat((W.flatten(0, 1), W.new_zeros(1, W.shape[2])))
    last = x.shape[1] - 1
    # Where all rows go the same way, a step's output rows are the same matrix for all.
    same = has_values(x) and len(x) > 0 and bool((order == order[:1]).all() and (begin == begin[:1]).all())
    for s in range(int((end - begin).max()) if len(x) else 0):
        active = begin + s < end
        dims = order.gather(1, (begin + s).clamp(max=last)[:, None]).squeeze(1)
        h = last_units(a, hidden, activation)
        if same:
            outputs = torch.addmm(b[dims[0]], h, V[dims[0]].T).float()
        else:
            outputs = torch.einsum("rph,rh->rp", V[dims], h).float() + b[dims]
        step = _Step(dims, outputs if temperature == 1.0 else outputs / temperature, active)
        yield step
        assert step.state is not None
        state = step.state.long()
        row = torch.where(state > 0, dims * (K - 1) + state - 1, len(rows) - 1)
        a = a + U[dims] + rows[row]


def _visited(order: Tensor, count: Tensor) -> Tensor:
    """Which dimensions are among the first `count` of every row's order: bool [R, D]."""
    position = torch.arange(order.shape[1], device=order.device)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, position < count[:, None])


def _check_parameters(
    W: Tensor, U: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, activation: str
) -> int:
    """Raises TypeError or ValueError for parameters that do not fit together; returns the number of states K."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    check_dimensions("V", V, "[D, P, H]", 3)
    check_dimensions("c", c, "[H]", 1)
    check_dimensions("W", W, "[D, K-1, H]", 3)
    D, P, _ = V.shape
    K = 2 if P == 1 else P
    if K > 256:
        raise ValueError(f"V must have at most 256 rows for each dimension, one a state, got {P}")
    layers, units = check_layers(hidden, len(c))
    H = len(c)
    expected = [("V", V, (D, P, units)), ("W", W, (D, K - 1, H)), ("U", U, (D, H)), ("c", c, (H,)), ("b", b, (D, P))]
    check_parameters(expected + layers)
    return K


# What torch needs to know about the native operations.


def _fake_log_prob(x, order, begin, end, W, U, c, hidden, V, b, activation, temperature):
    return b.new_empty(x.shape[0])


def _fake_path_outputs(x, order, W, U, c, hidden, V, b, activation):
    return b.new_empty(x.shape[0], *b.shape)


def _fake_sample(x, order, begin, end, W, U, c, hidden, V, b, activation, seed, indices, temperature):
    return torch.empty(x.shape, dtype=torch.uint8, device=x.device), b.new_empty(x.shape[0])


if native._C is not None:
    for name, fake in {
        "deep_nade_log_prob": _fake_log_prob,
        "deep_nade_path_outputs": _fake_path_outputs,
        "deep_nade_sample": _fake_sample,
    }.items():
        torch.library.register_fake(f"pyar::{name}", fake)
        torch.library.register_autocast(f"pyar::{name}", "cpu", torch.float32)
