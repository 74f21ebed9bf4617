"""The weights of a run: the best of its validation, or several that answer together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from kshot.core import Learner, UserError
from kshot.engine.checkpoint import Checkpoints, load_tree
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.scores import Scores
from kshot.experiment.build import check_shapes
from kshot.experiment.ensemble import Ensemble
from kshot.experiment.folder import run_config
from kshot.experiment.rows import check_rows
from kshot.nn.norm import normalisation_of

Scorer = Callable[..., Scores]


def load_weights(learner: Learner, run: Path, kept: Path | None = None) -> int:
    """Put a run's best weights into a learner, or its last where it was never validated.

    Args:
        learner: built as the run's settings say.
        run: the run folder.
        kept: another checkpoint of the run.

    Returns:
        The outer step that they are of.

    Raises:
        UserError: there is no usable checkpoint, or it is of another learner.
    """
    step, tensors = kept_weights(run, kept)
    check_rows(learner, tensors, run_config(run), f"the checkpoint in {run}")
    check_shapes(learner, tensors, f"the checkpoint in {run}")
    try:
        missing, unexpected = learner.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UserError(f"the checkpoint in {run} is of another network: {error}") from error
    # Statistics come and go with the normalisation mode that one evaluates with; weights must all be there.
    other = [name for name in (*missing, *unexpected) if not name.endswith(("running_mean", "running_var"))]
    if other:
        raise UserError(f"the checkpoint in {run} is of another network: it differs in {', '.join(other)}")
    if missing and "running" in normalisation_of(learner):
        raise UserError(
            f"the run in {run} kept no running statistics to normalise by: it was trained with other ones; "
            "use normalisation support for an inductive number"
        )
    return step


def kept_weights(run: Path, kept: Path | None = None) -> tuple[int, dict[str, Tensor]]:
    """Read the weights that a run keeps: the best of its validation, or its last where it was never validated.

    Args:
        run: the run folder.
        kept: another checkpoint of the run.

    Returns:
        The outer step that they are of, and name -> tensor.

    Raises:
        UserError: there is no usable checkpoint.
    """
    checkpoints = Checkpoints(run / "checkpoints")
    kept = kept or (checkpoints.best if checkpoints.best.exists() else None)
    tree = load_tree(kept) if kept else checkpoints.load_newest()[0]
    try:
        return int(tree["step"] if "step" in tree else tree["progress"]["step"]), tree["learner"]
    except KeyError as error:
        raise UserError(f"the checkpoint in {run} is of another network: it has no {error}") from error


def best_together(run: Path, n: int, scorer: Scorer = evaluate) -> tuple[Scorer, list[int]]:
    """Let the weights of the best validations of one training answer together, as the paper of MAML++ tests.

    Args:
        run: the run folder, of a training that kept so many (``keep_best``).
        n: how many.
        scorer: called with them, as ``evaluate`` is.

    Returns:
        What scores them in the place of a learner of the run, and the steps that they are of, the best first.

    Raises:
        UserError: the run did not keep so many, or one of them is damaged.
    """
    kept = Checkpoints(run / "checkpoints").validated()
    if not 1 <= n <= len(kept):
        raise UserError(
            f"expected the best {n} validations in {run}, which holds the weights of {len(kept)}: "
            f"train with --keep-best {max(n, 2)}, and validate as often"
        )

    def score(learner: Learner, *args: object, **asked: object) -> Scores:
        members = [copy.deepcopy(learner) for _ in range(n)]
        for member, (_, path) in zip(members, kept, strict=False):
            load_weights(member, run, path)
        return scorer(Ensemble(members).eval(), *args, **asked)

    return score, [step for step, _ in kept[:n]]
