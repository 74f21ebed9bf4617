"""Differentiable neural computer: a memory that knows what is free, and in which order it was written.

Paper: Alex Graves, Greg Wayne, Malcolm Reynolds, and others, "Hybrid computing using a neural network with dynamic
external memory", Nature 538, 471-476, 2016, doi:10.1038/nature20101.

Idea: besides looking up by content, heads take rows that are free and follow the order of writing both ways.

======================  ==================================================
paper                   here
======================  ==================================================
M_t, N x W              ``memory``, ``n_slots`` x ``slot_width``
xi_t                    ``kshot.nn.memory.dnc.Interface``
u_t, a_t                ``usage``, ``allocation``
p_t, L_t                ``precedence``, ``links``
w^w_t, w^r_t            ``writing``, ``reading``
y_t                     ``head`` of the controller's output and r_t
======================  ==================================================

Differs from the paper: usage is kept a little away from 0 and 1, and squared lengths from 0, so that every slope is
finite. How labelled examples become a sequence is not in the paper; it is as in MANN.

Checked by: tests/reference/test_dnc.py (every equation by plain loops), tests/algorithms/test_readers.py.
"""

from __future__ import annotations

from torch import nn

from kshot.core import Spec, register
from kshot.engine.reading import Reader
from kshot.nn.memory.dnc import DNCCell


@register(
    "dnc",
    family="memory",
    paper="Graves, Wayne, Reynolds, and others, Hybrid computing using a neural network with dynamic external memory, "
    "Nature 2016",
)
class DNC(Reader):
    """Differentiable neural computer.

    Args:
        backbone: maps (N, ...) to embeddings (N, D); of sequences it passes each step on.
        spec: what the tasks look like.
        n_hidden: units of the LSTM controller.
        n_slots: rows of the memory.
        slot_width: columns of the memory.
        n_heads: read heads; there is one write head.
    """

    kinds = ("classification", "regression", "sequence")

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
        *,
        n_hidden: int = 100,
        n_slots: int = 32,
        slot_width: int = 20,
        n_heads: int = 1,
    ) -> None:
        super().__init__(backbone, DNCCell(self.width(backbone, spec), n_hidden, n_slots, slot_width, n_heads), spec)
