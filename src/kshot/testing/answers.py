"""Clauses about what a learner answers: shapes, purity, repetition, symmetries, leaks, and what can be stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kshot.core import Episode, Learner, Split, Tree, UserError, generator, tree_map
from kshot.core.episode import Episode as EpisodeType
from kshot.core.learner import options_of
from kshot.core.tree import leaves
from kshot.engine.checkpoint import flatten, unflatten
from kshot.nn.norm import NORMALISATIONS
from kshot.testing.case import Case, Skipped, difference, seeded
from kshot.testing.synthetic import SPECS, synthetic_episode
from kshot.testing.traces import changes, snapshot
