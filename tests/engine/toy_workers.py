"""A learner that another process can import."""

from __future__ import annotations

import os
import time
import warnings

import torch
from torch import Tensor, nn

from kshot.algorithms import ProtoNet
from kshot.core import Episode, Spec, UserError
from kshot.testing import synthetic_episodes, tiny_backbone

SPEC = Spec("classification", (1, 8, 8), 3)


class Odd(ProtoNet):
    """Does what a number in a buffer says."""

    native = False  # pyright: ignore[reportAssignmentType]
    what: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.register_buffer("what", torch.zeros(()))

    def outer_loss(self, episode: Episode) -> Tensor:
        what = int(self.what)
        if what == 1:
            raise UserError("expected another number, got 1; take 0")
        if what == 2:
            raise Unportable("a", "b")
        if what == 3:
            os._exit(7)
        if what > 5:
            time.sleep(what)
        if what == 5:
            warnings.warn("said once", UserWarning, stacklevel=1)
            print("must not stand between the answers")
        return super().outer_loss(episode)


class Unportable(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def odd(what: int = 0) -> Odd:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = Odd(tiny_backbone(SPEC)).train()
    made.what.fill_(what)
    return made


def episodes(n_tasks: int = 3) -> Episode:
    return synthetic_episodes(SPEC, n_tasks, dtype=torch.float32)
