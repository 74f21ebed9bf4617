"""Collects what a report pictures of a learner, from the same episodes that ``evaluate`` scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Tree, UserError, tree_map
from kshot.core.episode import unbind
from kshot.data.source import TaskSource
from kshot.evaluation.draw import Draw, class_names
from kshot.evaluation.evaluate import check_fits, evaluating, states_of
from kshot.evaluation.gather_reading import reading_picture
from kshot.evaluation.gather_sequence import sequence_picture
from kshot.evaluation.pictures import (
    Answer,
    ClassRow,
    Confusion,
    Embedding,
    EpisodePicture,
    Pictures,
    ReadingPicture,
    TaskPicture,
    to_picture,
)

MAX_ROWS, MAX_SUPPORT, MAX_QUERIES = 10, 5, 8
N_CONFUSIONS, N_TASKS, N_GRID = 6, 4, 161


class _Seen(NamedTuple):
    """One answered episode, on the CPU: logits (Q, W) and the name of each class."""

    episode: Episode
    logits: Tensor
    names: tuple[str, ...]
    named: bool

    @property
    def answers(self) -> Tensor:
        return self.logits.argmax(-1)

    @property
    def accuracy(self) -> float:
        return float((self.answers == self.episode.query.y).double().mean())


def gather(
    learner: Learner,
    source: TaskSource,
    *,
    seed: int = 0,
    n_episodes: int = 64,
    n_steps: int | None = None,
    device: torch.device | str | None = None,
) -> Pictures:
    """Picture a learner at work: sampled episodes, confused classes, an embedding; or regression tasks; or a sequence.

    Shown are the first episode of the seed (not picked) and the hardest of ``n_episodes``.

    Args:
        learner: what is pictured; an ``embed(x)`` method or ``backbone`` module gives the scatter, a ``states`` method
            the predictions step by step.
        source: the tasks.
        seed: as given to ``evaluate``, to picture the episodes that were scored.
        n_episodes: how many to look at.
        n_steps: inner steps of regression tasks; the learner's own number if None.
        device: where to run; where the learner is if None.

    Returns:
        The pictures; parts that do not apply are empty.

    Raises:
        UserError: the learner does not fit the tasks.
    """
    check_fits(learner, source.spec)
    if device is not None:
        learner.to(device)
    source.to(device or next((t.device for t in learner.parameters()), torch.device("cpu")))
    with evaluating(learner):
        if source.spec.kind == "sequence":
            return Pictures(sequences=[sequence_picture(learner, source, seed=seed)])
        if source.spec.kind == "regression":
            return Pictures(tasks=_tasks(learner, source, seed, n_steps))
        seen = _answered(learner, source, n_episodes, seed)
        embedding = _embedding(learner, seen[0])
        readings = _readings(learner, seen[0].episode, seed)
    if not _pictured(source.spec.input_shape):
        return Pictures(embedding=embedding, readings=readings)
    return Pictures(_episodes(seen), _confusions(seen), len(seen), embedding, readings=readings)


def _pictured(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3)


def _answered(learner: Learner, source: TaskSource, n_episodes: int, seed: int) -> list[_Seen]:
    seen = []
    for plan, batch in Draw(source, n_episodes, seed).chunks(8):
        named = class_names(source, plan)
        for i, episode in enumerate(unbind(batch)):
            logits = learner.predict(learner.adapt(episode.support), episode.query.x).float().cpu()
            here = Episode(*(s._replace(x=_to_cpu(s.x), y=s.y.cpu()) for s in episode))
            names = named[i] if named is not None else tuple(f"class {w + 1}" for w in range(logits.shape[-1]))
            seen.append(_Seen(here, logits, names, named is not None))
    return seen


def _readings(learner: Learner, episode: Episode, seed: int) -> list[ReadingPicture]:
    device = next((t.device for t in learner.parameters()), torch.device("cpu"))
    there = Episode(*(s._replace(x=tree_map(lambda t: t.to(device), s.x), y=s.y.to(device)) for s in episode))
    found = reading_picture(learner, there, seed=seed)
    return [] if found is None else [found]


def _to_cpu(x: Tree) -> Tree:
    return x.cpu() if isinstance(x, Tensor) else x


def _episodes(seen: list[_Seen]) -> list[EpisodePicture]:
    pictures = [_picture(seen[0], "The first episode")]
    hardest = min(range(len(seen)), key=lambda i: seen[i].accuracy)
    if hardest > 0 and seen[hardest].accuracy < seen[0].accuracy:
        pictures.append(_picture(seen[hardest], f"The hardest of {len(seen)} episodes"))
    return pictures


def _picture(seen: _Seen, title: str) -> EpisodePicture:
    (support, query), n_way = seen.episode, seen.logits.shape[-1]
    chance = seen.logits.softmax(-1)
    rows = []
    for label in range(min(n_way, MAX_ROWS)):
        mine = (query.y == label).nonzero().flatten().tolist()[:MAX_QUERIES]
        answers = [Answer(to_picture(query.x[q]), label, int(seen.answers[q]), float(chance[q].max())) for q in mine]
        shots = list(to_picture(support.x[support.y == label][:MAX_SUPPORT]))
        rows.append(ClassRow(seen.names[label], shots, answers))
    shown = max(len(row.answers) for row in rows)
    return EpisodePicture(title, seen.accuracy, len(query.y), n_way, rows, shown)


def _confusions(seen: list[_Seen]) -> list[Confusion]:
    # Pairs of names are pooled over episodes; classes without names mean something within their own episode only.
    wrong: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    for e, one in enumerate(seen):
        y, answers = one.episode.query.y.tolist(), one.answers.tolist()
        for q, (right, answer) in enumerate(zip(y, answers, strict=True)):
            if right != answer:
                wrong[_pair(one, e, right, answer)].append((e, q))
    worst = sorted(wrong, key=lambda pair: -len(wrong[pair]))[:N_CONFUSIONS]
    return [_confusion(seen, pair, wrong[pair]) for pair in worst]


def _pair(one: _Seen, e: int, right: int, answer: int) -> tuple:
    return (one.names[right], one.names[answer], None if one.named else e)


def _confusion(seen: list[_Seen], pair: tuple, misses: list[tuple[int, int]]) -> Confusion:
    right, taken, only = pair
    queries = 0
    for e, one in enumerate(seen):
        if only in (None, e) and right in one.names and taken in one.names:
            queries += int((one.episode.query.y == one.names.index(right)).sum())
    e, q = misses[0]
    support, query = seen[e].episode

    def shot(name: str) -> Tensor:
        return to_picture(support.x[support.y == seen[e].names.index(name)][0])

    return Confusion(right, taken, len(misses), queries, to_picture(query.x[q]), shot(right), shot(taken))


def embedder(learner: Learner) -> Callable[[Tree], Tensor] | None:
    """Find how a learner embeds examples.

    Args:
        learner: one with an ``embed(x)`` method or a ``backbone`` module.

    Returns:
        A function (N, ...) -> (N, ...), or None.
    """
    embed = getattr(learner, "embed", None)
    if callable(embed):
        return cast("Callable[[Tree], Tensor]", embed)
    backbone = getattr(learner, "backbone", None)
    return backbone if isinstance(backbone, torch.nn.Module) else None


def _embedding(learner: Learner, seen: _Seen) -> Embedding | None:
    embed = embedder(learner)
    support, query = seen.episode
    if embed is None or not isinstance(support.x, Tensor):
        return None
    device = next((t.device for t in learner.parameters()), torch.device("cpu"))
    z = embed(torch.cat([support.x, query.x]).to(device)).flatten(1).double().cpu()
    labels = torch.cat([support.y, query.y])
    keep = labels < MAX_ROWS
    if z.shape[1] < 2 or not bool(torch.isfinite(z).all()):
        return None
    points, explained = principal_plane(z[keep])
    n_way = min(seen.logits.shape[-1], MAX_ROWS)
    first = [support.x[support.y == w][0] for w in range(n_way)]
    images = [to_picture(x) for x in first] if _pictured(tuple(support.x.shape[1:])) else []
    n_support = int((support.y < MAX_ROWS).sum())
    return Embedding(points, labels[keep], n_support, list(seen.names[:n_way]), images, explained)


def principal_plane(z: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Project points onto their two first principal components.

    Args:
        z: (N, D), D at least 2.

    Returns:
        (N, 2), and the shares of the variance along each; the sign of an axis makes its largest entry positive, so
        that the same points always give the same picture.

    Raises:
        UserError: fewer than two points.
    """
    if len(z) < 2:
        raise UserError(f"expected at least two points for a scatter, got {len(z)}; sample more examples")
    centred = z - z.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    signs = torch.sign(v[:2].gather(1, v[:2].abs().argmax(1, keepdim=True))).squeeze(1)
    share = (s**2 / (s**2).sum().clamp_min(1e-30))[:2].tolist()
    return u[:, :2] * s[:2] * signs, (share[0], share[1])


def _tasks(learner: Learner, source: TaskSource, seed: int, n_steps: int | None) -> list[TaskPicture]:
    if tuple(source.spec.input_shape) != (1,) or source.spec.n_outputs != 1:
        return []
    batches = (batch for _, batch in Draw(source, N_TASKS, seed).chunks(N_TASKS))
    return [_task(learner, episode, n_steps) for batch in batches for episode in unbind(batch)]


def _task(learner: Learner, episode: Episode, n_steps: int | None) -> TaskPicture:
    support, query = episode
    x = torch.cat([support.x, query.x])
    grid = torch.linspace(float(x.min()), float(x.max()), N_GRID, device=x.device, dtype=x.dtype)
    listed = states_of(learner, n_steps)
    if listed is not None:
        states = listed(support)
        last = len(states) - 1
        chosen = {_step_label(i): states[i] for i in sorted({0, min(1, last), last})}
    else:
        chosen = {"after adaptation": learner.adapt(support)}
    final = next(reversed(chosen.values()))
    error = float((learner.predict(final, query.x) - query.y).double().square().mean())
    lines = {label: learner.predict(s, grid[:, None])[:, 0].cpu() for label, s in chosen.items()}
    truth = torch.cat([query.x, query.y], 1).cpu()
    points = torch.cat([support.x, support.y], 1).cpu()
    return TaskPicture(points, truth[truth[:, 0].argsort()], grid.cpu(), lines, error)


def _step_label(step: int) -> str:
    return "before" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
