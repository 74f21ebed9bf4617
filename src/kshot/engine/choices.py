"""Choices of a batching that were measured before, kept on this machine.

A measurement takes seconds and its outcome hangs on little: the method, the network, the shapes of a batch, the
software and the processor. So the outcome is kept in a file of the cache folder (``KSHOT_CACHE``), whose name is a hash
of all that. Anything odd about a file (damaged, of another version, a way that is not on offer here and now) counts as
none: it is measured anew and written again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kshot.core import Episode, Learner
from kshot.core.files import replace_file
from kshot.core.tree import leaves
from kshot.data.cache import cache_dir
from kshot.engine.auto import available, by_processes, choose
from kshot.engine.batch import Batching

SCHEMA = 1


class Choice(NamedTuple):
    """How tasks will be batched.

    Attributes:
        batching: the choice.
        seconds: of each way that was measured.
        remembered: True where the measurement is one of an earlier run.
    """

    batching: Batching
    seconds: dict[str, float]
    remembered: bool


def choose_once(
    learner: Learner,
    episodes: Episode | Sequence[Episode],
    *,
    n_steps: int = 0,
    compiled: str = "auto",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    anew: bool = False,
) -> Choice:
    """Choose as ``choose`` does, or as it did before for the same learner, shapes, software and machine.

    Args:
        learner: the method; unchanged afterwards.
        episodes: a batch as training will see it, on its device.
        n_steps: outer steps ahead.
        compiled: "on", "off" or "auto".
        autocast: makes a context for mixed precision.
        anew: measure whatever was measured before.

    Returns:
        The choice; a new one is kept, where the cache folder can be written.
    """
    with autocast():
        # How many steps lie ahead counts by its order: whether it pays to start or to compile something.
        key = key_of(learner, episodes, {"n_steps": f"below 2**{n_steps.bit_length()}", "compiled": compiled})
    path = cache_dir() / "batching" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if not anew and (found := _read(path, key)) is not None:
        # What fits into memory today, and what can run, is not in the key.
        ways = available(learner, episodes)
        offered = [*ways, *(by_processes(way, learner, episodes) for way in ways)]
        if replace(found.batching, compiled=False) in offered:
            return found
    batching, seconds = choose(learner, episodes, n_steps=n_steps, compiled=compiled, autocast=autocast)
    with suppress(OSError):
        replace_file(path, _written(key, batching, seconds))
    return Choice(batching, seconds, remembered=False)


def key_of(learner: Learner, episodes: Episode | Sequence[Episode], settings: dict[str, Any]) -> str:
    """Describe all that the outcome of a measurement hangs on.

    Args:
        learner: the method.
        episodes: a batch.
        settings: of the choice.

    Returns:
        A text.
    """
    from kshot import __version__

    several = [episodes] if isinstance(episodes, Episode) else list(episodes)
    described = {
        "schema": SCHEMA,
        "learner": _learner(learner),
        "episodes": [_episode(e) for e in several],
        "settings": settings,
        "mixed": str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "",
        "versions": [__version__, str(torch.__version__), platform.python_version()],
        "machine": _machine(next(learner.parameters()).device),
        "threads": torch.get_num_threads(),
    }
    return json.dumps(described, sort_keys=True)


def _learner(learner: Learner) -> dict[str, Any]:
    try:
        source = inspect.getsource(type(learner))
    except (OSError, TypeError):  # typed at a prompt
        source = ""
    return {
        "class": f"{type(learner).__module__}.{type(learner).__qualname__}",
        "source": hashlib.sha256(source.encode()).hexdigest(),
        "modules": [[name, type(m).__qualname__, *_settings(m)] for name, m in learner.named_modules()],
        "tensors": [
            [name, str(t.dtype), *t.shape, t.requires_grad]
            for name, t in (*learner.named_parameters(), *learner.named_buffers())
        ],
    }


def _settings(module: torch.nn.Module) -> list[str]:
    # Plain numbers and words on a module: how many steps, which mode; tensors and parts of it are listed elsewhere.
    plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    return [f"{k}={v!r}" for k, v in sorted(plain.items())]


def _episode(episode: Episode) -> list[Any]:
    return [[s.n_way, *([str(t.dtype), *t.shape] for t in (*leaves(s.x), s.y))] for s in episode]


def _machine(device: torch.device) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return [platform.system(), platform.machine(), device.type, name]


def processor() -> str:
    """Name the processor.

    Returns:
        Its model where the system says so.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _written(key: str, batching: Batching, seconds: dict[str, float]) -> bytes:
    # JSON has no infinity: what could not run is null.
    taken = {k: s if math.isfinite(s) else None for k, s in seconds.items()}
    return json.dumps({"key": json.loads(key), "batching": asdict(batching), "seconds": taken}, indent=1).encode()


def _read(path: Path, key: str) -> Choice | None:
    try:
        held = json.loads(path.read_bytes())
        if held["key"] != json.loads(key):
            return None
        seconds = {str(k): math.inf if s is None else float(s) for k, s in held["seconds"].items()}
        return Choice(Batching(**held["batching"]), seconds, remembered=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # absent, cut short, of another version
        return None
