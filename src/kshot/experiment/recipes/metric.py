"""Recipes of metric-based methods."""

from __future__ import annotations

from kshot.engine.config import TrainConfig
from kshot.experiment.config import EvalConfig, RunConfig, TaskConfig
from kshot.experiment.recipes.recipe import Recipe, Row

_PROTONET = "Snell et al. 2017, arXiv:1703.05175, Table 1, as quoted by a replication"


def _protonet(name: str, least: tuple[float | None, ...], config: RunConfig, how: str = "") -> Recipe:
    chosen = "The best step by 20-way 1-shot accuracy on meta_val is tested."
    if not config.train.validate_every:
        chosen = "Trained on all 1,200 characters, as in the paper: no validation chooses, and the last step is tested."
    settings = ((5, 1, 0.988), (5, 5, 0.997), (20, 1, 0.960), (20, 5, 0.989))
    return Recipe(
        name=name,
        paper="Snell, Swersky, Zemel, NeurIPS 2017",
        config=config,
        rows=tuple(
            Row(f"{w}-way {k}-shot", p, ask, _PROTONET, {"n_way": w, "n_shot": k, "n_query": 15, "n_episodes": 1000})
            for (w, k, p), ask in zip(settings, least, strict=True)
        ),
        protocol="Inductive (running statistics). One training at 60-way 1-shot for all rows; the paper trains 1-shot "
        f"and 5-shot models apart. {chosen} Rotations are new classes.{how}",
    )


_BENT = " Training images are turned, sheared, scaled and shifted a little. The rate falls to zero by a cosine."
_TASK = TaskConfig(n_way=60, n_shot=1, n_query=5, n_tasks=1)
_PLAIN = _protonet(
    "protonet-omniglot",
    (0.983, 0.992, 0.950, 0.979),
    RunConfig(
        "protonet",
        "omniglot",
        task=_TASK,
        evaluation=EvalConfig(eval_n_way=20, eval_n_query=5, eval_episodes=0, val_episodes=100),
        train=TrainConfig(steps=8000, schedule="step", lr_every=2000, validate_every=500, checkpoint_every=250),
    ),
)
_DISTORTED = _protonet(
    "protonet-omniglot-distorted",
    (None, None, None, None),
    RunConfig(
        "protonet",
        "omniglot",
        task=_TASK,
        evaluation=EvalConfig(eval_n_way=20, eval_n_query=5, eval_episodes=0, val_episodes=400),
        train=TrainConfig(steps=10_000, schedule="cosine", validate_every=1000, checkpoint_every=500),
        data_options={"augment": "affine"},
    ),
    _BENT,
)
#: Others start from its network.
PROTONET_ALL = _protonet(
    "protonet-omniglot-all",
    (None, None, None, None),
    RunConfig(
        "protonet",
        "omniglot",
        task=_TASK,
        evaluation=EvalConfig(eval_episodes=0),
        train=TrainConfig(steps=10_000, schedule="cosine", validate_every=0, checkpoint_every=500),
        data_options={"augment": "affine", "trainval": True},
    ),
    _BENT,
)

RECIPES = (_PLAIN, _DISTORTED, PROTONET_ALL)
