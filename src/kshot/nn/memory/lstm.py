"""Long short-term memory from plain operations, so that it can be differentiated twice and mapped by ``vmap``.

Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 1997, with the forget gate of Gers, Schmidhuber
and Cummins 2000; several layers are stacked. Fused recurrent layers allow neither.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core.errors import UserError
from kshot.nn.memory.cell import Cell


class LSTMState(NamedTuple):
    """What an LSTM remembers.

    Attributes:
        h: outputs of the layers, (..., n_layers, H).
        c: contents of their cells, (..., n_layers, H).
    """

    h: Tensor
    c: Tensor


class LSTMCell(Cell[LSTMState]):
    """Layers of LSTM, each reading the one below.

    Args:
        n_inputs: I.
        n_hidden: H, units of each layer.
        n_layers: how many.

    Raises:
        UserError: a number is below 1.
    """

    def __init__(self, n_inputs: int, n_hidden: int = 200, n_layers: int = 1) -> None:
        super().__init__()
        for what, n in (("n_inputs", n_inputs), ("n_hidden", n_hidden), ("n_layers", n_layers)):
            if n < 1:
                raise UserError(f"expected {what} of at least 1, got {n}; choose another")
        self.n_inputs = n_inputs
        self.n_features = self.n_hidden = n_hidden
        self.n_layers = n_layers
        self.reads = nn.ModuleList(nn.Linear(n_hidden if i else n_inputs, 4 * n_hidden) for i in range(n_layers))
        self.recurs = nn.ModuleList(nn.Linear(n_hidden, 4 * n_hidden, bias=False) for _ in range(n_layers))
        with torch.no_grad():
            for read in self.reads:  # forget gates begin open, so that gradients reach far back
                read.bias.view(4, n_hidden)[1] = 1.0  # pyright: ignore[reportCallIssue]

    def start(self, batch: tuple[int, ...] = ()) -> LSTMState:
        """Return the state before anything was read: zeros.

        Args:
            batch: the leading axes.

        Returns:
            The state.
        """
        empty = self.reads[0].weight.new_zeros(*batch, self.n_layers, self.n_hidden)  # pyright: ignore[reportCallIssue]
        return LSTMState(empty, empty)

    def forward(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Take one step.

        Args:
            x: (..., I).
            state: before.

        Returns:
            The output of the top layer (..., H), and the state after.
        """
        hs, cs = [], []
        for read, recur, h, c in zip(self.reads, self.recurs, state.h.unbind(-2), state.c.unbind(-2), strict=True):
            x, c = gated(read(x) + recur(h), c)
            hs.append(x)
            cs.append(c)
        return x, LSTMState(torch.stack(hs, -2), torch.stack(cs, -2))

    def step(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState, dict[str, Tensor]]:
        """Take one step, and tell what was computed on the way.

        Args:
            x: (..., I).
            state: before.

        Returns:
            As ``forward``; and the state by names in words.
        """
        out, after = self(x, state)
        return out, after, {"cells of the layers": after.c, "outputs of the layers": after.h}

    def pictured(self, did: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose what pictures of a step show.

        Args:
            did: what ``step`` told, of one sequence.

        Returns:
            The outputs of the layers, (n_layers, H).
        """
        return {
            "hidden units": did["outputs of the layers"],
        }

    def scan(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Read a sequence layer by layer: what a layer makes of its inputs is one product for all steps.

        Args:
            x: (L, ..., I).
            state: before.

        Returns:
            The outputs of the top layer (L, ..., H), and the state after the last step.
        """
        if not len(x):
            return x.new_zeros(*x.shape[:-1], self.n_features), state
        hs, cs = [], []
        for read, recur, h, c in zip(self.reads, self.recurs, state.h.unbind(-2), state.c.unbind(-2), strict=True):
            outputs = []
            for step in read(x).unbind(0):
                h, c = gated(step + recur(h), c)
                outputs.append(h)
            x = torch.stack(outputs)
            hs.append(h)
            cs.append(c)
        return x, LSTMState(torch.stack(hs, -2), torch.stack(cs, -2))


def gated(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the gates of an LSTM: c' = f * c + i * g, h' = o * tanh(c').

    Args:
        sums: what gates and candidate are the squashed values of, (..., 4 H): i, f, o, g.
        c: contents of the cells (..., H).

    Returns:
        h' and c'.
    """
    n = c.shape[-1]
    i, f, o = torch.sigmoid(sums[..., : 3 * n]).chunk(3, -1)
    c = torch.addcmul(f * c, i, torch.tanh(sums[..., 3 * n :]))
    return o * torch.tanh(c), c
