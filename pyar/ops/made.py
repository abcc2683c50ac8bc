"""MADE's operations: log-probability and logits through masked dense layers, sampling with every unit computed once.

The masked autoencoder for distribution estimation (Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for
Distribution Estimation", ICML 2015, https://arxiv.org/abs/1502.03509); its equations are in pyar.reference.made. Every
function takes the parameters, float32 and on one device, in this order:

    W [D, K−1, H_1], or [D, H_1] for the scalar input x/(K−1) · c [H_1] ·
    hidden (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) · V [D, P, H_L] · b [D, P] ·
    A [D, K−1, D, P], or [D, D, P] for scalar input, or None · activation "relu", "sigmoid" or "tanh"

with P = 1 for K = 2 states and P = K otherwise. What a mask hides is never read: it may hold any number.

Log-probabilities and logits are torch's own matrix products, differentiable in all parameters as often as one likes; in
torch.autocast the products have its precision. Sampling is one native call on the CPU; elsewhere the same steps as
products of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.ops.validate import (
    check_dimensions,
    check_given,
    check_layers,
    check_parameters,
    check_seed,
    check_states,
    check_temperature,
)
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.draw import draw, log_probability
from pyar.reference.made import degrees, encode
from pyar.reference.philox import indexed_uniforms


def made_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None = None,
    activation: str = "relu",
    *,
    steps: Tensor | None = None,
    unit_degrees: Sequence[Tensor] | None = None,
    temperature: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """log p(x) = Σ_d log p(x_d | the dimensions before d), exact, in nats: [B] float32.

    Args:
        x: uint8 or int64 [B, D], states 0 … K−1.
        steps: int64 [D], the step at which every dimension is visited; None for 0 … D−1.
        unit_degrees: int64 [H_l] for every hidden layer; None for degrees dealt out evenly and sorted.
        temperature: positive; divides the logits of every conditional.
        dropout: the part of the hidden units that is left out, drawn from torch's default generator.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds a state out of range.
    """
    x = _check(x, W, c, hidden, V, b, A, activation)
    outputs = _masked_outputs(x, W, c, hidden, V, b, A, activation, steps, unit_degrees, dropout)
    return log_probability(outputs if temperature == 1.0 else outputs / temperature, x).sum(dim=1)


def made_logits(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None = None,
    activation: str = "relu",
) -> Tensor:
    """The conditionals' logits given x_{<d}: float32 [B, D, K], or for K = 2 the Bernoulli logits [B, D].

    Args, Raises: as made_log_prob.
    """
    x = _check(x, W, c, hidden, V, b, A, activation)
    outputs = _masked_outputs(x, W, c, hidden, V, b, A, activation)
    return outputs.squeeze(-1) if V.shape[1] == 1 else outputs


def made_sample(
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None = None,
    activation: str = "relu",
    *,
    seed: Tensor,
    indices: Tensor,
    temperature: float = 1.0,
    given: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples of a seed, one for each of `indices`, with sorted degrees: one masked pass in all, not D.

    Sample i of a seed is the same whatever the batch and the number of threads: state d of sample i is the inverse CDF
    of the conditional at the uniform of (seed, i, d), see pyar.random.

    Args:
        seed: int64 [], the seed's 64 bits, on the parameters' device; pyar.random.resolve_seed makes it.
        indices: int64 [N], the samples' numbers, at least 0.
        temperature: positive; divides the logits.
        given: uint8 or int64 [N, G], or [G] for all samples alike: the first G steps, which are not drawn.
        dims: int64 [D], the dimension that every step visits, whose number its uniform has; None for 0 … D−1.

    Returns:
        x uint8 [N, D], a column a step, and float32 [N], in nats, the log-probability of what was drawn under the
        distribution it was drawn from. Neither is differentiable.

    Raises:
        TypeError, ValueError: as made_log_prob, or an argument is not as described.
        RuntimeError: logits are NaN or infinite, so that there is nothing to draw from.
    """
    K = _check_parameters(W, c, hidden, V, b, A, activation)
    check_temperature(temperature)
    check_seed(seed, V.device)
    given = check_given(given, len(indices), V.shape[0], K, V.device)
    with torch.no_grad():
        if V.device.type == "cpu" and native.has_kernels("cpu"):
            place = list(ACTIVATIONS).index(activation)
            return torch.ops.pyar.made_sample(
                W, c, list(hidden), V, b, A, place, seed, indices, float(temperature), given, dims
            )
        if V.device.type == "cpu":
            native.warn_reference("cpu")
        return cached_sample(W, c, hidden, V, b, A, activation, seed, indices, temperature, given, dims)


def cached_sample(
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None,
    activation: str,
    seed: Tensor,
    indices: Tensor,
    temperature: float = 1.0,
    given: Tensor | None = None,
    dims: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`made_sample` on any device: step d computes the units of degree d, in one product a layer, then output d."""
    D, P, _ = V.shape
    K, N, G = 2 if P == 1 else P, len(indices), 0 if given is None else given.shape[1]
    scalar, f = W.dim() == 2, ACTIVATIONS[activation]
    inputs = 1 if scalar else K - 1  # numbers a dimension
    layers = [(W.flatten(0, -2).T, c), *zip(hidden[::2], hidden[1::2], strict=True)]
    # slices[l][d]: where the units of layer l that have degree d begin.
    every_degree = torch.arange(D + 1)
    slices = [torch.searchsorted(degrees(D, len(bias)), every_degree).tolist() for _, bias in layers]
    u = indexed_uniforms(int(seed), indices, D)
    u = u if dims is None else u[:, dims]
    x = torch.zeros(N, D, dtype=torch.uint8, device=V.device)
    total = b.new_zeros(N)
    e = b.new_zeros(N, D * inputs)
    units = [b.new_zeros(N, len(bias)) for _, bias in layers]
    for d in range(D):
        below, known = e, d * inputs
        for (weight, bias), h, begins in zip(layers, units, slices, strict=True):
            first, last = begins[d], begins[d + 1]
            if last > first:
                h[:, first:last] = f(torch.addmm(bias[first:last], below[:, :known], weight[first:last, :known].T))
            below, known = h, last
        if d < G:
            x[:, d] = given[:, d]
        else:
            outputs = torch.addmm(b[d], below[:, :known], V[d, :, :known].T)
            if A is not None:
                outputs = outputs + e[:, : d * inputs] @ A[:d, ..., d, :].reshape(-1, P)
            outputs = outputs / temperature
            x[:, d] = draw(outputs, u[:, d])
            total += log_probability(outputs, x[:, d])
        e[:, d * inputs : (d + 1) * inputs] = encode(x[:, d : d + 1], K, e, scalar).flatten(1)
    return x, total


def _masked_outputs(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None,
    activation: str,
    steps: Tensor | None = None,
    unit_degrees: Sequence[Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The conditionals' outputs [B, D, P], float32."""
    D, P, _ = V.shape
    f, scalar = ACTIVATIONS[activation], W.dim() == 2
    steps = torch.arange(D, device=W.device) if steps is None else steps
    if unit_degrees is None:
        unit_degrees = [degrees(D, len(bias), W.device) for bias in (c, *hidden[1::2])]
    e = encode(x, 2 if P == 1 else P, W, scalar).flatten(1)

    before = steps[:, None] < unit_degrees[0]
    h = f(torch.addmm(c, e, torch.where(before if scalar else before[:, None], W, 0.0).flatten(0, -2)))
    h = functional.dropout(h, dropout, training=dropout > 0)
    layers = zip(hidden[::2], hidden[1::2], unit_degrees[:-1], unit_degrees[1:], strict=True)
    for weight, bias, below, above in layers:
        h = f(functional.linear(h, torch.where(below <= above[:, None], weight, 0.0), bias))
        h = functional.dropout(h, dropout, training=dropout > 0)
    seen = (unit_degrees[-1] <= steps[:, None])[:, None]
    outputs = functional.linear(h, torch.where(seen, V, 0.0).flatten(0, 1), b.flatten())
    if A is not None:
        before = (steps[:, None] < steps)[..., None]
        outputs = outputs + e @ torch.where(before if scalar else before[:, None], A, 0.0).flatten(-2).flatten(0, -2)
    return outputs.float().view(-1, D, P)


def _check_parameters(
    W: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, A: Tensor | None, activation: str
) -> int:
    """Raises TypeError or ValueError for parameters that do not fit together; returns the number of states K."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    check_dimensions("V", V, "[D, P, H]", 3)
    check_dimensions("c", c, "[H]", 1)
    check_dimensions("W", W, "[D, K-1, H] or [D, H]", 2, 3)
    D, P, _ = V.shape
    K = 2 if P == 1 else P
    if K > 256:
        raise ValueError(f"V must have at most 256 rows for each dimension, one a state, got {P}")
    layers, units = check_layers(hidden, len(c))
    states = () if W.dim() == 2 else (K - 1,)
    expected = [("V", V, (D, P, units)), ("W", W, (D, *states, len(c))), ("c", c, (len(c),)), ("b", b, (D, P)), *layers]
    if A is not None:
        expected.append(("A", A, (D, *states, D, P)))
    check_parameters(expected)
    return K


def _check(
    x: Tensor, W: Tensor, c: Tensor, hidden: Sequence[Tensor], V: Tensor, b: Tensor, A: Tensor | None, activation: str
) -> Tensor:
    """Checks all arguments; returns x as uint8."""
    K = _check_parameters(W, c, hidden, V, b, A, activation)
    return check_states("x", x, V.shape[0], K, V.device)


def _fake_sample(W, c, hidden, V, b, A, activation, seed, indices, temperature, given, dims):
    N = indices.shape[0]
    return torch.empty(N, V.shape[0], dtype=torch.uint8, device=V.device), b.new_empty(N)


if native._C is not None:
    torch.library.register_fake("pyar::made_sample", _fake_sample)
    torch.library.register_autocast("pyar::made_sample", "cpu", torch.float32)
