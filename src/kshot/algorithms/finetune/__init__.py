"""Baselines: plain training, then a head or a few gradient steps for each task."""

from kshot.algorithms.finetune.baseline import Baseline as Baseline
from kshot.algorithms.finetune.baselinepp import BaselinePP as BaselinePP
from kshot.algorithms.finetune.finetune import FineTune as FineTune
from kshot.algorithms.finetune.hausdorff import Hausdorff as Hausdorff
from kshot.algorithms.finetune.linear_probe import LinearProbe as LinearProbe
from kshot.algorithms.finetune.nearest import Nearest as Nearest
