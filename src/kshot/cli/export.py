"""``kshot export``: a fitted model, encoder and all, for programs that know nothing of kshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from kshot.cli.fit_words import size
from kshot.cli.fitted import check_onnx_free, open_any
from kshot.cli.flags import parse
from kshot.cli.live import Display
from kshot.core import UserError

_ABOUT = """\
Write encoder and head as one ONNX file that gives probabilities, or
numbers. The file is
run on examples and compared with the model before it is kept. A JSON file
beside it says what to feed: sizes, means, the tokeniser, the classes.

examples:
  kshot export birds.kshot --onnx birds.onnx"""


@dataclass(frozen=True)
class Export:
    """Settings of ``kshot export``.

    Attributes:
        model: the model file.
        onnx: the ONNX file to write; an older one of kshot is replaced.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    onnx: Annotated[str, arg(metavar="FILE.onnx", help_behavior_hint="(required)")] = ""


def run(args: Sequence[str]) -> int:
    """Export.

    Args:
        args: the command line after ``kshot export``.

    Returns:
        The exit status.

    Raises:
        UserError: no model or file is named, another file is in the way, or the model cannot be exported.
    """
    asked = parse(Export, args, prog="kshot export", about=_ABOUT)
    path = Path(asked.onnx)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"expected a file that ends in .onnx, got {asked.onnx!r}: kshot export MODEL --onnx FILE.onnx")
    check_onnx_free(path)
    with Display() as display:
        model = open_any(asked.model, display)
        with display.waiting("writing and checking"):
            from kshot.estimator.export import export_onnx

            export_onnx(model, path)
    print(f"{path}  {size(path)}, gives the same as {asked.model}")
    return 0
