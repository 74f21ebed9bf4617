"""The protocol: episodes, learners, the registry, errors, generator streams. Depends on torch alone."""

from kshot.core.encoder import Encoder, OnProgress
from kshot.core.episode import Episode, Split
from kshot.core.errors import DivergedError, UserError
from kshot.core.learner import Kind, Learner, Spec, task_loss, unchanged_since
from kshot.core.random import generator
from kshot.core.registry import Method, method, methods, register
from kshot.core.tree import Tree, tree_map

__all__ = [
    "DivergedError",
    "Encoder",
    "Episode",
    "Kind",
    "Learner",
    "Method",
    "OnProgress",
    "Spec",
    "Split",
    "Tree",
    "UserError",
    "generator",
    "method",
    "methods",
    "register",
    "task_loss",
    "tree_map",
    "unchanged_since",
]
