"""The settings of a run, and the TOML file that repeats it."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.core.registry import unknown
from kshot.engine.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class TaskConfig:
    """The tasks of training.

    Attributes:
        n_way: classes of a task (W); sequences have options of their own in the place of this and the next two.
        n_shot: support examples of each class (K), or points of a regression task.
        n_query: query examples of each class, or points of a regression task.
        n_tasks: tasks of an outer step (T), in all processes together.
    """

    n_way: int = 5
    n_shot: int = 1
    n_query: int = 15
    n_tasks: int = 4

    def __post_init__(self) -> None:
        for name, least in (("n_way", 2), ("n_shot", 1), ("n_query", 1), ("n_tasks", 1)):
            if getattr(self, name) < least:
                raise UserError(f"expected {name} >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class EvalConfig:
    """The tasks of validation and of the test at the end; 0 stands for "as in training".

    Attributes:
        eval_n_way: classes of a task.
        eval_n_shot: support examples of each class.
        eval_n_query: query examples of each class, or points of a regression task.
        eval_episodes: episodes of the test; 0 to leave the test out.
        eval_seed: of the test episodes.
        val_episodes: episodes of each validation.
    """

    eval_n_way: int = 0
    eval_n_shot: int = 0
    eval_n_query: int = 0
    eval_episodes: int = 600
    eval_seed: int = 0
    val_episodes: int = 100

    def __post_init__(self) -> None:
        if self.val_episodes < 2 or self.eval_episodes == 1 or min(self.eval_episodes, self.eval_n_way) < 0:
            raise UserError(
                f"expected at least 2 episodes for an interval, got eval_episodes={self.eval_episodes} "
                f"and val_episodes={self.val_episodes}"
            )


@dataclass(frozen=True)
class BackboneConfig:
    """The network.

    Attributes:
        backbone: auto (conv4 for images, mlp for vectors, none for sequences), conv4, resnet12,
            wrn28_10, mlp, or none (examples as they
            are, flattened).
        normalisation: auto (what the method's paper uses), running, episode, support, layer or none.
        n_filters: channels of conv4.
        downsample: how conv4 halves the side: pool, stride, or first2, first3 (pool, in so many of four blocks).
        hidden: widths of the layers of mlp.
    """

    backbone: str = "auto"
    normalisation: str = "auto"
    n_filters: int = 64
    downsample: str = "pool"
    hidden: tuple[int, ...] = (40, 40)

    def __post_init__(self) -> None:
        if min((self.n_filters, *self.hidden)) < 1:
            raise UserError(f"expected widths of at least 1, got n_filters={self.n_filters} and hidden={self.hidden}")


@dataclass(frozen=True)
class DeviceConfig:
    """Where a run takes place.

    Attributes:
        device: auto, cpu, cuda, cuda:0, mps.
        devices: processes on this machine, each with its share of the tasks.
        nodes: machines (start each with torchrun).
        precision: 32-true, 64-true or bf16-mixed.
        threads: threads of each process on a CPU; 0 for PyTorch's choice.
        tensorboard: also write TensorBoard event files.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UserError(f"expected threads >= 0, got {self.threads}; 0 is PyTorch's choice")


@dataclass(frozen=True)
class RunConfig:
    """Everything that a training run depends on.

    Attributes:
        algorithm: registered name.
        data: name in the catalogue.
        task: the tasks of training.
        evaluation: the tasks of validation and test.
        network: the backbone.
        train: the outer loop.
        where: device and processes.
        options: the algorithm's own options; those left out are the paper's.
        data_options: the data set's own options.
        start: folder of a run whose weights this one starts from, as far as they fit; none if empty.
        started_from: of that run: its algorithm, data and step; filled in when the weights are taken.
    """

    algorithm: str
    data: str
    task: TaskConfig = field(default_factory=TaskConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    network: BackboneConfig = field(default_factory=BackboneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    where: DeviceConfig = field(default_factory=DeviceConfig)
    options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    started_from: dict[str, Any] = field(default_factory=dict)


def save_config(path: Path, config: RunConfig) -> None:
    """Write a run's settings as TOML.

    Args:
        path: the file.
        config: the settings.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, tomli_w.dumps(_plain(dataclasses.asdict(config))).encode())


def load_config(path: Path) -> RunConfig:
    """Read a run's settings.

    Args:
        path: a TOML file; what it leaves out has its default.

    Returns:
        The settings.

    Raises:
        UserError: the file is missing, is no TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"expected a config file at {path}, found none") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from error
    return from_table(RunConfig, table, str(path))


C = TypeVar("C")


def from_table(cls: type[C], table: dict[str, Any], where: str) -> C:
    """Make a settings dataclass from a table of TOML values.

    Args:
        cls: the dataclass.
        table: key -> value.
        where: what the table came from, for messages.

    Returns:
        The settings.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}: {unknown('key', key, list(hints))}")
    given = {key: typed(value, hints[key], f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"{where}: {error}; expected the keys {', '.join(hints)}") from error


def typed(value: Any, hint: Any, where: str) -> Any:
    """Check a value from a file against the type that it should have.

    Args:
        value: as the file has it.
        hint: the type: a settings class, a plain type, a tuple, a Literal, or one of these or None.
        where: what it is, for the message.

    Returns:
        The value; whole numbers as floats and lists as tuples where those are wanted.

    Raises:
        UserError: it has another type, or is none of the choices.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_table(hint, _of(value, dict, where), where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in inner):
        return value
    if origin is tuple:
        return _typed_tuple(value, inner, where)
    if origin is dict and inner[1] is not Any:
        return {k: typed(v, inner[1], f"{where}.{k}") for k, v in _of(value, dict, where).items()}
    if origin is typing.Literal:
        if value not in inner or type(value) not in {type(choice) for choice in inner}:
            raise UserError(f"{where}: expected one of {', '.join(map(str, inner))}, got {value!r}")
        return value
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return typed(value, next(h for h in inner if h is not type(None)), where)
    if hint is float and type(value) is int:
        return float(value)
    return _of(value, origin or hint, where)


def _typed_tuple(value: Any, inner: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    items = _of(list(value) if isinstance(value, tuple) else value, list, where)
    if inner[-1] is not Ellipsis and len(items) != len(inner):
        raise UserError(f"{where}: expected {len(inner)} values, got {len(items)}: {items!r}")
    kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
    return tuple(typed(item, kind, where) for item, kind in zip(items, kinds, strict=True))


def _of(value: Any, kind: Any, where: str) -> Any:
    if type(value) is not kind:
        raise UserError(f"{where}: expected {kind.__name__}, got {type(value).__name__} {value!r}")
    return value


def _plain(value: Any) -> Any:
    # TOML has no None and no tuples.
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """List the settings in which two runs differ.

    Args:
        one: settings.
        other: settings.

    Returns:
        A line for each, such as "train.steps: 1000 / 2000".
    """

    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, part in value.items() for k, v in flat(part, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    a, b = (flat(_plain(dataclasses.asdict(c)), "") for c in (one, other))
    return [f"{k}: {a.get(k)!r} / {b.get(k)!r}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
