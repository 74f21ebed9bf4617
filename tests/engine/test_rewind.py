"""The way back: a training that falls apart goes on from its best weights, at a lower rate, and not for ever."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kshot.core import DivergedError, Episode, Learner, UserError
from kshot.engine.checkpoint import Checkpoints, load_tree, save_tree
from kshot.engine.log import CsvLog
from kshot.engine.rewind import MOST, Rewind
from kshot.engine.train import TrainConfig
from kshot.evaluation.history import read_history


def weights(learner: Learner) -> dict[str, Tensor]:
    return {k: t.clone() for k, t in learner.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def scripted(*values: float) -> Any:
    """A validation whose numbers are given; what it saw stands in ``seen``."""
    left, seen = list(values), []

    def validate(learner: Learner) -> float:
        seen.append(weights(learner))
        return left.pop(0)

    validate.seen = seen
    return validate


#: Up by two each time; at step 6 more than all is lost, and later a little of it, twice.
VALUES = (0.0, 2.0, 4.0, 6.0, 8.0, -20.0, 7.0, 7.5, 8.5, 8.0, 8.6, 8.8)
#: The same of a training, where the weights that it starts from come first.
TRAINING = (-2.0, *VALUES)


def rewind(*values: float, factor: float = 0.5) -> Rewind:
    """Of a training that had these validations."""
    made = Rewind(factor)
    for i, value in enumerate(values):
        made.falls(value, max(values[: i + 1]))
    return made


@pytest.mark.parametrize(
    ("value", "fall"),
    [(7.0, False), (3.5, False), (0.1, False), (-0.1, True), (-100.0, True), (9.0, False), (-math.inf, True)],
)
def test_a_fall_is_four_moves_and_half_of_the_gain(value: float, fall: bool) -> None:
    """Moves of two, the best 8, a gain of 8: below 0."""
    assert rewind(*VALUES[:5]).falls(value, max(value, 8.0)) is fall


def test_the_gain_counts_where_moves_are_small() -> None:
    """Moves of a half, and a gain of ten: five is half of it."""
    values = [i / 2 for i in range(21)]
    assert not rewind(*values).falls(5.1, 10.0)
    assert rewind(*values).falls(4.9, 10.0)


@pytest.mark.parametrize("kind", ["noise", "a ceiling", "shares of 500"])
def test_noise_on_a_plateau_is_no_fall(kind: str) -> None:
    falls = []
    for seed in range(50):
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(200, generator=random)
        if kind == "a ceiling":
            noise = torch.where(noise > 1, 0.9999, 1.0)
        elif kind == "shares of 500":
            noise = torch.bernoulli(torch.full((200, 500), 0.99), generator=random).mean(1)
        made, best = Rewind(0.5), -math.inf
        for value in noise.tolist():
            best = max(best, value)
            falls.append(made.falls(value, best))
    assert sum(falls) <= 10  # of 10,000


def test_equal_validations_say_nothing_of_noise() -> None:
    made = rewind(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert not made.falls(0.9, 1.0)
    learnt = rewind(0.2, 1.0, *[1.0] * 20)
    assert not learnt.falls(0.999, 1.0)
    assert learnt.falls(0.5, 1.0)


def test_an_early_blow_up_does_not_hide_later_falls_for_long() -> None:
    made = rewind(-150.0, -140.0, -1e60, -130.0)
    best = -130.0
    for i in range(20):
        best = -130.0 + i
        made.falls(best, best)
    assert made.falls(-1000.0, best)


def test_the_first_validations_are_no_falls() -> None:
    made = Rewind(0.5)
    assert [made.falls(v, 10.0) for v in (5.0, 10.0, -90.0)] == [False] * 3
    assert not Rewind(0.5).falls(-math.inf, None)


def test_a_fall_is_not_taken_for_usual() -> None:
    made = rewind(*VALUES[:5])
    assert [made.falls(-60.0, 8.0) for _ in range(5)] == [True] * 5


def watched(toy: Any, learner: Any, validate: Any, **options: Any) -> tuple[Any, Any, dict[int, dict[str, Tensor]]]:
    """A trainer, what it tells, and the weights after each step."""
    events, after = toy.Events(), {}

    def watch(name: str, step: int, values: dict[str, Any]) -> None:
        events(name, step, values)
        if name == "step":
            after[step] = weights(run.learner)

    run = toy.trainer(learner, validate=validate, validate_every=1, outer_lr=0.01, on_event=watch, **options)
    return run, events, after


@pytest.mark.parametrize("kind", ["maml", "restless"])
def test_training_goes_back_to_its_best_weights_at_a_lower_rate(toy: Any, tmp_path: Path, kind: str) -> None:
    validate = scripted(*TRAINING)
    run, events, after = watched(toy, getattr(toy, kind)(), validate, rewind=0.25, out=tmp_path)
    progress = run.fit()
    assert (run.rewind.times, progress.step, progress.best_step) == (1, 12, 12)
    assert not same(validate.seen[6], validate.seen[5])
    assert same(after[6], validate.seen[5])
    assert not same(after[7], after[6])
    rates = [values["outer_lr"] for _, values in events.named("step")]
    assert rates == [0.01] * 6 + [0.0025] * 6
    ((step, told),) = events.named("warning")
    assert step == 6
    assert told["message"] == (
        "the validation lost more than half of what it had gained at step 6: on from the weights of step 5, at 0.25 of "
        "the planned rate"
    )


def test_adam_begins_anew(toy: Any) -> None:
    """A first step of Adam has the size of the rate, in every entry that has a gradient."""
    run, _, after = watched(toy, toy.maml(), scripted(*TRAINING), rewind=0.5)
    run.fit()
    moved = torch.cat([(after[7][k] - after[6][k]).flatten() for k in after[6]]).abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.005), rtol=1e-3, atol=1e-6)


def test_counters_of_steps_go_on(toy: Any) -> None:
    """As MAML++ has one, by which it anneals."""

    class Counting(type(toy.maml())):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.register_buffer("outer_steps", torch.zeros((), dtype=torch.int64))

    learner = Counting(toy.maml().model, inner_lr=0.02)
    run, _, _ = watched(toy, learner, scripted(*TRAINING), rewind=0.5)
    held, told = [], run.on_event

    def count(name: str, step: int, values: dict[str, Any]) -> None:
        told(name, step, values)
        if name == "step":
            held.append(int(learner.outer_steps))
            learner.outer_steps += 1

    run.on_event = count
    run.fit()
    assert held == list(range(12))


def test_patience_counts_anew_from_there(toy: Any) -> None:
    run, _, _ = watched(toy, toy.maml(), scripted(*TRAINING), rewind=0.5, patience=2)
    assert run.fit().step == 8  # 7.0 and 7.5 are no new best; the fall is not counted.


def test_after_ten_times_it_goes_on_as_it_is_and_says_so(toy: Any) -> None:
    values = (*TRAINING[:6], *[-60.0] * 12)
    run, events, after = watched(toy, toy.maml(), scripted(*values), rewind=0.5, steps=17)
    run.fit()
    assert run.rewind.times == MOST
    (said,) = [told["message"] for step, told in events.named("warning") if step == 16]
    assert said == "the validation fell at step 16, and training goes on as it is, since it went back ten times before"
    assert not same(after[16], after[15])


def test_saving_more_often_changes_nothing(toy: Any, tmp_path: Path) -> None:
    """Weights that left the numbers are found in the step that spoiled them."""
    ends = []
    for every in (1, 100):
        run, _, _ = watched(
            toy, toy.restless(), scripted(*[float(i) for i in range(13)]), rewind=0.5, checkpoint_every=every,
            out=tmp_path / str(every),
        )  # fmt: skip
        taken, step = [], run.optimiser.step

        def spoil(taken: list[int] = taken, run: Any = run, step: Any = step) -> None:
            step()
            taken.append(1)
            if len(taken) == 5:
                next(run.learner.parameters()).data.fill_(math.nan)

        run.optimiser.step = spoil
        run.fit()
        assert run.rewind.times == 1
        ends.append(weights(run.learner))
    assert same(*ends)


def test_without_it_nothing_is_gone_back_to(toy: Any) -> None:
    run, events, _ = watched(toy, toy.maml(), scripted(*VALUES))
    run.fit()
    assert not run.rewind.times
    assert not run.rewind.weights
    assert not events.named("warning")


@pytest.mark.parametrize("cut", [4, 5, 6, 7])
def test_a_run_in_two_parts_goes_back_as_one(toy: Any, tmp_path: Path, cut: int) -> None:
    """Interrupted before the fall, at it, or after it: all that counts is in every checkpoint."""
    whole = toy.trainer(toy.restless(), tmp_path / "a", validate=scripted(*TRAINING), validate_every=1, rewind=0.5)
    whole.fit()
    assert whole.rewind.times == 1

    def interrupt(name: str, step: int, values: dict[str, Any]) -> None:
        if name == "step" and step == cut - 1:
            signal.raise_signal(signal.SIGINT)

    options = {"out": tmp_path / "b", "validate_every": 1, "rewind": 0.5}
    first = toy.trainer(toy.restless(), validate=scripted(*TRAINING), on_event=interrupt, **options).fit()
    assert (first.stopped, first.step) == ("interrupted", cut)
    (tmp_path / "b" / "checkpoints" / "best.safetensors").unlink()
    parts = toy.trainer(toy.restless(), validate=scripted(*VALUES[cut:]), **options)
    parts.fit(resume=True)
    assert parts.rewind.times == 1
    assert same(weights(parts.learner), weights(whole.learner))


def test_a_checkpoint_from_before_there_was_a_way_back(toy: Any, tmp_path: Path) -> None:
    toy.trainer(toy.maml(), tmp_path, steps=3).fit()
    path = Checkpoints(tmp_path / "checkpoints").steps()[0][1]
    tree = load_tree(path)
    del tree["rewind"]
    save_tree(path, tree)
    assert toy.trainer(toy.maml(), tmp_path).fit(resume=True).step == 12


class Rising(Learner):
    """Its loss leaves the numbers where its parameter is above a bound."""

    kinds = ("regression",)

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.value, self.bound = torch.nn.Parameter(torch.zeros(1)), bound

    def adapt(self, support: Any) -> Tensor:
        return self.value

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return state * x

    def outer_loss(self, episode: Episode) -> Tensor:
        return -(self.value if float(self.value.detach()) < self.bound else self.value * math.nan).sum()


def rising(toy: Any, bound: float, best_at: float, **options: Any) -> Any:
    """A training that rises by the rate in each step, and is validated best at one value."""
    usual = {"validate_every": 1, "optimiser": "sgd", "momentum": 0.0, "outer_lr": 1.0}
    return toy.trainer(Rising(bound), validate=lambda m: -abs(float(m.value.detach()) - best_at), **usual, **options)


def test_a_loss_that_is_no_number_is_gone_back_from(toy: Any) -> None:
    """At 5, in the sixth step: on from 4 by 0.1, until that is too much as well, and from 4 by 0.01."""
    events = toy.Events()
    run = rising(toy, 4.55, 4.0, rewind=0.1, on_event=events)
    progress = run.fit()
    assert (progress.step, progress.stopped, run.rewind.times) == (12, "done", 2)
    first, _ = (told["message"] for _, told in events.named("warning"))
    assert first.startswith("the outer loss is not finite at step 5: on from the weights of step 4, at 0.1 of")
    assert float(run.learner.value.detach()) == pytest.approx(4.01)


def test_it_does_not_go_on_for_ever(toy: Any) -> None:
    run = rising(toy, 1.5, 1.0, rewind=1.0, steps=100)
    with pytest.raises(DivergedError, match="outer loss is not finite"):
        run.fit()
    assert run.rewind.times == MOST


def test_weights_that_left_the_numbers_in_the_last_step_are_gone_back_from(toy: Any, tmp_path: Path) -> None:
    """No validation has seen them: they are found when they are to be saved."""
    run = rising(toy, math.inf, 1.0, rewind=0.5, steps=3, out=tmp_path)

    def spoil(name: str, step: int, values: dict[str, Any]) -> None:
        if name == "step" and step == 3:
            run.learner.value.data.fill_(math.nan)

    run.on_event = spoil
    assert run.fit().stopped == "done"
    assert float(run.learner.value.detach()) == 1.0
    assert float(Checkpoints(tmp_path / "checkpoints").load_newest()[0]["learner"]["value"]) == 1.0


@pytest.mark.parametrize(("first", "times"), [(0.0, MOST), (-math.inf, 0)])
def test_a_first_step_that_fails_is_gone_back_from_to_a_start_that_has_answers(
    toy: Any, first: float, times: int
) -> None:
    run = toy.trainer(Rising(-1.0), validate=lambda learner: first, validate_every=1, rewind=0.5)
    with pytest.raises(DivergedError, match="at step 1"):
        run.fit()
    assert run.rewind.times == times


def test_trained_weights_that_are_lost_at_once_are_gone_back_to(toy: Any) -> None:
    """They were the best, so that nothing was ever gained."""
    validate = scripted(8.0, 7.0, 7.9, 7.5, -20.0, *[7.0] * 8)
    run, events, after = watched(toy, toy.maml(), validate, rewind=0.5)
    run.fit()
    assert run.rewind.times == 1
    assert same(after[4], validate.seen[0])
    ((step, told),) = events.named("warning")
    assert step == 4
    assert "on from the weights of step 0, at 0.5" in told["message"]


@pytest.mark.parametrize("how", [{"validate_first": True}, {"rewind": 0.5}])
def test_the_start_is_validated_logged_and_kept(toy: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    """Once: a run that goes on from its start knows what it was worth."""
    validate, log = scripted(9.0, *[1.0] * 12), CsvLog(tmp_path / "metrics.csv")

    def interrupt(name: str, step: int, values: dict[str, Any]) -> None:
        if name == "checkpoint" and step == 0:
            raise KeyboardInterrupt

    options = {"out": tmp_path, "validate": validate, "validate_every": 12, "logs": [log], **how}
    with pytest.raises(KeyboardInterrupt):
        toy.trainer(toy.maml(), on_event=interrupt, **options).fit()
    progress = toy.trainer(toy.maml(), **options).fit(resume=True)
    assert (progress.best, progress.best_step, len(validate.seen)) == (9.0, 0, 2)
    assert read_history(log.path).validation == [(0, 9.0), (12, 1.0)]
    best = load_tree(tmp_path / "checkpoints" / "best.safetensors")
    assert best["step"] == 0
    assert same(best["learner"], validate.seen[0])


def test_a_start_that_nobody_asks_for_is_not_validated(toy: Any) -> None:
    validate = scripted(*[1.0] * 12)
    toy.trainer(toy.maml(), validate=validate, validate_every=1).fit()
    assert len(validate.seen) == 12
    toy.trainer(toy.maml(), validate=validate, validate_every=0, validate_first=True).fit()
    assert len(validate.seen) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rewind": 1.5}, "rewind of 0 to 1"), ({"rewind": 0.5, "validate_every": 0}, "validations to go back to")],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)
