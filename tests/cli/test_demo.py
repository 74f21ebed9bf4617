"""``kshot demo``, made tiny."""

import pytest

from kshot.cli.main import main
from kshot.evaluation.record import read_record
from kshot.experiment.config import differences
from kshot.experiment.demo import LEARNERS, Plan, demo_config
from kshot.experiment.folder import MAY_CHANGE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), "--steps", "2", "--n-episodes", "6"]) == 0
    return out


def test_learners_see_the_same_episodes():
    """All that decides an episode is the same for each of them."""
    first, *others = (demo_config(name, Plan()) for name in LEARNERS)
    for other in others:
        changed = differences(first, other)
        decided = [name for name in (line.split(":")[0] for line in changed) if not name.startswith("options.")]
        assert set(decided) <= {"algorithm", "train.batching"}
        assert "algorithm" in decided


def test_tests_saw_identical_episodes(demo):
    records = [read_record(demo / name / "result.json") for name in LEARNERS]
    records += [read_record(demo / f"{name}.json") for name in ("pixels", "untrained")]
    assert len({r.extra["episodes_sha256"] for r in records}) == 1
    assert {r.split for r in records} == {"meta_test"}


def test_one_table_with_intervals_and_a_report(demo, kshot):
    """The second call finds everything trained, says so, and gives the same numbers."""
    before = {name: read_record(demo / name / "result.json").mean for name in LEARNERS}
    ran = kshot("demo", "--out", demo, "--steps", 2, "--n-episodes", 6)
    assert ran.status == 0
    for name in ("pixels", "untrained", *LEARNERS):
        line = next(line for line in ran.out.splitlines() if line.startswith(name))
        assert " ± " in line
    assert "protonet minus maml, on the same tasks: " in ran.out
    assert "maml minus snail, on the same tasks: " in ran.out
    assert "memory-based" in ran.out
    assert "found trained" in ran.out
    assert "scripts that no learner has seen" in ran.err
    assert before == {name: read_record(demo / name / "result.json").mean for name in LEARNERS}
    html = (demo / "report.html").read_text()
    assert all(name in html for name in LEARNERS)


def test_another_seed_needs_another_folder(demo, refused):
    assert "other settings" in refused("demo", "--out", demo, "--steps", 2, "--n-episodes", 6, "--seed", 1)
    assert "train.seed".startswith(MAY_CHANGE) is False
