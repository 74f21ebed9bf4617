"""What a report sees of a model: numbers, names and small pictures, whatever it was made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import UserError
from kshot.estimator.examples import ARRAY_KINDS, listed, names_of, thumbnails_of
from kshot.estimator.fit import Fit

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier

#: One block of logits is turned into probabilities at once; bounds memory for many classes.
_CELLS = 1 << 24


@dataclass(frozen=True)
class NewExamples:
    """Examples that a model has not learnt from.

    Attributes:
        z: embeddings (M, D).
        names: what to call each.
        look: JPEG or PNG bytes, or a text, of an example, by its index; few are shown, so they are made when asked for.
        labels: int64 (M,), -1 for an example of no class; None where labels are unknown.
    """

    z: Tensor
    names: Sequence[str]
    look: Callable[[int], bytes | str]
    labels: Tensor | None = None


@dataclass(frozen=True)
class Subject:
    """A fitted classifier, as its report sees it.

    Attributes:
        fit: what was learnt.
        classes: names of the C classes.
        names: what to call each of the N shots.
        looks: JPEG or PNG bytes, or a text, of each shot.
        kind: what examples are; see ``kshot.core.encoder.ENCODER_KINDS``.
        encoder: its name.
        facts: more (name, text) pairs to state.
        new: examples to judge.
    """

    fit: Fit
    classes: Sequence[str]
    names: Sequence[str]
    looks: Sequence[bytes | str]
    kind: str
    encoder: str
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    new: NewExamples | None = None

    @cached_property
    def counts(self) -> Tensor:
        """Shots of each class, (C,)."""
        return torch.bincount(self.fit.y, minlength=self.fit.n_classes)

    @cached_property
    def answers(self) -> Tensor:
        """Answers for the shots left out, int64 (H,)."""
        held_out = self.fit.held_out
        return torch.zeros(0, dtype=torch.long) if held_out is None else held_out.logits.argmax(1)

    @cached_property
    def judged(self) -> Tensor:
        """Shots of each class that were left out and judged, (C,)."""
        return self._per_class(torch.ones_like(self.answers))

    @cached_property
    def right(self) -> Tensor:
        """How many of ``judged`` were answered rightly, (C,)."""
        held_out = self.fit.held_out
        return self._per_class(self.answers if held_out is None else (self.answers == held_out.labels).long())

    @cached_property
    def mistakes(self) -> Counter[tuple[int, int]]:
        """(class, answer) -> how many shots left out were mistaken so."""
        held_out = self.fit.held_out
        if held_out is None:
            return Counter()
        wrong = self.answers != held_out.labels
        return Counter(zip(held_out.labels[wrong].tolist(), self.answers[wrong].tolist(), strict=True))

    def _per_class(self, values: Tensor) -> Tensor:
        labels = self.fit.y[:0] if self.fit.held_out is None else self.fit.held_out.labels
        return torch.zeros(self.fit.n_classes, dtype=torch.long).index_add_(0, labels, values)


def blocks(n: int, n_classes: int) -> list[slice]:
    """Cut rows of logits into blocks of bounded memory.

    Args:
        n: rows.
        n_classes: C.

    Returns:
        Slices that cover all rows.
    """
    step = max(1, _CELLS // max(n_classes, 1))
    return [slice(start, start + step) for start in range(0, n, step)]


def subject_of(model: FewShotClassifier, X: Any = None, y: Any = None) -> Subject:
    """See a model as its report does.

    Args:
        model: fitted.
        X: new examples, or None.
        y: their labels, or None.

    Returns:
        The subject.

    Raises:
        UserError: the model is not fitted, labels came without examples or in another number, or an example cannot
            be read.
    """
    if not hasattr(model, "fit_"):
        raise UserError("expected a fitted model to report on, got one that has learnt nothing; call fit(X, y) first")
    return Subject(
        fit=model.fit_,
        classes=[str(c) for c in model.classes_],
        names=list(model.names_),
        looks=list(model.thumbnails_),
        kind=model.encoder_.kind,
        encoder=model.encoder_.name,
        facts=[("Encoder's fingerprint", model.encoder_.fingerprint)],
        new=_new(model, X, y),
    )


def _new(model: FewShotClassifier, X: Any, y: Any) -> NewExamples | None:
    if X is None:
        if y is not None:
            raise UserError("expected examples with the labels of new examples, got labels only; pass X as well")
        return None
    kind = model.encoder_.kind
    examples = list(np.asarray(X)) if kind in ARRAY_KINDS else listed(X, kind)
    labels = None
    if y is not None:
        given = list(y)
        if len(given) != len(examples):
            raise UserError(
                f"expected a label for each of {len(examples)} new examples, got {len(given)}; pass as many"
            )
        numbers = {label: i for i, label in enumerate(model.classes_.tolist())}
        # Files hold texts: of a model whose labels are numbers they are told apart by how these are written.
        numbers = {str(label): i for label, i in numbers.items()} | numbers
        labels = torch.tensor([numbers.get(getattr(label, "item", lambda label=label: label)(), -1) for label in given])
    return NewExamples(
        z=model.embed(X),
        names=names_of(examples, kind),
        look=lambda i: thumbnails_of([examples[i]], kind, [0])[0],
        labels=labels,
    )
