"""Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405) in plain PyTorch: the random numbers of csrc/common/philox.h, word for word."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox4x32_10(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox: four random 32-bit words for each counter.

    Args:
        counter: int64 [..., 4], words in [0, 2³²).
        key: two words in [0, 2³²).

    Returns:
        int64 [..., 4], words in [0, 2³²).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    key0, key1 = key
    for _ in range(10):
        # int64 products wrap around, which keeps their 64 bits; the masks undo the sign that the shift spreads.
        product0 = MULTIPLIERS[0] * c0
        product1 = MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD) ^ c1 ^ key0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ c3 ^ key1,
            product0 & WORD,
        )
        key0 = (key0 + WEYL_INCREMENTS[0]) & WORD
        key1 = (key1 + WEYL_INCREMENTS[1]) & WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniforms(
    seed: int, first_index: int, num_samples: int, num_dims: int, device: torch.device | str | None = None
) -> Tensor:
    """The uniforms that samples first_index … first_index + num_samples − 1 of a seed are drawn with.

    Key = the seed's two words, low first; counter = (d >> 2, 0, index low, index high); word r = d & 3 of the result;
    u = ((r >> 9) + 1/2)·2⁻²³, exact in float32 and strictly inside (0, 1).

    Args:
        seed: any 64 bits: a number in [0, 2⁶⁴), or in [−2⁶³, 0) for its int64 pattern.
        first_index: in [0, 2⁶³ − num_samples].

    Returns:
        float32 [num_samples, num_dims].
    """
    index = first_index + torch.arange(num_samples, dtype=torch.int64, device=device)
    return indexed_uniforms(seed, index, num_dims)


def indexed_uniforms(seed: int, index: Tensor, num_dims: int, number: int = 0) -> Tensor:
    """The uniforms of any samples of a seed.

    Args:
        seed: as uniforms.
        index: int64 [N], the samples' numbers.
        number: the counter's second word: 0 for the uniforms that states are drawn with, 1 … for further ones.

    Returns:
        float32 [N, num_dims].
    """
    return ((_indexed_words(seed, index, num_dims, number) >> 9).to(torch.float32) + 0.5) * 2.0**-23


def indexed_fine_uniforms(seed: int, index: Tensor, num_dims: int, number: int) -> Tensor:
    """As indexed_uniforms, but u = (r + 1/2)·2⁻³² with all bits of the word r, for values drawn far out in a tail.

    Returns:
        float64 [N, num_dims], strictly inside (0, 1).
    """
    return (_indexed_words(seed, index, num_dims, number).to(torch.float64) + 0.5) * 2.0**-32


def _indexed_words(seed: int, index: Tensor, num_dims: int, number: int) -> Tensor:
    """The random words r of (sample, dimension): int64 [N, num_dims]."""
    seed &= 0xFFFFFFFF_FFFFFFFF
    block = torch.arange((num_dims + 3) // 4, dtype=torch.int64, device=index.device)
    index, block = torch.broadcast_tensors(index[:, None], block[None, :])
    counter = torch.stack((block, torch.full_like(block, number), index & WORD, (index >> 32) & WORD), dim=-1)
    return philox4x32_10(counter, (seed & WORD, seed >> 32)).flatten(1)[:, :num_dims]
