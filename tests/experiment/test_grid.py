"""Accuracy against ways and shots: one command, a file, and a chart of the report."""

import json
import shutil

import pytest

from kshot.core import UserError
from kshot.engine.config import TrainConfig
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.grid import FILE, evaluate_grid, read_curves, write_grid
from kshot.experiment.reporting import Look, run_report
from kshot.experiment.run import evaluate_run, train_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "protonet"
    config = RunConfig(
        "protonet",
        "glyphs",
        task=TaskConfig(3, 1, 2, 1),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        network=BackboneConfig(n_filters=4),
        train=TrainConfig(steps=2, validate_every=0, batching="loop"),
    )
    train_run(config, folder)
    return folder


def test_each_cell_is_the_evaluation_of_its_tasks(run, tmp_path):
    seen = []
    grid = evaluate_grid(run, (7, 2), (3, 1), n_episodes=5, on_cell=seen.append)
    assert [(c["n_way"], c["n_shot"]) for c in grid["cells"]] == [(2, 1), (2, 3), (7, 1), (7, 3)]
    assert (grid["algorithm"], grid["n_query"], grid["n_episodes"]) == ("protonet", 5, 5)
    assert len(seen) == 4
    alone = evaluate_run(run, n_way=7, n_shot=3, n_query=5, n_episodes=5)[3]
    assert grid["cells"][3]["mean"] == pytest.approx(alone.mean, abs=1e-6)
    assert grid["cells"][2]["mean"] < grid["cells"][0]["mean"], "seven classes are harder than two"
    write_grid(tmp_path / "g.json", grid)
    curves = read_curves(tmp_path / "g.json")
    assert {k: c.x for k, c in curves.items()} == {1: (2, 7), 3: (2, 7)}
    assert curves[3].estimates[1].mean == pytest.approx(alone.mean, abs=1e-6)


def test_the_report_draws_it(run, tmp_path):
    from kshot.evaluation.report import ReportInput, render

    here = tmp_path / "run"
    shutil.copytree(run, here)
    write_grid(here / FILE, evaluate_grid(here, (2, 4), (1, 2), n_episodes=3))
    part = run_report(here, "p", Look(n_episodes=2))
    assert sorted(part.by_way) == [1, 2]
    html = render(ReportInput([part]))
    assert "Accuracy against ways, 1-shot" in html
    assert "Accuracy against ways, 2-shot" in html


def test_doors(run, tmp_path):
    with pytest.raises(UserError, match="at least one number of ways"):
        evaluate_grid(run, (), (1,))
    with pytest.raises(UserError, match="expected at least n_shot"):
        evaluate_grid(run, (2,), (100,), n_episodes=3)
    (tmp_path / "bad.json").write_text(json.dumps({"cells": [{}]}))
    with pytest.raises(UserError, match="is damaged"):
        read_curves(tmp_path / "bad.json")
    assert read_curves(tmp_path / "none.json") == {}


def test_the_command(run, tmp_path, capsys):
    from kshot.cli.main import main

    here = tmp_path / "run"
    shutil.copytree(run, here)
    line = ["evaluate", str(here), "--ways", "2", "3", "--shots", "1", "--n-episodes", "4", "--n-query", "2"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "ways_shots.json" in out
    assert json.loads((here / FILE).read_text())["command"].endswith("--n-query 2")
    assert main([*line, "--json", "-"]) == 0
    assert [c["n_way"] for c in json.loads(capsys.readouterr().out)["cells"]] == [2, 3]
    kept = (here / FILE).read_text()
    assert main([*line, "--split", "meta_val", "--json", str(tmp_path / "val.json")]) == 0
    assert (here / FILE).read_text() == kept, "the report would draw it as the run's own test"
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*line, "--json", str(tmp_path / "notes.txt")]) == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"
    capsys.readouterr()
    assert main(["evaluate", str(here), "--ways", "2"]) == 2
    assert "--ways and --shots together" in capsys.readouterr().err
