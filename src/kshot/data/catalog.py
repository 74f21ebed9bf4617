"""The catalogue: every data set by its name. A new one is one entry here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot.core import UserError
from kshot.core.registry import unknown
from kshot.data import challenge, omniglot, store
from kshot.data.dataset import DataSet, image_tasks
from kshot.data.download import OnProgress
from kshot.data.glyphs import glyphs_images
from kshot.data.sequences import entries as sequences
from kshot.data.sinusoid import Sinusoid
from kshot.data.source import TaskSource


def _sinusoid(split: str, *, n_shot: int, n_query: int) -> Sinusoid:
    return Sinusoid(n_shot=n_shot, n_query=n_query)


_ENTRIES = (
    DataSet(
        name="glyphs",
        kind="classification",
        summary="thousands of characters of many scripts, drawn from the fonts of matplotlib: needs no download",
        licence="drawn here from the fonts DejaVu (Bitstream Vera licence) and STIX (STIX Font License)",
        url="https://matplotlib.org/stable/users/explain/text/fonts.html",
        tasks=image_tasks,
        images=glyphs_images,
    ),
    DataSet(
        name="omniglot",
        kind="classification",
        summary="1,623 handwritten characters of 50 alphabets, 20 drawings of each",
        licence="MIT",
        url="https://github.com/brendenlake/omniglot",
        tasks=image_tasks,
        images=omniglot.omniglot_images,
        archives=omniglot.ARCHIVES,
    ),
    DataSet(
        name="omniglot_challenge",
        kind="classification",
        summary="the original challenge of Omniglot: 400 fixed 20-way one-shot trials within an alphabet, test only",
        licence="MIT",
        url="https://github.com/brendenlake/omniglot",
        tasks=challenge.challenge_tasks,
        archives=(challenge.RUNS,),
        splits=("meta_test",),
    ),
    DataSet(
        name="sinusoid",
        kind="regression",
        summary="sine waves of random amplitude and phase, the toy problem of MAML",
        licence="none needed: made by a formula",
        url="https://arxiv.org/abs/1703.03400",
        tasks=_sinusoid,
    ),
    *sequences.ENTRIES,
)


def datasets() -> dict[str, DataSet]:
    """Return every data set, by name in alphabetical order.

    Returns:
        A new dict.
    """
    return {entry.name: entry for entry in sorted(_ENTRIES, key=lambda entry: entry.name)}


def dataset(name: str) -> DataSet:
    """Look a data set up.

    Args:
        name: as in the catalogue.

    Returns:
        The data set.

    Raises:
        UserError: no such name; the message lists the names and the nearest one.
    """
    known = datasets()
    if name not in known:
        raise UserError(unknown("data set", name, list(known)))
    return known[name]


def open_source(
    name: str,
    split: str,
    *,
    n_way: int,
    n_shot: int,
    n_query: int,
    root: Path | str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> TaskSource:
    """Open one split of a data set, downloading it if it is absent.

    Args:
        name: as in the catalogue.
        split: meta_train, meta_val or meta_test.
        n_way: classes of a task; regression has none and leaves it aside, and sequences all three.
        n_shot: support examples of a class, or points of a regression task.
        n_query: query examples of a class, or points of a regression task.
        root: the data root, see ``kshot.data.store.data_root``.
        on_progress: called during a download with file name, bytes so far and bytes in all.
        **options: the data set's own, see ``DataSet.options``.

    Returns:
        The task source, on the CPU.
    """
    return dataset(name).open(
        split, n_way=n_way, n_shot=n_shot, n_query=n_query, root=root, on_progress=on_progress, **options
    )


def fetch(
    name: str,
    root: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Bring every archive of a data set to the data root; those that are there and right are left alone.

    Args:
        name: as in the catalogue.
        root: the data root.
        on_progress: called during downloads.

    Returns:
        The archives, all checked; none for a data set that is generated.
    """
    return [store.fetch(archive, root, on_progress) for archive in dataset(name).archives]


def verify(name: str, root: Path | str | None = None) -> list[Path]:
    """Check the contents of every archive of a data set that is present, by decoding all of it.

    Args:
        name: as in the catalogue.
        root: the data root.

    Returns:
        The archives that were checked and are right; none for a data set that is generated.

    Raises:
        UserError: an archive is damaged, or none is present.
    """
    archives = dataset(name).archives
    present = [archive for archive in archives if store.status(archive, root).present]
    if archives and not present:
        raise UserError(
            f"expected an archive of {name} below {store.data_root(root)}, found none; "
            f"get them by `kshot data fetch {name}`"
        )
    return [store.verify(archive, root) for archive in present]


def status(root: Path | str | None = None) -> dict[str, list[store.ArchiveStatus]]:
    """Look up which archives are where, without opening them.

    Args:
        root: the data root.

    Returns:
        For each data set by name its archives; none for a data set that is generated.
    """
    return {name: [store.status(archive, root) for archive in entry.archives] for name, entry in datasets().items()}
