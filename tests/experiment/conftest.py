"""What tests of the experiment share."""

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test keep what is kept between runs in a folder of its own."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
