"""In-context transformer: labelled examples and queries are tokens, and one forward pass learns and answers.

Paper: Samuel Mueller, Noah Hollmann, Sebastian Pineda Arango, Josif Grabocka, Frank Hutter, "Transformers Can Do
Bayesian Inference" (prior-data fitted networks), ICLR 2022, arXiv:2112.10510.

Idea: a transformer trained to complete tasks drawn from a distribution approximates Bayesian inference under it.

======================  ==================================================
paper                   here
======================  ==================================================
D, (x_i, y_i)           the support, one token for each example
x, held out             a query, a token without a label
attention mask          ``kshot.nn.attention.SetLayer``
q_theta(y | x, D)       softmax of ``predict``
prior-data NLL          ``outer_loss``
======================  ==================================================

Differs from the paper: regression answers with a mean, judged by squared error, where the paper has a density in bins;
layer norms stand before attention and network, for training without a warm-up; inputs go through a backbone; a training
task may have more classes than the tasks it is for, which are then dealt from it: see ``deal_ways``.

Checked by: tests/reference/test_transformer.py (tokens and masks of the whole set, head by head).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kshot.core import Spec, UserError, register
from kshot.engine.dealing import Deal, DealtLearner
from kshot.engine.embedding import Labelled
from kshot.nn.attention import SetLayer
from kshot.nn.memory.labelled import shown


@register(
    "transformer",
    family="memory",
    paper="Mueller, Hollmann, Pineda Arango, Grabocka, Hutter, Transformers Can Do Bayesian Inference, ICLR 2022, "
    "arXiv:2112.10510",
)
class Transformer(DealtLearner):
    """In-context transformer.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        spec: what the tasks look like.
        width: of the tokens; 512 in the paper.
        n_layers: of the transformer; 6 in the paper.
        n_heads: of each attention; 4 in the paper.
        deal_ways: W, classes of the tasks that are dealt from each training task, see ``kshot.engine.dealing``; 0 for
            those of the training task itself.
        deals: tasks that are dealt from each.
        near: share of them whose classes are near to each other.

    Raises:
        UserError: there is no layer, the heads do not divide the width, or nothing can be dealt.
    """

    kinds = ("classification", "regression")
    label_equivariant = False
    network_head = True

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
        *,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        deal_ways: int = 0,
        deals: int = 32,
        near: float = 0.5,
    ) -> None:
        super().__init__(backbone, spec, Deal(deal_ways, deals, near))
        if n_layers < 1:
            raise UserError(f"expected n_layers of at least 1, got {n_layers}; choose another")
        self.example = nn.Linear(int(getattr(backbone, "n_features", 0)), width)
        self.label = nn.Linear(self.n_outputs, width)
        self.layers = nn.ModuleList(SetLayer(width, n_heads, 2 * width) for _ in range(n_layers))
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.n_outputs))

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> Transformer:
        """Build the learner.

        Args:
            backbone: the network; it has an attribute ``n_features``.
            spec: what the tasks look like.
            **options: the method's own keyword options.

        Returns:
            The learner.
        """
        return cls(backbone, spec, **options)

    def fit_head(self, support: Labelled) -> Tensor:
        """Make a token of each example: the sum of what stands for its input and for its target.

        Args:
            support: its embeddings and targets.

        Returns:
            (S, E).
        """
        return self.example(support.z) + self.label(shown(support.y, self.label.in_features, support.z))

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer each query from the support and itself.

        Args:
            head: tokens of the support.
            z: embedded queries (Q, D).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        known, query = head, self.example(z)
        for layer in self.layers:
            known, query = layer(known, query)
        return self.answer(query)
