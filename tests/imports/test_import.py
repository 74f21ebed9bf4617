"""``import kshot`` is quick and quiet: no optional package, no network, no seed, no output."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import pytest

#: Packages that only some rooms need; ``import kshot`` must not pull them in.
ELSEWHERE = [
    *("matplotlib", "jinja2", "tyro", "rich", "pooch", "PIL", "tomli_w", "tensorboard", "hypothesis", "pytest"),
    *("easyfsl", "torchopt", "higher", "torchvision", "sklearn", "requests", "urllib3"),
]

PROBE = """
import json, socket, sys, time

import torch

def refuse(*args, **options):
    raise SystemExit("network")

socket.socket.connect = refuse
before = torch.get_rng_state().clone(), torch.initial_seed(), set(sys.modules)
threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
start = time.perf_counter()
import kshot
seconds = time.perf_counter() - start
print(json.dumps({
    "seconds": seconds,
    "modules": sorted({m.partition(".")[0] for m in set(sys.modules) - before[2]}),
    "rng": torch.equal(torch.get_rng_state(), before[0]) and torch.initial_seed() == before[1],
    "settings": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == (threads, dtype, grad),
    "version": kshot.__version__,
}))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def probe() -> dict[str, Any]:
    done = python(PROBE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # One line: the probe's own.
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.slow
def test_importing_touches_no_seed_and_no_setting(probe: dict[str, Any]) -> None:
    assert probe["rng"]
    assert probe["settings"]
    assert probe["version"]


@pytest.mark.slow
def test_importing_takes_no_package_that_lives_elsewhere(probe: dict[str, Any]) -> None:
    assert not set(probe["modules"]) & set(ELSEWHERE)
    assert "kshot" in probe["modules"]


@pytest.mark.slow
def test_importing_takes_less_than_two_and_a_half_seconds_more_than_torch(probe: dict[str, Any]) -> None:
    seconds = [probe["seconds"], *(json.loads(python(PROBE).stdout)["seconds"] for _ in range(2))]
    assert statistics.median(seconds) < 2.5, seconds


@pytest.mark.slow
def test_the_public_tests_need_hypothesis_for_strategies_only() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import kshot.testing; "
    assert python(code + "print(kshot.testing.CLAUSES.keys())").returncode == 0
    done = python(code + "import kshot.testing.strategies")
    assert "UserError: expected the package hypothesis" in done.stderr
