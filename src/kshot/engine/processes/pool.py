"""The parent's side: start workers once, hand each its share of every batch, gather what they found.

A worker is a new interpreter that imports kshot and nothing of the program that started it, so a script needs no guard,
and what runs in the parent (threads, files, a debugger) does not matter. It has one thread. Its orders come through a
pipe: when that closes, for whatever reason, the worker ends. Weights and gradients lie in memory that all of them map.

Starting an interpreter takes seconds, so workers that are let go wait in a stock for the next learner; ``end_idle``
ends them, and so does the end of the parent.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.core import Episode, Learner, UserError
from kshot.engine.inner import Named
from kshot.engine.processes.memory import laid_out, mapped, new_file
from kshot.engine.processes.messages import Ambient, Done, Failed, Job, Setup, receive, send

#: Threads of libraries; each worker has one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

#: Workers that are at nobody's service.
_STOCK: list[subprocess.Popen[bytes]] = []


class Found(NamedTuple):
    """What one worker found for its share.

    Attributes:
        losses: (T,) of its tasks.
        grads: name -> gradient of their mean, float64; valid until the next batch.
        buffers: name -> mean of what the tasks left.
    """

    losses: Tensor
    grads: Named
    buffers: Named


class WorkerError(RuntimeError):
    """The traceback of a worker, as the cause of the error that it met."""


def default_number() -> int:
    """Return how many workers there are where nobody says: one for each thread that PyTorch uses here, at least two."""
    return max(2, torch.get_num_threads())


class Workers:
    """Worker processes for one learner.

    Args:
        learner: on the CPU; its class must be one that another process can import.
        n: how many.

    Raises:
        UserError: the learner lies elsewhere, or cannot be handed over, or there is no room for what is shared.
    """

    def __init__(self, learner: Learner, n: int) -> None:
        elsewhere = {p.device.type for p in learner.parameters()} - {"cpu"}
        if elsewhere:
            raise UserError(
                f"batching=processes is for learners on the CPU, got one on {elsewhere.pop()}; use vmap or loop"
            )
        packed = _packed(learner)
        self.learner, self._told = learner, set[tuple[type[Warning], str]]()
        params = dict(learner.named_parameters())
        tensors = {**params, **dict(learner.named_buffers())}
        kinds = {k: (t.shape, t.dtype) for k, t in tensors.items()}
        grads = {f"{i}:{k}": (p.shape, torch.float64) for i in range(n) for k, p in params.items()}
        places = laid_out({**kinds, **grads})
        file = _file(max(p.end for p in places))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.close = weakref.finalize(self, _end, self._processes)
        try:
            self._shared = mapped(file, places)
            # All are on their way before the first one is waited for.
            self._processes.extend(_STOCK.pop() if _STOCK else _started() for _ in range(n))
            self._exchange([Setup(packed, str(file), places, i) for i in range(n)])
        finally:
            # Mapped by all of them by now: without a name it is gone with the last one, however that ends.
            with suppress(OSError):
                file.unlink()

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def alive(self) -> bool:
        """False once closed."""
        return self.close.alive

    def release(self) -> None:
        """Let the processes go: the next ``Workers`` have them, for whatever learner."""
        if self.close.detach() is not None:
            atexit.unregister(end_idle)
            atexit.register(end_idle)
            _STOCK.extend(self._processes)

    def run(
        self,
        shares: Sequence[Episode | list[Episode]],
        batching: dict[str, Any],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> list[Found]:
        """Take the outer gradients of several shares at once.

        Args:
            shares: at most one for each worker.
            batching: the fields of the ``Batching`` that each worker uses.
            autocast: makes a context for mixed precision.

        Returns:
            What was found, in the order of the shares.

        Raises:
            UserError: a worker was ended by somebody else. An error within a worker is raised as it was there.
        """
        tensors = {**dict(self.learner.named_parameters()), **dict(self.learner.named_buffers())}
        with torch.no_grad():
            for name, t in tensors.items():
                self._shared[name].copy_(t)
        ambient = _ambient(self.learner, autocast)
        answers = self._exchange([Job(batching, share, ambient) for share in shares])
        return [self._found(i, answer) for i, answer in enumerate(answers)]

    def _exchange(self, messages: Sequence[Setup | Job]) -> list[Any]:
        complete = False
        try:
            for worker, message in zip(self._processes, messages, strict=False):
                self._send(worker, message)
            answers = self._answers(len(messages))
            complete = True
        finally:
            if not complete:  # an answer that nobody has read would be taken for the next one
                self.close()
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer.error from WorkerError(f"in a worker process:\n{answer.trace}")
        return answers

    def _send(self, worker: subprocess.Popen[bytes], message: Setup | Job) -> None:
        try:
            send(_pipe(worker.stdin), message)
        except BrokenPipeError as error:
            raise UserError(_lost(worker)) from error

    def _answers(self, n: int) -> list[Any]:
        # All are read, so that after an error the next batch finds none of this one.
        found = []
        for worker in self._processes[:n]:
            try:
                found.append(receive(_pipe(worker.stdout)))
            except EOFError as error:
                raise UserError(_lost(worker)) from error
        return found

    def _found(self, i: int, done: Done) -> Found:
        for category, text in done.heard:
            if (category, text) not in self._told:
                self._told.add((category, text))
                warnings.warn(text, category, stacklevel=5)
        return Found(done.losses, {k: self._shared[f"{i}:{k}"] for k in done.names}, done.buffers)


def end_idle() -> None:
    """End the workers in stock."""
    _end(_STOCK)
    _STOCK.clear()


def _file(n_bytes: int) -> Path:
    try:
        return new_file(n_bytes)
    except OSError as error:
        raise UserError(
            f"expected room for a file of {n_bytes} bytes that processes share, got: {error.strerror or error}; free "
            f"some below {tempfile.gettempdir()}, or choose a batching other than processes"
        ) from error


def _packed(learner: Learner) -> bytes:
    try:
        return pickle.dumps(learner, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"expected a learner that another process can load, but {type(learner).__name__} cannot be pickled: "
            f"{error}; take functions without a name out of it, or choose a batching other than processes"
        ) from error


def _started() -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from kshot.engine.processes.worker import main; main()"
    # Ctrl-C goes to all processes of a terminal's foreground; who answers it is the parent.
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
        start_new_session=os.name == "posix",
    )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(OSError):  # it may have ended by itself, or have data in its pipe that nobody will read
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)  # what it started as well, such as a compiler
            else:
                process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                _pipe(pipe).close()


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise RuntimeError("a worker was started without pipes")
    return stream


def _ambient(learner: Learner, autocast: Callable[[], AbstractContextManager[Any]]) -> Ambient:
    with autocast():
        mixed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return Ambient(
        [m.training for m in learner.modules()],
        [p.requires_grad for p in learner.parameters()],
        mixed,
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        # Drawn from the generator whose state a checkpoint keeps.
        int(torch.randint(2**62, ())),
    )


def _lost(worker: subprocess.Popen[bytes]) -> str:
    status = worker.wait()
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return (
        f"expected an answer from worker process {worker.pid}, but it has ended ({how}); if memory is short, use fewer "
        "workers, or batching=loop"
    )
