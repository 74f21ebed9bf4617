"""A transformer layer for a set that is known and points that are asked about it, each by itself.

The masks of Mueller, Hollmann, Pineda Arango, Grabocka and Hutter, Transformers Can Do Bayesian Inference, ICLR 2022:
what is known attends to what is known, a query to that and to itself. No place is encoded, so sets have no order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kshot.core.errors import UserError


class SetLayer(nn.Module):
    """Attention and a feed-forward network, each after a layer norm and added to its input.

    Args:
        width: E.
        n_heads: of the attention; divides E.
        n_hidden: units of the feed-forward network.

    Raises:
        UserError: the heads do not divide the width.
    """

    def __init__(self, width: int, n_heads: int, n_hidden: int) -> None:
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise UserError(f"expected a width that n_heads divides, got width={width} and n_heads={n_heads}")
        self.n_heads = n_heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asks, self.holds = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.joins = nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, n_hidden), nn.GELU(), nn.Linear(n_hidden, width))

    def forward(self, known: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layer.

        Args:
            known: (..., S, E).
            query: (..., Q, E).

        Returns:
            Both, changed; the known ones by each other alone.
        """
        k, q = self.before_attention(known), self.before_attention(query)
        keys, values = self._parts(self.holds(k), 2)
        own = self._parts(self.holds(q), 2)
        known = known + self._attended(k, keys, values, None)
        query = query + self._attended(q, keys, values, own)
        return known + self.network(self.before_network(known)), query + self.network(self.before_network(query))

    def _parts(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        # (..., L, n * E) -> n times (..., heads, L, E / heads)
        return tuple(part.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2) for part in x.chunk(n, -1))

    def _attended(self, x: Tensor, keys: Tensor, values: Tensor, own: tuple[Tensor, ...] | None) -> Tensor:
        (asked,) = self._parts(self.asks(x), 1)
        asked = asked / math.sqrt(asked.shape[-1])
        scores = asked @ keys.mT
        if own is None:
            found = torch.softmax(scores, -1) @ values
        else:
            shares = torch.softmax(torch.cat([scores, (asked * own[0]).sum(-1, keepdim=True)], -1), -1)
            found = shares[..., :-1] @ values + shares[..., -1:] * own[1]
        return self.joins(found.transpose(-3, -2).flatten(-2))
