"""iMAML: MAML with implicit gradients; the outer gradient needs the end of the inner loop, not the way there.

Paper: Aravind Rajeswaran, Chelsea Finn, Sham Kakade, Sergey Levine, "Meta-Learning with Implicit Gradients", NeurIPS
2019, arXiv:1909.04630.

Idea: tie the adapted weights to the start by a quadratic pull; then the gradient by the start follows from the adapted
weights alone, by one linear system, however many steps led there.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   the parameters of ``model``
phi                     ``Weights`` returned by ``adapt``
lambda                  ``strength``
G(phi, theta)           ``support_loss``: L + lambda / 2 |phi - theta|^2 (Eq. 3)
(I + H / lambda)^-1     ``kshot.engine.implicit.at_optimum`` (Lemma 1)
delta'                  ``n_cg_steps`` of conjugate gradients (Algorithm 2)
======================  ==============================================

Differs from the paper: fixed numbers of inner and of conjugate-gradient steps stand for the accuracies delta and
delta'. The inner optimiser is gradient descent or Adam: any will do that ends near a minimum. ``damping`` is not
of the paper: the authors' code solves 2 I + H / (lambda + 10), this file I + H / (lambda + damping); 0 leaves it out.
On Omniglot that code takes 16 steps down L alone, then one of the pull, and none in the test; here every step has the
pull of Eq. 3, and ``paper_options`` makes it weaker.

Checked by: tests/reference/test_gradient_family.py (dense Hessian and ``torch.linalg.solve``),
tests/algorithms/test_gradient_family.py (closed form on a quadratic), tests/engine/test_implicit.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Spec, Split, Tree, UserError, register
from kshot.engine.implicit import Proximal, at_optimum
from kshot.engine.inner import FusedGradients, Inner, Named, Weights, check_rate, named_rule, unrolled


@register(
    "imaml",
    family="gradient",
    paper="Rajeswaran, Finn, Kakade, Levine, Meta-Learning with Implicit Gradients, NeurIPS 2019, arXiv:1909.04630",
)
class IMAML(FusedGradients):
    """MAML with implicit gradients.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        strength: lambda, of the pull to theta; 2 on Omniglot (appendix), see above.
        inner_lr: rate of the inner optimiser.
        n_inner_steps: gradient steps while training; 16 on Omniglot. Memory does not grow with them.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        n_cg_steps: conjugate-gradient steps of the outer gradient; 5 in the paper.
        damping: added to lambda in the linear system, as the authors' code adds 10.
        inner_optimiser: "sgd", "momentum", or "adam", whose steps stay small where training makes the loss steep.

    Raises:
        UserError: a step count, rate, strength, damping or optimiser that makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 2.0,
        inner_lr: float = 0.1,
        n_inner_steps: int = 4,
        n_inner_steps_eval: int = 0,
        n_cg_steps: int = 5,
        damping: float = 0.0,
        inner_optimiser: str = "sgd",
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval)
        check_rate("inner_lr", inner_lr)
        if not strength > 0:
            raise UserError(f"expected strength > 0, got {strength}; without a pull phi does not depend on theta")
        if n_cg_steps < 1:
            raise UserError(f"expected n_cg_steps >= 1, got {n_cg_steps}; 5 is the paper's")
        if not damping >= 0:
            raise UserError(f"expected damping >= 0, got {damping}; 0 for none, 10 is usual")
        named_rule(inner_optimiser)
        self.strength, self.inner_lr, self.n_cg_steps, self.damping = strength, inner_lr, n_cg_steps, damping
        self.inner_optimiser = inner_optimiser

    @property
    def exact_gradient(self) -> bool:
        """False: it is the gradient of an inner loop, and of a linear system, that run to their end."""
        return False

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            A weak pull (with the paper's 2 the authors' code hardly pulls), and a damping as that code has one; steps
            of Adam for regression, which the paper leaves out.
        """
        options = {"n_inner_steps": 16, "n_cg_steps": 5, "damping": 10.0, "strength": 0.5}
        own = {"inner_lr": 0.01, "inner_optimiser": "adam"}
        return options | (own if spec.kind == "regression" else {})

    def inner(self, n_steps: int) -> Inner:
        """Step without second derivatives; the implicit gradient takes their place.

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        return Inner(self.inner_lr, n_steps, named_rule(self.inner_optimiser), first_order=True)

    def path(self, support: Split, n_steps: int, *, every: bool) -> Iterator[Weights]:
        """Minimise, and give every phi on the way the gradient that it would have as the minimum.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k.
            every: yield those after 0, 1, ..., k steps, else the last alone.

        Yields:
            phi.
        """
        start = self.start(support)
        theta = {k: p.detach() for k, p in start.params.items()}

        def pulled(weights: Weights, given: Split, step: int) -> tuple[Tensor, Weights]:
            loss, after = self.support_loss(weights, given, step)
            away = torch.stack([((p - theta[k]) ** 2).sum() for k, p in weights.params.items()]).sum()
            return loss + self.strength / 2 * away, after  # Eq. 3

        def unpulled(phi: Named, fixed: Tree) -> Tensor:
            given, buffers = fixed
            return self.support_loss(Weights(phi, buffers), given, 0)[0]

        with torch.no_grad():
            found = list(unrolled(pulled, Weights(theta, start.buffers), support, self.inner(n_steps), every=every))
        how = Proximal(self.strength, self.n_cg_steps, self.damping)
        for phi, buffers in found:
            adapted = at_optimum(unpulled, start.params, phi, (support, start.buffers), how)
            yield self.with_statistics(Weights(adapted, buffers), support.x)
