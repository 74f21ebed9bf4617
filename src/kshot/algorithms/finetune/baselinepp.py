"""Baseline++: as Baseline, with cosines in the place of products, so that each class gathers around one direction.

Paper: Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang, "A Closer Look at Few-shot
Classification", ICLR 2019, arXiv:1904.04232.

Idea: a classifier that compares directions makes features vary less within a class, which is what few shots need.

======================  ==============================================
paper                   here
======================  ==============================================
f_theta                 ``backbone``, frozen in the tasks of a test
W_b                     ``classifier.weight``, of all training classes
W_n = [w_1, ..., w_c]   the head of a task (W, D)
s_ij                    ``cosine_scores`` before their factor
======================  ==============================================

Differs from the paper: the new layer starts at the class means and not at random, and each step takes the whole
support, its first gradient dampened too (see ``baseline``). The factor of the cosines is 10 however many training
classes there are (the authors' code takes 2 for up to 200), and the vectors have no lengths (there each learns one
beside the factor).

Checked by: tests/reference/test_finetune.py (PyTorch's own SGD).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Spec, Split, UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.engine.inner import Inner, Weights, momentum, unrolled
from kshot.nn.heads import class_means, unit

#: Momentum, and dampening, of the authors' inner SGD.
_MOMENTUM = 0.9


class CosineClassifier(nn.Module):
    """A classifier by the cosine to one vector for each class.

    Args:
        n_features: D.
        n_classes: C.
        scale: factor of the cosines.
    """

    def __init__(self, n_features: int, n_classes: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(n_classes, n_features)), scale

    def forward(self, z: Tensor) -> Tensor:
        """Classify.

        Args:
            z: (N, D).

        Returns:
            Logits (N, C).
        """
        return cosine_scores(z, self.weight, self.scale)


def cosine_scores(z: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Scaled cosines of all pairs.

    Args:
        z: (N, D).
        weight: (W, D).
        scale: the factor.

    Returns:
        (N, W).
    """
    return scale * unit(z) @ unit(weight).mT


@register(
    "baselinepp",
    family="finetune",
    paper="Chen, Liu, Kira, Wang, Huang, A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232",
)
class BaselinePP(PretrainedLearner):
    """A cosine layer on frozen features.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        scale: factor of the cosines before the softmax.
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
        scale: float = 10.0,
        inner_lr: float = 0.01,
        n_inner_steps: int = 100,
        head_decay: float = 0.001,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_inner_steps < 1 or not (inner_lr > 0 and scale > 0) or head_decay < 0:
            raise UserError(
                f"expected n_inner_steps >= 1, inner_lr > 0, scale > 0 and head_decay >= 0, got {n_inner_steps}, "
                f"{inner_lr}, {scale} and {head_decay}; the defaults are the paper's"
            )
        self.inner = Inner((1 - _MOMENTUM) * inner_lr, n_inner_steps, momentum(_MOMENTUM), first_order=True)
        self.scale, self.head_decay = scale, head_decay

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> BaselinePP:
        """Build the learner with a cosine classifier of the training classes.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: of training, whose ``n_outputs`` is the number of training classes.
            **options: see the class.

        Returns:
            The learner.
        """
        width = int(backbone.n_features)  # pyright: ignore[reportArgumentType]
        return cls(backbone, CosineClassifier(width, spec.n_outputs, options.get("scale", 10.0)), **options)

    def fit_head(self, support: Labelled) -> Tensor:
        """Train a cosine layer on the embedded support.

        Args:
            support: the embedded support.

        Returns:
            (W, D).
        """

        def loss(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            w = weights.params["weight"]
            fit = F.cross_entropy(self.apply_head(w, given.x), given.y)
            return fit + self.head_decay / 2 * (w * w).sum(), weights

        start = {"weight": class_means(support.z, support.y, support.ways)}
        (last,) = unrolled(loss, Weights(start, {}), Split(support.z, support.y, support.ways), self.inner)
        return last.params["weight"]

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer by the cosine layer.

        Args:
            head: (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return cosine_scores(z, head, self.scale)
