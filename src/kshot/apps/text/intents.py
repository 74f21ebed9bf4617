"""Two public sets of sentences by what the writer wants, for measuring few-shot classification of texts.

BANKING77: Casanueva et al., "Efficient Intent Detection with Dual Sentence Encoders", 2020, arXiv 2003.04807
(CC BY 4.0).
CLINC150: Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019,
arXiv 1909.02027 (CC BY 3.0).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core import UserError
from kshot.data.store import data_root

_BANKING_URL = "https://github.com/PolyAI-LDN/task-specific-datasets (folder banking_data)"
_CLINC_URL = "https://github.com/clinc/oos-eval (folder data)"


class Intents(NamedTuple):
    """A set of sentences by intent; label i is the i-th class in alphabetical order.

    Attributes:
        train_x: sentences to draw shots from.
        train_y: their labels.
        test_x: sentences to measure on.
        test_y: their labels.
        class_names: names of the intents, sorted.
        outside_x: test sentences of no intent; empty where the set has none.
    """

    train_x: list[str]
    train_y: Tensor
    test_x: list[str]
    test_y: Tensor
    class_names: tuple[str, ...]
    outside_x: list[str]


def banking77(root: Path | str | None = None) -> Intents:
    """Read BANKING77: 77 intents of a bank's customers, 10,003 training and 3,080 test sentences.

    Args:
        root: the data root, see ``kshot.data.store.data_root``; files are in its ``text/banking77``.

    Returns:
        The set.

    Raises:
        UserError: a file is absent or not what it should be.
    """
    folder = data_root(root) / "text" / "banking77"
    pairs = [_read_csv(folder / name) for name in ("train.csv", "test.csv")]
    return _intents(pairs[0], pairs[1], [])


def clinc150(root: Path | str | None = None) -> Intents:
    """Read CLINC150: 150 intents, 15,000 training and 4,500 test sentences, and 1,000 test sentences out of scope.

    Args:
        root: the data root; the file is its ``text/clinc150/data_full.json``.

    Returns:
        The set.

    Raises:
        UserError: the file is absent or not what it should be.
    """
    path = data_root(root) / "text" / "clinc150" / "data_full.json"
    raw = _text(path, _CLINC_URL)
    try:
        held = json.loads(raw)
        train, test, outside = ([(x, y) for x, y in held[part]] for part in ("train", "test", "oos_test"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected CLINC150 in {path}, could not read it ({error}); get it from {_CLINC_URL}"
        ) from error
    return _intents(train, test, [x for x, _ in outside])


def draw_shots(labels: Tensor, n_shot: int, generator: torch.Generator) -> Tensor:
    """Draw shots: as many random examples of each class.

    Args:
        labels: (N,) labels of the training set.
        n_shot: K, examples of each class.
        generator: source of randomness.

    Returns:
        (W K,) indices, class by class in the order of the labels.

    Raises:
        UserError: a class has fewer than K examples.
    """
    drawn = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero().flatten()
        if len(mine) < n_shot:
            raise UserError(f"expected {n_shot} examples of class {label}, got {len(mine)}; ask for fewer shots")
        drawn.append(mine[torch.randperm(len(mine), generator=generator)[:n_shot]])
    return torch.cat(drawn)


def _text(path: Path, url: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"expected the file {path}, which cannot be read; get it from {url}") from error


def _read_csv(path: Path) -> list[tuple[str, str]]:
    rows = list(csv.reader(io.StringIO(_text(path, _BANKING_URL), newline="")))
    if not rows or rows[0] != ["text", "category"] or any(len(row) != 2 for row in rows):
        raise UserError(f"expected the columns text, category in {path}, got others; get it from {_BANKING_URL}")
    return [(text, label) for text, label in rows[1:]]


def _intents(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], outside: list[str]) -> Intents:
    names = tuple(sorted({name for _, name in train}))
    number = {name: i for i, name in enumerate(names)}
    strange = sorted({name for _, name in test} - number.keys())
    if strange:
        raise UserError(f"expected test classes that training has, got also {strange[:3]}; get the files again")
    return Intents(
        train_x=[text for text, _ in train],
        train_y=torch.tensor([number[name] for _, name in train]),
        test_x=[text for text, _ in test],
        test_y=torch.tensor([number[name] for _, name in test]),
        class_names=names,
        outside_x=outside,
    )
