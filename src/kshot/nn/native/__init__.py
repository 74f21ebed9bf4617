"""Kernels in C++ for the one network that most few-shot papers share, compiled on first use; see docs/know/native.md."""

from kshot.nn.native.build import NativeUnavailableError, available, why_not
from kshot.nn.native.conv4 import EPS, SIDES, Trunk, trunk
from kshot.nn.native.maml import Inner, Labelled, maml_losses

__all__ = [
    "EPS",
    "SIDES",
    "Inner",
    "Labelled",
    "NativeUnavailableError",
    "Trunk",
    "available",
    "maml_losses",
    "trunk",
    "why_not",
]
