"""Small learners and sources with known behaviour."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split
from kshot.data.image_tasks import ImageTasks
from kshot.data.images import ImageSet
from kshot.data.sinusoid import Sinusoid
from kshot.data.source import TaskSource


class Centroid(Learner):
    """Nearest class mean of the raw inputs, with a gain as its only parameter."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def embed(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def adapt(self, support: Split) -> Tensor:
        member = (support.y == torch.arange(support.ways(), device=support.y.device).unsqueeze(-1)).float()
        return member @ self.embed(support.x) / member.sum(-1, keepdim=True)

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return -self.gain * (self.embed(x)[:, None] - state).square().sum(-1)


class Line(Learner):
    """A line through the origin, fitted by gradient steps; `states` lists them."""

    kinds = ("regression",)

    def __init__(self, n_steps: int = 3) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.n_steps = n_steps

    def states(self, support: Split, n_steps: int | None = None) -> list[Tensor]:
        states = [self.slope]
        for _ in range(self.n_steps if n_steps is None else n_steps):
            gradient = torch.func.grad(lambda s: (s * support.x - support.y).square().mean())(states[-1])
            states.append(states[-1] - 0.01 * gradient)
        return states

    def adapt(self, support: Split) -> Tensor:
        return self.states(support)[-1]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return state * x


class Slopes(TaskSource):
    """y = slope * x with x of 1 and slope of +1 or -1: the error of any line is known in closed form."""

    name, spec, n_shot, n_query = "slopes", Spec("regression", (1,), 1), 2, 3

    def plan(self, n_tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"slope": torch.randint(0, 2, (n_tasks,), generator=generator) * 2.0 - 1}

    def episodes(self, plan: dict[str, Tensor]) -> Episode:
        def split(n: int) -> Split:
            x = torch.ones(len(plan["slope"]), n, 1)
            return Split(x, plan["slope"][:, None, None] * x)

        return Episode(split(self.n_shot), split(self.n_query))


def bars(n_classes: int = 12, each: int = 10, side: int = 12) -> ImageSet:
    """Class c is a bright bar at its own place, with noise."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(n_classes).repeat_interleave(each)
    images = torch.randint(0, 195, (len(labels), 1, side, side), generator=noise)
    images[torch.arange(len(labels)), 0, labels % side] += 60
    names = tuple(f"bar <{c}>" for c in range(n_classes))
    groups = torch.zeros(n_classes, dtype=torch.int64)
    return ImageSet(images.to(torch.uint8), labels, names, groups, ("all",))


@pytest.fixture
def learner() -> Centroid:
    return Centroid()


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def source() -> ImageTasks:
    return ImageTasks(bars(), name="bars", n_way=3, n_shot=1, n_query=4)


@pytest.fixture
def source_of_shots():
    return lambda n_shot: ImageTasks(bars(), name="bars", n_way=3, n_shot=n_shot, n_query=4)


@pytest.fixture
def varying() -> ImageTasks:
    return ImageTasks(bars(), name="bars", n_query=3, n_way_range=(2, 5), n_shot_range=(1, 4))


@pytest.fixture
def slopes() -> Slopes:
    return Slopes()


@pytest.fixture
def sinusoid() -> Sinusoid:
    return Sinusoid(n_shot=5, n_query=40)
