import dataclasses
import json

import pytest

from kshot.core import UserError
from kshot.core.registry import methods
from kshot.engine.train import TrainConfig
from kshot.experiment.config import EvalConfig, RunConfig, TaskConfig
from kshot.experiment.recipes import Recipe, Row, recipe, recipes, reproduce, verdict, write_result


def test_every_recipe_names_a_method_and_its_source():
    for name, found in recipes().items():
        assert name == found.name
        assert found.config.algorithm in methods()
        assert found.protocol
        for row in found.rows:
            assert (row.published is None) == (row.source == "")


def test_unknown_recipe():
    with pytest.raises(UserError, match="did you mean 'maml-sinusoid'"):
        recipe("maml-sinusoids")


def test_verdict_knows_which_way_is_better():
    row = Row("r", 0.9, 0.8, "s")
    assert verdict(row, "accuracy", 0.85) is True
    assert verdict(row, "accuracy", 0.75) is False
    assert verdict(row, "mse", 0.75) is True
    assert verdict(row, "mse", 0.85) is False
    assert verdict(dataclasses.replace(row, least=None), "mse", 0.5) is None


def _tiny():
    config = RunConfig(
        "maml",
        "sinusoid",
        task=TaskConfig(n_shot=5, n_query=5, n_tasks=2),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        train=TrainConfig(steps=3, batching="vmap", validate_every=0),
    )
    rows = tuple(Row(f"{k}", 0.5, 1e9, "s", {"n_query": 10, "n_episodes": 4, "steps": k}) for k in (1, 3))
    return Recipe("tiny", "nobody", config, rows, "none")


def test_a_recipe_runs_over_seeds_and_is_found_trained_the_second_time(tmp_path):
    seen = []
    result = reproduce(_tiny(), tmp_path, seeds=(0, 1), on_row=lambda row, record: seen.append((row.name, record.mean)))
    assert [name for name, _ in seen] == ["1", "3", "1", "3"]
    assert len({mean for _, mean in seen}) == 4, "seeds and step counts give different numbers"
    first = result["rows"][0]
    assert first["mean"] == pytest.approx((seen[0][1] + seen[2][1]) / 2)
    assert first["ci95_seeds"] > 0
    assert first["passed"] is True
    steps = []
    again = reproduce(_tiny(), tmp_path, seeds=(0, 1), on_event=lambda name, step, values: steps.append(name == "step"))
    assert not any(steps), "nothing is trained twice"
    assert again["rows"][0]["mean"] == first["mean"]
    write_result(tmp_path / "tiny.json", result)
    assert json.loads((tmp_path / "tiny.json").read_text())["rows"][1]["name"] == "3"


def test_one_seed_has_no_interval_over_seeds(tmp_path):
    result = reproduce(_tiny(), tmp_path, seeds=(0,), steps=2)
    assert result["rows"][0]["ci95_seeds"] is None
    assert result["steps"] == 2
    assert "--steps 2" in result["command"]
