"""The operations under torch.func: gradients, per-sample gradients, Jacobians, ensembles by torch.vmap.

What torch.library registers for an operation serves autograd and torch.compile, but not the transforms of torch.func;
those take a torch.autograd.Function. So each operation has one, made of the same functions, for `call` to choose.

Under vmap an operation that is batched over its examples alone is one native call for all of them. Anything else,
parameters above all, is one native call for each element of what vmap maps over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyar import native

_library = torch.library.Library("pyar", "IMPL")
_functions: dict[str, type[torch.autograd.Function]] = {}


def is_active() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active()


def leaves_to_kernels(tensor: Tensor) -> bool:
    """Whether an operation that knows neither transforms nor forward-mode derivatives is a native call on the CPU.

    Says so if it would be one, were the extension there.
    """
    if tensor.device.type != "cpu" or is_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if native.has_kernels("cpu"):
        return True
    native.warn_reference("cpu")
    return False


def call(name: str, *arguments: Any) -> Any:
    """The operation torch.ops.pyar.NAME, within torch.func's transforms and without."""
    if not is_active():
        return getattr(torch.ops.pyar, name)(*arguments)
    return _call_function(name, arguments)


@torch.compiler.disable  # torch.compile leaves code with transforms around pyar's operations as it is
def _call_function(name: str, arguments: tuple) -> Any:
    leaves, spec = pytree.tree_flatten(arguments)
    structure = _Structure(spec)
    return pytree.tree_unflatten(_functions[name].apply(structure, *leaves), structure.outputs)


def register(
    name: str, backward: Callable | None = None, setup_context: Callable | None = None, batch: Callable | None = None
) -> None:
    """Registers an operation's derivative and how it is batched.

    Args:
        name: of torch.ops.pyar.
        backward, setup_context: as torch.library.register_autograd takes them; without them it has no derivative.
        batch: (info, in_dims, *arguments) → (results, out_dims), as torch.library.register_vmap describes; None for a
            call for each element.
    """
    if backward is not None:
        torch.library.register_autograd(f"pyar::{name}", backward, setup_context=setup_context)
    methods = {
        "forward": staticmethod(_forward(name)),
        "setup_context": staticmethod(_setup_context(setup_context)),
        "backward": staticmethod(_backward(backward)),
        "vmap": staticmethod(_vmap(batch or loop(name))),
    }
    _functions[name] = type(f"pyar_{name}", (torch.autograd.Function,), methods)
    _library.impl(name, _autograds_vmap(batch or loop(name)), "Batched")


def loop(name: str) -> Callable:
    """The batching rule that holds for every operation: a call for each element."""

    def rule(info: Any, in_dims: Sequence, *arguments: Any) -> tuple[Any, Any]:
        leaves, spec = pytree.tree_flatten(arguments)
        dims = pytree.tree_leaves(in_dims, is_leaf=_is_none)
        results = []
        for index in range(info.batch_size):
            own = [leaf if dim is None else leaf.select(dim, index) for leaf, dim in zip(leaves, dims, strict=True)]
            results.append(call(name, *pytree.tree_unflatten(own, spec)))
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *results)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    return rule


def fold_examples(name: str) -> Callable:
    """The rule of an operation on examples x [n, …] whose results are [n, …] each: one call, if x alone is batched."""

    def rule(info: Any, in_dims: Sequence, x: Tensor, *arguments: Any) -> tuple[Any, Any]:
        if is_batched(in_dims[1:]):
            return loop(name)(info, in_dims, x, *arguments)
        x = x.movedim(in_dims[0], 0)
        return call(name, x.flatten(0, 1), *arguments).unflatten(0, x.shape[:2]), 0

    return rule


def is_batched(in_dims: Any) -> bool:
    """Whether any of these arguments, which may be lists of tensors, is batched."""
    return any(dim is not None for dim in pytree.tree_leaves(in_dims, is_leaf=_is_none))


def first(value: Tensor, dim: int | None, batch_size: int) -> Tensor:
    """The tensor with what vmap maps over as its first dimension; expanded to it, if it is not batched."""
    return value.expand(batch_size, *value.shape) if dim is None else value.movedim(dim, 0)


def is_wrapped(x: Tensor) -> bool:
    """Whether a transform has wrapped the tensor, so that it has no values of its own: torch.func's or autograd's."""
    return not torch._C._has_storage(x)


def needs_gradient(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient may be wanted with respect to any of the tensors, by autograd or by any transform."""
    return torch.is_grad_enabled() and any(map(_requires_grad, tensors))


def _requires_grad(tensor: Tensor) -> bool:
    # What vmap has wrapped does not tell whether a transform outside it differentiates.
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


class _Structure:
    """How the flat arguments and results of a torch.autograd.Function are nested; it knows tensors alone, no lists."""

    def __init__(self, arguments: pytree.TreeSpec) -> None:
        self.arguments = arguments
        self.outputs: pytree.TreeSpec | None = None  # known once the operation has run

    def flatten_outputs(self, outputs: Any) -> tuple[Tensor, ...]:
        leaves, self.outputs = pytree.tree_flatten(outputs)
        return tuple(leaves)


def _forward(name: str) -> Callable:
    def forward(structure: _Structure, *leaves: Any) -> tuple[Tensor, ...]:
        return structure.flatten_outputs(call(name, *pytree.tree_unflatten(leaves, structure.arguments)))

    return forward


def _setup_context(inner: Callable | None) -> Callable:
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        structure, *leaves = inputs
        ctx.structure = structure
        if inner is not None:
            arguments = pytree.tree_unflatten(leaves, structure.arguments)
            inner(ctx, tuple(arguments), pytree.tree_unflatten(output, structure.outputs))

    return setup_context


def _backward(inner: Callable | None) -> Callable:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        structure = ctx.structure
        if inner is None:
            return (None,) * (1 + structure.arguments.num_leaves)
        nested = pytree.tree_unflatten(grads, structure.outputs)
        result = inner(ctx, *nested) if isinstance(nested, tuple) else inner(ctx, nested)
        return (None, *pytree.tree_leaves(result, is_leaf=_is_none))

    return backward


def _vmap(rule: Callable) -> Callable:
    def vmap(info: Any, in_dims: tuple, structure: _Structure, *leaves: Any) -> tuple[tuple, tuple]:
        arguments = pytree.tree_unflatten(leaves, structure.arguments)
        outputs, out_dims = rule(info, pytree.tree_unflatten(in_dims[1:], structure.arguments), *arguments)
        return structure.flatten_outputs(outputs), tuple(pytree.tree_leaves(out_dims, is_leaf=_is_none))

    return vmap


def _autograds_vmap(rule: Callable) -> Callable:
    """The same rule for the older vmap that is_grads_batched and torch.autograd.functional.jacobian still use."""

    def kernel(*arguments: Any) -> Any:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        leaves, spec = pytree.tree_flatten(arguments)
        batched = [isinstance(leaf, Tensor) and is_wrapped(leaf) for leaf in leaves]
        leaves = [
            torch._remove_batch_dim(leaf, level, 1, 0) if wrapped else leaf
            for leaf, wrapped in zip(leaves, batched, strict=True)
        ]
        info = _Info(next(len(leaf) for leaf, wrapped in zip(leaves, batched, strict=True) if wrapped))
        in_dims = pytree.tree_unflatten([0 if wrapped else None for wrapped in batched], spec)
        outputs, out_dims = rule(info, in_dims, *pytree.tree_unflatten(leaves, spec))
        flat, output_spec = pytree.tree_flatten(outputs)
        dims = pytree.tree_leaves(out_dims, is_leaf=_is_none)
        wrapped_again = [
            value if dim is None else torch._add_batch_dim(value, dim, level)
            for value, dim in zip(flat, dims, strict=True)
        ]
        return pytree.tree_unflatten(wrapped_again, output_spec)

    return kernel


class _Info(NamedTuple):
    batch_size: int


def _is_none(value: Any) -> bool:
    return value is None
