"""Recipes of gradient-based methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kshot.engine.config import TrainConfig
from kshot.experiment.config import EvalConfig, RunConfig, TaskConfig
from kshot.experiment.recipes.recipe import Recipe, Row

_MAML = "Finn et al. 2017, arXiv:1703.03400, Table 1"
_SINUSOID = "Finn et al. 2017, arXiv:1703.03400, section 5.1 and appendix"


def _sinusoid(method: str, paper: str, shots: int, steps: Sequence[int], protocol: str, **options: Any) -> Recipe:
    # MAML's own tasks, network and outer loop, so that the methods can be compared; options of the paper unless named.
    n_query = options.pop("n_points", 2 * shots) - shots
    train = {"steps": 70_000, "validate_every": 5000, **options.pop("train", {}).get(shots, {})}
    return Recipe(
        name=f"{method}-sinusoid" + ("" if shots == 5 else f"-{shots}-shot"),
        paper=paper,
        config=RunConfig(
            method,
            "sinusoid",
            task=TaskConfig(n_shot=shots, n_query=n_query, n_tasks=25),
            evaluation=EvalConfig(eval_n_query=100, eval_episodes=0, val_episodes=200),
            train=TrainConfig(compile="on", checkpoint_every=5000, log_every=100, **train),
            options=options,
        ),
        rows=tuple(
            Row(f"{shots}-shot, after {k} steps", None, None, "", {"n_query": 100, "n_episodes": 600, "steps": k})
            for k in steps
        ),
        protocol=f"{protocol} 25 tasks of {shots} support points, {train['steps']:,} outer steps of Adam; mean squared "
        "error on 100 new points of each of 600 new tasks. No published number is asked for.",
    )


#: At MAML's rate of 1e-3 training makes the loss ever steeper, and from 4,000 steps on the error grows; neither a
#: cosine from there, nor a damping of 0, nor conjugate gradients that end at negative curvature keep it from that.
#: With 5 points 3e-4 and 20,000 steps came to 1.16 to 1.30 in validation, these settings to 0.77.
_GENTLE = {
    shots: {"steps": steps, "outer_lr": rate, "schedule": "cosine", "clip_norm": 1.0, "validate_every": 2000}
    for shots, steps, rate in ((5, 30_000, 6e-4), (10, 20_000, 3e-4))
}

_COMPARED = (
    ("maml", "Finn, Abbeel, Levine, ICML 2017", (1, 5, 10), "Second order, trained for 1 inner step of 0.01.", {}),
    ("anil", "Raghu, Raghu, Bengio, Vinyals, ICLR 2020", (1, 5, 10), "As MAML; the head alone adapts.", {}),
    (
        "metasgd",
        "Li, Zhou, Chen, Li, 2017",
        (1,),
        "As MAML; every weight learns a rate, from 0.01 on. These rates are for the one step that they learnt in: "
        "several of them diverge on some tasks.",
        {},
    ),
    (
        "reptile",
        "Nichol, Achiam, Schulman, 2018",
        (10, 32),
        "5 inner steps of 0.02 on 10 points at a time, of the 50 of a task, 32 in the test.",
        {"n_points": 50},
    ),
    (
        "imaml",
        "Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019",
        (16,),
        "16 inner steps of Adam at 0.01, lambda 0.5, 5 steps of conjugate gradients, damping 10; the outer gradient "
        "clipped to a norm of 1, its rate from 6e-4 (10 shots: 3e-4) to zero by a cosine.",
        {"train": _GENTLE},
    ),
    ("cavia", "Zintgraf et al., ICML 2019", (1, 5), "4 context parameters, trained for 1 inner step of 1.", {}),
)

RECIPES = (
    Recipe(
        name="maml-omniglot",
        paper="Finn, Abbeel, Levine, ICML 2017",
        config=RunConfig(
            "maml",
            "omniglot",
            task=TaskConfig(n_way=5, n_shot=1, n_query=1, n_tasks=8),
            evaluation=EvalConfig(eval_n_query=1, eval_episodes=0, val_episodes=200),
            train=TrainConfig(steps=30000, schedule="cosine", validate_every=1500, checkpoint_every=500),
        ),
        rows=(
            Row("5-way 1-shot, transductive", 0.987, 0.982, _MAML, {"n_query": 1, "n_episodes": 1000}),
            Row("5-way 1-shot, transductive, 15 queries a class", None, None, "", {"n_query": 15, "n_episodes": 1000}),
            Row(
                "5-way 1-shot, inductive (statistics of the support)",
                None,
                None,
                "",
                {"n_query": 1, "n_episodes": 1000, "normalisation": "support"},
            ),
            Row("seconds until 97 % in validation", None, None, "", {"reached": 0.97}),
        ),
        protocol="Second order, 1 inner step of 0.4 in training and 3 in the test, 1 query a class, as in the authors' "
        "code; 30,000 outer steps of 8 tasks, their rate falling to zero by a cosine, and blocks that end in pooling, "
        "where that has 60,000 steps of 32 tasks at one rate, and strides. Transductive: queries are normalised by "
        "their own batch. The inductive row is the same weights under the statistics of the support.",
    ),
    Recipe(
        name="maml-sinusoid",
        paper="Finn, Abbeel, Levine, ICML 2017",
        config=RunConfig(
            "maml",
            "sinusoid",
            task=TaskConfig(n_shot=5, n_query=5, n_tasks=25),
            evaluation=EvalConfig(eval_n_query=100, eval_episodes=0, val_episodes=200),
            train=TrainConfig(steps=70000, compile="on", validate_every=5000, checkpoint_every=5000, log_every=100),
        ),
        rows=tuple(
            Row(f"5-shot, after {k} steps", p, least, _SINUSOID, {"n_query": 100, "n_episodes": 1000, "steps": k})
            for k, p, least in ((1, 0.67, 0.7035), (5, 0.38, 0.399), (10, 0.35, 0.3675))
        ),
        protocol="Second order, trained for 1 inner step of 0.01 on 25 tasks of 5 points, 70,000 outer steps; "
        "mean squared error on 100 new points of each of 1,000 new tasks.",
    ),
    *(
        _sinusoid(method, paper, shots, steps, protocol, **options)
        for method, paper, steps, protocol, options in _COMPARED
        for shots in (5, 10)
        if (method, shots) != ("maml", 5)  # which stands above, with the paper's numbers
    ),
)
