"""The outer gradient through the last inner steps: against dense Hessians, and against learners that begin there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import ANIL, BOIL, CAVIA, MAML, MAMLpp, MetaCurvature, MetaSGD, ProtoMAML
from kshot.core import Episode, Learner, Spec, Split, UserError, task_loss
from kshot.core.episode import select
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.inner import Inner, InnerLoop, Weights, adam, unrolled
from kshot.engine.memory_plan import measured, plan, predict
from kshot.nn.conv import Conv4
from kshot.nn.mlp import MLP
from kshot.testing import synthetic_episodes

VECTORS, CLASSES = Spec("regression", (2,), 2), Spec("classification", (2,), 3)
STEPS, LR = 4, 0.1
EVERY = (ANIL, BOIL, CAVIA, MAML, MAMLpp, MetaCurvature, MetaSGD, ProtoMAML)


def learner(cls: type[Learner], steps: int = STEPS, truncate: int = 0, **options: object) -> InnerLoop:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        spec = CLASSES if cls is ProtoMAML else VECTORS
        made = cls.from_backbone(
            MLP(2, (6, 5)), spec, n_inner_steps=steps, inner_lr=LR, truncate=truncate, **options
        ).double()
    assert isinstance(made, InnerLoop)
    return made.train()


def batch(made: Learner, n_tasks: int = 1) -> Episode:
    spec = CLASSES if isinstance(made, ProtoMAML) else VECTORS
    return synthetic_episodes(spec, n_tasks, n_shot=3, n_query=4)


def gradient(made: Learner, episodes: Episode, batching: Batching | None = None) -> dict[str, Tensor]:
    return OuterStep(made, batching or Batching("loop"))(episodes).grads


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


BATCHINGS = [Batching("loop"), Batching("vmap"), Batching("loop", recompute=True), Batching("vmap", recompute=True)]


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
@pytest.mark.parametrize("truncate", [1, 3])
def test_maml_against_products_of_dense_hessians(truncate: int, batching: Batching) -> None:
    """g <- g - alpha H g for the last steps alone, where the whole gradient takes that product for all of them."""
    made = learner(MAML, truncate=truncate)
    episodes = batch(made, 3)
    names, shapes = zip(*((k, p.shape) for k, p in made.model.named_parameters()), strict=True)
    start = torch.cat([p.detach().reshape(-1) for p in made.model.parameters()])

    def loss(flat: Tensor, split: Split) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        params = {k: p.view(s) for k, p, s in zip(names, parts, shapes, strict=True)}
        return task_loss(torch.func.functional_call(made.model, params, (split.x,)), split.y)

    total = torch.zeros_like(start)
    for task in range(3):
        support, query = select(episodes, task)
        path = [start]
        for _ in range(STEPS):
            path.append(path[-1] - LR * torch.func.grad(loss)(path[-1], support))
        g = torch.func.grad(loss)(path[-1], query)
        for theta in reversed(path[STEPS - truncate : STEPS]):
            g = g - LR * torch.autograd.functional.hessian(lambda w, s=support: loss(w, s), theta) @ g
        total += g / 3
    got = gradient(made, episodes, batching)
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in got.values()]), total, rtol=1e-9, atol=1e-11)
    # The whole gradient is another one, so the comparison can fail.
    whole = torch.cat([g.reshape(-1) for g in gradient(learner(MAML), episodes).values()])
    assert (whole - total).norm() > 1e-3 * total.norm()


@pytest.mark.parametrize("truncate", [STEPS, STEPS + 3])
@pytest.mark.parametrize("cls", EVERY)
def test_as_many_steps_as_there_are_change_nothing(cls: type[Learner], truncate: int) -> None:
    made = learner(cls, truncate=truncate)
    assert made.exact_gradient
    close(gradient(made, batch(made)), gradient(learner(cls), batch(made)))


def begun_there(made: InnerLoop, episode: Episode, keep: int, patch: pytest.MonkeyPatch) -> InnerLoop:
    """A learner of ``keep`` steps whose start is, as a constant away, where ``made`` is before its last ones."""
    late = copy.deepcopy(made)
    late.n_inner_steps, late.truncate = keep, 0
    support = episode.support
    with torch.no_grad():
        cut, start = made.states(support, STEPS - keep)[-1].params, made.start(support).params
    if isinstance(late, MAMLpp):
        late.rates = nn.ParameterList(r.detach()[STEPS - keep :].clone() for r in made.rates)  # pyright: ignore[reportIndexIssue]
    if isinstance(made, ANIL):
        start = {k: p.detach() for k, p in made.model.named_parameters()}
    if not isinstance(made, CAVIA | ProtoMAML):
        with torch.no_grad():
            for name, p in late.model.named_parameters():
                p.copy_(cut[name])
        return late
    began = late.start
    moved = {k: cut[k] - start[k] for k in cut}

    def shifted(given: Split) -> Weights:
        params, buffers = began(given)
        return Weights({k: p + moved[k] for k, p in params.items()}, buffers)

    patch.setattr(late, "start", shifted)
    return late


@pytest.mark.parametrize("cls", EVERY)
def test_the_gradient_is_that_of_a_learner_that_begins_where_the_cut_is(
    cls: type[Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(cls, truncate=2)
    assert not made.exact_gradient
    episodes = batch(made)
    late = begun_there(made, select(episodes, 0), 2, monkeypatch)
    got, expected = gradient(made, episodes), gradient(late, episodes)
    if isinstance(made, MAMLpp):  # rates of steps that the gradient does not reach learn nothing
        expected = {k: torch.cat([torch.zeros_like(g), g]) if k.startswith("rates") else g for k, g in expected.items()}
    close(got, expected)
    full = gradient(learner(cls), episodes)
    assert any((full[k] - got[k]).norm() > 1e-4 * full[k].norm() for k in got)


def test_losses_after_every_step_have_a_gradient_each() -> None:
    """MAML++ sums losses of all steps: those before the cut reach the start as the first order does."""
    made = learner(MAMLpp, truncate=1, multi_step_steps=10**6)
    episodes = batch(made)
    for batching in BATCHINGS[1:]:
        close(gradient(made, episodes, batching), gradient(made, episodes))
    losses = [OuterStep(m, Batching("loop"))(episodes).losses for m in (made, learner(MAMLpp, multi_step_steps=10**6))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-13, atol=0)
    assert all(g.abs().sum() > 0 for k, g in gradient(made, episodes).items() if not k.startswith("rates"))


def test_adaptation_is_the_same_and_so_is_the_memory_of_a_rule() -> None:
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def loss(weights: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        return ((weights.params["x"] - target) ** 2).sum(), weights

    begin = Weights({"x": torch.zeros(2, dtype=torch.float64, requires_grad=True)}, {})
    nothing = Split(torch.zeros(1), torch.zeros(1))
    rules: list[Callable[[], object]] = [adam, lambda: None]
    for rule in rules:
        found = [
            list(unrolled(loss, begin, nothing, Inner(0.1, 5, rule(), truncate=k), every=True))  # pyright: ignore[reportArgumentType]
            for k in (0, 2)
        ]
        assert len(found[0]) == len(found[1]) == 6
        assert all(torch.equal(a.params["x"], b.params["x"]) for a, b in zip(*found, strict=True))


def test_memory_does_not_grow_with_the_steps_that_are_left_out() -> None:
    def peak(steps: int, truncate: int) -> int:
        made = MAML.from_backbone(MLP(2, (64, 64)), VECTORS, n_inner_steps=steps, truncate=truncate).train()
        episodes = synthetic_episodes(VECTORS, 1, n_shot=40, n_query=40, dtype=torch.float32)
        with measured() as bytes_:
            gradient(made, episodes)
        assert predict(made, episodes, Batching("loop")).of(1) == pytest.approx(bytes_(), rel=0.25)
        return bytes_()

    assert peak(12, 2) == pytest.approx(peak(3, 2), rel=0.05)
    assert peak(12, 0) > 2.5 * peak(12, 2)


def test_the_refusal_of_the_planner_offers_it() -> None:
    with pytest.raises(
        UserError, match=r"What helps: first_order=True, which needs [\d.]+ .*; truncate=1, which needs"
    ):
        plan(learner(MAML, 2), batch(learner(MAML)), budget=1000)
    with pytest.raises(UserError, match="What helps: fewer inner steps"):  # what is cut already is not offered again
        plan(learner(MAML, 2, 1), batch(learner(MAML)), budget=1000)


def test_compiled_kernels_are_for_the_whole_gradient() -> None:
    images = Spec("classification", (1, 28, 28), 5)
    for truncate, whole in ((0, True), (1, False), (2, True)):
        made = MAML.from_backbone(Conv4(normalisation="episode"), images, n_inner_steps=2, truncate=truncate).train()
        fused = MAML.from_backbone(Conv4(normalisation="episode"), images).train().fused
        assert made.fused is (whole and fused)


def test_a_number_below_zero() -> None:
    with pytest.raises(UserError, match="truncate >= 0 inner steps, got -1; 0 runs back through all"):
        learner(MAML, truncate=-1)
