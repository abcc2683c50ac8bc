"""What a column of a table can be, and how its values become numbers in units of their spread."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyar.reference.conditionals import Categories, Conditional, Mixture
from pyar.reference.mixtures import FAMILIES
from pyar.scalars import plain_integer, plain_number

Level = str | int | float | bool
_FARTHEST = 1e12  # scales: farther values have no square in float32
_CELL_FLOOR = 0.1  # of a cell: so narrow a component has all its mass in one


@dataclass(frozen=True)
class Categorical:
    """One of several categories, by a softmax.

    Args:
        levels: the categories in order: texts, numbers or truth values, each once. One alone has the probability 1.

    Raises:
        TypeError: levels are of another type.
        ValueError: there is none, or one stands twice.
    """

    levels: tuple[Level, ...]
    name: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        if isinstance(self.levels, str) or not hasattr(self.levels, "__iter__"):
            raise TypeError(
                f"levels must be a sequence of categories, got {type(self.levels).__name__} {self.levels!r}"
            )
        levels = tuple(level.item() if isinstance(level, np.generic) else level for level in self.levels)
        for level in levels:
            if not isinstance(level, str | int | float) or level != level:
                raise TypeError(f"levels must be texts, numbers or truth values, got {type(level).__name__} {level!r}")
        if not levels:
            raise ValueError("levels must hold one category at least")
        if len(set(levels)) < len(levels):
            twice = next(level for level in levels if levels.count(level) > 1)
            raise ValueError(f"levels must differ from one another, but {twice!r} stands twice")
        object.__setattr__(self, "levels", levels)

    @property
    def conditional(self) -> Conditional:
        """The distribution that a model has of it."""
        return Categories(len(self.levels))

    @property
    def log_scale(self) -> float:
        """What a density in the column's own units lacks against that of the encoded values; 0 for probabilities."""
        return 0.0

    def numbers(self, codes: NDArray[np.float64], title: str) -> NDArray[np.float64]:
        """The encoded values of category numbers, which they are."""
        return codes

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.levels[:4])) + (", …" if len(self.levels) > 4 else "")
        return f"{self.name} of {len(self.levels)} ({shown})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.name, "levels": list(self.levels)}


@dataclass(frozen=True)
class Binary(Categorical):
    """One of two values, by one logit.

    Args:
        levels: the two.
    """

    levels: tuple[Level, ...] = (False, True)
    name: ClassVar[str] = "binary"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) != 2:
            raise ValueError(f"levels of a binary column must be two, got {list(self.levels)}")

    def __str__(self) -> str:
        return f"binary ({self.levels[0]!r}, {self.levels[1]!r})"


class _Number:
    """What columns of numbers share: values are encoded as (value − location)/scale."""

    location: float
    scale: float

    def encoded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """In units of the scale."""
        return (values - self.location) / self.scale

    def numbers(self, values: NDArray[np.float64], title: str) -> NDArray[np.float64]:
        """The encoded values of finite numbers and NaN.

        Raises:
            ValueError: a value cannot be one of this column; the message begins with `title`.
        """
        encoded = self.encoded(values)
        far = np.abs(encoded) > _FARTHEST
        if far.any():
            raise ValueError(
                f"{title}: {_row(far, values)} is more than {_FARTHEST:.0e} standard deviations ({self.scale:.3g}) "
                f"from the mean {self.location:.3g}"
            )
        return encoded


@dataclass(frozen=True)
class Integer(_Number):
    """A whole number from `low` to `high`, by a mixture of logistics of which each has its exact probability.

    Args:
        low, high: the least and the greatest value.
        components: of the mixture.
        location, scale: values are encoded as (value − location)/scale; None for the middle and a quarter of the range.

    Raises:
        TypeError: an argument is of another type.
        ValueError: low is above high, components below 1, or the range too wide for float32.
    """

    low: int
    high: int
    components: int = 5
    location: float | None = None  # type: ignore[assignment]
    scale: float | None = None  # type: ignore[assignment]
    name: ClassVar[str] = "integer"

    def __post_init__(self) -> None:
        low, high = plain_integer("low", self.low), plain_integer("high", self.high)
        if low > high or high - low >= 2**22 or max(-low, high) >= 2**53:
            raise ValueError(
                f"low must be at most high, and high − low below 2**22, got {low} and {high}; a wider range is "
                "Real(resolution=1)"
            )
        location = (low + high) / 2 if self.location is None else self.location
        scale = max((high - low) / 4, 1.0) if self.scale is None else self.scale
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        _set_numbers(self, location, scale)

    @property
    def conditional(self) -> Conditional:
        """As Categorical's."""
        low, high = (self.encoded(np.float64(value)).item() for value in (self.low, self.high))
        step = 1.0 / self.scale
        return Mixture(self.components, "logistic", _CELL_FLOOR * step, step, low, low, high)

    @property
    def log_scale(self) -> float:
        """As Categorical's."""
        return 0.0

    def numbers(self, values: NDArray[np.float64], title: str) -> NDArray[np.float64]:
        """As _Number's."""
        broken = values != np.round(values)
        broken &= ~np.isnan(values)
        if broken.any():
            raise ValueError(f"{title}: {_row(broken, values)} is no whole number")
        outside = (values < self.low) | (values > self.high)
        if outside.any():
            raise ValueError(f"{title}: {_row(outside, values)} is outside {self.low} … {self.high}")
        return super().numbers(values, title)

    def values(self, encoded: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `encoded`."""
        return np.clip(np.round(self.location + self.scale * encoded), self.low, self.high)

    def __str__(self) -> str:
        return f"integer {self.low} … {self.high}, {self.components} logistics"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.name, **asdict(self)}


@dataclass(frozen=True)
class Real(_Number):
    """A measurement, by a mixture; its density, or with a resolution its probability.

    Args:
        components: of the mixture.
        family: of each component, "gaussian", "logistic" or "laplace".
        resolution: δ, for values that are rounded to multiples of it: a value has the probability of ± δ/2, by
            differences of cumulative distributions. None for a density.
        min_scale: what is added to every component's scale, in units of `scale`; it bounds the density by
            f(0)/(scale·min_scale). With a resolution, which needs no bound, a tenth of it is added in its place.
        location, scale: values are encoded as (value − location)/scale.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of its range.
    """

    components: int = 10
    family: str = "gaussian"
    resolution: float | None = None
    min_scale: float = 0.01
    location: float = 0.0
    scale: float = 1.0
    name: ClassVar[str] = "real"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be {' or '.join(map(repr, FAMILIES))}, got {self.family!r}")
        for name in ("resolution", "min_scale"):
            value = getattr(self, name)
            if value is None and name == "resolution":
                continue
            number = float(plain_number(name, value))
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
            object.__setattr__(self, name, number)
        _set_numbers(self, self.location, self.scale)

    @property
    def conditional(self) -> Conditional:
        """As Categorical's."""
        if self.resolution is None:
            return Mixture(self.components, self.family, self.min_scale)
        step = self.resolution / self.scale
        return Mixture(self.components, self.family, _CELL_FLOOR * step, step, self.encoded(np.float64(0.0)).item())

    @property
    def log_scale(self) -> float:
        """As Categorical's."""
        return math.log(self.scale) if self.resolution is None else 0.0

    def numbers(self, values: NDArray[np.float64], title: str) -> NDArray[np.float64]:
        """As _Number's."""
        if self.resolution is not None:
            cells = values / self.resolution
            off = np.abs(cells - np.round(cells)) > 1e-4 + 1e-12 * np.abs(cells)
            if off.any():
                raise ValueError(
                    f"{title}: {_row(off, values)} is no multiple of the resolution {self.resolution:g}; round the "
                    "column, or say a finer resolution"
                )
        return super().numbers(values, title)

    def values(self, encoded: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `encoded`."""
        values = self.location + self.scale * encoded
        if self.resolution is None:
            return values
        digits = -int(Decimal(repr(self.resolution)).normalize().as_tuple().exponent)
        return np.round(np.round(values / self.resolution) * self.resolution, digits)

    def __str__(self) -> str:
        if self.resolution is None:
            bound = f"density, scales of at least {self.min_scale:g} of {self.scale:.4g}"
        else:
            bound = f"probability of ± {self.resolution / 2:g}"
        return f"real, {self.components} of {self.family}, {bound}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.name, **asdict(self)}


Kind = Binary | Categorical | Integer | Real
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Binary, Categorical, Integer, Real)}


def kind_from_json(values: dict[str, Any]) -> Kind:
    """The inverse of `to_json`.

    Raises:
        ValueError: there is no such kind.
        TypeError: it has other arguments.
    """
    arguments = dict(values)
    name = arguments.pop("kind", None)
    if name not in KINDS:
        raise ValueError(f"a column's kind must be {' or '.join(KINDS)}, got {name!r}")
    return KINDS[name](**{key: tuple(value) if key == "levels" else value for key, value in arguments.items()})


def location_and_scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of finite numbers, whose squares may be too large or too small; (0, 1) of none.

    Numbers that are all alike have the scale 1.
    """
    if len(values) == 0:
        return 0.0, 1.0
    unit = float(np.abs(values).max())
    if unit == 0.0:
        return 0.0, 1.0
    shares = values / unit
    mean, deviation = float(shares.mean()) * unit, float(shares.std()) * unit
    return (mean, deviation) if deviation > 1e-14 * unit else (mean, 1.0)  # less is what rounding leaves of none


def _set_numbers(column: Integer | Real, location: float, scale: float) -> None:
    components = plain_integer("components", column.components)
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    location, scale = float(plain_number("location", location)), float(plain_number("scale", scale))
    if not math.isfinite(location):
        raise ValueError(f"location must be finite, got {location}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    for name, value in (("components", components), ("location", location), ("scale", scale)):
        object.__setattr__(column, name, value)


def _row(wrong: NDArray[np.bool_], values: NDArray[np.float64]) -> str:
    row = int(np.argmax(wrong))
    return f"{values[row]:.10g} in row {row}"
