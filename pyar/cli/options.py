"""The command line's options of a model: its constructor's arguments, in its own words."""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyar.models import AutoregressiveModel
from pyar.tables import Real

# Arguments that the data answer; and those that are no options, since --order translates the one and features for
# every example, which the other is the number of, come from Python alone.
DATA_FACTS = ("dim", "num_states", "image_shape", "columns", "num_classes")
NO_OPTIONS = ("order", "context_size")
_DESTINATION = "option_"


@dataclass(frozen=True)
class Option:
    """One argument of a constructor: `kind` is int, float, str, bool or tuple (of integers), `choices` a Literal's."""

    name: str
    kind: type
    choices: tuple[Any, ...] | None
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def constructor_options(model: type) -> list[Option]:
    """The options of a model; TypeError names an argument whose annotation is no option."""
    hints, described = typing.get_type_hints(model.__init__), argument_texts(model)
    options = []
    for name, parameter in inspect.signature(model).parameters.items():
        if name in (*DATA_FACTS, *NO_OPTIONS):
            continue
        kind, choices = _kind(f"{model.__qualname__}'s argument {name}", hints.get(name, str))
        default = None if parameter.default is parameter.empty else parameter.default
        options.append(Option(name, kind, choices, default, described.get(name, "")))
    return options


def takes_columns(model: type) -> bool:
    """Whether it is a model of a table: its constructor is told the columns."""
    return "columns" in inspect.signature(model).parameters


def takes_reals(model: type) -> bool:
    """Whether it is a model of real vectors: neither of states nor told what its columns are."""
    return not issubclass(model, AutoregressiveModel) and not takes_columns(model)


def kind_of_reals(arguments: Mapping[str, Any]) -> Real:
    """What every column of a table is for a model of real vectors with these constructor's arguments."""
    names = {"num_components": "components", "family": "family", "min_scale": "min_scale"}
    return Real(**{own: arguments[name] for name, own in names.items() if name in arguments})


def _kind(what: str, hint: Any) -> tuple[type, tuple[Any, ...] | None]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        others = [argument for argument in arguments if argument is not type(None)]
        if len(others) == 1:
            return _kind(what, others[0])
    if origin is typing.Literal:
        return type(arguments[0]), arguments
    if hint in (int, float, str, bool):
        return hint, None
    if origin in (tuple, list, collections.abc.Sequence) and arguments[0] is int:
        return tuple, None
    raise TypeError(f"{what} is annotated {hint}, which cannot be an option of the command line")


def argument_texts(model: type) -> dict[str, str]:
    """What the class's docstring says of each argument under "Args:", on one line each."""
    doc = inspect.getdoc(model) or ""
    _, _, section = doc.partition("\nArgs:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        start = re.match(r"^ {4}(\w+): (.+)$", line)
        if start:
            name = start[1]
            texts[name] = start[2].strip()
        elif line.strip() and name:
            texts[name] += " " + line.strip()
    return texts


def add_model_options(parser: argparse.ArgumentParser, model: type, parsers: dict[type, Callable[[str], Any]]) -> None:
    """Adds the options of the model, and --order if it has one; `parsers` reads int, float and tuple."""
    group = parser.add_argument_group(f"{model.name} (defaults by data set: its recipe's)")
    for option in constructor_options(model):
        text = option.help.rstrip(".").replace("%", "%%")
        if option.default not in (None, ()):
            text += f" [{option.default}]"
        settings: dict[str, Any] = {"dest": _DESTINATION + option.name, "help": text, "default": None}
        if option.kind is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **settings)
            continue
        if option.choices is not None:
            settings["choices"] = option.choices
        else:
            settings["metavar"] = {int: "N", float: "X", str: "TEXT", tuple: "N,…"}[option.kind]
        group.add_argument(option.flag, type=parsers.get(option.kind, option.kind), **settings)
    if "order" in inspect.signature(model).parameters:
        group.add_argument(
            "--order", choices=("raster", "reverse", "random"), help="order of the dimensions [raster]", default=None
        )


def said_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The constructor's arguments that the user gave, as plain values."""
    given = {name[len(_DESTINATION) :]: value for name, value in vars(arguments).items() if is_option(name)}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in given.items() if v is not None}


def is_option(destination: str) -> bool:
    """Whether a name in the parsed arguments is a model's option."""
    return destination.startswith(_DESTINATION)


def flag_of(destination: str) -> str:
    """The option's name as the user writes it."""
    return "--" + destination.removeprefix(_DESTINATION).replace("_", "-")
