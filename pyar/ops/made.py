"""MADE's operations: log-probability and logits through masked dense layers, sampling with every unit computed once.

The masked autoencoder for distribution estimation (Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for
Distribution Estimation", ICML 2015, https://arxiv.org/abs/1502.03509); its equations are in pyar.reference.made. Every
function takes the parameters, float32 and on one device, in this order:

    W [D, K−1, H_1], or [D, H_1] for the scalar input x/(K−1) · c [H_1] ·
    hidden (weight_2 [H_2, H_1], bias_2 [H_2], weight_3, …) · V [D, P, H_L] · b [D, P] ·
    A [D, K−1, D, P], or [D, D, P] for scalar input, or None · activation "relu", "sigmoid" or "tanh"

with P = 1 for K = 2 states and P = K otherwise. What a mask hides is never read: it may hold any number.

On the CPU log-probabilities, their gradients and samples are one native call each, in float32 whatever torch.autocast
says: degrees are sorted, so every masked matrix is a staircase, and only what lies below it is multiplied. Elsewhere,
under torch.func's transforms and for derivatives of gradients, the same is done by products of masked matrices, for the
whole batch. All are differentiable in all parameters as often as one likes. Results do not depend on the number of
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyar import native
from pyar.ops import transforms
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
    temperature: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """log p(x) = Σ_d log p(x_d | the dimensions before d), exact, in nats: [B] float32.

    Args:
        x: uint8 or int64 [B, D], states 0 … K−1.
        temperature: positive; divides the logits of every conditional.
        dropout: the part of the hidden units that is left out, drawn from torch's default generator.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds a state out of range.
    """
    x = _check(x, W, c, hidden, V, b, A, activation)
    check_temperature(temperature)
    factors = []
    if dropout > 0:
        factors = [functional.dropout(bias.new_ones(len(x), len(bias)), dropout) for bias in (c, *hidden[1::2])]
    if transforms.leaves_to_kernels(V):
        keep = transforms.needs_gradient((W, c, *hidden, V, b, *_given(A)))
        place = list(ACTIVATIONS).index(activation)
        return transforms.call(
            "made_log_prob", x, W, c, list(hidden), V, b, A, place, float(temperature), factors, keep
        )[0]
    return _log_prob(x, W, c, hidden, V, b, A, activation, temperature, factors)


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


class _Permute(torch.autograd.Function):
    """`permute` along one dimension. The derivative is the inverse permutation; torch's own would add up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, dim: int, permutation: Tensor) -> Tensor:
        if dim == 0:
            return tensor.index_select(0, permutation)
        shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
        return tensor.gather(dim, permutation.view(shape).expand(tensor.shape))  # twice as fast as index_select

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.dim, permutation = inputs
        ctx.save_for_backward(permutation)
        ctx.save_for_forward(permutation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Permute.apply(grad, ctx.dim, torch.argsort(ctx.saved_tensors[0])), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _Permute.apply(tangent, ctx.dim, ctx.saved_tensors[0])


def permute(tensor: Tensor, permutations: dict[int, Tensor]) -> Tensor:
    """The tensor with places permutation[0], permutation[1], … of every dimension named, in this order."""
    for dim, permutation in permutations.items():
        tensor = _Permute.apply(tensor, dim, permutation)
    return tensor


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


def _log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None,
    activation: str,
    temperature: float,
    factors: Sequence[Tensor],
) -> Tensor:
    """made_log_prob by products of masked matrices. factors: [B, H_l] for every hidden layer, or nothing for 1."""
    outputs = _masked_outputs(x, W, c, hidden, V, b, A, activation, factors)
    return log_probability(outputs if temperature == 1.0 else outputs / temperature, x).sum(dim=1)


def _masked_outputs(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    hidden: Sequence[Tensor],
    V: Tensor,
    b: Tensor,
    A: Tensor | None,
    activation: str,
    factors: Sequence[Tensor] = (),
) -> Tensor:
    """The conditionals' outputs [B, D, P], float32."""
    D, P, _ = V.shape
    f, scalar = ACTIVATIONS[activation], W.dim() == 2
    step = torch.arange(D, device=W.device)
    e = encode(x, 2 if P == 1 else P, W, scalar).flatten(1)
    m = degrees(D, len(c), W.device)
    before = step[:, None] < m
    h = f(torch.addmm(c, e, torch.where(before if scalar else before[:, None], W, 0.0).flatten(0, -2)))
    for layer, (weight, bias) in enumerate(zip(hidden[::2], hidden[1::2], strict=True)):
        above = degrees(D, len(bias), W.device)
        h = h * factors[layer] if factors else h
        h = f(functional.linear(h, torch.where(m <= above[:, None], weight, 0.0), bias))
        m = above
    h = h * factors[-1] if factors else h
    seen = (m <= step[:, None])[:, None]
    outputs = functional.linear(h, torch.where(seen, V, 0.0).flatten(0, 1), b.flatten())
    if A is not None:
        before = (step[:, None] < step)[..., None]
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


# What torch needs to know about the native operations: shapes, derivatives, autocast.


def _fake_log_prob(x, W, c, hidden, V, b, A, activation, temperature, dropout, keep):
    B, rows = x.shape[0], c.shape[0] + sum(bias.shape[0] for bias in hidden[1::2]) + b.numel()
    if W.dim() == 2 and V.shape[1] > 1:
        rows += V.shape[0]
    return b.new_empty(B), b.new_empty((B + 15) // 16 * 16 * rows if keep else 0)


def _fake_log_prob_backward(grad, x, W, c, hidden, V, b, A, activation, temperature, dropout, kept):
    return [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (W, c, *hidden, V, b, *_given(A))]


def _fake_sample(W, c, hidden, V, b, A, activation, seed, indices, temperature, given, dims):
    N = indices.shape[0]
    return torch.empty(N, V.shape[0], dtype=torch.uint8, device=V.device), b.new_empty(N)


def _save_for_backward(ctx, inputs, output):
    x, W, c, hidden, V, b, A, ctx.activation, ctx.temperature, dropout, _ = inputs
    kept = output[1]
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.num_hidden, ctx.direct = len(hidden), A is not None
    ctx.save_for_backward(x, kept, W, c, *hidden, V, b, *_given(A), *dropout)


def _log_prob_backward(ctx, grad, _):
    x, kept, W, c, *others = ctx.saved_tensors
    hidden, (V, b, *others) = others[: ctx.num_hidden], others[ctx.num_hidden :]
    A, dropout = (others[0], others[1:]) if ctx.direct else (None, others)
    if grad is None:
        return (None,) * 11
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # this gradient will be differentiated
        activation = list(ACTIVATIONS)[ctx.activation]
        log_prob = _log_prob(x, W, c, hidden, V, b, A, activation, ctx.temperature, dropout)
        parameters = [W, c, *hidden, V, b, *_given(A)]
        wanted = [p for p in parameters if p.requires_grad]
        found = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=True, materialize_grads=True))
        gradients = [next(found) if p.requires_grad else None for p in parameters]
    else:
        gradients = transforms.call(
            "made_log_prob_backward", grad, x, W, c, hidden, V, b, A, ctx.activation, ctx.temperature, dropout, kept
        )
    grad_W, grad_c, *others = gradients
    grad_hidden, (grad_V, grad_b, *grad_A) = others[: ctx.num_hidden], others[ctx.num_hidden :]
    grad_A = grad_A[0] if grad_A else None
    return None, grad_W, grad_c, grad_hidden, grad_V, grad_b, grad_A, None, None, [None] * len(dropout), None


def _refuse_double_backward(ctx, *grads):
    raise RuntimeError("compiled gradients of MADE have no derivatives; differentiate without torch.compile")


def _given(A: Tensor | None) -> list[Tensor]:
    return [] if A is None else [A]


if native._C is not None:
    for name, fake in {
        "made_log_prob": _fake_log_prob,
        "made_log_prob_backward": _fake_log_prob_backward,
        "made_sample": _fake_sample,
    }.items():
        torch.library.register_fake(f"pyar::{name}", fake)
        torch.library.register_autocast(f"pyar::{name}", "cpu", torch.float32)
    transforms.register("made_log_prob", _log_prob_backward, _save_for_backward)
    transforms.register("made_log_prob_backward", _refuse_double_backward)
