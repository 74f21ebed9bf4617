"""The protocol's defaults: the outer loss, transductivity by layers, options as the command line sees them."""

import math

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, UserError, task_loss
from kshot.core.errors import DivergedError
from kshot.core.learner import module_is_transductive, options_of
from kshot.nn.norm import Norm
from kshot.testing import synthetic_episode
from kshot.testing.synthetic import SPECS


class Scaled(Learner):
    """Answers with the class means of inputs that pass through a network."""

    def __init__(self, network: nn.Module, *, scale: float = 1.0, kind: str = "a") -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def adapt(self, support: Split) -> Tensor:
        z = self.network(support.x).flatten(1)
        return torch.stack([z[support.y == c].mean(0) for c in range(support.ways())])

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return self.scale * self.network(x).flatten(1) @ state.T


def test_the_outer_loss_is_that_of_the_queries() -> None:
    learner, (support, query) = Scaled(nn.Identity()), synthetic_episode(SPECS["classification"])
    expected = nn.functional.cross_entropy(learner.predict(learner.adapt(support), query.x), query.y)
    assert torch.equal(learner.outer_loss(Episode(support, query)), expected)
    assert torch.equal(learner(Episode(support, query)), expected)


def test_task_loss_follows_the_targets() -> None:
    logits, y = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert float(task_loss(logits, y)) == pytest.approx(0.6931472)
    assert float(task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]))) == 2.5
    odds = torch.tensor([[3.0, 1 / 3]], dtype=torch.float64).log()
    right, wrong = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    assert float(task_loss(odds, right)) == pytest.approx(-math.log(0.75))
    assert float(task_loss(odds, wrong)) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


TRANSDUCTIVE = {
    "a batch norm without running statistics": (nn.BatchNorm2d(2, track_running_stats=False), True),
    "a batch norm with them": (nn.BatchNorm2d(2), False),
    "statistics of the episode": (Norm(2, "episode"), True),
    "running statistics": (Norm(2, "running"), False),
    "a convolution": (nn.Conv2d(1, 2, 3), False),
}


@pytest.mark.parametrize(("layer", "expected"), TRANSDUCTIVE.values(), ids=TRANSDUCTIVE.keys())
def test_a_layer_makes_its_learner_transductive(layer: nn.Module, expected: bool) -> None:
    assert module_is_transductive(layer) is expected
    assert Scaled(nn.Sequential(nn.Identity(), layer)).transductive is expected


def test_options_are_the_keyword_parameters() -> None:
    options = options_of(Scaled)
    assert list(options) == ["scale", "kind"]
    assert options["scale"].default == 1.0
    assert options["scale"].annotation is float


def test_options_without_annotation_or_default_are_refused() -> None:
    class Bare(Scaled):
        def __init__(self, network: nn.Module, *, scale=1.0) -> None:
            super().__init__(network)

    class Needed(Scaled):
        def __init__(self, network: nn.Module, *, scale: float) -> None:
            super().__init__(network)

    for cls in (Bare, Needed):
        with pytest.raises(UserError, match=r"option 'scale' of .* needs an annotation and a default"):
            options_of(cls)


def test_building_around_a_backbone() -> None:
    spec = Spec("classification", (1,), 2)
    learner = Scaled.from_backbone(nn.Identity(), spec, scale=3.0)
    assert learner.scale == 3.0
    assert Scaled.paper_options(spec) == {}
    assert learner.exact_gradient
    assert not learner.fused


def test_a_divergence_names_step_and_tensor() -> None:
    error = DivergedError(7, "the loss", "lower the rate")
    assert (error.step, error.what) == (7, "the loss")
    assert str(error) == "the loss is not finite at step 7; lower the rate"
