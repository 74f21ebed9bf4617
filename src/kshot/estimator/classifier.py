"""The few-shot classifier: pictures, texts, molecules or rows of numbers in, labels with honest confidence out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError
from kshot.estimator import audit, labels
from kshot.estimator.embedded import ClassifierMixin, Embedded, check_is_fitted
from kshot.estimator.expected import Expected
from kshot.estimator.fit import ONE_SHOT_HEAD, ONE_SHOT_HEADS, Fit, add_class, fit, judged, remove_class
from kshot.estimator.heads import Head
from kshot.estimator.names import speakable, spoken


class FewShotClassifier(ClassifierMixin, Embedded):
    """Learns classes from a few examples of each, and knows what it does not know.

    Examples may be paths of pictures, pictures of Pillow, texts, SMILES, arrays of numbers or data frames. A frozen
    pretrained encoder turns them into vectors; a linear head on these is chosen by leave-one-out on the shots, which
    also gives calibrated probabilities, the accuracy to expect, and how strange an example must be to be refused.

    Args:
        encoder: "auto" (by kind), a name such as "text:all-MiniLM-L6-v2" (see ``kshot.estimator.encoders``), the
            folder of a run of ``kshot train``, an ``Encoder``, a ``torch.nn.Module`` or a function.
        head: "auto", or one of ``kshot.estimator.heads.STRENGTHS``.
        kind: "auto", or what the examples are: "image", "text", "molecule", "table" or "vector".
        unknown_rate: if set, ``predict`` answers ``unknown_label`` where ``p_values`` are at most this: the share of
            examples of the classes that are refused by mistake.
        unknown_label: None for -1 where labels are numbers, else "unknown".
        finetune: adapt the encoder to the shots first (texts); confidence is then judged on shots that it has not seen.
        use_class_names: of texts: let the name of each class count as one more shot, if shots left out are then told
            better. "card_arrival" is itself an example of how people ask about it.
        cache: keep embeddings on the disk, by content.
        random_state: seed of the folds and of fine-tuning.
        on_progress: told (done, all) examples while encoding, and steps while fine-tuning.

    Attributes:
        classes_: labels, (C,), in order; ``add_class`` puts new ones at the end.
        encoder_: the Encoder.
        fit_: embeddings, head, temperature and all that is known of them, see ``Fit``; classes are numbers there.
        kind_: what the examples are.
        names_: what to call each shot: its path, the beginning of its text, or a number.
        n_features_in_: number of columns, where examples are rows of numbers.

    Example:
        >>> model = FewShotClassifier().fit([[0.1], [0.2], [0.9], [1.1]], ["low", "low", "high", "high"])
        >>> model.predict([[0.0], [2.0]]).tolist()
        ['low', 'high']
    """

    fit_: Fit
    classes_: NDArray[Any]

    def __init__(
        self,
        encoder: Any = "auto",
        head: str = "auto",
        *,
        kind: str = "auto",
        unknown_rate: float | None = None,
        unknown_label: Any = None,
        finetune: bool = False,
        use_class_names: bool = True,
        cache: bool = True,
        random_state: Any = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.kind = kind
        self.unknown_rate = unknown_rate
        self.unknown_label = unknown_label
        self.finetune = finetune
        self.use_class_names = use_class_names
        self.cache = cache
        self.random_state = random_state
        self.on_progress = on_progress

    def fit(self, X: Any, y: Any, *, names: Sequence[str] | None = None) -> FewShotClassifier:
        """Learn from labelled examples.

        Args:
            X: N examples.
            y: N labels of at least two classes.
            names: what to call each example in reports; by default its path, the beginning of its text or a number.

        Returns:
            Itself.
        """
        self._check_rate()
        X, y = self._open(X, y)
        classes, numbers = labels.number(y)
        if self.unknown_rate is not None:
            labels.unknown_label(classes, self.unknown_label)
        encoder, seed = self._make_encoder(X), self._seed()
        spoken_names = speakable(classes.tolist()) if self.use_class_names else None
        if self.finetune:
            from kshot.estimator.finetuned import fit_finetuned

            encoder, fitted = fit_finetuned(
                encoder,
                X,
                numbers,
                len(classes),
                names=spoken_names,
                head=self.head,
                seed=seed,
                on_progress=self.on_progress,
            )
        else:
            fitted = fit(
                self._vectors(X, encoder),
                numbers,
                len(classes),
                head=self.head,
                seed=seed,
                names=self._said(encoder, spoken_names),
                one_shot_head=ONE_SHOT_HEADS.get(encoder.kind, ONE_SHOT_HEAD),
            )
        self.classes_, self.encoder_, self.fit_ = classes, encoder, fitted
        self._remember(X, names)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Answer with the most probable class.

        Args:
            X: N examples.

        Returns:
            (N,) labels; that for unknown where ``unknown_rate`` is set and the p-value is no greater.
        """
        self._check_rate()
        z = self.embed(X)
        answers = self.classes_[self._scores(z).argmax(1)]
        if self.unknown_rate is None:
            return answers
        refused = self.fit_.p_values(z).numpy() <= self.unknown_rate
        return labels.with_unknown(answers, refused, self.unknown_label_)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Answer with calibrated probabilities, given that an example belongs to one of the classes.

        Args:
            X: N examples.

        Returns:
            (N, C), in the order of ``classes_``.
        """
        return torch.softmax(torch.from_numpy(self._scores(self.embed(X))), dim=1).numpy()

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Answer with logits, of which ``predict_proba`` is the softmax.

        Args:
            X: N examples.

        Returns:
            (N, C); of two classes (N,), how much the second is ahead.
        """
        scores = self._scores(self.embed(X))
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Tell how sure one can be that an example belongs to any of the classes.

        Args:
            X: N examples.

        Returns:
            (N,) conformal p-values: of examples of the classes, a share of at most a has a p-value of at most a. Ones
            where every class has a single shot, so that nothing can be vouched for.
        """
        return self.fit_.p_values(self.embed(X)).numpy()

    def nearest(self, X: Any, n: int = 3) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Find the shots most like each example.

        Args:
            X: N examples.
            n: so many.

        Returns:
            Cosines (N, n), greatest first, and numbers of the shots (N, n), for ``names_`` and ``thumbnails_``.
        """
        similarity, index = self.fit_.nearest(self.embed(X), n)
        return similarity.double().numpy(), index.numpy()

    def label_next(self, X: Any, n: int = 10) -> NDArray[np.int64]:
        """Choose the unlabelled examples whose labels would teach the most.

        Args:
            X: N examples.
            n: so many.

        Returns:
            Indices into X, the first one first.
        """
        z = self.embed(X)
        return np.array(audit.label_next(torch.from_numpy(self._scores(z)), z, n), dtype=np.int64)

    def add_class(self, label: Any, X: Any, *, names: Sequence[str] | None = None) -> FewShotClassifier:
        """Add a class, without fitting the encoder or choosing the head anew.

        Args:
            label: of the type of the others.
            X: examples of it.
            names: what to call them.

        Returns:
            Itself; the expected accuracy of the old classes is gone, and probabilities are theirs until ``calibrate``.
        """
        check_is_fitted(self)
        classes = labels.add_label(self.classes_, label)
        examples = self._read(X)
        name = None
        if self.fit_.names is not None:
            name = self._said(self.encoder_, [spoken(label) or str(label)])
        fitted = add_class(self.fit_, self._vectors(examples, self.encoder_), name)
        self._extend(examples, self._named(examples, names))
        self.fit_, self.classes_ = fitted, classes
        return self

    def remove_class(self, label: Any) -> FewShotClassifier:
        """Remove a class and its shots.

        Args:
            label: of the class.

        Returns:
            Itself; the expected accuracy of the old classes is gone.
        """
        check_is_fitted(self)
        gone = labels.index_of(self.classes_, label)
        keep = [i for i, c in enumerate(self.fit_.y.tolist()) if c != gone]
        fitted = remove_class(self.fit_, gone)
        self._keep(keep)
        self.fit_, self.classes_ = fitted, np.delete(self.classes_, gone)
        return self

    def calibrate(self) -> FewShotClassifier:
        """Fit probabilities and the sense for unknowns to the classes as they are, after some were added or removed.

        Returns:
            Itself; encoder and head stay as they are. Until then both are those of the classes that it was fitted to.
        """
        check_is_fitted(self)
        self.fit_ = judged(self.fit_)
        return self

    def doubts_(self) -> list[audit.Doubt]:
        """List shots whose labels are in doubt.

        Returns:
            The most doubtful first; labels are numbers into ``classes_``.
        """
        check_is_fitted(self)
        return self.fit_.doubts

    def duplicates_(self) -> list[audit.Pair]:
        """List pairs of shots that are nearly the same.

        Returns:
            The most similar first.
        """
        check_is_fitted(self)
        return self.fit_.duplicates

    @property
    def expected_accuracy_(self) -> Expected | None:
        """The accuracy to expect on new examples, with its interval; None where it cannot be told."""
        check_is_fitted(self)
        return self.fit_.expected

    @property
    def unknown_label_(self) -> Any:
        """What ``predict`` answers for an example of none of the classes."""
        check_is_fitted(self)
        return labels.unknown_label(self.classes_, self.unknown_label)

    def _said(self, encoder: Encoder, texts: list[str] | None) -> Tensor | None:
        # Names can be embedded beside the shots only where shots are texts themselves.
        return encoder.encode(texts) if self.use_class_names and encoder.kind == "text" and texts else None

    def _scores(self, z: Tensor) -> NDArray[np.float64]:
        # In double precision, so that an answer does not depend on what else is asked.
        head: Head = self.fit_.head._replace(
            **{name: getattr(self.fit_.head, name).double() for name in ("centre", "weight", "bias")}
        )
        return (head.logits(z.double()) / self.fit_.temperature).numpy()

    def _groups(self) -> Sequence[Any]:
        return self.fit_.y.tolist()

    def _check_rate(self) -> None:
        if self.unknown_rate is not None and not 0 < self.unknown_rate < 1:
            raise UserError(
                f"expected unknown_rate between 0 and 1, got {self.unknown_rate}; 0.05 is usual, None for none"
            )
