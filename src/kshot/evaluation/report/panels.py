"""What a learner was shown, answered and did along a sequence, as matrices in which time runs to the right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.evaluation.pictures import ReadingPicture, SequencePicture
from kshot.evaluation.report.pixels import ink, signed, strip

#: As many as any machine of the papers has.
MAX_HEADS = 8
#: A location counts where a head ever puts so much of its weight on it.
TOUCHED = 0.05
#: What a trace may hold, in the order of a step, and what a panel calls it.
KNOWN = {
    "key": "key",
    "add": "added",
    "erase": "erased",
    "write weightings": "write weighting",
    "usage": "usage",
    "memory": "memory",
    "read weightings": "read weighting",
    "read": "read back",
    "hidden units": "hidden units",
}

Shown = SequencePicture | ReadingPicture


class Panel(NamedTuple):
    """One matrix along time.

    Attributes:
        name: what it is.
        remark: in small letters below the name.
        pixels: uint8 (rows, steps * per_step, 4).
        first: the step that its first column stands at.
        row: height of a row.
        missed: (row, column) of what is wrong.
        per_step: columns of a step.
        photo: they are images in colour, which no theme may turn over.
    """

    name: str
    remark: str
    pixels: Tensor
    first: int
    row: float
    missed: Tensor
    per_step: int = 1
    photo: bool = False

    @property
    def height(self) -> float:
        """Of all rows."""
        return self.row * self.pixels.shape[0]

    @property
    def n_steps(self) -> int:
        """How many steps it shows."""
        return self.pixels.shape[1] // self.per_step


def length(picture: Shown) -> int:
    """Count the steps of a picture.

    Args:
        picture: of a sequence, or of an episode that was read as one.

    Returns:
        L.
    """
    return len(picture.labels if isinstance(picture, ReadingPicture) else picture.inputs)


def panels(picture: Shown, cell: float, *, details: bool = True) -> list[Panel]:
    """Lay out a picture.

    Args:
        picture: of a sequence, or of an episode that was read as one.
        cell: width of a step.
        details: with what the learner did, where it told.

    Returns:
        Its panels, from top to bottom.
    """
    shown = _read(picture, cell) if isinstance(picture, ReadingPicture) else _asked(picture, cell)
    return [*shown, *(traced(picture.trace) if details else ())]


def _asked(picture: SequencePicture, cell: float) -> Iterator[Panel]:
    none, row = torch.empty(0, 2), min(cell, 8.0)
    inputs = picture.inputs.T
    yield Panel("input", "", _painted(inputs), 0, _row(inputs, row), none)
    target, output = picture.target.T, picture.output.T
    yield Panel("target", "", ink(target.float()), picture.n_read, _row(target, row), none)
    wrong = (target != (output > 0.5)).nonzero()
    remark = f"{picture.wrong} of {target.numel()} wrong"
    yield Panel("output", remark, ink(output), picture.n_read, _row(target, row), wrong)


def _read(picture: ReadingPicture, cell: float) -> Iterator[Panel]:
    none = torch.empty(0, 2)
    if picture.images is not None:
        pixels = strip(picture.images)
        side, photo = pixels.shape[0], picture.images.shape[1] == 3
        yield Panel("example", "", pixels, 0, cell / side, none, side, photo)
    n_way = picture.answers.shape[1]
    row = max(2.0, min(cell, 10.0, 120.0 / n_way))
    yield Panel("class", f"{n_way} classes", ink(F.one_hot(picture.labels, n_way).T.float()), 0, row, none)
    asked = ~picture.right
    asked[: picture.n_read] = False  # a class that was not yet seen can only be guessed
    steps = asked.nonzero().flatten()
    wrong = torch.stack([picture.answers.argmax(-1)[steps], steps], 1)
    remark = f"{len(steps)} of {len(picture.labels) - picture.n_read} queries wrong"
    yield Panel("answer", remark, ink(picture.answers.T), 0, row, wrong)


def _painted(rows: Tensor) -> Tensor:
    within = bool((rows >= 0).all()) and bool((rows <= 1).all())
    return ink(rows) if within else signed(rows)


def _row(matrix: Tensor, usual: float) -> float:
    # One channel alone would be a hair.
    return max(usual, 12.0 / len(matrix), 2.0)


def traced(trace: dict[str, Tensor]) -> Iterator[Panel]:
    """Lay out what a learner did.

    Args:
        trace: as of ``SequencePicture``.

    Yields:
        A panel for each head of each name, in the order of a step.
    """
    place = locations(trace)
    names = [n for n in KNOWN if n in trace] + [n for n in trace if n not in KNOWN]
    for name in names:
        tensor = trace[name]
        if tensor.ndim != 3 or not tensor.shape[-1]:
            continue
        if name in ("memory", "usage"):
            yield _of_rows(name, tensor, place)
            continue
        n_heads, kind = tensor.shape[1], "layer" if name == "hidden units" else "head"
        for head in range(min(n_heads, MAX_HEADS)):
            which = f"{kind} {head + 1} of {n_heads}" if n_heads > 1 else ""
            # All heads stand on the same rows, so it is enough to say once which.
            yield _of_head(name, tensor[:, head].T, which, place if head == 0 else (*place[:2], ""), n_heads)


def _of_head(name: str, rows: Tensor, which: str, place: tuple[int, int, str], n_heads: int) -> Panel:
    first, shown, remark = place
    weighting = name.endswith("weightings")
    if weighting:
        rows = rows.roll(-first, 0)[:shown]
    # A root makes a spread of small weights visible beside a sharp one.
    pixels = ink(rows.clamp_min(0).sqrt()) if weighting else _painted(rows)
    tallest, usual = (max(64.0, 174.0 - 24.0 * n_heads), 5.0) if weighting else (72.0 if n_heads < 3 else 40.0, 4.0)
    height = min(tallest, max(48.0 if weighting else 0.0, usual * len(rows)))
    told = ", ".join(t for t in (which, remark if weighting else "") if t)
    return Panel(KNOWN.get(name, name.removesuffix("s")), told, pixels, 0, height / len(rows), torch.empty(0, 2))


def _of_rows(name: str, tensor: Tensor, place: tuple[int, int, str]) -> Panel:
    # One number for each row of the memory: how far it is used, or how much is in it.
    rows = tensor.norm(dim=-1) if name == "memory" else tensor[:, 0]
    first, shown, _ = place
    rows = rows.T.roll(-first, 0)[: shown or None]
    largest = float(rows.max())
    remark = f"{'length of each row, ' if name == 'memory' else ''}0 to {largest:.2g}"
    height = min(96.0, max(48.0, 5.0 * len(rows)))
    return Panel(KNOWN[name], remark, ink(rows / max(largest, 1e-12)), 0, height / len(rows), torch.empty(0, 2))


def locations(trace: dict[str, Tensor]) -> tuple[int, int, str]:
    """Find the shortest arc of the memory, which is a ring, that holds every location a head has put weight on.

    Args:
        trace: of a sequence.

    Returns:
        The first location, how many to show, and a remark where those are not all.
    """
    weightings = [t.flatten(0, 1) for name, t in trace.items() if name.endswith("weightings") and t.ndim == 3]
    if not weightings:
        return 0, 0, ""
    touched = (torch.cat(weightings) > TOUCHED).any(0)
    n, marked = len(touched), touched.nonzero().flatten().tolist()
    if not marked:
        return 0, n, ""
    gaps = [(b - a, b) for a, b in zip(marked, [*marked[1:], marked[0] + n], strict=True)]
    widest, begin = max(gaps)
    shown = min(n, n - widest + 1 + 4)
    if shown >= 0.75 * n or n < 24:
        return 0, n, ""
    first = (begin - 2) % n
    return first, shown, f"locations {first} to {(first + shown - 1) % n} of {n}"
