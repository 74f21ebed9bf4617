"""Neural Turing Machine: a controller with a memory that it reads and writes, trained from end to end.

Paper: Alex Graves, Greg Wayne, Ivo Danihelka, "Neural Turing Machines", 2014, arXiv:1410.5401.

Idea: a recurrent network beside a memory, on whose size the number of weights hardly depends: where the heads stand at
the start is learned for each row, and nothing else unless ``memory_start`` is "learned". Heads find their place by
content or by shifting from where they stood, and all of it has a gradient, so procedures can be learnt from examples of
input and output.

======================  ==============================================
paper                   here
======================  ==============================================
controller              ``controller``, ``n_hidden``
M_t, N x M              ``n_slots`` x ``slot_width``
heads                   ``n_heads`` read heads, as many write heads
Eq. 2 to 9              ``kshot.nn.memory.ntm``
external output         ``head`` of hidden units and reads
======================  ==============================================

Differs from the paper: see ``kshot.nn.memory.ntm`` for the order of reading and writing. How its two layers of LSTM are
joined is left open there: here each reads the one below, and heads and output read both. The paper learns sequences
alone (section 4); with classes it reads examples as MANN does (Santoro et al., ICML 2016), each shown with the label of
the one before.

Checked by: tests/reference/test_ntm.py (the equations by plain loops), tests/nn/test_ntm.py (the kernel against the
equations), benchmarks/quality (copy and the paper's other tasks).
"""

from __future__ import annotations

from torch import nn

from kshot.core import Spec, register
from kshot.engine.reading import Reader
from kshot.nn.memory.ntm import NTMCell


@register(
    "ntm",
    family="memory",
    paper="Graves, Wayne, Danihelka, Neural Turing Machines, 2014, arXiv:1410.5401",
)
class NTM(Reader):
    """Neural Turing Machine.

    Args:
        backbone: maps (N, ...) to embeddings (N, D); of sequences it passes each step on.
        spec: what the tasks look like.
        controller: "lstm" or "feedforward".
        n_hidden: units of each layer of the controller; 100 in the paper (tables 1 and 2).
        n_layers: layers of the controller; 1 in the paper, but 2 to sort with an LSTM.
        n_heads: read heads, and as many write heads; 1 for copy and repeat copy, 4 for associative recall with a
            feed-forward controller, 8 or 5 for priority sort (tables 1 and 2).
        n_slots: rows of the memory; 128 in the paper.
        slot_width: columns of the memory; 20 in the paper.
        n_shifts: shifts that a head chooses from; 3 in the paper.
        memory_start: "constant" (1e-6), "learned" or "random".
        reads: "before" or "after" the step's writes; see ``kshot.nn.memory.ntm``.
    """

    kinds = ("classification", "regression", "sequence")

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
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
        cell = NTMCell(
            self.width(backbone, spec),
            controller=controller,
            n_hidden=n_hidden,
            n_layers=n_layers,
            n_heads=n_heads,
            n_slots=n_slots,
            slot_width=slot_width,
            n_shifts=n_shifts,
            memory_start=memory_start,
            reads=reads,
        )
        super().__init__(backbone, cell, spec)
