"""Reports of run folders: every part that there is something for, and names that differ."""

import dataclasses
import shutil

import pytest

from kshot.core import UserError
from kshot.engine.train import TrainConfig
from kshot.evaluation.draw import VALIDATION
from kshot.evaluation.evaluate import optimal_score
from kshot.experiment.build import open_split
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.reporting import SHOTS, STEPS, Look, run_report, write_reports, write_run_report
from kshot.experiment.run import train_run

TINY = RunConfig(
    "maml",
    "sinusoid",
    task=TaskConfig(n_shot=5, n_query=5, n_tasks=2),
    evaluation=EvalConfig(eval_episodes=6, val_episodes=4),
    train=TrainConfig(steps=4, batching="loop", validate_every=2, log_every=1),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train_run(TINY, folder / "waves")
    glyphs = dataclasses.replace(
        TINY,
        data="glyphs",
        task=TaskConfig(3, 1, 12, 2),
        network=BackboneConfig(n_filters=4),
        evaluation=EvalConfig(eval_episodes=4, val_episodes=2),
    )
    train_run(glyphs, folder / "characters")
    return folder


def test_regression_has_curves_and_tasks(runs):
    found = run_report(runs / "waves", "waves", Look(n_episodes=4))
    assert found.record.metric == "mse"
    assert found.by_shots.x == SHOTS
    assert found.by_step.x == tuple(range(STEPS + 1))
    assert len(found.pictures.tasks) > 0
    assert [step for step, _ in found.history.loss] == [1, 2, 3, 4]
    assert found.command.startswith("kshot train --config")


def test_shots_end_where_the_examples_of_a_class_end(runs):
    """24 drawings less 12 queries leave 12 shots: 10 are possible; with 16 queries only 5."""
    found = run_report(runs / "characters", "characters", Look(n_episodes=2))
    assert found.by_shots.x == (1, 2, 3, 5, 10)
    assert found.pictures.episodes
    assert found.pictures.confusions is not None


def test_parts_are_told(runs):
    told = []
    run_report(runs / "waves", "waves", Look(n_episodes=2, on_part=lambda *part: told.append(part)))
    assert {what for what, _, _ in told} == {"waves: accuracy against shots", "waves: accuracy against inner steps"}
    assert all(done <= total for _, done, total in told)


def test_a_report_stands_alone(runs):
    path = write_run_report(runs / "waves")
    html = path.read_text()
    assert path == runs / "waves" / "report.html"
    assert "<script src" not in html
    assert "<link" not in html


def test_names_differ(runs, tmp_path):
    """Two runs of one algorithm are named by their folders, two folders of one name by their paths."""
    write_reports([runs / "waves", runs / "characters"], tmp_path / "r.html", Look(n_episodes=2))
    html = (tmp_path / "r.html").read_text()
    assert "waves" in html
    assert "characters" in html
    shutil.copytree(runs / "waves", tmp_path / "waves")
    write_reports([runs / "waves", tmp_path / "waves"], tmp_path / "r.html", Look(n_episodes=2))
    assert str(tmp_path / "waves") in (tmp_path / "r.html").read_text()


def test_a_place_that_cannot_be_written(runs):
    with pytest.raises(UserError, match=r"could not write|cannot write"):
        write_reports([runs / "waves"], runs / "waves" / "config.toml" / "r.html", Look(n_episodes=2))


@pytest.fixture(scope="module")
def copying(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    config = RunConfig(
        "ntm",
        "copy",
        task=TaskConfig(n_tasks=2),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        train=TrainConfig(
            steps=2, batching="loop", validate_every=1, log_every=1, optimiser="rmsprop", clip_value=10.0
        ),
        options={"n_hidden": 5, "n_slots": 6, "slot_width": 4},
        data_options={"max_length": 3},
    )
    train_run(config, folder / "copying")
    return folder / "copying"


def test_sequences_are_measured_and_pictured_beyond_training(copying):
    found = run_report(copying, "copying", Look(n_episodes=2))
    assert found.by_shots.along == "length"
    assert found.by_shots.x == (3, 10, 20, 30, 50, 120)
    assert found.by_shots.metric == "bits"
    titles = [p.title for p in found.pictures.sequences]
    assert titles == [
        "Length: 3, the largest in training",
        "Length: 10, beyond training",
        "Length: 120, beyond training",
    ]
    assert [len(p.target) for p in found.pictures.sequences] == [3, 10, 120]
    assert [bool(p.trace) for p in found.pictures.sequences] == [True, True, False]


def test_a_film_of_the_memory_lies_beside_the_report(copying, tmp_path):
    write_reports([copying], tmp_path / "r.html", Look(n_episodes=2))
    assert (tmp_path / "r-memory.gif").read_bytes().startswith(b"GIF")
    assert (tmp_path / "r-steps.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "r.html").read_text()
    assert "validation bits per sequence" in text, "an untested run is known by what was measured for its curves"


def test_pictures_of_runs_whose_folders_are_called_the_same_lie_side_by_side(copying, tmp_path):
    runs = [tmp_path / name / "seed-0" for name in ("one", "two")]
    for run in runs:
        shutil.copytree(copying, run)
    write_reports(runs, tmp_path / "r.html", Look(n_episodes=2))
    assert len(list(tmp_path.glob("r-*-steps.png"))) == 2
    assert len(list(tmp_path.glob("r-*-memory.gif"))) == 2


@pytest.mark.parametrize("name", ["mann", "lstm"])
def test_a_reader_of_classes_shows_its_steps_and_its_memory(name, tmp_path):
    sizes = {"n_hidden": 5} if name == "lstm" else {"n_hidden": 5, "n_slots": 9, "slot_width": 4}
    config = dataclasses.replace(
        TINY,
        algorithm=name,
        data="glyphs",
        task=TaskConfig(3, 1, 3, 2),
        network=BackboneConfig("none"),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        options=sizes,
    )
    train_run(config, tmp_path / "run")
    write_run_report(tmp_path / "run")
    assert "<h2>Read step by step</h2>" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "report-steps.png").exists()
    assert (tmp_path / "run" / "report-memory.gif").exists() == (name == "mann")


def test_ngrams_are_held_against_the_best_possible(copying, tmp_path):
    assert run_report(copying, "copying", Look(n_episodes=2)).best_validation is None
    options = {"n_hidden": 4, "n_layers": 1}
    train = TrainConfig(steps=2, batching="loop", validate_every=1, log_every=1)
    config = RunConfig(
        "lstm",
        "ngrams",
        task=TaskConfig(n_tasks=2),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=3),
        train=train,
        options=options,
        data_options={"n_bits": 20},
    )
    train_run(config, tmp_path / "run")
    found = run_report(tmp_path / "run", "lstm", Look(n_episodes=2))
    episodes = {"n_episodes": 3, "seed": config.train.seed + 1, "stream": VALIDATION}
    assert found.best_validation == optimal_score(open_split(config, "meta_val"), **episodes)
    assert 5 < found.best_validation < 20
