"""Transductive fine-tuning: as fine-tuning, with the entropy of the answers to the queries as a second loss.

Paper: Guneet Dhillon, Pratik Chaudhari, Avinash Ravichandran, Stefano Soatto, "A Baseline for Few-Shot Image
Classification", ICLR 2020, arXiv:1909.02729.

Idea: tune the whole network so that it is right about the support, and sure about the queries.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   parameters of ``backbone`` and of the new layer
w_k                     mean embedding of class k, of length one: the start of the new layer
H(p(. | x))             ``entropy``, the mean over the queries
======================  ==============================================

Differs from the paper: the new layer sits on the embedding; the authors put it on the training classes' logits after a
ReLU. Statistics of normalisation layers in mode "running" stay as training left them.

Checked by: tests/reference/test_finetune.py (PyTorch's own Adam).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Split, Tree, UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner, embed_support
from kshot.engine.inner import Inner, Weights, adam, call, unrolled, weights_of
from kshot.nn.heads import class_means, unit
from kshot.nn.norm import collecting


class Kept(NamedTuple):
    """The support, to be trained on once the queries are there.

    Attributes:
        x: inputs (S, ...).
        y: int64 (S,).
        head: the start of the new layer (W, D).
    """

    x: Tree
    y: Tensor
    head: Tensor


@register(
    "transductive_finetuning",
    family="transductive",
    paper="Dhillon, Chaudhari, Ravichandran, Soatto, A Baseline for Few-Shot Image Classification, ICLR 2020, "
    "arXiv:1909.02729",
)
class TransductiveFineTuning(PretrainedLearner):
    """The whole network, tuned on each support and its queries.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None where nothing is trained.
        inner_lr: learning rate of Adam in a task.
        n_inner_steps: steps, each on the whole support and all queries.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        inner_lr: float = 5e-5,
        n_inner_steps: int = 25,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_inner_steps < 1 or not inner_lr > 0:
            raise UserError(
                f"expected n_inner_steps >= 1 and inner_lr > 0, got {n_inner_steps} and {inner_lr}; "
                "the paper takes 25 and 5e-5"
            )
        self.inner = Inner(inner_lr, n_inner_steps, adam(), first_order=True)

    @property
    def transductive(self) -> bool:
        """True: the queries are trained on."""
        return True

    def adapt(self, support: Split) -> Kept:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the support, and start the new layer at its class means.

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            Both.
        """
        z, _ = embed_support(self.backbone, support.x)
        return Kept(support.x, support.y, unit(class_means(z, support.y, support.ways())))

    def predict(self, state: Kept, x: Tree) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tune the network on support and queries, and answer.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W).
        """

        def loss(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            with collecting(self.backbone):
                logits, after = self._forward(weights, given.x["support"])
            answers, _ = self._forward(Weights(weights.params, after.buffers), given.x["query"])
            return F.cross_entropy(logits, given.y) + entropy(answers), after

        _, buffers = embed_support(self.backbone, state.x)
        head = {"head.weight": state.head, "head.bias": state.head.new_zeros(len(state.head))}
        start = Weights({**weights_of(self.backbone).params, **head}, buffers)
        (last,) = unrolled(loss, start, Split({"support": state.x, "query": x}, state.y), self.inner)
        with collecting(self.backbone):
            last = self._forward(last, state.x)[1]
        return self._forward(last, x)[0]

    def fit_head(self, support: Labelled) -> Tensor:
        """Return the start of the new layer.

        Args:
            support: the embedded support.

        Returns:
            (W, D).
        """
        return unit(class_means(support.z, support.y, support.ways))

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer by the new layer as it starts.

        Args:
            head: (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return z @ head.mT

    def _forward(self, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
        own = {k: p for k, p in weights.params.items() if not k.startswith("head.")}
        z, after = call(self.backbone, Weights(own, weights.buffers), x)
        logits = z @ weights.params["head.weight"].mT + weights.params["head.bias"]
        return logits, Weights(weights.params, after.buffers)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax answers.

    Args:
        logits: (Q, W).

    Returns:
        A scalar, in nats.
    """
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()
