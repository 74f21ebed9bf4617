"""``kshot info``: what a fitted model knows, and how well, without opening its encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from kshot.cli.fit_numbers import expected_error
from kshot.cli.fit_words import expectation, size, spread, vouched
from kshot.cli.fitted import check_json_free, check_report_free, open_any, write_report
from kshot.cli.flags import parse
from kshot.cli.live import Display
from kshot.cli.tables import show, table
from kshot.core import UserError
from kshot.core.files import write_atomically

#: Classes that are listed.
_SHOWN = 100

_ABOUT = """\
Say what a model is: its classes and their shots, encoder and head, the accuracy
to expect, and at which error rates it can tell what is none of its classes.

examples:
  kshot info birds.kshot
  kshot info birds.kshot --report birds.html
  kshot info birds.kshot --json - | jq .classes"""


@dataclass(frozen=True)
class Info:
    """Settings of ``kshot info``.

    Attributes:
        model: the model file.
        report: write an HTML report there; it opens the encoder.
        json: write all that is known there; - for standard output, and nothing else.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    report: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: none)")] = ""
    json: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: none)")] = ""


def run(args: Sequence[str]) -> int:
    """Show a model.

    Args:
        args: the command line after ``kshot info``.

    Returns:
        The exit status.

    Raises:
        UserError: no model is named, or the file is none.
    """
    asked = parse(Info, args, prog="kshot info", about=_ABOUT)
    if not asked.model:
        raise UserError("expected a model file, one that kshot fit has written: kshot info MODEL")
    if asked.report:
        check_report_free(Path(asked.report))
    check_json_free(asked.json)
    from kshot.estimator import container
    from kshot.estimator.model_file import describe

    # All of it is read, so that a damaged file is told from a whole one; the encoder is left alone.
    container.read(Path(asked.model))
    found = describe(asked.model)
    if asked.report:
        with Display() as display:
            write_report(open_any(asked.model, display), asked.report, display)
    if asked.json == "-":
        print(json.dumps(found, indent=2))
        return 0
    if asked.json:
        write_atomically(Path(asked.json), json.dumps(found, indent=2) + "\n")
    _print(asked.model, found)
    return 0


def _print(path: str, found: dict[str, Any]) -> None:
    made = table()
    made.add_row("file", f"{path}, {size(Path(path))}, made by kshot {found['kshot']}")
    made.add_row("learnt from", f"{found['n_shots']:,} examples ({found['kind']}){_columns(found)}")
    tuned = ", fine-tuned" if found["encoder"]["settings"].get("finetuned") else ""
    made.add_row("encoder", f"{found['encoder']['name']}{tuned}")
    if found["task"] != "classification":
        e = found["expected"]
        made.add_row("answers", "numbers with intervals")
        made.add_row("expected error", expected_error(e["rmse"], e["mae"], e["r2"]))
        show(made)
        return
    counts = torch.tensor(found["shots"])
    made.add_row("classes", f"{len(counts):,} classes, {spread(counts)} shots a class")
    made.add_row("head", f"{found['head']['name']} {found['head']['strength']:g}")
    made.add_row("expected accuracy", _expected(found))
    # No rate at all is vouched for where nothing was left out.
    made.add_row("unknown", vouched(round(1 / found["least_rate"]) - 1))
    rate = found["params"]["unknown_rate"]
    if rate:
        made.add_row("", f"answers unknown at an error rate of {100 * rate:g} %, unless told otherwise")
    show(made)
    print()
    classes = table("class", "shots", unbroken=("class",))
    for label, n in list(zip(found["classes"], found["shots"], strict=True))[:_SHOWN]:
        classes.add_row(str(label), f"{n:,}")
    show(classes)
    if len(counts) > _SHOWN:
        print(f"and {len(counts) - _SHOWN:,} more; all of them: kshot info {path} --json -")


def _columns(found: dict[str, Any]) -> str:
    return f", columns {', '.join(found['columns'])}" if found["columns"] else ""


def _expected(found: dict[str, Any]) -> str:
    if found["expected"] is None:
        never = bool(found["losses"]) or max(found["shots"]) == 1
        return expectation(None) if never else "unknown since classes were added or removed; fit again to know"
    from kshot.estimator.expected import Expected

    return expectation(Expected(**found["expected"]))
