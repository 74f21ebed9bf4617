"""Causal layers for sequences whose end is asked again and again: what stands before it is computed once.

The temporal convolutions and the attention of Mishra, Rohaninejad, Chen and Abbeel, A Simple Neural Attentive
Meta-Learner, ICLR 2018, section 3. Each layer takes the support, a sequence (..., S, C), and queries (..., Q, C); every
query is the step after the last of the support, and knows nothing of the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DenseBlock(nn.Module):
    """Causal gated convolution of two steps, joined to its input: tanh(conv_f) * sigmoid(conv_g).

    Args:
        n_inputs: C.
        dilation: R, how far back the other step is.
        n_filters: D.

    Attributes:
        n_features: C + D.
    """

    def __init__(self, n_inputs: int, dilation: int, n_filters: int) -> None:
        super().__init__()
        self.dilation, self.n_features = dilation, n_inputs + n_filters
        # Both convolutions, f and g, in one product for this step and one for the step R before.
        self.now = nn.Linear(n_inputs, 2 * n_filters)
        self.before = nn.Linear(n_inputs, 2 * n_filters, bias=False)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            support: (..., S, C).
            query: (..., Q, C).

        Returns:
            (..., S, C + D) and (..., Q, C + D).
        """
        past, r, s = self.before(support), self.dilation, support.shape[-2]
        empty = past.new_zeros(*past.shape[:-2], min(r, s), past.shape[-1])
        earlier = torch.cat([empty, past[..., : max(s - r, 0), :]], -2)
        after = past[..., s - r : s - r + 1, :] if s >= r else 0.0
        return self._gated(support, earlier), self._gated(query, after)

    def _gated(self, x: Tensor, earlier: Tensor | float) -> Tensor:
        f, g = (self.now(x) + earlier).chunk(2, -1)
        return torch.cat([x, torch.tanh(f) * torch.sigmoid(g)], -1)


class TCBlock(nn.Module):
    """Dense blocks of dilations 2, 4, ..., the last at least as far as the sequence is long.

    As in the paper there is none of dilation 1, so that a step sees what stands an even number of steps before it.

    Args:
        n_inputs: C.
        length: T, steps of the longest sequence.
        n_filters: D of each block.

    Attributes:
        n_features: C + D * ceil(log2 T).
    """

    def __init__(self, n_inputs: int, length: int, n_filters: int) -> None:
        super().__init__()
        n = max(1, math.ceil(math.log2(length)))
        self.blocks = nn.ModuleList(DenseBlock(n_inputs + i * n_filters, 2 ** (i + 1), n_filters) for i in range(n))
        self.n_features = n_inputs + n * n_filters

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the blocks.

        Args:
            support: (..., S, C).
            query: (..., Q, C).

        Returns:
            The same with ``n_features`` in the place of C.
        """
        for block in self.blocks:
            support, query = block(support, query)
        return support, query


class AttentionBlock(nn.Module):
    """Causal attention to the past and to itself, joined to its input.

    Args:
        n_inputs: C.
        key_size: K.
        value_size: V.

    Attributes:
        n_features: C + V.
    """

    def __init__(self, n_inputs: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.key_size, self.n_features = key_size, n_inputs + value_size
        self.keys, self.asks = nn.Linear(n_inputs, key_size), nn.Linear(n_inputs, key_size)
        self.values = nn.Linear(n_inputs, value_size)
        with torch.no_grad():  # Attention begins as likeness: what is alike has keys that fit.
            self.asks.weight.copy_(self.keys.weight)
            self.asks.bias.copy_(self.keys.bias)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            support: (..., S, C).
            query: (..., Q, C).

        Returns:
            (..., S, C + V) and (..., Q, C + V).
        """
        keys, values = self.keys(support), self.values(support)
        scale, s = 1 / math.sqrt(self.key_size), support.shape[-2]
        later = torch.ones(s, s, dtype=torch.bool, device=support.device).triu(1)
        scores = (self.asks(support) @ keys.mT * scale).masked_fill(later, float("-inf"))
        seen = torch.softmax(scores, -1) @ values
        asked = self.asks(query)
        own = (asked * self.keys(query)).sum(-1, keepdim=True)
        shares = torch.softmax(torch.cat([asked @ keys.mT, own], -1) * scale, -1)
        answer = shares[..., :-1] @ values + shares[..., -1:] * self.values(query)
        return torch.cat([support, seen], -1), torch.cat([query, answer], -1)
