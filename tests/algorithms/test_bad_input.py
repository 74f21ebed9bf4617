"""What every method does with odd tasks: one class, one label many times, equal examples, features without length."""

import pytest
import torch

from kshot.algorithms import Baseline
from kshot.core import Episode, Learner, Spec, Split, UserError, methods
from kshot.core.checks import check_episode
from kshot.evaluation import evaluate
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode

OURS = [
    name
    for name, m in methods().items()
    if m.family in ("metric", "solver", "finetune", "transductive") and name != "hausdorff"
]
SPEC = Spec("classification", (6,), 3)
SHORT = {"baseline": {"n_inner_steps": 5}, "baselinepp": {"n_inner_steps": 5}, "tim": {"n_steps": 5}}


def built(name: str) -> Learner:
    return methods()[name].learner.from_backbone(Flat((6,)), SPEC, **SHORT.get(name, {})).eval()


def answers(name: str, support: Split, x: torch.Tensor) -> torch.Tensor:
    learner = built(name)
    with torch.no_grad():
        return learner.predict(learner.adapt(support), x)


@pytest.mark.parametrize("name", OURS)
def test_one_class_is_a_task_with_one_answer(name: str) -> None:
    got = answers(name, Split(torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), 1), torch.rand(3, 6))
    assert got.shape == (3, 1)
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("name", OURS)
def test_equal_examples_make_no_system_singular(name: str) -> None:
    """The same example again and again, and even under two labels."""
    row = torch.rand(1, 6)
    got = answers(name, Split(row.expand(6, -1).contiguous(), torch.tensor([0, 0, 0, 0, 1, 2]), 3), torch.rand(4, 6))
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("name", OURS)
def test_features_without_length_have_an_answer(name: str) -> None:
    one = synthetic_episode(SPEC, dtype=torch.float32)
    zeros = one.support.x.clone()
    zeros[one.support.y == 1] = 0
    got = answers(name, Split(zeros, one.support.y, 3), torch.cat([one.query.x, torch.zeros(1, 6)]))
    assert bool(torch.isfinite(got).all())
    learner = built(name).train()
    if learner.trained_on == "episodes" and any(p.requires_grad for p in learner.parameters()):
        learner.outer_loss(Episode(Split(zeros, one.support.y, 3), one.query)).backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in learner.parameters())


def test_a_query_of_a_class_without_support_is_refused_at_the_door() -> None:
    one = synthetic_episode(SPEC)
    missing = Split(one.support.x, one.support.y.clamp(max=1), 3)
    with pytest.raises(UserError, match="support has 2 classes but n_way=3: class 2 has no example"):
        check_episode(Episode(missing, one.query), SPEC)


def test_batches_of_all_classes_are_no_tasks_to_be_evaluated_on() -> None:
    from kshot.data.class_batches import ClassBatches
    from kshot.data.features import FeatureSet
    from kshot.data.image_tasks import ImageTasks

    features = FeatureSet(
        torch.rand(40, 6), torch.arange(8).repeat(5), tuple("abcdefgh"), torch.zeros(8, dtype=torch.int64)
    )
    source = ClassBatches(ImageTasks(features, name="letters", n_way=2, n_shot=1, n_query=1))
    with pytest.raises(UserError, match=r"class \d has no example"):
        evaluate(Baseline.from_backbone(Flat((6,)), source.spec), source, n_episodes=2)
