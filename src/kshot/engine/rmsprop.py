"""RMSProp as Graves uses it: gradients are divided by a running estimate of their deviation, with momentum.

Alex Graves, "Generating Sequences with Recurrent Neural Networks", 2013, arXiv:1308.0850, Eq. 38 to 45; the optimiser
of Neural Turing Machines (arXiv:1410.5401, section 4.6).

PyTorch's ``RMSprop(centered=True)`` differs in two ways that matter here: its variance, a difference of two averages,
can fall below zero by rounding, and its root is then no number; and its constant stands beside the root, not below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

#: Weight of the past in the averages of Eq. 38 and 39.
DECAY = 0.95
#: What is added to the variance, Eq. 40. The paper adds 1e-4 to gradients of a loss that is summed over a sequence; of
#: a mean over some hundred bits, gradients are a hundred times smaller and more, and deviations with them.
EPS = 1e-9


class RMSprop(torch.optim.Optimizer):
    """RMSProp by deviation.

    Args:
        params: what it updates.
        lr: rate; 1e-4 in the paper.
        momentum: share of the last step that is taken again; 0.9 in the paper.
        decay: weight of the past in the averages.
        eps: added to the variance.
        weight_decay: share of each weight that is added to its gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        momentum: float = 0.9,
        decay: float = DECAY,
        eps: float = EPS,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "decay": decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient.

        Args:
            closure: computes the loss again, if given.

        Returns:
            What the closure returned.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: dict, weights: list[Tensor]) -> None:
        for p in weights:
            if not self.state[p]:
                self.state[p] = {name: torch.zeros_like(p) for name in ("square", "mean", "step")}
        square, mean, step = ([self.state[p][name] for p in weights] for name in ("square", "mean", "step"))
        grads = [p.grad for p in weights if p.grad is not None]
        decay, rest = group["decay"], 1 - group["decay"]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        torch._foreach_mul_(square, decay)  # Eq. 38
        torch._foreach_addcmul_(square, grads, grads, rest)
        torch._foreach_lerp_(mean, grads, rest)  # Eq. 39
        deviation = torch._foreach_addcmul(square, mean, mean, -1.0)  # Eq. 40
        torch._foreach_clamp_min_(deviation, 0.0)
        torch._foreach_add_(deviation, group["eps"])
        torch._foreach_sqrt_(deviation)
        torch._foreach_mul_(step, group["momentum"])
        torch._foreach_addcdiv_(step, grads, deviation, -group["lr"])
        torch._foreach_add_(weights, step)  # Eq. 41
