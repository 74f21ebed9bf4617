from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from kshot.core import UserError
from kshot.evaluation import (
    Record,
    commit,
    compare,
    environment,
    evaluate,
    provenance,
    read_record,
    record_of,
    scores_of,
)
from kshot.evaluation import record as record_file

CONTRACT = [
    *("schema", "algorithm", "data", "split", "n_way", "n_shot", "n_query", "n_episodes", "metric", "mean", "ci95"),
    *("seed", "normalisation", "transductive", "seconds", "commit", "environment", "data_sha256"),
]


@pytest.fixture
def record(learner, source) -> Record:
    scores = evaluate(learner, source, n_episodes=30)
    return record_of(scores, learner, source, algorithm="centroid", split="meta_test", command="kshot evaluate x")


def damaged(record: Record, **changes) -> dict:
    return {k: v for k, v in {**record.to_dict(), **changes}.items() if v is not ...}


def test_keys_are_the_contract_in_its_order_and_extra_ones_follow(record):
    keys = list(json.loads(record.to_json()))
    assert keys[: len(CONTRACT)] == CONTRACT
    assert keys[len(CONTRACT) : len(CONTRACT) + 4] == ["nll", "brier", "ece", "command"]


def test_values_come_from_the_evaluation(record, learner, source):
    scores = evaluate(learner, source, n_episodes=30)
    assert (record.mean, record.ci95, record.n_episodes) == scores.estimate
    assert (record.n_way, record.n_shot, record.n_query, record.data) == (3, 1, 4, "bars")
    assert (record.normalisation, record.transductive, record.metric) == ("none", False, "accuracy")
    assert record.data_sha256 == source.sha256
    assert record.extra["ece"] == scores.ece


def test_round_trip(record, tmp_path):
    path = tmp_path / "result.json"
    record.write(path)
    assert read_record(path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_regression_has_no_ways(line, sinusoid, tmp_path):
    record = record_of(evaluate(line, sinusoid, n_episodes=5), line, sinusoid, algorithm="line", split="meta_test")
    record.write(tmp_path / "r.json")
    read = read_record(tmp_path / "r.json")
    assert (read.n_way, read.metric, read.data_sha256) == (None, "mse", "")
    assert "ece" not in read.extra


def test_scores_come_back_for_comparison(record, learner, source, tmp_path):
    record.write(tmp_path / "r.json")
    scores = evaluate(learner, source, n_episodes=30)
    kept = scores_of(read_record(tmp_path / "r.json"))
    assert kept is not None
    assert kept.ece == pytest.approx(scores.ece, abs=1e-5)
    assert compare(kept, scores).difference.mean == pytest.approx(0, abs=1e-8)


def test_scores_need_not_be_kept(learner, source):
    scores = evaluate(learner, source, n_episodes=5)
    record = record_of(scores, learner, source, algorithm="a", split="s", keep_episodes=False)
    assert scores_of(record) is None
    assert "per_episode" not in record.extra


@pytest.mark.parametrize("kept", [["a"], [0.5], "abc", [[0.1] * 30]])
def test_damaged_scores_are_refused(record, kept):
    broken = Record.from_dict(damaged(record, per_episode=kept))
    with pytest.raises(UserError, match="evaluate again"):
        scores_of(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "upgrade kshot"),
        ({"schema": "1"}, "expected schema 1, got '1'"),
        ({"schema": True}, "expected schema 1"),
        ({"schema": ...}, "no kshot record"),
        ({"mean": ...}, "lacks mean"),
        ({"mean": "0.5"}, "mean to be a finite number, got '0.5'"),
        ({"mean": math.nan}, "mean to be a finite number"),
        ({"n_episodes": 1.5}, "n_episodes to be a whole number"),
        ({"n_shot": True}, "n_shot to be a whole number"),
        ({"n_way": "5"}, "n_way to be a whole number or null"),
        ({"transductive": 1}, "transductive to be true or false"),
        ({"environment": []}, "environment to be an object"),
    ],
)
def test_foreign_damaged_and_newer_files_are_refused(record, tmp_path, changes, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(damaged(record, **changes)))
    with pytest.raises(UserError, match=message):
        read_record(path)


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "no kshot record"), ('{"schema": 1, "mea', "damaged")])
def test_what_is_no_object_is_refused(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_record(path)


def test_absent_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no record at .*nowhere\.json"):
        read_record(tmp_path / "nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path / "bytes.json")
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path)


def test_whole_numbers_pass_for_floats_and_unknown_keys_are_kept(record):
    read = Record.from_dict(damaged(record, mean=1, published=0.988))
    assert read.mean == 1.0
    assert isinstance(read.mean, float)
    assert read.extra["published"] == 0.988


def test_nan_and_reserved_keys_are_not_written(record):
    known = damaged(record, schema=...)
    fields = {k: known.pop(k) for k in CONTRACT[1:]}
    with pytest.raises(UserError, match="finite numbers"):
        Record(**{**fields, "mean": math.inf}).to_json()
    with pytest.raises(UserError, match="extra keys"):
        Record(**fields, extra={"mean": 3}).to_json()


def test_a_failed_write_leaves_the_old_file(record, tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        record.write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_file_in_the_place_of_the_folder_is_said(record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder you may write to"):
        record.write(tmp_path / "file" / "r.json")


def test_environment_names_versions_and_machine():
    found = environment("cuda (X)")
    assert {"kshot", "python", "torch", "platform", "cpu", "cores", "threads", "device"} == set(found)
    assert found["torch"] == str(torch.__version__)
    assert found["device"] == "cuda (X)"
    assert all(found.values())


def test_commit_without_git_is_empty(monkeypatch):
    def absent(*_args, **_options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert commit() == ""


@pytest.mark.parametrize("slow", [subprocess.TimeoutExpired("git", 10), UnicodeDecodeError("utf-8", b"", 0, 1, "bad")])
def test_commit_never_raises(monkeypatch, slow):
    def fail(*_args, **_options):
        raise slow

    monkeypatch.setattr(subprocess, "run", fail)
    assert commit() == ""


def test_commit_names_the_tree_and_its_changes(monkeypatch, tmp_path):
    package = tmp_path / "src" / "kshot"
    (package / "evaluation").mkdir(parents=True)
    own = package / "evaluation" / "provenance.py"
    own.write_text("first")
    monkeypatch.setattr(provenance, "__file__", str(own))

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    assert commit() == ""  # somebody else's repository: our files are not in it
    git("add", ".")
    git("commit", "-q", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert commit() == head
    (tmp_path / "notes.txt").write_text("not part of the package")
    assert commit() == head
    own.write_text("second")
    assert commit() == head + "+dirty"


def test_one_line_for_each_list(record):
    lines = record.to_json().splitlines()
    assert sum("per_episode" in line for line in lines) == 1
    assert len(lines) < 45
    assert record_file.SCHEMA == 1
