"""What the processes say to each other, and how: pickled frames through pipes, tensors as plain bytes."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from kshot.core import Episode

_LENGTH = struct.Struct("<Q")


class Setup(NamedTuple):
    """What a worker is told before its first job for a learner.

    Attributes:
        learner: pickled, apart from the rest, so that a failure to load it can be answered.
        file: path of the shared memory.
        places: what lies there; see ``kshot.engine.processes.memory``.
        number: which worker this is.
    """

    learner: bytes
    file: str
    places: tuple[Any, ...]
    number: int


class Ambient(NamedTuple):
    """What the parent has set, and a computation depends on.

    Attributes:
        training: mode of every module, in order.
        trainable: whether each parameter takes a gradient, in order.
        autocast: type of mixed precision, or None.
        dtype: PyTorch's default type.
        deterministic: whether PyTorch is held to deterministic kernels.
        seed: of the worker's random numbers, such as those of dropout.
    """

    training: list[bool]
    trainable: list[bool]
    autocast: torch.dtype | None
    dtype: torch.dtype
    deterministic: bool
    seed: int


class Job(NamedTuple):
    """A share of a batch of tasks.

    Attributes:
        batching: the fields of a ``Batching`` for the worker.
        episodes: the tasks.
        ambient: the settings.
    """

    batching: dict[str, Any]
    episodes: Episode | list[Episode]
    ambient: Ambient


class Done(NamedTuple):
    """A worker's answer; the gradient itself lies in the shared memory.

    Attributes:
        losses: (T,) of its tasks.
        names: of the parameters that have a gradient.
        buffers: the mean of what its tasks left.
        heard: category and text of each warning.
    """

    losses: Tensor
    names: list[str]
    buffers: dict[str, Tensor]
    heard: list[tuple[type[Warning], str]]


class Failed(NamedTuple):
    """A worker's answer where it could not do its job.

    Attributes:
        error: what was raised.
        trace: the worker's traceback.
    """

    error: BaseException
    trace: str


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        # PyTorch's own way writes an archive for each tensor.
        if type(obj) is Tensor and obj.device.type == "cpu" and obj.layout == torch.strided:
            raw: Any = obj.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(raw), obj.dtype, tuple(obj.shape))
        return NotImplemented


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(raw):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw) if isinstance(raw, bytes) else raw, dtype=dtype).reshape(shape)


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message.

    Args:
        stream: a pipe.
        message: anything that can be pickled.
    """
    held = io.BytesIO()
    _Pickler(held, protocol=5).dump(message)
    stream.write(_LENGTH.pack(held.tell()))
    stream.write(held.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read the next message, waiting for it.

    Args:
        stream: a pipe from a process of our own: a pickle can run code.

    Returns:
        The message.

    Raises:
        EOFError: the other end is gone.
    """
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError("the other process has ended")
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended")
    return pickle.loads(data)
