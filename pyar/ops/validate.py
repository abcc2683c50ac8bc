"""Checks that the operations share. Each error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyar.ops.transforms import is_wrapped
from pyar.scalars import plain_integer, plain_number

# Torch shares larger work than this among its threads, and on a busy machine would wait for each of them.
_MOST_ALONE = 32767


def check_parameters(expected: Sequence[tuple[str, Tensor, Sequence[int]]]) -> None:
    """Whether parameters are float32 tensors of the expected shapes on one device.

    Inside torch.autocast any floating type is taken, since the operations cast to float32 there.

    Args:
        expected: name, tensor and expected shape of every parameter.

    Raises:
        TypeError: a parameter is not a tensor or not float32.
        ValueError: a parameter has another shape, or is on another device than the first.
    """
    first_name, first, _ = expected[0]
    for name, parameter, shape in expected:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(parameter).__name__}")
        if parameter.dtype != torch.float32 and not (
            parameter.is_floating_point() and torch.is_autocast_enabled(parameter.device.type)
        ):
            raise TypeError(f"{name} must be float32, got {parameter.dtype}; convert the model with .float()")
        if parameter.shape != torch.Size(shape):
            raise ValueError(f"{name} must be {list(shape)}, got {list(parameter.shape)}")
        if parameter.device != first.device:
            raise ValueError(
                f"{name} is on {parameter.device}, {first_name} on {first.device}: they must be on the same"
            )


def check_dimensions(name: str, tensor: Tensor, shape: str, *allowed: int) -> None:
    """Whether a tensor has one of the allowed numbers of dimensions; `shape` says what they mean.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it has another number of dimensions, or one of them is empty.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(tensor).__name__}")
    if tensor.dim() not in allowed or 0 in tensor.shape:
        raise ValueError(f"{name} must be {shape} and not empty, got {list(tensor.shape)}")


def check_layers(hidden: Sequence[Tensor], units: int) -> tuple[list[tuple[str, Tensor, Sequence[int]]], int]:
    """What check_parameters has to know about dense layers, and the number of units of the last.

    Args:
        hidden: weight [outputs, inputs] and bias [outputs] of every layer in turn.
        units: the inputs of the first.

    Raises:
        TypeError: a weight is not a tensor.
        ValueError: the tensors are not pairs, or a weight not a matrix.
    """
    if len(hidden) % 2 != 0:
        raise ValueError(f"hidden must hold a weight and a bias for every layer, got {len(hidden)} tensors")
    layers: list[tuple[str, Tensor, Sequence[int]]] = []
    for number, (weight, bias) in enumerate(zip(hidden[::2], hidden[1::2], strict=True), start=2):
        check_dimensions(f"hidden weight {number}", weight, "[outputs, inputs]", 2)
        layers.append((f"hidden weight {number}", weight, (weight.shape[0], units)))
        layers.append((f"hidden bias {number}", bias, (weight.shape[0],)))
        units = weight.shape[0]
    return layers, units


def check_states(name: str, x: Tensor, num_dims: int, num_states: int, device: torch.device) -> Tensor:
    """States as the kernels take them.

    The range is checked here for CPU tensors in eager mode. Elsewhere (CUDA, torch.compile) looking at the values would
    stop the device or the tracing, and the kernels refuse bad states themselves.

    Args:
        x: uint8 or int64 [B, num_dims], states 0 … num_states − 1.
        device: where x must be.

    Returns:
        uint8 [B, num_dims].

    Raises:
        TypeError: x is not a tensor of uint8 or int64.
        ValueError: x has another shape or device, or a value out of range.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"{name} must be uint8 or int64, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != num_dims:
        raise ValueError(f"{name} must be [B, {num_dims}], got {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the parameters on {device}: they must be on the same")
    if x.device.type == "cpu" and has_values(x):
        return _checked_values(name, x, num_states)
    if x.dtype == torch.int64:
        x = torch.where((x < 0) | (x > 255), 255, x)  # so that a bad state stays one
    return x if x.dtype == torch.uint8 else x.to(torch.uint8)


def _checked_values(name: str, x: Tensor, num_states: int) -> Tensor:
    states = (
        x if x.dtype == torch.uint8 else torch.empty_like(x, dtype=torch.uint8, memory_format=torch.contiguous_format)
    )
    bounds = []
    for part, target in zip(x.flatten().split(_MOST_ALONE), states.flatten().split(_MOST_ALONE), strict=True):
        if part.numel() > 0:
            bounds += [int(bound) for bound in torch.aminmax(part)]
        if states is not x:
            target.copy_(part)
    if bounds and (min(bounds) < 0 or max(bounds) >= num_states):
        raise ValueError(f"{name} must hold states 0 … {num_states - 1}, got values {min(bounds)} … {max(bounds)}")
    return states


def check_values(name: str, x: Tensor, num_dims: int, device: torch.device, *, holes: bool = False) -> Tensor:
    """Whether x holds real values, float32 [B, num_dims], on the device.

    Args:
        holes: whether values may be missing, NaN.

    Raises:
        TypeError: x is not a float32 tensor.
        ValueError: x has another shape, is on another device, or holds infinite values, or NaN.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {x.dtype}; convert it with .float()")
    if x.dim() != 2 or x.shape[1] != num_dims:
        raise ValueError(f"{name} must be [B, {num_dims}], got {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the parameters on {device}: they must be on the same")
    if has_values(x):
        whole = x.contiguous().flatten()
        for start in range(0, len(whole), _MOST_ALONE):
            part = whole[start : start + _MOST_ALONE]
            wrong = part.isinf() if holes else ~part.isfinite()
            if not bool(wrong.any()):
                continue
            row, column = divmod(start + int(wrong.nonzero()[0]), num_dims)
            allowed = "finite numbers or NaN" if holes else "finite numbers"
            raise ValueError(f"{name} must hold {allowed}, got {x[row, column].item()} at [{row}, {column}]")
    return x


def check_given(
    given: Tensor | None, num_samples: int, num_dims: int, num_states: int, device: torch.device
) -> Tensor | None:
    """The forced first dimensions as the kernels take them.

    Args:
        given: uint8 or int64 [num_samples, G], or [G] for all samples alike, with G ≤ num_dims; or None.

    Returns:
        uint8 [num_samples, G], or None.

    Raises:
        TypeError, ValueError: as check_states.
    """
    if given is None:
        return None
    if not isinstance(given, Tensor):
        raise TypeError(f"given must be a tensor or None, got {type(given).__name__}")
    if given.dim() not in (1, 2) or given.shape[-1] > num_dims:
        raise ValueError(f"given must be [{num_samples}, G] or [G] with G at most {num_dims}, got {list(given.shape)}")
    if given.dim() == 2 and given.shape[0] != num_samples:
        raise ValueError(f"given must have a row for each of the {num_samples} samples, got {given.shape[0]}")
    states = check_states("given", torch.atleast_2d(given), given.shape[-1], num_states, device)
    return states.expand(num_samples, -1)


def check_weights(weights: Tensor, x: Tensor) -> Tensor:
    """A weight for every example of x [B, D].

    Raises:
        TypeError: weights are not a float32 tensor.
        ValueError: they are not [B], or on another device than x.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor or None, got {type(weights).__name__}")
    if weights.dtype != torch.float32:
        raise TypeError(f"weights must be float32, got {weights.dtype}")
    if weights.shape != x.shape[:1]:
        raise ValueError(f"weights must be [{x.shape[0]}], one for each row of x, got {list(weights.shape)}")
    if weights.device != x.device:
        raise ValueError(f"weights are on {weights.device}, x on {x.device}: they must be on the same")
    return weights


def check_sampling(num_samples: int, first_index: int, temperature: float) -> tuple[int, int, float]:
    """The numbers that every sampling call takes, as plain ones.

    Raises:
        TypeError: num_samples or first_index is not an integer, or temperature not a number.
        ValueError: num_samples or first_index is negative, their sum not below 2⁶³, or temperature not positive and
            finite.
    """
    num_samples = plain_integer("num_samples", num_samples)
    first_index = plain_integer("first_index", first_index)
    for name, value in (("num_samples", num_samples), ("first_index", first_index)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if first_index + num_samples >= 2**63:
        raise ValueError(f"first_index + num_samples must be below 2**63, got {first_index} + {num_samples}")
    return num_samples, first_index, check_temperature(temperature)


def check_temperature(temperature: float) -> float:
    """The temperature as a plain number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not positive and finite.
    """
    temperature = float(plain_number("temperature", temperature))
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return temperature


def check_seed(seed: Tensor, device: torch.device) -> None:
    """The seed as operations take it.

    Raises:
        TypeError: it is not an int64 tensor.
        ValueError: it is not [], or on another device than the parameters.
    """
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        got = seed.dtype if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(f"seed must be an int64 tensor [], as pyar.random.resolve_seed makes it, got {got}")
    if seed.dim() != 0:
        raise ValueError(f"seed must be [], got {list(seed.shape)}")
    if seed.device != device:
        raise ValueError(f"seed is on {seed.device}, the parameters on {device}: they must be on the same")


def has_values(x: Tensor) -> bool:
    """Whether x is an ordinary tensor whose values may be looked at: none of torch.compile's or torch.func's."""
    return not torch.compiler.is_compiling() and (
        type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not is_wrapped(x)
    )
