"""DeepEMD: two images are as alike as the best matching of their parts.

Paper: Chi Zhang, Yujun Cai, Guosheng Lin, Chunhua Shen, "DeepEMD: Few-Shot Image Classification with Differentiable
Earth Mover's Distance and Structured Classifiers", CVPR 2020, arXiv:2003.06777.

Idea: a feature map is a set of parts; move the parts of one image onto those of the other at the least cost, parts that
the other image has nothing of weighing little.

======================  ==============================================
paper                   here
======================  ==============================================
U, V                    feature maps, ``n_nodes`` vectors each
c_ij                    one minus the cosine of two parts (Eq. 6)
s_i, d_j                ``node_weights`` (Eq. 8)
x~_ij                   ``transport``
s(U, V)                 sum of (1 - c_ij) x~_ij (Eq. 7), times ``temperature``
======================  ==============================================

Differs from the paper: the linear program is solved with an entropy of weight 1 / ``sharpness``, by a fixed number of
Sinkhorn steps, which are differentiated through; the paper solves it exactly, and differentiates its optimality
conditions. The parts of a class of several shots are the means of its maps; the paper starts there and then fits them
to the support. Weights sum to one, so that no division by the number of parts follows. Trained from the start on
episodes; the paper first trains the backbone as a classifier. Only whole maps, no cropped patches. Parts are compared
as they are; the authors' code first takes off each part's mean over channels.

Checked by: tests/reference/test_deepemd.py (SciPy's linear program, plain loops).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Spec, UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import class_means, unit
from kshot.nn.solvers import transport

#: Added to every weight, as in the authors' code: no part weighs nothing.
_LEAST = 1e-3


@register(
    "deepemd",
    family="metric",
    paper="Zhang, Cai, Lin, Shen, DeepEMD: Few-Shot Image Classification with Differentiable Earth Mover's Distance "
    "and Structured Classifiers, CVPR 2020, arXiv:2003.06777",
)
class DeepEMD(EmbeddingLearner):
    """Earth mover's distance between feature maps.

    Args:
        backbone: maps (N, ...) to flattened feature maps (N, C * n).
        n_nodes: n, parts of a map; with one, answers are cosines.
        temperature: factor of the similarities; 12.5 in the authors' code.
        sharpness: of the matching; the larger, the nearer to the linear program, and the more steps it takes.
        n_steps: Sinkhorn steps.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_nodes: int = 1,
        *,
        temperature: float = 12.5,
        sharpness: float = 20.0,
        n_steps: int = 20,
    ) -> None:
        super().__init__(backbone)
        if n_nodes < 1 or n_steps < 1 or not (temperature > 0 and sharpness > 0):
            raise UserError(
                f"expected n_nodes and n_steps >= 1, temperature and sharpness > 0, got {n_nodes}, {n_steps}, "
                f"{temperature} and {sharpness}; change them"
            )
        self.n_nodes, self.n_steps = n_nodes, n_steps
        self.temperature, self.sharpness = temperature, sharpness

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> DeepEMD:
        """Build the learner for a backbone's feature maps.

        Args:
            backbone: the network; ``map_shape`` says the shape (C, h, w) of its maps. Without it there is one part.
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner.
        """
        shape: tuple[int, ...] = getattr(backbone, "map_shape", ())
        return cls(backbone, shape[1] * shape[2] if len(shape) == 3 else 1, **options)

    def fit_head(self, support: Labelled) -> Tensor:
        """Average the maps of each class, part by part.

        Args:
            support: the embedded support.

        Returns:
            (W, C * n).
        """
        return class_means(support.z, support.y, support.ways)

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Match each query with each class.

        Args:
            head: (W, C * n).
            z: (Q, C * n).

        Returns:
            Logits (Q, W). Time Q W n^2 (C + ``n_steps``).
        """
        queries, classes = self.nodes(z).unsqueeze(1), self.nodes(head)
        similarity = unit(queries) @ unit(classes).mT  # 1 - c_ij, (Q, W, n, n)
        have, want = node_weights(queries, classes), node_weights(classes, queries)
        flow = transport(self.sharpness * similarity, have, want, self.n_steps)
        return self.temperature * (flow * similarity).sum((-2, -1))

    def nodes(self, z: Tensor) -> Tensor:
        """Cut flattened maps into parts.

        Args:
            z: (N, C * n), channel by channel.

        Returns:
            (N, n, C).
        """
        return z.unflatten(-1, (-1, self.n_nodes)).mT


def node_weights(mine: Tensor, other: Tensor) -> Tensor:
    """Weigh the parts of one map by how much they are like the other map as a whole (Eq. 8).

    Args:
        mine: (..., n, C).
        other: (..., n, C), which goes with it.

    Returns:
        (..., n), positive, sum one.
    """
    raw = F.relu((mine * other.mean(-2, keepdim=True)).sum(-1)) + _LEAST
    return raw / raw.sum(-1, keepdim=True)
