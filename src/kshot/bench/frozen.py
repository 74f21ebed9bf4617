"""How fast few-shot methods are on frozen features: 10,000 episodes, and each method against easyfsl's.

ProtoNet and SimpleShot are the same there and here, and agree. The transductive methods are here as their papers have
them, in the papers' settings; where easyfsl's have an option, it is set to the same, and where they depart from the
paper, accuracy differs and the result says by what. Both get the same features, which are not negative, as after a
ReLU; centred and brought to length one where the paper's are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.algorithms.metric.protonet import ProtoNet
from kshot.algorithms.metric.simpleshot import SimpleShot
from kshot.algorithms.transductive.bd_cspn import BDCSPN
from kshot.algorithms.transductive.laplacianshot import LaplacianShot
from kshot.algorithms.transductive.pt_map import PTMAP
from kshot.algorithms.transductive.tim import TIM
from kshot.bench import peers
from kshot.bench.result import Line, Result, lines_of
from kshot.bench.timing import ratio, take_turns
from kshot.core import Learner, Split, generator
from kshot.core.episode import select
from kshot.data.features import FeatureSet
from kshot.data.image_tasks import ImageTasks
from kshot.evaluation.draw import Draw
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.statistics import mean_ci95
from kshot.nn.flat import Flat

#: Width of a ResNet-12's features; classes and examples of a test set of the usual size.
WIDTH, CLASSES, EXAMPLES = 640, 20, 600
_CHUNK, _WAYS = 64, 5


def frozen_episodes(rounds: int, n_episodes: int = 10_000) -> Result:
    """Time the evaluation of ProtoNet on many 5-way 1-shot episodes of frozen features, drawing them included.

    Args:
        rounds: measured rounds.
        n_episodes: episodes of a round.

    Returns:
        Seconds of an episode.
    """
    source, learner = _source(_features()), ProtoNet(Flat((WIDTH,)))

    def run() -> object:
        return evaluate(learner, source, n_episodes=n_episodes, chunk=_CHUNK)

    timings = take_turns({"kshot": run}, rounds)
    return Result(
        "frozen-episodes",
        f"ProtoNet on frozen {WIDTH}-d features, 5-way 1-shot, 15 queries a class: one of {n_episodes:,} episodes",
        lines_of(timings, "kshot", n_episodes, {"kshot": f"{torch.get_num_threads()} threads"}),
        "",
        # 10,000 of them in 5 seconds.
        per_minute=120_000,
        extra={"episodes": n_episodes, "seconds_of_all": timings["kshot"].median},
    )


class _Pair(NamedTuple):
    """A method of ours in its paper's settings, and easyfsl's class for it, in the same where it has them.

    Attributes:
        ours: the learner.
        theirs: name of the class in ``easyfsl.methods``.
        options: of that class, beside the backbone.
        departs: where that class departs from the paper.
    """

    ours: Learner
    theirs: str
    options: dict[str, Any]
    departs: str = ""


def _pairs(centre: Tensor) -> dict[str, _Pair]:
    flat, unit = Flat((WIDTH,)), {"feature_normalization": 2}
    simple, laplacian = SimpleShot(flat), LaplacianShot(flat)
    simple.mean = laplacian.mean = centre
    centred = {"feature_centering": centre, **unit}
    return {
        "protonet": _Pair(ProtoNet(flat), "PrototypicalNetworks", {}),
        "simpleshot": _Pair(simple, "SimpleShot", centred),
        "bd_cspn": _Pair(BDCSPN(flat), "BDCSPN", unit, "no factor in its weights, all queries in its prototypes"),
        # Its neighbours are one fewer than it is asked for.
        "laplacianshot": _Pair(laplacian, "LaplacianShot", {"knn": 4, **centred}, "BD-CSPN's prototypes"),
        "tim": _Pair(
            TIM(flat),
            "TIM",
            {"temperature": 15.0, "cross_entropy_weight": 0.1, **unit},
            "50 gradient steps on cosines, in the place of 1,000 on distances or of 150 alternations",
        ),
        "pt_map": _Pair(
            PTMAP(flat),
            "PTMAP",
            {"fine_tuning_steps": 20, **unit},
            "transformed features as they are, not of length one",
        ),
    }


def frozen_easyfsl(rounds: int, n_episodes: int = 256) -> Result:
    """Time methods on frozen features against easyfsl's, on the same episodes, and compare their accuracy.

    Args:
        rounds: measured rounds.
        n_episodes: episodes that accuracy is compared on; the first 64 of them are timed.

    Returns:
        Seconds of an episode, for each method of both.
    """
    features = _features()
    source = _source(features)
    chunks = [drawn.episodes for drawn in Draw(source, n_episodes, 0).chunks(_CHUNK)]
    timed = chunks[:1]
    per = sum(len(chunk.query.y) for chunk in timed)
    lines: list[Line] = []
    said, slower = [], []
    for name, pair in _pairs(features.features.mean(0)).items():
        contenders = {"kshot": _ours(pair.ours, timed)}
        if peers.installed("easyfsl"):
            contenders["easyfsl"] = _theirs(pair, timed)
            gap = mean_ci95(_ours(pair.ours, chunks)() - _theirs(pair, chunks)())
            why = f" (easyfsl: {pair.departs})" if pair.departs else ""
            said.append(f"{name} {100 * gap.mean:+.2f} ± {100 * gap.ci95:.2f}{why}")
        timings = take_turns(contenders, rounds)
        for who, timing in timings.items():
            by = ratio(timing, timings["kshot"]) if who != "kshot" else None
            slower += [name] if by and by[0] < 1 else []
            spread = (timing.spread[0] / per, timing.spread[1] / per)
            lines.append(Line(f"{who}, {name}", timing.median / per, spread, by))
    agreement = f"accuracy minus easyfsl's on the same {n_episodes} episodes, in points: {', '.join(said)}"
    return Result(
        "frozen-easyfsl",
        f"methods on frozen {WIDTH}-d features, 5-way 1-shot, 15 queries a class: one episode, drawn beforehand",
        tuple(lines),
        agreement if said else "",
        extra={"slower": slower},
    )


def _features() -> FeatureSet:
    # As a network's on unseen classes: not negative, all with much in common (cosines of 0.7), classes little apart.
    g = generator(0, "frozen features")
    centres = torch.randn(1, 1, WIDTH, generator=g).abs() + 0.2 * torch.randn(CLASSES, 1, WIDTH, generator=g)
    x = (centres + 0.7 * torch.randn(CLASSES, EXAMPLES, WIDTH, generator=g)).clamp(min=0).flatten(0, 1)
    labels = torch.arange(CLASSES).repeat_interleave(EXAMPLES)
    return FeatureSet(x, labels, tuple(map(str, range(CLASSES))), torch.zeros(CLASSES, dtype=torch.int64))


def _source(features: FeatureSet) -> ImageTasks:
    return ImageTasks(features, name="features", n_way=_WAYS, n_shot=1, n_query=15)


def _ours(learner: Learner, chunks: list[Any]) -> Callable[[], Tensor]:
    learner.eval()

    def answer(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        return learner.predict(learner.adapt(Split(x, y, _WAYS)), asked)

    @torch.no_grad()
    def run() -> Tensor:
        right = []
        for support, query in chunks:
            logits = torch.func.vmap(answer)(support.x, support.y, query.x)
            right.append((logits.argmax(-1) == query.y).double().mean(-1))
        return torch.cat(right)

    return run


def _theirs(pair: _Pair, chunks: list[Any]) -> Callable[[], Tensor]:
    methods = importlib.import_module("easyfsl.methods")
    model = getattr(methods, pair.theirs)(nn.Identity(), **pair.options).eval()
    tasks = [select(chunk, i) for chunk in chunks for i in range(len(chunk.query.y))]

    def run() -> Tensor:
        right = []
        for support, query in tasks:
            with torch.set_grad_enabled(pair.theirs == "TIM"):
                model.process_support_set(support.x, support.y)
                right.append((model(query.x).argmax(-1) == query.y).double().mean())
        return torch.stack(right)

    return run
