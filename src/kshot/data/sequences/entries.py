"""The entries of the sequence tasks in the catalogue, with the sizes beyond training that the paper tests."""

from __future__ import annotations

from collections.abc import Callable

from kshot.data.dataset import DataSet, Growth
from kshot.data.sequences.associative_recall import associative_recall_tasks
from kshot.data.sequences.copying import copy_tasks
from kshot.data.sequences.ngrams import ngrams_tasks
from kshot.data.sequences.priority_sort import priority_sort_tasks
from kshot.data.sequences.repeat_copy import repeat_copy_tasks
from kshot.data.source import TaskSource


def _entry(name: str, tasks: Callable[..., TaskSource], summary: str, growth: Growth | None = None) -> DataSet:
    return DataSet(
        name=name,
        kind="sequence",
        summary=summary,
        licence="none needed: made by a formula",
        url="https://arxiv.org/abs/1410.5401",
        tasks=tasks,
        growth=growth,
    )


ENTRIES = (
    _entry(
        "copy",
        copy_tasks,
        "sequences of bits to be put out again, the first task of Neural Turing Machines",
        Growth("length", ("min_length", "max_length"), (10, 20, 30, 50, 120)),
    ),
    _entry(
        "repeat_copy",
        repeat_copy_tasks,
        "sequences of bits to be put out as often as told, and an end mark",
        Growth(
            "length and number of copies", ("min_length", "max_length", "min_repeats", "max_repeats"), (5, 10, 15, 20)
        ),
    ),
    _entry(
        "associative_recall",
        associative_recall_tasks,
        "lists of items; shown one of them, the next is asked",
        Growth("items", ("min_items", "max_items"), (2, 6, 10, 15, 20)),
    ),
    _entry("ngrams", ngrams_tasks, "bits of a random source that is new in every sequence, each to be predicted"),
    _entry("priority_sort", priority_sort_tasks, "vectors of bits to be put out by their priorities"),
)
