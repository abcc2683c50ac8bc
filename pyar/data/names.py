"""What the names of arrays, files and folders say: which split they are, and whether they hold examples or labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

_SPLITS = {"train": r"train(?:ing)?", "valid": r"val(?:id(?:ation)?)?|dev(?:el(?:opment)?)?", "test": r"test(?:ing)?"}
_SPLIT = "|".join(f"(?P<{split}>{words})" for split, words in _SPLITS.items())
_EXAMPLES = (
    r"x|data(?:set)?|images?|imgs?|samples?|examples?|features?|inputs?|states?|spins?|config(?:uration)?s?|pixels?"
    r"|vectors?|rows?|set|split"
)
_LABELS = r"y|labels?|targets?|class(?:es)?"
_WORD = re.compile(rf"(?:{_EXAMPLES})|(?P<labels>{_LABELS})")
# "x_train", "X-test", "trainLabels" fall into words by themselves; "xtrain" and "testdata" need this.
_RUN_TOGETHER = re.compile(rf"(?P<before>{_EXAMPLES}|{_LABELS})?(?:{_SPLIT})(?P<after>{_EXAMPLES}|{_LABELS})?")
_PARTITION = re.compile(r"folds?|splits?|partitions?")


class Meaning(NamedTuple):
    """What a name says. `split`: "train", "valid", "test" or None. `rest`: the words that say neither."""

    split: str | None
    role: Literal["examples", "labels"]
    rest: tuple[str, ...]


def meaning(name: str) -> Meaning:
    """What the name of an array, a file or a folder says, in any case and with any separators.

    >>> meaning("X_val"), meaning("trainLabels"), meaning("faces-test")
    (Meaning(split='valid', role='examples', rest=()), Meaning(split='train', role='labels', rest=()), \
Meaning(split='test', role='examples', rest=('faces',)))
    """
    splits: list[str] = []
    rest: list[str] = []
    labels = False
    for word in _words(name):
        together = _RUN_TOGETHER.fullmatch(word)
        known = _WORD.fullmatch(word)
        if together:
            splits += [split for split in _SPLITS if together[split]]
            labels |= any(part and re.fullmatch(_LABELS, part) for part in (together["before"], together["after"]))
        elif known:
            labels |= known["labels"] is not None
        else:
            rest.append(word)
    if len(splits) > 1:  # "train_test": neither
        return Meaning(None, "labels" if labels else "examples", (*splits, *rest))
    return Meaning(splits[0] if splits else None, "labels" if labels else "examples", tuple(rest))


def is_split(name: str) -> bool:
    """Whether a name says a split of examples and nothing else: "train", "X_val", "test images"."""
    found = meaning(name)
    return found.split is not None and found.role == "examples" and not found.rest


def looks_like_split(name: str) -> bool:
    """Whether something of this name must not be left out silently: "train_2", "test_mask", "fold"."""
    words = _words(name)
    return any(_RUN_TOGETHER.fullmatch(word) for word in words) or any(_PARTITION.fullmatch(word) for word in words)


def by_split(names: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The names of each split's examples, and of each split's labels.

    A word that all examples share is the data's own name: "faces_train", "faces_test". Several names of one split are
    all returned, for the caller to refuse.
    """
    found = {name: meaning(name) for name in names}
    with_split = {name: what for name, what in found.items() if what.split is not None}
    examples = {name: what for name, what in with_split.items() if what.role == "examples"}
    rests = {what.rest for what in examples.values()}
    shared = rests.pop() if len(rests) == 1 and len(examples) > 1 else ()
    result: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for name, what in with_split.items():
        if what.rest == shared:
            result[what.role == "labels"].setdefault(str(what.split), []).append(name)
    return result


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", name)]
