"""The original Omniglot challenge: 20-way one-shot classification within one alphabet, 20 runs of 20 trials.

Lake, Salakhutdinov and Tenenbaum, Human-level concept learning through probabilistic program induction, Science 2015;
two runs for each of ten evaluation alphabets, drawn by its authors once and for all. An episode is one trial: the 20
characters of a run, one drawing of each by one person, and ONE drawing of one of them by another person. Each test
image stands alone in its episode, so no method can make use of the other 19.
"""

from __future__ import annotations

import copy
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kshot.core import Episode, Spec, Split, Tree, UserError
from kshot.data import store
from kshot.data.download import OnProgress
from kshot.data.omniglot import Drawings, check_size, decode_png, pack_bits, shrink
from kshot.data.source import TaskSource

N_RUNS, N_WAY = 20, 20
_AT_ONCE = 200
_LINE = re.compile(r"(run\d\d/test/item\d\d\.png) (run\d\d/training/class(\d\d)\.png)")


class Trials(NamedTuple):
    """The archive, decoded: run by run 20 training drawings, then 20 test drawings.

    Attributes:
        drawings: 800 of them, in the order of ``paths``.
        answers: int64 (20, 20), for each run and test drawing the training drawing of the same character.
    """

    drawings: Drawings
    answers: Tensor

    def sha256(self) -> str:
        """Hash names, pixels and answers, whatever the packing of the archive.

        Returns:
            64 hexadecimal digits.
        """
        return hashlib.sha256(f"{self.drawings.sha256()}{self.answers.tolist()}".encode()).hexdigest()


def decode(path: Path) -> Trials:
    """Decode the archive of runs.

    Args:
        path: zip file of ``run01/training/class01.png``, ``run01/test/item01.png``, ``run01/class_labels.txt``, ...

    Returns:
        The trials.

    Raises:
        UserError: the archive cannot be read, or is not the challenge's.
    """
    paths = [
        (f"run{r:02d}", part, f"{stem}{i:02d}.png")
        for r in range(1, N_RUNS + 1)
        for part, stem in (("training", "class"), ("test", "item"))
        for i in range(1, N_WAY + 1)
    ]
    try:
        with zipfile.ZipFile(path) as archive:
            rows = [decode_png(archive, "/".join(p)) for p in paths]
            texts = [archive.read(f"run{r:02d}/class_labels.txt").decode("ascii") for r in range(1, N_RUNS + 1)]
    except UserError:
        raise
    except (
        OSError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        SyntaxError,
        ValueError,
    ) as error:
        raise UserError(f"{path} cannot be read as the runs of the challenge ({error}); {_REPLACE}") from error
    answers = [_answers(text, path) for text in texts]
    return Trials(Drawings(pack_bits(rows), tuple(paths)), torch.tensor(answers))


_REPLACE = "replace it by `kshot data fetch omniglot_challenge`, or remove it"


def _answers(text: str, path: Path) -> list[int]:
    found = _LINE.findall(text)
    if [item[-6:-4] for item, _, _ in found] != [f"{i:02d}" for i in range(1, N_WAY + 1)]:
        raise UserError(f"{path}: expected one line for each of {N_WAY} test items in class_labels.txt; {_REPLACE}")
    return [int(number) - 1 for _, _, number in found]


def hash_contents(path: Path) -> str:
    """Decode an archive and hash it.

    Args:
        path: zip file.

    Returns:
        See ``Trials.sha256``.
    """
    return decode(path).sha256()


RUNS = store.Archive(
    "omniglot/all_runs.zip",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/one-shot-classification/all_runs.zip",
    "e8996daecdf12afeeb4a53a179f06b19",
    "ebef5b34a2abeb4a2a222bd6e240b82bca193249cb333c76bddd8e527d32cd47",
    hash_contents,
)


#: The characters of runs 1 and 2, of 3 and 4, and so on: two runs have the same 20. The archive does not name them.
CHARACTERS = {
    "Atlantean": "01 02 03 04 05 07 08 09 10 13 14 16 19 20 21 22 23 24 25 26",
    "Ge_ez": "01 02 03 04 05 06 08 09 10 12 14 15 16 17 18 20 21 23 24 25",
    "Glagolitic": "01 02 03 05 06 07 14 17 18 19 20 21 26 28 31 34 36 37 40 43",
    "Gurmukhi": "03 06 07 08 09 13 14 15 16 17 22 25 26 29 31 32 33 38 43 44",
    "Kannada": "01 03 05 08 11 12 13 14 19 20 21 23 25 26 27 28 33 35 40 41",
    "Malayalam": "02 04 05 09 13 14 15 16 17 19 20 21 22 25 27 29 30 37 43 46",
    "Manipuri": "03 04 06 08 09 11 12 13 15 17 19 21 22 25 29 33 35 36 37 39",
    "Old_Church_Slavonic_(Cyrillic)": "02 04 05 06 07 08 09 11 12 13 14 15 23 24 25 30 33 41 44 45",
    "Tengwar": "01 02 04 05 07 08 09 10 11 12 13 16 18 19 20 21 22 23 24 25",
    "Tibetan": "01 02 03 05 06 07 08 09 11 13 14 15 21 22 24 33 35 36 38 41",
}


class ChallengeTasks(TaskSource):
    """The 400 trials, in their order.

    Args:
        trials: the decoded archive.
        image_size: side in pixels: 20, 28, 42, 56 or 105.
        downscale: see ``kshot.data.omniglot.omniglot_images``.
        name: the data set's name.
    """

    # Two runs have the same characters, so that there are ten independent draws: one of each alphabet.
    n_fixed, run_length = N_RUNS * N_WAY, N_RUNS * N_WAY // len(CHARACTERS)
    taken_from = "omniglot"
    #: What values of ``images`` are divided by.
    whole = 255

    def __init__(self, trials: Trials, *, image_size: int, downscale: str, name: str) -> None:
        self.name = name
        images = shrink(trials.drawings, image_size, downscale)
        self.images = images.view(N_RUNS, 2, N_WAY, 1, image_size, image_size)
        self.answers, self._sha256 = trials.answers, trials.sha256()
        self.classes = tuple(f"run{r:02d}/class{c:02d}" for r in range(1, N_RUNS + 1) for c in range(1, N_WAY + 1))
        self.spec = Spec("classification", (1, image_size, image_size), N_WAY)
        self.n_shot, self.n_query = 1, 1

    @property
    def drawn_from(self) -> frozenset[str]:
        """Names that the characters have in Omniglot."""
        return frozenset(f"{a}/character{n}" for a, numbers in CHARACTERS.items() for n in numbers.split())

    @property
    def sha256(self) -> str:
        """Hash of the decoded drawings and answers."""
        return self._sha256

    def plan(self, n_tasks: int, generator: torch.Generator) -> Tree:
        """Draw trials at random, for whoever trains on them or looks at some; a test takes all, by ``fixed``.

        Args:
            n_tasks: T.
            generator: a CPU generator.

        Returns:
            As ``fixed``.
        """
        return self._plan(torch.randint(N_RUNS * N_WAY, (n_tasks,), generator=generator))

    def fixed(self, start: int, stop: int) -> Tree:
        """Return consecutive trials.

        Args:
            start: the first of 0..399.
            stop: one after the last.

        Returns:
            ``trial`` (T,), and ``classes`` (T, 20): which of ``self.classes`` each label stands for.
        """
        return self._plan(torch.arange(start, min(stop, N_RUNS * N_WAY)))

    def _plan(self, trial: Tensor) -> dict[str, Tensor]:
        run = torch.div(trial, N_WAY, rounding_mode="floor")
        return {"trial": trial, "classes": run[:, None] * N_WAY + torch.arange(N_WAY)}

    def episodes(self, plan: Tree) -> Episode:
        """Gather trials.

        Args:
            plan: from ``fixed`` or ``plan``.

        Returns:
            Episodes on ``device``: 20 support images, one query.
        """
        run, item = torch.div(plan["trial"], N_WAY, rounding_mode="floor"), plan["trial"] % N_WAY
        support, query = self.images[run, 0], self.images[run, 1, item].unsqueeze(1)
        y, yq = torch.arange(N_WAY).repeat(len(run), 1), self.answers[run, item].unsqueeze(1)
        return Episode(self._split(support, y), self._split(query, yq))

    def embedded(self, embed: Callable[[Tensor], Tensor]) -> ChallengeTasks:
        """Put an embedding in the place of each image: trials of one run share theirs, so that each is embedded once.

        Args:
            embed: maps images (N, 1, H, H) to embeddings (N, D).

        Returns:
            The same trials, of embeddings.
        """
        twin = copy.copy(self)
        parts = self.images.flatten(0, 2).split(_AT_ONCE)
        found = torch.cat([embed(part.to(self.device).float().div(self.whole)).cpu() for part in parts])
        twin.images, twin.whole = found.view(N_RUNS, 2, N_WAY, -1), 1
        twin.spec = self.spec._replace(input_shape=(found.shape[1],))
        return twin

    def _split(self, images: Tensor, y: Tensor) -> Split:
        return Split(images.to(self.device).float().div_(self.whole), y.to(self.device), N_WAY)


def challenge_tasks(
    split: str,
    *,
    name: str,
    root: Path | str | None = None,
    on_progress: OnProgress | None = None,
    image_size: Literal[20, 28, 42, 56, 105] = 28,
    downscale: Literal["area", "nearest"] = "area",
) -> ChallengeTasks:
    """Open the challenge: always all 400 trials, 20-way 1-shot, one query each, whatever ways and shots are asked.

    Args:
        split: meta_test, the only one.
        name: of the data set.
        root: the data root, see ``store.data_root``.
        on_progress: called during a download.
        image_size: side in pixels: 20, 28, 42, 56 or 105.
        downscale: see ``kshot.data.omniglot.omniglot_images``.

    Returns:
        The source.

    Raises:
        UserError: an option is unknown, or the archive is absent or damaged.
    """
    check_size(image_size)
    (path,) = store.provide([RUNS], root, on_progress)
    trials = decode(path)
    store.confirm(RUNS, path, trials.sha256())
    return ChallengeTasks(trials, image_size=image_size, downscale=downscale, name=name)
