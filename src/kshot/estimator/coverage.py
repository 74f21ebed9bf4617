"""Is the accuracy that is told beforehand true? Leave-one-out intervals against the truth, on five public sets."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.apps.molecules.encoder import unreadable
from kshot.core import OnProgress, UserError, generator
from kshot.data.catalog import open_source
from kshot.data.image_tasks import ImageTasks
from kshot.data.store import data_root
from kshot.estimator.fit import ONE_SHOT_HEADS
from kshot.estimator.public_sets import encoded, read_banking, read_clinc, read_orl
from kshot.estimator.trial import Features, Trial, TrialRow

#: The assay of Tox21 that is asked about, and how many molecules of each answer are kept.
ASSAY, N_MOLECULES = "SR-MMP", 900
N_CHARACTERS = 40


class Asked(NamedTuple):
    """One of the sets.

    Attributes:
        features: the encoded set.
        n_shot: K.
    """

    features: Features
    n_shot: int


def read_sets(root: Path | None, on_progress: OnProgress | None) -> dict[str, Asked]:
    """Read and encode the five sets.

    Args:
        root: the data root.
        on_progress: told of the encoding.

    Returns:
        Name -> set.
    """
    return {
        "BANKING77, 5 shots": Asked(read_banking(root, on_progress), 5),
        "CLINC150, 5 shots": Asked(read_clinc(root, on_progress), 5),
        "ORL faces, 3 shots": Asked(read_orl(root, on_progress), 3),
        "Omniglot, 5 shots": Asked(_omniglot(root, on_progress), 5),
        "Tox21, 30 shots": Asked(_tox21(root, on_progress), 30),
    }


def measure_sets(sets: dict[str, Asked], seed: int) -> dict[str, float]:
    """Fit to one draw of every set, and look whether the interval holds the truth.

    Args:
        sets: from ``read_sets``.
        seed: of the draw.

    Returns:
        Row -> 1 or 0; the mean of all under "all five".
    """
    found = {name: float(_holds(asked, seed)) for name, asked in sets.items()}
    return {"all five": sum(found.values()) / len(found), **found}


def _holds(asked: Asked, seed: int) -> bool:
    z, y, test_z, test_y = asked.features.draw(asked.n_shot, seed)
    model = asked.features.fit(z, y, seed)
    if model.expected is None:
        raise ValueError("nothing could be left out")
    right = (model.probabilities(test_z).argmax(1) == test_y).double()
    # Every class counts the same, as the estimate says.
    counts = torch.bincount(test_y).double()
    truth = float((torch.zeros_like(counts).index_add_(0, test_y, right) / counts).mean())
    return model.expected.low <= truth <= model.expected.high


def _omniglot(root: Path | None, on_progress: OnProgress | None) -> Features:
    source = open_source("omniglot", "meta_test", n_way=5, n_shot=1, n_query=1, root=root, scheme="lake")
    if not isinstance(source, ImageTasks):
        raise UserError("expected Omniglot as images")
    labels = source.images.all_labels()
    chosen = torch.randperm(int(labels.max()) + 1, generator=generator(0, "characters"))[:N_CHARACTERS]
    index = torch.isin(labels, chosen).nonzero().squeeze(1)
    pictures = [picture.squeeze(0) for picture in source.images.gather(index)]
    z = encoded("image", pictures, on_progress)
    return Features(z, labels[index].unique(return_inverse=True)[1], one_shot_head=ONE_SHOT_HEADS["image"])


def _tox21(root: Path | None, on_progress: OnProgress | None) -> Features:
    path = data_root(root) / "molecules" / "tox21.csv.gz"
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            rows = [(row["smiles"], int(float(row[ASSAY]))) for row in csv.DictReader(file) if row[ASSAY]]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"expected Tox21 in {path}, could not read it ({error}); put tox21.csv.gz there") from error
    bad = unreadable([smiles for smiles, _ in rows])
    rows = [row for i, row in enumerate(rows) if i not in bad]
    answers = torch.tensor([answer for _, answer in rows])
    order = torch.randperm(len(rows), generator=generator(0, "molecules"))
    kept: list[Tensor] = [order[answers[order] == answer][:N_MOLECULES] for answer in (0, 1)]
    index = torch.cat(kept)
    z = encoded("molecule", [rows[i][0] for i in index.tolist()], on_progress)
    return Features(z, answers[index])


COVERAGE = Trial(
    "expected-accuracy",
    "Accuracy told beforehand against the truth, five sets",
    "Of every draw of the shots: does the 95% interval of the expected accuracy hold the accuracy on the test "
    "examples, classes weighing the same?",
    (
        TrialRow("all five", "share", 0.90),
        *(
            TrialRow(name, "share")
            for name in (
                "BANKING77, 5 shots",
                "CLINC150, 5 shots",
                "ORL faces, 3 shots",
                "Omniglot, 5 shots",
                "Tox21, 30 shots",
            )
        ),
    ),
    read_sets,
    measure_sets,
    n_draws=20,
)
