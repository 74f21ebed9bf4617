"""A small run in a process of its own, for tests that kill it: python toy_run.py FOLDER STEPS."""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from kshot.algorithms import MAML
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.log import CsvLog
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.mlp import MLP


def main(out: Path, steps: int) -> None:
    """Go on with the run in a folder, or begin it."""
    torch.manual_seed(0)
    learner = MAML(nn.Sequential(MLP(1, (8,), "running"), nn.Dropout(0.2), nn.Linear(8, 1)), inner_lr=0.02)
    config = TrainConfig(
        steps=steps, batching="loop", checkpoint_every=2, log_every=1, validate_every=5, deterministic=True
    )
    trainer = Trainer(
        learner,
        EpisodeLoader(Sinusoid(n_shot=4, n_query=4), 3, seed=0),
        config,
        out=out,
        validate=lambda learner: float(next(learner.parameters()).detach().abs().sum()),
        on_event=lambda name, step, values: time.sleep(0.01) if name == "step" else None,
        logs=[CsvLog(out / "metrics.csv")],
    )
    trainer.fit(resume=bool(Checkpoints(out / "checkpoints").steps()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
