"""The outer loop: it learns, follows its settings, keeps the best, stops when asked, and says what went wrong."""

from __future__ import annotations

import math
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import ProtoNet
from kshot.core import DivergedError, Episode, Learner, Spec, Split, UserError, tree_map
from kshot.engine import train as room
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.engine.choices import Choice
from kshot.engine.distributed import make_fabric
from kshot.engine.log import CsvLog
from kshot.engine.outer import rate_factor
from kshot.engine.train import TrainConfig, Trainer
from kshot.nn.conv import Conv4
from kshot.testing import synthetic_episodes


def weights(learner: nn.Module) -> dict[str, Tensor]:
    return {k: t.clone() for k, t in learner.state_dict().items()}


def equal(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    first, second = (weights(x) if isinstance(x, nn.Module) else x for x in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# Learning.


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_loss_falls(toy: Any, batching: str) -> None:
    learner, held_out = toy.maml((16, 16)), next(toy.loader(64, stream="test"))
    before, after = [], []
    for losses in (before, after):
        losses += OuterStep(learner, Batching("vmap"))(held_out).losses.tolist()
        if losses is before:
            options = {"steps": 150, "batching": batching, "outer_lr": 0.01}
            assert toy.trainer(learner, loader=toy.loader(8), **options).fit().step == 150
    assert sum(after) < 0.8 * sum(before)


def test_one_step_is_the_optimisers_step_along_the_mean_gradient(toy: Any) -> None:
    learner, other = toy.maml(), toy.maml()
    toy.trainer(learner, steps=1, optimiser="sgd", momentum=0.0, outer_lr=0.1).fit()
    (batch,) = [next(toy.loader())]
    params = dict(other.named_parameters())
    losses = [other.train().outer_loss(Episode(*(Split(s.x[t], s.y[t]) for s in batch))) for t in range(3)]
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(params.values()))
    for (name, p), g in zip(params.items(), grads, strict=True):
        torch.testing.assert_close(learner.get_parameter(name), p - 0.1 * g)


def test_accumulated_batches_are_one_large_batch(toy: Any) -> None:
    class Halves:
        """Gives six tasks as two batches of three."""

        n_tasks = 3

        def __init__(self) -> None:
            self.whole, self.rest = toy.loader(6), []

        def __next__(self) -> Episode:
            if not self.rest:
                batch = next(self.whole)
                self.rest = [Episode(*(Split(s.x[i : i + 3], s.y[i : i + 3]) for s in batch)) for i in (0, 3)]
            return self.rest.pop(0)

    learner, other = toy.maml().double(), toy.maml().double()
    options = {"steps": 4, "fabric": make_fabric("cpu", precision="64-true")}
    toy.trainer(learner, loader=Halves(), accumulate=2, **options).fit()
    toy.trainer(other, loader=toy.loader(6), **options).fit()
    for name, p in learner.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_schedule_and_clipping_are_followed(toy: Any) -> None:
    events, learner = toy.Events(), toy.maml()
    before = weights(learner)
    options = {"schedule": "step", "lr_every": 2, "warmup": 3, "clip_norm": 0.01, "optimiser": "sgd", "momentum": 0.0}
    toy.trainer(learner, steps=8, outer_lr=0.5, on_event=events, **options).fit()
    rates = [values["outer_lr"] for _, values in events.named("step")]
    expected = [0.5 * rate_factor(s, 8, "step", warmup=3, every=2) for s in range(8)]
    assert rates == pytest.approx(expected)
    norms = [values["grad_norm"] for _, values in events.named("step")]
    assert min(norms) > 0.01  # the norm before clipping is what is told
    moved = math.sqrt(sum(float(((p.detach() - before[k]) ** 2).sum()) for k, p in learner.named_parameters()))
    assert moved <= 0.01 * sum(rates) * 1.001


def test_frozen_parameters_stay(toy: Any) -> None:
    learner = toy.maml()
    frozen = next(iter(learner.parameters())).requires_grad_(False)
    before = frozen.clone()
    toy.trainer(learner, steps=3, weight_decay=0.1).fit()
    assert torch.equal(frozen, before)


def test_varying_episodes_are_trained_on(toy: Any) -> None:
    class Varying:
        n_tasks = 2

        def __next__(self) -> list[Episode]:
            parts = [
                [Split(s.x[i : i + 1, : 2 + i], s.y[i : i + 1, : 2 + i]) for s in next(toy.loader())] for i in (0, 1)
            ]
            return [Episode(*part) for part in parts]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    learner = toy.maml()
    before = weights(learner)
    assert toy.trainer(learner, loader=Varying(), steps=2, batching="auto").fit().stopped == "done"
    assert not equal(learner, before)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
def test_precisions(toy: Any, precision: str, dtype: torch.dtype) -> None:
    events, learner = toy.Events(), toy.maml()
    plain = toy.Events()
    toy.trainer(learner, fabric=make_fabric("cpu", precision=precision), on_event=events).fit()
    toy.trainer(on_event=plain).fit()
    assert {p.dtype for p in learner.parameters()} == {dtype}
    for (_, got), (_, expected) in zip(events.named("step"), plain.named("step"), strict=True):
        assert got["loss"] != expected["loss"]
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5 if precision == "64-true" else 0.1)


@pytest.mark.parametrize("batching", ["loop", "auto"])
def test_mixed_precision_leaves_inputs_as_they_are(toy: Any, batching: str) -> None:
    """Compiled kernels, of which automatic batching thinks, read no bfloat16; a target in it has three digits."""
    spec = Spec("classification", (1, 28, 28), 3)

    class Images:
        n_tasks = 2

        def __next__(self) -> Episode:
            return tree_map(
                lambda t: t.float() if t.is_floating_point() else t, synthetic_episodes(spec, 2, n_shot=1, n_query=2)
            )

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    learner = ProtoNet.from_backbone(Conv4(), spec)
    before = weights(learner)
    fabric = make_fabric("cpu", precision="bf16-mixed")
    trainer = toy.trainer(learner, loader=Images(), fabric=fabric, steps=1, batching=batching)
    assert trainer.fit().stopped == "done"
    assert not equal(learner, before)
    assert {s.x.dtype for s in trainer._next()} == {torch.float32}


def test_what_is_told(toy: Any, tmp_path: Path) -> None:
    events = toy.Events()
    toy.trainer(toy.maml(), tmp_path, steps=4, validate_every=2, validate=lambda _: 1.0, on_event=events).fit()
    told = [(name, step) for name, step, _ in events]
    assert told == [
        *[("start", 0), ("checkpoint", 0), ("step", 1), ("validate", 2), ("step", 2), ("step", 3), ("checkpoint", 3)],
        *[("validate", 4), ("step", 4), ("checkpoint", 4)],
    ]
    assert events.named("start") == [(0, {"batching": "loop"})]
    assert set(events.named("step")[1][1]) == {"loss", "grad_norm", "outer_lr", "seconds", "val"}


# Batching.


def test_a_measured_batching_is_chosen_once_and_kept(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def choose(learner: Learner, batch: Episode, **options: Any) -> Choice:
        calls.append(options["n_steps"])
        return Choice(Batching("vmap", 2), {}, remembered=False)

    monkeypatch.setattr(room, "choose_once", choose)
    events = toy.Events()
    reference, learner = toy.maml(), toy.maml()
    toy.trainer(reference, batching="vmap", chunk=2).fit()
    toy.trainer(learner, tmp_path, batching="auto", steps=5, on_event=events).fit()
    toy.trainer(learner, tmp_path, batching="auto", on_event=events).fit(resume=True)
    assert calls == [5]  # none on resuming: another choice would round otherwise
    assert [v["batching"] for _, v in events.named("start")] == ["vmap, chunks of 2"] * 2
    # The batch that was measured on was not lost.
    assert equal(learner, reference)


@pytest.mark.parametrize(("taken", "remembered", "said"), [(math.inf, False, 1), (math.inf, True, 0), (0.5, False, 0)])
def test_a_compiler_that_is_missing_is_said_once(
    toy: Any, monkeypatch: pytest.MonkeyPatch, taken: float, remembered: bool, said: int
) -> None:
    choice = Choice(Batching("loop"), {"loop": 1.0, "loop, compiled": taken, "vmap": math.inf}, remembered)
    monkeypatch.setattr(room, "choose_once", lambda *_, **__: choice)
    warned = []
    watch = lambda name, _, values: warned.append(values["message"]) if name == "warning" else None  # noqa: E731
    toy.trainer(batching="auto", compile="auto", steps=2, on_event=watch).fit()
    assert len(warned) == said
    assert all("no working C++ compiler" in message for message in warned)


def test_deterministic_runs_leave_nothing_to_a_clock(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "choose_once", lambda *_, **__: pytest.fail("a clock was asked"))
    inside: list[bool] = []
    run = toy.trainer(
        batching="auto",
        deterministic=True,
        on_event=lambda *_: inside.append(torch.are_deterministic_algorithms_enabled()),
    )
    run.fit()
    assert all(inside)
    assert not torch.are_deterministic_algorithms_enabled()
    assert run.outer_step.batching == Batching("loop")


# Validation.


def validation(*values: float) -> Any:
    left = list(values)
    return lambda learner: left.pop(0)


def test_the_best_by_validation_is_kept(toy: Any, tmp_path: Path) -> None:
    at_best: dict[str, Tensor] = {}

    def validate(learner: Learner) -> float:
        assert not learner.training
        step = int(run.progress.step)
        if step == 6:
            at_best.update(weights(learner))
        return -abs(step - 6.0)

    events = toy.Events()
    run = toy.trainer(toy.restless(), tmp_path, validate=validate, validate_every=2, on_event=events)
    progress = run.fit()
    assert (progress.best, progress.best_step) == (0.0, 6)
    tree = load_tree(Checkpoints(tmp_path / "checkpoints").best)
    assert (tree["step"], tree["val"]) == (6, 0.0)
    assert equal(tree["learner"], at_best)
    assert [(s, v["val"], v["best_step"]) for s, v in events.named("validate")] == [
        *[(2, -4.0, 2), (4, -2.0, 4), (6, 0.0, 6), (8, -2.0, 6), (10, -4.0, 6), (12, -6.0, 6)]
    ]
    assert not run.learner.training


def test_several_of_the_best_validations_are_kept(toy: Any, tmp_path: Path) -> None:
    then: dict[int, dict[str, Tensor]] = {}

    def validate(learner: Learner) -> float:
        step = int(run.progress.step)
        then[step] = weights(learner)
        return {2: 3.0, 4: 1.0, 6: -math.inf, 8: 3.0, 10: 2.0, 12: 0.5}[step]

    run = toy.trainer(toy.restless(), tmp_path, validate=validate, validate_every=2, keep_best=3)
    run.fit()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    kept = checkpoints.validated()
    assert [step for step, _ in kept] == [2, 8, 10], "the best first, and of equal ones the first"
    assert all(equal(load_tree(path)["learner"], then[step]) for step, path in kept)
    assert len(list((tmp_path / "checkpoints").glob("validated-*"))) == 3
    assert load_tree(checkpoints.best)["step"] == 2
    checkpoints.forget_validated(8)
    assert [step for step, _ in checkpoints.validated()] == [2, 8]
    checkpoints.validated()[0][1].write_bytes(b"damaged")
    assert [step for step, _ in checkpoints.validated()] == [8, 2]
    checkpoints.keep_validated(14, {"val": 0.0}, 2)
    assert [step for step, _ in checkpoints.validated()] == [8, 14]


def test_a_run_forgets_the_validations_that_it_goes_past_again(toy: Any, tmp_path: Path) -> None:
    settings = {"validate_every": 2, "keep_best": 2, "checkpoint_every": 4}
    toy.trainer(toy.restless(), tmp_path, validate=lambda learner: 1.0, steps=8, **settings).fit()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert [step for step, _ in checkpoints.validated()] == [2, 4]
    checkpoints.keep_validated(8, {"val": 2.0}, 3)
    (tmp_path / "checkpoints" / "step-00000008.safetensors").write_bytes(b"damaged")
    run = toy.trainer(toy.restless(), tmp_path, validate=lambda learner: 0.0, steps=8, **settings)
    run.fit(resume=True)
    assert [step for step, _ in checkpoints.validated()] == [2, 4]


def test_the_first_of_equal_validations_is_the_best(toy: Any) -> None:
    progress = toy.trainer(validate=validation(1.0, 1.0, 1.0, 1.0), validate_every=3).fit()
    assert progress.best_step == 3


def test_a_validation_without_finite_answers_is_worse_than_any(toy: Any, tmp_path: Path) -> None:
    events = toy.Events()
    validate = validation(-math.inf, 2.0, -math.inf, 1.0)
    progress = toy.trainer(out=tmp_path, validate=validate, validate_every=3, on_event=events).fit()
    assert (progress.best, progress.best_step) == (2.0, 6)
    assert [s for s, v in events.named("warning") if "finite" in v["message"]] == [3, 9]
    assert load_tree(Checkpoints(tmp_path / "checkpoints").best)["val"] == 2.0


def test_without_one_finite_validation_there_is_no_best(toy: Any, tmp_path: Path) -> None:
    progress = toy.trainer(out=tmp_path, validate=lambda learner: -math.inf, validate_every=3).fit()
    assert progress.best is None
    assert not Checkpoints(tmp_path / "checkpoints").best.exists()


def test_the_last_step_is_validated(toy: Any) -> None:
    events = toy.Events()
    toy.trainer(steps=7, validate=validation(1, 2), validate_every=5, on_event=events).fit()
    assert [s for s, _ in events.named("validate")] == [5, 7]


def test_training_stops_early_and_stays_stopped(toy: Any, tmp_path: Path) -> None:
    options = {"validate_every": 2, "patience": 2, "steps": 30}
    values = (1.0, 3.0, 2.0, 3.0)  # as good as the best is not better
    progress = toy.trainer(toy.maml(), tmp_path, validate=validation(*values), **options).fit()
    assert (progress.stopped, progress.step, progress.best_step) == ("early", 8, 4)
    again = toy.trainer(toy.maml(), tmp_path, validate=validation(), **options).fit(resume=True)
    assert (again.stopped, again.step) == ("early", 8)


def test_patience_is_reset_by_a_new_best(toy: Any) -> None:
    values = (1.0, 0.0, 2.0, 0.0, 0.0, 9.0)
    progress = toy.trainer(validate=validation(*values), validate_every=2, patience=2, steps=30).fit()
    assert (progress.stopped, progress.step, progress.best) == ("early", 10, 2.0)


# Divergence.


class Spoiled:
    """Gives NaN in the tasks of one step."""

    def __init__(self, inner: Any, step: int, where: str) -> None:
        self.inner, self.step, self.where, self.n_tasks = inner, step, where, inner.n_tasks

    def __next__(self) -> Episode:
        batch = next(self.inner)
        if self.inner.n_drawn == self.step:
            getattr(batch, self.where).y[1] = float("nan")
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


@pytest.mark.parametrize("where", ["support", "query"])
def test_a_loss_that_is_no_number_stops_training(toy: Any, tmp_path: Path, where: str) -> None:
    learner = toy.maml()
    good = {}

    def watch(name: str, step: int, values: dict[str, Any]) -> None:
        if name == "step":
            good.update(weights(learner))

    run = toy.trainer(learner, tmp_path, loader=Spoiled(toy.loader(), 6, where), on_event=watch)
    with pytest.raises(
        DivergedError, match=r"outer loss is not finite at step 6; the last good.*smaller outer_lr"
    ) as e:
        run.fit()
    assert e.value.step == 6
    assert equal(learner, good)  # no step was taken with it
    tree, path, problems = Checkpoints(tmp_path / "checkpoints").load_newest()
    assert path.name == "step-00000003.safetensors"
    assert not problems
    assert all(bool(torch.isfinite(t).all()) for t in tree["learner"].values())
    # And from there, with other data, it goes on.
    assert toy.trainer(toy.maml(), tmp_path).fit(resume=True).stopped == "done"


class Rooted(Learner):
    """Its loss is finite where its gradient is not."""

    kinds = ("regression",)

    def __init__(self) -> None:
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def adapt(self, support: Split) -> Tensor:
        return self.good + self.bad.sqrt()

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return state * x


def test_a_gradient_that_is_no_number_is_named(toy: Any) -> None:
    with pytest.raises(DivergedError, match="the gradient of bad is not finite at step 1") as caught:
        toy.trainer(Rooted()).fit()
    assert caught.value.what == "the gradient of bad"


class Steep(Rooted):
    def outer_loss(self, episode: Episode) -> Tensor:
        return (1e10 * self.good + self.bad).sum()


def test_weights_that_left_the_numbers_are_not_saved(toy: Any, tmp_path: Path) -> None:
    run = toy.trainer(Steep(), tmp_path, optimiser="sgd", outer_lr=1e30, checkpoint_every=1)
    with pytest.raises(DivergedError, match="the parameter good is not finite at step 1"):
        run.fit()
    assert [step for step, _ in Checkpoints(tmp_path / "checkpoints").steps()] == [0]


# Being asked to stop.


def interrupting(step: int, number: int = signal.SIGINT) -> Any:
    def on_event(name: str, at: int, values: dict[str, Any]) -> None:
        if name == "step" and at == step:
            signal.raise_signal(number)

    return on_event


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_met_after_the_step_and_saved(toy: Any, tmp_path: Path, number: int) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run = toy.trainer(toy.maml(), tmp_path, on_event=interrupting(4, number), checkpoint_every=100)
    progress = run.fit()
    # The signal came while step 4 was told, so step 5 is the last.
    assert (progress.stopped, progress.step) == ("interrupted", 5)
    assert Checkpoints(tmp_path / "checkpoints").steps()[0][0] == 5
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    reference, learner = toy.maml(), toy.maml()
    toy.trainer(reference).fit()
    assert toy.trainer(learner, tmp_path).fit(resume=True).stopped == "done"
    assert equal(learner, reference)


def test_a_second_ctrl_c_stops_at_once(toy: Any) -> None:
    def twice(name: str, at: int, values: dict[str, Any]) -> None:
        if name == "step" and at == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = toy.trainer(on_event=twice)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert run.progress.step == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_training_in_a_thread_leaves_signals_alone(toy: Any) -> None:
    import threading

    ended = []
    thread = threading.Thread(target=lambda: ended.append(toy.trainer().fit().stopped))
    thread.start()
    thread.join()
    assert ended == ["done"]


def test_the_global_generator_is_left_as_it_was(toy: Any) -> None:
    before = torch.get_rng_state()
    toy.trainer(toy.restless()).fit()
    assert torch.equal(torch.get_rng_state(), before)


# Doors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps >= 1, got 0"),
        ({"accumulate": 0}, "accumulate >= 1"),
        ({"checkpoint_every": 0}, "checkpoint_every >= 1"),
        ({"log_every": 0}, "log_every >= 1"),
        ({"clip_norm": -1.0}, "clip_norm >= 0, got -1.0"),
        ({"clip_norm": math.nan}, "clip_norm >= 0, got nan"),
        ({"momentum": -0.5}, "momentum >= 0"),
        ({"chunk": -1}, "chunk >= 0"),
        ({"chunk": 2}, "expected a batching beside chunk=2, such as vmap or native, got auto"),
        ({"compile": "auto", "batching": "vmap"}, "compile=auto goes with the measurement of batching=auto"),
        ({"compile": "auto", "deterministic": True}, "compile=auto goes with the measurement of batching=auto"),
        ({"schedule": "magic"}, "schedule must be one of"),
        ({"schedule": "step"}, "lr_every >= 1"),
        ({"clip_value": -1.0}, "expected clip_value >= 0, got -1.0"),
        ({"optimiser": "magic"}, "optimiser must be one of adam, adamw, sgd, rmsprop, got 'magic'"),
        ({"batching": "magic"}, "batching must be one of auto, loop, vmap, native, fused, processes, got 'magic'"),
        ({"compile": "yes"}, "compile must be one of auto, on, off, got 'yes'"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)


def test_no_entry_of_the_gradient_passes_its_bound(toy: Any) -> None:
    learner = toy.maml()
    before = {k: p.detach().clone() for k, p in learner.named_parameters()}
    options = {"steps": 1, "optimiser": "sgd", "momentum": 0.0, "outer_lr": 1.0, "validate_every": 0}
    toy.trainer(learner, **options, clip_value=1e-3).fit()
    moves = torch.cat([(p.detach() - before[k]).flatten().abs() for k, p in learner.named_parameters()])
    assert float(moves.max()) == pytest.approx(1e-3, rel=1e-3)


def test_resuming_nothing(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder to resume from"):
        toy.trainer().fit(resume=True)
    with pytest.raises(UserError, match="the folder has none"):
        toy.trainer(toy.maml(), tmp_path).fit(resume=True)


def test_another_runs_checkpoints_are_not_overwritten(toy: Any, tmp_path: Path) -> None:
    toy.trainer(toy.maml(), tmp_path).fit()
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    with pytest.raises(UserError, match=r"expected no checkpoints in .*, got those of another run; resume that one"):
        toy.trainer(toy.maml(), tmp_path).fit()
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()} == before


def test_a_checkpoint_of_another_learner(toy: Any, tmp_path: Path) -> None:
    toy.trainer(toy.maml(), tmp_path).fit()
    with pytest.raises(UserError, match="of another learner or optimiser: "):
        toy.trainer(toy.maml((9,)), tmp_path).fit(resume=True)
    for name in ("sgd", "adamw"):
        with pytest.raises(UserError, match=f"it was trained by adam, not {name}"):
            Trainer(toy.maml(), toy.loader(), TrainConfig(optimiser=name), out=tmp_path).fit(resume=True)


def test_a_full_disk_stops_training_and_loses_nothing(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        saves = []

        def full(handle: int) -> None:
            saves.append(handle)
            if len(saves) > 4:
                raise OSError(28, "No space left on device")

        m.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left on device; free some space"):
            toy.trainer(toy.maml(), tmp_path).fit()
    reference, learner = toy.maml(), toy.maml()
    toy.trainer(reference).fit()
    toy.trainer(learner, tmp_path).fit(resume=True)
    assert equal(learner, reference)


def test_metrics_are_logged(toy: Any, tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    toy.trainer(steps=7, log_every=3, validate_every=4, validate=validation(0.5, 0.25), logs=[log]).fit()
    rows = [line.split(",") for line in log.path.read_text().splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows] == [("3", ""), ("4", "0.5"), ("6", ""), ("7", "0.25")]
    assert all(a < b for a, b in pairwise(float(row[5]) for row in rows))


# What a measurement, or a break, must not change.


def test_measuring_draws_no_numbers_of_the_training(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(learner: Learner, batch: Episode, **options: Any) -> Choice:
        torch.rand(7)
        return Choice(Batching("loop"), {}, remembered=False)

    monkeypatch.setattr(room, "choose_once", choose)
    reference, learner = toy.restless(), toy.restless()
    toy.trainer(reference).fit()
    toy.trainer(learner, batching="auto").fit()
    assert equal(learner, reference)


def test_an_interrupted_training_without_a_folder_goes_on(toy: Any) -> None:
    reference, learner = toy.restless(), toy.restless()
    toy.trainer(reference).fit()
    run = toy.trainer(learner, on_event=interrupting(4))
    assert (run.fit().stopped, run.progress.step) == ("interrupted", 5)
    assert (run.fit().stopped, run.progress.step) == ("done", 12)
    assert equal(learner, reference)
