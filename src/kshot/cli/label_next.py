"""``kshot label-next``: which unlabelled examples would teach a model the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from kshot.cli.fit_words import notes, title
from kshot.cli.fitted import examples_of, matched_columns, open_model, read_new
from kshot.cli.flags import parse
from kshot.cli.live import Display
from kshot.core import UserError

_ABOUT = """\
Choose among unlabelled examples those to label next: the model is unsure of
them, and they are unlike one another. Prints one a line, the best first. Label
them, put them to the others, and fit again.

examples:
  kshot label-next birds.kshot new_photos/ --n 20"""


@dataclass(frozen=True)
class LabelNext:
    """Settings of ``kshot label-next``.

    Attributes:
        model: the model file.
        data: files and folders of unlabelled examples.
        n: so many.
        text_column: column of texts or SMILES.
        skip_bad: leave unreadable examples out, and name them, in the place of stopping.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    data: Positional[Annotated[tuple[str, ...], arg(metavar="DATA...", help_behavior_hint="")]] = ()
    n: Annotated[int, arg(aliases=("-n",))] = 10
    text_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: found by its name)")] = ""
    skip_bad: bool = False


def run(args: Sequence[str]) -> int:
    """Choose.

    Args:
        args: the command line after ``kshot label-next``.

    Returns:
        The exit status.

    Raises:
        UserError: no model or data is named, or something is wrong with one.
    """
    asked = parse(LabelNext, args, prog="kshot label-next", about=_ABOUT)
    if asked.n < 1:
        raise UserError(f"expected n >= 1, got {asked.n}")
    with Display() as display:
        model = open_model(asked.model, display)
        source = read_new(model, asked.data, display, text_column=asked.text_column or None, skip_bad=asked.skip_bad)
        with matched_columns():
            chosen = model.label_next(examples_of(source), asked.n)
        for line in notes(source):
            display.say(line)
    for i in chosen:
        print(title(source, int(i)))
    return 0
