"""BD-CSPN: prototypes are moved to where support and confident queries lie together.

Paper: Jinlu Liu, Liang Song, Yongqiang Qin, "Prototype Rectification for Few-Shot Learning", ECCV 2020,
arXiv:1911.10713.

Idea: diminish two biases of a mean of few examples: between support and queries, by a shift, and within a class, by
pseudo-labelled queries that join the mean.

======================  ==============================================
paper                   here
======================  ==============================================
F_theta                 ``backbone``; features of length one, cosines to prototypes (CSPN)
xi                      mean of the support minus mean of the queries, added to the queries
P_n, P'_n               prototype, rectified prototype
W                       weights of a class's examples, a softmax over these examples of epsilon cos
Z                       ``n_confident``
tau, epsilon            ``scale``: factor of the cosines, in answers and in weights
======================  ==============================================

Differs from the paper: while training, the classifier of all training classes is linear. A class that no query is
assigned to keeps its own prototype. All queries that are assigned count if there are fewer than Z. A query that comes
alone is not shifted: less the mean of itself it would be nothing.

Others differ: easyfsl takes epsilon = 1 and all queries, and answers them as they were before the shift.

Checked by: tests/reference/test_transductive.py (plain loops).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.nn.heads import class_means, memberships, unit


@register(
    "bd_cspn",
    family="transductive",
    paper="Liu, Song, Qin, Prototype Rectification for Few-Shot Learning, ECCV 2020, arXiv:1911.10713",
)
class BDCSPN(PretrainedLearner):
    """Bias-diminishing cosine prototypes.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        n_confident: Z, most confident queries of each class that join its prototype; 8 in the paper.
        scale: factor of cosines; 10 in the paper.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module | None = None, *, n_confident: int = 8, scale: float = 10.0
    ) -> None:
        super().__init__(backbone, classifier)
        if n_confident < 1 or not scale > 0:
            raise UserError(f"expected n_confident >= 1 and scale > 0, got {n_confident} and {scale}; change them")
        self.n_confident, self.scale = n_confident, scale

    @property
    def transductive(self) -> bool:
        """True: queries move the prototypes."""
        return True

    def fit_head(self, support: Labelled) -> dict[str, Tensor]:
        """Keep the support.

        Args:
            support: the embedded support.

        Returns:
            ``z`` (S, D) of length one, ``labels`` (S, W) and ``means`` (W, D).
        """
        z = unit(support.z)
        labels = memberships(support.y, support.ways, z.dtype)
        return {"z": z, "labels": labels, "means": class_means(z, support.y, support.ways)}

    def apply_head(self, head: dict[str, Tensor], z: Tensor) -> Tensor:
        """Shift the queries, rectify the prototypes, and return cosines.

        Args:
            head: from ``fit_head``.
            z: all queries (Q, D).

        Returns:
            Logits (Q, W).
        """
        z = unit(z)
        if len(z) > 1:
            z = z + head["z"].mean(0) - z.mean(0)
        cosines = unit(z) @ unit(head["means"]).mT
        assigned = memberships(cosines.argmax(-1), cosines.shape[-1], z.dtype)
        least = (cosines - 4 * (1 - assigned)).topk(min(self.n_confident, len(z)), 0).values[-1]
        confident = assigned * (cosines >= least)
        both = torch.cat([head["labels"], confident])
        means = rectified_means(torch.cat([head["z"], z]), both, head["means"], self.scale)
        return self.scale * unit(z) @ unit(means).mT


def rectified_means(z: Tensor, assignment: Tensor, means: Tensor, sharpness: float) -> Tensor:
    """Average examples by class, those near the class's present mean weighing more.

    Args:
        z: examples (N, D).
        assignment: (N, W), one where an example counts for a class and zero elsewhere.
        means: present means (W, D).
        sharpness: epsilon; the weight of an example is exp(epsilon * cosine), divided by their sum over the class.

    Returns:
        (W, D).
    """
    # Cosines are at most one: taking one off keeps the exponential in range and drops out of the quotient.
    weight = assignment * torch.exp(sharpness * (unit(z) @ unit(means).mT - 1))
    return weight.mT @ z / weight.sum(0).unsqueeze(-1)
