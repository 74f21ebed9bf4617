"""SimpleShot: nearest class mean on centred, normalised features of a plain classifier.

Paper: Yan Wang, Wei-Lun Chao, Kilian Weinberger, Laurens van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor
Classification for Few-Shot Learning", 2019, arXiv:1911.04623.

Idea: a network trained to tell the training classes apart needs no meta-learning: nearest class means do well, once
features are centred and brought to length one.

======================  ==============================================
paper                   here
======================  ==============================================
f_theta                 ``backbone``
W                       ``classifier``, used in training only
x bar                   ``mean``: of training features
UN, L2N, CL2N           ``transform``
d                       squared Euclidean distance
======================  ==============================================

Differs from the paper: the mean of the training features is a running one, taken while training, in the place of one
more pass over the training set after it. Features are ordered by squared distances, which order as distances do.

Checked by: tests/algorithms/test_metric.py (plain loops, known answers).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import CentredLearner, Labelled
from kshot.nn.heads import class_means, squared_distances, unit

TRANSFORMS = ("un", "l2n", "cl2n")


@register(
    "simpleshot",
    family="metric",
    paper="Wang, Chao, Weinberger, van der Maaten, SimpleShot, 2019, arXiv:1911.04623",
)
class SimpleShot(CentredLearner):
    """Nearest class mean on transformed features.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        transform: "cl2n" (centre, then scale to length one: the paper's best), "l2n" (length one) or "un" (nothing).

    Raises:
        UserError: unknown transform.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        transform: Literal["un", "l2n", "cl2n"] = "cl2n",
    ) -> None:
        super().__init__(backbone, classifier)
        if transform not in TRANSFORMS:
            raise UserError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}; choose one")
        self.transform = transform

    def fit_head(self, support: Labelled) -> Tensor:
        """Average the transformed support of each class.

        Args:
            support: the embedded support.

        Returns:
            Class means (W, D).
        """
        return class_means(self.transformed(support.z), support.y, support.ways)

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return minus the squared distance to each class mean.

        Args:
            head: class means (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return -squared_distances(self.transformed(z), head)

    def transformed(self, z: Tensor) -> Tensor:
        """Centre and scale features, as ``transform`` says.

        Args:
            z: (N, D).

        Returns:
            (N, D).
        """
        if self.transform == "cl2n":
            z = z - self.mean
        return z if self.transform == "un" else unit(z)
