"""The weights that a run starts from: those of another run, as far as they fit.

A network is often trained twice: as a plain classifier and then on tasks, as FEAT and others do, or on easy tasks and
then on hard ones. Between runs of one method everything is taken that has the same name and shape; between two methods
the network alone, for their other weights mean different things.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from kshot.core import Learner, UserError
from kshot.engine.checkpoint import Checkpoints
from kshot.experiment.build import BACKBONE_KINDS
from kshot.experiment.config import RunConfig
from kshot.experiment.folder import run_config
from kshot.experiment.weights import kept_weights


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        about: of the other run: its algorithm, its data and the step of its weights; empty if there is none.
        message: the run, what was taken from it and what is new, in words; empty if there is nothing to tell.
    """

    about: dict[str, Any]
    message: str


def begin(learner: Learner, config: RunConfig, out: Path, resume: bool) -> Start:
    """Put the weights of the run that the settings name into a learner; a run that is gone on with has its own.

    Args:
        learner: with its initial weights.
        config: its settings, resolved.
        out: the run folder.
        resume: a run lies there that is gone on with.

    Returns:
        What it starts from.

    Raises:
        UserError: there is no such run, or nothing of it fits.
    """
    if not config.start:
        return Start({}, "")
    if resume and (out / "config.toml").exists() and Checkpoints(out / "checkpoints").steps():
        return Start(run_config(out).started_from, "")
    run = Path(config.start)
    try:
        other = run_config(run)
        step, tensors = kept_weights(run)
    except UserError as error:
        raise UserError(f"nothing to start from in {run}: {error}; or leave --start out") from error
    fitting = _fitting(learner, tensors, same=other.algorithm == config.algorithm)
    # A bias or a temperature alone is no network.
    if all(t.ndim < 2 for t in fitting.values()):
        raise UserError(
            f"nothing of the run in {run} fits: it is {other.algorithm} on {other.data} with backbone "
            f"{other.network.backbone}; start from a run with the same network, or leave --start out"
        )
    learner.load_state_dict({**learner.state_dict(), **fitting})
    about = {"algorithm": other.algorithm, "data": other.data, "step": step}
    new = [name for name in _taken_over(learner) if name not in fitting]
    said = _told(about, run, new, len(new) + len(fitting))
    left = set(tensors) - set(learner.state_dict()) if other.algorithm == config.algorithm else ()
    return Start(about, said + (f"; no place here for {', '.join(sorted(left))}" if left else ""))


def _told(about: dict[str, Any], run: Path, new: list[str], n: int) -> str:
    what = f"{run} ({about['algorithm']} on {about['data']}, step {about['step']:,})"
    if not new:
        return f"{what}: all {n} tensors"
    parts = sorted({name.split(".")[0] for name in new})
    return f"{what}: {n - len(new)} of {n} tensors; new, in {', '.join(parts)}: {len(new)}"


def _taken_over(learner: Learner) -> list[str]:
    # Single numbers that are no parameters say what a learner is, or how far it has come: both are its own.
    learnt = dict(learner.named_parameters())
    return [name for name, tensor in learner.state_dict().items() if tensor.ndim or name in learnt]


def _fitting(learner: Learner, tensors: dict[str, Tensor], same: bool) -> dict[str, Tensor]:
    # By this learner's names.
    own = {name: learner.state_dict()[name] for name in _taken_over(learner)}
    pairs = {name: name for name in own} if same else _network(learner, tensors)
    found = {name: tensors[theirs] for name, theirs in pairs.items() if theirs in tensors and name in own}
    return {name: t for name, t in found.items() if t.shape == own[name].shape}


def _network(learner: Learner, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Pair the tensors of the network, which methods hold under different names.

    Returns:
        Name here -> name there; empty if there is no network here, or none like it there.
    """
    held = [(name, module) for name, module in learner.named_modules() if isinstance(module, BACKBONE_KINDS)]
    if not held:
        return {}
    prefix, network = held[0]
    inside = list(network.state_dict())
    # What stands before the names of a network there: the prefix that most of its tensors share.
    before = [name.removesuffix(end) for end in inside for name in tensors if name.endswith(f".{end}")]
    if not before:
        return {}
    there = max(set(before), key=before.count)
    return {f"{prefix}.{end}": f"{there}{end}" for end in inside}
