"""LaplacianShot: queries that are near each other are answered alike.

Paper: Imtiaz Masud Ziko, Jose Dolz, Eric Granger, Ismail Ben Ayed, "Laplacian Regularized Few-Shot Learning",
ICML 2020, arXiv:2006.15486.

Idea: give each query its nearest prototype, and let near neighbours among the queries agree.

======================  ==============================================
paper                   here
======================  ==============================================
f_theta                 ``backbone``; features less ``mean``, the training features' mean, of length one
Delta                   mean of the support minus mean of the queries, added to the queries
m_c                     prototypes, rectified by the queries that are nearest to them: mean of w x over the
                        examples x of a class, w the softmax over the classes of 10 cos(x, prototype)
a_q                     squared distances to the prototypes
w(x_p, x_q)             1 for the ``n_neighbours`` nearest queries of a query (k = 3)
lambda                  ``lam``
y_q                     answers, by the bound updates
======================  ==============================================

Differs from the paper: lambda is an option (the paper chooses it on the validation set, from 0.1 to 1.5); 20 bound
updates, always. The mean of the training features is a running one, taken while training. The factor 10, and features
centred and brought to length one, are of the authors' code; their k counts the query itself, which makes 2 others
by default. Centre features that are not negative: with a large mean in common, weights over the classes shrink
some prototypes more than others, and the answers are of little worth. A query that comes alone is not shifted: less
the mean of itself it would be nothing.

Others differ: easyfsl takes the prototypes of its BD-CSPN (weights over a class's examples, without a factor) and
answers queries as they were before the shift.

Checked by: tests/reference/test_transductive.py (plain loops; features with much in common).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import CentredLearner, Labelled
from kshot.nn.heads import class_means, memberships, squared_distances, unit

#: Factor of the cosines that weigh examples in a rectified prototype.
_SHARPNESS = 10.0


@register(
    "laplacianshot",
    family="transductive",
    paper="Ziko, Dolz, Granger, Ben Ayed, Laplacian Regularized Few-Shot Learning, ICML 2020, arXiv:2006.15486",
)
class LaplacianShot(CentredLearner):
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
        z = unit(support.z - self.mean)
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
        z = unit(z - self.mean)
        if len(z) > 1:
            z = z + head["z"].mean(0) - z.mean(0)
        prototypes = rectified(head, z)
        unary, near = squared_distances(z, prototypes), neighbours(z, self.n_neighbours)
        logits = -unary
        for _ in range(self.n_steps):
            logits = -unary + self.lam * near @ torch.softmax(logits, -1)
        return logits


def rectified(head: dict[str, Tensor], z: Tensor) -> Tensor:
    """Average support and queries by class, those that are clearly of the class weighing more.

    Args:
        head: from ``fit_head``.
        z: shifted queries (Q, D).

    Returns:
        Prototypes (W, D); shorter than a mean, as weights are at most one.
    """
    means, both = head["means"], torch.cat([head["z"], z])
    cosines = unit(both) @ unit(means).mT
    nearest = cosines[len(head["z"]) :].argmax(-1)
    members = torch.cat([head["labels"], memberships(nearest, len(means), z.dtype)])
    weights = members * torch.softmax(_SHARPNESS * cosines, -1)
    return weights.mT @ both / members.sum(0).unsqueeze(-1)


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
