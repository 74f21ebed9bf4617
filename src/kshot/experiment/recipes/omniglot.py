"""The one table of Omniglot: every method on the split of Matching Networks, 5- and 20-way, 1- and 5-shot.

Each method is trained once, in the setting that its paper prefers, mostly for ten to twenty minutes of one processor;
those that need no training of their own stand on the run of ``baseline``. All rows of one setting see the same tasks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import kshot.algorithms  # noqa: F401  (registers the methods, whose papers are named here)
from kshot.core import method
from kshot.engine.config import TrainConfig
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.recipes.recipe import Recipe, Row

#: Ways and shots of the table.
SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))

_SNAIL = "Mishra et al. 2018, arXiv:1707.03141, Table 1"
_FINN = "Finn et al. 2017, arXiv:1703.03400, Table 1"
_REPTILE = "Nichol et al. 2018, arXiv:1803.02999, as quoted by others"
_MAMLPP = "Antoniou et al. 2019, arXiv:1810.09502, first version, as quoted by others"
_FROM_MEMORY = "its paper, from memory"
_BUDGET = "A small part of the paper's training; the rate falls to zero by a cosine."
_FAIR = "Inductive (running statistics). One training for all rows, rotations as new classes. " + _BUDGET
_TOGETHER = ", transductive, 1 query a class, best {} of validation together"
_BATCH = (
    "Transductive rows normalise the queries by their own batch, as in the authors' code; the inductive ones are the "
    "same weights under the statistics of the support. " + _BUDGET
)


def rows(
    published: tuple[float | None, ...] = (),
    source: str = "",
    *,
    n_way: int = 0,
    shots: tuple[int, ...] = (1, 5),
    name: str = "",
    near: bool = False,
    **test: Any,
) -> tuple[Row, ...]:
    """Make the rows of one method.

    Args:
        published: its paper's numbers in the order of ``SETTINGS``; none if empty.
        source: where they were read.
        n_way: the only ways that the method can do; all of ``SETTINGS`` if 0.
        shots: of the rows.
        name: added to each row's name.
        near: ask for the published numbers, less 0.5 points at 5 ways and 1 point at 20.
        **test: more of ``Row.test``.

    Returns:
        A row for each setting.
    """
    asked = []
    for (w, k), number in zip(SETTINGS, published or (None,) * len(SETTINGS), strict=True):
        if n_way in (0, w) and k in shots:
            found = {"n_way": w, "n_shot": k, "n_query": 15, "n_episodes": 1000, **test}
            least = round(number - (0.005 if w == 5 else 0.01), 4) if near and number is not None else None
            asked.append(Row(f"{w}-way {k}-shot{name}", number, least, source if number is not None else "", found))
    return tuple(asked)


Task = tuple[int, int, int, int]


def _trained(name: str, task: Task, steps: int, asked: tuple[Row, ...], protocol: str, **more: Any) -> Recipe:
    n_way, n_shot, n_query, n_tasks = task
    train = {"schedule": "cosine", "validate_every": steps // 10, "checkpoint_every": steps // 20}
    recipe = more.pop("recipe", f"{name}-omniglot")
    config = RunConfig(
        name,
        "omniglot",
        task=TaskConfig(n_way, n_shot, n_query, n_tasks),
        evaluation=EvalConfig(
            eval_n_way=more.pop("val_way", 20), eval_n_shot=1, eval_n_query=5, eval_episodes=0, val_episodes=100
        ),
        network=BackboneConfig(**more.pop("network", {})),
        train=TrainConfig(steps=steps, **train | more.pop("train", {})),
        data_options=more.pop("data_options", {}),
        options=more,
    )
    return Recipe(recipe, method(name).paper, config, asked, f"{protocol} Trained at {n_way}-way {n_shot}-shot.")


def _metric(name: str, task: Task, steps: int, *known: Any, **more: Any) -> Recipe:
    return _trained(name, task, steps, rows(*known, near=bool(known)), _FAIR, **more)


def _gradient(
    name: str, task: Task, steps: int, known: tuple[float | None, ...] = (), source: str = "", **more: Any
) -> Recipe:
    only = 0 if method(name).learner.any_way else task[0]
    test = {"n_way": only, "n_episodes": more.pop("n_episodes", 1000)}
    # The papers judge one query a class; it matters where queries normalise each other.
    one = {"shots": (1,), "n_query": 1, **test}
    if best := more.get("train", {}).get("keep_best", 0):
        asked = rows(known, source, **one, name=_TOGETHER.format(best), best=best)
        asked += rows(**one, name=", transductive, 1 query a class")
    else:
        asked = rows(known, source, **one, name=", transductive, 1 query a class")
    many = tuple(number if k > 1 else None for (_, k), number in zip(SETTINGS, known, strict=False))
    asked += rows(many, source, **test, name=", transductive")
    asked += rows(**test, name=", inductive (statistics of the support)", normalisation="support")
    protocol = _BATCH + more.pop("note", "")
    return _trained(name, task, steps, asked, protocol, **_strided(task, more))


def _many_ways(name: str, task: Task, steps: int, *known: Any, **more: Any) -> Recipe:
    # The number of classes is built into these methods' heads, so that each number of ways is a training of its own.
    recipe = f"{more.pop('recipe', f'{name}-omniglot')}-{task[0]}-way"
    test = {"n_way": task[0], "shots": (1,), "n_query": 1, "n_episodes": more.pop("n_episodes", 1000)}
    asked = rows(*known, **test, name=", transductive")
    asked += rows(**test, name=", inductive (statistics of the support)", normalisation="support")
    one = f" One inner step of {more.get('inner_lr')}, 3 in the test; MAML's paper has 5 of 0.1, 5 times the work."
    protocol = f"{_BATCH} 1 query a class." + one * (more.get("n_inner_steps") == 1) + more.pop("note", "")
    return _trained(name, task, steps, asked, protocol, recipe=recipe, **_strided(task, more))


def _strided(task: Task, more: dict[str, Any]) -> dict[str, Any]:
    more = {"network": {"downsample": "stride"}, "val_way": task[0], **more}
    return {**more, "train": {"compile": "on", **more.get("train", {})}}


def _reader(name: str, steps: int) -> Recipe:
    # Heads of a fixed number of classes, which read the support one after the other or all at once.
    protocol = f"{_FAIR} Its head has five outputs, so that 20-way rows are absent."
    return _trained(name, (5, 1, 5, 4), steps, rows(n_way=5), protocol, val_way=5, train={"clip_norm": 10.0})


def _pixel_reader(name: str, steps: int, batching: str = "native") -> Recipe:
    # On a Conv4 these had not left chance by the time that these recipes take.
    protocol = (
        "Inductive. Pixels straight into the controller, at 20 x 20, as in `mann-omniglot`; sequences of ten examples "
        f"of each of five classes, mixed, judged at every step. {_BUDGET} Training images are turned, sheared, scaled "
        "and shifted a little. Its head has five outputs, so that 20-way rows are absent."
    )
    return _trained(
        name,
        (5, 1, 9, 16),
        steps,
        rows(n_way=5),
        protocol,
        val_way=5,
        network={"backbone": "none"},
        data_options={"image_size": 20, "augment": "affine"},
        train={"clip_norm": 10.0, "batching": batching},
    )


#: Pooling in the place of strides, for which there are compiled kernels.
_FUSED = {"network": {}, "train": {"compile": "off"}}
#: The paper validates every 500 steps, and tests what the three best of its validations answer together.
_EPOCHS = {
    "network": {},
    "train": {"compile": "off", "validate_every": 500, "keep_best": 3},
    "data_options": {"augment": "affine"},
    "note": " As the paper tests, the weights of the best 3 of 30 validations answer together; the other rows are of "
    "the best alone. Training images are turned, sheared, scaled and shifted a little.",
}
_ONE_STEP = {"inner_lr": 0.4, "n_inner_steps": 1, "n_inner_steps_eval": 3}
#: Without second derivatives a step of 0.4 was seen to learn far more slowly, in validation.
_SMALL_STEP = {**_ONE_STEP, "inner_lr": 0.1}
#: In validation 8,000 steps as in the paper came to 80 %, 300 of these to 90 %.
_QUICK_REPTILE = {
    "note": " Plain inner steps on 6 images a class, and Adam outside; the paper has them the other way round, on 15.",
    "inner_optimiser": "sgd",
    "inner_lr": 0.1,
    "n_inner_steps": 3,
    "n_inner_steps_eval": 15,
    **_FUSED,
}
_CLASSIFIER = (8, 1, 15, 1)
_BASELINE = _metric("baseline", _CLASSIFIER, 9_000)
_ON_BASELINE = (
    "The network of `baseline-omniglot`, trained as a plain classifier of all training classes, and left as it is. "
    "Transductive methods answer all queries of a task together: 75 or 300 of them, as many of each class."
)
#: Methods that learn nothing over tasks, on frozen features; and those that change the network within a task, which
#: takes hundreds of times as long, so that they get fewer tasks.
_HEADS = ("simpleshot", "linear_probe", "bd_cspn", "tim", "laplacianshot", "pt_map")
_WHOLE = ("finetune", "transductive_finetuning")


def _frozen(name: str, heads: tuple[str, ...], n_episodes: int, protocol: str) -> Recipe:
    asked = [
        dataclasses.replace(row, name=f"{head}, {row.name}")
        for head in heads
        for row in rows(head=head, n_episodes=n_episodes)
    ]
    return Recipe(
        name,
        "the page of each method names its paper",
        _BASELINE.config,
        tuple(asked),
        protocol,
        stands_on=_BASELINE.name,
    )


def _untrained(name: str, asked: tuple[Row, ...], protocol: str) -> Recipe:
    return Recipe(f"{name}-omniglot", method(name).paper, RunConfig(name, "omniglot"), asked, protocol)


RECIPES = (
    _BASELINE,
    # By validation, 20-way: 78.3 %; the authors' factor of 10, beside which they learn a length for each class, 76.3 %.
    _metric("baselinepp", _CLASSIFIER, 7_000, scale=30.0),
    _frozen("heads-omniglot", _HEADS, 1000, _ON_BASELINE),
    _frozen("finetune-omniglot", _WHOLE, 50, f"{_ON_BASELINE} But here all of it is trained on within each task."),
    _metric("matching", (20, 1, 5, 1), 10_000, (0.981, 0.989, 0.938, 0.985), _SNAIL),
    _metric("matching", (20, 1, 5, 1), 7_000, recipe="matching-fce-omniglot", fce=True),
    _trained(
        "relation",
        (20, 1, 2, 1),
        16_000,
        rows((0.996, 0.998, 0.976, 0.991), _FROM_MEMORY, near=True)
        + rows(n_query=1, normalisation="episode", name=", transductive, 1 query a class"),
        f"{_FAIR} The authors' test leaves batch norm in its training mode, on one query of each class: the "
        "transductive rows do so with the same weights.",
        network={"downsample": "first2"},
    ),
    _trained(
        "relation",
        (20, 1, 2, 1),
        36_000,
        rows((0.996, 0.998, 0.976, 0.991), _FROM_MEMORY, near=True),
        f"{_FAIR} On all 1,200 characters, as in the paper, so that no validation chooses: the last step is tested. "
        "Training images are turned, sheared, scaled and shifted a little.",
        recipe="relation-omniglot-all",
        network={"downsample": "first2"},
        train={"validate_every": 0, "checkpoint_every": 1000},
        data_options={"augment": "affine", "trainval": True},
    ),
    _metric("gaussian_protonet", (60, 1, 5, 1), 3_500),
    _metric("feat", (20, 1, 5, 1), 8_000),
    _trained(
        "deepemd",
        (5, 1, 5, 1),
        5_000,
        rows(n_episodes=100),
        f"{_FAIR} 100 episodes: each pair of images is a problem of transport.",
        network={"downsample": "first2"},
    ),
    # The authors' embeddings have 512 numbers, those of the last two of four blocks; with four poolings there are 64.
    _trained(
        "r2d2",
        (60, 1, 5, 1),
        12_000,
        rows((0.9891, 0.9974, 0.9624, 0.9920), _FROM_MEMORY, near=True),
        f"{_FAIR} After 6,000 steps it begins once more from half of it. Embeddings have 576 numbers.",
        network={"downsample": "first3"},
        train={"lr_every": 6_000, "validate_every": 600, "checkpoint_every": 300},
    ),
    _metric("lrd2", (5, 1, 15, 1), 9_000),
    _metric("metaoptnet", (5, 5, 6, 1), 9_000),
    _metric("dkt", (5, 1, 15, 1), 9_000),
    _untrained("nearest", rows(), "Pixels; nothing is trained."),
    _untrained(
        "hausdorff",
        rows(n_query=1, n_episodes=200),
        "Points of ink; nothing is trained. 200 episodes, 1 query a class.",
    ),
    _gradient(
        "maml",
        (5, 1, 1, 8),
        30_000,
        (0.983, 0.992, None, None),
        _REPTILE,
        recipe="fomaml-omniglot",
        first_order=True,
        **_SMALL_STEP,
        **_FUSED,
    ),
    _gradient("anil", (5, 1, 1, 8), 16_000),
    _gradient("boil", (5, 1, 1, 8), 7_000, **_FUSED),
    _gradient("metasgd", (5, 1, 1, 8), 10_000, **_FUSED),
    _gradient("metacurvature", (5, 1, 1, 8), 2_400),
    _gradient("mamlpp", (5, 1, 1, 4), 15_000, (0.9947, 0.9985, None, None), _MAMLPP, **_EPOCHS),
    # At a rate of 1e-3 validation fell from 53 % after 120 steps to 33 % after 360.
    _gradient("imaml", (5, 1, 1, 4), 600, network={}, train={"compile": "off", "outer_lr": 3e-4}),
    _gradient("cavia", (5, 1, 5, 8), 4_500),
    _gradient("protomaml", (5, 1, 5, 2), 9_000, **_FUSED),
    _gradient(
        "reptile",
        (5, 5, 1, 8),
        16_000,
        (0.9768, 0.9948, None, None),
        _REPTILE,
        inner_batch=10,
        **_QUICK_REPTILE,
    ),
    _many_ways("maml", (20, 1, 1, 2), 12_000, (None, None, 0.958, None), _FINN, **_ONE_STEP, **_FUSED),
    _many_ways(
        "maml",
        (20, 1, 1, 2),
        12_000,
        (None, None, 0.894, None),
        _REPTILE,
        recipe="fomaml-omniglot",
        first_order=True,
        **_SMALL_STEP,
        **_FUSED,
    ),
    _many_ways("anil", (20, 1, 1, 2), 16_000, **_ONE_STEP, **_FUSED),
    _many_ways("mamlpp", (20, 1, 1, 1), 8_000, (None, None, 0.9765, None), _MAMLPP, multi_step_steps=2_000, **_FUSED),
    _many_ways(
        "reptile",
        (20, 5, 1, 2),
        6_000,
        (None, None, 0.8943, None),
        _REPTILE,
        inner_batch=40,
        **_QUICK_REPTILE,
    ),
    _reader("cnp", 7_000),
    _reader("transformer", 7_000),
    _pixel_reader("lstm", 12_000),
    _pixel_reader("ntm", 12_000, "fused"),
    _pixel_reader("dnc", 2_000),
)
