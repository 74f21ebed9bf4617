"""A toy to train: a tiny MAML on sinusoids, or a tiny network with dropout and running statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kshot.algorithms import MAML, ProtoNet
from kshot.core import Learner
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.mlp import MLP

SOURCE = Sinusoid(n_shot=4, n_query=4)


def maml(hidden: tuple[int, ...] = (8,), normalisation: str = "none", **options: Any) -> MAML:
    """The same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MAML.from_backbone(MLP(1, hidden, normalisation), SOURCE.spec, **{"inner_lr": 0.02, **options})


def restless() -> MAML:
    """A learner whose training depends on random numbers and on buffers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(MLP(1, (8,), "running"), nn.Dropout(0.2), nn.Linear(8, 1))
    return MAML(network, inner_lr=0.02)


def loader(n_tasks: int = 3, **options: Any) -> EpisodeLoader:
    return EpisodeLoader(SOURCE, n_tasks, **{"seed": 0, **options})


class Events(list):
    """Takes what a trainer tells."""

    def __call__(self, name: str, step: int, values: dict[str, Any]) -> None:
        self.append((name, step, values))

    def named(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        return [(step, values) for n, step, values in self if n == name]


def trainer(learner: Learner | None = None, out: Path | None = None, **options: Any) -> Trainer:
    """A trainer of the toy; options of ``TrainConfig`` and of ``Trainer`` are told apart by their names."""
    mine = {k: options.pop(k) for k in list(options) if k in TrainConfig.__dataclass_fields__}
    config = TrainConfig(**{"steps": 12, "batching": "loop", "checkpoint_every": 3, "log_every": 1, **mine})
    options.setdefault("loader", loader())
    return Trainer(learner or maml(), options.pop("loader"), config, out=out, **options)


@pytest.fixture
def toy() -> SimpleNamespace:
    """What tests of the outer loop build from."""
    made: dict[str, Callable[..., Any]] = {"maml": maml, "restless": restless, "loader": loader, "trainer": trainer}
    return SimpleNamespace(Events=Events, ProtoNet=ProtoNet, source=SOURCE, **made)
