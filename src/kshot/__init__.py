"""kshot: learn a new task from a handful of examples.

Everything here is imported when it is first used, so that ``import kshot`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kshot.algorithms import MAML, ProtoNet
    from kshot.core import DivergedError, Episode, Learner, Spec, Split, UserError, generator, register, task_loss
    from kshot.data import EpisodeLoader, ImageSet, ImageTasks, Sinusoid, TaskSource, datasets, open_source
    from kshot.engine.train import TrainConfig, Trainer
    from kshot.evaluation import Scores, compare, evaluate
    from kshot.experiment.config import RunConfig, load_config
    from kshot.experiment.run import evaluate_run, load_run, train_run
    from kshot.nn.conv import Conv4
    from kshot.nn.mlp import MLP
    from kshot.testing import check_learner

_HOME = {
    "kshot.algorithms": ("MAML", "ProtoNet"),
    "kshot.core": (
        "DivergedError",
        "Episode",
        "Learner",
        "Spec",
        "Split",
        "UserError",
        "generator",
        "register",
        "task_loss",
    ),
    "kshot.data": ("EpisodeLoader", "ImageSet", "ImageTasks", "Sinusoid", "TaskSource", "datasets", "open_source"),
    "kshot.engine.train": ("TrainConfig", "Trainer"),
    "kshot.evaluation": ("Scores", "compare", "evaluate"),
    "kshot.experiment.config": ("RunConfig", "load_config"),
    "kshot.experiment.run": ("evaluate_run", "load_run", "train_run"),
    "kshot.nn.conv": ("Conv4",),
    "kshot.nn.mlp": ("MLP",),
    "kshot.testing": ("check_learner",),
}
_HOME_OF = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "MAML",
    "MLP",
    "Conv4",
    "DivergedError",
    "Episode",
    "EpisodeLoader",
    "ImageSet",
    "ImageTasks",
    "Learner",
    "ProtoNet",
    "RunConfig",
    "Scores",
    "Sinusoid",
    "Spec",
    "Split",
    "TaskSource",
    "TrainConfig",
    "Trainer",
    "UserError",
    "__version__",
    "check_learner",
    "compare",
    "datasets",
    "evaluate",
    "evaluate_run",
    "generator",
    "load_config",
    "load_run",
    "open_source",
    "register",
    "task_loss",
    "train_run",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}; it has {', '.join(sorted(_HOME_OF))}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
