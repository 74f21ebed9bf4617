"""Sequences on the command line: sizes as options of the data, bits in the words."""

from __future__ import annotations

import json

import pytest

TRAIN = "train lstm --data copy --n-hidden 6 --n-layers 1 --steps 2 --n-tasks 2 --val-episodes 2 --eval-episodes 4"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copying(kshot):
    ran = kshot(*TRAIN.split(), "--max-length", "3", "--optimiser", "rmsprop", "--clip-value", "10", "--out", "run")
    assert ran.status == 0, ran.err
    return ran


def test_training_speaks_of_sequences(copying):
    assert "2 sequences a step, 2 steps, seed 0" in copying.err
    assert "no backbone: " in copying.err
    assert "max_length=3" in copying.err
    assert "meta_test bits per sequence" in copying.out
    assert "kshot evaluate run --min-length 120 --max-length 120" in copying.out


def test_evaluation_at_other_sizes(copying, kshot):
    ran = kshot("evaluate", "run", "--min-length", "5", "--max-length", "5", "--n-episodes", "3")
    assert ran.status == 0
    assert "sequences of up to 6 steps read, 5 asked, copy meta_test" in ran.out
    assert "wrong bits" in ran.out
    ran = kshot("evaluate", "run", "--n-episodes", "3", "--json", "-")
    found = json.loads(ran.out)
    assert (found["metric"], found["n_way"], found["n_query"]) == ("bits", None, 3)


def test_the_best_possible_stands_beside_ngrams(kshot):
    ran = kshot(*TRAIN.replace("copy", "ngrams").split(), "--n-bits", "12", "--out", "bits")
    assert ran.status == 0, ran.err
    assert "the best possible" in kshot("evaluate", "bits", "--n-episodes", "3").out


def test_lengths_and_methods_that_make_no_sense(kshot):
    ran = kshot(*TRAIN.split(), "--min-length", "0")
    assert (ran.status, "1 <= min_length <= max_length, got 0 and 20" in ran.err) == (2, True)
    ran = kshot("train", "protonet", "--data", "copy", "--steps", "1")
    assert ran.status == 2
    assert "protonet learns classification, but copy is sequence" in ran.err
    ran = kshot(*TRAIN.split(), "--clip-value", "-1")
    assert (ran.status, "expected clip_value >= 0" in ran.err) == (2, True)


NTM = "train ntm --data copy --max-length 3 --n-hidden 4 --n-slots 4 --steps 2 --n-tasks 2 --val-episodes 2 --out run"


def said(ran) -> str:
    return " ".join(ran.err.split())


def test_a_memory_that_is_too_small_is_a_warning(kshot):
    ran = kshot(*NTM.split(), "--eval-episodes", "4", "--batching", "native")
    assert (ran.status, "rows" in ran.err) == (0, False)  # three vectors and a flag, and four rows
    ran = kshot("evaluate", "run", "--min-length", "5", "--max-length", "5", "--n-episodes", "2")
    assert ran.status == 0
    assert "warning: a sequence of 6 steps is longer than the memory of 4 rows: the heads choose" in said(ran)
    ran = kshot(*NTM.replace("run", "small").replace("4 --steps", "3 --steps").split(), "--eval-episodes", "0")
    assert (ran.status, "for that, train with --n-slots 4" in said(ran)) == (0, True)


@pytest.mark.parametrize("name", ["ntm", "mann", "dnc"])
def test_weights_are_not_evaluated_in_another_memory(kshot, name):
    train = NTM.replace("ntm", name).replace("--n-slots 4", "--n-slots 6")
    assert kshot(*train.split(), "--eval-episodes", "0").status == 0
    ran = kshot("evaluate", "run", "--n-slots", "7", "--n-episodes", "2")
    assert ran.status == 2
    assert "run is of another memory: expected 7 rows, got 6; leave out --n-slots" in said(ran)
    assert kshot("evaluate", "run", "--n-slots", "6", "--n-episodes", "2").status == 0
    ran = kshot(*train.replace("--n-slots 6", "--n-slots 5").split(), "--eval-episodes", "0", "--resume")
    assert (ran.status, "--n-slots 5 (the run has 6)" in said(ran)) == (2, True)


def test_widths_that_do_not_fit_the_model(copying, kshot):
    ran = kshot("evaluate", "run", "--n-bits", "4", "--n-episodes", "2")
    assert ran.status == 2
    assert "built for sequence of inputs (9,), got sequence of (5,)" in " ".join(ran.err.split())
    ran = kshot("evaluate", "run", "--min-length", "0", "--n-episodes", "2")
    assert (ran.status, "1 <= min_length <= max_length, got 0 and" in " ".join(ran.err.split())) == (2, True)


def test_steps_computed_twice_by_a_flag(kshot):
    ran = kshot(*NTM.split(), "--eval-episodes", "0", "--batching", "native", "--recompute")
    assert (ran.status, "native, steps recomputed" in " ".join(ran.err.split())) == (0, True)
