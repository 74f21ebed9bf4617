"""Shots, shots left out and what they tell, as the commands on fitted models word them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kshot.estimator.expected import Expected
    from kshot.estimator.sources import Source

#: One example and several, by kind.
_WORDS = {"image": ("image", "images"), "text": ("text", "texts"), "molecule": ("molecule", "molecules")}
_LONGEST = 60
_MOST_SKIPPED = 10


def amount(n: int, kind: str) -> str:
    """Count examples.

    Args:
        n: how many.
        kind: what they are.

    Returns:
        Such as "1 image", "2,000 rows".
    """
    one, many = _WORDS.get(kind, ("row", "rows"))
    return f"{n:,} {one if n == 1 else many}"


def spread(counts: Tensor) -> str:
    """Say how many shots the classes have.

    Args:
        counts: of each class.

    Returns:
        Such as "5", "1 to 12".
    """
    few, many = int(counts.min()), int(counts.max())
    return f"{few:,}" if few == many else f"{few:,} to {many:,}"


def expectation(expected: Expected | None) -> str:
    """Write the accuracy to expect.

    Args:
        expected: the estimate.

    Returns:
        One line.
    """
    if expected is None:
        return "cannot be estimated"
    low, high = 100 * expected.low, 100 * expected.high
    return f"{100 * expected.accuracy:.1f} % (95% interval {low:.1f} to {high:.1f}), from {expected.n:,} shots left out"


def vouched(n_judged: int) -> str:
    """Say at which error rates a model can answer "unknown".

    Args:
        n_judged: shots left out whose strangeness is known.

    Returns:
        One line.
    """
    if not n_judged:
        return "cannot be told: no class has two examples"
    return f"can be told at an error rate of {100 / (n_judged + 1):.2g} % or more (kshot predict --unknown-rate)"


def brief(text: str) -> str:
    """Shorten a text to what fits a table.

    Args:
        text: any text.

    Returns:
        Its beginning, in one line.
    """
    line = " ".join(text[: 4 * _LONGEST].split())
    whole = len(line) <= _LONGEST and len(text) <= 4 * _LONGEST
    return line if whole else f"{line[: _LONGEST - 1].rstrip()}…"


def title(source: Source, i: int) -> str:
    """Call an example by its place, and a text by its words, too.

    Args:
        source: what was read.
        i: which example.

    Returns:
        One line.
    """
    name = source.names[i]
    return name if source.kind in ("image", "table") else f"{name}: {brief(source.examples[i])}"


def size(path: Path) -> str:
    """Tell how large a file is.

    Args:
        path: the file.

    Returns:
        Such as "1.2 MB".
    """
    n = path.stat().st_size
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def notes(source: Source) -> list[str]:
    """Say what a person should know of data that was read.

    Args:
        source: what was read.

    Returns:
        Lines: its notes, and the examples that were left out.
    """
    lines = [f"note: {note}" for note in source.notes]
    lines += [f"left out: {name}: {why}" for name, why in source.skipped[:_MOST_SKIPPED]]
    more = len(source.skipped) - _MOST_SKIPPED
    return [*lines, f"left out: {more:,} more"] if more > 0 else lines
