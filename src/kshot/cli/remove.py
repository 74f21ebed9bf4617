"""``kshot remove``: a fitted model without one of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from kshot.cli.fitted import check_model_free, label_like, open_model
from kshot.cli.flags import parse
from kshot.cli.live import Display
from kshot.core import UserError

_ABOUT = """\
Remove a class, with its shots, from a model. Two must remain.

examples:
  kshot remove birds.kshot --class heron
  kshot remove birds.kshot --class heron --out fewer.kshot"""


@dataclass(frozen=True)
class Remove:
    """Settings of ``kshot remove``.

    Attributes:
        model: the model file.
        class_: name of the class.
        out: the model file to write.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    class_: Annotated[str, arg(name="class", metavar="NAME", help_behavior_hint="(required)")] = ""
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: MODEL itself)")] = ""


def run(args: Sequence[str]) -> int:
    """Remove a class.

    Args:
        args: the command line after ``kshot remove``.

    Returns:
        The exit status.

    Raises:
        UserError: no model or class is named, the model has no such class, or too few would remain.
    """
    asked = parse(Remove, args, prog="kshot remove", about=_ABOUT)
    if not asked.class_:
        raise UserError("expected the name of a class: kshot remove MODEL --class NAME")
    out = asked.out or asked.model
    if asked.out:
        check_model_free(Path(asked.out))
    with Display() as display:
        model = open_model(asked.model, display)
        label = label_like(asked.class_, list(model.classes_))
        model.remove_class(label)
        model.calibrate().save(out)
    print(f"removed {label}; {out} has {len(model.classes_):,} classes")
    return 0
