"""Gaussian Prototypical Networks: each example says how sure it is, and prototypes and distances listen.

Paper: Stanislav Fort, "Gaussian Prototypical Networks for Few-Shot Learning on Omniglot", 2017, arXiv:1708.02735.

Idea: the encoder gives an embedding and an inverse covariance; sure examples weigh more in the prototype.

======================  ==============================================
paper                   here
======================  ==============================================
x_i                     ``backbone``, the embedding
s_raw                   ``confidence``, a linear map of the embedding: 1 number ("radius") or D ("diagonal")
S = 1 + softplus(s_raw) ``_precision``
p_c                     sum of s_i * x_i, over sum of s_i
s_c                     sum of s_i
d_c^2                   (x - p)^T S_c (x - p)
======================  ==============================================

Differs from the paper: the raw covariance is a linear map of the embedding, where the paper's encoder has more outputs
in its last layer; logits are minus the distance, smoothed at zero so that its gradient is finite.

Checked by: tests/reference/test_metric.py (plain loops).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import memberships

COVARIANCES = ("radius", "diagonal")


class Gaussians(NamedTuple):
    """A Gaussian for each class.

    Attributes:
        means: p (W, D).
        precisions: s, the inverse variances (W, D), or (W, 1).
    """

    means: Tensor
    precisions: Tensor


@register(
    "gaussian_protonet",
    family="metric",
    paper="Fort, Gaussian Prototypical Networks for Few-Shot Learning on Omniglot, 2017, arXiv:1708.02735",
)
class GaussianProtoNet(EmbeddingLearner):
    """Prototypes with confidence.

    Args:
        backbone: maps (N, ...) to embeddings (N, D), and has an attribute ``n_features``.
        covariance: "radius" (one number for each example, the paper's best) or "diagonal" (D of them).

    Raises:
        UserError: unknown covariance.
    """

    def __init__(self, backbone: nn.Module, *, covariance: Literal["radius", "diagonal"] = "radius") -> None:
        super().__init__(backbone)
        if covariance not in COVARIANCES:
            raise UserError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}; choose one")
        n_features = int(backbone.n_features)  # pyright: ignore[reportArgumentType]
        self.confidence = nn.Linear(n_features, 1 if covariance == "radius" else n_features)

    def fit_head(self, support: Labelled) -> Gaussians:
        """Average each class, sure examples weighing more.

        Args:
            support: the embedded support.

        Returns:
            The classes.
        """
        member = memberships(support.y, support.ways, support.z.dtype).mT
        s = self._precision(support.z)
        total = member @ s
        return Gaussians(member @ (s * support.z) / total, total)

    def apply_head(self, head: Gaussians, z: Tensor) -> Tensor:
        """Return minus the distance to each class.

        Args:
            head: the classes.
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        apart = z.unsqueeze(1) - head.means
        return -torch.sqrt((head.precisions * apart * apart).sum(-1) + 1e-8)

    def _precision(self, z: Tensor) -> Tensor:
        return 1 + F.softplus(self.confidence(z))
