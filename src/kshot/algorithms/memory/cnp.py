"""Conditional neural process: an average of encoded examples conditions a network.

Paper: Marta Garnelo, Dan Rosenbaum, Chris J. Maddison, Tiago Ramalho, David Saxton, Murray Shanahan, Yee Whye Teh,
Danilo J. Rezende, S. M. Ali Eslami, "Conditional Neural Processes", ICML 2018, arXiv:1807.01613.

Idea: encode every example by one network, average, and let a second network answer any input from the average.

======================  ==================================================
paper                   here
======================  ==================================================
h_theta, r_i            ``encoder``, of (x_i, y_i) (Eq. 1)
r                       the head of a task: the mean of r_i (Eq. 2)
g_theta, phi_i          ``decoder``, of (x, r) (Eq. 3)
mu, sigma               means, and 0.1 + 0.9 softplus of what follows them
======================  ==================================================

Differs from the paper: all points of the support condition, where training draws a random number of them; inputs go
through a backbone first. With classes, each has a mean of its own examples, and the means side by side are r, as in the
paper's experiment on Omniglot (section 4.3).

Checked by: tests/reference/test_cnp.py (Eq. 1 to 4 point by point).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core import Spec, UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled
from kshot.nn.memory.labelled import shown


@register(
    "cnp",
    family="memory",
    paper="Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende, Eslami, Conditional Neural "
    "Processes, ICML 2018, arXiv:1807.01613",
)
class CNP(EmbeddingLearner):
    """Conditional neural process.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        spec: what the tasks look like.
        n_hidden: units of the layers, and width of r (of each class's share of it); 128 in the paper.
        encoder_layers: layers of h; 3 in the paper's regression.
        decoder_layers: layers of g; 5 in the paper's regression.

    Raises:
        UserError: a number is below 1.
    """

    kinds = ("classification", "regression")
    any_way = False
    label_equivariant = False
    network_head = True

    def __init__(
        self,
        backbone: nn.Module,
        spec: Spec,
        *,
        n_hidden: int = 128,
        encoder_layers: int = 3,
        decoder_layers: int = 5,
    ) -> None:
        super().__init__(backbone)
        if min(n_hidden, encoder_layers, decoder_layers) < 1:
            raise UserError(
                f"expected numbers of at least 1, got n_hidden={n_hidden}, encoder_layers={encoder_layers}, "
                f"decoder_layers={decoder_layers}"
            )
        self.spec, n_features = spec, int(getattr(backbone, "n_features", 0))
        classes = spec.kind == "classification"
        seen, told = (n_features, n_hidden * spec.n_outputs) if classes else (n_features + spec.n_outputs, n_hidden)
        self.encoder = _layers(seen, n_hidden, n_hidden, encoder_layers)
        answers = spec.n_outputs * (1 if classes else 2)
        self.decoder = _layers(n_features + told, n_hidden, answers, decoder_layers)

    @classmethod
    def from_backbone(cls, backbone: nn.Module, spec: Spec, **options: Any) -> CNP:
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
        """Encode the support and average (Eq. 1 and 2).

        Args:
            support: its embeddings and targets.

        Returns:
            r, (H,), or (W * H,) of W classes.
        """
        z, y, ways = support
        if not ways:
            return self.encoder(torch.cat([z, y], -1)).mean(0)
        member = shown(y, ways, z)  # (S, W)
        # A class without an example has a mean of zeros, and the others are answered all the same.
        return (member.mT @ self.encoder(z) / member.sum(0).clamp(min=1).unsqueeze(-1)).flatten()

    def apply_head(self, head: Tensor, z: Tensor) -> Tensor:
        """Answer embedded inputs (Eq. 3).

        Args:
            head: r.
            z: (Q, D).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        return self._decoded(head, z)[0]

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Minus the log-likelihood of all points, of the support too, given the support (Eq. 4).

        Args:
            support: embeddings and targets.
            query: the same.

        Returns:
            A scalar: the mean, in nats.
        """
        z, y = torch.cat([support.z, query.z]), torch.cat([support.y, query.y])
        mean, sigma = self._decoded(self.fit_head(support), z)
        if sigma is None:
            return F.cross_entropy(mean, y)
        return (((mean - y) / sigma) ** 2 / 2 + torch.log(sigma)).mean() + math.log(2 * math.pi) / 2

    def _decoded(self, head: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.decoder(torch.cat([z, head.expand(len(z), -1)], -1))
        if self.spec is None or self.spec.kind == "classification":
            return out, None
        mean, spread = out.chunk(2, -1)
        return mean, 0.1 + 0.9 * F.softplus(spread)


def _layers(n_inputs: int, n_hidden: int, n_outputs: int, depth: int) -> nn.Sequential:
    widths = [n_inputs, *[n_hidden] * (depth - 1), n_outputs]
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.ReLU()] * (i > 0) + [nn.Linear(widths[i], widths[i + 1])]
    return nn.Sequential(*parts)
