"""Relation Networks: the distance itself is learned, by a network that looks at a class and a query together.

Paper: Flood Sung, Yongxin Yang, Li Zhang, Tao Xiang, Philip Torr, Timothy Hospedales, "Learning to Compare: Relation
Network for Few-Shot Learning", CVPR 2018, arXiv:1711.06025.

Idea: put a query's features beside those of a class, and let a small network say whether they are related.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``
C                       features of both, side by side
g_phi                   ``relation``
r_ij                    sigmoid of ``predict`` (Eq. 1)
sum over K shots        ``fit_head``, with ``combine="sum"``
======================  ==============================================

Differs from the paper: the features of a class are averaged by default, and not added up. At one shot that is the same;
but a network that reads sums is at a loss for any other number of shots than it was trained for: on Omniglot 47 % at
5-way 5-shot, where the same network reads one shot at 98 %. The relation network follows the shape of the features.
Maps (C, h, w) of at least 4 x 4 (the backbone ``--downsample first2``) get the paper's two blocks of convolution and
pooling and two linear layers, single vectors three linear layers. Its normalisation is the backbone's mode, but for
"support", where it is by layer.

Checked by: tests/reference/test_metric.py (plain loops).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Episode, Spec, UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.engine.inner import call, one_by_one, weights_of
from kshot.nn.conv import ConvBlock
from kshot.nn.heads import class_means, memberships
from kshot.nn.norm import Norm, normalisation_of


class Relation(nn.Module):
    """Scores feature maps or vectors of queries against those of classes.

    Args:
        shape: of one feature map (C, h, w), or (D,) of a vector.
        n_hidden: width of the hidden layers; 8 in the paper after convolutions.
        normalisation: see ``kshot.nn.norm``.
    """

    def __init__(self, shape: tuple[int, ...], n_hidden: int, normalisation: str) -> None:
        super().__init__()
        self.shape, channels = shape, shape[0]
        if len(shape) == 3:
            first, second = (ConvBlock(i, channels, normalisation, "pool") for i in (2 * channels, channels))
            width = channels * (shape[1] // 4) * (shape[2] // 4)
            self.trunk = nn.Sequential(first, second, nn.Flatten())
        else:
            width = channels
            self.trunk = nn.Sequential(nn.Linear(2 * channels, width), Norm(width, normalisation), nn.ReLU())
        self.hidden, self.out = nn.Linear(width, n_hidden), nn.Linear(n_hidden, 1)

    def forward(self, sides: tuple[Tensor, Tensor]) -> Tensor:
        """Score every query against every class.

        Args:
            sides: flattened features of classes (W, D) and of queries (Q, D).

        Returns:
            (Q, W).
        """
        classes, z = (side.view(-1, *self.shape) for side in sides)
        first, *others = self.trunk
        if isinstance(first, ConvBlock):
            # Pooling is several times as fast with the channels side by side.
            classes, z = (side.contiguous(memory_format=torch.channels_last) for side in (classes, z))
            of_classes, of_queries = first.conv.weight.chunk(2, 1)
            left = F.conv2d(classes, of_classes, first.conv.bias, padding=1)
            joined = first.after_norm(_every_pair(first.norm, left, F.conv2d(z, of_queries, padding=1)))
        else:
            norm, *others = others
            of_classes, of_queries = first.weight.chunk(2, 1)  # pyright: ignore[reportCallIssue]
            left = F.linear(classes, of_classes, first.bias)  # pyright: ignore[reportArgumentType]
            joined = _every_pair(norm, left, F.linear(z, of_queries))  # pyright: ignore[reportArgumentType]
        for layer in others:
            joined = layer(joined)
        return self.out(F.relu(self.hidden(joined))).view(len(z), -1)


def _every_pair(norm: Norm, classes: Tensor, z: Tensor) -> Tensor:
    # A linear map of two things side by side is a sum over both: taken of W + Q of them, and not of W * Q pairs.
    by_batch = norm.statistics in ("batch", "stored")
    classes, z = norm.of_pairs(classes, z) if by_batch else (classes, z)
    pairs = (classes.unsqueeze(0) + z.unsqueeze(1)).flatten(0, 1)
    return pairs if by_batch else norm(pairs)


@register(
    "relation",
    family="metric",
    paper="Sung, Yang, Zhang, Xiang, Torr, Hospedales, Learning to Compare: Relation Network for Few-Shot Learning, "
    "CVPR 2018, arXiv:1711.06025",
)
class RelationNet(EmbeddingLearner):
    """Relation Networks.

    Args:
        backbone: maps (N, ...) to flattened features (N, D).
        relation: maps flattened features of classes and of queries, a tuple of (W, D) and (Q, D), to scores (Q, W).
        combine: how the examples of a class become one: "mean", which reads any number of them; or "sum", the paper's,
            for the number that it was trained with.

    Raises:
        UserError: ``combine`` is neither.
    """

    network_head = True

    def __init__(self, backbone: nn.Module, relation: nn.Module, *, combine: str = "mean") -> None:
        super().__init__(backbone)
        if combine not in ("mean", "sum"):
            raise UserError(f"expected combine 'mean' or 'sum', got {combine!r}; choose one of them")
        self.relation, self.combine = relation, combine

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> RelationNet:
        """Build the relation network for a backbone's features.

        Args:
            backbone: the network; ``map_shape`` says the shape of its feature maps, ``n_features`` their number.
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        mode = normalisation_of(backbone)
        mode = "layer" if mode == "support" else mode
        shape: tuple[int, ...] = getattr(backbone, "map_shape", ())
        if len(shape) == 3 and min(shape[1:]) >= 4:
            return cls(backbone, Relation(shape, 8, mode), **options)
        width = int(backbone.n_features)  # pyright: ignore[reportArgumentType]
        return cls(backbone, Relation((width,), max(8, width // 2), mode), **options)

    @property
    def native(self) -> bool:
        """False: the relation network keeps statistics of the pairs of each task."""
        return False

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Embed by compiled kernels; tasks go one after the other, for the sake of the same statistics.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return one_by_one(self, episodes)

    def fit_head(self, support: Labelled) -> Tensor:
        """Average or add up the features of each class.

        Args:
            support: the embedded support.

        Returns:
            (W, D).
        """
        if self.combine == "mean":
            return class_means(*support)
        return memberships(support.y, support.ways, support.z.dtype).mT @ support.z

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Score each query against each class; relation scores are the sigmoid of this.

        Args:
            head: (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return call(self.relation, weights_of(self.relation), (head, z))[0]

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Mean squared error of relation scores to 1 (same class) and 0 (Eq. 2).

        Args:
            support: embedded support.
            query: embedded queries.

        Returns:
            A scalar.
        """
        # Called as it is, so that its running statistics see the pairs.
        scores = torch.sigmoid(self.relation((self.fit_head(support), query.z)))
        return F.mse_loss(scores, memberships(query.y, query.ways, scores.dtype))
