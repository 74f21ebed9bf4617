"""The folder of a run: taken once, and gone on with by the same settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kshot.core import Spec, UserError
from kshot.engine.checkpoint import Checkpoints
from kshot.experiment.build import resolve
from kshot.experiment.config import RunConfig, differences, load_config, save_config

#: Settings that may differ between a run and its continuation: none of them changes a step that was done.
MAY_CHANGE = (
    "train.steps",
    "train.patience",
    "train.checkpoint_every",
    "train.log_every",
    "where.",
    "evaluation.eval_",
)


def claim(out: Path, config: RunConfig, spec: Spec, resume: bool, writes: bool) -> RunConfig:
    """Take a folder for a run, or go on with the run that is in it.

    Args:
        out: the folder.
        config: the settings, resolved.
        spec: of the training tasks.
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
        if not writes and not differences(load_config(path), config):
            return config
        raise UserError(f"{out} holds another run; go on with it by --resume, or choose another --out")
    held = _completed(load_config(path), config, spec)
    changed = [d for d in differences(held, config) if not d.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(f"{out} holds a run with other settings ({'; '.join(changed)}); resume it with its own")
    if writes:
        save_config(path, config)
    return config


def _completed(held: RunConfig, wanted: RunConfig, spec: Spec) -> RunConfig:
    # Options that have been added to a method since a run of it began stand at their defaults.
    same = (held.algorithm, held.data) == (wanted.algorithm, wanted.data)
    return resolve(held, spec) if same else held


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
