"""The settings that a command line asks for: which algorithm and data set, and the flags that those two bring."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import kshot.algorithms  # noqa: F401  (registers the methods)
from kshot.cli.flags import argument_helps, options_class, typed
from kshot.core import Spec, method, methods
from kshot.core.learner import options_of
from kshot.data.catalog import dataset, datasets
from kshot.data.dataset import DataSet
from kshot.experiment.config import typed as typed_value


def algorithm_group(name: str, data: str, n_way: int, held: Mapping[str, Any]) -> type:
    """Make the flags of an algorithm's own options.

    Args:
        name: of the algorithm.
        data: name of the data set, or "".
        n_way: classes of a task, on which a paper's settings may depend.
        held: settings of a run or a file, which are the defaults in the place of the paper's.

    Returns:
        A settings class.
    """
    found = method(name)
    kind = dataset(data).kind if data else "classification"
    spec = Spec(kind, (), n_way if kind == "classification" else 1)
    paper = {option: (value, "as in the paper") for option, value in found.learner.paper_options(spec).items()}
    options = options_of(found.learner)
    return options_class(found.paper, options, argument_helps(found.learner), {**paper, **_held(held, options, name)})


def data_group(name: str, held: Mapping[str, Any]) -> type:
    """Make the flags of a data set's own options.

    Args:
        name: of the data set.
        held: settings of a run or a file, which are the defaults.

    Returns:
        A settings class.
    """
    found = dataset(name)
    return options_class(found.summary, found.options, _data_helps(found), _held(held, found.options, name))


def _held(held: Mapping[str, Any], options: Mapping[str, inspect.Parameter], name: str) -> dict[str, tuple[Any, str]]:
    """Check settings that come from a file; unknown ones are refused where the run is built.

    Returns:
        Option -> its value, and where that came from.
    """
    return {
        option: (typed_value(value, options[option].annotation, f"option {option} of {name}"), "as in config.toml")
        for option, value in held.items()
        if option in options
    }


def _data_helps(found: DataSet) -> dict[str, str]:
    return argument_helps(*(f for f in (found.images, found.tasks) if f is not None))


def owners() -> dict[str, str]:
    """List every option of every algorithm and data set, for advice about a flag that stands in the wrong place.

    Returns:
        Option -> whose it is.
    """
    found: dict[str, list[str]] = {}
    for name, known in methods().items():
        for option in options_of(known.learner):
            found.setdefault(option, []).append(name)
    for name, entry in datasets().items():
        for option in entry.options:
            found.setdefault(option, []).append(name)
    return {option: " and ".join(names) for option, names in found.items()}


def given(args: Sequence[str], group: Any) -> dict[str, Any]:
    """Return those options of a group that were typed.

    Args:
        args: the command line.
        group: what it was parsed into.

    Returns:
        Option -> value.
    """
    named = typed(args, type(group))
    return {f.name: getattr(group, f.name) for f in dataclasses.fields(group) if f.name in named}
