"""FEAT: prototypes look at each other, through self-attention, before they are compared with.

Paper: Han-Jia Ye, Hexiang Hu, De-Chuan Zhan, Fei Sha, "Few-Shot Learning via Embedding Adaptation with Set-to-Set
Functions", CVPR 2020, arXiv:1812.03664.

Idea: adapt the prototypes to the task by a set-to-set function, which no order of the classes can disturb.

======================  ==============================================
paper                   here
======================  ==============================================
E                       ``backbone``
T                       ``SelfAttention``: one head, a residual, layer norm
psi_x                   an adapted prototype
sim                     minus squared distance / ``temperature``
lambda                  ``balance``, of the contrastive term
======================  ==============================================

Differs from the paper: trained from the start on episodes; the paper first trains the backbone as a classifier (which
``baseline`` does) and warms the transformer up. No dropout within the transformer. The contrastive term divides by the
one ``temperature``, where the authors' code has a second (its ``--temperature2``). Lambda is 0.1 by default, as in
their commands for 5-shot tasks; for 1-shot ones with a ConvNet on miniImageNet they have 1, a temperature of 64 and a
second one of 16.

Checked by: tests/reference/test_metric.py (plain loops).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import UserError, register, task_loss
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import class_means, squared_distances


class SelfAttention(nn.Module):
    """One head of self-attention over a set, with a residual and layer norm.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, apart: Tensor | None = None) -> Tensor:
        """Adapt the elements of a set to each other.

        Args:
            x: (N, D).
            apart: bool (N, N), pairs that are of different sets and do not see each other; None for one set.

        Returns:
            (N, D).
        """
        scores = self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5
        attention = torch.softmax(scores if apart is None else scores.masked_fill(apart, float("-inf")), -1)
        return self.norm(self.out(attention @ self.value(x)) + x)


@register(
    "feat",
    family="metric",
    paper="Ye, Hu, Zhan, Sha, Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions, CVPR 2020, "
    "arXiv:1812.03664",
)
class FEAT(EmbeddingLearner):
    """Adapted prototypes.

    Args:
        backbone: maps (N, ...) to embeddings (N, D), and has an attribute ``n_features``.
        temperature: what squared distances are divided by; 64 with the paper's networks on miniImageNet.
        balance: lambda, weight of the contrastive term while training; with a ConvNet on miniImageNet the authors'
            commands have 1 for 1-shot tasks and 0.1 for 5-shot ones.

    Raises:
        UserError: a temperature or balance that makes no sense.
    """

    def __init__(self, backbone: nn.Module, *, temperature: float = 64.0, balance: float = 0.1) -> None:
        super().__init__(backbone)
        if not temperature > 0 or balance < 0:
            raise UserError(f"expected temperature > 0 and balance >= 0, got {temperature} and {balance}")
        self.temperature, self.balance = temperature, balance
        self.attention = SelfAttention(int(backbone.n_features))  # pyright: ignore[reportArgumentType]

    def fit_head(self, support: Labelled) -> Tensor:
        """Average the support of each class and adapt the averages to each other.

        Args:
            support: the embedded support.

        Returns:
            Adapted prototypes (W, D).
        """
        return self.attention(class_means(support.z, support.y, support.ways))

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Return similarities to the adapted prototypes.

        Args:
            head: (W, D).
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        return -squared_distances(z, head) / self.temperature

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Loss of the queries, and the contrastive term.

        Args:
            support: embedded support.
            query: embedded queries.

        Returns:
            A scalar.
        """
        loss = super().head_loss(support, query)
        if not self.balance:
            return loss
        z, y = torch.cat([support.z, query.z]), torch.cat([support.y, query.y])
        # Every class's own examples, support and queries, are adapted as one set; each must lie near its set's centre.
        centres = class_means(self.attention(z, y.unsqueeze(-1) != y), y, support.ways)
        return loss + self.balance * task_loss(-squared_distances(z, centres) / self.temperature, y)
