"""The command line: `pyar train|evaluate|sample|complete|recipes|reproduce|info`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from pyar.cli.parser import make_parser

EXIT_ERROR = 1  # the user's: a missing file, data that do not fit, …
EXIT_USAGE = 2  # argparse's
EXIT_SIGNAL = 128  # plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors of the user's become one line on stderr.

    The environment variable PYAR_DEBUG=1 shows their tracebacks.
    """
    arguments = list(map(str, sys.argv[1:] if arguments is None else arguments))
    try:
        _import_modules(arguments)
    except ImportError as error:
        print(f"pyar: --import: {error}", file=sys.stderr)
        return EXIT_ERROR
    parser = make_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    parsed = parser.parse_args(arguments)
    from pyar.cli.common import UserError  # torch is imported only once there is something to do

    try:
        return _run(parsed)
    except KeyboardInterrupt:
        print("pyar: interrupted", file=sys.stderr)
        return EXIT_SIGNAL + 2
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (UserError, OSError, MemoryError) as error:
        if os.environ.get("PYAR_DEBUG"):
            raise
        print(f"pyar: {_message(error)}", file=sys.stderr)
        return EXIT_ERROR


def _import_modules(arguments: Sequence[str]) -> None:
    """Imports what --import names, before anything is parsed: models that are registered there have options."""
    for place, argument in enumerate(arguments):
        flag, _, module = argument.partition("=")
        module = module or "".join(arguments[place + 1 : place + 2])
        if flag != "--import" or not module:
            continue
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` has it
        importlib.import_module(module)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _run(parsed) -> int:
    from pyar.cli import commands, recipes, train
    from pyar.cli.common import user_errors

    run = {
        "train": train.run,
        "evaluate": commands.evaluate,
        "sample": commands.sample,
        "complete": commands.complete,
        "recipes": recipes.list_recipes,
        "reproduce": recipes.reproduce,
        "info": commands.info,
    }[parsed.command]
    with user_errors():
        return run(parsed)
