"""The least recently used access memory of MANN: new things go where nothing was read or written for long.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, Meta-Learning with Memory-Augmented Neural Networks, ICML 2016,
section 3.2; equations by their numbers there. Only content addresses the memory: rows have no order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.errors import UserError
from kshot.nn.memory.cell import Cell, kernels_run
from kshot.nn.memory.lstm import gated
from kshot.nn.memory.similarity import cosine
from kshot.nn.native.lrua import Shape, Weights, lrua_scan

#: Rows begin with this, so that they are no zero vectors.
START = 1e-6
#: Where gate and key strength of Eq. 7 and 2 begin, before their sigmoid and softplus: heads write to the least used
#: rows, and a key finds its row among 128. From 0, where a softmax of cosines is nearly even and half of all is written
#: to what was read last, MANN took half as many steps again on Omniglot to a loss of 1.29, at a rate of 3e-3.
FIRST_GATE, FIRST_STRENGTH = -3.0, 4.0


class LRUAState(NamedTuple):
    """What the memory and its controller hold after a step.

    Attributes:
        h: output of the controller (..., H).
        c: contents of its cells (..., H).
        memory: M_t (..., N, M).
        reading: read weights w^r_t (..., R, N).
        usage: w^u_t (..., N).
        read: r_t, what was read, (..., R * M).
    """

    h: Tensor
    c: Tensor
    memory: Tensor
    reading: Tensor
    usage: Tensor
    read: Tensor


def least_used(usage: Tensor, n: int) -> Tensor:
    """Mark the n least used rows (Eq. 6), one for each head.

    Args:
        usage: w^u (..., N).
        n: how many.

    Returns:
        (..., n, N) of zeros and ones; each row marks another place. Without gradient.
    """
    # One by one, since of equal rows ``argmin`` takes the first, as the kernel does, where ``topk`` takes any: an empty
    # memory is filled from its top. A stable sort of all rows takes several times as long.
    left, rows, marks = usage.detach(), torch.arange(usage.shape[-1], device=usage.device), []
    for _ in range(n):
        marks.append(left.argmin(-1, keepdim=True) == rows)
        left = left.masked_fill(marks[-1], torch.inf)
    return torch.stack(marks, -2).to(usage.dtype)


class LRUACell(Cell[LRUAState]):
    """An LSTM controller with a least recently used access memory.

    Args:
        n_inputs: I.
        n_hidden: H, units of the controller.
        n_slots: N, rows of the memory.
        slot_width: M, columns of the memory.
        n_heads: R, reads (and writes) of each step.
        usage_decay: gamma of Eq. 5.

    Raises:
        UserError: a number is out of range.
    """

    fused_is_lean = True

    def __init__(
        self,
        n_inputs: int,
        n_hidden: int = 200,
        n_slots: int = 128,
        slot_width: int = 40,
        n_heads: int = 4,
        usage_decay: float = 0.99,
    ) -> None:
        super().__init__()
        sizes = {"n_inputs": n_inputs, "n_hidden": n_hidden, "slot_width": slot_width, "n_heads": n_heads}
        for what, n in sizes.items():
            if n < 1:
                raise UserError(f"expected {what} of at least 1, got {n}; choose another")
        if n_slots <= n_heads:
            raise UserError(f"expected more rows of memory than heads, got n_slots={n_slots} and n_heads={n_heads}")
        if not 0 <= usage_decay <= 1:
            raise UserError(f"expected usage_decay between 0 and 1, got {usage_decay}")
        self.n_inputs, self.n_hidden = n_inputs, n_hidden
        self.n_slots, self.slot_width, self.n_heads, self.usage_decay = n_slots, slot_width, n_heads, usage_decay
        self.n_features, self.rows_a_step = n_hidden + n_heads * slot_width, n_heads
        self.reads = nn.Linear(n_inputs, 4 * n_hidden)
        self.recurs = nn.Linear(self.n_features, 4 * n_hidden, bias=False)
        # For every head a key k_t, a gate alpha and a key strength beta.
        self.asks = nn.Linear(n_hidden, n_heads * (slot_width + 2))
        with torch.no_grad():
            self.reads.bias.view(4, n_hidden)[1] = 1.0
            self.asks.bias.view(n_heads, -1)[:, -2:] += torch.tensor([FIRST_GATE, FIRST_STRENGTH])

    def start(self, batch: tuple[int, ...] = ()) -> LRUAState:
        """Return the state before anything was read: an even memory, and rows used in the order of their numbers.

        Args:
            batch: the leading axes.

        Returns:
            The state.
        """
        new = self.reads.weight.new_zeros
        empty = new(*batch, self.n_hidden)
        return LRUAState(
            empty,
            empty,
            new(*batch, self.n_slots, self.slot_width) + START,
            new(*batch, self.n_heads, self.n_slots),
            new(*batch, self.n_slots),
            new(*batch, self.n_heads * self.slot_width),
        )

    def forward(self, x: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """Take one step.

        Args:
            x: (..., I).
            state: before.

        Returns:
            The controller's output with what was read (h_t, r_t), (..., H + R * M), and the state after.
        """
        return self.step(x, state)[:2]

    def step(self, x: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState, dict[str, Tensor]]:
        """Take one step, and tell what was computed on the way.

        Args:
            x: (..., I).
            state: before.

        Returns:
            As ``forward``; and quantities by their names in the paper, in the order of its equations.
        """
        return self._step(self.reads(x), state)

    def pictured(self, did: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose what pictures of a step show.

        Args:
            did: what ``step`` told, of one sequence.

        Returns:
            Weightings (R, N), usage (1, N), memory (N, M), keys, which are what is written, and reads (R, M).
        """
        return {
            "key": did["key"],
            "write weightings": did["write weights"],
            "read weightings": did["read weights"],
            "usage": did["usage weights"][None],
            "read": did["read vector"].view(self.n_heads, -1),
            "memory": did["memory"],
        }

    def scan(self, x: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """Read a sequence; what the controller makes of the inputs is one product for all steps.

        Args:
            x: (L, ..., I).
            state: before.

        Returns:
            (L, ..., H + R * M), and the state after.
        """
        if not len(x):
            return x.new_zeros(*x.shape[:-1], self.n_features), state
        outputs = []
        for step in self.reads(x).unbind(0):
            out, state, _ = self._step(step, state)
            outputs.append(out)
        return torch.stack(outputs), state

    def can_fuse(self) -> bool:
        """Tell whether the compiled kernel can run this cell.

        Returns:
            True on a CPU with a C++ compiler, in float32 and float64; not within autocast.
        """
        return kernels_run(self.reads.weight)

    def fused_scan(self, x: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """Read a batch of sequences by the compiled kernel where it runs: what ``scan`` gives, many times faster.

        Args:
            x: (L, B, I).
            state: before, of B sequences.

        Returns:
            (L, B, H + R * M), and the state after; differentiable once.
        """
        if not len(x) or not self.can_fuse():
            return self.scan(x, state)
        shape = Shape(self.n_hidden, self.n_heads, self.n_slots, self.slot_width)
        weights = Weights(self.recurs.weight, self.asks.weight, self.asks.bias)
        outputs, after = lrua_scan(shape, self.reads(x), weights, state, self.usage_decay)
        return outputs, LRUAState(*after)

    def _step(self, sums: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState, dict[str, Tensor]]:
        h, c = gated(sums + self.recurs(torch.cat([state.h, state.read], -1)), state.c)
        asked = self.asks(h).unflatten(-1, (self.n_heads, -1))
        keys = torch.tanh(asked[..., :-2])
        gate, strength = torch.sigmoid(asked[..., -2:-1]), 1 + F.softplus(asked[..., -1:])
        least = least_used(state.usage, self.n_heads)
        writing = gate * state.reading + (1 - gate) * least  # Eq. 7
        # The least used rows are emptied before anything is written to them.
        emptied = state.memory * (1 - least.sum(-2)).unsqueeze(-1)
        memory = emptied + writing.mT @ keys  # Eq. 8
        reading = torch.softmax(strength * cosine(keys, memory), -1)  # Eq. 2, 3
        read = (reading @ memory).flatten(-2)  # Eq. 4
        usage = self.usage_decay * state.usage + (reading + writing).sum(-2)  # Eq. 5
        named = {
            "cell of the controller": c,
            "hidden units": h,
            "key": keys,
            "write gate": gate,
            "key strength": strength,
            "write weights": writing,
            "memory": memory,
            "read weights": reading,
            "read vector": read,
            "usage weights": usage,
        }
        return torch.cat([h, read], -1), LRUAState(h, c, memory, reading, usage, read), named
