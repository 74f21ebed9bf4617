"""``kshot add``: a new class for a fitted model, without fitting it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from kshot.cli.fit_words import amount, notes
from kshot.cli.fitted import (
    check_model_free,
    examples_of,
    label_like,
    matched_columns,
    open_model,
    read_new,
    shot_names,
)
from kshot.cli.flags import parse
from kshot.cli.live import Display
from kshot.cli.words import command_line
from kshot.core import UserError

_ABOUT = """\
Add a class to a model. DATA is what kshot predict takes: images or a folder of
them, or a CSV, TSV, JSONL or .txt file; all of it is of the new class. The head
is fitted to all shots at once, and its probabilities are calibrated anew; how
well to expect it to do is then unknown, until kshot fit has seen all classes.

examples:
  kshot add birds.kshot --class heron herons/
  kshot add topics.kshot --class refund refunds.txt --out more.kshot"""


@dataclass(frozen=True)
class Add:
    """Settings of ``kshot add``.

    Attributes:
        model: the model file.
        data: files and folders of examples.
        class_: name of the new class.
        out: the model file to write.
        text_column: column of texts or SMILES.
        skip_bad: leave unreadable examples out, and name them, in the place of stopping.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA...", help_behavior_hint="")]] = ()
    class_: Annotated[str, arg(name="class", metavar="NAME", help_behavior_hint="(required)")] = ""
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: MODEL itself)")] = ""
    text_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: found by its name)")] = ""
    skip_bad: bool = False


def run(args: Sequence[str]) -> int:
    """Add a class.

    Args:
        args: the command line after ``kshot add``.

    Returns:
        The exit status.

    Raises:
        UserError: no model, class or data is named, or something is wrong with one.
    """
    asked = parse(Add, args, prog="kshot add", about=_ABOUT)
    if not asked.class_:
        raise UserError("expected the name of the new class: kshot add MODEL --class NAME DATA")
    out = asked.out or asked.model
    if asked.out:
        check_model_free(Path(asked.out))
    with Display() as display:
        model = open_model(asked.model, display)
        label = label_like(asked.class_, list(model.classes_))
        source = read_new(model, asked.data, display, text_column=asked.text_column or None, skip_bad=asked.skip_bad)
        with matched_columns():
            model.add_class(label, examples_of(source), names=shot_names(source))
        if label == "unknown" and model.unknown_label is None:
            model.unknown_label = "none of these"  # as kshot fit does beside such a class
        model.calibrate().save(out)
    for line in notes(source):
        print(line)
    print(f"added {label} with {amount(len(source), source.kind)}; {out} has {len(model.classes_):,} classes")
    print(f"its expected accuracy is unknown until all is fitted again; look: {command_line('info', [out])}")
    return 0
