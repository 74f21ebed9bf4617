"""What all tests share: where real data lie, and settings of hypothesis that make a run repeatable."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Time limits per example fail on a busy machine and say nothing about the code.
settings.register_profile(
    "kshot", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kshot")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; tests that need it are skipped where there is none."""
    root = os.environ.get("KSHOT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("no real data here: set KSHOT_DATA to a folder that holds them")
    return Path(root)


@pytest.fixture(autouse=True)
def _global_generator():
    """Start every test from one state of the global generator, so that none depends on those before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
