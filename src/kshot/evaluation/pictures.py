"""What a report shows of a learner beside its numbers: episodes, confusions, an embedding. Plain data, no drawing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Answer(NamedTuple):
    """One query of a pictured episode.

    Attributes:
        image: uint8 (C, H, W).
        label: the right class, 0..W-1.
        predicted: the answer, 0..W-1.
        confidence: its probability.
    """

    image: Tensor
    label: int
    predicted: int
    confidence: float

    @property
    def right(self) -> bool:
        """True if the answer is the right class."""
        return self.predicted == self.label


class ClassRow(NamedTuple):
    """One class of a pictured episode.

    Attributes:
        name: of the class.
        support: some of its support images, uint8 (C, H, W) each.
        answers: some of its queries.
    """

    name: str
    support: list[Tensor]
    answers: list[Answer]


class EpisodePicture(NamedTuple):
    """One episode with a learner's answers.

    Attributes:
        title: which episode it is.
        accuracy: over all its queries, shown or not.
        n_queries: how many those are.
        n_way: W, shown or not.
        rows: its classes, by label; the first few where there are many.
        shown: how many queries of each class are shown.
    """

    title: str
    accuracy: float
    n_queries: int
    n_way: int
    rows: list[ClassRow]
    shown: int


class Confusion(NamedTuple):
    """A class that is often taken for another.

    Attributes:
        right: name of the class.
        taken_for: name of the class it is taken for.
        times: how often,
        queries: of so many queries of the class while the other one stood in the episode.
        image: one query that was misjudged, uint8 (C, H, W).
        right_image: a support image of its class in that episode.
        taken_image: a support image of the class it was taken for.
    """

    right: str
    taken_for: str
    times: int
    queries: int
    image: Tensor
    right_image: Tensor
    taken_image: Tensor


class Embedding(NamedTuple):
    """Embedded examples of one episode in the plane of their two first principal components.

    Attributes:
        points: float (N, 2).
        labels: int64 (N,), 0..W-1.
        n_support: how many of the N, the first ones, are support.
        names: of the W classes.
        images: one support image for each class, uint8 (C, H, W); empty where inputs are no images.
        explained: shares of the variance along the two components.
    """

    points: Tensor
    labels: Tensor
    n_support: int
    names: list[str]
    images: list[Tensor]
    explained: tuple[float, float]


class TaskPicture(NamedTuple):
    """One regression task of one input and one output.

    Attributes:
        support: (S, 2) of x and y.
        truth: (Q, 2) of x and y, the queries, by ascending x.
        grid: (G,) inputs at which the predictions were made.
        predictions: label such as "after 1 step" -> (G,) predicted means, from before to after adaptation.
        mse: of the last prediction on the queries.
    """

    support: Tensor
    truth: Tensor
    grid: Tensor
    predictions: dict[str, Tensor]
    mse: float


class SequencePicture(NamedTuple):
    """One sequence with a learner's answers, and what the learner did meanwhile.

    Attributes:
        title: which sequence it is.
        inputs: float (L, I), of the steps read and of those asked.
        n_read: how many of the L, the first ones, are read.
        target: bool (Q, O), the bits asked at the last Q steps.
        output: float (Q, O), the probability that each is one.
        cost: in bits, of the whole sequence.
        wrong: number of bits that are wrong.
        trace: name -> float (L, ...): "read weightings" and "write weightings" (L, heads, N), "usage" (L, 1, N),
            "memory" (L, N, M), "add", "erase", "key" and "read" (L, heads, M), "hidden units" (L, layers, H), or others
            of these shapes; empty where the learner does not tell.
    """

    title: str
    inputs: Tensor
    n_read: int
    target: Tensor
    output: Tensor
    cost: float
    wrong: int
    trace: dict[str, Tensor]


class ReadingPicture(NamedTuple):
    """One episode of classes as a sequence: how a learner read it step by step, and what it did meanwhile.

    Attributes:
        title: which episode it is.
        images: uint8 (L, C, H, W), the examples; None where they are no images.
        labels: int64 (L,), their classes.
        n_read: how many of the L, the first ones, are the support.
        answers: float (L, W), the probability of each class, from the examples before and their labels.
        trace: as of ``SequencePicture``.
    """

    title: str
    images: Tensor | None
    labels: Tensor
    n_read: int
    answers: Tensor
    trace: dict[str, Tensor]

    @property
    def right(self) -> Tensor:
        """Where the likeliest class is the right one: bool (L,)."""
        return self.answers.argmax(-1) == self.labels


@dataclass(frozen=True)
class Pictures:
    """All that is pictured of one learner; whatever does not apply is empty.

    Attributes:
        episodes: classification of images, with answers.
        confusions: the most confused pairs of classes, most confused first.
        n_confusion_episodes: how many episodes those were looked for in.
        embedding: a scatter of one episode, or None.
        tasks: regression tasks.
        sequences: sequences of bits.
        readings: episodes that were read as sequences.
    """

    episodes: list[EpisodePicture] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    n_confusion_episodes: int = 0
    embedding: Embedding | None = None
    tasks: list[TaskPicture] = field(default_factory=list)
    sequences: list[SequencePicture] = field(default_factory=list)
    readings: list[ReadingPicture] = field(default_factory=list)


def to_picture(x: Tensor) -> Tensor:
    """Turn an image of [0, 1] into one of bytes.

    Args:
        x: floats (..., C, H, W).

    Returns:
        uint8 (..., C, H, W) on the CPU.
    """
    return x.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8)
