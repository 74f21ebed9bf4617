"""Tasks that are dealt from the classes of a larger one, after its examples were embedded.

A method whose head knows a fixed number of classes W learns little for its embedding from a task of W: most tasks are
easy, and an image is compared with W - 1 others. Here a training task has more classes, its images are embedded once,
and many tasks of W of its classes are made of the embeddings. Some are made hard: a class and some of those next to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Spec, UserError
from kshot.core.learner import task_loss
from kshot.engine.embedding import EmbeddingLearner, Labelled


class Deal(NamedTuple):
    """How tasks are dealt.

    Attributes:
        ways: W, classes of each; 0 for those of the training task, and nothing is dealt.
        n_tasks: R, tasks that are dealt from a training task.
        near: share of them that are made of a class and W - 1 of the 2 (W - 1) next to it, by the mean of its
            embeddings; the others are of any classes.
    """

    ways: int = 0
    n_tasks: int = 32
    near: float = 0.5


class DealtLearner(EmbeddingLearner):
    """A backbone and a head for W classes, trained on W of the classes of larger tasks.

    ``fit_head`` and ``apply_head`` take a leading axis of tasks, too: z (R, N, D) with y (R, N).

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        spec: what the training tasks look like.
        deal: how tasks are dealt from them.

    Attributes:
        spec: what the tasks look like that it answers.
        n_outputs: their classes, or the width of their targets.

    Raises:
        UserError: a training task has too few classes, or the numbers make no sense.
    """

    any_way = False

    def __init__(self, backbone: nn.Module, spec: Spec, deal: Deal) -> None:
        super().__init__(backbone)
        answered = check_deal(deal, spec)
        self.deal, self.spec, self.n_outputs = deal, answered, answered.n_outputs

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Loss of the tasks that are dealt from one, or of itself if nothing is dealt.

        Args:
            support: embedded support, equally many examples of each class.
            query: embedded queries, equally many of each class.

        Returns:
            A scalar, the mean over tasks.
        """
        if not self.deal.ways or support.ways == self.deal.ways:
            return super().head_loss(support, query)
        supports, queries = dealt(support, query, self.deal)
        logits = self.apply_head(self.fit_head(supports), queries.z)
        return task_loss(logits.flatten(0, 1), queries.y.flatten())


def check_deal(deal: Deal, spec: Spec) -> Spec:
    """Refuse settings by which nothing can be dealt.

    Args:
        deal: the settings.
        spec: of the training tasks.

    Returns:
        Of the tasks that are dealt.

    Raises:
        UserError: numbers out of range, more classes than there are, or no classes at all.
    """
    if deal.ways < 0 or deal.ways == 1 or deal.n_tasks < 1 or not 0 <= deal.near <= 1:
        raise UserError(
            "expected deal_ways of 0 or at least 2, deals of at least 1 and near of 0 to 1, got "
            f"deal_ways={deal.ways}, deals={deal.n_tasks}, near={deal.near:g}"
        )
    if not deal.ways:
        return spec
    if spec.kind != "classification":
        raise UserError(
            f"expected classes to deal tasks of {deal.ways} from, got tasks of {spec.kind}; leave deal_ways at 0"
        )
    if deal.ways > spec.n_outputs:
        raise UserError(
            f"expected training tasks of at least {deal.ways} classes, as deal_ways says, got {spec.n_outputs}; "
            "raise n_way"
        )
    return spec._replace(n_outputs=deal.ways)


def dealt(support: Labelled, query: Labelled, deal: Deal) -> tuple[Labelled, Labelled]:
    """Deal tasks from the embedded examples of one.

    Which examples of a class are support is drawn anew, too, and the support stands in random order.

    Args:
        support: (V K, D), K examples of each of V classes, in any order.
        query: (V Q, D).
        deal: how.

    Returns:
        Supports (R, W K, D) with labels (R, W K), and queries (R, W Q, D) with labels (R, W Q).

    Raises:
        UserError: the number of examples is no multiple of that of classes.
    """
    shots, pool = _by_class(support), _by_class(query)
    n_shots, classes = shots.shape[1], torch.cat([shots, pool], 1)
    chosen = _choose(classes.detach().mean(1), deal)
    examples = classes[chosen]  # (R, W, K + Q, D)
    mixed = _take(examples, torch.rand_like(examples[..., 0]).argsort(-1))
    label = torch.arange(deal.ways, device=mixed.device)[:, None].expand(mixed.shape[:3])
    z, y = mixed[:, :, :n_shots].flatten(1, 2), label[..., :n_shots].flatten(1)
    order = torch.rand_like(z[..., 0]).argsort(-1)
    queries = Labelled(mixed[:, :, n_shots:].flatten(1, 2), label[..., n_shots:].flatten(1), deal.ways)
    return Labelled(_take(z, order), y.gather(1, order), deal.ways), queries


def _by_class(given: Labelled) -> Tensor:
    if len(given.y) % given.ways:
        raise UserError(
            f"expected equally many examples of each of {given.ways} classes, got {len(given.y)} in all; "
            "leave deal_ways at 0"
        )
    return given.z[given.y.argsort()].unflatten(0, (given.ways, -1))


def _choose(means: Tensor, deal: Deal) -> Tensor:
    # Of V classes, by their means (V, D), W for each of R tasks: int64 (R, W), in random order.
    v, n_near = len(means), round(deal.near * deal.n_tasks)
    random = torch.rand(deal.n_tasks, v, device=means.device)
    first = random.argmax(1)  # It stays the largest, and so is chosen.
    rank = torch.cdist(means[first], means).argsort(1).argsort(1)  # 0 of the class itself
    far = rank > 2 * (deal.ways - 1)
    far[n_near:] = False
    order = torch.where(far, random - 1, random).argsort(1, descending=True)[:, : deal.ways]
    return order.gather(1, torch.rand_like(order, dtype=means.dtype).argsort(1))


def _take(t: Tensor, order: Tensor) -> Tensor:
    # The last but one axis of (..., N, D), in an order (..., N).
    return t.gather(-2, order.unsqueeze(-1).expand(t.shape))
