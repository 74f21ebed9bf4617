"""Baseline: train a plain classifier, then train a new linear layer on its frozen features for each task.

Paper: Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang, "A Closer Look at Few-shot
Classification", ICLR 2019, arXiv:1904.04232.

Idea: what every method of meta-learning has to beat, and many do not.

======================  ==============================================
paper                   here
======================  ==============================================
f_theta                 ``backbone``, frozen in the tasks of a test
C(. | W_b)              ``classifier``, of all training classes
C(. | W_n)              the head of a task: ``weight``, ``bias``
======================  ==============================================

Differs from the paper: the new layer starts at zero, so that the names of the classes do not matter, and each step
takes the whole support, where the authors take batches of 4 in random order. PyTorch's SGD leaves its very first
gradient undampened, this file dampens all: after 100 steps its logits were 6 % smaller.

Checked by: tests/reference/test_finetune.py (plain loops, and nearly PyTorch's own SGD).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Split, UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.engine.inner import Inner, Weights, momentum, unrolled

#: Momentum, and dampening, of the authors' inner SGD.
_MOMENTUM = 0.9


@register(
    "baseline",
    family="finetune",
    paper="Chen, Liu, Kira, Wang, Huang, A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232",
)
class Baseline(PretrainedLearner):
    """A linear layer on frozen features.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        inner_lr: learning rate of the new layer.
        n_inner_steps: steps of SGD with momentum 0.9 and dampening 0.9.
        head_decay: of the new layer.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        inner_lr: float = 0.01,
        n_inner_steps: int = 100,
        head_decay: float = 0.001,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_inner_steps < 1 or not inner_lr > 0 or head_decay < 0:
            raise UserError(
                f"expected n_inner_steps >= 1, inner_lr > 0 and head_decay >= 0, got {n_inner_steps}, {inner_lr} and "
                f"{head_decay}; the defaults are the paper's"
            )
        # Dampening multiplies every gradient by 1 - 0.9: the same as a rate of a tenth.
        self.inner = Inner((1 - _MOMENTUM) * inner_lr, n_inner_steps, momentum(_MOMENTUM), first_order=True)
        self.head_decay = head_decay

    def fit_head(self, support: Labelled) -> dict[str, Tensor]:
        """Train a linear layer on the embedded support.

        Args:
            support: the embedded support.

        Returns:
            ``weight`` (W, D) and ``bias`` (W,).
        """

        def loss(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            squares = sum((p * p).sum() for p in weights.params.values())
            return F.cross_entropy(self.apply_head(weights.params, given.x), given.y) + (
                self.head_decay / 2 * squares
            ), weights

        z = support.z
        start = {"weight": z.new_zeros(support.ways, z.shape[-1]), "bias": z.new_zeros(support.ways)}
        (last,) = unrolled(loss, Weights(start, {}), Split(z, support.y, support.ways), self.inner)
        return last.params

    def apply_head(self, head: dict[str, Tensor], z: Tensor) -> Tensor:
        """Answer by the linear layer.

        Args:
            head: from ``fit_head``.
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return z @ head["weight"].mT + head["bias"]
