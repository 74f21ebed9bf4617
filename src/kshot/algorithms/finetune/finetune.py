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
from torch import Tensor, nn

from kshot.core import Split, Tree, UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner, embed_support
from kshot.engine.inner import Inner, Weights, adam, call, unrolled, weights_of
from kshot.nn.heads import class_means, unit
from kshot.nn.norm import collecting


@register(
    "finetune",
    family="finetune",
    paper="Dhillon, Chaudhari, Ravichandran, Soatto, A Baseline for Few-Shot Image Classification, ICLR 2020, "
    "arXiv:1909.02729",
)
class FineTune(PretrainedLearner):
    """The whole network, tuned on each support.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None where nothing is trained.
        inner_lr: learning rate of Adam in a task.
        n_inner_steps: steps, each on the whole support.

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

    def adapt(self, support: Split) -> Weights:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tune backbone and new layer on the support.

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            The tuned weights: those of the backbone, and ``head.weight`` and ``head.bias``.
        """

        def loss(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            with collecting(self.backbone):
                logits, after = self._forward(weights, given.x)
            return F.cross_entropy(logits, given.y), after

        z, buffers = embed_support(self.backbone, support.x)
        means = unit(class_means(z, support.y, support.ways()))
        head = {"head.weight": means, "head.bias": means.new_zeros(len(means))}
        start = Weights({**weights_of(self.backbone).params, **head}, buffers)
        (last,) = unrolled(loss, start, support, self.inner)
        with collecting(self.backbone):
            return self._forward(last, support.x)[1]

    def predict(self, state: Weights, x: Tree) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the tuned network.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W).
        """
        return self._forward(state, x)[0]

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
