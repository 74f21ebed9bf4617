"""Several trained learners that answer together, and one that looks at each image several times."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.core import Learner, Split, Tree, UserError
from kshot.nn.views import Views


class Ensemble(Learner):
    """Answers with the mean of its members' log-probabilities; of logits of bits, or of numbers, in other tasks.

    Args:
        members: learners of the same tasks, trained apart.

    Raises:
        UserError: there are none.
    """

    def __init__(self, members: Sequence[Learner]) -> None:
        super().__init__()
        if not members:
            raise UserError("expected at least one learner to answer, got none")
        self.members = nn.ModuleList(members)
        self.spec = members[0].spec

    @property
    def kinds(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Kinds of tasks, as of the members."""
        return self.learners()[0].kinds

    @property
    def any_way(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if each member answers tasks of other numbers of classes than it was built for."""
        return all(member.any_way for member in self.learners())

    @property
    def transductive(self) -> bool:
        """True if a member is."""
        return any(member.transductive for member in self.learners())

    def adapt(self, support: Split) -> list[Tree]:
        """Let each member learn the task.

        Args:
            support: its support set.

        Returns:
            A state for each.
        """
        return [member.adapt(support) for member in self.learners()]

    def predict(self, state: list[Tree], x: Tree) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Average what the members answer.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Logits (Q, W), or what the members answer to tasks of another kind.
        """
        told = torch.stack([m.predict(s, x) for m, s in zip(self.learners(), state, strict=True)])
        numbers = self.spec is not None and self.spec.kind != "classification"
        return (told if numbers else told.log_softmax(-1)).mean(0)

    def learners(self) -> list[Learner]:
        """List the members.

        Returns:
            The learners.
        """
        return [member for member in self.members if isinstance(member, Learner)]


def with_backbone(learner: Learner, backbone: nn.Module) -> Learner:
    """Copy a learner, with another network in the place of its own; all else is shared.

    Args:
        learner: one with a ``backbone``.
        backbone: the other network.

    Returns:
        The copy.
    """
    twin = copy.copy(learner)
    twin._modules = {**learner._modules, "backbone": backbone}
    return twin


def with_views(learner: Learner, n_views: int) -> Learner:
    """Copy a learner, so that its network looks at each image several times.

    Args:
        learner: one with a ``backbone``.
        n_views: see ``kshot.nn.views``.

    Returns:
        The copy; the learner itself for one view.

    Raises:
        UserError: it has no network of that name.
    """
    if n_views == 1:
        return learner
    backbone = getattr(learner, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"expected a learner with a backbone for several views, got {type(learner).__name__}")
    return with_backbone(learner, Views(backbone, n_views))
