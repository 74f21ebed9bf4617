"""A run: one folder, one run; the same settings give the same bits; a continuation changes nothing."""

import dataclasses

import pytest
import torch

from kshot.core import Episode, Spec, Split, UserError
from kshot.data import TaskSource
from kshot.data.challenge import ChallengeTasks
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.train import TrainConfig
from kshot.evaluation.draw import TEST, VALIDATION, Draw
from kshot.evaluation.record import read_record
from kshot.experiment import build as build_module
from kshot.experiment import run as run_module
from kshot.experiment.build import build_learner, open_split, open_training, resolve
from kshot.experiment.config import BackboneConfig, DeviceConfig, EvalConfig, RunConfig, TaskConfig, load_config
from kshot.experiment.folder import run_config
from kshot.experiment.run import evaluate_run, load_run, train_run, validated_on
from kshot.experiment.untrained import evaluate_untrained

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
    assert train_run(run_config(tmp_path / "a"), tmp_path / "a", resume=True).progress.step == 6
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


def test_the_result_names_the_step_of_its_weights(tmp_path):
    trained = train_run(TINY, tmp_path / "a")
    kept = read_record(tmp_path / "a" / "result.json")
    assert kept.extra["steps_trained"] == trained.progress.best_step
    assert kept.extra["steps_trained"] == evaluate_run(tmp_path / "a", n_episodes=3)[3].extra["steps_trained"]


def test_validation_of_made_data_has_tasks_that_no_test_has():
    """A formula has no splits, so that one seed would give both the same tasks; images are apart as they are."""
    waves, drawn = (open_split(config, "meta_val") for config in (TINY, GLYPHS))
    assert Draw(waves, 4, 1, VALIDATION).stream != Draw(waves, 4, 1).stream
    first = {stream: next(Draw(waves, 4, 1, stream).chunks(4)).episodes.query.x for stream in (TEST, VALIDATION)}
    assert not torch.equal(first[TEST], first[VALIDATION])
    assert Draw(drawn, 4, 1, VALIDATION).stream == TEST
    assert validated_on(TINY)["stream"] == VALIDATION


def test_what_defines_the_validation_does_not_change_within_a_run(tmp_path):
    """Else the best of one kind of task would be compared with those of another."""
    train_run(GLYPHS, tmp_path / "a")
    longer = dataclasses.replace(GLYPHS.train, steps=9)
    other = dataclasses.replace(GLYPHS, train=longer, evaluation=dataclasses.replace(GLYPHS.evaluation, eval_n_way=2))
    with pytest.raises(UserError, match="eval_n_way"):
        train_run(other, tmp_path / "a", resume=True)
    more = dataclasses.replace(GLYPHS, evaluation=dataclasses.replace(GLYPHS.evaluation, eval_episodes=8))
    assert train_run(more, tmp_path / "a", resume=True).scores.n_episodes == 8


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    train_run(TINY, tmp_path / "a")
    before = (tmp_path / "a" / "config.toml").read_text()
    fewer = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=3))
    with pytest.raises(UserError, match="has trained 6 steps already"):
        train_run(fewer, tmp_path / "a", resume=True)
    assert (tmp_path / "a" / "config.toml").read_text() == before


def test_a_head_that_cannot_be_tested_is_found_before_training(tmp_path):
    config = dataclasses.replace(GLYPHS, algorithm="maml", data_options={"n_way_range": (2, 5)})
    with pytest.raises(UserError, match="built for 5 outputs, got tasks with 3"):
        train_run(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_validation_on_what_is_trained_on_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_seen", lambda trained, source: 7)
    told = []
    train_run(GLYPHS, tmp_path / "a", on_event=lambda name, step, v: told.append(v) if name == "warning" else None)
    assert any("classes of the validation are trained on" in v["message"] for v in told)


class _Named(TaskSource):
    def __init__(self, name, *classes, drawn=()):
        self.name, self.classes, self._drawn = name, classes, drawn

    @property
    def drawn_from(self):
        return frozenset(self._drawn or self.classes)

    def plan(self, n_tasks, generator):
        raise NotImplementedError

    def episodes(self, plan):
        raise NotImplementedError


def test_what_was_trained_on_is_found_in_a_test():
    trained = _Named("omniglot", "Latin/character01", "Latin/character02 @90", "Greek/character01")
    assert run_module._seen(trained, _Named("omniglot", "Latin/character01", "Latin/character02")) == 1
    drawn = ("Latin/character01", "Latin/character02", "Tibetan/character01")
    trials = _Named("omniglot_challenge", "run01/class01", drawn=drawn)
    trials.taken_from = ChallengeTasks.taken_from
    assert run_module._seen(trained, trials) == 2
    assert run_module._seen(trained, _Named("glyphs", "Latin/character01")) == 0


def test_a_test_on_other_data_says_what_was_trained_on(tmp_path, monkeypatch):
    train_run(GLYPHS, tmp_path / "a")
    assert "train_data" not in evaluate_run(tmp_path / "a", n_episodes=3)[3].extra
    monkeypatch.setattr(run_module, "open_split", lambda config, split, **asked: open_split(GLYPHS, split))
    extra = evaluate_run(tmp_path / "a", data="omniglot", n_episodes=3)[3].extra
    assert (extra["train_data"], extra["train_data_options"]) == ("glyphs", {})


def test_fixed_tasks_cannot_be_asked_for_otherwise():
    fixed = _Named("challenge")
    fixed.spec, fixed.n_shot, fixed.n_query = Spec("classification", (1, 28, 28), 20), 1, 1
    build_module._check_asked(fixed, {"n_way": 20, "n_query": 1})
    with pytest.raises(UserError, match="fixed: expected n_way 20, got 5"):
        build_module._check_asked(fixed, {"n_way": 5})


def test_shares_of_tasks_are_asked_of_what_learns_nothing():
    config = RunConfig("nearest", "glyphs", data_options={"within_group": 1.0})
    _, source, _, record = evaluate_untrained(config, n_way=3, n_episodes=3)
    assert source.sampler.within_group == 1.0
    assert record.extra["data_options"] == {"within_group": 1.0}


def test_a_plain_classifier_takes_no_shares_of_tasks():
    with pytest.raises(UserError, match="within_group and ranges"):
        open_training(RunConfig("baseline", "glyphs", data_options={"within_group": 1.0}))


@pytest.mark.parametrize("bad", [lambda: DeviceConfig(threads=-1), lambda: BackboneConfig(n_filters=0)])
def test_numbers_that_make_no_sense(bad):
    with pytest.raises(UserError, match="expected"):
        bad()


def test_a_run_of_dealt_tasks_is_tested_on_tasks_of_their_size(tmp_path):
    """Training has eight classes, its tasks are dealt three of them, and so has every validation and test."""
    options = {"deal_ways": 3, "deals": 4, "length": 4, "tc_filters": 3, "keys": [3, 4, 5], "values": [2, 3, 4]}
    config = RunConfig(
        "snail",
        "glyphs",
        task=TaskConfig(n_way=8, n_shot=1, n_query=1, n_tasks=1),
        evaluation=EvalConfig(eval_episodes=4, val_episodes=2),
        train=TrainConfig(steps=2, validate_every=2, batching="native"),
        network=BackboneConfig(n_filters=8),
        options=options,
    )
    outcome = train_run(config, tmp_path / "run")
    assert outcome.config.evaluation.eval_n_way == 3
    assert outcome.record.n_way == 3
    assert outcome.learner.spec.n_outputs == 3
    assert evaluate_run(tmp_path / "run", n_episodes=4)[-1].n_way == 3
    with pytest.raises(UserError, match="a head for 3 classes and cannot be evaluated at 4; train with deal_ways=4"):
        resolve(
            dataclasses.replace(config, evaluation=EvalConfig(eval_n_way=4)), Spec("classification", (1, 28, 28), 8)
        )
