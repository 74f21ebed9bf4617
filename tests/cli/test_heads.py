"""``kshot heads``, methods with nothing to train, and training by plain classification, as one types them."""

import json

import pytest

TRAIN = ("--data", "glyphs", "--n-way", 5, "--n-filters", 4, "--n-query", 2, "--n-tasks", 1, "--steps", 2)
QUICK = ("--validate-every", 2, "--val-episodes", 2, "--eval-episodes", 2, "--checkpoint-every", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from kshot.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "baseline"
    assert main([str(a) for a in ("train", "baseline", *TRAIN, *QUICK, "--out", out)]) == 0
    return out


def test_a_plain_classifier_is_trained_and_tested_on_few_shot_tasks(kshot, run):
    record = json.loads((run / "result.json").read_text())
    assert (record["algorithm"], record["n_way"], record["transductive"]) == ("baseline", 5, False)
    ran = kshot("evaluate", run, "--n-way", 3, "--n-episodes", 4)
    assert ran.status == 0
    assert "3-way 1-shot" in ran.out


def test_heads_says_who_is_transductive_and_compares(kshot, run, tmp_path):
    out = tmp_path / "heads.json"
    ran = kshot("heads", run, "--heads", "protonet,r2d2,tim", "--n-episodes", 4, "--n-query", 2, "--json", out)
    assert ran.status == 0, ran.err
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.startswith(("protonet", "r2d2", "tim"))}
    assert "transductive" in lines["tim"]
    assert "inductive" in lines["protonet"]
    assert "minus protonet" in ran.out
    written = json.loads(out.read_text())
    assert [head["head"] for head in written["heads"]] == ["protonet", "r2d2", "tim"]
    assert [head["transductive"] for head in written["heads"]] == [False, False, True]
    alone = kshot("heads", run, "--heads", "protonet", "--n-episodes", 4, "--n-query", 2, "--json", "-")
    assert json.loads(alone.out)["heads"][0]["mean"] == written["heads"][0]["mean"]


def test_heads_at_the_doors(refused, run):
    assert "unknown head 'relation'" in refused("heads", run, "--heads", "relation")
    assert "expected the folder of a run" in refused("heads")
    assert "expected a run folder" in refused("heads", run / "nowhere")


def test_methods_with_nothing_to_train(kshot, refused):
    ran = kshot("evaluate", "nearest", "--data", "glyphs", "--n-episodes", 3, "--n-way", 3, "--json", "-")
    record = json.loads(ran.out)
    assert (record["algorithm"], record["n_way"], record["n_episodes"]) == ("nearest", 3, 3)
    assert "kshot evaluate hausdorff --data glyphs" in refused("train", "hausdorff", "--data", "glyphs")
    assert "protonet has to be trained first" in refused("evaluate", "protonet", "--data", "glyphs")
    assert "expected a data set: kshot evaluate nearest --data NAME" in refused("evaluate", "nearest")


def test_plain_classification_needs_classes(refused):
    assert "expected images of fixed classes" in refused("train", "baseline", "--data", "sinusoid")
