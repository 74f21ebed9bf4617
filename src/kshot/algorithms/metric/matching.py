"""Matching Networks: a query's label is the average of the support's labels, weighed by attention.

Paper: Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra, "Matching Networks for One
Shot Learning", NeurIPS 2016, arXiv:1606.04080.

Idea: attend to the support by cosine, and train on episodes that look like those of the test.

======================  ==============================================
paper                   here
======================  ==============================================
f', g'                  ``backbone``, one and the same
a(x_hat, x_i)           softmax over the support of ``scale`` * cosine (section 2.1.1)
P(y_hat | x_hat, S)     softmax of ``predict`` (Eq. 1)
g(x_i, S)               ``_context_of_support`` (appendix A.2)
f(x_hat, S)             ``_context_of_queries``, K = ``n_processing`` steps
======================  ==============================================

Differs from the paper: the cosine is multiplied by ``scale`` before the softmax. The paper has no such factor (scale
1); attention is then nearly flat over many examples. Full context embeddings are off by default, as in the paper's
results on Omniglot; where they are on, a query's LSTM starts at h_0 = f'(x), the embedding itself, so that its first
look at the support already asks something. The paper's equations give no start; code by others takes this one too.

Checked by: tests/reference/test_metric.py (plain loops and PyTorch's own LSTM).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Spec, UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.heads import memberships, unit
from kshot.nn.recurrent import LSTM


class Context(NamedTuple):
    """The support, as queries attend to it.

    Attributes:
        g: embeddings (S, D), in context if the learner uses it.
        labels: (S, W) of zeros and ones.
    """

    g: Tensor
    labels: Tensor


@register(
    "matching",
    family="metric",
    paper="Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, Matching Networks for One Shot Learning, NeurIPS 2016, "
    "arXiv:1606.04080",
)
class MatchingNet(EmbeddingLearner):
    """Matching Networks.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        fce: full context embeddings: the support is read by a bidirectional LSTM, and each query by one with attention
            over the support.
        n_processing: K, steps of attention of each query in its context.
        scale: factor of the cosine before the softmax; 1 is the paper's. The default was chosen on Omniglot, in
            validation.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(self, backbone: nn.Module, *, fce: bool = False, n_processing: int = 5, scale: float = 60.0) -> None:
        super().__init__(backbone)
        if n_processing < 1 or not scale > 0:
            raise UserError(f"expected n_processing >= 1 and scale > 0, got {n_processing} and {scale}; change them")
        self.fce, self.n_processing, self.scale = fce, n_processing, scale
        if fce:
            width = int(backbone.n_features)  # pyright: ignore[reportArgumentType]
            self.forwards, self.backwards = LSTM(width, width), LSTM(width, width)
            self.attending = LSTM(width, width, 2 * width)

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> MatchingNet:
        """Build the learner.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: what the tasks look like.
            **options: see the class.

        Returns:
            The learner; with full context the order of the support matters.
        """
        return cls(backbone, **options)

    @property
    def order_matters(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True with full context: the support is read as a sequence."""
        return self.fce

    def fit_head(self, support: Labelled) -> Context:
        """Put the support into context.

        Args:
            support: the embedded support.

        Returns:
            What queries attend to.
        """
        g = self._context_of_support(support.z) if self.fce else support.z
        return Context(g, memberships(support.y, support.ways, g.dtype))

    def apply_head(self, head: Context, z: Tensor) -> Tensor:
        """Return the logarithm of the attention that goes to each class (Eq. 1).

        Args:
            head: the support.
            z: (Q, D).

        Returns:
            Logits (Q, W).
        """
        f = self._context_of_queries(head.g, z) if self.fce else z
        attention = torch.log_softmax(self.scale * unit(f) @ unit(head.g).mT, -1)
        # log of the sum over each class's examples, in logarithms: attention to a class may underflow.
        away = attention.unsqueeze(-1).masked_fill(head.labels == 0, float("-inf"))
        return torch.logsumexp(away, -2)

    def _context_of_support(self, z: Tensor) -> Tensor:
        # A.2: g(x_i, S) is the sum of both directions' states and the embedding itself.
        return self.forwards.read(z) + self.backwards.read(z.flip(0)).flip(0) + z

    def _context_of_queries(self, g: Tensor, z: Tensor) -> Tensor:
        h, c = z, torch.zeros_like(z)
        for _ in range(self.n_processing):
            read = torch.softmax(h @ g.mT, -1) @ g
            out, c = self.attending(z, torch.cat([h, read], -1), c)
            h = out + z
        return h
