"""MANN: a memory that keeps what is rarely seen, written to where nothing was used for long.

Paper: Adam Santoro, Sergey Bartunov, Matthew Botvinick, Daan Wierstra, Timothy Lillicrap, "Meta-Learning with
Memory-Augmented Neural Networks", ICML 2016 (as "One-shot Learning with Memory-Augmented Neural Networks",
arXiv:1605.06065).

Idea: an external memory binds an example to its label in one step; the weights learn only how to bind and look up.

======================  ==================================================
paper                   here
======================  ==================================================
(x_t, y_{t-1})          one step of input: ``kshot.nn.memory.labelled``
k_t                     keys of the heads, for writing and reading
M_t, w^r, w^u           ``memory``, ``reading``, ``usage`` of the state
w^w, w^lu               write weights (Eq. 7), ``least_used`` (Eq. 6)
gamma                   ``usage_decay``
n, number of reads      ``n_heads``
(h_t, r_t)              what the head of the learner reads
======================  ==================================================

Differs from the paper: each head writes to a least used row of its own, where Eq. 6 marks n rows for all; cosines are
multiplied by a key strength, as in the Neural Turing Machine whose heads these are; key, gate and strength come from
the controller by one linear map, and a tanh holds keys, which are what is written, within -1 and 1, where the paper
names none. Labels are one-hot, as in its 5-class experiments.

Checked by: tests/reference/test_lrua.py (Eq. 2 to 8 by plain loops), tests/algorithms/test_readers.py.
"""

from __future__ import annotations

from torch import nn

from kshot.core import Spec, register
from kshot.engine.reading import Reader
from kshot.nn.memory.lrua import LRUACell


@register(
    "mann",
    family="memory",
    paper="Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, Meta-Learning with Memory-Augmented Neural Networks, "
    "ICML 2016, arXiv:1605.06065",
)
class MANN(Reader):
    """Memory-augmented neural network.

    Args:
        backbone: maps (N, ...) to embeddings (N, D); the paper's has none.
        spec: what the tasks look like.
        n_hidden: units of the LSTM controller; 200 in the paper.
        n_slots: rows of the memory; 128 in the paper.
        slot_width: columns of the memory; 40 in the paper.
        n_heads: reads of each step; 4 in the paper.
        usage_decay: gamma of Eq. 5; 0.99 in the paper.
    """

    kinds = ("classification", "regression", "sequence")

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
        *,
        n_hidden: int = 200,
        n_slots: int = 128,
        slot_width: int = 40,
        n_heads: int = 4,
        usage_decay: float = 0.99,
    ) -> None:
        cell = LRUACell(self.width(backbone, spec), n_hidden, n_slots, slot_width, n_heads, usage_decay)
        super().__init__(backbone, cell, spec)
