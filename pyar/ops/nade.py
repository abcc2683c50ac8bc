"""NADE's operations: log-probability, logits, mean negative log-likelihood, sampling.

The neural autoregressive distribution estimator (Larochelle & Murray, AISTATS 2011) as in Uria, Côté, Gregor, Murray &
Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17 (2016), https://jmlr.org/papers/v17/16-272.html:

    a_d = c + Σ_{i<d} W[i, x_i − 1]   (x_i > 0; state 0 contributes nothing)
    h_d = σ(a_d)      f_d = layers(h_d)      logits_d = V_d f_d + b_d

Every function takes the parameters, float32 and on one device, in this order:

    W [D, K−1, H], or [D, H] for the scalar input x/(K−1) · c [H] · V [D, P, F] · b [D, P] ·
    mlp (A_1 [M_1, H], a_1 [M_1], A_2 [M_2, M_1], a_2 [M_2], …), the added layers f ← max(0, A f + a)

with P = 1 for K = 2 states and P = K otherwise, F = H or the size of the last added layer. The native kernels run where
there are any, the reference (pyar.reference.nade) elsewhere. Results do not depend on the number of threads, and those
of one example on no other in the batch. Gradients exist to first order; double backward raises RuntimeError. Inside
torch.autocast everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyar import native
from pyar.ops import transforms
from pyar.ops.transforms import call
from pyar.ops.validate import (
    check_dimensions,
    check_given,
    check_parameters,
    check_sampling,
    check_seed,
    check_states,
    check_weights,
    has_values,
)
from pyar.reference import nade as reference
from pyar.reference.draw import log_probability


def nade_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}), exact, in nats: [B] float32. Differentiable in all parameters.

    Args:
        x: uint8 or int64 [B, D], states 0 … K−1. The other arguments are the module's.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds a state out of range.
    """
    x = _check(x, W, c, V, b, mlp)
    if not _has_kernels(V):
        return reference.log_prob(x, W, c, V, b, mlp)
    return call("nade_log_prob", x, W, c, V, b, list(mlp))


def nade_conditional_log_prob(
    x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()
) -> Tensor:
    """log p(x_d | x_{<d}) of every dimension, in nats: [B, D] float32. Differentiable in all parameters.

    Args, Raises: as nade_log_prob.
    """
    x = _check(x, W, c, V, b, mlp)
    if not _has_kernels(V):
        return reference.conditional_log_prob(x, W, c, V, b, mlp)
    if V.device.type == "cuda":
        return log_probability(call("nade_logits", x, W, c, V, b, list(mlp)), x)
    return call("nade_conditional_log_prob", x, W, c, V, b, list(mlp))


def nade_mean_nll(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mlp: Sequence[Tensor] = (),
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """−1/B Σ_b w_b log p(x_b) in nats, w_b = 1 without weights: a float32 scalar, NaN for an empty batch.

    Differentiable in all parameters and in the weights. When a gradient will be wanted, value and gradients come from
    one sweep; without weights only if there are no added layers, with weights only on the CPU.

    Args:
        weights: float32 [B], of any sign; or None. The others are nade_log_prob's.

    Raises: as nade_log_prob.
    """
    x = _check(x, W, c, V, b, mlp)
    if weights is not None:
        weights = check_weights(weights, x)
    if not _has_kernels(V):
        return reference.mean_nll(x, W, c, V, b, mlp, weights)
    if transforms.needs_gradient((W, c, V, b, *mlp)):
        if weights is None and len(mlp) == 0:
            return call("nade_mean_nll", x, W, c, V, b)[0]
        if weights is not None and V.device.type == "cpu":
            return call("nade_weighted_mean_nll", x, weights, W, c, V, b, list(mlp))[0]
    # In float64, as the sweep adds: the two agree to the last bit but one.
    log_prob = call("nade_log_prob", x, W, c, V, b, list(mlp))
    return -(log_prob if weights is None else weights.double() * log_prob).mean(dtype=torch.float64).float()


def nade_logits(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor] = ()) -> Tensor:
    """The conditionals' logits given x_{<d}: float32 [B, D, K], or for K = 2 the Bernoulli logits [B, D].

    Differentiable in all parameters.

    Args, Raises: as nade_log_prob.
    """
    x = _check(x, W, c, V, b, mlp)
    if not _has_kernels(V):
        return reference.logits(x, W, c, V, b, mlp)
    logits = call("nade_logits", x, W, c, V, b, list(mlp))
    return logits.squeeze(-1) if V.shape[1] == 1 else logits


def nade_sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    mlp: Sequence[Tensor] = (),
    *,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed.

    Sample i of a seed is the same whatever the batch, the number of threads or first_index: state d of sample i is the
    inverse CDF of the conditional at the uniform of (seed, i, d), see pyar.random.

    Args:
        seed: int64 [], the seed's 64 bits, on the parameters' device; pyar.random.resolve_seed makes it.
        num_samples: N.
        first_index: the index of the first sample, at least 0.
        temperature: positive; divides the logits.
        given: uint8 or int64 [N, G], or [G] for all samples alike: the first G dimensions, which are not drawn.

    Returns:
        x uint8 [N, D], and float32 [N], in nats, the log-probability of what was drawn under the distribution it was
        drawn from: Σ_{d≥G} log p(x_d | x_{<d}) at that temperature. Neither is differentiable.

    Raises:
        TypeError, ValueError: as nade_log_prob, or num_samples, first_index or temperature is out of range.
        RuntimeError: on the CPU, logits are NaN or infinite, so that there is nothing to draw from.
    """
    K = _check_parameters(W, c, V, b, mlp)
    num_samples, first_index, temperature = check_sampling(num_samples, first_index, temperature)
    check_seed(seed, V.device)
    given = check_given(given, num_samples, V.shape[0], K, V.device)
    with torch.no_grad():
        if not _has_kernels(V):
            return reference.sample(W, c, V, b, mlp, int(seed), num_samples, first_index, temperature, given)
        return call("nade_sample", W, c, V, b, list(mlp), seed, num_samples, first_index, temperature, given)


def _check_parameters(W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor]) -> int:
    """Raises TypeError or ValueError for parameters that do not fit together; returns the number of states K."""
    check_dimensions("V", V, "[D, P, F]", 3)
    check_dimensions("c", c, "[H]", 1)
    check_dimensions("W", W, "[D, K-1, H] or [D, H]", 2, 3)
    D, P, _ = V.shape
    H = c.shape[0]
    K = 2 if P == 1 else P
    if K > 256:
        raise ValueError(f"V must have at most 256 rows for each dimension, one a state, got {P}")
    if len(mlp) % 2 != 0:
        raise ValueError(f"mlp must hold a weight and a bias for every added layer, got {len(mlp)} tensors")
    layers = []
    features = H
    for number, (weight, bias) in enumerate(zip(mlp[::2], mlp[1::2], strict=True), start=1):
        check_dimensions(f"mlp weight {number}", weight, "[M, inputs]", 2)
        layers.append((f"mlp weight {number}", weight, (weight.shape[0], features)))
        layers.append((f"mlp bias {number}", bias, (weight.shape[0],)))
        features = weight.shape[0]
    input_shape = (D, H) if W.dim() == 2 else (D, K - 1, H)
    check_parameters(
        [("V", V, (D, P, features)), ("W", W, input_shape), ("c", c, (H,)), ("b", b, (D, P)), *layers],
    )
    return K


def _check(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, mlp: Sequence[Tensor]) -> Tensor:
    """Checks all arguments; returns x as uint8."""
    K = _check_parameters(W, c, V, b, mlp)
    return check_states("x", x, V.shape[0], K, V.device)


def _has_kernels(V: Tensor) -> bool:
    if native.has_kernels(V.device.type):
        return True
    native.warn_reference(V.device.type)
    return False


# What torch needs to know about the native operations: shapes, derivatives, autocast.


def _fake_log_prob(x, W, c, V, b, mlp):
    return b.new_empty(x.shape[0])


def _fake_conditional_log_prob(x, W, c, V, b, mlp):
    return b.new_empty(x.shape[0], V.shape[0])


def _fake_logits(x, W, c, V, b, mlp):
    return b.new_empty(x.shape[0], V.shape[0], V.shape[1])


def _fake_backward(grad, x, W, c, V, b, mlp):
    new = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (W, c, V, b, *mlp)]
    return (*new[:4], new[4:])


def _fake_backward_each(grad, x, W, c, V, b, mlp):
    new = [torch.empty((x.shape[0], *p.shape), dtype=p.dtype, device=p.device) for p in (W, c, V, b, *mlp)]
    return (*new[:4], new[4:])


def _fake_weighted_mean_nll(x, weights, W, c, V, b, mlp):
    return b.new_empty(()), b.new_empty(x.shape[0]), *_fake_backward(None, x, W, c, V, b, mlp)


def _fake_mean_nll(x, W, c, V, b):
    return (b.new_empty(()), *(torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (W, c, V, b)))


def _fake_sample(W, c, V, b, mlp, seed, num_samples, first_index, temperature, given):
    x = torch.empty(num_samples, V.shape[0], dtype=torch.uint8, device=V.device)
    return x, b.new_empty(num_samples)


def _save_inputs(ctx, inputs, output):
    x, W, c, V, b, mlp = inputs
    ctx.save_for_backward(x, W, c, V, b, *mlp)


def _log_prob_backward(ctx, grad):
    x, W, c, V, b, *mlp = ctx.saved_tensors
    return None, *call("nade_log_prob_backward", grad, x, W, c, V, b, mlp)


def _logits_backward(ctx, grad):
    x, W, c, V, b, *mlp = ctx.saved_tensors
    return None, *call("nade_logits_backward", grad, x, W, c, V, b, mlp)


def _save_gradients(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)  # nobody needs zeros of the gradients' sizes
    ctx.gradients = gradients


def _mean_nll_backward(ctx, grad, *_):
    x, W, c, V, b = ctx.saved_tensors
    if ctx.gradients is None or torch.is_grad_enabled():
        # A second pass through a retained graph, or one that will itself be differentiated.
        scale = -grad / x.shape[0]
        return None, *call("nade_log_prob_backward", scale.expand(x.shape[0]), x, W, c, V, b, [])[:4]
    gradients, ctx.gradients = ctx.gradients, None
    if grad.device.type == "cpu" and has_values(grad) and grad.item() == 1.0:
        return None, *gradients  # handed over, not copied: nobody else holds them now
    return None, *(grad * gradient for gradient in gradients)


def _save_weighted_gradients(ctx, inputs, output):
    x, weights, W, c, V, b, mlp = inputs
    _, log_prob, *gradients, mlp_gradients = output
    ctx.save_for_backward(x, weights, log_prob, W, c, V, b, *mlp)
    ctx.mark_non_differentiable(log_prob, *gradients, *mlp_gradients)
    ctx.set_materialize_grads(False)
    ctx.gradients = [*gradients, mlp_gradients]


def _weighted_mean_nll_backward(ctx, grad, *_):
    x, weights, log_prob, W, c, V, b, *mlp = ctx.saved_tensors
    to_weights = -grad / x.shape[0] * log_prob
    if ctx.gradients is None or torch.is_grad_enabled():
        scale = -grad / x.shape[0] * weights
        return None, to_weights, *call("nade_log_prob_backward", scale, x, W, c, V, b, mlp)
    gradients, ctx.gradients = ctx.gradients, None
    if not (grad.device.type == "cpu" and has_values(grad) and grad.item() == 1.0):
        gradients = [*(grad * gradient for gradient in gradients[:4]), [grad * gradient for gradient in gradients[4]]]
    return None, to_weights, *gradients


def _refuse_double_backward(ctx, *grads):
    raise RuntimeError("pyar's NADE operations have no second derivatives; use pyar.reference.nade for them")


# How they are batched under torch.vmap. Per-sample gradients are one call on the CPU.


def _batch_log_prob_backward(info, in_dims, grad, x, *parameters):
    if transforms.is_batched(in_dims[2:]) or x.device.type != "cpu":
        return transforms.loop("nade_log_prob_backward")(info, in_dims, grad, x, *parameters)
    grad, x = (transforms.first(value, dim, info.batch_size) for value, dim in zip((grad, x), in_dims, strict=False))
    return _backward_each(grad, x, *parameters)


def _backward_each(grad, x, *parameters):
    gradients = call("nade_log_prob_backward_each", grad, x, *parameters)
    return gradients, (0, 0, 0, 0, [0] * len(gradients[4]))


def _batch_mean_nll(info, in_dims, x, *parameters):
    if transforms.is_batched(in_dims[1:]) or x.device.type != "cpu":
        return transforms.loop("nade_mean_nll")(info, in_dims, x, *parameters)
    x = x.movedim(in_dims[0], 0)
    log_prob = call("nade_log_prob", x.flatten(0, 1), *parameters, []).unflatten(0, x.shape[:2])
    (*gradients, _), _ = _backward_each(torch.full_like(log_prob, -1 / x.shape[1]), x, *parameters, [])
    return (-log_prob.mean(dim=1, dtype=torch.float64).float(), *gradients), (0, 0, 0, 0, 0)


def _batch_weighted_mean_nll(info, in_dims, x, weights, *parameters):
    if transforms.is_batched(in_dims[2:]):
        return transforms.loop("nade_weighted_mean_nll")(info, in_dims, x, weights, *parameters)
    x, weights = (
        transforms.first(value, dim, info.batch_size) for value, dim in zip((x, weights), in_dims[:2], strict=True)
    )
    log_prob = call("nade_log_prob", x.flatten(0, 1), *parameters).unflatten(0, x.shape[:2])
    gradients, dims = _backward_each(-weights / x.shape[1], x, *parameters)
    loss = -(weights.double() * log_prob).mean(dim=1).float()
    return (loss, log_prob, *gradients), (0, 0, *dims)


def _register() -> None:
    for name, fake in {
        "nade_log_prob": _fake_log_prob,
        "nade_conditional_log_prob": _fake_conditional_log_prob,
        "nade_logits": _fake_logits,
        "nade_log_prob_backward": _fake_backward,
        "nade_log_prob_backward_each": _fake_backward_each,
        "nade_logits_backward": _fake_backward,
        "nade_mean_nll": _fake_mean_nll,
        "nade_weighted_mean_nll": _fake_weighted_mean_nll,
        "nade_sample": _fake_sample,
    }.items():
        torch.library.register_fake(f"pyar::{name}", fake)
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(f"pyar::{name}", device_type, torch.float32)
    register, fold = transforms.register, transforms.fold_examples
    for name in ("nade_log_prob", "nade_conditional_log_prob"):
        register(name, _log_prob_backward, _save_inputs, fold(name))
    register("nade_logits", _logits_backward, _save_inputs, fold("nade_logits"))
    register("nade_mean_nll", _mean_nll_backward, _save_gradients, _batch_mean_nll)
    register("nade_weighted_mean_nll", _weighted_mean_nll_backward, _save_weighted_gradients, _batch_weighted_mean_nll)
    register("nade_log_prob_backward", _refuse_double_backward, batch=_batch_log_prob_backward)
    for name in ("nade_log_prob_backward_each", "nade_logits_backward"):
        register(name, _refuse_double_backward)
    register("nade_sample")


if native._C is not None:
    _register()
