from __future__ import annotations

import pytest
import torch

from kshot.core import Episode, Spec, Split, UserError
from kshot.data.source import TaskSource
from kshot.evaluation import evaluate, gather
from kshot.evaluation.draw import Draw, class_names
from kshot.evaluation.gather import principal_plane, to_picture


def test_the_first_episode_is_the_first_that_is_scored(learner, source):
    scores = evaluate(learner, source, n_episodes=40)
    first, hardest = gather(learner, source, n_episodes=40).episodes

    assert first.accuracy == pytest.approx(float(scores.per_episode["accuracy"][0]))
    assert hardest.accuracy == pytest.approx(float(scores.per_episode["accuracy"].min()))
    assert "hardest of 40" in hardest.title


def test_pictured_answers_are_the_learners(learner, source):
    picture = gather(learner, source, n_episodes=1).episodes[0]
    drawn = next(Draw(source, 1, 0).chunks(1))
    logits = learner.predict(
        learner.adapt(Split(drawn.episodes.support.x[0], drawn.episodes.support.y[0], 3)), drawn.episodes.query.x[0]
    )

    shown = [a for row in picture.rows for a in row.answers]
    assert [a.predicted for a in shown] == logits.argmax(1).tolist()
    assert [a.confidence for a in shown] == pytest.approx(logits.softmax(1).max(1).values.tolist(), abs=1e-5)
    assert [row.name for row in picture.rows] == list((class_names(source, drawn.plan) or [])[0])
    assert torch.equal(shown[0].image, to_picture(drawn.episodes.query.x[0, 0]))
    assert picture.n_queries == 12


def test_many_examples_are_cut_and_counted(learner, source_of_shots):
    source = source_of_shots(5)
    source.sampler.n_query = source.n_query = 4
    picture = gather(learner, source, n_episodes=1).episodes[0]
    assert len(picture.rows[0].support) == 5
    assert picture.shown == 4


def test_confusions_count_misses_and_chances(learner, source):
    n = 30
    found = gather(learner, source, n_episodes=n).confusions
    counted: dict[tuple[str, str], list[int]] = {}
    for plan, batch in Draw(source, n, 0).chunks(8):
        names = class_names(source, plan)
        for t, own in enumerate(names or []):
            state = learner.adapt(Split(batch.support.x[t], batch.support.y[t], 3))
            answers = learner.predict(state, batch.query.x[t]).argmax(1).tolist()
            truth = batch.query.y[t].tolist()
            for right in range(3):
                for taken in set(range(3)) - {right}:
                    entry = counted.setdefault((own[right], own[taken]), [0, 0])
                    entry[0] += sum(y == right and a == taken for y, a in zip(truth, answers, strict=True))
                    entry[1] += truth.count(right)

    assert [c.times for c in found] == sorted((v[0] for v in counted.values()), reverse=True)[: len(found)]
    for c in found:
        assert [c.times, c.queries] == counted[c.right, c.taken_for]


def test_embedding_is_the_first_episodes(learner, source):
    e = gather(learner, source, n_episodes=2).embedding
    assert e is not None
    assert e.points.shape == (3 + 12, 2)
    assert e.n_support == 3
    assert e.labels[:3].tolist() == [0, 1, 2]
    assert len(e.images) == len(e.names) == 3


def test_learner_that_embeds_nothing_has_no_scatter(learner, source):
    class Blind(type(learner)):
        embed = None

        def adapt(self, support):
            return torch.stack([support.x[support.y == w].mean(0).flatten() for w in range(3)])

        def predict(self, state, x):
            return -torch.cdist(x.flatten(1), state)

    assert gather(Blind(), source, n_episodes=2).embedding is None


def test_principal_plane_keeps_what_lies_in_a_plane():
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(20, 2, generator=g, dtype=torch.float64) * torch.tensor([5.0, 1.0])
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q[:2]

    points, explained = principal_plane(flat @ turn + 3.0)

    assert torch.allclose(torch.cdist(points, points), torch.cdist(flat, flat), atol=1e-8)
    assert sum(explained) == pytest.approx(1.0)
    assert explained[0] > explained[1]
    with pytest.raises(UserError, match="at least two points"):
        principal_plane(torch.ones(1, 3))


def test_regression_tasks_show_every_stage(line, sinusoid):
    tasks = gather(line, sinusoid, n_steps=4).tasks
    assert len(tasks) == 4
    assert list(tasks[0].predictions) == ["before", "after 1 step", "after 4 steps"]
    assert torch.equal(tasks[0].predictions["before"], torch.zeros(161))
    assert bool((tasks[0].truth[1:, 0] >= tasks[0].truth[:-1, 0]).all())
    drawn = next(Draw(sinusoid, 1, 0).chunks(1)).episodes
    slope = line.states(Split(drawn.support.x[0], drawn.support.y[0]), 4)[-1]
    slope = slope.detach()
    assert tasks[0].mse == pytest.approx(float((slope * drawn.query.x[0] - drawn.query.y[0]).square().mean()), rel=1e-5)


def test_varying_episodes_are_pictured(learner, varying):
    pictures = gather(learner, varying, n_episodes=6)
    assert pictures.episodes
    assert pictures.episodes[0].n_way == len(pictures.episodes[0].rows)


class Vectors(TaskSource):
    """Two classes of plain vectors without names."""

    name, spec, n_shot, n_query = "vectors", Spec("classification", (4,), 2), 1, 3

    def plan(self, n_tasks, generator):
        return torch.randn(n_tasks, 8, 4, generator=generator)

    def episodes(self, plan):
        y = torch.tensor([0, 1]).repeat(len(plan), 4)
        return Episode(Split(plan[:, :2], y[:, :2], 2), Split(plan[:, 2:], y[:, 2:], 2))


def test_inputs_that_are_no_pictures_give_the_scatter_alone(learner):
    pictures = gather(learner, Vectors(), n_episodes=3)
    assert (pictures.episodes, pictures.confusions, pictures.tasks) == ([], [], [])
    assert pictures.embedding is not None
    assert pictures.embedding.images == []
    assert pictures.embedding.names == ["class 1", "class 2"]


def test_gathering_leaves_the_learner_as_it_was(learner, source):
    learner.train()
    gather(learner, source, n_episodes=2)
    assert learner.training
    with pytest.raises(UserError, match="does classification"):
        gather(learner, type("R", (Vectors,), {"spec": Spec("regression", (4,), 2)})())
