"""Fine-tuning: for each task the whole network is trained on its support, from class means as the last layer.

Paper: Guneet Dhillon, Pratik Chaudhari, Avinash Ravichandran, Stefano Soatto, "A Baseline for Few-Shot Image
Classification", ICLR 2020, arXiv:1909.02729.

Idea: a plain classifier, cut below its last layer and tuned on a task's support, is a baseline that is hard to beat if
the new last layer starts at the class means.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   parameters of ``backbone`` and of the new layer
z(x; theta)             the embedding
w_k                     mean embedding of class k, of length one: the start of the new layer
======================  ==============================================

Differs from the paper: the new layer sits on the embedding; the authors put it on the training classes' logits after a
ReLU. Statistics of normalisation layers in mode "running" stay as training left them.

Checked by: tests/reference/test_finetune.py (PyTorch's own Adam).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kshot.core import Split, Tree, register
from kshot.engine.embedding import embed_support, labelled
from kshot.engine.inner import Weights, outside_inference_mode, unrolled
from kshot.engine.tuning import TunedLearner
from kshot.nn.norm import collecting


@register(
    "finetune",
    family="finetune",
    paper="Dhillon, Chaudhari, Ravichandran, Soatto, A Baseline for Few-Shot Image Classification, ICLR 2020, "
    "arXiv:1909.02729",
)
class FineTune(TunedLearner):
    """The whole network, tuned on each support.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None where nothing is trained.
        inner_lr: learning rate of Adam in a task.
        n_inner_steps: steps, each on the whole support.

    Raises:
        UserError: a number that makes no sense.
    """

    def adapt(self, support: Split) -> Weights:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tune backbone and new layer on the support.

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            The tuned weights: those of the backbone, and of the new layer.
        """

        def loss(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            with collecting(self.backbone):
                logits, after = self.answer(weights, given.x)
            return F.cross_entropy(logits, given.y), after

        with outside_inference_mode(support) as given:
            z, buffers = embed_support(self.backbone, given.x)
            start = self.with_new_layer(self.fit_head(labelled(z, given)), buffers)
            (last,) = unrolled(loss, start, given, self.inner)
            with collecting(self.backbone):
                return self.answer(last, given.x)[1]

    def predict(self, state: Weights, x: Tree) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the tuned network.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W).
        """
        return self.answer(state, x)[0]
