"""Learners that are broken on purpose: each is caught, by the clause that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kshot.core import Episode, Learner, Spec, Split, task_loss
from kshot.testing import CLAUSES, ContractError, check_learner


class Means(NamedTuple):
    means: Tensor


class Centroids(Learner):
    """Class means behind a linear layer: the sound learner that the broken ones derive from."""

    default_normalisation = "layer"

    def __init__(self, backbone: nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(int(backbone.n_features), 4)  # pyright: ignore[reportArgumentType]
        self.scale = scale
        self.register_buffer("calls", torch.zeros(()))

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(self.backbone(x)).tanh()

    def adapt(self, support: Split) -> Any:
        return Means(self.means(self.embed(support.x), support))

    def means(self, z: Tensor, support: Split) -> Tensor:
        member = nn.functional.one_hot(support.y, support.ways()).to(z.dtype)
        return member.T @ z / member.sum(0).unsqueeze(-1)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return self.logits(self.embed(x), state.means)

    def logits(self, z: Tensor, means: Tensor) -> Tensor:
        return -((z[:, None] - means) ** 2).sum(-1) * self.scale


BROKEN: list[tuple[str, str, type[Learner]]] = []


def broken(clause: str, message: str) -> Callable[[type[Learner]], type[Learner]]:
    def add(cls: type[Learner]) -> type[Learner]:
        BROKEN.append((clause, message, cls))
        return cls

    return add


@broken("declares", "kinds")
class UnknownKind(Centroids):
    kinds = ("classification", "magic")


@broken("declares", "normalisation must be one of")
class UnknownNormalisation(Centroids):
    default_normalisation = "batch"


@broken("declares", "options that a command line can offer")
class OptionWithoutAnnotation(Centroids):
    def __init__(self, backbone: nn.Module, *, scale=1.0) -> None:
        super().__init__(backbone, scale=scale)


@broken("declares", "`native` to be True or False")
class NativeIsAText(Centroids):
    native = "yes"  # pyright: ignore[reportAssignmentType]


@broken("shapes", "answers of shape .9, 3")
class AnswersTransposed(Centroids):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x).T


@broken("shapes", "answers of torch.float64")
class FixedDtype(Centroids):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x).float()


@broken("shapes", "finite answers for 1 shot")
class DeviationOfOneShot(Centroids):
    def means(self, z: Tensor, support: Split) -> Tensor:
        each = [z[support.y == c] for c in range(support.ways())]
        return torch.stack([e.mean(0) + ((e - e.mean(0)) ** 2).sum(0) / (len(e) - 1) for e in each])


@broken("shapes", "finite scalar")
class LossOfEveryQuery(Centroids):
    def outer_loss(self, episode: Episode) -> Tensor:
        logits = self.predict(self.adapt(episode.support), episode.query.x)
        return nn.functional.cross_entropy(logits, episode.query.y, reduction="none")


@broken("shapes", "ValueError: expected 2 shots")
class NeedsEqualShots(Centroids):
    def adapt(self, support: Split) -> Any:
        if len(set(torch.bincount(support.y).tolist())) > 1:
            raise ValueError("expected 2 shots")
        return super().adapt(support)


@broken("pure", "state")
class StoresStateOnSelf(Centroids):
    def adapt(self, support: Split) -> Any:
        self.state = super().adapt(support)
        return self.state


@broken("pure", "history")
class GrowsAList(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.history = {"seen": [0]}

    def predict(self, state: Any, x: Tensor) -> Tensor:
        self.history["seen"].append(len(x))
        return super().predict(state, x)


@broken("pure", "calls")
class CountsInABuffer(Centroids):
    def adapt(self, support: Split) -> Any:
        self.calls += 1
        return super().adapt(support)


@broken("pure", "linear._parameters.weight")
class TrainsItself(Centroids):
    def adapt(self, support: Split) -> Any:
        with torch.no_grad():
            self.linear.weight.mul_(1.01)
        return super().adapt(support)


@broken("pure", "grad")
class LeavesGradients(Centroids):
    def adapt(self, support: Split) -> Any:
        with torch.enable_grad():
            self.embed(support.x).sum().backward()
        return super().adapt(support)


@broken("pure", "generator")
class KeepsAGenerator(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.generator = torch.Generator().manual_seed(0)

    def adapt(self, support: Split) -> Any:
        state = super().adapt(support)
        return Means(state.means + 1e-3 * torch.rand(1, generator=self.generator, dtype=state.means.dtype))


@broken("pure", "`outer_loss` in training mode")
class RemembersTheLoss(Centroids):
    def outer_loss(self, episode: Episode) -> Tensor:
        loss = super().outer_loss(episode)
        self.last = float(loss.detach()) if self.training else 0.0
        return loss

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.last = 0.0


@broken("repeats", "two answers in evaluation mode")
class RandomAnswers(Centroids):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        logits = super().predict(state, x)
        return logits + torch.rand_like(logits)


@broken("repeats", "not to be seeded")
class SeedsTheGlobalGenerator(Centroids):
    def adapt(self, support: Split) -> Any:
        torch.manual_seed(0)
        return super().adapt(support)


_count = 0


@broken("repeats", "two answers in evaluation mode")
class CountsOutsideOfItself(Centroids):
    def adapt(self, support: Split) -> Any:
        global _count
        _count += 1
        return Means(super().adapt(support).means * _count)


@broken("support", "of class 2")
class IgnoresTheLastClass(Centroids):
    def means(self, z: Tensor, support: Split) -> Tensor:
        means = super().means(z, support)
        return torch.cat([means[:-1], torch.zeros_like(means[-1:])])


@broken("order", "reordering the support")
class AssumesSortedLabels(Centroids):
    def means(self, z: Tensor, support: Split) -> Tensor:
        if len(z) % support.ways():
            return super().means(z, support)
        return z.unflatten(0, (support.ways(), -1)).mean(1)


@broken("order", "reordered queries")
class AnswersByPlace(Centroids):
    @property
    def transductive(self) -> bool:
        return True

    def predict(self, state: Any, x: Tensor) -> Tensor:
        logits = super().predict(state, x)
        return logits * torch.arange(1, len(x) + 1).to(logits)[:, None]


@broken("labels", "logits of relabelled classes")
class PrefersTheFirstClass(Centroids):
    def logits(self, z: Tensor, means: Tensor) -> Tensor:
        return super().logits(z, means) + torch.linspace(1, 0, len(means)).to(z)


@broken("leak", "each query alone")
class CentresTheQueries(Centroids):
    def logits(self, z: Tensor, means: Tensor) -> Tensor:
        return super().logits(z - z.mean(0), means - means.mean(0))


@broken("leak", "let no query change the state")
class LearnsFromQueries(Centroids):
    def adapt(self, support: Split) -> Any:
        return {"means": super().adapt(support).means}

    def predict(self, state: Any, x: Tensor) -> Tensor:
        z = self.embed(x)
        logits = self.logits(z, state["means"])
        # Only the single queries of the leak test are let in, so that no other clause is met before.
        if len(x) == 1 and not torch.is_grad_enabled():
            state["means"] = state["means"] + 0.1 * z.mean(0)
        return logits


@broken("ways", "5-way")
class BoundToThreeClasses(Centroids):
    def predict(self, state: Any, x: Tensor) -> Tensor:
        return super().predict(state, x)[:, :3]


@dataclass
class Opaque:
    means: Tensor


@broken("state", "got a Opaque")
class StateIsAnObject(Centroids):
    def adapt(self, support: Split) -> Any:
        return Opaque(super().adapt(support).means)


@broken("state", "with a tensor in it")
class StateHoldsNoTensor(Centroids):
    def adapt(self, support: Split) -> Any:
        return {"means": super().adapt(support).means.tolist()}

    def predict(self, state: Any, x: Tensor) -> Tensor:
        z = self.embed(x)
        return self.logits(z, torch.tensor(state["means"], dtype=z.dtype))


@broken("checkpoint", "after loading the state_dict")
class HidesATensor(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.hidden = torch.rand(4, dtype=torch.float64)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) + self.hidden.to(x.dtype)

    def logits(self, z: Tensor, means: Tensor) -> Tensor:
        return super().logits(z**2, means**2)


@broken("reach", "none for extra")
class UnusedParameter(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.extra = nn.Parameter(torch.zeros(1))


@broken("reach", "none for backbone")
class DetachesTheBackbone(Centroids):
    def embed(self, x: Tensor) -> Tensor:
        return self.linear(self.backbone(x).detach())


@broken("reach", "a constant")
class LossIsAConstant(Centroids):
    def outer_loss(self, episode: Episode) -> Tensor:
        return super().outer_loss(episode).detach()


@broken("reach", "at least one parameter")
class NothingToLearn(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.requires_grad_(False)


@broken("reach", "zero for shift, though moving it")
class RoundsAParameter(Centroids):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.shift = nn.Parameter(torch.full((4,), 0.5))

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) * (1 + self.shift.detach() + 0 * self.shift)


@broken("gradient", "to be its derivative, got .* where differences give")
class DetachesThePrototypes(Centroids):
    def adapt(self, support: Split) -> Any:
        return Means(super().adapt(support).means.detach())


class Native(Centroids):
    @property
    def native(self) -> bool:
        return True

    def outer_losses(self, episodes: Episode) -> Tensor:
        support, query = episodes
        z, q = self.embed(support.x), self.embed(query.x)
        ways = support.ways()

        def one(z: Tensor, y: Tensor, q: Tensor, t: Tensor) -> Tensor:
            return task_loss(self.logits(q, self.means(z, Split(z, y, ways))), t)

        return torch.stack([one(*task) for task in zip(z, support.y, q, query.y, strict=True)])

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(-3)).tanh()

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        del self.backbone
        self.linear = nn.Linear(64, 4)


@broken("batching", "grads by native|losses by native")
class NativeMixesTasks(Native):
    def outer_losses(self, episodes: Episode) -> Tensor:
        losses = super().outer_losses(episodes)
        return losses * losses.mean() / losses.mean().detach()


@broken("batching", "losses by native")
class NativeTakesTheSum(Native):
    def outer_losses(self, episodes: Episode) -> Tensor:
        return super().outer_losses(episodes) * len(episodes.query.y[0])


@broken("batching", "buffers by native")
class NativeForgetsABuffer(Native):
    def outer_loss(self, episode: Episode) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return super().outer_loss(episode)


@pytest.mark.parametrize(("clause", "message", "cls"), BROKEN, ids=[cls.__name__ for *_, cls in BROKEN])
def test_a_broken_learner_is_caught_by_its_clause(clause: str, message: str, cls: type[Learner]) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        check_learner(cls)
    assert caught.value.clause == clause
    # Who breaks what; what was expected, what came, what to do.
    assert str(caught.value).startswith(f"{cls.__name__} breaks the clause '{clause}': expected ")
    assert ", got " in str(caught.value)
    assert str(caught.value).rpartition("; ")[2]


def test_every_clause_has_a_learner_that_breaks_it() -> None:
    assert {clause for clause, *_ in BROKEN} == set(CLAUSES)


@pytest.mark.parametrize("cls", [Centroids, Native])
def test_the_sound_ones_pass(cls: type[Learner]) -> None:
    assert all(line.kept for line in check_learner(cls))


class Declared(CentresTheQueries, AssumesSortedLabels, PrefersTheFirstClass, BoundToThreeClasses):
    """Does what four broken ones do, and says so."""

    order_matters, label_equivariant, any_way = True, False, False

    @property
    def transductive(self) -> bool:
        return True

    @property
    def exact_gradient(self) -> bool:
        return False


def test_what_is_declared_is_no_fault() -> None:
    report = {line.clause: line for line in check_learner(Declared)}
    assert {name for name, line in report.items() if not line.kept} == {"order", "labels", "ways", "gradient"}
    assert report["leak"].note.startswith("declared transductive: answers depend on the other queries by up to")


def test_a_transductive_learner_without_influence_is_noted() -> None:
    class Careful(Centroids):
        @property
        def transductive(self) -> bool:
            return True

    assert "not at all" in check_learner(Careful, clauses=["leak"])[0].note


class Dropping(Centroids):
    """Draws from the global generator while training, as dropout does: nothing is wrong with that."""

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().embed(x), 0.5, self.training)


def test_dropout_is_allowed() -> None:
    report = {line.clause: line for line in check_learner(Dropping)}
    assert report["batching"].note.startswith("in training mode: random numbers, so nothing to compare; loop")


class Unmappable(Centroids):
    """Looks at its data to decide what to do, which ``vmap`` refuses."""

    def means(self, z: Tensor, support: Split) -> Tensor:
        return super().means(z, support) * (2.0 if float(z.detach().sum()) > 1e9 else 1.0)


def test_a_learner_that_cannot_be_mapped_is_noted() -> None:
    note = check_learner(Unmappable, clauses=["batching"])[0].note
    assert note.startswith("loop; vmap cannot run: ")


def test_a_crash_is_reported_under_its_clause() -> None:
    class Crashing(Centroids):
        def adapt(self, support: Split) -> Any:
            raise KeyError("nowhere")

    with pytest.raises(ContractError, match=r"'shapes'.*KeyError: 'nowhere'") as caught:
        check_learner(Crashing)
    assert isinstance(caught.value.__cause__ or caught.value.__context__, KeyError)


def test_spec_of_the_second_derivative() -> None:
    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grads[0] * 3 * x.detach() ** 2  # right once, wrong twice

    class Cubes(Centroids):
        def embed(self, x: Tensor) -> Tensor:
            return StraightThrough.apply(super().embed(x))  # pyright: ignore[reportReturnType]

    assert check_learner(Cubes, clauses=["gradient"])[0].kept
    with pytest.raises(ContractError, match="second derivative") as caught:
        check_learner(Cubes, clauses=["curvature"])
    assert caught.value.clause == "curvature"
    assert check_learner(Centroids, Spec("classification", (5,), 4), clauses=["curvature"])[0].kept
