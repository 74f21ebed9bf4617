"""LaplacianShot: queries that are near each other are answered alike.

Paper: Imtiaz Masud Ziko, Jose Dolz, Eric Granger, Ismail Ben Ayed, "Laplacian Regularized Few-Shot Learning",
ICML 2020, arXiv:2006.15486.

Idea: give each query its nearest prototype, and let near neighbours among the queries agree.

======================  ==============================================
paper                   here
======================  ==============================================
f_theta                 ``backbone``; features of length one
m_c                     prototypes, rectified by the queries that are nearest to them
a_q                     squared distances to the prototypes
w(x_p, x_q)             1 for the ``n_neighbours`` nearest queries of a query (k = 3)
lambda                  ``lam``
y_q                     answers, by the bound updates
======================  ==============================================

Differs from the paper: lambda is an option (the paper chooses it on the validation set, from 0.1 to 1.5); 20 bound
updates, always. Features are not centred by the mean of the training set.

Checked by: tests/reference/test_transductive.py (plain loops; the energy falls).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.nn.heads import class_means, memberships, rectified_means, squared_distances, unit

#: Of the cosines that weigh examples in a rectified prototype, as in BD-CSPN.
_SHARPNESS = 10.0


@register(
    "laplacianshot",
    family="transductive",
    paper="Ziko, Dolz, Granger, Ben Ayed, Laplacian Regularized Few-Shot Learning, ICML 2020, arXiv:2006.15486",
)
class LaplacianShot(PretrainedLearner):
    """Nearest prototypes with a Laplacian over the queries.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        lam: lambda, how much neighbours count.
        n_neighbours: k.
        n_steps: bound updates.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        lam: float = 0.7,
        n_neighbours: int = 3,
        n_steps: int = 20,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_steps < 1 or n_neighbours < 1 or lam < 0:
            raise UserError(
                f"expected n_steps >= 1, n_neighbours >= 1 and lam >= 0, got {n_steps}, {n_neighbours} and {lam}"
            )
        self.lam, self.n_neighbours, self.n_steps = lam, n_neighbours, n_steps

    @property
    def transductive(self) -> bool:
        """True: queries vote on each other."""
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
        """Answer all queries together.

        Args:
            head: from ``fit_head``.
            z: all queries (Q, D).

        Returns:
            Logits (Q, W): the last update before its softmax.
        """
        z = unit(z)
        z = z + head["z"].mean(0) - z.mean(0)
        nearest = (unit(z) @ unit(head["means"]).mT).argmax(-1)
        both = torch.cat([head["labels"], memberships(nearest, len(head["means"]), z.dtype)])
        prototypes = rectified_means(torch.cat([head["z"], z]), both, head["means"], _SHARPNESS)
        unary, near = squared_distances(z, prototypes), neighbours(z, self.n_neighbours)
        logits = -unary
        for _ in range(self.n_steps):
            logits = -unary + self.lam * near @ torch.softmax(logits, -1)
        return logits


def neighbours(z: Tensor, k: int) -> Tensor:
    """Find the nearest others of each vector.

    Args:
        z: (Q, D).
        k: how many; all others if there are fewer.

    Returns:
        (Q, Q) of zeros and ones, in each row a one for each neighbour.
    """
    n = len(z)
    far = squared_distances(z, z) + torch.diag(torch.full((n,), float("inf"), dtype=z.dtype, device=z.device))
    index = far.topk(min(k, n - 1), -1, largest=False).indices
    return (index.unsqueeze(-1) == torch.arange(n, device=z.device)).any(-2).to(z.dtype)
