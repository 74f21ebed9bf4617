"""A method of your own in one file: hold it to the contract, train it, and give it the whole command line.

    python examples/own_learner.py
    python examples/own_learner.py train soft_vote --data glyphs --temperature 2

The method: every support example votes for its class, and the nearer it is the louder.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot import Learner, RunConfig, Split, register, train_run
from kshot.experiment.config import BackboneConfig, EvalConfig, TaskConfig, TrainConfig
from kshot.testing import check_learner


class Votes(NamedTuple):
    """What is known of a task: embedded support (S, D), and whose vote is whose (W, S)."""

    z: Tensor
    member: Tensor


@register("soft_vote", family="metric", paper="none: an example")
class SoftVote(Learner):
    """Support examples vote by their distance.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        temperature: the higher, the more equal are the votes.
    """

    default_normalisation = "layer"

    def __init__(self, backbone: nn.Module, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.temperature = backbone, temperature

    def adapt(self, support: Split) -> Votes:
        """Embed the support; nothing is stored on the learner.

        Args:
            support: x (S, ...), y (S,).
        """
        classes = torch.arange(support.ways(), device=support.y.device)
        return Votes(self.backbone(support.x), support.y == classes[:, None])

    def predict(self, state: Votes, x: Tensor) -> Tensor:
        """Count the votes of each class, as logits (Q, W).

        Args:
            state: from ``adapt``.
            x: queries (Q, ...).
        """
        distance = (self.backbone(x)[:, None] - state.z).square().mean(-1)  # (Q, S)
        votes = torch.where(state.member, -distance[:, None] / self.temperature, -torch.inf)  # (Q, W, S)
        return votes.logsumexp(-1)


def main(steps: int = 100) -> float:
    """Check the method, train it on glyphs, and test it.

    Args:
        steps: outer steps.
    """
    for line in check_learner(SoftVote):
        print(f"{'kept' if line.kept else 'skip'}  {line.clause}: {line.note}")
    config = RunConfig(
        "soft_vote",
        "glyphs",
        task=TaskConfig(n_way=5, n_shot=2, n_query=5),
        network=BackboneConfig(n_filters=16),
        train=TrainConfig(steps=steps, validate_every=0),
        evaluation=EvalConfig(eval_episodes=50),
    )
    with tempfile.TemporaryDirectory() as folder:
        record = train_run(config, Path(folder) / "soft_vote").record
    print(f"5-way 2-shot on unseen scripts: {record.mean:.3f} ± {record.ci95:.3f}")
    return record.mean


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from kshot.cli.main import main as kshot

        sys.exit(kshot())
    main()
