"""The Neural Turing Machine: a controller that reads and writes a memory through heads, all of it differentiable.

Paper: Alex Graves, Greg Wayne, Ivo Danihelka, "Neural Turing Machines", 2014, arXiv:1410.5401.

======================  ==============================================
paper                   here
======================  ==============================================
M_t, N x M              ``state.memory``, ``n_slots`` x ``slot_width``
w_t                     ``state.weights``, read heads first
k_t, beta_t             ``key``, ``strength``
g_t, s_t, gamma_t       ``gate``, ``shift``, ``sharpness``
e_t, a_t                ``erase``, ``add``
r_t                     ``state.reads``
======================  ==============================================

The paper leaves the order within a step open: here every head finds its place in the memory as it was before the step,
and several writers erase first and add then. Reads come before writes, as in public code, or after them (``reads``), as
Eq. 2 has it if M_t is the memory that Eq. 4 leaves: then the controller is given at step t what was written at t - 1,
and else what was written at t - 2. Squared norms in Eq. 6 are floored, so that a row of zeros has no cosine of 0 / 0;
Eq. 9 is taken by logarithms, so that no power underflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import UserError
from kshot.nn.memory.cell import Cell, kernels_run
from kshot.nn.memory.similarity import cosine
from kshot.nn.native.mapped import is_mapped, mapped, reaches_kernels
from kshot.nn.native.ntm import Shape, Start, Weights, ntm_scan

#: What the kernel has room for.
MOST_SHIFTS = 63
CONTROLLERS = ("lstm", "feedforward")
MEMORY_STARTS = ("constant", "learned", "random")
READS = ("before", "after")
#: Collier and Beel, "Implementing Neural Turing Machines", 2018, arXiv:1807.08518.
CONSTANT = 1e-6
#: Added to weightings before their logarithm. As in nn/native/cpp/addressing.hpp.
WEIGHT_FLOOR = 1e-16


class NTMState(NamedTuple):
    """Where a machine stands; the leading axes are the batch's.

    Attributes:
        hidden: of an LSTM controller, layer after layer, (..., H), else (..., 0).
        cell: likewise.
        reads: what the heads read in the last step, (..., R * M).
        weights: where heads stood, read heads first, (..., R + W, N).
        memory: (..., N, M).
    """

    hidden: Tensor
    cell: Tensor
    reads: Tensor
    weights: Tensor
    memory: Tensor


class NTMCell(Cell[NTMState]):
    """One step of a Neural Turing Machine; it puts out the controller's hidden units and what was read.

    Args:
        n_inputs: I.
        controller: "lstm" or "feedforward" (tanh).
        n_hidden: units of each layer of the controller; 100 in the paper (its tables 1 and 2).
        n_layers: layers of the controller; 1 in the paper, but 2 to sort with an LSTM. H = n_hidden * n_layers.
        n_heads: read heads, and as many write heads.
        n_slots: N; 128 in the paper.
        slot_width: M; 20 in the paper.
        n_shifts: width of the shift weighting s_t; 3 in the paper (-1, 0, 1).
        memory_start: "constant" (1e-6), "learned", or "random" (drawn once).
        reads: "before" what the step writes is in the memory, or "after".

    Raises:
        UserError: unknown controller, start or order, or a size that makes no sense.
    """

    fused_is_lean = True
    start_hidden: Tensor
    start_cell: Tensor
    start_memory: Tensor

    def __init__(
        self,
        n_inputs: int,
        *,
        controller: str = "lstm",
        n_hidden: int = 100,
        n_layers: int = 1,
        n_heads: int = 1,
        n_slots: int = 128,
        slot_width: int = 20,
        n_shifts: int = 3,
        memory_start: str = "constant",
        reads: str = "before",
    ) -> None:
        super().__init__()
        _check(controller, memory_start, reads, n_hidden, n_heads, n_slots, slot_width, n_shifts, n_inputs, n_layers)
        lstm = int(controller == "lstm")
        self.shape = s = Shape(
            *(n_hidden, n_layers, lstm, n_heads, n_heads, n_slots, slot_width, n_shifts, int(reads == "after"))
        )
        self.n_inputs, self.n_features, self.n_slots = n_inputs, s.units + n_heads * slot_width, n_slots
        itself, held = (n_hidden, s.units) if lstm else (0, 0)
        address = slot_width + 3 + n_shifts
        self.sizes = [address] * s.reads + [address + 2 * slot_width] * s.writes
        self.input = nn.Linear(n_inputs, s.gates)
        self.recurrent = nn.Linear(s.reads * slot_width + itself, s.gates, bias=False)
        #: Each reads the layer below, and itself before the step.
        self.upper = nn.ModuleList(nn.Linear(n_hidden + itself, s.gates) for _ in range(n_layers - 1))
        self.heads = nn.Linear(s.units, sum(self.sizes))
        for name in ("start_hidden", "start_cell"):
            # Without an LSTM they are empty, and nothing to be learnt.
            if held:
                self.register_parameter(name, nn.Parameter(torch.zeros(held)))
            else:
                self.register_buffer(name, torch.zeros(0), persistent=False)
        self.start_reads = nn.Parameter(torch.zeros(s.reads * slot_width))
        #: Before a softmax.
        self.start_weights = nn.Parameter(torch.zeros(s.reads + s.writes, n_slots))
        self._start_memory(memory_start)
        if s.late:
            # Kept with the weights, of which nothing else tells it: they are those of another machine.
            self.register_buffer("reads_after", torch.ones(()))
        self._initialise()

    def _start_memory(self, how: str) -> None:
        shape = (self.shape.slots, self.shape.width)
        if how == "learned":
            self.start_memory = nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(sum(shape)))
        else:
            value = torch.full(shape, CONSTANT) if how == "constant" else torch.randn(shape) / math.sqrt(sum(shape))
            self.register_buffer("start_memory", value)

    def _initialise(self) -> None:
        for layer in (self.input, self.recurrent, self.heads, *self._upper):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.input, self.heads, *self._upper):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # Heads start at one slot: shifts can only move a focus that there is.
            self.start_weights[:, 0] = 5.0

    @property
    def _upper(self) -> list[nn.Linear]:
        return [layer for layer in self.upper if isinstance(layer, nn.Linear)]

    def start(self, batch: tuple[int, ...] = ()) -> NTMState:
        """Return the state before anything was read.

        Args:
            batch: the leading axes.

        Returns:
            The state.
        """
        starts = (
            *(self.start_hidden, self.start_cell, self.start_reads),
            *(self.start_weights.softmax(-1), self.start_memory),
        )
        return NTMState(*(t.expand(*batch, *t.shape) for t in starts))

    def forward(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """Take one step.

        Args:
            x: (..., I).
            state: before.

        Returns:
            Hidden units and reads (..., H + R * M), and the state after.
        """
        out, after, _ = self.step(x, state)
        return out, after

    def step(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState, dict[str, Tensor]]:
        """Take one step, and tell what the heads did.

        Args:
            x: (..., I).
            state: before.

        Returns:
            As ``forward``; and quantities by their names in the paper, in the order of its equations, among them
            "erase vector" and "add vector" (..., W, M) of the write heads.
        """
        h, cell = self._control(x, state)
        memory, n_reads = state.memory, self.shape.reads
        emitted = self.heads(h).split(self.sizes, -1)
        address = torch.stack([e[..., : self.sizes[0]] for e in emitted], -2)  # (..., R + W, M + 3 + S)
        weights, placed = self._place(address, state.weights, memory)
        writers = torch.stack([e[..., self.sizes[0] :] for e in emitted[n_reads:]], -2)  # (..., W, 2 M)
        erase, add = writers.chunk(2, -1)
        erase = erase.sigmoid()
        w = weights[..., n_reads:, :].unsqueeze(-1)  # (..., W, N, 1)
        stays = (1 - w * erase.unsqueeze(-2)).prod(-3)  # Eq. 3
        after = memory * stays + (w * add.unsqueeze(-2)).sum(-3)  # Eq. 4
        reads = (weights[..., :n_reads, :] @ (after if self.shape.late else memory)).flatten(-2)  # Eq. 2
        held = h if self.shape.lstm else state.hidden
        new = NTMState(held, cell, reads, weights, after)
        did = {"erase vector": erase, "add vector": add, "memory": after, "read vector": reads}
        return torch.cat([h, reads], -1), new, {"cell of the controller": cell, "hidden units": h, **placed, **did}

    def pictured(self, did: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose what pictures of a step show.

        Args:
            did: what ``step`` told, of one sequence.

        Returns:
            Weightings (R, N) and (W, N), memory (N, M), what is added and erased (W, M), and read (R, M).
        """
        return {
            "add": did["add vector"],
            "erase": did["erase vector"],
            "write weightings": did["weighting"][self.shape.reads :],
            "read weightings": did["weighting"][: self.shape.reads],
            "read": did["read vector"].view(self.shape.reads, -1),
            "memory": did["memory"],
        }

    def _control(self, x: Tensor, state: NTMState) -> tuple[Tensor, Tensor]:
        n = self.shape.layers
        before, cells = state.hidden.chunk(n, -1), state.cell.chunk(n, -1)
        h, c = self._squash(self.input(x) + self.recurrent(torch.cat([state.reads, before[0]], -1)), cells[0])
        hs, cs = [h], [c]
        for layer, itself, cell in zip(self._upper, before[1:], cells[1:], strict=True):
            h, c = self._squash(layer(torch.cat([h, itself], -1)), cell)
            hs.append(h)
            cs.append(c)
        return torch.cat(hs, -1), torch.cat(cs, -1)

    def _squash(self, z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        if not self.shape.lstm:
            return z.tanh(), cell
        i, f, g, o = z.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    def _place(self, address: Tensor, before: Tensor, memory: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        width, n_shifts = self.shape.width, self.shape.shifts
        key, strength, gate, shift, sharpness = address.split([width, 1, 1, n_shifts, 1], -1)
        strength = F.softplus(strength)
        content = (strength * cosine(key, memory)).softmax(-1)  # Eq. 5, 6
        gate = gate.sigmoid()
        gated = gate * content + (1 - gate) * before  # Eq. 7
        shift = shift.softmax(-1)
        half = n_shifts // 2
        moved = [gated.roll(j - half, -1) * shift[..., j : j + 1] for j in range(n_shifts)]
        shifted = torch.stack(moved).sum(0)  # Eq. 8
        sharpness = 1 + F.softplus(sharpness)
        weights = (sharpness * (shifted + WEIGHT_FLOOR).log()).softmax(-1)  # Eq. 9
        return weights, {
            "key": key,
            "key strength": strength,
            "content weighting": content,
            "interpolation gate": gate,
            "gated weighting": gated,
            "shift weighting": shift,
            "shifted weighting": shifted,
            "sharpening": sharpness,
            "weighting": weights,
        }

    def scan(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """Read a sequence; by the compiled kernel where no gradient is wanted.

        Args:
            x: (L, ..., I).
            state: before.

        Returns:
            What each step put out, (L, ..., F), and the state after the last.
        """
        # With gradients the plain steps stand, since the kernel can be differentiated but once.
        if torch.is_grad_enabled() or not len(x) or not self._kernel_reads(x, state):
            return super().scan(x, state)
        batch = x.shape[1:-1]
        n = math.prod(batch)
        several = (t.reshape(n, *t.shape[len(batch) :]) for t in state)
        features, *end = mapped(self._run, x.reshape(len(x), n, self.n_inputs), *several)
        after = NTMState(*(t.reshape(*batch, *t.shape[1:]) for t in end))
        return features.reshape(len(x), *batch, self.n_features), after

    def _kernel_reads(self, x: Tensor, state: NTMState) -> bool:
        alone = not any(is_mapped(p) for p in self.parameters())
        return alone and reaches_kernels(x, *state, *self.parameters()) and self.can_fuse()

    def _run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        features, end = self.fused_scan(x, NTMState(*state))
        return features, *end

    def can_fuse(self) -> bool:
        """Tell whether the compiled kernel can run this cell.

        Returns:
            True on a CPU with a C++ compiler, in float32 and float64; not within autocast.
        """
        return kernels_run(self.heads.weight)

    def fused_scan(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """Read a batch of sequences by the compiled kernel where it runs: what ``scan`` gives, many times faster.

        Args:
            x: (L, B, I).
            state: before, of B sequences.

        Returns:
            What each step put out, (L, B, F), and the state after the last; differentiable once.
        """
        if not len(x) or not self.can_fuse():
            return super().scan(x, state)
        found = ntm_scan(self.shape, self.input(x), self._weights(), Start(*state))
        last = found.features[-1]
        hidden = last[..., : self.shape.units] if self.shape.lstm else state.hidden
        reads = last[..., self.shape.units :]
        return found.features, NTMState(hidden, found.cell, reads, found.weights, found.memory)

    def _weights(self) -> Weights:
        first, s = self.recurrent.weight, self.shape
        if self._upper:
            upper, biases = (torch.stack([getattr(u, name) for u in self._upper]) for name in ("weight", "bias"))
        else:
            upper, biases = first.new_empty(0, s.gates, s.hidden * (1 + s.lstm)), first.new_empty(0, s.gates)
        return Weights(first, upper, biases, self.heads.weight, self.heads.bias)


def _check(controller: str, memory_start: str, reads: str, *sizes: int) -> None:
    for what, value, known in (
        ("controller", controller, CONTROLLERS),
        ("memory_start", memory_start, MEMORY_STARTS),
        ("reads", reads, READS),
    ):
        if value not in known:
            raise UserError(f"{what} must be one of {', '.join(known)}, got {value!r}")
    names: Sequence[str] = ("n_hidden", "n_heads", "n_slots", "slot_width", "n_shifts", "n_inputs", "n_layers")
    for what, size in zip(names, sizes, strict=True):
        if size < 1:
            raise UserError(f"expected {what} of at least 1, got {size}; choose another")
    n_slots, n_shifts = sizes[2], sizes[4]
    if n_shifts % 2 == 0 or n_shifts > n_slots or n_shifts > MOST_SHIFTS:
        raise UserError(
            f"expected n_shifts odd, at most {MOST_SHIFTS} and at most n_slots={n_slots}, got {n_shifts}; 3 is usual"
        )
