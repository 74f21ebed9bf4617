"""Recipes of the tables: their settings fit the methods, and rows without a training of their own are measured."""

import dataclasses
import itertools

import pytest
import torch

from kshot.core import Spec, generator, methods
from kshot.data.catalog import dataset
from kshot.data.challenge import ChallengeTasks
from kshot.engine.train import TrainConfig
from kshot.evaluation.scores import Scores, compare
from kshot.evaluation.statistics import over_seeds
from kshot.experiment.build import build_learner, open_training, resolve
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig, typed
from kshot.experiment.recipes import Recipe, Row, recipes, reproduce
from kshot.experiment.recipes.challenge import RECIPES as CHALLENGE
from kshot.experiment.recipes.omniglot import RECIPES, SETTINGS, rows
from kshot.nn import native

ALL = (*RECIPES, *CHALLENGE)


def test_every_classifier_has_a_line_in_the_table():
    covered = {row.test.get("head", r.config.algorithm) for r in recipes().values() for row in r.rows}
    assert not {name for name, m in methods().items() if "classification" in m.learner.kinds} - covered - {"snail"}


@pytest.mark.parametrize("found", ALL, ids=lambda r: r.name)
def test_settings_fit_the_method_and_the_data(found):
    known = dataset(found.config.data).options
    for name, value in found.config.data_options.items():
        typed(value, known[name].annotation, name)
    learner = methods()[found.config.algorithm].learner
    way = 4112 if learner.trained_on == "classes" else found.config.task.n_way
    resolve(found.config, Spec("classification", (1, 28, 28), way))
    for row in found.rows:
        same_way = row.test.get("n_way", way) == found.config.task.n_way
        assert learner.any_way or same_way, f"{row.name}: {found.name} cannot be tested there"


@pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")
@pytest.mark.parametrize(
    "found", [r for r in ALL if r.config.train.batching in ("native", "fused")], ids=lambda r: r.name
)
def test_the_batching_that_is_asked_for_is_there(found):
    side = found.config.data_options.get("image_size", 28)
    spec = Spec("classification", (1, side, side), found.config.task.n_way)
    learner = build_learner(resolve(found.config, spec), spec).train()
    assert getattr(learner, found.config.train.batching)


def test_a_recipe_that_stands_on_another_has_its_settings():
    known = recipes()
    standing = [r for r in known.values() if r.stands_on]
    assert {r.name for r in standing} == {"heads-omniglot", "finetune-omniglot", "protonet-omniglot-ways"}
    for found in standing:
        assert found.config == known[found.stands_on].config


def test_rows_of_one_setting_see_the_same_tasks():
    tests = {(row.test["n_way"], row.test["n_shot"]): row.test for row in rows()}
    assert tuple(tests) == SETTINGS
    assert all((t["n_query"], t["n_episodes"]) == (15, 1000) for t in tests.values())
    assert [row.test["n_way"] for row in rows((0.1, None, 0.3, 0.4), "s", n_way=5)] == [5, 5]


def test_the_ladder_changes_one_thing_at_a_time():
    steps = {r.name.rpartition("-")[2]: r.config for r in CHALLENGE if r.name.startswith("challenge-small1")}
    ladder = [steps[name].data_options for name in ("plain", "rotations", "within", "apart", "28px", "small1")]
    for before, after in itertools.pairwise(ladder):
        assert len([k for k in after if before[k] != after[k]]) == 1
    for name, n_filters in (("wide", 96), ("narrow", 32)):
        assert steps[name] == dataclasses.replace(steps["28px"], network=BackboneConfig(n_filters=n_filters))
    distorted = steps["28px"].data_options
    assert steps["20px"].data_options == {**distorted, "image_size": 20}
    assert steps["mixed"].data_options == {**distorted, "within_group": 0.0, "turns_apart": False}
    assert all(c.data_options["trainval"] and not c.train.validate_every for c in steps.values())


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return RunConfig(
        "baseline",
        "glyphs",
        task=TaskConfig(5, 1, 2, 1),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=2),
        network=BackboneConfig(n_filters=4),
        train=TrainConfig(steps=2, validate_every=0, batching="loop"),
    )


def _glyph_row(name: str, **test: object) -> Row:
    return Row(name, None, None, "", {"n_way": 3, "n_shot": 1, "n_query": 2, "n_episodes": 6, **test})


def test_heads_stand_on_the_run_of_another_recipe(base, tmp_path):
    asked = tuple(_glyph_row(head, head=head) for head in ("simpleshot", "tim", "finetune"))
    found = Recipe("heads", "nobody", base, asked, "none", stands_on="whole")
    reproduce(Recipe("whole", "nobody", base, (_glyph_row("whole"),), "none"), tmp_path / "whole")
    steps = []
    result = reproduce(found, tmp_path / "heads", on_event=lambda name, step, values: steps.append(name == "step"))
    assert not any(steps), "the other recipe's run is taken as it is"
    assert not (tmp_path / "heads").exists()
    records = [row["records"][0] for row in result["rows"]]
    assert [r["algorithm"] for r in records] == ["simpleshot", "tim", "finetune"]
    assert [r["transductive"] for r in records] == [False, True, False]
    assert {r["normalisation"] for r in records} == {"running"}
    assert {r["trained_as"] for r in records} == {"baseline"}
    assert len({r["episodes_sha256"] for r in records}) == 1, "features and images: the same tasks"


def test_what_learns_nothing_is_not_trained(tmp_path):
    found = Recipe("pixels", "nobody", RunConfig("nearest", "glyphs"), (_glyph_row("pixels"),), "none")
    result = reproduce(found, tmp_path / "pixels", seeds=(0, 1))
    assert (result["seeds"], result["steps"], result["train_seconds"]) == ([], 0, [])
    assert result["command"] == "kshot reproduce pixels"
    assert len(result["rows"][0]["records"]) == 1
    assert not (tmp_path / "pixels").exists()


def test_the_seeds_answer_together_and_images_are_looked_at_again(base, tmp_path):
    config = dataclasses.replace(base, algorithm="protonet")
    asked = (_glyph_row("apart"), _glyph_row("views", views=3), _glyph_row("together", together=True))
    told = []
    result = reproduce(
        Recipe("tiny", "nobody", config, asked, "none"),
        tmp_path,
        seeds=(0, 1),
        on_row=lambda row, record: told.append(row.name),
    )
    assert told == ["apart", "views", "apart", "views", "together"]
    apart, views, together = (row["records"] for row in result["rows"])
    assert (len(apart), len(together)) == (2, 1)
    assert len({r["nll"] for r in (*apart, *views, *together)}) == 5, "each of them answers otherwise"
    assert len({r["episodes_sha256"] for r in (*apart, *views, *together)}) == 1


def test_the_interval_of_the_challenge_is_over_its_alphabets():
    """Runs 1 and 2 have the same characters, and so have 3 and 4, ...: there are ten independent draws, no twenty."""
    right = (torch.arange(400) % 20 < torch.arange(20).repeat_interleave(20)).double()
    scores = Scores("accuracy", {"accuracy": right}, None, 0, 1.0, "", ChallengeTasks.run_length)
    assert scores.estimate.ci95 == pytest.approx(over_seeds([(2 * i + 0.5) / 20 for i in range(10)]).ci95)
    assert scores.runs is not None
    assert scores.runs.tolist() == pytest.approx([(2 * i + 0.5) / 20 for i in range(10)])
    few = dataclasses.replace(scores, per_episode={"accuracy": right[:390]})
    assert few.runs is not None
    assert few.runs.tolist() == pytest.approx([*((2 * i + 0.5) / 20 for i in range(9)), float(right[360:390].mean())])
    assert few.estimate.mean == pytest.approx(float(right[:390].mean()))
    one = dataclasses.replace(scores, per_episode={"accuracy": right[:40]})
    assert one.runs is None, "of one alphabet there are no draws"


def test_learners_are_compared_over_alphabets_too():
    """Trials of one alphabet go wrong together: 400 of them tell no more than ten do."""
    by_alphabet = torch.tensor([0.3, -0.3, 0.3, -0.3, 0.2, -0.2, 0.2, -0.1, -0.1, 0.1])
    one = Scores("accuracy", {"accuracy": torch.zeros(400).double()}, None, 0, 1.0, "", ChallengeTasks.run_length)
    other = dataclasses.replace(one, per_episode={"accuracy": by_alphabet.repeat_interleave(40).double()})
    found = compare(other, one)
    assert found.difference.n == 10
    assert found.difference.ci95 == pytest.approx(over_seeds(by_alphabet).ci95)
    assert found.p_value > 0.5


@pytest.mark.parametrize("scheme", ["full", "small1", "small2"])
def test_the_sets_of_the_challenge_hold_such_tasks(scheme, data_root):
    """Not every set has an alphabet of 20 characters in one turn."""
    found = recipes()[f"challenge-{scheme}"]
    source = open_training(found.config, root=data_root)
    plan = source.plan(found.config.task.n_tasks, generator(0))
    assert source.episodes(plan).support.y.shape[-1] == 20
