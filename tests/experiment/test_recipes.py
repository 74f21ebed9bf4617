import dataclasses
import json
import math

import pytest

from kshot.core import UserError
from kshot.core.registry import methods
from kshot.engine.train import TrainConfig
from kshot.experiment.config import EvalConfig, RunConfig, TaskConfig, load_config
from kshot.experiment.recipes import Recipe, Row, recipe, recipes, reproduce, verdict, write_result
from kshot.experiment.recipes.measure import measure, milestone, seconds_until


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


def _sequences(data, data_options, rows, steps=4):
    config = RunConfig(
        "lstm",
        data,
        task=TaskConfig(n_tasks=3),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        train=TrainConfig(steps=steps, batching="native", validate_every=2),
        options={"n_hidden": 4},
        data_options=data_options,
    )
    return Recipe("tiny", "nobody", config, rows, "none")


def _metrics(folder, values):
    text = "step,loss,grad_norm,outer_lr,val,seconds\n"
    text += "".join(f"{step},0.5,1.0,0.1,{'' if v is None else -v},1.0\n" for step, v in values.items())
    (folder / "metrics.csv").write_text(text)


def test_when_a_training_first_met_a_bound(tmp_path):
    found = _sequences("copy", {"max_length": 2}, ())
    reproduce(found, tmp_path, seeds=(0,))
    run = tmp_path / "seed-0"
    _metrics(run, {1: None, 2: 5.0, 4: 0.9, 6: 1.2, 8: 0.1})
    assert (milestone(run, 1.0).mean, milestone(run, 1.0).every, milestone(run, 1.0).n_episodes) == (12, 6, 4)
    assert milestone(run, 0.2).mean == 24
    assert milestone(run, 0.05).mean == math.inf
    assert milestone(run, 0.05).to_dict()["mean"] is None


def test_seconds_until_a_training_first_reached_an_accuracy(tmp_path):
    text = "step,loss,val,seconds\n1,0.5,,10.0\n2,0.5,0.9,21.0\n4,0.5,0.975,42.5\n6,0.5,0.96,60.0\n8,0.5,0.98,80.0\n"
    (tmp_path / "metrics.csv").write_text(text)
    found = seconds_until(tmp_path, 0.97)
    assert (found.mean, found.metric, found.n_episodes, found.every) == (42.5, "seconds", 4, 20.0)
    assert seconds_until(tmp_path, 0.9).mean == 21.0
    assert seconds_until(tmp_path, 0.99).mean == math.inf
    asked = Row("seconds until 97 %", None, 60.0, "", {"reached": 0.97})
    assert verdict(asked, found.metric, found.mean)
    assert not verdict(asked, found.metric, math.inf)
    assert measure(asked, [tmp_path], None) == found


def test_rows_of_sequences(tmp_path):
    within = {"n_episodes": 4, "data_options": {"n_bits": 12}}
    rows = (
        Row("cost", None, None, "", within),
        Row("above the best", None, 1e9, "", within | {"excess": True}),
        Row("until", None, 5, "", {"until": 1e9}, over_seeds="median"),
        Row("slowest", None, 7, "", {"until": 1e9}, over_seeds="largest"),
        Row("never", None, 7, "", {"until": 0.0}, over_seeds="largest"),
    )
    result = reproduce(_sequences("ngrams", {"n_bits": 20}, rows), tmp_path, seeds=(0, 1, 2))
    cost, above, until, slowest, never = result["rows"]
    assert [row["metric"] for row in result["rows"]] == ["bits", "excess_bits", *["sequences"] * 3]
    for seed in range(3):
        assert above["records"][seed]["mean"] == pytest.approx(
            cost["records"][seed]["mean"] - cost["records"][seed]["optimal_bits"]
        )
        assert above["records"][seed]["bits"] == cost["records"][seed]["mean"]
    assert above["ci95_episodes"] > 0
    assert (until["mean"], until["passed"], slowest["passed"]) == (6, False, True)
    assert (never["mean"], never["passed"], never["ci95_seeds"]) == (None, False, None)
    write_result(tmp_path / "r.json", result)
    assert "Infinity" not in (tmp_path / "r.json").read_text()


def test_machines_of_the_paper():
    """Tables 1 and 2 of the paper, and what holds for all: memory, clipping, momentum."""
    table = {
        "ntm-copy": ("lstm", 100, 1),
        "ntm-copy-ff": ("feedforward", 100, 1),
        "ntm-copy-learned": ("lstm", 100, 1),
        "ntm-copy-random": ("lstm", 100, 1),
        "ntm-repeat-copy": ("lstm", 100, 1),
        "ntm-repeat-copy-ff": ("feedforward", 100, 1),
        "ntm-associative-recall": ("lstm", 100, 1),
        "ntm-associative-recall-ff": ("feedforward", 256, 4),
        "ntm-ngrams": ("lstm", 100, 1),
        "ntm-ngrams-ff": ("feedforward", 100, 1),
        "ntm-priority-sort": ("lstm", 100, 5),
        "ntm-priority-sort-ff": ("feedforward", 512, 8),
    }
    known = {name: found for name, found in recipes().items() if found.config.algorithm == "ntm"}
    assert set(table) <= set(known)
    for name, (controller, n_hidden, n_heads) in table.items():
        options = known[name].config.options
        assert (options["controller"], options["n_hidden"], options["n_heads"]) == (controller, n_hidden, n_heads)
        assert (options["n_slots"], options["slot_width"]) == (128, 20)
        assert known[name].config.train.clip_value == 10


def test_a_recipe_starts_from_the_runs_of_another(tmp_path):
    """They are trained first, seed by seed, and their seconds count; what lies there is found trained."""
    first = _tiny()
    second = dataclasses.replace(_tiny(), name="second", starts_from=dataclasses.replace(first, name="first"))
    trained = []

    def keep(name, step, values):
        if name == "start":
            trained.append(step)

    result = reproduce(second, tmp_path / "second", seeds=(0, 1), on_event=keep)
    assert trained == [0, 0, 0, 0]
    for seed in (0, 1):
        config = load_config(tmp_path / "second" / f"seed-{seed}" / "config.toml")
        assert config.start == str(tmp_path / "first" / f"seed-{seed}")
        assert config.started_from == {"algorithm": "maml", "data": "sinusoid", "step": 3}
    alone = reproduce(first, tmp_path / "first", seeds=(0, 1))
    assert sum(result["train_seconds"]) >= sum(alone["train_seconds"])
    assert result["rows"][0]["records"][0]["started_from"]["step"] == 3
    assert result["rows"][0]["mean"] != alone["rows"][0]["mean"]
    (tmp_path / "second").rename(tmp_path / "moved")
    again = reproduce(second, tmp_path / "moved", seeds=(0, 1), on_event=keep)
    assert again["rows"][0]["mean"] == result["rows"][0]["mean"]


def test_a_first_look_at_a_chain_is_never_taken_for_the_whole(tmp_path):
    """Also where the number of steps is that of its last training."""
    first = dataclasses.replace(_tiny(), name="first", config=_with_steps(5))
    second = dataclasses.replace(_tiny(), name="second", starts_from=first)
    reproduce(second, tmp_path / "second", steps=3)
    reproduce(second, tmp_path / "second")
    starts = {p.parent.name: load_config(p).start for p in (tmp_path / "second").glob("*/config.toml")}
    assert {name: start.rpartition("/")[2] for name, start in starts.items()} == {
        "seed-0-steps-3": "seed-0-steps-3",
        "seed-0": "seed-0",
    }
    (tmp_path / "second" / "seed-0").rename(tmp_path / "second" / "seed-0-old")
    (tmp_path / "second" / "seed-0-steps-3").rename(tmp_path / "second" / "seed-0")
    with pytest.raises(UserError, match=r"started from .*first/seed-0-steps-3, expected .*first/seed-0; move it away"):
        reproduce(second, tmp_path / "second")


def test_a_run_that_started_from_another_recipe_is_not_taken_for_this_one(tmp_path):
    first = dataclasses.replace(_tiny(), name="first")
    second = dataclasses.replace(_tiny(), name="second", starts_from=first)
    reproduce(second, tmp_path / "second")
    changed = dataclasses.replace(second, starts_from=dataclasses.replace(first, name="other"))
    with pytest.raises(UserError, match=r"started from .*first/seed-0, expected .*other/seed-0; move it away"):
        reproduce(changed, tmp_path / "second")


def _with_steps(steps):
    config = _tiny().config
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
