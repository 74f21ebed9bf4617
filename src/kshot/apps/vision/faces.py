"""ORL faces: 40 people, 10 photographs of each, 92 x 112 in grey; by AT&T Laboratories Cambridge, 1992 to 1994.

Samaria and Harter, Parameterisation of a stochastic model for human face identification, WACV 1994.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from PIL import Image

from kshot.apps.vision.colours import to_rgb
from kshot.core import UserError
from kshot.data.store import data_root

_PHOTOGRAPH = re.compile(r"(?:.*/)?(s\d+)/(\d+)\.pgm")
_PLACE = "faces/att_faces.zip"


def orl_faces(root: Path | str | None = None) -> tuple[list[Image.Image], list[str]]:
    """Read the photographs.

    Args:
        root: the data root, see ``kshot.data.store.data_root``.

    Returns:
        400 pictures in mode RGB, and the person of each, "s1" to "s40", by person and number.

    Raises:
        UserError: the archive is absent or damaged.
    """
    path = data_root(root) / _PLACE
    if not path.is_file():
        raise UserError(
            f"expected ORL faces in {path}, which is absent; put the archive of AT&T's database of faces there "
            "(att_faces.zip, with folders s1 to s40 of PGM files)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            found = sorted(_photographs(archive))
            pictures = [to_rgb(Image.open(io.BytesIO(archive.read(name)))) for *_, name in found]
    except (zipfile.BadZipFile, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"expected ORL faces in {path}, which cannot be read ({error}); replace it") from error
    if len(found) != 400:
        raise UserError(f"expected 400 photographs in {path}, got {len(found)}; replace the archive")
    return pictures, [f"s{person}" for person, *_ in found]


def _photographs(archive: zipfile.ZipFile) -> list[tuple[int, int, str]]:
    matches = [(_PHOTOGRAPH.fullmatch(name), name) for name in archive.namelist()]
    return [(int(m[1][1:]), int(m[2]), name) for m, name in matches if m]
