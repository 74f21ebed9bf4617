"""Outer rates by name: factors, frozen parameters, patterns that fit nothing, and runs that go on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.cli.train import read
from kshot.core import UserError
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.config import TrainConfig
from kshot.engine.outer import rate_groups
from kshot.experiment.config import RunConfig, load_config, save_config

BODY, HEAD = "model.0.*", "model.1.*"


def test_the_last_pattern_that_fits_counts(toy: Any) -> None:
    learner = toy.maml()
    names = [k for k, _ in learner.named_parameters()]
    assert rate_groups(learner, {}) == {1.0: names}
    groups = rate_groups(learner, {"*": 0.5, BODY: 0.1, "*.bias": 0})
    assert groups == {
        0.1: ["model.0.layers.0.weight"],
        0.0: ["model.0.layers.0.bias", "model.1.bias"],
        0.5: ["model.1.weight"],
    }


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"modl.*": 0.1}, "names of parameters that fit 'modl"),
        ({BODY: -1.0}, r"factor >= 0 on the rate of 'model\.0\.\*', got -1"),
        ({BODY: float("nan")}, "got nan"),
        ({"*": 0.0}, "something left to train, got a factor of 0 for all 4"),
    ],
)
def test_what_makes_no_sense(toy: Any, factors: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy.trainer(outer_groups=factors)


def test_a_step_is_that_of_the_factor(toy: Any) -> None:
    """By gradient descent, each parameter moves by its factor times the rate times its gradient."""
    learner = toy.maml()
    before = {k: p.detach().clone() for k, p in learner.named_parameters()}
    grads = OuterStep(learner, Batching("loop"))(next(toy.loader())).grads
    options = {"optimiser": "sgd", "momentum": 0.0, "outer_lr": 0.1, "steps": 1}
    toy.trainer(learner, outer_groups={BODY: 0.25, "model.1.bias": 3.0}, **options).fit()
    for name, p in learner.named_parameters():
        factor = 0.25 if name.startswith("model.0.") else 3.0 if name == "model.1.bias" else 1.0
        torch.testing.assert_close(p.detach(), before[name] - factor * 0.1 * grads[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "rmsprop"])
def test_what_is_frozen_stays_and_the_rest_learns_as_without_it(toy: Any, optimiser: str, batching: str) -> None:
    learner, options = toy.maml(), {"optimiser": optimiser, "weight_decay": 0.1, "steps": 5, "batching": batching}
    before = {k: p.detach().clone() for k, p in learner.named_parameters()}
    made = toy.trainer(learner, outer_groups={BODY: 0}, **options)
    made.fit()
    for name, p in learner.named_parameters():
        assert torch.equal(p.detach(), before[name]) is name.startswith("model.0."), name
        assert p.requires_grad, "frozen while training only"
    held = made.optimiser.state_dict()["state"]
    assert len(held) == 2, "no state for what is frozen"


def test_its_gradient_does_not_count_in_the_norm(toy: Any) -> None:
    def norm(**options: Any) -> float:
        made = toy.trainer(steps=1, **options)
        made.fit()
        return made._last["grad_norm"]

    assert norm(outer_groups={BODY: 0}) < norm()


def test_a_schedule_moves_all_groups(toy: Any) -> None:
    made = toy.trainer(outer_groups={BODY: 0.5}, schedule="step", lr_every=2, steps=5, outer_lr=0.08)
    made.fit()
    assert [g["lr"] for g in made.optimiser.param_groups] == [pytest.approx(0.01), pytest.approx(0.02)]


def test_a_run_goes_on_to_the_same_bits(toy: Any, tmp_path: Path) -> None:
    def fit(out: Path, stop_at: int = 0, resume: bool = False, **other: Any) -> str:
        def on_event(name: str, step: int, values: dict[str, Any]) -> None:
            if name == "step" and step == stop_at:
                signal.raise_signal(signal.SIGINT)

        options = {"outer_groups": {BODY: 0.1, "model.1.bias": 0}, **other}
        return toy.trainer(toy.maml(), out, on_event=on_event, **options).fit(resume=resume).stopped

    def weights(out: Path) -> dict[str, torch.Tensor]:
        return Checkpoints(out / "checkpoints").load_newest()[0]["learner"]

    assert fit(tmp_path / "whole") == "done"
    assert fit(tmp_path / "parts", stop_at=5) == "interrupted"
    with pytest.raises(UserError, match="another learner or optimiser"):
        fit(tmp_path / "parts", resume=True, outer_groups={})
    assert fit(tmp_path / "parts", resume=True) == "done"
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(t, parts[k]) for k, t in whole.items())


def test_settings_on_paper_and_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    save_config(path, RunConfig("maml", "sinusoid", train=TrainConfig(outer_groups={BODY: 0.1, HEAD: 0.0})))
    assert '[train.outer_groups]\n"model.0.*" = 0.1' in path.read_text()
    assert load_config(path).train.outer_groups == {BODY: 0.1, HEAD: 0.0}
    assert read(["--config", str(path)]).config.train.outer_groups == {BODY: 0.1, HEAD: 0.0}
    typed = read(["--config", str(path), "--outer-groups", "*.bias", "2"]).config.train.outer_groups
    assert typed == {"*.bias": 2.0}
    path.write_text('algorithm = "maml"\ndata = "sinusoid"\n[train]\nouter_groups = {"model.0.*" = "slow"}\n')
    with pytest.raises(UserError, match=r"train: outer_groups\.model\.0\.\*: expected float, got str 'slow'"):
        load_config(path)
