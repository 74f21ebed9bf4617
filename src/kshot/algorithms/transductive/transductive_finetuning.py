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
from torch import Tensor

from kshot.core import Split, Tree, register
from kshot.engine.embedding import embed_support, labelled
from kshot.engine.inner import Weights, outside_inference_mode, unrolled
from kshot.engine.tuning import TunedLearner
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
class TransductiveFineTuning(TunedLearner):
    """The whole network, tuned on each support and its queries.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None where nothing is trained.
        inner_lr: learning rate of Adam in a task.
        n_inner_steps: steps, each on the whole support and all queries.

    Raises:
        UserError: a number that makes no sense.
    """

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
        return Kept(support.x, support.y, self.fit_head(labelled(z, support)))

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
                logits, after = self.answer(weights, given.x["support"])
            answers, _ = self.answer(Weights(weights.params, after.buffers), given.x["query"])
            return F.cross_entropy(logits, given.y) + entropy(answers), after

        both = Split({"support": state.x, "query": x}, state.y)
        with outside_inference_mode((both, state.head)) as (given, head):
            _, buffers = embed_support(self.backbone, given.x["support"])
            (last,) = unrolled(loss, self.with_new_layer(head, buffers), given, self.inner)
            with collecting(self.backbone):
                last = self.answer(last, given.x["support"])[1]
            return self.answer(last, given.x["query"])[0]


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax answers.

    Args:
        logits: (Q, W).

    Returns:
        A scalar, in nats.
    """
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()
