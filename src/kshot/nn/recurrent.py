"""A long short-term memory by plain products, so that ``vmap`` and second derivatives go through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """One step of a long short-term memory (Hochreiter and Schmidhuber 1997, with forget gates).

    Args:
        n_inputs: width of the input.
        n_hidden: width of the state.
        n_recurrent: width of what is fed back in the place of the hidden state; ``n_hidden`` if None.
    """

    def __init__(self, n_inputs: int, n_hidden: int, n_recurrent: int | None = None) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.gates = nn.Linear(n_inputs + (n_recurrent or n_hidden), 4 * n_hidden)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: input (..., n_inputs).
            h: what is fed back (..., n_recurrent).
            c: cell (..., n_hidden).

        Returns:
            The new hidden state and cell.
        """
        i, f, g, o = self.gates(torch.cat([x, h], -1)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def read(self, xs: Tensor) -> Tensor:
        """Read a sequence from zero.

        Args:
            xs: (L, n_inputs).

        Returns:
            Hidden states (L, n_hidden).
        """
        h = c = xs.new_zeros(self.n_hidden)
        states = []
        for x in xs.unbind(0):
            h, c = self(x, h, c)
            states.append(h)
        return torch.stack(states)
