"""How good a learner is: scores on many episodes of a source, without a gradient and without a trace left on it.

Accuracy (or squared error, or the cost in bits) of each episode is one number; the interval is taken over episodes. The
same call gives curves over inner steps and over shots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, Tree, UserError
from kshot.core.checks import check_classes, check_split
from kshot.core.episode import n_tasks, select, unbind
from kshot.core.errors import NotFiniteError
from kshot.data.source import TaskSource
from kshot.evaluation import metrics
from kshot.evaluation.draw import TEST, Draw
from kshot.evaluation.scores import Curve, Scores, estimate_in_runs, metric_of

BATCHINGS = ("auto", "loop", "vmap")
CHUNK = 16

Progress = Callable[[int, int], None]
States = Callable[[Split], Sequence[Tree]]
_Answer = Callable[[Episode], Tensor]


class _Scored(NamedTuple):
    """Scores of V states per episode: name -> (E, V), bins (V, 3, B) or None, and the draw that is now complete."""

    per_episode: dict[str, Tensor]
    bins: Tensor | None
    seconds: float
    fingerprint: str


def evaluate(
    learner: Learner,
    source: TaskSource,
    *,
    n_episodes: int = 600,
    seed: int = 0,
    stream: str = TEST,
    device: torch.device | str | None = None,
    batching: str = "auto",
    chunk: int | None = None,
    on_progress: Progress | None = None,
) -> Scores:
    """Score a learner on episodes of a source.

    The episodes depend on source and seed only: two learners evaluated alike are compared on identical tasks.

    Args:
        learner: put into ``eval`` mode for the time being; nothing of it changes, but for its device if one is named.
        source: the tasks.
        n_episodes: E.
        seed: of the episodes.
        stream: of random numbers; that of a validation is another one, where data are made and have no splits.
        device: where to run; where the learner is if None.
        batching: "loop" (one task after the other), "vmap" (a chunk of tasks at once) or "auto": ``vmap`` where it is
            faster as a rule (everywhere but for convolutions on a CPU) and gives the loop's answers on a first task.
        chunk: tasks gathered, and mapped over, at once; 16 if None. Changes memory and speed only.
        on_progress: called with (episodes done, E) after each chunk.

    Returns:
        The scores.

    Raises:
        UserError: the learner does not fit the tasks, answers with NaN, a class of an episode has no support, or an
            argument makes no sense.
    """
    where = device if device is not None else _device_of(learner)
    draw = Draw(source, n_episodes, seed, stream)
    scored = _score(learner, lambda s: [learner.adapt(s)], draw, where, batching, chunk, on_progress)
    return Scores(
        metric=metric_of(source.spec.kind),
        per_episode={name: values[:, 0] for name, values in scored.per_episode.items()},
        bins=None if scored.bins is None else scored.bins[0],
        seed=seed,
        seconds=scored.seconds,
        fingerprint=scored.fingerprint,
        run_length=source.run_length,
    )


def accuracy_by_step(
    learner: Learner,
    source: TaskSource,
    *,
    n_steps: int | None = None,
    n_episodes: int = 600,
    seed: int = 0,
    device: torch.device | str | None = None,
    batching: str = "auto",
    chunk: int | None = None,
    on_progress: Progress | None = None,
) -> Curve:
    """Score a learner after 0, 1, ..., k inner steps, on the episodes that ``evaluate`` sees.

    Args:
        learner: one that offers ``states(support, n_steps)``, the list of its states after each inner step.
        source: the tasks.
        n_steps: k; the learner's own number if None.
        n_episodes: E.
        seed: of the episodes.
        device: see ``evaluate``.
        batching: see ``evaluate``.
        chunk: see ``evaluate``.
        on_progress: see ``evaluate``.

    Returns:
        Accuracy, or mean squared error, along "inner steps".

    Raises:
        UserError: the learner has no inner steps, or what ``evaluate`` refuses.
    """
    listed = states_of(learner, n_steps)
    if listed is None:
        raise UserError(f"{type(learner).__name__} takes no inner steps: it has no `states` method to list them")
    where = device if device is not None else _device_of(learner)
    scored = _score(learner, listed, Draw(source, n_episodes, seed), where, batching, chunk, on_progress)
    metric = metric_of(source.spec.kind)
    columns = scored.per_episode[metric].unbind(1)
    estimates = tuple(estimate_in_runs(column, source.run_length) for column in columns)
    return Curve("inner steps", metric, tuple(range(len(estimates))), estimates)


def accuracy_by_shots(
    learner: Learner, open_source_with_shots: Callable[[int], TaskSource], shots: Sequence[int], **options: Any
) -> Curve:
    """Score a learner with more and more support examples per class.

    Args:
        learner: any.
        open_source_with_shots: gives the source of K-shot tasks.
        shots: the values of K.
        **options: of ``evaluate``.

    Returns:
        Accuracy, or mean squared error, along "shots".

    Raises:
        UserError: no shots are given, or what ``evaluate`` refuses.
    """
    if not shots:
        raise UserError("expected at least one number of shots, got an empty list")
    ascending = tuple(sorted(set(shots)))
    scores = [evaluate(learner, open_source_with_shots(k), **options) for k in ascending]
    return Curve("shots", scores[0].metric, ascending, tuple(s.estimate for s in scores))


def states_of(learner: Learner, n_steps: int | None = None) -> States | None:
    """Find how a learner lists its states after 0, 1, ..., k inner steps.

    Args:
        learner: one with a ``states(support, n_steps)`` method.
        n_steps: k; the learner's own number if None.

    Returns:
        A function of the support, or None if the learner takes no inner steps.
    """
    states = getattr(learner, "states", None)
    if not callable(states):
        return None
    listed = cast("Callable[..., list[Tree]]", states)
    return lambda support: listed(support) if n_steps is None else listed(support, n_steps)


def check_fits(learner: Learner, spec: Spec) -> None:
    """Refuse a learner that cannot do tasks of a kind. A learner may carry ``spec``, the tasks it was built for.

    Args:
        learner: the learner.
        spec: what the tasks look like.

    Raises:
        UserError: another kind of task, another input shape, or another number of classes than it can do.
    """
    name = type(learner).__name__
    if spec.kind not in learner.kinds:
        raise UserError(f"{name} does {' and '.join(learner.kinds)}, got tasks of {spec.kind}; choose other data")
    built = getattr(learner, "spec", None)
    if not isinstance(built, Spec):
        return
    if built.kind != spec.kind or tuple(built.input_shape) != tuple(spec.input_shape):
        raise UserError(
            f"this {name} was built for {built.kind} of inputs {tuple(built.input_shape)}, got {spec.kind} of "
            f"{tuple(spec.input_shape)}; evaluate on such data, or train on this"
        )
    if built.n_outputs != spec.n_outputs and (spec.kind != "classification" or not learner.any_way):
        change = f"pass n_way={built.n_outputs}" if spec.kind == "classification" else "choose such data"
        raise UserError(
            f"this {name} was built for {built.n_outputs} outputs, got tasks with {spec.n_outputs}; "
            f"{change}, or train another"
        )


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Put a module into ``eval`` mode without gradients, and each of its parts back into its own mode after.

    Args:
        learner: the module.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for m in learner.modules()]
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _score(
    learner: Learner,
    states: States,
    draw: Draw,
    device: torch.device | str,
    batching: str,
    chunk: int | None,
    on_progress: Progress | None,
) -> _Scored:
    if batching not in BATCHINGS:
        raise UserError(f"batching must be one of {', '.join(BATCHINGS)}, got {batching!r}")
    source = draw.source
    check_fits(learner, source.spec)
    started = time.perf_counter()
    learner.to(device)
    source.to(device)
    parts: list[tuple[dict[str, Tensor], Tensor | None]] = []
    answer: _Answer | None = None
    done = 0
    with evaluating(learner):
        for _, episodes in draw.chunks(CHUNK if chunk is None else chunk):
            n_outputs = _outputs(episodes, source.spec)
            if answer is None:
                _check_shapes(select(episodes, 0), source.spec._replace(n_outputs=n_outputs))
            # Labels of every episode, or a class that was never shown would pass for one that is hard to tell.
            check_classes(episodes, n_outputs, range(done, done + n_tasks(episodes)))
            if answer is None:
                answer = _batched(learner, states, batching, episodes)
            prediction = answer(episodes).double().cpu()  # (T, V, Q, W)
            _check_answer(prediction, (episodes.query.y.shape[1], n_outputs), learner, done)
            scores, bins = _metrics(prediction, episodes.query.y.cpu())
            parts.append((scores | _optimal(source, episodes, prediction.shape[1]), bins))
            done += n_tasks(episodes)
            if on_progress is not None:
                on_progress(done, draw.n_episodes)
    per_episode = {name: torch.cat([p[name] for p, _ in parts]) for name in parts[0][0]}
    bins = [b for _, b in parts if b is not None]
    pooled = torch.stack(bins).sum(0) if bins else None
    return _Scored(per_episode, pooled, time.perf_counter() - started, draw.fingerprint)


def _batched(learner: Learner, states: States, batching: str, episodes: Episode) -> _Answer:
    def one(sx: Tree, sy: Tensor, qx: Tree, n_way: int | None) -> Tensor:
        return torch.stack([learner.predict(state, qx) for state in states(Split(sx, sy, n_way))])

    def loop(batch: Episode) -> Tensor:
        return torch.stack([one(e.support.x, e.support.y, e.query.x, e.support.n_way) for e in unbind(batch)])

    def vmap(batch: Episode) -> Tensor:
        support, query = batch
        mapped = torch.func.vmap(lambda sx, sy, qx: one(sx, sy, qx, support.n_way))
        return mapped(support.x, support.y, query.x)

    if batching == "auto":
        batching = "vmap" if _vmap_pays(learner, episodes) and _agree(loop, vmap, episodes) else "loop"
    return vmap if batching == "vmap" else loop


def _vmap_pays(learner: Learner, episodes: Episode) -> bool:
    # A rule and not a stopwatch: the last digits of a score must not hang on how busy the machine was.
    on_cpu = episodes.support.y.device.type == "cpu"
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in learner.modules())
    return n_tasks(episodes) > 1 and not (on_cpu and convolves)


def _agree(loop: _Answer, vmap: _Answer, episodes: Episode) -> bool:
    few = select(episodes, slice(0, 2))
    expected = loop(few)
    try:
        got = vmap(few)
    except (RuntimeError, TypeError, ValueError):
        return False  # not every learner can be mapped: control flow on data, in-place writes, ...
    # Rounding moves answers by far less than this; a task seeing another task's numbers moves them by far more.
    tolerance = 1e-3 * max(1.0, float(expected.abs().max()))
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True)


def _outputs(episodes: Episode, spec: Spec) -> int:
    """Return W of these episodes, or O."""
    return spec.n_outputs if episodes.support.n_way is None else episodes.support.n_way


def _check_shapes(episode: Episode, spec: Spec) -> None:
    for split, what in zip(episode, ("support", "query"), strict=True):
        check_split(split, spec, what)


def _check_answer(prediction: Tensor, expected: tuple[int, int], learner: Learner, first_episode: int) -> None:
    name, got = type(learner).__name__, tuple(prediction.shape[2:])
    if got != expected:
        raise UserError(
            f"{name} answered with shape {got}, expected {expected} for {expected[0]} queries and {expected[1]} "
            "outputs; evaluate it on tasks like those it was built for"
        )
    bad = ~torch.isfinite(prediction).flatten(1).all(1)
    if bool(bad.any()):
        raise NotFiniteError(
            f"{name} answered with NaN or infinity on episode {first_episode + int(bad.nonzero()[0])}; "
            "expected finite predictions: use an earlier checkpoint, a smaller inner_lr or fewer inner steps"
        )


def _metrics(prediction: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    if y.dtype == torch.bool:
        y = y.unsqueeze(1).expand(prediction.shape)
        return {f.__name__: f(prediction, y) for f in (metrics.bits, metrics.wrong_bits)}, None
    if y.is_floating_point():
        return {"mse": metrics.mse(prediction, y.double().unsqueeze(1))}, None
    y = y.unsqueeze(1).expand(prediction.shape[:-1])
    scores = {f.__name__: f(prediction, y) for f in (metrics.accuracy, metrics.nll, metrics.brier)}
    return scores, metrics.confidence_bins(prediction, y).sum(0)


def optimal_score(source: TaskSource, *, n_episodes: int, seed: int, stream: str = TEST) -> float | None:
    """Score the best possible answers, without a learner.

    Args:
        source: the tasks.
        n_episodes: how many.
        seed: of the episodes, as of ``evaluate``.
        stream: see ``evaluate``.

    Returns:
        The mean of the main score; None where the source does not know the best.
    """
    found: list[Tensor] = []
    for _, episodes in Draw(source, n_episodes, seed, stream).chunks(CHUNK):
        scores = _optimal(source, episodes, 1)
        if not scores:
            return None
        found += scores.values()
    return float(torch.cat(found).double().mean())


def _optimal(source: TaskSource, episodes: Episode, n_states: int) -> dict[str, Tensor]:
    # The main score of the best possible answers, on the same episodes, where the source knows them.
    best = source.optimal(episodes)
    if best is None:
        return {}
    metric = metric_of(source.spec.kind)
    scores, _ = _metrics(best.double().cpu().unsqueeze(1), episodes.query.y.cpu())
    return {f"optimal_{metric}": scores[metric].expand(-1, n_states)}


def _device_of(learner: nn.Module) -> torch.device:
    tensor = next(iter([*learner.parameters(), *learner.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device
