"""Kernels in C++ for the one network that most few-shot papers share, compiled on first use; see docs/know/native.md."""

from kshot.nn.native.build import available, why_not

__all__ = ["available", "why_not"]
