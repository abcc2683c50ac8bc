"""The command line: `pyar train|evaluate|sample|complete|score|impute|recipes|reproduce|info`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from pyar.cli.errors import UserError
from pyar.cli.parser import make_parser
from pyar.cli.streams import legible_streams

EXIT_ERROR = 1  # the user's: a missing file, data that do not fit, …
EXIT_USAGE = 2  # argparse's
EXIT_SIGNAL = 128  # plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors of the user's become one line on stderr.

    The environment variable PYAR_DEBUG=1 shows their tracebacks.
    """
    with legible_streams():
        try:
            try:
                return _run(list(map(str, sys.argv[1:] if arguments is None else arguments)))
            finally:
                _flush()
        except KeyboardInterrupt:
            _tell("interrupted")
            return EXIT_SIGNAL + 2
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            return EXIT_ERROR
        except Exception as error:
            message = _message(error)
            if message is None or os.environ.get("PYAR_DEBUG"):
                raise
            _tell(message)
            return EXIT_ERROR


def _run(arguments: Sequence[str]) -> int:
    _import_modules(arguments)
    parser = make_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    parsed = parser.parse_args(arguments)
    from pyar.cli import commands, recipes, tables, train  # torch is imported only once there is something to do
    from pyar.cli.common import user_errors

    run = {
        "train": train.run,
        "evaluate": commands.evaluate,
        "sample": commands.sample,
        "complete": commands.complete,
        "score": tables.score,
        "impute": tables.impute,
        "recipes": recipes.list_recipes,
        "reproduce": recipes.reproduce,
        "info": commands.info,
    }[parsed.command]
    with user_errors():
        return run(parsed)


def _import_modules(arguments: Sequence[str]) -> None:
    """Imports what --import names, before anything is parsed: models that are registered there have options."""
    for place, argument in enumerate(arguments):
        flag, _, module = argument.partition("=")
        module = module or "".join(arguments[place + 1 : place + 2])
        if flag != "--import" or not module:
            continue
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` has it
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--import: {error}") from error


def _message(error: Exception) -> str | None:
    """The line for an error that the user can do something about; None for one that is pyar's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        if error.strerror is None:
            return str(error) or type(error).__name__
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in text):  # torch's
        return f"not enough memory{f' ({text.splitlines()[0]})' if text else ''}"
    return None


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # a caller that has closed stderr still gets the exit code
        print(f"pyar: {message}", file=sys.stderr, flush=True)


def _flush() -> None:
    """Writes what is buffered for stdout now, where a failure can be told, and not when the interpreter ends."""
    if sys.stdout is None:  # the caller has closed it
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would try once more
        error.filename = "standard output"
        raise
