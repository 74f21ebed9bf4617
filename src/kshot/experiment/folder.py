"""The folder of a run: taken once, and gone on with by the same settings alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kshot.core import UserError
from kshot.core.learner import options_of
from kshot.core.registry import methods
from kshot.engine.checkpoint import Checkpoints
from kshot.experiment.config import RunConfig, differences, load_config, save_config

#: Settings that may differ between a run and its continuation: none of them changes a step that was done.
MAY_CHANGE = (
    "train.steps",
    "train.patience",
    "train.checkpoint_every",
    "train.log_every",
    "where.",
    "evaluation.eval_episodes",
    "evaluation.eval_seed",
)


def claim(out: Path, config: RunConfig, resume: bool, writes: bool) -> RunConfig:
    """Take a folder for a run, or go on with the run that is in it.

    Args:
        out: the folder.
        config: the settings, resolved.
        resume: go on.
        writes: this process keeps the settings; one of several does.

    Returns:
        The settings.

    Raises:
        UserError: the folder holds another run, or parts of one, or nothing to go on with.
    """
    path = out / "config.toml"
    if not path.exists():
        if resume:
            raise UserError(f"nothing to resume in {out}: expected a config.toml there; start without --resume")
        if Checkpoints(out / "checkpoints").steps() or (out / "metrics.csv").exists():
            raise UserError(f"{out} holds parts of a run without its config.toml; choose another --out, or empty it")
        if writes:
            save_config(path, config)
        return config
    if not resume:
        # A process of the same run may have written it a moment ago.
        if not writes and not differences(run_config(out), config):
            return config
        raise UserError(f"{out} holds another run; go on with it by --resume, or choose another --out")
    held = run_config(out)
    changed = [d for d in differences(held, config) if not d.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(f"{out} holds a run with other settings ({'; '.join(changed)}); resume it with its own")
    done = max((step for step, _ in Checkpoints(out / "checkpoints").steps()), default=0)
    if done > config.train.steps:
        raise UserError(f"{out} has trained {done} steps already; ask for at least so many, or choose another --out")
    if writes:
        save_config(path, config)
    return config


def run_config(run: Path) -> RunConfig:
    """Read the settings that a run keeps.

    Args:
        run: the run folder.

    Returns:
        The settings. Options that were added to the method since stand at the defaults of its class, which leave it as
        it was; what the command line gives to a new run may be other than that.

    Raises:
        UserError: the folder holds no run.
    """
    if not (run / "config.toml").exists():
        raise UserError(
            f"expected a run folder with a config.toml at {run}; train one by: kshot train protonet --out {run}"
        )
    held = load_config(run / "config.toml")
    found = methods().get(held.algorithm)
    if found is None:
        return held
    defaults = {name: parameter.default for name, parameter in options_of(found.learner).items()}
    return dataclasses.replace(held, options=defaults | held.options)


@contextmanager
def taken(out: Path, new: bool) -> Iterator[None]:
    """Leave a folder free for the next try where a run is refused before anything was saved.

    Args:
        out: the folder.
        new: the run begins here.

    Yields:
        Nothing.

    Raises:
        UserError: the refusal, passed on.
    """
    try:
        yield
    except UserError:
        if new and not Checkpoints(out / "checkpoints").steps() and not (out / "metrics.csv").exists():
            with suppress(OSError):
                (out / "config.toml").unlink()
        raise
