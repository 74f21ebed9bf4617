"""MetaOptNet: the head of a task is a support vector machine, and the gradient runs through its dual problem.

Paper: Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto, "Meta-Learning with Differentiable Convex
Optimization", CVPR 2019, arXiv:1904.03758.

Idea: a machine of the largest margin generalises better from few examples than a mean; its dual is a small convex
program, whose solution can be differentiated by the optimality conditions.

======================  ==============================================
paper                   here
======================  ==============================================
f_phi                   ``backbone``
alpha^k                 columns of ``alpha`` = C (Y - P), P from ``solve_simplex_qp``
w_k(alpha^k)            sum over the support of alpha_n^k f(x_n)
C                       ``penalty``
gamma                   ``exp(log_scale)``, learned
======================  ==============================================

Differs from the paper: the program is solved by our own interior-point method to the end (the authors stop theirs after
a few steps), with a barrier of 1e-6 left on. No label smoothing.

Checked by: tests/reference/test_solvers.py (SciPy's constrained minimiser), tests/nn/test_simplex_qp.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import memberships
from kshot.nn.simplex_qp import solve_simplex_qp


@register(
    "metaoptnet",
    family="solver",
    paper="Lee, Maji, Ravichandran, Soatto, Meta-Learning with Differentiable Convex Optimization, CVPR 2019, "
    "arXiv:1904.03758",
)
class MetaOptNet(EmbeddingLearner):
    """MetaOptNet with the Crammer-Singer support vector machine.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        penalty: C, how much an example inside the margin costs; 0.1 in the authors' code.

    Raises:
        UserError: a penalty that is not above zero.
    """

    def __init__(self, backbone: nn.Module, *, penalty: float = 0.1) -> None:
        super().__init__(backbone)
        if not penalty > 0:
            raise UserError(f"expected penalty > 0, got {penalty}; the paper takes 0.1")
        self.penalty = penalty
        self.log_scale = nn.Parameter(torch.zeros(()))

    def fit_head(self, support: Labelled) -> Tensor:
        """Solve the dual and return the weights.

        Args:
            support: the embedded support.

        Returns:
            w (D, W).
        """
        y = memberships(support.y, support.ways, support.z.dtype)
        p = solve_simplex_qp(support.z @ support.z.mT, y, self.penalty)
        return support.z.mT @ (self.penalty * (y - p))

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return gamma w_k . f(x).

        Args:
            head: w (D, W).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return self.log_scale.exp() * (z @ head)
