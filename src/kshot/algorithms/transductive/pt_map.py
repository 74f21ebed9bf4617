"""PT-MAP: make features more Gaussian, then assign all queries to classes as optimal transport.

Paper: Yuqing Hu, Vincent Gripon, Stéphane Pateux, "Leveraging the Feature Distribution in Transfer-based Few-Shot
Learning", ICANN 2021, arXiv:2006.03806.

Idea: a power transform evens features out; class centres and assignments are then found in turns, with every class
taking its share of the queries.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``
beta, epsilon           ``power`` 0.5 and 1e-6 of the power transform
M*                      ``sinkhorn`` assignments
lambda                  ``sharpness``
mu_j, alpha moved by ``rate`` in each of ``n_steps``
======================  ==============================================

Differs from the paper: negative features, which its networks do not have, are taken as zero. As in the authors' code,
support and queries are then centred, each by its own mean, and brought to length one again: without that, features
that have much in common lie too close for lambda = 10, and assignments stay nearly even. It assumes that every class
has an equal share of the queries, as in the usual benchmarks; where that is not so, it does harm. A query that comes
alone has no others to share out or to be centred by: it is centred by the support, and takes a softmax over classes.

Others differ: easyfsl neither brings transformed features to length one nor centres them, so that its lambda counts
as many times over as their squared length.

Checked by: tests/reference/test_transductive.py (plain loops).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.nn.heads import class_means, memberships, squared_distances, unit
from kshot.nn.solvers import sinkhorn


@register(
    "pt_map",
    family="transductive",
    paper="Hu, Gripon, Pateux, Leveraging the Feature Distribution in Transfer-based Few-Shot Learning, ICANN 2021, "
    "arXiv:2006.03806",
)
class PTMAP(PretrainedLearner):
    """Power transform and maximum a posteriori assignment.

    Args:
        backbone: maps (N, ...) to embeddings (N, D) that are not negative.
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        power: beta.
        sharpness: lambda, factor of the squared distances in the transport.
        rate: alpha, how far centres move in a step; 0.2 in the authors' code.
        n_steps: how often; 20 in the authors' code.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        power: float = 0.5,
        sharpness: float = 10.0,
        rate: float = 0.2,
        n_steps: int = 20,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_steps < 1 or not (power > 0 and sharpness > 0) or not 0 < rate <= 1:
            raise UserError(
                f"expected n_steps >= 1, power > 0, sharpness > 0 and a rate of 0 to 1, got {n_steps}, {power}, "
                f"{sharpness} and {rate}; the defaults are the paper's"
            )
        self.power, self.sharpness, self.rate, self.n_steps = power, sharpness, rate, n_steps

    @property
    def transductive(self) -> bool:
        """True: queries share the classes out among themselves."""
        return True

    def fit_head(self, support: Labelled) -> dict[str, Tensor]:
        """Keep the transformed support; centres start at its class means.

        Args:
            support: the embedded support.

        Returns:
            ``z`` (S, D), the ``mean`` (D,) that was taken off, ``labels`` (S, W) and ``centres`` (W, D).
        """
        z = self.powered(support.z)
        mean = z.mean(0)
        z, labels = unit(z - mean), memberships(support.y, support.ways, z.dtype)
        return {"z": z, "mean": mean, "labels": labels, "centres": class_means(z, support.y, support.ways)}

    def apply_head(self, head: dict[str, Tensor], z: Tensor) -> Tensor:
        """Find centres and assignments in turns.

        Args:
            head: from ``fit_head``.
            z: all queries (Q, D).

        Returns:
            Logits (Q, W): logarithms of the last assignment.
        """
        z, centres = self.powered(z), head["centres"]
        z = unit(z - (z.mean(0) if len(z) > 1 else head["mean"]))
        for _ in range(self.n_steps):
            assigned = torch.cat([head["labels"], self.assignment(z, centres)])
            means = assigned.mT @ torch.cat([head["z"], z]) / assigned.sum(0).unsqueeze(-1)
            centres = centres + self.rate * (means - centres)
        return self.assignment(z, centres).clamp(min=torch.finfo(z.dtype).tiny).log()

    def assignment(self, z: Tensor, centres: Tensor) -> Tensor:
        """Share the queries out.

        Args:
            z: (Q, D).
            centres: (W, D).

        Returns:
            (Q, W); rows sum to one, columns to Q / W if there are several queries.
        """
        scores = -self.sharpness * squared_distances(z, centres)
        if len(z) == 1:
            return torch.softmax(scores, -1)
        return sinkhorn(scores, torch.full_like(centres[:, 0], len(z) / len(centres)))

    def powered(self, z: Tensor) -> Tensor:
        """Raise features to a power and bring them to length one.

        Args:
            z: (N, D).

        Returns:
            (N, D).
        """
        return unit((z.clamp(min=0) + 1e-6) ** self.power)
