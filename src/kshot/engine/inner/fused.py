"""Inner loops by compiled kernels: of methods that take plain gradient steps, at whatever rates, on a Conv4.

MAML, Meta-SGD, BOIL and MAML++ differ in their rates, in what adapts, in normalisations that belong to a step, and in
how the losses after the steps weigh; Proto-MAML in where the head starts. The kernels know all of that; second
derivatives need no graph there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kshot.core import Episode, unchanged_since
from kshot.engine.inner.learner import InnerLoop, one_by_one
from kshot.engine.inner.rules import is_plain, rate_at
from kshot.engine.inner.steps import Inner, matching
from kshot.engine.inner.weights import weights_of
from kshot.nn import native
from kshot.nn.conv import by_kernels, is_hooked
from kshot.nn.norm import normalisation_of


class FusedInnerLoop(InnerLoop):
    """An inner loop of plain gradient steps, whose outer gradient kernels compute where the network is one of theirs.

    ``inner`` says all that they need. Where a subclass steps by another rule than plain descent, or overrides one of
    ``GRANTED``, they are left out, unless it brings ``fused_losses`` of its own.
    """

    #: What the kernels compute without calling it.
    GRANTED: ClassVar[tuple[str, ...]] = (
        "start",
        "run",
        "support_loss",
        "adapt",
        "path",
        "with_statistics",
        "keep_buffers",
        "outer_loss",
    )

    @property
    def fused(self) -> bool:
        """True if the model is a Conv4 that compiled kernels know and a linear head, while training."""
        if type(self.model) is not nn.Sequential or len(self.model) != 2:
            return False
        backbone, head = self.model
        linear = type(head) is nn.Linear and head.bias is not None and not is_hooked(self.model)
        return linear and self.kernels_know(backbone) and head.weight.dtype == next(backbone.parameters()).dtype

    def kernels_know(self, backbone: nn.Module) -> bool:
        """Tell whether kernels take the inner steps of this backbone, below some linear head.

        Args:
            backbone: the network without its head.

        Returns:
            True for a Conv4 that they know, while training, and for steps that they know.
        """
        whole = self.training and normalisation_of(backbone) == "episode"
        return whole and by_kernels(backbone) and self.kernels_know_steps()

    def kernels_know_steps(self) -> bool:
        """Tell whether kernels take the steps that this method takes.

        Returns:
            True for plain descent, differentiated through all steps, by the methods that ``fused_losses`` knows.
        """
        if not unchanged_since(self, "fused_losses", self.GRANTED):
            return False
        n, steps = self.n_steps(), self.inner(self.n_steps())
        return is_plain(steps.rule) and steps.n_steps == n and not 0 < steps.truncate < n

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Outer losses by compiled kernels, whose gradient runs backward through the steps without a graph.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        if episodes.support.y.is_floating_point():  # the kernels know cross-entropy only
            return one_by_one(self, episodes)
        backbone, head = self.model  # pyright: ignore[reportGeneralTypeIssues]
        named = dict(zip(backbone.kernel_names("0."), backbone.kernel_parameters(), strict=True))
        return self.losses_of(episodes, {**named, "1.weight": head.weight, "1.bias": head.bias}, backbone.pools)

    def losses_of(self, episodes: Episode, named: dict[str, Tensor], pools: int) -> Tensor:
        """Take the inner steps of a Conv4 and a head, and the losses of the queries after them.

        Args:
            episodes: T episodes, of classes.
            named: what the kernels read, in their order, by the names that ``inner`` knows; the head comes last.
            pools: blocks of the Conv4 that pool.

        Returns:
            (T,) losses.
        """
        norms, parameters = _norms_of_steps(named)
        settings = self.inner(self.n_steps())
        weights = self.step_weights().to(next(iter(named.values())).dtype)
        rates = self._rates(settings, parameters)
        inner = native.Inner(rates, weights, settings.first_order, norms)
        support, query = (native.Labelled(part.x, part.y) for part in episodes)
        return native.maml_losses(support, query, list(parameters.values()), inner, pools)

    def step_weights(self) -> Tensor:
        """Weigh the losses of the queries after the inner steps.

        Returns:
            (S,), by default the last alone.
        """
        weights = torch.zeros(self.n_steps())
        weights[-1] = 1
        return weights

    def _rates(self, settings: Inner, parameters: dict[str, Tensor]) -> Tensor:
        # (S, P), of parameters in the kernel's order.
        moving = set(matching({**weights_of(self.model).params, **parameters}, settings.adapted))

        def of_step(i: int) -> Tensor:
            rate = rate_at(settings.lr, i)
            return torch.cat([_spread(rate(k) if k in moving else 0.0, p) for k, p in parameters.items()])

        several = isinstance(settings.lr, Sequence)
        steps = [of_step(i) for i in range(settings.n_steps if several else 1)]
        return torch.stack(steps).expand(settings.n_steps, -1)


class FusedGradients(FusedInnerLoop):
    """An inner loop of any steps, which it takes itself: of each, kernels compute the network and its first derivative.

    No second derivative may be taken while ``outer_loss`` runs; those that its gradient takes later are as everywhere.
    """

    def kernels_know_steps(self) -> bool:
        """Say that any steps will do.

        Returns:
            True.
        """
        return True

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Take the outer losses one after the other.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        return one_by_one(self, episodes)


def _norms_of_steps(named: dict[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
    # Scales and shifts with an axis of steps, (S, 8, 64), and all parameters without one.
    per_step = {k: p for k, p in named.items() if ".norm." in k and p.ndim == 2}
    norms = torch.stack(list(per_step.values()), 1) if per_step else None
    return norms, {k: p[0].detach() if k in per_step else p for k, p in named.items()}


def _spread(rate: float | Tensor, p: Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return rate.to(p.dtype).expand(p.shape).reshape(-1)
    return torch.full((p.numel(),), rate, dtype=p.dtype)
