"""A small run whose tasks are shared by the processes that torchrun starts: python toy_share.py FOLDER [resume]."""

import signal
import sys
from pathlib import Path

import torch
from torch import nn

from kshot.algorithms import MAML
from kshot.data.loader import EpisodeLoader
from kshot.data.sinusoid import Sinusoid
from kshot.engine.checkpoint import save_tree
from kshot.engine.distributed import make_fabric
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.mlp import MLP


def main(out: Path, mode: str) -> None:
    """Train, all processes together, and write each process's weights.

    Args:
        out: the run folder.
        mode: "plain", "uneven" (processes draw other initial weights, which the first one's must replace), "stop" (one
            process is asked to stop) or "resume".
    """
    fabric = make_fabric("cpu", devices=int(sys.argv[3]))
    fabric.launch()
    torch.manual_seed(fabric.global_rank if mode == "uneven" else 0)
    learner = MAML(nn.Sequential(MLP(1, (8,), "running"), nn.Linear(8, 1)), inner_lr=0.02)
    learner.register_buffer("constant", torch.tensor([0.1, 1 / 3, -float("inf")]))
    source = Sinusoid(n_shot=4, n_query=4)
    loader = EpisodeLoader(source, 6, seed=0, rank=fabric.global_rank, world=fabric.world_size)

    def on_event(name: str, step: int, values: dict[str, object]) -> None:
        if mode == "stop" and name == "step" and step == 3 and fabric.global_rank == 1:
            signal.raise_signal(signal.SIGTERM)

    config = TrainConfig(
        steps=10, optimiser="sgd", outer_lr=0.01, batching="loop", validate_every=5, accumulate=2, clip_norm=1.0
    )
    trainer = Trainer(
        learner, loader, config, fabric=fabric, out=out, validate=lambda _: fabric.global_rank + 1.0, on_event=on_event
    )
    progress = trainer.fit(resume=mode == "resume")
    tree = {"learner": learner.state_dict(), "progress": dict(vars(progress))}
    save_tree(out / f"rank-{fabric.global_rank}", tree)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
