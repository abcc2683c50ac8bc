"""The model families: a file each, found by its name and imported on first use.

The family "pixel-lstm" is the class PixelLSTM of pixel_lstm.py. Families of other packages are registered
(`register_model`), or announced as entry points of the group "pyar.models".
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyar.models.base import DensityModel

ENTRY_POINTS = "pyar.models"
_NO_FAMILIES = {"base", "layers", "orders", "pixel_rnn", "plane"}

_registered: dict[str, type[DensityModel]] = {}


def register_model(model: type[DensityModel]) -> type[DensityModel]:
    """Makes a model of another package known by its `name`, to the command line and to `pyar.load`.

    The command line's options for it are its constructor's arguments: their annotations (int, float, bool, str,
    Literal, Sequence[int], or one of these or None), defaults, and descriptions under "Args:" in the class's
    docstring. Those named dim, num_states, image_shape and num_classes are taken from the data, and `order` becomes
    --order. A model whose constructor has num_classes is trained with --labels: its methods take `context`, labels
    int64 [B], as pyar.models.plane.ImageModel's. Serves as a decorator.

    Args:
        model: a subclass of pyar.AutoregressiveModel, or of pyar.DensityModel, with a `name` of its own.

    Returns:
        The class itself.

    Raises:
        TypeError: it is not such a class.
        ValueError: its name is another class's.

    Example:
        >>> @pyar.register_model
        ... class Wider(pyar.NADE):
        ...     name = "wider-nade"
        >>> "wider-nade" in pyar.models.model_names()
        True
    """
    from pyar.models.base import DensityModel

    if not (isinstance(model, type) and issubclass(model, DensityModel)):
        raise TypeError(f"model must be a subclass of pyar.AutoregressiveModel, got {model!r}")
    name = model.__dict__.get("name")
    if not isinstance(name, str) or not name or name.startswith("-") or any(c.isspace() for c in name):
        raise TypeError(f"{model.__name__}.name must be a word such as 'my-model', got {name!r}")
    known = _registered.get(name)
    same = known is not None and (known.__module__, known.__qualname__) == (model.__module__, model.__qualname__)
    if (known is not None and not same) or name in _own_families():
        raise ValueError(f"the name {name!r} is taken by {model_class(name).__qualname__}")
    _registered[name] = model
    return model


@functools.cache
def _own_families() -> dict[str, str]:
    """Name → module of every family of pyar's own."""
    modules = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_FAMILIES]
    return {module.replace("_", "-"): f"{__name__}.{module}" for module in modules}


@functools.cache
def _announced() -> dict[str, importlib.metadata.EntryPoint]:
    """Name → entry point of every family that an installed package announces."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def model_names() -> list[str]:
    """The names of all families that are known here, sorted. Imports none of them."""
    return sorted({*_own_families(), *_announced(), *_registered})


def model_class(name: str) -> type[DensityModel]:
    """The class of a family.

    Raises:
        KeyError: no family of that name is known here.
    """
    if name in _own_families():
        module = importlib.import_module(_own_families()[name])
        (found,) = [value for value in vars(module).values() if _name_in(value, module.__name__) == name]
        return found
    if name not in _registered and name in _announced():
        _registered[name] = _announced()[name].load()
    if name not in _registered:
        raise KeyError(f"no model is called {name!r}; known are {', '.join(model_names())}")
    return _registered[name]


def _name_in(value: Any, module: str) -> str | None:
    """The `name` of a class that the module defines."""
    return value.__dict__.get("name") if isinstance(value, type) and value.__module__ == module else None


def __getattr__(attribute: str) -> Any:
    if attribute in ("AutoregressiveModel", "DensityModel"):
        return getattr(importlib.import_module("pyar.models.base"), attribute)
    for module in _own_families().values():
        if module.rpartition(".")[2].replace("_", "") == attribute.lower():
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
