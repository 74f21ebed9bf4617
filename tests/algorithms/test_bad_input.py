"""What every method does with odd tasks: one class, one label many times, equal examples, features without length."""

import pytest
import torch

from kshot.algorithms import Baseline
from kshot.core import Episode, Learner, Spec, Split, UserError, methods
from kshot.core.checks import check_episode
from kshot.evaluation import evaluate
from kshot.nn.flat import Flat
from kshot.testing import synthetic_episode, tiny_backbone

FAMILIES = ("metric", "solver", "finetune", "transductive")
SPEC = Spec("classification", (6,), 3)
#: Options that compute by another formula than the defaults, each tried as a method of its own.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "dkt": [{"kernel": "cosine"}, {"kernel": "linear"}, {"kernel": "rbf"}],
    "gaussian_protonet": [{"covariance": "diagonal"}],
    "matching": [{"fce": True, "n_processing": 2}],
    "protonet": [{"distance": "cosine"}],
    "relation": [{"combine": "sum"}],
    "simpleshot": [{"transform": "un"}, {"transform": "l2n"}],
}
SHORT = {"baseline": {"n_inner_steps": 5}, "baselinepp": {"n_inner_steps": 5}, "tim": {"n_steps": 5}}
Case = tuple[str, dict[str, object]]


def cases(*families: str) -> list[object]:
    names = [name for name, m in methods().items() if m.family in families]
    each = [(name, more) for name in names for more in ({}, *VARIANTS.get(name, []))]
    return [pytest.param((name, more), id="-".join([name, *map(str, more.values())])) for name, more in each]


EVERY = pytest.mark.parametrize("case", cases(*FAMILIES))


def built(case: Case) -> Learner:
    name, more = case
    gradient = methods()[name].family == "gradient"
    backbone = tiny_backbone(SPEC, "none") if gradient else Flat((6,))
    return methods()[name].learner.from_backbone(backbone, SPEC, **SHORT.get(name, {}), **more).eval()


def seen_by(case: Case, x: torch.Tensor) -> torch.Tensor:
    """What compares drawings takes the same numbers as drawings of six pixels."""
    return x.reshape(-1, 1, 2, 3) if case[0] == "hausdorff" else x


def answers(case: Case, support: Split, x: torch.Tensor) -> torch.Tensor:
    learner, support = built(case), support._replace(x=seen_by(case, support.x))
    with torch.no_grad():
        return learner.predict(learner.adapt(support), seen_by(case, x))


@EVERY
def test_one_class_is_a_task_with_one_answer(case: Case) -> None:
    got = answers(case, Split(torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), 1), torch.rand(3, 6))
    assert got.shape == (3, 1)
    assert bool(torch.isfinite(got).all())


@EVERY
def test_equal_examples_make_no_system_singular(case: Case) -> None:
    """The same example again and again, and even under two labels."""
    row = torch.rand(1, 6)
    got = answers(case, Split(row.expand(6, -1).contiguous(), torch.tensor([0, 0, 0, 0, 1, 2]), 3), torch.rand(4, 6))
    assert bool(torch.isfinite(got).all())


@EVERY
def test_features_without_length_have_an_answer(case: Case) -> None:
    one = synthetic_episode(SPEC, dtype=torch.float32)
    zeros = one.support.x.clone()
    zeros[one.support.y == 1] = 0
    got = answers(case, Split(zeros, one.support.y, 3), torch.cat([one.query.x, torch.zeros(1, 6)]))
    assert bool(torch.isfinite(got).all())
    learner = built(case).train()
    if learner.trained_on == "episodes" and any(p.requires_grad for p in learner.parameters()):
        learner.outer_loss(Episode(Split(zeros, one.support.y, 3), one.query)).backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in learner.parameters())


def test_a_query_of_a_class_without_support_is_refused_at_the_door() -> None:
    one = synthetic_episode(SPEC)
    missing = Split(one.support.x, one.support.y.clamp(max=1), 3)
    with pytest.raises(UserError, match="support has 2 classes but n_way=3: class 2 has no example"):
        check_episode(Episode(missing, one.query), SPEC)


#: What ``adapt`` makes of a class without support when it is called directly, which no door has checked: that class
#: alone is NaN or minus infinity, or all answers are. All other methods answer as if it were any class.
APART = (
    *("bd_cspn", "deepemd", "gaussian_protonet", "hausdorff", "matching", "nearest", "protonet", "relation"),
    "simpleshot",
)
NOTHING = ("baselinepp", "feat", "finetune", "laplacianshot", "protomaml", "pt_map", "tim", "transductive_finetuning")


@pytest.mark.parametrize("case", cases(*FAMILIES, "gradient"))
def test_adapt_called_directly_leaves_a_class_without_support_to_its_caller(case: Case) -> None:
    one = synthetic_episode(SPEC, dtype=torch.float32)
    lacking = Split(one.support.x, one.support.y.clamp(max=1), 3)
    finite = torch.isfinite(answers(case, lacking, one.query.x)).all(0).tolist()
    # A sum over no example is zero, where an average is 0 / 0.
    apart = case[0] in APART and case[1].get("combine") != "sum"
    assert finite == ([False] * 3 if case[0] in NOTHING else [True, True, not apart])
    with pytest.raises(UserError, match="class 2 has no example"):
        check_episode(Episode(lacking, one.query), SPEC)


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
