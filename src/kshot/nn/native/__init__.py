"""Kernels in C++ for the network that most few-shot papers share, compiled on first use; see docs/know/native.md."""

from kshot.nn.native.build import NativeUnavailableError, available, ready, why_not
from kshot.nn.native.conv4 import Trunk, embed, trunk
from kshot.nn.native.design import EPS, Design
from kshot.nn.native.kernels import Inner, Labelled
from kshot.nn.native.maml import maml_losses
from kshot.nn.native.once import differentiated_once, suffices, switched_off
from kshot.nn.native.protonet import ProtoNetLosses, protonet_losses

__all__ = [
    "EPS",
    "Design",
    "Inner",
    "Labelled",
    "NativeUnavailableError",
    "ProtoNetLosses",
    "Trunk",
    "available",
    "differentiated_once",
    "embed",
    "maml_losses",
    "protonet_losses",
    "ready",
    "suffices",
    "switched_off",
    "trunk",
    "why_not",
]
