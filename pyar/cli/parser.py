"""Every option and its help.

Imports no torch, so that --help is immediate; only the options of a model, which its constructor says, need its class.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pyar.models import model_class, model_names
from pyar.recipes import recipes

_LABELS_OF_RUN = "for models trained with --labels: the column of a table that has them [the training's]"
OBSERVED_REGIONS = ("left", "right", "top", "bottom", "center")

_EXAMPLES = """\
examples:
  pyar train nade                                 train on scikit-learn's 8×8 digits, a minute
  pyar train nade --data binarized-mnist          28×28 digits, from --data-dir or downloaded
  pyar train pixel-lstm --data digits             the recurrent model
  pyar evaluate runs/nade-digits                  exact test NLL of what was trained
  pyar sample runs/nade-digits --out sheet.png    draw a sheet of samples
  pyar sample runs/nade-digits -n 100000 --out samples.npz
  pyar complete runs/nade-digits                  top halves given, bottom halves drawn
  pyar train table --data adult.csv               a table of mixed columns, with holes
  pyar score RUN --data new.csv --out scored.csv  how probable each row, how surprising each cell
  pyar impute RUN --data holes.csv --out full.csv
  pyar recipes                                    what is known to work, and what it reaches

`pyar COMMAND --help` explains a command's options.
"""
_TRAIN_EXAMPLES = """\
examples:
  pyar train nade
  pyar train nade --data binarized-mnist --time-budget 20m --hidden-size 1000
  pyar train nade --data mnist --levels 10
  pyar train nade --data faces/ --levels 8              a folder of images of one size
  pyar train nade --data spins.npy                      integers 0 … K−1, [N, D] or [N, height, width]
  pyar train --resume runs/nade-digits                  go on after Ctrl-C or a kill
  torchrun --nproc-per-node=4 -m pyar train nade        four processes share each mini-batch

The run folder gets model.safetensors (the weights with the best validation NLL), log.jsonl, learning_curve.png,
samples.png, result.json, config.json and training_state.pt. Ctrl-C saves, says how to go on, and exits with 130.
Runs whose budget is in epochs are repeated, and resumed, bit for bit; with a time budget the learning rate follows
the clock.
"""
_SAMPLE_EXAMPLES = """\
examples:
  pyar sample runs/nade-digits --out sheet.png
  pyar sample runs/nade-digits -n 1000000 --out samples.npz --seed 7
  pyar sample runs/nade-digits --given prefix.npy --out sheet.png
  pyar sample RUN --label 3 --out threes.png            of a run that was trained with --labels
  torchrun --nproc-per-node=2 -m pyar sample RUN -n 1000000 --out samples.npz

samples.npz holds x (uint8 [N, D]), log_prob (float32 [N], nats), seed and first_index, and labels (int64 [N]) where the
model is given such. Sample i of a seed is always the same, whatever the batch, the threads or the number of processes.
Under torchrun process r of R writes samples.rank-r-of-R.npz; x, log_prob and labels of the parts, put together in order
of r, are those of one process's file.
"""


def path(text: str) -> str:
    """A path whose "~" is the home directory; the shell leaves it in --out=~/runs and in quotes."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, but it is empty")
    expanded = os.path.expanduser(text)
    if re.match(r"~(/|$)", expanded):
        raise argparse.ArgumentTypeError(f"there is no home directory for {text}; give the whole path")
    return expanded


def duration(text: str) -> float:
    """Seconds of "90", "90s", "4.5m" or "1h"."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|m|min|h)?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"expected a time like 90s, 4.5m or 1h, not {text!r}")
    seconds = float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"the time must be positive, not {text!r}")
    return seconds


def shape(text: str) -> tuple[int, int]:
    """(height, width) of "28x28"."""
    match = re.fullmatch(r"([1-9][0-9]*)[x×]([1-9][0-9]*)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 28x28, not {text!r}")
    return int(match[1]), int(match[2])


def sizes(text: str) -> tuple[int, ...]:
    """Positive integers separated by commas."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values):
        raise argparse.ArgumentTypeError(f"expected sizes such as 500,300, not {text!r}")
    return values


def _number(kind: type, low: float, high: float = math.inf, *, above: bool = False):
    """A parser of numbers in [low, high], or above low."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {'an integer' if kind is int else 'a number'}, not {text!r}"
            ) from None
        if not low <= value <= high or (above and value == low) or value == math.inf:
            bound = f"above {low}" if above else f"at least {low}"
            upper = "" if kind is int and high == math.inf else f" and at most {high}"
            upper = " and finite" if kind is float and high == math.inf else upper
            raise argparse.ArgumentTypeError(f"must be {bound}{upper}, not {text}")
        return value

    return parse


_COUNT = _number(int, 0, 2**63 - 1)
_integer = _number(int, -(2**63))
_POSITIVE_COUNT = _number(int, 1, 2**63 - 1)
_POSITIVE = _number(float, 0, above=True)
_NOT_NEGATIVE = _number(float, 0)
_SEED = _number(int, 0, 2**64 - 1)


class _Parser(argparse.ArgumentParser):
    """A mistake gets one line and, where an option is misspelt, the nearest that there is; not the whole usage."""

    model: str | None = None  # whose options these are

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings if option != "--help"]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
            if self.model is not None and unknown[0].startswith("-"):
                problem = f"{unknown[0].partition('=')[0]} is not an option of {self.model}"
            else:
                problem = f"there is no option or argument {unknown[0]}"
            self.error(problem + (f"; did you mean {near[0]}?" if near else ""))
        return parsed, unknown


def _add_common(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    group = parser.add_argument_group("where and how it runs")
    if device:
        group.add_argument(
            "--device", default="auto", help="cpu, cuda, cuda:1, …; auto: a GPU if there is one [%(default)s]"
        )
        group.add_argument("--threads", type=_number(int, 1, 1024), metavar="N", help="CPU threads [torch's choice]")
        group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    group.add_argument(
        "--import",
        dest="imports",
        action="append",
        metavar="MODULE",
        help="import this Python module first, such as one that registers a model; may be repeated",
    )
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_weight_dtype(parser, help: str) -> None:
    choices = ("float32", "bfloat16")
    parser.add_argument("--weight-dtype", choices=choices, help=f"for models that have it, as pixel-lstm: {help}")


def _add_data(
    parser: argparse.ArgumentParser, default: str | None, default_text: str, labels_help: str = _LABELS_OF_RUN
) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=path,
        default=default,
        metavar="NAME|PATH",
        help="digits, mnist, fashion-mnist, binarized-mnist, a file (.npy, .npz, .safetensors, .csv, .tsv, .parquet) "
        f"or a folder of images, arrays or IDX files [{default_text}]",
    )
    group.add_argument(
        "--data-dir", type=path, metavar="DIR", help="where to look for data first [the environment variable PYAR_DATA]"
    )
    group.add_argument(
        "--cache-dir", type=path, metavar="DIR", help="where downloads are kept [the user's cache folder]"
    )
    group.add_argument(
        "--levels",
        type=_number(int, 2, 256),
        metavar="K",
        help="quantise grey values to K states [digits: all 17; other images: 10]",
    )
    group.add_argument(
        "--binarize",
        choices=("fixed", "threshold", "dynamic"),
        help="make grey values binary: drawn once; by threshold at half; drawn anew for each epoch",
    )
    group.add_argument(
        "--white", type=_number(int, 1, 65535), metavar="W", help="grey value of white in an array or table"
    )
    group.add_argument("--grey", action="store_const", const=True, help="convert colour images to grey")
    group.add_argument("--background", choices=("white", "black"), help="what lies behind transparent images")
    group.add_argument(
        "--image-shape",
        type=shape,
        metavar="HxW",
        help="of vectors in an array or table [square, if it fits]",
    )
    group.add_argument("--labels", nargs="?", const=True, metavar="COLUMN", help=labels_help)


def _whole_name(text: str) -> str:
    """The model's name; its beginning up to a hyphen is enough where no other begins so: "table" for "table-nade"."""
    begun = [name for name in model_names() if name.startswith(f"{text}-")]
    return begun[0] if text not in model_names() and len(begun) == 1 else text


def _named_kind(text: str) -> tuple[str, str]:
    """(column, kind) of "age=integer:0..120"."""
    name, equals, kind = text.rpartition("=")
    if not equals or not name or not kind:
        raise argparse.ArgumentTypeError(f"expected COLUMN=KIND such as age=integer:0..120, got {text!r}")
    return name, kind


def _names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _add_columns(parser: argparse.ArgumentParser, kinds: bool) -> None:
    """What is said of a table's columns, for models of tables, and of real vectors, whose columns are of one kind."""
    group = parser.add_argument_group("columns")
    group.add_argument("--drop", type=_names, metavar="NAME,…", help="columns that are left out")
    if not kinds:
        return
    group.add_argument(
        "--kind",
        type=_named_kind,
        action="append",
        metavar="NAME=KIND",
        help="what a column is, where that shall not be decided from its values: real (a density), real:0.1 (the "
        "probability of a value with that resolution), integer:0..120, categorical; may be repeated",
    )


def _add_train(commands, model: str | None) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model on data",
        description="Trains a model by maximum likelihood, shows its exact test NLL and writes a sheet of samples.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.model = model
    parser.add_argument(
        "model",
        nargs="?",
        type=_whole_name,
        choices=model_names(),
        metavar="MODEL",
        help=f"{', '.join(model_names())}, or what only one begins with; not needed with --resume. Its options: "
        "`pyar train MODEL --help`",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="the run folder [a new runs/MODEL-DATA]")
    parser.add_argument(
        "--resume", type=path, metavar="DIR", help="go on with the run in this folder; the budget may be changed"
    )
    _add_data(
        parser,
        None,
        "digits",
        "the model is given the labels of the examples, and samples by label later; COLUMN: of a table, where they are "
        "[label, class, target or y]",
    )
    group = parser.add_argument_group("budget (defaults by model and data set)")
    group.add_argument("--epochs", type=_POSITIVE, metavar="N", help="passes over the train split")
    group.add_argument("--max-steps", type=_POSITIVE_COUNT, metavar="N", help="steps of the optimiser")
    group.add_argument(
        "--time-budget",
        type=duration,
        metavar="TIME",
        help="such as 90s, 4.5m, 1h",
    )
    group.add_argument(
        "--patience",
        type=_COUNT,
        metavar="N",
        help="stop after N evaluations without improvement; 0: never",
    )
    if model is not None:
        from pyar.cli.options import add_model_options, takes_columns, takes_reals

        add_model_options(parser, model_class(model), {int: _integer, tuple: sizes})
        family = model_class(model)
        if takes_columns(family) or takes_reals(family):
            _add_columns(parser, kinds=takes_columns(family))
    group = parser.add_argument_group("optimiser (defaults by model and data set)")
    group.add_argument("--batch-size", type=_POSITIVE_COUNT, metavar="B", help="examples per step, over all processes")
    group.add_argument("--learning-rate", type=_POSITIVE, metavar="R", help="Adam's step size")
    group.add_argument(
        "--schedule",
        choices=("linear", "cosine", "constant", "plateau"),
        help="of the step size over the budget; plateau: it falls when the valid NLL no longer does",
    )
    group.add_argument(
        "--plateau-patience", type=_POSITIVE_COUNT, metavar="N", help="plateau: after N evaluations without gain"
    )
    group.add_argument(
        "--plateau-factor",
        type=_number(float, 0, 0.999999, above=True),
        metavar="F",
        help="plateau: to F of what it was",
    )
    group.add_argument(
        "--plateau-threshold", type=_NOT_NEGATIVE, metavar="P", help="plateau: a gain is a part P of the NLL"
    )
    group.add_argument(
        "--min-learning-rate", type=_POSITIVE, metavar="R", help="plateau: the run ends before it falls below R"
    )
    group.add_argument("--warmup-steps", type=_COUNT, metavar="N", help="steps over which the step size rises")
    group.add_argument("--clip-norm", type=_NOT_NEGATIVE, metavar="C", help="greatest gradient norm; 0: none")
    group.add_argument("--weight-decay", type=_NOT_NEGATIVE, metavar="W", help="decoupled, on matrices")
    group.add_argument(
        "--ema", type=_number(float, 0, 0.999999), metavar="D", help="average weights with decay D; 0: no"
    )
    group.add_argument("--beta1", type=_number(float, 0, 0.999999), metavar="B", help="Adam's first decay")
    group.add_argument("--beta2", type=_number(float, 0, 0.999999), metavar="B", help="Adam's second decay")
    group.add_argument("--epsilon", type=_POSITIVE, metavar="E", help="Adam's epsilon")
    group.add_argument(
        "--eval-every", type=_POSITIVE, metavar="N", help="epochs between evaluations; may be a fraction"
    )
    group.add_argument("--eval-batch-size", type=_POSITIVE_COUNT, metavar="B", help="examples at a time in evaluations")
    group.add_argument(
        "--save-every", type=duration, metavar="TIME", help="between savings of the training state [30s]"
    )
    group.add_argument("--amp", action=argparse.BooleanOptionalAction, default=None, help="bfloat16 autocast")
    group.add_argument("--seed", type=_number(int, 0, 2**63 - 1), metavar="S", help="of everything random [0]")
    group.add_argument("--samples", type=_COUNT, default=100, metavar="N", help="samples on the sheet [%(default)s]")
    _add_common(parser)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="exact NLL of a trained model",
        description="The exact mean negative log-likelihood of examples, with its standard error, in nats and bits per "
        "dimension. Without --data these are the test split of what the model was trained on; a file without splits is "
        "scored whole, every row in its order.",
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder or a .safetensors file")
    parser.add_argument(
        "--split", choices=("train", "valid", "test"), help="of the data [test; of a file without splits all rows]"
    )
    parser.add_argument(
        "--batch-size", type=_POSITIVE_COUNT, default=500, metavar="B", help="examples at a time [%(default)s]"
    )
    parser.add_argument(
        "--orders",
        type=_orders,
        metavar="M,…",
        help="deep-nade: the NLL under mixtures of so many orders, such as 1,2,4,8, and how far single orders disagree "
        "[the base order alone]",
    )
    parser.add_argument(
        "--out",
        type=path,
        action="append",
        metavar="FILE",
        help=".npy or .csv: log p of every example in nats, an anomaly score; .png, with --orders: a plot of the NLL "
        "against the number of orders; may be repeated",
    )
    _add_weight_dtype(parser, "round the recurrent weights, and say what that does to the NLL [the run's own]")
    _add_data(parser, None, "what the model was trained on")
    _add_common(parser)


def _add_sample(commands) -> None:
    parser = commands.add_parser(
        "sample",
        help="draw samples into a file or a picture",
        description="Draws exact samples and their log-probabilities.",
        epilog=_SAMPLE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder or a .safetensors file")
    parser.add_argument(
        "-n", "--num-samples", type=_POSITIVE_COUNT, metavar="N", help="samples [100; with --given: its number of rows]"
    )
    parser.add_argument(
        "--out",
        type=path,
        action="append",
        metavar="FILE",
        help=".npz, .npy (x alone; log-probabilities beside it) or .png (a grid); of a table .csv, .parquet or .png; "
        "may be repeated [samples.png, samples.csv]",
    )
    parser.add_argument("--seed", type=_SEED, default=0, metavar="S", help="of the samples [%(default)s]")
    parser.add_argument(
        "--first-index", type=_COUNT, default=0, metavar="I", help="number of the first sample [%(default)s]"
    )
    parser.add_argument(
        "--temperature", type=_POSITIVE, default=1.0, metavar="T", help="divides the logits [%(default)s]"
    )
    _add_weight_dtype(parser, "round the recurrent weights; see pyar evaluate --help [the run's own]")
    parser.add_argument(
        "--given",
        type=path,
        metavar="FILE|VALUES",
        help='.npy, or .npz with one array: states of the first G steps, [G] or [N, G]; of a table "age=40,sex=female"',
    )
    parser.add_argument(
        "--chunk-size", type=_POSITIVE_COUNT, default=10_000, metavar="B", help="samples at a time [%(default)s]"
    )
    parser.add_argument(
        "--label",
        action="append",
        metavar="L",
        help="for models trained with --labels: samples of this class, its name or number; may be repeated, then in "
        "turn [all: every class in turn]",
    )
    parser.add_argument(
        "--columns",
        type=_POSITIVE_COUNT,
        metavar="C",
        help="of the picture [square; of several classes a row for each]",
    )
    _add_common(parser)


def _observed(text: str) -> float | str:
    """A part of the dimensions, or the name of a region or of a file."""
    if text in OBSERVED_REGIONS:
        return text
    if text.endswith(".npy"):
        return path(text)
    part = text.removeprefix("random:")
    try:
        fraction = float(part)
    except ValueError:
        fraction = math.nan
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a number from 0 to 1, random:F with such a number, {', '.join(OBSERVED_REGIONS)} "
            f"or a .npy file, got {text!r}"
        )
    return fraction if part == text else text


def _orders(text: str) -> list[int]:
    """Numbers of orders such as 1,2,4."""
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected numbers of orders such as 1,2,4, got {text!r}")
    return sorted({int(number) for number in numbers})


def _add_complete(commands) -> None:
    parser = commands.add_parser(
        "complete",
        help="complete partly seen images",
        description="Takes examples of which a part is observed (by default the first half in the model's order, for "
        "images the top) and draws the rest from its exact conditional distribution. The picture has one row per "
        "example: the original, what was observed of it, the completions.",
    )
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder or a .safetensors file")
    parser.add_argument(
        "--observed",
        type=_observed,
        default=0.5,
        metavar="WHAT",
        help="what is observed: a part F from 0 to 1 that comes first; left, right, top, bottom or center of an "
        "image; random:F, dimensions drawn by the seed; MASK.npy, true for observed dimensions. A model of a fixed "
        "order takes what comes first in it, deep-nade everything [%(default)s]",
    )
    parser.add_argument(
        "-n", "--num-examples", type=_POSITIVE_COUNT, default=8, metavar="N", help="examples [%(default)s]"
    )
    parser.add_argument(
        "--completions", type=_POSITIVE_COUNT, default=8, metavar="S", help="of each example [%(default)s]"
    )
    parser.add_argument(
        "--first", type=_COUNT, metavar="I", help="take examples I, I + 1, … [examples spread over the split]"
    )
    parser.add_argument(
        "--split", choices=("train", "valid", "test"), help="of the data [test; of a file without splits all rows]"
    )
    parser.add_argument(
        "--examples", type=path, metavar="FILE", help=".npy, or .npz with one array: states [N, D], instead of a split"
    )
    parser.add_argument(
        "--label",
        metavar="L",
        help="for models trained with --labels: complete all as examples of this class [each example's own label]",
    )
    parser.add_argument(
        "--out", type=path, action="append", metavar="FILE", help=".png or .npz; may be repeated [completions.png]"
    )
    parser.add_argument("--seed", type=_SEED, default=0, metavar="S", help="of the samples [%(default)s]")
    parser.add_argument(
        "--temperature", type=_POSITIVE, default=1.0, metavar="T", help="divides the logits [%(default)s]"
    )
    _add_weight_dtype(parser, "round the recurrent weights; see pyar evaluate --help [the run's own]")
    _add_data(parser, None, "what the model was trained on")
    _add_common(parser)


def _add_table_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder or a .safetensors file, of a table")
    parser.add_argument(
        "--data",
        type=path,
        required=True,
        metavar="FILE",
        help="rows with the columns of the training, in any order: .csv, .tsv, .parquet or .npz",
    )
    parser.add_argument(
        "--data-dir", type=path, metavar="DIR", help="where to look for data first [the environment variable PYAR_DATA]"
    )
    parser.add_argument(
        "--orders", type=_POSITIVE_COUNT, metavar="M", help="how many orders are mixed, by a model of any order [8]"
    )


def _add_score(commands) -> None:
    parser = commands.add_parser(
        "score",
        help="how probable the rows of a table are, and how surprising their cells",
        description="The exact log-density of every row in nats, of what is there, and the surprise of every cell, "
        "−log p(cell | all else in its row). Prints the least probable rows.",
    )
    _add_table_data(parser)
    parser.add_argument(
        "--out", type=path, metavar="FILE", help=".csv or .parquet: the table with log_prob and the surprises beside it"
    )
    parser.add_argument("--picture", type=path, metavar="FILE", help=".png: the most surprising cells as a heat map")
    _add_common(parser)


def _add_impute(commands) -> None:
    parser = commands.add_parser(
        "impute",
        help="fill the missing values of a table",
        description="Draws what is missing from its exact distribution given all else in the row. What is there stays "
        "as it is.",
    )
    _add_table_data(parser)
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help=".csv or .parquet")
    parser.add_argument(
        "-n", "--num-samples", type=_POSITIVE_COUNT, default=1, metavar="N", help="tables to draw: OUT-0, OUT-1, … [1]"
    )
    parser.add_argument(
        "--best-guess",
        action="store_true",
        help="no draws: the mean of numbers, the median of whole numbers, the most frequent category",
    )
    parser.add_argument(
        "--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="S", help="of the draws [%(default)s]"
    )
    _add_common(parser)


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info",
        help="what is built and in use; what a run folder holds",
        description="Says what the native extension was built for and what is in use; with RUN, what that model is.",
    )
    parser.add_argument("run", type=path, metavar="RUN", nargs="?", help="a run folder or a .safetensors file")
    _add_common(parser, device=False)


def _add_recipes(commands) -> None:
    parser = commands.add_parser(
        "recipes",
        help="what is known to work, and what it reaches",
        description="Lists the recipes: a model, a data set, what they reached, and the published figure beside it. "
        "`pyar train` takes its defaults from them, and `pyar reproduce NAME` runs one.",
    )
    parser.add_argument("--markdown", action="store_true", help="the table of results, as README and site have it")
    parser.add_argument("--json", action="store_true", help="print them as one JSON object, with all settings")


def _add_reproduce(commands) -> None:
    parser = commands.add_parser(
        "reproduce",
        help="run a recipe and say whether it keeps its promise",
        description="Trains as the recipe says, evaluates on the test split, compares with what the recipe promises "
        "and with the published figure, and says in words whether it holds. Exits with 1 if it does not.",
    )
    parser.add_argument(
        "recipe", choices=sorted(recipes()), metavar="NAME", help="one of those that `pyar recipes` lists"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="the run folder [a new runs/NAME]")
    parser.add_argument(
        "--data-dir", type=path, metavar="DIR", help="where to look for data first [the environment variable PYAR_DATA]"
    )
    parser.add_argument(
        "--cache-dir", type=path, metavar="DIR", help="where downloads are kept [the user's cache folder]"
    )
    _add_common(parser)


def named_model(arguments: Sequence[str]) -> str | None:
    """The model whose options the command line is about: that of `train MODEL`, or of the run it resumes."""
    if not arguments or arguments[0] != "train":
        return None
    named = [argument for argument in arguments[1:] if argument in model_names()]
    if named:
        return named[0]
    if arguments[1:] and _whole_name(arguments[1]) in model_names():
        return _whole_name(arguments[1])
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--resume" and (value or arguments[place + 1 :]):
            return _model_of_run(Path(os.path.expanduser(value or arguments[place + 1])))
    return None


def _model_of_run(folder: Path) -> str | None:
    """The model of a run folder; None where that cannot be told, which resuming it will explain."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in model_names() else None


def make_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the options of the model that the arguments name."""
    parser = _Parser(
        prog="pyar",
        description=f"Exact autoregressive density models ({', '.join(model_names())}): train, evaluate, sample, "
        "complete.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands, named_model(arguments))
    for add in (
        _add_evaluate,
        _add_sample,
        _add_complete,
        _add_score,
        _add_impute,
        _add_recipes,
        _add_reproduce,
        _add_info,
    ):
        add(commands)
    return parser
