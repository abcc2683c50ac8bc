"""PixelLSTM's operations; the arguments are those of pyar.reference.lstm.

On CPU tensors `lstm_log_prob` and `lstm_sample` are single native calls. On CUDA tensors `lstm_sample` is one too, and
log-probabilities come from torch's own LSTM (cuDNN), whose time loop is native already.

The CPU's calls without gradients keep their parameters in packed form, with a copy, for the next ones: up to eight sets
used last, 64 MB together, from a set's second call on. A call uses them only if every byte of its parameters is the
copy's, so that no change of the parameters, however made, goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyar import native
from pyar.native import has_kernels, warn_reference
from pyar.ops import transforms, validate
from pyar.ops.transforms import call
from pyar.reference import lstm as reference
from pyar.reference.draw import log_probability
from pyar.scalars import plain_integer


def lstm_logits(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """The conditionals' logits, differentiable with respect to the parameters.

    Args:
        x: uint8 or int64 [B, D], states 0 … K−1.
        weights: weight_ih [4H, I], weight_hh [4H, H], bias_ih [4H], bias_hh [4H] of each of 1 … 4 layers in turn, as
            torch.nn.LSTM stores them; I = K (one-hot input) or 1 (x/(K−1)) in the first layer, H in the others.
        head_weight: [K, H], 2 ≤ K ≤ 256.
        head_bias: [K].

    Returns:
        float32 [B, D, K]; for K = 2 [B, D], log p(x_d = 1 | x_{<d}) − log p(x_d = 0 | x_{<d}).

    Raises:
        TypeError: x is not uint8 or int64, or a parameter not float32.
        ValueError: a shape, a device or a state is not as described.
    """
    x = _check(x, weights, head_weight, head_bias)
    outputs = _torch_outputs(x, weights, head_weight, head_bias)
    return outputs[..., 1] - outputs[..., 0] if head_weight.shape[0] == 2 else outputs


def lstm_log_prob(
    x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor, *, checkpoint_steps: int | None = None
) -> Tensor:
    """log p(x) = Σ_d log p(x_d | x_{<d}) in nats, differentiable with respect to the parameters.

    Args:
        x, weights, head_weight, head_bias: as lstm_logits.
        checkpoint_steps: for gradients, keep the state of about every checkpoint_steps-th step alone and compute the
            steps between them again on the way back; 0 keeps every step. None keeps every step where that takes less
            than 32 MB and about every √D-th otherwise, which is as fast, since fresh memory is not free; torch.compile
            and torch.export always get the latter, so that one graph serves every batch size. The gradients are the
            same to the bit. CPU kernels alone; elsewhere torch keeps what it needs.

    Returns:
        float32 [B].

    Raises:
        TypeError, ValueError: as lstm_logits.
    """
    x = _check(x, weights, head_weight, head_bias)
    options = _native_options(x, weights, head_weight, head_bias, checkpoint_steps)
    if options is None:
        return log_probability(_torch_outputs(x, weights, head_weight, head_bias), x).sum(dim=1)
    return call("lstm_log_prob", x, list(weights), head_weight, head_bias, *options)[0]


def lstm_conditional_log_prob(
    x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor, *, checkpoint_steps: int | None = None
) -> Tensor:
    """log p(x_d | x_{<d}) of every dimension, in nats: float32 [B, D]; differentiable.

    Args, Raises: as lstm_log_prob.
    """
    x = _check(x, weights, head_weight, head_bias)
    options = _native_options(x, weights, head_weight, head_bias, checkpoint_steps)
    if options is None:
        return log_probability(_torch_outputs(x, weights, head_weight, head_bias), x)
    return call("lstm_conditional_log_prob", x, list(weights), head_weight, head_bias, *options)[0]


def lstm_sample(
    weights: Sequence[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    *,
    seed: Tensor,
    num_samples: int,
    num_dims: int,
    first_index: int = 0,
    temperature: float = 1.0,
    given: Tensor | None = None,
    weight_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Draws samples first_index … first_index + num_samples − 1 of a seed, all steps in one native call.

    Args:
        weights, head_weight, head_bias: as lstm_logits.
        seed: int64 [], the seed's 64 bits, on the parameters' device.
        num_dims: D.
        temperature: positive; divides the logits of every conditional.
        given: uint8 or int64 [num_samples, G], or [G] for all samples alike: the first G dimensions, not drawn.
        weight_dtype: torch.bfloat16 stores weight_hh, and weight_ih of all layers but the first, rounded to bfloat16:
            half the memory traffic, and another distribution (see round_weights). All arithmetic stays float32; on a
            GPU the products run on its tensor cores, with h in three parts so that none of its bits is lost.

    Returns:
        x uint8 [num_samples, D], and float32 [num_samples]: the log-probability, in nats, of the drawn part under the
        distribution it was drawn from, at that temperature.

    Raises:
        TypeError: seed is not int64, given not uint8 or int64, or a parameter not float32.
        ValueError: a shape, a device, a state or a number is not as described.
        RuntimeError: the parameters give NaN or infinite logits.
    """
    K = _check_parameters(weights, head_weight, head_bias)
    device = head_weight.device
    num_samples, first_index, temperature = validate.check_sampling(num_samples, first_index, temperature)
    num_dims = plain_integer("num_dims", num_dims)
    validate.check_seed(seed, device)
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}")
    given = validate.check_given(given, num_samples, num_dims, K, device)
    if weight_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weight_dtype must be torch.float32 or torch.bfloat16, got {weight_dtype}")
    weights = [w.detach() for w in weights]
    head_weight, head_bias = head_weight.detach(), head_bias.detach()
    if not has_kernels(device.type):
        warn_reference(device.type)
        weights = round_weights(weights, weight_dtype)
        return reference.sample(
            weights, head_weight, head_bias, int(seed), num_samples, first_index, num_dims, temperature, given
        )
    name = "lstm_sample_bfloat16" if weight_dtype == torch.bfloat16 else "lstm_sample"
    return call(name, weights, head_weight, head_bias, seed, num_samples, first_index, num_dims, temperature, given)


def round_weights(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights that `weight_dtype` really samples from: the matrices read at every step rounded to dtype.

    bfloat16 keeps 8 significant bits, a relative error of at most 2⁻⁸ in each weight. What that does to a model's NLL
    is lstm_log_prob(x, round_weights(weights, torch.bfloat16), …) against lstm_log_prob(x, weights, …). Gradients pass
    straight through: those with respect to the rounded weights become those with respect to `weights`.
    """
    if dtype == torch.float32:
        return list(weights)
    return [
        _Round.apply(w, dtype) if position % 4 == 1 or (position % 4 == 0 and position > 0) else w
        for position, w in enumerate(weights)
    ]


class _Round(torch.autograd.Function):
    """To dtype and back. The gradient is passed on as it is; that of two casts would be rounded to dtype as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.to(dtype).to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def step_inputs(x: Tensor, weight_ih: Tensor, num_states: int) -> Tensor:
    """The first layer's inputs [B, D, I] at every step: zeros, then the state before, encoded."""
    B, D = x.shape
    inputs = weight_ih.new_zeros(B, D, weight_ih.shape[1])
    inputs[:, 1:] = reference.encode(x[:, :-1].reshape(-1), weight_ih, num_states).view(B, D - 1, inputs.shape[2])
    return inputs


def _check_parameters(weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> int:
    """Raises TypeError or ValueError for parameters that do not fit together; returns the number of states K."""
    if len(weights) not in (4, 8, 12, 16):
        raise ValueError(
            "weights must hold weight_ih, weight_hh, bias_ih, bias_hh of each of 1 … 4 layers, "
            f"got {len(weights)} tensors"
        )
    validate.check_dimensions("head_weight", head_weight, "[K, H]", 2)
    validate.check_dimensions("weight_ih_l0", weights[0], "[4H, K] or [4H, 1]", 2)
    K, H = head_weight.shape
    if not 2 <= K <= 256:
        raise ValueError(f"head_weight must have 2 … 256 rows, one a state, got {K}")
    expected = [("head_weight", head_weight, (K, H)), ("head_bias", head_bias, (K,))]
    for layer in range(len(weights) // 4):
        weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * layer : 4 * layer + 4]
        inputs = H if layer > 0 else 1 if weight_ih.shape[1] == 1 else K
        expected += [
            (f"weight_ih_l{layer}", weight_ih, (4 * H, inputs)),
            (f"weight_hh_l{layer}", weight_hh, (4 * H, H)),
            (f"bias_ih_l{layer}", bias_ih, (4 * H,)),
            (f"bias_hh_l{layer}", bias_hh, (4 * H,)),
        ]
    validate.check_parameters(expected)
    return K


def _check(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """Checks all arguments; returns x as uint8."""
    K = _check_parameters(weights, head_weight, head_bias)
    if isinstance(x, Tensor) and (x.dim() != 2 or x.shape[1] == 0):
        raise ValueError(f"x must be [B, D] with D at least 1, got {list(x.shape)}")
    return validate.check_states("x", x, x.shape[1] if isinstance(x, Tensor) else 0, K, head_weight.device)


def _native_options(
    x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor, checkpoint_steps: int | None
) -> tuple[int, bool] | None:
    """checkpoint_steps and keep for the CPU's operations; None where torch's own LSTM computes."""
    if checkpoint_steps is not None and checkpoint_steps < 0:
        raise ValueError(f"checkpoint_steps must not be negative, got {checkpoint_steps}")
    device_type = head_weight.device.type
    if not has_kernels(device_type):
        warn_reference(device_type)
    if device_type != "cpu" or not has_kernels("cpu"):
        return None
    keep = transforms.needs_gradient([*weights, head_weight, head_bias])
    if checkpoint_steps is None:
        is_small = not torch.compiler.is_compiling() and (
            4 * _kept_size(x.shape[0], x.shape[1], weights, head_weight, 0, keep) <= 2**25
        )
        checkpoint_steps = 0 if is_small else _square_root(x.shape[1])
    return checkpoint_steps, keep


def _square_root(number: int) -> int:
    """math.isqrt, which torch.compile does not trace."""
    root = 0
    while (root + 1) ** 2 <= number:
        root += 1
    return root


def _torch_outputs(x: Tensor, weights: Sequence[Tensor], head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """The conditionals' logits [B, D, K], by torch's own LSTM."""
    (B, D), K, layers = x.shape, head_weight.shape[0], len(weights) // 4
    if B == 0 or D == 0:  # torch.lstm refuses these
        return (head_weight.sum() + head_bias.sum() + sum(w.sum() for w in weights)) * head_bias.new_zeros(B, D, K)
    if transforms.is_active():  # torch's LSTM has no rules for them
        return torch.stack(reference.step_logits(x, weights, head_weight, head_bias), dim=1)
    inputs = step_inputs(x, weights[0], K)
    zeros = head_weight.new_zeros(layers, B, head_weight.shape[1])
    h, _, _ = torch.lstm(inputs, (zeros, zeros), list(weights), True, layers, 0.0, False, False, True)
    return torch.nn.functional.linear(h, head_weight, head_bias)


def _sample_shapes(
    weights: list[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    seed: Tensor,
    num_samples: int,
    first_index: int,
    num_dims: int,
    temperature: float,
    given: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return head_weight.new_empty((num_samples, num_dims), dtype=torch.uint8), head_weight.new_empty(num_samples)


def _kept_size(
    batch: int, num_dims: int, weights: list[Tensor], head_weight: Tensor, checkpoint_steps: int, keep: bool
) -> int:
    """How many numbers lstm_log_prob keeps for its gradients, as csrc/cpu/lstm/log_prob.cpp plans it."""
    if not keep:
        return 0
    layers, padded = len(weights) // 4, (head_weight.shape[1] + 15) // 16 * 16
    slot = batch * (padded + 16)
    if checkpoint_steps == 0:
        return layers * (2 * (num_dims + 1) * slot + num_dims * batch * 4 * padded)
    if isinstance(batch, torch.SymInt):  # left open by torch.compile or torch.export: a branch on it would close it
        return torch.library.get_ctx().new_dynamic_size()
    group = max(1, 1024 // max(batch, 1))
    segment = min((checkpoint_steps + group - 1) // group * group, num_dims)
    return (num_dims + segment - 1) // segment * layers * 2 * slot


def _log_prob_shapes(
    x: Tensor, weights: list[Tensor], head_weight: Tensor, head_bias: Tensor, checkpoint_steps: int, keep: bool
) -> tuple[Tensor, Tensor]:
    kept = _kept_size(x.shape[0], x.shape[1], weights, head_weight, checkpoint_steps, keep)
    return head_weight.new_empty(x.shape[0]), head_weight.new_empty(kept)


def _conditional_log_prob_shapes(
    x: Tensor, weights: list[Tensor], head_weight: Tensor, head_bias: Tensor, checkpoint_steps: int, keep: bool
) -> tuple[Tensor, Tensor]:
    kept = _kept_size(x.shape[0], x.shape[1], weights, head_weight, checkpoint_steps, keep)
    return head_weight.new_empty(x.shape), head_weight.new_empty(kept)


def _log_prob_backward_shapes(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    head_weight: Tensor,
    head_bias: Tensor,
    kept: Tensor,
    checkpoint_steps: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    return [torch.empty_like(w) for w in weights], torch.empty_like(head_weight), torch.empty_like(head_bias)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weights, head_weight, head_bias, ctx.checkpoint_steps, ctx.keep = inputs
    ctx.save_for_backward(x, head_weight, head_bias, output[1], *weights)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # nobody needs zeros of the size of what is kept


def _log_prob_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple:
    if not ctx.keep:
        raise RuntimeError("pyar::lstm_log_prob was called with keep=False: it has kept nothing for gradients")
    x, head_weight, head_bias, kept, *weights = ctx.saved_tensors
    gradients = call("lstm_log_prob_backward", grad, x, weights, head_weight, head_bias, kept, ctx.checkpoint_steps)
    return None, *gradients, None, None


def _batch_log_prob(name: str) -> Callable:
    """Examples alone batched, and no gradient wanted: one call. What is kept for gradients cannot be divided."""

    def rule(info: Any, in_dims: Sequence, x: Tensor, *arguments: Any) -> tuple[Any, Any]:
        if arguments[-1] or transforms.is_batched(in_dims[1:]):
            return transforms.loop(name)(info, in_dims, x, *arguments)
        x = x.movedim(in_dims[0], 0)
        log_prob, nothing = call(name, x.flatten(0, 1), *arguments)
        return (log_prob.unflatten(0, x.shape[:2]), nothing), (0, None)

    return rule


def _refuse_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("pyar's LSTM operations have no second derivatives; use pyar.reference.lstm for them")


def _register() -> None:
    for name, shapes in {
        "lstm_sample": _sample_shapes,
        "lstm_sample_bfloat16": _sample_shapes,
        "lstm_log_prob": _log_prob_shapes,
        "lstm_conditional_log_prob": _conditional_log_prob_shapes,
        "lstm_log_prob_backward": _log_prob_backward_shapes,
    }.items():
        torch.library.register_fake(f"pyar::{name}", shapes)
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(f"pyar::{name}", device_type, torch.float32)
    for name in ("lstm_log_prob", "lstm_conditional_log_prob"):
        transforms.register(name, _log_prob_backward, _keep_for_backward, _batch_log_prob(name))
    transforms.register("lstm_log_prob_backward", _refuse_double_backward)
    transforms.register("lstm_sample")
    transforms.register("lstm_sample_bfloat16")


if native._C is not None:
    _register()
