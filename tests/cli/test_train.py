"""``kshot train``: flags reach the run, a config repeats it, a stop is in order, a continuation changes nothing."""

import inspect
import shutil
import signal

import pytest
from tests.cli.conftest import SHORT, SINUSOID

from kshot.cli.flags import field_names
from kshot.cli.settings import owners
from kshot.cli.train import free_folder, read, shape
from kshot.core.registry import methods
from kshot.data.catalog import datasets
from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.engine.train import Trainer
from kshot.evaluation.record import read_record
from kshot.experiment.config import RunConfig, differences, load_config


@pytest.mark.parametrize("algorithm", [*methods(), ""])
@pytest.mark.parametrize("data", [*datasets(), ""])
def test_no_two_flags_have_one_name(algorithm, data):
    names = field_names(shape(algorithm, data, [], None))
    assert len(set(names)) == len(names), "an option's name is taken: rename it"


def test_every_option_is_a_flag_with_a_help_text(kshot):
    for algorithm in methods():
        ran = kshot("train", algorithm, "--data", "omniglot", "--help")
        assert ran.status == 0
        for option, owner in owners().items():
            if algorithm in owner.split(" and ") or "omniglot" in owner.split(" and "):
                assert f"--{option.replace('_', '-')} " in ran.out.replace(",", " "), option


def test_every_option_is_documented():
    from kshot.cli.flags import argument_helps
    from kshot.core.learner import options_of

    for name, method in methods().items():
        assert set(options_of(method.learner)) <= set(argument_helps(method.learner)), name
    for name, entry in datasets().items():
        documented = argument_helps(*(f for f in (entry.images, entry.tasks) if f))
        assert set(entry.options) <= set(documented), name


def test_defaults_are_those_of_a_plain_config():
    config = read(["maml", "--data", "glyphs"]).config
    assert differences(config, RunConfig("maml", "glyphs")) == []


def test_flags_reach_the_settings():
    line = "maml --data omniglot --n-way 20 --outer-lr 0.01 --no-first-order --inner-lr=0.2 --rotations --hidden 3 4"
    config = read([*line.split(), "--n_way_range", "2", "50", "--eval-n-way", "5", "--threads", "1"]).config
    assert config.task.n_way == 20
    assert config.train.outer_lr == 0.01
    assert config.options == {"first_order": False, "inner_lr": 0.2}
    assert config.data_options == {"rotations": True, "n_way_range": (2, 50)}
    assert config.network.hidden == (3, 4)
    assert config.evaluation.eval_n_way == 5
    assert config.where.threads == 1


def test_help_shows_what_the_paper_uses_for_such_tasks(kshot):
    five, twenty = (kshot("train", "maml", "--data", "omniglot", "--n-way", w, "--help").out for w in (5, 20))
    waves = kshot("train", "maml", "--data", "sinusoid", "--help").out
    assert [t.split("--inner-lr")[1].split("default: ")[1].split(",")[0] for t in (five, twenty, waves)] == [
        "0.4",
        "0.1",
        "0.01",
    ]


def test_flags_override_a_config_and_the_rest_of_it_stays(sinusoid_run):
    request = read(["--config", str(sinusoid_run / "config.toml"), "--seed", "3", "--inner-lr", "0.05"])
    changed = differences(load_config(sinusoid_run / "config.toml"), request.config)
    assert changed == ["options.inner_lr: 0.01 / 0.05", "train.seed: 0 / 3"]


def test_another_algorithm_over_a_config_leaves_its_options_out_and_says_so(sinusoid_run):
    request = read(["protonet", "--data", "glyphs", "--config", str(sinusoid_run / "config.toml")])
    assert request.config.algorithm == "protonet"
    assert request.config.options == {}
    assert "options of maml" in request.notes[0]


@pytest.mark.parametrize("flags", [("--config", "{run}/config.toml"), ("--data", "glyphs")])
def test_an_algorithm_behind_flags_is_refused(refused, sinusoid_run, flags):
    """Else the one of the file would be trained."""
    typed = [f.format(run=sinusoid_run) for f in flags]
    assert "algorithm before all flags, got 'protonet'" in refused("train", *typed, "protonet")


def test_a_config_repeats_a_run_bit_by_bit(kshot, sinusoid_run, tmp_path):
    ran = kshot("train", "--config", sinusoid_run / "config.toml", "--out", tmp_path / "again")
    assert ran.status == 0
    first, again = (load_tree(run / "checkpoints" / "best.safetensors") for run in (sinusoid_run, tmp_path / "again"))
    assert first["learner"].keys() == again["learner"].keys()
    assert all(bool((first["learner"][k] == again["learner"][k]).all()) for k in first["learner"])
    one, other = (read_record(run / "result.json") for run in (sinusoid_run, tmp_path / "again"))
    assert one.extra["per_episode"] == other.extra["per_episode"]


def test_a_run_folder_holds_what_was_promised(sinusoid_run):
    names = {path.name for path in sinusoid_run.iterdir()}
    assert names == {"config.toml", "metrics.csv", "checkpoints", "result.json", "report.html"}
    record = read_record(sinusoid_run / "result.json")
    assert record.extra["command"].startswith("kshot train maml --data sinusoid ")
    assert record.n_episodes == 8


def test_what_a_run_says(kshot, tmp_path):
    ran = kshot("train", *SINUSOID, *SHORT, "--out", tmp_path / "run")
    assert "normalisation none (inductive)" in ran.err
    assert "tasks batched: loop" in ran.err
    assert "step 4/4" in ran.err
    assert "meta_test mean squared error" in ran.out
    assert "95% interval over 8 episodes, seed 0" in ran.out
    assert f"kshot evaluate {tmp_path / 'run'}" in ran.out
    assert str(tmp_path / "run" / "report.html") in ran.out


def test_what_was_measured_before_is_said(kshot, tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    flags = ("--batching", "auto", "--eval-episodes", 0)
    said = [
        kshot("train", *SINUSOID, *SHORT, *flags, *anew, "--out", tmp_path / str(i)).err
        for i, anew in enumerate(((), (), ("--measure-anew",)))
    ]
    assert ["as measured before (--measure-anew measures again)" in err for err in said] == [False, True, False]


def test_rates_by_name_that_a_continuation_cannot_change(kshot, refused, tmp_path):
    out = ("--out", tmp_path / "run")
    assert kshot("train", *SINUSOID, *SHORT, "--outer-groups", "model.0.*", 0.5, *out).status == 0
    assert kshot("train", "--resume", "--steps", 5, *out).status == 0
    message = refused("train", "--resume", "--outer-groups", "model.0.*", 0.1, *out)
    assert "--outer-groups 0.1 (the run has 0.5)" in message
    assert "found none; the names are" in refused(
        "train", *SINUSOID, "--outer-groups", "no.*", 1, "--out", tmp_path / "b"
    )


def test_a_run_without_test(kshot, tmp_path):
    ran = kshot("train", *SINUSOID, *SHORT, "--eval-episodes", 0, "--out", tmp_path / "run")
    assert ran.status == 0
    assert "not tested" in ran.out
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_without_a_name_gets_a_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig("maml", "glyphs")
    names = []
    for _ in range(3):
        names.append(free_folder(config).as_posix())
        free_folder(config).mkdir(parents=True)
    assert names == ["runs/maml-glyphs-5w1s", "runs/maml-glyphs-5w1s-2", "runs/maml-glyphs-5w1s-3"]


def test_more_steps_go_on_from_where_the_run_ended(kshot, sinusoid_run, tmp_path):
    shutil.copytree(sinusoid_run, tmp_path / "run")
    ran = kshot("train", "--resume", "--out", tmp_path / "run", "--steps", 6)
    assert ran.status == 0
    assert "going on at step 4" in ran.err
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[0][0] == 6
    assert load_config(tmp_path / "run" / "config.toml").train.steps == 6


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_saves_and_says_how_to_go_on(kshot, tmp_path, monkeypatch, number, status):
    out, step = tmp_path / "my run", Trainer._one_step

    def stop_at_three(self):
        step(self)
        if self.progress.step == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "_one_step", stop_at_three)
    ran = kshot("train", *SINUSOID, *SHORT, "--out", out)
    assert ran.status == status
    assert "interrupted at step 3 of 4" in ran.err
    assert f"kshot train --resume --out '{out}'" in ran.err
    assert ran.out == ""
    monkeypatch.undo()
    ran = kshot("train", "--resume", "--out", out)
    assert ran.status == 0
    assert "going on at step 3" in ran.err


def test_a_stop_during_the_test_is_taken_up_again(kshot, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kshot.experiment.run.score_run", stop)
        ran = kshot("train", *SINUSOID, *SHORT, "--out", tmp_path / "run")
    assert ran.status == 130
    assert "kshot train --resume" in ran.err
    ran = kshot("train", "--resume", "--out", tmp_path / "run")
    assert ran.status == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_a_report_that_fails_does_not_lose_the_run(kshot, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the printer is on fire")

    monkeypatch.setattr("kshot.cli.train.write_run_report", fail)
    ran = kshot("train", *SINUSOID, *SHORT, "--out", tmp_path / "run")
    assert ran.status == 0
    assert "the printer is on fire" in ran.err
    assert f"kshot report {tmp_path / 'run'}" in ran.err
    assert read_record(tmp_path / "run" / "result.json").n_episodes == 8


def test_the_signature_that_others_use_is_there():
    from kshot.experiment.run import evaluate_run, train_run

    assert list(inspect.signature(train_run).parameters)[:2] == ["config", "out"]
    assert next(iter(inspect.signature(evaluate_run).parameters)) == "run"
