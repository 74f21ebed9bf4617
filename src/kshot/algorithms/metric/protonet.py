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

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode, Learner, Split, Tree, UserError, register, task_loss, tree_map
from kshot.engine.inner import Weights, call, weights_of
from kshot.nn import native
from kshot.nn.conv import by_kernels, known_to_kernels
from kshot.nn.heads import class_means, squared_distances
from kshot.nn.norm import collecting, uses_support_statistics

DISTANCES = ("squared_euclidean", "cosine")


class Prototypes(NamedTuple):
    """What ProtoNet knows of a task.

    Attributes:
        means: prototypes (W, D).
        buffers: the backbone's buffers; normalisation by support statistics keeps its own in them.
    """

    means: Tensor
    buffers: dict[str, Tensor]


@register(
    "protonet",
    family="metric",
    paper="Snell, Swersky, Zemel, Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175",
)
class ProtoNet(Learner):
    """Prototypical Networks.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        distance: "squared_euclidean" (the paper's choice, section 2.4) or "cosine".

    Raises:
        UserError: unknown distance.
    """

    default_normalisation = "running"

    def __init__(self, backbone: nn.Module, *, distance: str = "squared_euclidean") -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise UserError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.backbone, self.distance = backbone, distance

    @property
    def native(self) -> bool:
        """True if the backbone takes a task axis and needs no statistics from ``adapt``."""
        return getattr(self.backbone, "takes_tasks", False) and not uses_support_statistics(self.backbone)

    @property
    def fused(self) -> bool:
        """True if compiled kernels know the backbone, while training."""
        return self.training and by_kernels(self.backbone)

    def embed(self, x: Tree) -> Tensor:
        """Embed examples.

        Args:
            x: inputs (N, ...).

        Returns:
            (N, D).
        """
        return self.backbone(x)

    def adapt(self, support: Split) -> Prototypes:
        """Average the embedded support of each class (Eq. 1).

        Args:
            support: x (S, ...), y (S,) int64.

        Returns:
            The prototypes.
        """
        with collecting(self.backbone):
            z, weights = call(self.backbone, weights_of(self.backbone), support.x)
        return Prototypes(class_means(z, support.y, support.ways()), weights.buffers)

    def predict(self, state: Prototypes, x: Tree) -> Tensor:
        """Return minus the distance to each prototype (Eq. 2 before its softmax).

        Args:
            state: the prototypes.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W).
        """
        z, _ = call(self.backbone, Weights(weights_of(self.backbone).params, state.buffers), x)
        return -self._distance(z, state.means)

    def outer_loss(self, episode: Episode) -> Tensor:
        """Mean of -log p(y = k | x) over the queries (Algorithm 1, line 9).

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        if uses_support_statistics(self.backbone):
            return super().outer_loss(episode)
        support, query = episode
        z = self.embed(tree_map(lambda *xs: torch.cat(xs), support.x, query.x))
        n_support = len(support.y)
        means = class_means(z[:n_support], support.y, support.ways())
        return task_loss(-self._distance(z[n_support:], means), query.y)

    def outer_losses(self, episodes: Episode) -> Tensor:
        """Embed the examples of all tasks in one pass.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return self._losses(episodes, self.embed)

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

    def _losses(self, episodes: Episode, embed: Callable[[Tree], Tensor]) -> Tensor:
        support, query = episodes
        z = embed(tree_map(lambda *xs: torch.cat(xs, 1), support.x, query.x))
        n_support = support.y.shape[1]
        logits = -self._distance(z[:, n_support:], class_means(z[:, :n_support], support.y, support.ways()))
        # The mean of each task by hand, which takes a fifth of the time of mapping ``task_loss`` over tasks.
        each = F.cross_entropy(logits.flatten(0, 1), query.y.flatten(), reduction="none")
        return each.view(query.y.shape).mean(-1)

    def _distance(self, z: Tensor, means: Tensor) -> Tensor:
        if self.distance == "cosine":
            return 1 - F.normalize(z, dim=-1) @ F.normalize(means, dim=-1).mT
        return squared_distances(z, means)
