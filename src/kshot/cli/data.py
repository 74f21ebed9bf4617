"""``kshot data``: which data sets are on disk, and are they what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from kshot.cli.flags import parse
from kshot.cli.live import Display, RunView
from kshot.cli.tables import show, table
from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.data.cache import cache_dir
from kshot.data.catalog import dataset, datasets, fetch, status, verify
from kshot.data.store import ArchiveStatus, data_root

ACTIONS = ("fetch", "verify", "path")

_ABOUT = """\
Without an action: which files of which data sets are there.
fetch NAME     download what is absent or damaged, checked, resumable
verify NAME    decode all of it and compare with the known contents
path           print the data root

examples:
  kshot data
  kshot data fetch omniglot
  KSHOT_DATA=/big/disk kshot data verify omniglot"""


@dataclass(frozen=True)
class Data:
    """Settings of ``kshot data``.

    Attributes:
        action: fetch, verify or path.
        name: data set.
        data_root: where data sets lie.
    """

    action: Positional[Annotated[str, arg(metavar="ACTION", help_behavior_hint="(default: show what is there)")]] = ""
    name: Positional[Annotated[str, arg(metavar="NAME", help_behavior_hint="(for fetch and verify)")]] = ""
    data_root: Annotated[
        str, arg(metavar="DIR", help_behavior_hint="(default: KSHOT_DATA, or the user's cache folder)")
    ] = ""


def run(args: Sequence[str]) -> int:
    """Show, fetch or verify.

    Args:
        args: the command line after ``kshot data``.

    Returns:
        The exit status.

    Raises:
        UserError: the action is unknown, or lacks the name of a data set.
    """
    asked = parse(Data, args, prog="kshot data", about=_ABOUT)
    root = Path(asked.data_root) if asked.data_root else None
    if asked.action and asked.action not in ACTIONS:
        raise UserError(unknown("action", asked.action, list(ACTIONS)))
    if asked.action in ("fetch", "verify") and not asked.name:
        raise UserError(f"expected a data set: kshot data {asked.action} NAME, one of {', '.join(datasets())}")
    if asked.action == "path":
        print(data_root(root))
    elif asked.action == "fetch":
        _fetch(asked.name, root)
    elif asked.action == "verify":
        _verify(asked.name, root)
    else:
        _show(root)
    return 0


def _show(root: Path | None) -> None:
    made = table("data set", "file", "size", "state", unbroken=("data set", "file", "size"))
    for name, archives in status(root).items():
        if not archives:
            made.add_row(name, "", "", "made here: needs no file")
        for i, one in enumerate(archives):
            size = "" if one.n_bytes is None else f"{one.n_bytes / 1e6:.1f} MB"
            made.add_row(name if i == 0 else "", one.archive.path, size, _state(one))
    print(f"data root  {data_root(root)}\ncache      {cache_dir()}\n")
    show(made)


def _state(one: ArchiveStatus) -> str:
    if not one.present:
        return "absent: kshot data fetch, or the first use, downloads it"
    return "present, contents verified" if one.verified else "present, not verified yet"


def _fetch(name: str, root: Path | None) -> None:
    with Display() as display:
        paths = fetch(name, root, RunView(display, name, 0).on_download)
    _tell(name, paths, "present and verified")


def _verify(name: str, root: Path | None) -> None:
    with Display() as display, display.waiting(f"decoding {name}"):
        paths = verify(name, root)
    _tell(name, paths, "verified")
    absent = len(dataset(name).archives) - len(paths)
    if absent:
        print(f"{absent} other file{'s' if absent > 1 else ''} of {name} absent; get all by: kshot data fetch {name}")


def _tell(name: str, paths: Sequence[Path], word: str) -> None:
    if not paths:
        print(f"{name} is made here and needs no file")
    for path in paths:
        print(f"{path}  {word}")
