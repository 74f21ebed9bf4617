"""Several processes, and processes that are killed: through the shell, as a user meets them."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.cli.conftest import SINUSOID

from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.evaluation.record import read_record

pytestmark = pytest.mark.slow

KSHOT = (sys.executable, "-m", "kshot")
#: The same bits every time: nothing measured, one thread.
LINE = ["train", *map(str, SINUSOID), "--val-episodes", "4", "--eval-episodes", "8", "--validate-every", "20"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _kshot(*args: object) -> subprocess.CompletedProcess:
    line = [*KSHOT, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, timeout=280, env=ENVIRONMENT)


def _start(*args: object) -> subprocess.Popen:
    return subprocess.Popen(
        [*KSHOT, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _newest(run):
    step, path = Checkpoints(run / "checkpoints").steps()[0]
    return step, load_tree(path)["learner"]


def _wait_for_step(run, step, process):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.csv"
        if metrics.exists() and len(metrics.read_text().splitlines()) > step:
            return
        time.sleep(0.02)
    pytest.fail("training did not get that far")


def _same(one, other) -> bool:
    return one.keys() == other.keys() and all(bool((one[k] == other[k]).all()) for k in one)


def test_two_processes_take_the_steps_of_one(tmp_path):
    one = _kshot(*LINE, "--steps", 20, "--out", tmp_path / "one")
    two = _kshot(*LINE, "--steps", 20, "--devices", 2, "--out", tmp_path / "two")
    assert one.returncode == two.returncode == 0, two.stderr
    assert two.stdout.count("meta_test mean squared error") == 1, "only the first process speaks"
    assert two.stderr.count("2 processes") == 1
    alone, shared = (_newest(tmp_path / name)[1] for name in ("one", "two"))
    assert max(float((alone[k] - shared[k]).abs().max()) for k in alone) < 1e-5
    means = [read_record(tmp_path / name / "result.json").mean for name in ("one", "two")]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


def test_two_processes_choose_one_free_folder(tmp_path):
    line = [*KSHOT, *LINE, "--steps", "4", "--devices", "2", "--eval-episodes", "0"]
    for _ in range(2):
        done = subprocess.run(line, capture_output=True, text=True, timeout=200, env=ENVIRONMENT, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["maml-sinusoid-5s", "maml-sinusoid-5s-2"]


def test_two_processes_stop_in_order_and_go_on(tmp_path):
    run = tmp_path / "run"
    process = _start(*LINE, "--steps", 100000, "--log-every", 1, "--devices", 2, "--out", run)
    _wait_for_step(run, 5, process)
    # As a terminal does it: Ctrl-C goes to every process.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err.count("Go on with:") == 1
    assert "Traceback" not in err
    assert out == ""
    stopped, _ = _newest(run)
    done = _kshot("train", "--resume", "--out", run, "--steps", stopped + 5)
    assert done.returncode == 0, done.stderr
    assert f"going on at step {stopped:,}" in done.stderr
    assert _newest(run)[0] == stopped + 5


def test_a_mistake_found_by_two_processes_is_told_once(tmp_path):
    done = _kshot(*LINE, "--steps", 4, "--devices", 2, "--n-tasks", 3, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


def test_torchrun(tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29741"]
    args = [*LINE, "--steps", "4", "--devices", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run([*line, "-m", "kshot", *args], capture_output=True, text=True, timeout=280, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("meta_test mean squared error") == 1


@pytest.mark.parametrize("when", [3, 17, 41])
def test_kill_9_and_resume_end_with_the_same_bits(tmp_path, when):
    settings = [*LINE, "--steps", 60, "--log-every", 1, "--checkpoint-every", 7, "--deterministic"]
    whole = _kshot(*settings, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = _start(*settings, "--out", tmp_path / "killed")
    _wait_for_step(tmp_path / "killed", when, process)
    process.kill()
    process.communicate()
    done = _kshot("train", "--resume", "--out", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    (step, weights), (other_step, others) = _newest(tmp_path / "whole"), _newest(tmp_path / "killed")
    assert step == other_step == 60
    assert _same(weights, others)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    # All but the seconds.
    assert [r.rsplit(",", 1)[0] for r in rows[0]] == [r.rsplit(",", 1)[0] for r in rows[1]]
    results = [read_record(tmp_path / name / "result.json") for name in ("whole", "killed")]
    assert results[0].extra["per_episode"] == results[1].extra["per_episode"]


def test_a_full_disk_is_told_once(tmp_path):
    """Only the first process writes; the others lose their connection to it, and are silent."""
    run = tmp_path / "run"
    process = _start(*LINE, "--steps", 100000, "--log-every", 1, "--checkpoint-every", 30, "--devices", 2, "--out", run)
    _wait_for_step(run, 2, process)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("in the way")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.count("error: could not write") == 1
    assert "Traceback" not in err
