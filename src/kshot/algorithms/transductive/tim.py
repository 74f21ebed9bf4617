"""TIM: answers to all queries together carry as much information about the queries as they can.

Paper: Malik Boudiaf, Imtiaz Masud Ziko, Jérôme Rony, José Dolz, Pablo Piantanida, Ismail Ben Ayed, "Transductive
Information Maximization For Few-Shot Learning", NeurIPS 2020, arXiv:2008.11297.

Idea: be right about the support, sure about each query, and use all classes about equally often.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``; features of length one
W = {w_k}               head (W, D), from the class means
p_ik                    softmax of -tau / 2 * |w_k - z_i|^2
lambda, alpha           ``lam``, ``alpha`` of the loss lambda CE - (H(Y) - alpha H(Y | X))
q_ik, w_k               the alternating steps of TIM-ADM
======================  ==============================================

Differs from the paper: none in inference, of which this is TIM-ADM alone; TIM-GD takes 1,000 gradient steps on the
same loss. It assumes queries spread about evenly over the
classes, as those of the usual benchmarks are; where they are not, it does harm.

Others differ: easyfsl has TIM-GD, with cosines in the place of distances, 50 steps and lambda = 1 by default: steps too
few to arrive at what either way arrives at.

Checked by: tests/reference/test_transductive.py (plain loops; the loss falls).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import Labelled, PretrainedLearner
from kshot.nn.heads import class_means, memberships, squared_distances, unit


@register(
    "tim",
    family="transductive",
    paper="Boudiaf, Ziko, Rony, Dolz, Piantanida, Ben Ayed, Transductive Information Maximization For Few-Shot "
    "Learning, NeurIPS 2020, arXiv:2008.11297",
)
class TIM(PretrainedLearner):
    """Transductive information maximisation, by alternating directions.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        classifier: maps embeddings to logits of the training classes; None on embeddings that come from elsewhere.
        lam: lambda, weight of the cross-entropy of the support.
        alpha: weight of the conditional entropy.
        temperature: tau, factor of the distances.
        n_steps: alternations; 150 in the paper.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module | None = None,
        *,
        lam: float = 0.1,
        alpha: float = 0.1,
        temperature: float = 15.0,
        n_steps: int = 150,
    ) -> None:
        super().__init__(backbone, classifier)
        if n_steps < 1 or not (temperature > 0 and lam > 0) or alpha < 0:
            raise UserError(
                f"expected n_steps >= 1, temperature > 0, lam > 0 and alpha >= 0, got {n_steps}, {temperature}, {lam} "
                f"and {alpha}; the defaults are the paper's"
            )
        self.lam, self.alpha, self.temperature, self.n_steps = lam, alpha, temperature, n_steps

    @property
    def transductive(self) -> bool:
        """True: the classes' weights are fitted to all queries."""
        return True

    def fit_head(self, support: Labelled) -> dict[str, Tensor]:
        """Keep the support; weights start at the class means.

        Args:
            support: the embedded support.

        Returns:
            ``z`` (S, D) of length one, ``labels`` (S, W), ``weight`` (W, D).
        """
        z = unit(support.z)
        labels = memberships(support.y, support.ways, z.dtype)
        return {"z": z, "labels": labels, "weight": class_means(z, support.y, support.ways)}

    def apply_head(self, head: dict[str, Tensor], z: Tensor) -> Tensor:
        """Fit the weights to support and queries, and answer.

        Args:
            head: from ``fit_head``.
            z: all queries (Q, D).

        Returns:
            Logits (Q, W).
        """
        z, known, labels, w = unit(z), head["z"], head["labels"], head["weight"]
        share = self.lam / (1 + self.alpha)
        weight = len(known) / len(z)
        for _ in range(self.n_steps):
            q = self.targets(z, w)
            # A mean of support and queries, and of the pull of the present answers.
            p, pq = self.answers(known, w), self.answers(z, w)
            pulled = share * (labels.mT @ known + p.sum(0).unsqueeze(-1) * w - p.mT @ known)
            pulled = pulled + weight * (q.mT @ z + pq.sum(0).unsqueeze(-1) * w - pq.mT @ z)
            w = pulled / (share * labels.sum(0) + weight * q.sum(0)).unsqueeze(-1)
        return -self.temperature / 2 * squared_distances(z, w)

    def answers(self, z: Tensor, w: Tensor) -> Tensor:
        """Probabilities of the classes.

        Args:
            z: (N, D).
            w: (W, D).

        Returns:
            (N, W).
        """
        return torch.softmax(-self.temperature / 2 * squared_distances(z, w), -1)

    def targets(self, z: Tensor, w: Tensor) -> Tensor:
        """Targets of the queries, sharper than the answers and balanced over the classes.

        Args:
            z: queries (Q, D).
            w: (W, D).

        Returns:
            (Q, W); rows sum to one.
        """
        scores = -self.temperature / 2 * squared_distances(z, w)
        sharp = (1 + self.alpha) * torch.log_softmax(scores, -1)
        return torch.softmax(sharp - torch.logsumexp(sharp, 0) / 2, -1)
