"""LSTM meta-learner: a recurrent network reads labelled examples, and its state is what it has learnt.

Paper: Sepp Hochreiter, A. Steven Younger, Peter R. Conwell, "Learning to Learn Using Gradient Descent", ICANN 2001.

Idea: train a recurrent network on sequences from many tasks, each example shown with the answer to the one before; its
weights then hold a learning algorithm, and its activations run that.

======================  ==================================================
paper                   here
======================  ==================================================
x(j), y(j)              z, the embedded example, and its target
(x(j), y(j - 1))        one step of input: ``kshot.nn.memory.labelled``
d(j), the output        ``head`` of the cell's output
subordinate system      the state that ``adapt`` returns
supervisory system      the weights
E, summed over a task   ``outer_loss``, as a mean
======================  ==================================================

Differs from the paper: a forget gate, inputs by a backbone, Adam in the place of truncated BPTT / RTRL. With classes it
is the LSTM baseline of Santoro et al. (ICML 2016), and on sequences of bits that of Graves, Wayne and Danihelka (2014).

Checked by: tests/reference/test_lstm.py (equations by plain loops), tests/algorithms/test_readers.py.
"""

from __future__ import annotations

from torch import nn

from kshot.core import Spec, register
from kshot.engine.reading import Reader
from kshot.nn.memory.lstm import LSTMCell


@register(
    "lstm",
    family="memory",
    paper="Hochreiter, Younger, Conwell, Learning to Learn Using Gradient Descent, ICANN 2001",
)
class LSTM(Reader):
    """LSTM meta-learner.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        spec: what the tasks look like.
        n_hidden: units of each layer; Santoro's baseline has 200, that of the NTM paper 256 to copy.
        n_layers: layers; Santoro's baseline has 1, that of the NTM paper 3.
    """

    kinds = ("classification", "regression", "sequence")

    def __init__(self, backbone: nn.Module, spec: Spec, *, n_hidden: int = 200, n_layers: int = 1) -> None:
        super().__init__(backbone, LSTMCell(self.width(backbone, spec), n_hidden, n_layers), spec)

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, int]:
        """Return the sizes of the NTM paper's baseline for sequences of bits (its Table 3).

        Args:
            spec: what the tasks look like.

        Returns:
            Some of the options.
        """
        return {"n_hidden": 256, "n_layers": 3} if spec.kind == "sequence" else {}
