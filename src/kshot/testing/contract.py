"""``check_learner``: every clause that a learner must keep, run on small synthetic episodes in a few seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from kshot.core import Learner, Spec, UserError
from kshot.core.registry import unknown
from kshot.testing import answers, gradients, storing
from kshot.testing.case import Case, ContractError, Skipped, seeded
from kshot.testing.synthetic import SPECS, tiny_backbone

Clause = Callable[[Case], str]

#: Every clause by name, in the order in which they are run; the docstring of each says what it demands.
CLAUSES: dict[str, Clause] = {
    "declares": answers.declares,
    "shapes": answers.shapes,
    "pure": storing.pure,
    "repeats": answers.repeats,
    "support": answers.uses_support,
    "order": answers.ignores_order,
    "labels": answers.permutes_labels,
    "leak": answers.leaks,
    "ways": answers.any_way,
    "state": storing.states,
    "checkpoint": storing.checkpoints,
    "reach": gradients.reaches,
    "gradient": gradients.is_derivative,
    "batching": gradients.batchings_agree,
}

#: Clauses that run only where they are named: the protocol does not demand them of every method.
EXTRA: dict[str, Clause] = {"curvature": gradients.has_curvature}


#: What code that is not ours may raise; each is reported under the clause that met it.
CRASHES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Checked(NamedTuple):
    """One line of the report.

    Attributes:
        clause: its name.
        kept: False where it does not apply.
        note: what was checked, or why it does not apply.
    """

    clause: str
    kept: bool
    note: str


def check_learner(
    learner: Learner | type[Learner] | Callable[[Spec], Learner],
    spec: Spec | None = None,
    *,
    clauses: Sequence[str] | None = None,
    compiled: bool = False,
    normalisation: str | None = None,
    seed: int = 0,
) -> list[Checked]:
    """Hold a learner to the contract.

    Args:
        learner: a class (built by ``from_backbone`` on a tiny network, for each kind of task that it knows), a function
            that makes one for a specification, or one instance, which is copied and not changed.
        spec: the tasks to test on; needed with an instance, unless it carries one as ``spec``.
        clauses: names of ``CLAUSES``, or "curvature" (second derivatives); all of ``CLAUSES`` if None.
        compiled: compare compiled programs too, which takes a minute or more and a C++ compiler.
        normalisation: of the tiny network, where a class is given; the method's default if None.
        seed: of weights and episodes.

    Returns:
        A line for each clause: what was checked, or why it does not apply.

    Raises:
        ContractError: a clause is broken; the message says which, what came, and what to do.
        UserError: an unknown clause, or no specification where one is needed.

    Example:
        >>> from kshot.algorithms import ProtoNet
        >>> [line.note for line in check_learner(ProtoNet, clauses=["leak"])]
        ['inductive: every query alone and all at once']
    """
    if isinstance(learner, type):
        if not issubclass(learner, Learner):
            raise ContractError(
                "declares", learner.__name__, "a subclass of kshot.core.Learner", "another class", "derive it from that"
            )
        specs = [spec] if spec else [SPECS[kind] for kind in learner.kinds if kind in SPECS]
        cases = [Case(learner.__name__, one, _builder(learner, one, normalisation), seed, compiled) for one in specs]
    elif isinstance(learner, Learner):
        spec = spec or getattr(learner, "spec", None)
        if not isinstance(spec, Spec):
            raise UserError("expected the tasks to test an instance on, got no spec; pass spec=Spec(...)")
        cases = [Case(type(learner).__name__, spec, lambda _: copy.deepcopy(learner), seed, compiled)]
    else:
        spec = spec or SPECS["classification"]
        cases = [Case(getattr(learner, "__name__", "the learner"), spec, _seeded(learner, spec), seed, compiled)]
    return [line for case in cases for line in _check(case, clauses)]


def _builder(cls: type[Learner], spec: Spec, normalisation: str | None) -> Callable[[int], Learner]:
    chosen = normalisation or cls.default_normalisation
    return _seeded(lambda s: cls.from_backbone(tiny_backbone(s, chosen), s), spec)


def _seeded(make: Callable[[Spec], Learner], spec: Spec) -> Callable[[int], Learner]:
    def new(seed: int) -> Learner:
        with seeded(seed):
            made = make(spec)
        if not isinstance(made, Learner):
            raise TypeError(f"expected a kshot.core.Learner, got a {type(made).__name__}")
        return made

    return new


def _check(case: Case, names: Sequence[str] | None) -> list[Checked]:
    known = CLAUSES | EXTRA
    for name in names or ():
        if name not in known:
            raise UserError(unknown("clause", name, list(known)))
    return [_run(replace(case, clause=name), known[name]) for name in (CLAUSES if names is None else names)]


def _run(case: Case, clause: Clause) -> Checked:
    try:
        return Checked(case.clause, True, clause(case))
    except Skipped as reason:
        return Checked(case.clause, False, str(reason))
    except CRASHES as error:
        case.fail(
            "a small synthetic episode to run",
            f"{type(error).__name__}: {error}",
            "see the traceback above; the episodes are those of kshot.testing.synthetic_episode",
        )
