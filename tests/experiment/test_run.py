"""A run: one folder, one run; the same settings give the same bits; a continuation changes nothing."""

import dataclasses

import pytest
import torch

from kshot.core import Episode, Spec, Split, UserError
from kshot.data import TaskSource
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.train import TrainConfig
from kshot.experiment import run as run_module
from kshot.experiment.build import build_learner, open_split, resolve
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig, load_config
from kshot.experiment.run import evaluate_run, load_run, train_run

TINY = RunConfig(
    "maml",
    "sinusoid",
    task=TaskConfig(n_shot=5, n_query=5, n_tasks=2),
    evaluation=EvalConfig(eval_episodes=6, val_episodes=4),
    train=TrainConfig(steps=6, batching="loop", validate_every=3, checkpoint_every=2, log_every=1),
)
GLYPHS = dataclasses.replace(
    TINY, algorithm="protonet", data="glyphs", task=TaskConfig(3, 1, 2, 2), network=BackboneConfig(n_filters=4)
)


def _same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_settings_give_the_same_bits(tmp_path):
    first, second = (train_run(TINY, tmp_path / name) for name in ("a", "b"))
    assert _same(first.learner, second.learner)
    assert torch.equal(first.scores.per_episode["mse"], second.scores.per_episode["mse"])
    other = train_run(dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, seed=1)), tmp_path / "c")
    assert not _same(first.learner, other.learner)


def test_the_kept_config_is_resolved_and_repeats_the_run(tmp_path):
    first = train_run(TINY, tmp_path / "a")
    kept = load_config(tmp_path / "a" / "config.toml")
    assert kept.options["inner_lr"] == 0.01
    assert kept.network.backbone == "mlp"
    assert _same(first.learner, train_run(kept, tmp_path / "b").learner)


def test_a_run_in_two_parts_ends_like_one(tmp_path):
    short = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=3))
    train_run(short, tmp_path / "parts")
    parts = train_run(TINY, tmp_path / "parts", resume=True)
    assert parts.progress.step == 6
    assert _same(parts.learner, train_run(TINY, tmp_path / "whole").learner)


def test_a_run_that_has_ended_is_only_tested_again(tmp_path):
    first = train_run(TINY, tmp_path / "a")
    events = []
    again = train_run(TINY, tmp_path / "a", resume=True, on_event=lambda name, step, values: events.append(name))
    assert "step" not in events
    assert again.record.mean == first.record.mean


def test_options_that_came_after_a_run_stand_at_their_defaults(tmp_path):
    train_run(TINY, tmp_path / "a")
    path = tmp_path / "a" / "config.toml"
    kept = path.read_text()
    assert "first_order = false" in kept
    path.write_text(kept.replace("first_order = false\n", ""))
    assert train_run(TINY, tmp_path / "a", resume=True).progress.step == 6
    path.write_text(kept.replace("first_order = false", "first_order = true"))
    with pytest.raises(UserError, match="first_order: True / False"):
        train_run(TINY, tmp_path / "a", resume=True)


def test_options_that_came_after_a_run_do_not_change_it_by_a_papers_setting(tmp_path):
    # What a new run of iMAML is given, damping and Adam, is not what an old one was trained with.
    imaml = dataclasses.replace(TINY, algorithm="imaml", options={"damping": 0.0, "inner_optimiser": "sgd"})
    train_run(imaml, tmp_path / "a")
    path = tmp_path / "a" / "config.toml"
    path.write_text(path.read_text().replace("damping = 0.0\n", "").replace('inner_optimiser = "sgd"\n', ""))
    assert "damping" not in path.read_text()
    learner = load_run(tmp_path / "a")[1]
    assert (learner.damping, learner.inner_optimiser) == (0.0, "sgd")
    assert train_run(run_module.run_config(tmp_path / "a"), tmp_path / "a", resume=True).progress.step == 6
    with pytest.raises(UserError, match=r"damping: 0\.0 / 10\.0"):
        train_run(dataclasses.replace(imaml, options={}), tmp_path / "a", resume=True)


def test_events_tell_what_happens(tmp_path):
    events = []
    train_run(TINY, tmp_path / "a", on_event=lambda name, step, values: events.append((name, step)))
    assert [name for name, _ in events if name in ("open", "built", "start", "test")] == [
        "open",
        "built",
        "start",
        "test",
    ]
    assert [step for name, step in events if name == "step"] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step in events if name == "validate"] == [3, 6]


def test_other_settings_cannot_continue_a_run(tmp_path):
    train_run(TINY, tmp_path / "a")
    other = dataclasses.replace(TINY, task=TaskConfig(n_shot=7, n_query=5, n_tasks=2))
    with pytest.raises(UserError, match=r"task\.n_shot: 5 / 7"):
        train_run(other, tmp_path / "a", resume=True)
    with pytest.raises(UserError, match="holds another run"):
        train_run(TINY, tmp_path / "a")


def test_a_refused_run_leaves_its_folder_free(tmp_path):
    bad = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, outer_lr=-1.0))
    with pytest.raises(UserError, match="outer_lr"):
        train_run(bad, tmp_path / "a")
    assert not (tmp_path / "a" / "config.toml").exists()
    assert train_run(TINY, tmp_path / "a").progress.stopped == "done"


def test_a_refused_continuation_leaves_the_run_as_it_was(tmp_path):
    train_run(TINY, tmp_path / "a")
    for _, path in Checkpoints(tmp_path / "a" / "checkpoints").steps():
        path.write_bytes(b"cut")
    with pytest.raises(UserError, match="usable checkpoint"):
        train_run(TINY, tmp_path / "a", resume=True)
    assert (tmp_path / "a" / "config.toml").exists()


class _Broken(TaskSource):
    """Tasks of which one number is NaN, or one label too large."""

    name, n_shot, n_query = "broken", 1, 1
    spec = Spec("classification", (3,), 2)

    def __init__(self, how: str) -> None:
        self.how = how

    def plan(self, n_tasks, generator):
        return torch.zeros(n_tasks)

    def episodes(self, plan):
        x, y = torch.ones(len(plan), 2, 3), torch.arange(2).repeat(len(plan), 1)
        if self.how == "nan":
            x[:, 1, 2] = torch.nan
        else:
            y[:, 1] = 7
        return Episode(Split(x, y, 2), Split(x, y, 2))


@pytest.mark.parametrize(("how", "said"), [("nan", "NaN"), ("label", "expected labels 0..1")])
def test_broken_data_are_found_as_such(tmp_path, monkeypatch, how, said):
    for opening in ("open_split", "open_training"):
        monkeypatch.setattr(run_module, opening, lambda *args, **options: _Broken(how))
    with pytest.raises(UserError) as error:
        train_run(dataclasses.replace(GLYPHS, task=TaskConfig(2, 1, 1, 2)), tmp_path / "a")
    assert said in str(error.value)
    assert not (tmp_path / "a").exists()


def test_evaluation_options_say_their_own_tasks(tmp_path):
    train_run(GLYPHS, tmp_path / "a")
    _, source, _, record = evaluate_run(tmp_path / "a", n_episodes=3, data_options={"n_way_range": (2, 4)})
    assert source.varying
    assert record.extra["data_options"] == {"n_way_range": (2, 4)}
    assert record.extra["steps_trained"] in (3, 6)


def test_ranges_of_training_do_not_shape_the_test(tmp_path):
    config = dataclasses.replace(GLYPHS, data_options={"n_way_range": (2, 6)})
    assert open_split(config, "meta_train").varying
    assert not open_split(config, "meta_test").varying


def test_a_loaded_run_is_the_one_that_was_best(tmp_path):
    trained = train_run(TINY, tmp_path / "a")
    config, learner, step = load_run(tmp_path / "a")
    assert _same(trained.learner, learner)
    assert step == trained.progress.best_step
    assert config == load_config(tmp_path / "a" / "config.toml")
    assert not learner.training


def test_initial_weights_depend_on_the_seed_alone():
    source = open_split(GLYPHS, "meta_train")
    config = resolve(GLYPHS, source.spec)
    first = build_learner(config, source.spec)
    torch.rand(7)
    assert _same(first, build_learner(config, source.spec))


def test_precision_for_gradient_checks_is_no_precision_for_runs(tmp_path):
    config = dataclasses.replace(TINY, where=dataclasses.replace(TINY.where, precision="64-true"))
    with pytest.raises(UserError, match="use 32-true"):
        train_run(config, tmp_path / "a")


def test_a_validation_with_infinite_answers_does_not_end_a_training(tmp_path):
    # A step of this rate blows the network up in the validation alone, which takes many more of them.
    options = {"n_inner_steps_eval": 40, "inner_lr": 1.0}
    warnings = []
    outcome = train_run(
        dataclasses.replace(TINY, options=options, evaluation=EvalConfig(eval_episodes=0, val_episodes=4)),
        tmp_path / "a",
        on_event=lambda name, step, values: warnings.append(values["message"]) if name == "warning" else None,
    )
    assert outcome.progress.stopped == "done"
    assert outcome.progress.best is None
    assert any("validation at step 3" in message for message in warnings)
