"""LR-D2: the head of a task is logistic regression, by a few Newton steps that one differentiates through.

Paper: Luca Bertinetto, João Henriques, Philip Torr, Andrea Vedaldi, "Meta-learning with Differentiable Closed-form
Solvers", ICLR 2019, arXiv:1805.08136.

Idea: R2-D2 with the loss that classification asks for; Newton's method turns it into a few ridge regressions.

======================  ==============================================
paper                   here
======================  ==============================================
omega                   ``backbone``
X, Y                    embedded support; labels, one class against the rest
mu_i, s_i, z_i          within ``kshot.nn.solvers.logistic``
w_i after ``n_steps`` of them
lambda                  ``exp(log_penalty)``, learned
======================  ==============================================

Differs from the paper: several classes are one against the rest, their margins side by side as logits. The learned
lambda starts at 1, and a learned scale multiplies the margins, as in R2-D2, which starts at 1.

Checked by: tests/reference/test_solvers.py (SciPy's minimiser), tests/nn/test_solvers.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import memberships, with_ones
from kshot.nn.solvers import logistic


@register(
    "lrd2",
    family="solver",
    paper="Bertinetto, Henriques, Torr, Vedaldi, Meta-learning with Differentiable Closed-form Solvers, ICLR 2019, "
    "arXiv:1805.08136",
)
class LRD2(EmbeddingLearner):
    """Logistic regression by Newton's method.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        n_steps: Newton steps; 5 in the paper.

    Raises:
        UserError: fewer than one step.
    """

    def __init__(self, backbone: nn.Module, *, n_steps: int = 5) -> None:
        super().__init__(backbone)
        if n_steps < 1:
            raise UserError(f"expected n_steps >= 1, got {n_steps}; the paper takes 5")
        self.n_steps = n_steps
        self.log_penalty = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def fit_head(self, support: Labelled) -> Tensor:
        """Fit one class against the rest, for each class.

        Args:
            support: the embedded support.

        Returns:
            (D + 1, W), the last row is the bias.
        """
        y = memberships(support.y, support.ways, support.z.dtype)
        return logistic(with_ones(support.z), y, self.log_penalty.exp(), self.n_steps)

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return the scaled margins.

        Args:
            head: (D + 1, W).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return self.log_scale.exp() * (with_ones(z) @ head)
