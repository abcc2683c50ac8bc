"""Seeds, and pyar's promise about random numbers.

Sample i of a seed is a function of the model, the seed and i alone: of no batch size, thread count, number of processes
or, up to the last ulp of the logits, device. The uniform of (seed, i, d) comes from the counter-based generator
Philox4x32-10 with the 64-bit seed as key and (d, i) as counter (pyar.reference.philox.uniforms).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyar.scalars import plain_integer


def resolve_seed(
    seed: int | None = None, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """The 64-bit seed of a sampling call, as an int64 tensor [] on `device` that holds its bit pattern.

    Args:
        seed: a number in [0, 2⁶⁴), or None to draw one from `generator`, or without one from torch's default
            generator of the device, which torch.manual_seed governs.
        generator: where to draw the seed from; on `device`.

    Raises:
        TypeError: seed is not an integer, or generator not a torch.Generator.
        ValueError: seed is out of range, both seed and generator are given, or generator is on another device.
    """
    device = torch.device(device)
    if seed is None:
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
            if generator.device.type != device.type:
                raise ValueError(f"generator is on {generator.device}, the model on {device}: they must be on the same")
        return torch.randint(-(2**63), 2**63 - 1, (), generator=generator, dtype=torch.int64, device=device)
    if generator is not None:
        raise ValueError(f"give a seed or a generator, not both (got seed={seed!r} and a generator)")
    number = plain_integer("seed", seed, "an integer in [0, 2**64) or None")
    if not 0 <= number < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {number}")
    return torch.tensor(number if number < 2**63 else number - 2**64, dtype=torch.int64, device=device)
