"""Single values as arguments: Python's, NumPy's and torch's are equally welcome, and are stored as plain ones."""

from __future__ import annotations

import numbers
import operator
from typing import Any


def plain_integer(name: str, value: Any, expected: str = "an integer") -> int:
    """The value as an int. A bool is no number here, and a float no integer, even if it is whole.

    Args:
        name: the argument's, for the error.
        value: of any type.
        expected: what the error says that it must be.

    Raises:
        TypeError: it is not an integer.

    Example:
        >>> plain_integer("dim", numpy.prod((4, 4)))
        16
    """
    number = _item(value)
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__} {value!r}")
    return operator.index(number)


def plain_number(name: str, value: Any) -> int | float:
    """The value as an int, if it is an integer, or else as a float.

    Raises:
        TypeError: it is not a real number.

    Example:
        >>> plain_number("temperature", numpy.float32(0.5))
        0.5
    """
    number = _item(value)
    if isinstance(number, bool) or not isinstance(number, int | float | numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    return operator.index(number) if hasattr(number, "__index__") else float(number)


def plain_bool(name: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
        TypeError: it is neither True nor False; 0 and 1 are not.

    Example:
        >>> plain_bool("amp", numpy.True_)
        True
    """
    truth = _item(value)
    if not isinstance(truth, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__} {value!r}")
    return truth


def _item(value: Any) -> Any:
    """What an array or a tensor without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
