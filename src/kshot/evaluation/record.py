"""The JSON object of one evaluation: the number, its interval, and all that is needed to get it again.

The keys before ``extra`` are a contract (``schema`` 1): scripts read them. Whatever else is known stands after them.
"""

from __future__ import annotations

import json
import math
import types
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from kshot.core import Learner, UserError
from kshot.core.files import write_atomically
from kshot.data.source import TaskSource
from kshot.evaluation.provenance import commit, environment
from kshot.evaluation.scores import Scores
from kshot.nn.norm import normalisation_of

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One result.

    Attributes:
        algorithm: registered name of the method.
        data: name of the data set.
        split: meta_train, meta_val or meta_test.
        n_way: W, None for regression.
        n_shot: K, the largest where it varies.
        n_query: queries per class (or per task of regression).
        n_episodes: E.
        metric: "accuracy" or "mse".
        mean: its mean over episodes; accuracy is a share of 1.
        ci95: half width of its 95% interval over episodes.
        seed: of the episodes.
        normalisation: which statistics the network normalises by (see ``kshot.nn.norm``).
        transductive: True if one query's answer depends on the other queries.
        seconds: wall time of the evaluation.
        commit: of the code, with "+dirty" where files differ from it; "" where unknown.
        environment: versions and machine, see ``environment``.
        data_sha256: hash of the decoded examples; "" where they are made by a formula.
        extra: more keys, in the order to be written: nll, ece, options, command, ...
    """

    algorithm: str
    data: str
    split: str
    n_way: int | None
    n_shot: int
    n_query: int
    n_episodes: int
    metric: str
    mean: float
    ci95: float
    seed: int
    normalisation: str
    transductive: bool
    seconds: float
    commit: str
    environment: dict[str, Any]
    data_sha256: str
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: the contract's keys in their order, then the extra ones.

        Returns:
            A new dict.

        Raises:
            UserError: an extra key has a contract key's name.
        """
        taken = sorted(set(self.extra) & {"schema", *_CONTRACT})
        if taken:
            raise UserError(f"extra keys of a record must be new ones, got {', '.join(taken)}; rename them")
        return {"schema": SCHEMA, **{name: getattr(self, name) for name in _CONTRACT}, **self.extra}

    def to_json(self) -> str:
        """Return the JSON text.

        Returns:
            One line for each key, and for each item of an object; ends with a newline.

        Raises:
            UserError: a value is NaN or infinite, or is nothing that JSON can hold.
        """
        try:
            items = [f"  {_json(key)}: {_json(value)}" for key, value in self.to_dict().items()]
        except (TypeError, ValueError) as error:
            raise UserError(f"expected finite numbers, texts, lists and dicts in a record: {error}") from error
        return "{\n" + ",\n".join(items) + "\n}\n"

    @classmethod
    def from_dict(cls, found: Any, where: str = "the record") -> Record:
        """Read the JSON object.

        Args:
            found: the parsed JSON.
            where: what it came from, for messages.

        Returns:
            The record; unknown keys are kept in ``extra``.

        Raises:
            UserError: it is no record, of a newer kind, or damaged.
        """
        if not isinstance(found, dict) or "schema" not in found:
            raise UserError(f"{where} is no kshot record: expected a JSON object with the key 'schema'")
        schema = found["schema"]
        if type(schema) is not int or schema < 1:
            raise UserError(f"{where}: expected schema {SCHEMA}, got {schema!r}; is it another program's file?")
        if schema > SCHEMA:
            raise UserError(f"{where} has schema {schema}, this kshot reads up to {SCHEMA}; upgrade kshot to read it")
        missing = [name for name in _CONTRACT if name not in found]
        if missing:
            raise UserError(f"{where} is damaged or no kshot record: it lacks {', '.join(missing)}")
        known = {name: _typed(found[name], name, where) for name in _CONTRACT}
        extra = {name: value for name, value in found.items() if name != "schema" and name not in known}
        return cls(**known, extra=extra)

    def write(self, path: Path | str) -> None:
        """Write the record as JSON: to a new file first, which then takes the place of the old one.

        Args:
            path: the file; its folder must exist.

        Raises:
            UserError: it cannot be written.
        """
        write_atomically(Path(path), self.to_json())


_CONTRACT = tuple(f.name for f in fields(Record) if f.name != "extra")
_TYPES: dict[str, Any] = get_type_hints(Record)


def read_record(path: Path | str) -> Record:
    """Read a record from its JSON file.

    Args:
        path: the file.

    Returns:
        The record.

    Raises:
        UserError: it is absent, damaged, foreign or newer than this code.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no record at {path}; run `kshot evaluate` with --json first, or name another file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as a record: {error}") from error
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: expected JSON, got {error}; evaluate again to replace it") from error
    return Record.from_dict(found, str(path))


def record_of(
    scores: Scores,
    learner: Learner,
    source: TaskSource,
    *,
    algorithm: str,
    split: str,
    keep_episodes: bool = True,
    **extra: Any,
) -> Record:
    """Make the record of an evaluation.

    Args:
        scores: what ``evaluate`` returned.
        learner: what was evaluated.
        source: on what.
        algorithm: registered name of the method.
        split: which part of the data.
        keep_episodes: also keep each episode's score, so that runs can be compared episode by episode later.
        **extra: more keys, such as options, command, steps_trained.

    Returns:
        The record, with this machine's environment and this code's commit.
    """
    spec, estimate = source.spec, scores.estimate
    known = {name: scores.estimate_of(name).mean for name in scores.per_episode if name != scores.metric}
    if scores.ece is not None:
        known["ece"] = scores.ece
    detail = _episode_detail(scores) if keep_episodes else {}
    return Record(
        algorithm=algorithm,
        data=source.name,
        split=split,
        n_way=spec.n_outputs if spec.kind == "classification" else None,
        n_shot=source.n_shot,
        n_query=source.n_query,
        n_episodes=scores.n_episodes,
        metric=scores.metric,
        mean=estimate.mean,
        ci95=estimate.ci95,
        seed=scores.seed,
        normalisation=normalisation_of(learner),
        transductive=learner.transductive,
        seconds=round(scores.seconds, 3),
        commit=commit(),
        environment=environment(_device_name(learner)),
        data_sha256=source.sha256,
        extra={**known, **extra, **detail},
    )


def scores_of(record: Record) -> Scores | None:
    """Get the scores of each episode back from a record that kept them.

    Args:
        record: the record.

    Returns:
        Scores with the main metric only, or None if they were not kept.

    Raises:
        UserError: what was kept is damaged.
    """
    kept = record.extra.get("per_episode")
    if kept is None:
        return None
    try:
        values = torch.tensor(kept, dtype=torch.float64)
        bins = record.extra.get("calibration_bins")
        pooled = None if bins is None else torch.tensor(bins, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the record's per-episode scores are damaged: {error}; evaluate again") from error
    if values.shape != (record.n_episodes,) or (pooled is not None and (pooled.ndim != 2 or pooled.shape[0] != 3)):
        raise UserError(f"expected {record.n_episodes} scores in the record, got {tuple(values.shape)}; evaluate again")
    fingerprint = str(record.extra.get("episodes_sha256", ""))
    length = record.n_episodes // max(len(record.extra.get("per_run", ())) or record.n_episodes, 1)
    return Scores(record.metric, {record.metric: values}, pooled, record.seed, record.seconds, fingerprint, length)


def _episode_detail(scores: Scores) -> dict[str, Any]:
    detail: dict[str, Any] = {"episodes_sha256": scores.fingerprint}
    if scores.bins is not None:
        detail["calibration_bins"] = [[round(v, 6) for v in row] for row in scores.bins.tolist()]
    if scores.runs is not None:
        detail["interval"] = f"over {len(scores.runs)} runs"
        detail["per_run"] = [round(v, 4) for v in scores.runs.tolist()]
    detail["per_episode"] = [float(f"{v:.9g}") for v in scores.per_episode[scores.metric].tolist()]
    return detail


def _json(value: Any) -> str:
    indent = 2 if isinstance(value, dict) else None
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False).replace("\n", "\n  ")


def _typed(value: Any, name: str, where: str) -> Any:
    # Whole numbers pass for floats; booleans pass for booleans alone, though Python counts them as whole numbers.
    wanted = _TYPES[name]
    options = get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    plain = tuple(dict if getattr(o, "__origin__", o) is dict else o for o in options)
    if float in plain and type(value) is int:
        value = float(value)
    fits = isinstance(value, plain) and (type(value) is not bool or bool in plain)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{where} is damaged: expected {name} to be {_spelled(plain)}, got {value!r}")
    return value


def _spelled(kinds: tuple[type, ...]) -> str:
    names = {type(None): "null", float: "a finite number", int: "a whole number", str: "a text", bool: "true or false"}
    return " or ".join(names.get(kind, "an object") for kind in kinds)


def _device_name(learner: nn.Module) -> str:
    tensor = next(iter([*learner.parameters(), *learner.buffers()]), None)
    if tensor is None or tensor.device.type != "cuda":
        return "cpu" if tensor is None else tensor.device.type
    return f"cuda ({torch.cuda.get_device_name(tensor.device)})"
