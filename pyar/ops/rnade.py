"""RNADE's operations: log-densities of real vectors, and samples.

Uria, Murray & Larochelle, "RNADE", NIPS 2013, https://arxiv.org/abs/1306.0186; the equations are in
pyar.reference.rnade. Every function takes the parameters, float32 and on one device, in this order:

    W [D, H] · c [H] · rho [D] · V [D, 3C, H] · b [D, 3C] · family "gaussian", "logistic" or "laplace" ·
    activation "relu", "sigmoid" or "tanh" · min_scale ≥ 0

On the CPU log-densities, their gradients and samples are one native call each, in float32 whatever torch.autocast says,
with the same bits for every number of threads. Elsewhere, under torch.func's transforms and for derivatives of
gradients they are torch's own operations, all steps of the log-density at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyar import native
from pyar.ops import transforms
from pyar.ops.validate import check_dimensions, check_parameters, check_seed, check_values
from pyar.reference import mixtures
from pyar.reference.activations import ACTIVATIONS
from pyar.reference.philox import indexed_fine_uniforms, indexed_uniforms


def rnade_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}) in nats: [B] float32, differentiable.

    Args, Raises: as rnade_conditional_log_prob.
    """
    x = _check(x, W, c, rho, V, b, family, activation)
    if transforms.leaves_to_kernels(V):
        return torch.ops.pyar.rnade_log_prob(x, W, c, rho, V, b, *_places(family, activation), float(min_scale))
    return _conditional_log_prob(x, W, c, rho, V, b, family, activation, min_scale).sum(dim=1)


def rnade_conditional_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
) -> Tensor:
    """log p(x_d | x_{<d}) in nats of every step d: [B, D] float32, differentiable.

    Args:
        x: float32 [B, D], finite.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong shape or device, or x holds NaN or infinite values.
    """
    x = _check(x, W, c, rho, V, b, family, activation)
    if transforms.leaves_to_kernels(V):
        places = _places(family, activation)
        return torch.ops.pyar.rnade_conditional_log_prob(x, W, c, rho, V, b, *places, float(min_scale))
    return _conditional_log_prob(x, W, c, rho, V, b, family, activation, min_scale)


def rnade_sample(
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
    *,
    seed: Tensor,
    num_samples: int,
    first_index: int = 0,
    given: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of the seed.

    Args:
        seed: int64 [], the seed's 64 bits; pyar.random.resolve_seed makes it.
        given: float32 [num_samples, G], the values of the first G steps.
        order: int64 [D], the dimension whose uniforms each step takes; None for 0 … D−1.

    Returns:
        x float32 [num_samples, D], a column a step, and float32 [num_samples], the log-density of what was drawn.

    Raises:
        TypeError, ValueError: as rnade_conditional_log_prob.
        RuntimeError: outputs are NaN or infinite, so that there is nothing to draw from.
    """
    _check_parameters(W, c, rho, V, b, family, activation)
    check_seed(seed, V.device)
    with torch.no_grad():
        if transforms.leaves_to_kernels(V):
            places = _places(family, activation)
            return torch.ops.pyar.rnade_sample(
                W, c, rho, V, b, *places, float(min_scale), seed, num_samples, first_index, given, order
            )
    D, index = len(V), first_index + torch.arange(num_samples, device=V.device)
    u, v = indexed_uniforms(int(seed), index, D), indexed_fine_uniforms(int(seed), index, D, number=1)
    steps = range(D) if order is None else order.tolist()
    num_given = 0 if given is None else given.shape[1]
    with torch.no_grad(), torch.autocast(V.device.type, enabled=False):
        a, total = c.expand(num_samples, -1), b.new_zeros(num_samples)
        x = b.new_empty(num_samples, D)
        for step, dim in enumerate(steps):
            if given is not None and step < num_given:
                x[:, step] = given[:, step]
            else:
                outputs = torch.addmm(b[step], ACTIVATIONS[activation](rho[step] * a), V[step].T)
                value = mixtures.draw(outputs, u[:, dim], v[:, dim], family, min_scale).float()
                total = total + mixtures.log_prob(outputs, value, family, min_scale)
                x[:, step] = value
            a = torch.addcmul(a, x[:, step, None], W[step])
    return x, total


def _conditional_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    rho: Tensor,
    V: Tensor,
    b: Tensor,
    family: str,
    activation: str,
    min_scale: float,
) -> Tensor:
    """rnade_conditional_log_prob by torch's own operations."""
    terms = x[:, :, None] * W
    a = c + torch.cumsum(terms, dim=1) - terms  # [B, D, H]: each step without its own term
    h = ACTIVATIONS[activation](rho[:, None] * a)
    outputs = torch.einsum("bdh,dph->bdp", h, V) + b
    return mixtures.log_prob(outputs.float(), x, family, min_scale)


def _places(family: str, activation: str) -> tuple[int, int]:
    """Family and activation as the native operations take them."""
    return mixtures.FAMILIES.index(family), list(ACTIVATIONS).index(activation)


def _check(x: Tensor, W: Tensor, c: Tensor, rho: Tensor, V: Tensor, b: Tensor, family: str, activation: str) -> Tensor:
    """Checks all arguments; returns x."""
    _check_parameters(W, c, rho, V, b, family, activation)
    return check_values("x", x, len(V), V.device)


def _check_parameters(W: Tensor, c: Tensor, rho: Tensor, V: Tensor, b: Tensor, family: str, activation: str) -> None:
    """Raises TypeError or ValueError for parameters that do not fit together."""
    if family not in mixtures.FAMILIES:
        raise ValueError(f"family must be {' or '.join(map(repr, mixtures.FAMILIES))}, got {family!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    check_dimensions("V", V, "[D, 3C, H]", 3)
    D, P, H = V.shape
    if P % 3:
        raise ValueError(f"V must have three rows for each component, weight, mean and scale, got {P}")
    check_parameters([("V", V, (D, P, H)), ("W", W, (D, H)), ("c", c, (H,)), ("rho", rho, (D,)), ("b", b, (D, P))])


# What torch needs to know about the native operations.


def _fake_log_prob(x, W, c, rho, V, b, family, activation, min_scale):
    return x.new_empty(x.shape[0])


def _fake_conditional_log_prob(x, W, c, rho, V, b, family, activation, min_scale):
    return x.new_empty(x.shape)


def _fake_sample(W, c, rho, V, b, family, activation, min_scale, seed, num_samples, first_index, given, dims):
    return b.new_empty(num_samples, V.shape[0]), b.new_empty(num_samples)


def _fake_log_prob_backward(grad, x, W, c, rho, V, b, family, activation, min_scale, x_gradient):
    of_x = x.new_empty(x.shape if x_gradient else 0)
    return of_x, *(torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (W, c, rho, V, b))


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.family, ctx.activation, ctx.min_scale = inputs
    ctx.save_for_backward(*tensors)


def _log_prob_backward(ctx, grad):
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # this gradient will be differentiated
        names = mixtures.FAMILIES[ctx.family], list(ACTIVATIONS)[ctx.activation]
        log_prob = _conditional_log_prob(*tensors, *names, ctx.min_scale)
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        log_prob = log_prob.sum(dim=1) if grad.dim() == 1 else log_prob
        found = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=True, materialize_grads=True))
        gradients = [next(found) if tensor.requires_grad else None for tensor in tensors]
    else:
        of_x = ctx.needs_input_grad[0]
        gradients = transforms.call(
            "rnade_log_prob_backward", grad, *tensors, ctx.family, ctx.activation, ctx.min_scale, of_x
        )
        gradients = (gradients[0] if of_x else None, *gradients[1:])
    return *gradients, None, None, None


def _refuse_double_backward(ctx, *grads):
    raise RuntimeError("compiled gradients of RNADE have no derivatives; differentiate without torch.compile")


if native._C is not None:
    for name, fake in {
        "rnade_log_prob": _fake_log_prob,
        "rnade_conditional_log_prob": _fake_conditional_log_prob,
        "rnade_log_prob_backward": _fake_log_prob_backward,
        "rnade_sample": _fake_sample,
    }.items():
        torch.library.register_fake(f"pyar::{name}", fake)
        torch.library.register_autocast(f"pyar::{name}", "cpu", torch.float32)
    for name in ("rnade_log_prob", "rnade_conditional_log_prob"):
        transforms.register(name, _log_prob_backward, _save_for_backward)
    transforms.register("rnade_log_prob_backward", _refuse_double_backward)
