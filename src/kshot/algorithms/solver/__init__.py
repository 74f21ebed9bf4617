"""Closed-form methods: the head of a task is the solution of a convex problem."""

from kshot.algorithms.solver.dkt import DKT as DKT
from kshot.algorithms.solver.lrd2 import LRD2 as LRD2
from kshot.algorithms.solver.metaoptnet import MetaOptNet as MetaOptNet
from kshot.algorithms.solver.r2d2 import R2D2 as R2D2
