"""Prototypical Networks: a class is the mean of its embedded examples.

Paper: Jake Snell, Kevin Swersky, Richard Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
arXiv:1703.05175.

Idea: learn an embedding in which each class gathers around one point, and answer with the nearest point.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``
S_k, c_k                the support of class k, its prototype (Eq. 1)
d                       ``distance``
p(y = k | x)            softmax of ``predict`` (Eq. 2)
N_C, N_S, N_Q           W, K, Q / W
======================  ==============================================

Differs from the paper: none. While training, support and queries go through the network as one batch, as in the
authors' code, so that running statistics see both; when evaluating, the running statistics make it inductive.

Checked by: tests/reference/test_protonet.py (the paper's Algorithm 1 by plain loops), benchmarks/quality (Omniglot).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode, UserError, register, tree_map, unchanged_since
from kshot.engine.embedding import Embed, EmbeddingLearner, Labelled
from kshot.nn import native
from kshot.nn.conv import known_to_kernels
from kshot.nn.heads import class_means, squared_distances, unit

DISTANCES = ("squared_euclidean", "cosine")
_WRITTEN_OUT = ("fit_head", "apply_head", "head_loss")


@register(
    "protonet",
    family="metric",
    paper="Snell, Swersky, Zemel, Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175",
)
class ProtoNet(EmbeddingLearner):
    """Prototypical Networks.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        distance: "squared_euclidean" (the paper's choice, section 2.4) or "cosine".

    Raises:
        UserError: unknown distance.
    """

    def __init__(self, backbone: nn.Module, *, distance: str = "squared_euclidean") -> None:
        super().__init__(backbone)
        if distance not in DISTANCES:
            raise UserError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.distance = distance

    def fit_head(self, support: Labelled) -> Tensor:
        """Average the embedded support of each class (Eq. 1).

        Args:
            support: embeddings and labels.

        Returns:
            Prototypes (W, D).
        """
        return class_means(support.z, support.y, support.ways)

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return minus the distance to each prototype (Eq. 2 before its softmax).

        Args:
            head: prototypes (..., W, D).
            z: embedded queries (..., Q, D).

        Returns:
            Logits (..., Q, W).
        """
        if self.distance == "cosine":
            return unit(z) @ unit(head).mT - 1
        return -squared_distances(z, head)

    @property
    def native(self) -> bool:
        """As of any embedding, unless a subclass changes the prototypes or the loss, which are written out here."""
        return super().native and unchanged_since(self, "_losses", _WRITTEN_OUT)

    @property
    def fused(self) -> bool:
        """As of any embedding, unless a subclass changes the prototypes or the loss, which the kernels know."""
        return super().fused and unchanged_since(self, "fused_losses", _WRITTEN_OUT)

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Losses by compiled kernels, gradient and all; for cosines the embedding alone.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        (support, query), backbone = episodes, known_to_kernels(self.backbone)
        if self.distance == "cosine":
            return self._losses(episodes, backbone.fused)
        x = torch.cat([support.x, query.x], 1)
        losses, means, variances = native.protonet_losses(
            x, support.y, query.y, support.ways(), backbone.kernel_parameters(), backbone.pools
        )
        backbone.average_in(means, variances, x.shape[1])
        return losses

    def _losses(self, episodes: Episode, embed: Embed) -> Tensor:
        support, query = episodes
        z = self.in_head_precision(embed(tree_map(lambda *xs: torch.cat(xs, 1), support.x, query.x)))
        n_support = support.y.shape[1]
        with self.head_precision(z):
            logits = self.apply_head(class_means(z[:, :n_support], support.y, support.ways()), z[:, n_support:])
        # The mean of each task by hand, which takes a fifth of the time of mapping ``head_loss`` over tasks.
        each = F.cross_entropy(logits.flatten(0, 1), query.y.flatten(), reduction="none")
        return each.view(query.y.shape).mean(-1)
