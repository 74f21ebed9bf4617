"""``kshot evaluate``: the run's own test again, other tasks, other statistics; and the JSON contract."""

import json
from dataclasses import replace

import pytest

from kshot.evaluation.record import read_record

CONTRACT = [
    *("schema", "algorithm", "data", "split", "n_way", "n_shot", "n_query", "n_episodes", "metric", "mean", "ci95"),
    *("seed", "normalisation", "transductive", "seconds", "commit", "environment", "data_sha256"),
]


def _json(kshot, *args) -> dict:
    ran = kshot("evaluate", *args, "--json", "-")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


def test_json_alone_stands_on_standard_output(kshot, sinusoid_run):
    found = _json(kshot, sinusoid_run, "--n-episodes", 8)
    assert list(found)[: len(CONTRACT)] == CONTRACT
    assert found["schema"] == 1
    assert found["command"] == f"kshot evaluate {sinusoid_run} --n-episodes 8 --json -"


def test_evaluation_repeats_the_test_of_training(kshot, sinusoid_run):
    kept = read_record(sinusoid_run / "result.json")
    found = _json(kshot, sinusoid_run, "--n-episodes", 8)
    assert found["per_episode"] == kept.extra["per_episode"]
    assert found["episodes_sha256"] == kept.extra["episodes_sha256"]


def test_another_seed_means_other_episodes(kshot, sinusoid_run):
    one, other = (_json(kshot, sinusoid_run, "--n-episodes", 4, "--seed", s) for s in (0, 1))
    assert one["episodes_sha256"] != other["episodes_sha256"]


def test_options_of_the_algorithm(kshot, sinusoid_run):
    few, many = (_json(kshot, sinusoid_run, "--n-episodes", 4, "--n-inner-steps-eval", k) for k in (1, 10))
    assert few["episodes_sha256"] == many["episodes_sha256"]
    assert few["mean"] != many["mean"]
    assert many["options"]["n_inner_steps_eval"] == 10


def test_other_tasks(kshot, glyphs_run):
    found = _json(kshot, glyphs_run, "--n-way", 7, "--n-shot", 2, "--n-query", 4, "--n-episodes", 3)
    assert (found["n_way"], found["n_shot"], found["n_query"], found["n_episodes"]) == (7, 2, 4, 3)
    assert found["metric"] == "accuracy"


def test_the_best_validations_answer_together(kshot, refused, tmp_path):
    run = tmp_path / "several"
    train = ("train", "maml", "--data", "sinusoid", "--n-shot", 5, "--n-query", 5, "--n-tasks", 2, "--batching", "loop")
    lengths = ("--steps", 6, "--validate-every", 2, "--val-episodes", 4, "--eval-episodes", 0, "--outer-lr", 0.1)
    assert kshot(*train, *lengths, "--keep-best", 2, "--out", run).status == 0
    alone, one, both = (_json(kshot, run, "--n-episodes", 8, *best) for best in ((), ("--best", 1), ("--best", 2)))
    assert one["per_episode"] == alone["per_episode"]
    assert one["steps_together"] == both["steps_together"][:1] == [alone["steps_trained"]]
    assert both["episodes_sha256"] == alone["episodes_sha256"]
    assert both["mean"] != alone["mean"]
    steps = ", ".join(map(str, both["steps_together"]))
    assert f"steps {steps} together" in kshot("evaluate", run, "--n-episodes", 2, "--best", 2).out
    assert "holds the weights of 2: train with --keep-best 3" in refused("evaluate", run, "--best", 3)
    assert "expected best >= 1, got 0" in refused("evaluate", run, "--best", 0)
    assert "leave out --ways" in refused("evaluate", run, "--best", 2, "--ways", 5, "--shots", 1)
    assert "has nothing to train" in refused("evaluate", "nearest", "--data", "glyphs", "--best", 2)
    none = refused(*train, "--steps", 2, "--validate-every", 0, "--keep-best", 2, "--out", tmp_path / "none")
    assert "expected validations to keep the best 2 of" in none


def test_validations_together_do_the_tasks_that_one_of_them_does(kshot, refused, tmp_path):
    run = tmp_path / "five"
    train = (
        "train",
        "maml",
        "--data",
        "glyphs",
        "--n-filters",
        4,
        "--n-query",
        2,
        "--n-tasks",
        2,
        "--batching",
        "loop",
    )
    lengths = ("--steps", 4, "--validate-every", 2, "--val-episodes", 4, "--eval-episodes", 0)
    assert kshot(*train, *lengths, "--keep-best", 2, "--out", run).status == 0
    asked = ("evaluate", run, "--best", 2, "--n-episodes", 2)
    assert kshot(*asked).status == 0
    assert "built for 5 outputs, got tasks with 7" in refused(*asked, "--n-way", 7)


def test_other_statistics(kshot, glyphs_run):
    """Weights stay; the leak of information between queries comes and goes with the statistics."""
    found = _json(kshot, glyphs_run, "--normalisation", "episode", "--n-episodes", 3)
    assert found["normalisation"] == "episode"
    assert found["transductive"] is True
    assert _json(kshot, glyphs_run, "--n-episodes", 3)["transductive"] is False


def test_episodes_that_vary(kshot, glyphs_run):
    found = _json(kshot, glyphs_run, "--n-way-range", 2, 6, "--n-episodes", 4)
    assert found["n_way"] == 6
    assert found["data_options"]["n_way_range"] == [2, 6]


def test_the_table_and_a_file(kshot, glyphs_run, tmp_path):
    ran = kshot("evaluate", glyphs_run, "--n-episodes", 4, "--json", tmp_path / "r.json")
    assert ran.status == 0
    for text in ("5-way 1-shot", "±", "negative log-likelihood", "calibration error", "inductive", "running"):
        assert text in ran.out
    assert read_record(tmp_path / "r.json").n_episodes == 4


def test_a_test_on_classes_of_the_training_says_so(kshot, glyphs_run):
    ran = kshot("evaluate", glyphs_run, "--split", "meta_train", "--n-episodes", 2)
    assert "classes of this test were trained on" in ran.out
    assert _json(kshot, glyphs_run, "--split", "meta_train", "--n-episodes", 2)["classes_seen_in_training"] > 100
    assert "trained on" not in kshot("evaluate", glyphs_run, "--n-episodes", 2).out


def test_many_ways_and_shots_leave_no_room_for_one(refused, glyphs_run):
    grid = ("evaluate", glyphs_run, "--ways", 2, 3, "--shots", 1)
    said = refused(*grid, "--n-way", 7, "--n-shot=2", "--instances", 3)
    assert "got --n-way, --n-shot, --instances too; leave them out" in said
    assert "got --n-shot too; leave it out" in refused(*grid, "--n_shot", 2)


@pytest.mark.parametrize(
    ("metric", "mean", "ci95", "n", "told"),
    [
        ("accuracy", 1.0, 0.0, 4, True),
        ("accuracy", 0.0, 0.0, 4, True),
        ("accuracy", 0.9, 0.1, 4, False),
        ("accuracy", 1.0, 0.0, 30, False),
        ("mse", 0.0, 0.0, 4, False),
    ],
)
def test_equal_accuracies_of_few_episodes_are_called_few(kshot, glyphs_run, monkeypatch, metric, mean, ci95, n, told):
    kept = read_record(glyphs_run / "result.json")
    found = replace(kept, metric=metric, mean=mean, ci95=ci95, n_episodes=n)
    monkeypatch.setattr("kshot.cli.evaluate._evaluate", lambda *_: found)
    ran = kshot("evaluate", glyphs_run)
    assert ran.status == 0, ran.err
    assert ("note: few episodes: all 4 came out the same" in ran.out) == told


def test_a_head_for_five_classes_cannot_do_seven(kshot, tmp_path, monkeypatch):
    monkeypatch.setattr("kshot.cli.train.write_run_report", lambda run, **options: run / "report.html")
    from tests.cli.conftest import TINY

    assert kshot("train", "maml", "--data", "glyphs", *TINY, "--out", tmp_path / "run").status == 0
    ran = kshot("evaluate", tmp_path / "run", "--n-way", 7, "--n-episodes", 2)
    assert ran.status == 2
    assert "built for 5 outputs, got tasks with 7" in ran.err


@pytest.mark.needs_data
def test_other_data(kshot, glyphs_run, data_root):
    found = _json(kshot, glyphs_run, "--data", "omniglot", "--n-episodes", 3, "--data-root", data_root)
    assert found["data"] == "omniglot"
    assert found["data_sha256"] != read_record(glyphs_run / "result.json").data_sha256
