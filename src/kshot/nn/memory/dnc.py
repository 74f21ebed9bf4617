"""The differentiable neural computer: memory that is allocated, and read again in the order in which it was written.

Graves, Wayne, Reynolds, Harley, Danihelka, Grabska-Barwinska, Gomez Colmenarejo, Grefenstette, Ramalho, Agapiou and
others, Hybrid computing using a neural network with dynamic external memory, Nature 538, 2016; equations as in its
section Methods, in their order, by their names there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.errors import UserError
from kshot.nn.memory.cell import Cell
from kshot.nn.memory.lstm import gated
from kshot.nn.memory.similarity import cosine

#: Usage is kept this far from 0 and 1, so that sorting and products have finite slopes.
MARGIN = 1e-6


class DNCState(NamedTuple):
    """What the computer holds after a step.

    Attributes:
        h: output of the controller (..., H).
        c: contents of its cells (..., H).
        memory: M_t (..., N, M).
        usage: u_t (..., N).
        precedence: p_t (..., N).
        links: L_t (..., N, N); L[i, j] tells how far i was written right after j.
        writing: write weighting w^w_t (..., N).
        reading: read weightings w^r_t (..., R, N).
        read: r_t, what was read (..., R * M).
    """

    h: Tensor
    c: Tensor
    memory: Tensor
    usage: Tensor
    precedence: Tensor
    links: Tensor
    writing: Tensor
    reading: Tensor
    read: Tensor


class Interface(NamedTuple):
    """The interface vector xi_t, cut up and squashed.

    Attributes:
        read_keys: k^r (..., R, M).
        read_strengths: beta^r (..., R, 1), at least 1.
        write_key: k^w (..., 1, M).
        write_strength: beta^w (..., 1), at least 1.
        erase: e (..., M).
        write: v (..., M).
        free: f (..., R, 1).
        allocation_gate: g^a (..., 1).
        write_gate: g^w (..., 1).
        modes: pi (..., R, 3): backward, content, forward.
    """

    read_keys: Tensor
    read_strengths: Tensor
    write_key: Tensor
    write_strength: Tensor
    erase: Tensor
    write: Tensor
    free: Tensor
    allocation_gate: Tensor
    write_gate: Tensor
    modes: Tensor


class DNCCell(Cell[DNCState]):
    """An LSTM controller with one write head and R read heads.

    Args:
        n_inputs: I.
        n_hidden: H, units of the controller.
        n_slots: N, rows of the memory.
        slot_width: M, columns of the memory (W in the paper).
        n_heads: R, read heads.

    Raises:
        UserError: a number is below 1.
    """

    def __init__(
        self, n_inputs: int, n_hidden: int = 100, n_slots: int = 32, slot_width: int = 20, n_heads: int = 1
    ) -> None:
        super().__init__()
        sizes = {"n_inputs": n_inputs, "n_hidden": n_hidden, "n_slots": n_slots, "slot_width": slot_width}
        for what, n in {**sizes, "n_heads": n_heads}.items():
            if n < 1:
                raise UserError(f"expected {what} of at least 1, got {n}; choose another")
        self.n_inputs, self.n_hidden = n_inputs, n_hidden
        self.n_slots, self.slot_width, self.n_heads = n_slots, slot_width, n_heads
        self.n_features = n_hidden + n_heads * slot_width
        self.reads = nn.Linear(n_inputs, 4 * n_hidden)
        self.recurs = nn.Linear(self.n_features, 4 * n_hidden, bias=False)
        m, r = slot_width, n_heads
        self._parts = (r * m, r, m, 1, m, m, r, 1, 1, 3 * r)
        self.interface = nn.Linear(n_hidden, sum(self._parts))
        with torch.no_grad():
            self.reads.bias.view(4, n_hidden)[1] = 1.0

    def start(self, batch: tuple[int, ...] = ()) -> DNCState:
        """Return the state before anything was read: zeros.

        Args:
            batch: the leading axes.

        Returns:
            The state.
        """
        n, m, r = self.n_slots, self.slot_width, self.n_heads
        shapes = ((self.n_hidden,), (self.n_hidden,), (n, m), (n,), (n,), (n, n), (n,), (r, n), (r * m,))
        return DNCState(*(self.reads.weight.new_zeros(*batch, *shape) for shape in shapes))

    def forward(self, x: Tensor, state: DNCState) -> tuple[Tensor, DNCState]:
        """Take one step.

        Args:
            x: (..., I).
            state: before.

        Returns:
            The controller's output with what was read, (..., H + R * M), and the state after.
        """
        return self.step(x, state)[:2]

    def step(self, x: Tensor, state: DNCState) -> tuple[Tensor, DNCState, dict[str, Tensor]]:
        """Take one step, and tell what was computed on the way.

        Args:
            x: (..., I).
            state: before.

        Returns:
            As ``forward``; and quantities by their names in the paper, in the order of its equations.
        """
        h, c = gated(self.reads(x) + self.recurs(torch.cat([state.h, state.read], -1)), state.c)
        asked = self._cut(self.interface(h))
        writing, usage = self._write_weighting(asked, state)
        w = writing.unsqueeze(-1)
        # Memory: M' = M * (E - w e) + w v.
        memory = state.memory * (1 - w * asked.erase.unsqueeze(-2)) + w * asked.write.unsqueeze(-2)
        # Temporal links: L'[i, j] = (1 - w[i] - w[j]) L[i, j] + w[i] p[j], and none from a row to itself.
        links = (1 - w - w.mT) * state.links + w * state.precedence.unsqueeze(-2)
        links = links * (1 - torch.eye(self.n_slots, dtype=links.dtype, device=links.device))
        precedence = (1 - writing.sum(-1, keepdim=True)) * state.precedence + writing
        reading = self._read_weightings(asked, state.reading, memory, links)
        read = (reading @ memory).flatten(-2)
        after = DNCState(h, c, memory, usage, precedence, links, writing, reading, read)
        named = {"cell of the controller": c, "hidden units": h}
        named |= {name.replace("_", " "): t for name, t in asked._asdict().items()}
        named |= {"usage": usage, "write weighting": writing, "memory": memory, "temporal links": links}
        named |= {"precedence weighting": precedence, "read weightings": reading, "read vectors": read}
        return torch.cat([h, read], -1), after, named

    def pictured(self, did: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose what pictures of a step show.

        Args:
            did: what ``step`` told, of one sequence.

        Returns:
            Weightings (1, N) and (R, N), usage (1, N), memory (N, M), what is written, erased (1, M) and read (R, M).
        """
        return {
            "add": did["write"][None],
            "erase": did["erase"][None],
            "write weightings": did["write weighting"][None],
            "read weightings": did["read weightings"],
            "usage": did["usage"][None],
            "read": did["read vectors"].view(self.n_heads, -1),
            "memory": did["memory"],
        }

    def _cut(self, xi: Tensor) -> Interface:
        r = self.n_heads
        k, beta, kw, bw, erase, write, free, ga, gw, modes = xi.split(self._parts, -1)
        return Interface(
            k.unflatten(-1, (r, -1)),
            1 + F.softplus(beta).unsqueeze(-1),
            kw.unsqueeze(-2),
            1 + F.softplus(bw),
            torch.sigmoid(erase),
            write,
            torch.sigmoid(free).unsqueeze(-1),
            torch.sigmoid(ga),
            torch.sigmoid(gw),
            torch.softmax(modes.unflatten(-1, (r, 3)), -1),
        )

    def _write_weighting(self, asked: Interface, state: DNCState) -> tuple[Tensor, Tensor]:
        # Dynamic memory allocation: what was read and freed is retained no longer.
        retention = (1 - asked.free * state.reading).prod(-2)
        usage = (state.usage + state.writing - state.usage * state.writing) * retention
        # Content-based addressing on the memory before the step.
        scores = asked.write_strength * cosine(asked.write_key, state.memory).squeeze(-2)
        content = torch.softmax(scores, -1)
        gate = asked.allocation_gate
        return asked.write_gate * (gate * allocation(usage) + (1 - gate) * content), usage

    @staticmethod
    def _read_weightings(asked: Interface, before: Tensor, memory: Tensor, links: Tensor) -> Tensor:
        content = torch.softmax(asked.read_strengths * cosine(asked.read_keys, memory), -1)
        backward, forward = before @ links, before @ links.mT
        b, c, f = asked.modes.split(1, -1)
        return b * backward + c * content + f * forward


def allocation(usage: Tensor) -> Tensor:
    """Weight free rows: a[phi_j] = (1 - u[phi_j]) * prod of u[phi_i] for i < j, phi by ascending usage.

    Args:
        usage: u (..., N), between 0 and 1.

    Returns:
        a (..., N), which sums to at most 1. The order of the rows is taken as constant.
    """
    u = MARGIN + (1 - 2 * MARGIN) * usage
    # Stable, so that rows of equal usage are taken in the order of their numbers however tasks are batched.
    ascending, order = u.sort(dim=-1, stable=True)
    logs = torch.log(ascending)
    # Shifted, and not less its own: what cancels in a subtraction is noise, which the gradient by 1 / u would magnify.
    product = torch.exp(F.pad(logs.cumsum(-1)[..., :-1], (1, 0)))
    return torch.zeros_like(u).scatter(-1, order, (1 - ascending) * product)
