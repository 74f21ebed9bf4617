"""What a worker process runs: take shares of batches and leave gradients in shared memory, until the parent goes."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from kshot.core import Learner, UserError
from kshot.engine.batch import Batching, OuterStep
from kshot.engine.processes.memory import mapped
from kshot.engine.processes.messages import Ambient, Done, Failed, Job, Setup, receive, send


def main() -> None:
    """Serve the process at the other end of the standard streams until it closes them."""
    asked, answers = _streams()
    torch.set_num_threads(1)
    try:
        worker: Worker | None = None
        while True:
            message: Setup | Job = receive(asked)
            done: Done | None = None
            with _Caught() as caught:
                worker, done = _obey(worker, message)
            send(answers, caught.failure or done)
    except (EOFError, BrokenPipeError):  # the parent has ended, or has enough of this worker
        return


def _obey(worker: Worker | None, message: Setup | Job) -> tuple[Worker | None, Done | None]:
    if isinstance(message, Setup):
        return Worker(message), None
    return worker, worker(message) if worker is not None else None


def _streams() -> tuple[BinaryIO, BinaryIO]:
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb"), answers


class Worker:
    """A learner whose weights are those of the parent, and what was made ready for it.

    Args:
        setup: the learner, and where its weights lie.
    """

    def __init__(self, setup: Setup) -> None:
        self.learner: Learner = _unpacked(setup.learner)
        self.number = setup.number
        tensors = mapped(Path(setup.file), setup.places)
        for name, t in (*self.learner.named_parameters(), *self.learner.named_buffers()):
            # In this way a tensor that stands under several names stays one tensor.
            t.data = tensors[name]
        self.grads = {k: t for name, t in tensors.items() if (k := name.removeprefix(f"{setup.number}:")) != name}
        self.steps: dict[Any, OuterStep] = {}

    def __call__(self, job: Job) -> Done:
        """Take the outer gradient of a share.

        Args:
            job: the share and how to run it.

        Returns:
            The answer; gradients are left in the shared memory, in float64.
        """
        self._follow(job.ambient)
        step = self._step(job.batching, job.ambient.autocast)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default")
            torch.manual_seed(job.ambient.seed + self.number)
            losses, grads, buffers = step(job.episodes, wide=True)
        for name, g in grads.items():
            self.grads[name].copy_(g)
        return Done(losses, list(grads), _own(buffers), [(w.category, str(w.message)) for w in heard])

    def _follow(self, ambient: Ambient) -> None:
        for module, training in zip(self.learner.modules(), ambient.training, strict=True):
            module.training = training
        for p, trainable in zip(self.learner.parameters(), ambient.trainable, strict=True):
            p.requires_grad_(trainable)
        torch.set_default_dtype(ambient.dtype)
        torch.use_deterministic_algorithms(ambient.deterministic)

    def _step(self, batching: dict[str, Any], autocast: torch.dtype | None) -> OuterStep:
        key = (*sorted(batching.items()), autocast)
        if key not in self.steps:
            context = nullcontext if autocast is None else (lambda: torch.autocast("cpu", autocast))
            self.steps[key] = OuterStep(self.learner, Batching(**batching), context)
        return self.steps[key]


def _own(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: b.detach().clone() for k, b in buffers.items()}


def _unpacked(data: bytes) -> Learner:
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError) as error:
        raise UserError(
            f"expected a learner that another process can load, but: {error}; put its class into a module that can be "
            "imported, or choose a batching other than processes"
        ) from error


class _Caught:
    """Turns whatever is raised within it into a message."""

    failure: Failed | None = None

    def __enter__(self) -> _Caught:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if error is None:
            return False
        trace = "".join(traceback.format_exception(kind, error, at))
        self.failure = Failed(_portable(error), trace)
        return True


def _portable(error: BaseException) -> BaseException:
    # Some exceptions cannot be made again from their arguments.
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, LookupError):
        return (
            UserError(str(error)) if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}")
        )
    return error
