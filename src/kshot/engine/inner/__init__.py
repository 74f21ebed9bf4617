"""The inner loop: steps on a task's support set as a pure function of parameters and buffers.

``weights`` takes tensors out of a network and runs it with others; ``steps`` descends; ``rules`` are its optimisers;
``recompute`` trades time for memory; ``learner`` is what methods that adapt by gradient steps share;
``fused`` has kernels for those that take plain steps.
"""

from kshot.engine.inner.fused import FusedGradients, FusedInnerLoop
from kshot.engine.inner.learner import InnerLoop, check_rate, first_divergence, one_by_one
from kshot.engine.inner.recompute import Random, recompute_is_on, recomputing, run_twice, unroll
from kshot.engine.inner.rules import Rates, Rule, adam, clipped, momentum, named_rule, preconditioned, sgd
from kshot.engine.inner.steps import Inner, InnerDivergence, gradient, matching, unrolled, watching
from kshot.engine.inner.weights import (
    HEAD,
    Named,
    OtherPathWarning,
    Weights,
    call,
    known,
    mean_of_tasks,
    outside_inference_mode,
    replace_buffers,
    twice_differentiable,
    weights_of,
    writes_in_place,
)

__all__ = [
    "HEAD",
    "FusedGradients",
    "FusedInnerLoop",
    "Inner",
    "InnerDivergence",
    "InnerLoop",
    "Named",
    "OtherPathWarning",
    "Random",
    "Rates",
    "Rule",
    "Weights",
    "adam",
    "call",
    "check_rate",
    "clipped",
    "first_divergence",
    "gradient",
    "known",
    "matching",
    "mean_of_tasks",
    "momentum",
    "named_rule",
    "one_by_one",
    "outside_inference_mode",
    "preconditioned",
    "recompute_is_on",
    "recomputing",
    "replace_buffers",
    "run_twice",
    "sgd",
    "twice_differentiable",
    "unroll",
    "unrolled",
    "watching",
    "weights_of",
    "writes_in_place",
]
