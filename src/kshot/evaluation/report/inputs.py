"""What can stand in a report: every part is optional; what is missing is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kshot.evaluation.history import History
from kshot.evaluation.pictures import Pictures
from kshot.evaluation.record import Record, scores_of
from kshot.evaluation.scores import Curve, Scores
from kshot.evaluation.statistics import Estimate


@dataclass(frozen=True)
class RunReport:
    """One learner of a report.

    Attributes:
        name: what to call it; names of one report differ.
        record: its result.
        scores: its scores of each episode; taken from the record where that kept them.
        history: its training curves (see ``history.read_history``).
        by_shots: its score against shots.
        by_step: its score against inner steps.
        pictures: what ``gather`` returned.
        command: the command that repeats it.
        by_way: its score against ways, for some numbers of shots.
        best_validation: score of the best possible answers to the validation, where that is known.
    """

    name: str
    record: Record | None = None
    scores: Scores | None = None
    history: History | None = None
    by_shots: Curve | None = None
    by_step: Curve | None = None
    pictures: Pictures | None = None
    command: str = ""
    by_way: Mapping[int, Curve] = field(default_factory=dict)
    best_validation: float | None = None

    @property
    def known_scores(self) -> Scores | None:
        """The scores of each episode, from wherever they are known."""
        if self.scores is not None or self.record is None:
            return self.scores
        return scores_of(self.record)

    @property
    def estimate(self) -> Estimate | None:
        """The headline number, or None."""
        if self.scores is not None:
            return self.scores.estimate
        return None if self.record is None else Estimate(self.record.mean, self.record.ci95, self.record.n_episodes)

    @property
    def metric(self) -> str | None:
        """Name of the headline number, or None."""
        if self.scores is not None:
            return self.scores.metric
        return None if self.record is None else self.record.metric


@dataclass(frozen=True)
class ReportInput:
    """What a report shows.

    Attributes:
        runs: the learners, in the order of their colours.
        title: the heading; made of names and data if empty.
        introduction: a sentence or two below the heading; made of the records if empty.
        notes: remarks to stand at the end.
    """

    runs: Sequence[RunReport]
    title: str = ""
    introduction: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
