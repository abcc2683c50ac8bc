"""What models for any order share: orders, numbered or given, mixtures over them, and sets of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.models.base import check_tensor
from pyar.ops.transforms import is_wrapped
from pyar.reference.philox import indexed_uniforms
from pyar.scalars import plain_integer


def random_orders(num_orders: int, dim: int, seed: int = 0) -> Tensor:
    """Orders 0 … num_orders − 1 of a seed: int64 [num_orders, dim], each a permutation of 0 … dim−1.

    Order m of a seed is always the same, on every machine: the dimensions sorted by uniforms of pyar's generator.

    Example:
        >>> bool((random_orders(3, 10)[1] == random_orders(2, 10)[1]).all())
        True
    """
    index = torch.arange(num_orders, device="cpu")
    return torch.argsort(indexed_uniforms(seed, index, dim, number=1), dim=1, stable=True)


def check_orders(orders: int | Tensor, seed: int, num_rows: int, base: Tensor) -> Tensor:
    """Orders as int64 [1 or num_rows, M, D].

    Args:
        orders: a number M of orders, 0 … M−1 of `seed`; or int64 [D], [M, D], or [num_rows, M, D].
        seed: of the orders, where they are a number.
        base: int64 [D], order 0 of seed 0.

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: orders are of another shape or on another device than the base, or no permutations.
    """
    D, device = len(base), base.device
    if not isinstance(orders, Tensor) or orders.dim() == 0:
        M = plain_integer("orders", orders, "a number of orders or a tensor of them")
        seed = plain_integer("seed", seed)
        if M < 1:
            raise ValueError(f"orders must be at least 1, got {M}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
        return base[None, None] if (M, seed) == (1, 0) else random_orders(M, D, seed).to(device)[None]
    if orders.dtype != torch.int64:
        raise TypeError(f"orders must be an int64 tensor or a number, got {orders.dtype}")
    if orders.device != device:
        raise ValueError(f"orders are on {orders.device}, the parameters on {device}: they must be on the same")
    shape = list(orders.shape)
    if orders.dim() > 3 or shape[-1] != D or 0 in shape[1:-1] or (orders.dim() == 2 and shape[0] == 0):
        raise ValueError(f"orders must be [{D}], [M, {D}] or [{num_rows}, M, {D}], got {shape}")
    orders = orders.view(1, -1, D) if orders.dim() < 3 else orders
    if len(orders) not in (1, num_rows):
        raise ValueError(f"orders must hold one set or one for each of the {num_rows} rows of x, got {shape}")
    wrong = (orders.sort(dim=-1).values != torch.arange(D, device=device)).any(dim=-1)
    if bool(wrong.any()):
        raise ValueError(f"orders must be permutations of 0 … {D - 1}, got {orders[wrong][0].tolist()}")
    return orders


def mixture_log_prob(before: Tensor, after: Tensor) -> Tensor:
    """log p(target | observed), [B], under the mixture of M orders.

    Args:
        before, after: log p_o(observed) and log p_o(target | observed) of every order, [B, M] both.
    """
    if before.shape[1] == 1:
        return after[:, 0]
    return torch.logsumexp(before + after, dim=1) - torch.logsumexp(before, dim=1)


def draw_orders(orders: Tensor, before: Tensor, u: Tensor) -> Tensor:
    """An order for every row, in proportion to the probability that it gives to what is observed: int64 [N, D].

    Args:
        orders: int64 [1 or N, M, D].
        before: log p_o(observed) of every order, [N, M].
        u: a uniform for every row, [N, 1].
    """
    chosen = (torch.softmax(before, dim=1).cumsum(dim=1) <= u).sum(dim=1).clamp(max=orders.shape[1] - 1)
    return orders.expand(len(before), -1, -1)[torch.arange(len(before), device=before.device), chosen]


def check_sets(x: Tensor, observed: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two sets as masks, bool [B, D].

    Args:
        x: [B, D].
        observed: bool [D] or [B, D]; None for nothing.
        target: bool [D] or [B, D]; None for all that is not observed.

    Raises:
        TypeError: a mask is of another type or dtype.
        ValueError: a mask is of another shape or on another device than x, or the two overlap.
    """
    nothing = torch.zeros(x.shape, dtype=torch.bool, device=x.device)  # zeros_like would be of torch.vmap's examples
    observed = nothing if observed is None else _check_mask("observed", observed, x)
    if target is None:
        return observed, ~observed
    target = _check_mask("target", target, x)
    both = (observed & target).any(dim=0)
    if not is_wrapped(both) and bool(both.any()):
        raise ValueError(f"observed and target must not overlap, but both hold dimension {int(both.int().argmax())}")
    return observed, target


def _check_mask(name: str, mask: Tensor, x: Tensor) -> Tensor:
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool mask, got {mask.dtype}")
    if mask.shape not in (x.shape[1:], x.shape):
        raise ValueError(f"{name} must be [{x.shape[1]}] or {list(x.shape)}, got {list(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"{name} is on {mask.device}, x on {x.device}: they must be on the same")
    return mask.expand(x.shape)
