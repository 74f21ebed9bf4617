"""Meta-Curvature: learn matrices that turn the inner gradient into a better direction.

Paper: Eunbyung Park, Junier B. Oliva, "Meta-Curvature", NeurIPS 2019, arXiv:1902.03356.

Idea: multiply the gradient of each layer, along each of its axes, by a small learned matrix, as second-order methods
multiply by curvature, but learned from tasks.

======================  ==============================================
paper                   here
======================  ==============================================
theta                   the parameters of ``model``
G                       an inner gradient, (C_out, C_in, d)
M_o, M_i, M_f           ``matrices`` of a tensor, one for each axis
MC(G)                   ``curve`` (Eq. 5: G x_3 M_f x_2 M_i x_1 M_o)
alpha                   ``inner_lr``
======================  ==============================================

Differs from the paper: none in the method (its MC2). The two axes of a kernel are one, d, as in the paper; the matrix
of a bias has its one axis. Matrices start as the identity, so that training starts as MAML's.

Checked by: tests/reference/test_gradient_family.py (the Kronecker product of the matrices, applied to the flat
gradient), tests/algorithms/test_gradient_family.py (with identities, MAML).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Spec, register
from kshot.engine.inner import Inner, InnerLoop, check_rate, preconditioned


@register(
    "metacurvature",
    family="gradient",
    paper="Park, Oliva, Meta-Curvature, NeurIPS 2019, arXiv:1902.03356",
)
class MetaCurvature(InnerLoop):
    """Meta-Curvature.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        inner_lr: alpha.
        n_inner_steps: gradient steps while training.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        first_order: leave the second derivatives out; matrices still learn.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.1,
        n_inner_steps: int = 1,
        n_inner_steps_eval: int = 0,
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        self.inner_lr, self.first_order = inner_lr, first_order
        self.matrices = nn.ModuleList(
            nn.ParameterList(torch.eye(n, dtype=p.dtype, device=p.device) for n in as_axes(p).shape)
            for p in model.parameters()
        )

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            MAML's rate for the sinusoid; the defaults for classes.
        """
        return {"inner_lr": 0.01} if spec.kind == "regression" else {}

    def inner(self, n_steps: int) -> Inner:
        """Step along the changed gradient: theta' = theta - alpha * MC(grad L(theta)).

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {name: list(own) for name, own in zip(names, self.matrices, strict=True)}  # pyright: ignore[reportArgumentType]
        rule = preconditioned(lambda grads, by: {k: curve(g, by[k]) for k, g in grads.items()}, tensors)
        return Inner(self.inner_lr, n_steps, rule, first_order=self.first_order, truncate=self.truncate)


def curve(gradient: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply a gradient along each axis by a matrix (Eq. 5).

    Args:
        gradient: of any shape; axes from the third on count as one.
        matrices: one square matrix for each axis.

    Returns:
        MC(G), of the gradient's shape. It costs a product for each axis, and no matrix of the whole size is made.
    """
    g = as_axes(gradient)
    with torch.autocast(g.device.type, enabled=False):  # what is added to float32 weights stays as exact
        for axis, matrix in enumerate(matrices):
            g = torch.tensordot(matrix, g, dims=([1], [axis])).movedim(0, axis)  # pyright: ignore[reportArgumentType]
    return g.reshape(gradient.shape)


def as_axes(t: Tensor) -> Tensor:
    """View a tensor with the axes that have a matrix: out, in, and all of the kernel.

    Args:
        t: a parameter or its gradient.

    Returns:
        Of one to three axes.
    """
    return t.reshape(1) if t.ndim == 0 else t.flatten(2) if t.ndim > 3 else t
