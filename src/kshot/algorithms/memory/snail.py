"""SNAIL: temporal convolutions gather experience, attention finds the piece of it that matters.

Paper: Nikhil Mishra, Mostafa Rohaninejad, Xi Chen, Pieter Abbeel, "A Simple Neural Attentive Meta-Learner", ICLR 2018,
arXiv:1707.03141.

Idea: the support and one unlabelled query are a sequence, and a causal network of convolutions and attention completes
its last label.

======================  ==================================================
paper                   here
======================  ==================================================
(x_1, y_1), ...         ``support``, joined with its targets
(x_t, -)                a query, joined with zeros
T = N K + 1             ``length``
DenseBlock, TCBlock     ``kshot.nn.causal``
AttentionBlock(K, V)    ``kshot.nn.causal.AttentionBlock``
======================  ==================================================

Differs from the paper: an episode has many queries, each of them the last step of a sequence of its own; nothing before
depends on it, so what is made of the support is computed once for all. Of first weights the paper says nothing: here
the maps to keys and to questions begin equal in each attention, so that it begins as likeness; they are learned apart.
A training task may have more classes than the tasks it is for, which are then dealt from it: see ``deal_ways``.

Checked by: tests/reference/test_snail.py (convolutions, masks and softmax of the whole sequence, query by query).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Spec, UserError, register
from kshot.engine.dealing import Deal, DealtLearner
from kshot.engine.embedding import Labelled
from kshot.nn.causal import AttentionBlock, TCBlock
from kshot.nn.memory.labelled import shown


@register(
    "snail",
    family="memory",
    paper="Mishra, Rohaninejad, Chen, Abbeel, A Simple Neural Attentive Meta-Learner, ICLR 2018, arXiv:1707.03141",
)
class SNAIL(DealtLearner):
    """Simple neural attentive meta-learner, as in the appendix on few-shot classification.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        spec: what the tasks look like.
        length: T, the longest sequence; convolutions reach as far back. 6 in 5-way 1-shot, 26 in 5-way 5-shot, 21 in
            20-way 1-shot.
        tc_filters: D of the temporal convolutions; 128 in the paper.
        keys: sizes of the keys of the three attentions; 64, 256, 512 in the paper.
        values: sizes of their values; 32, 128, 256 in the paper.
        deal_ways: W, classes of the tasks that are dealt from each training task, see ``kshot.engine.dealing``; 0, as
            in the paper, for those of the training task itself.
        deals: tasks that are dealt from each.
        near: share of them whose classes are near to each other.

    Raises:
        UserError: a size is below 1, there are not three of them, or nothing can be dealt.
    """

    kinds = ("classification", "regression")
    order_matters = True
    label_equivariant = False
    network_head = True

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
        *,
        length: int = 26,
        tc_filters: int = 128,
        keys: tuple[int, ...] = (64, 256, 512),
        values: tuple[int, ...] = (32, 128, 256),
        deal_ways: int = 0,
        deals: int = 32,
        near: float = 0.5,
    ) -> None:
        super().__init__(backbone, spec, Deal(deal_ways, deals, near))
        if len(keys) != 3 or len(values) != 3:
            raise UserError(f"expected keys and values of three attentions, got {keys} and {values}; give three each")
        if min(length - 1, tc_filters, *keys, *values) < 1:
            raise UserError(
                f"expected sizes of at least 1 and a length of at least 2, got length={length}, "
                f"tc_filters={tc_filters}, keys={keys}, values={values}"
            )
        width = int(getattr(backbone, "n_features", 0)) + self.n_outputs
        layers: list[nn.Module] = []
        for i in range(3):
            layers.append(AttentionBlock(width, keys[i], values[i]))
            width += values[i]
            if i < 2:
                convolutions = TCBlock(width, length, tc_filters)
                layers.append(convolutions)
                width = convolutions.n_features
        self.body, self.head = nn.ModuleList(layers), nn.Linear(width, self.n_outputs)

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> SNAIL:
        """Build the learner.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: what the tasks look like.
            **options: the method's own keyword options.

        Returns:
            The learner.
        """
        return cls(backbone, spec, **options)

    def fit_head(self, support: Labelled) -> Tensor:
        """Join the support with its targets.

        Args:
            support: its embedded support.

        Returns:
            The steps of the sequence before the query, (S, D + C).
        """
        return torch.cat([support.z, shown(support.y, self.head.out_features, support.z)], -1)

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer each query as the last step of a sequence.

        Args:
            head: the steps before it.
            z: embedded queries (Q, D).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        support, query = head, F.pad(z, (0, self.head.out_features))
        for layer in self.body:
            support, query = layer(support, query)
        return self.head(query)
