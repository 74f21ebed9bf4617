"""Molecules as Morgan (ECFP) fingerprints: which circular neighbourhoods of atoms there are.

Rogers and Hahn, Extended-Connectivity Fingerprints, J. Chem. Inf. Model. 2010. Each atom's surroundings up to
``radius`` bonds away are hashed to a number, which is folded into ``n_bits`` entries. RDKit's defaults hold for the
rest: no chirality, bond types told apart, rings of an atom part of its description.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.core import OnProgress, UserError

_BATCH = 256
# Rings, charges, stereo, salts, halogens, isotopes: a release of RDKit that reads any of them otherwise changes the
# encoder's fingerprint.
_PROBES = ("CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)[O-].[Na+]", "F/C=C/Br", "c1ccc2[nH]ccc2c1", "[2H]C#N", "C1CC12CCC2")


@dataclass(frozen=True)
class MoleculeEncoder:
    """Encodes SMILES as Morgan fingerprints.

    Attributes:
        radius: largest distance, in bonds, that a neighbourhood reaches; 2 is what ECFP4 means.
        n_bits: D, the length of a fingerprint.
        counts: True for how often each neighbourhood occurs, False for 1 where it does.
        kind: "molecule".
        name: "molecule:morgan".
        cheap: True: a fingerprint takes no longer than its key, so that there is nothing to gain by caching it.

    Raises:
        UserError: a setting makes no sense.
    """

    radius: int = 2
    n_bits: int = 2048
    counts: bool = False

    kind: ClassVar[str] = "molecule"
    name: ClassVar[str] = "molecule:morgan"
    cheap: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 20:
            raise UserError(f"expected a radius of 0 to 20 bonds, got {self.radius}; 2 is usual")
        if not 8 <= self.n_bits <= 1 << 20:
            raise UserError(f"expected n_bits of 8 to {1 << 20}, got {self.n_bits}; 2048 is usual")

    @property
    def dim(self) -> int:
        """Length of a vector, D."""
        return self.n_bits

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings and of what RDKit makes of some molecules."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        digest.update(self.encode(_PROBES).numpy().tobytes())
        return digest.hexdigest()

    def key(self, example: Any) -> str:
        """Hash the canonical SMILES, so that all ways of writing a molecule have one key.

        Args:
            example: SMILES.

        Returns:
            64 hexadecimal digits.

        Raises:
            UserError: RDKit cannot read it, or is not installed.
        """
        rdkit = _rdkit()
        with rdkit.base.BlockLogs():
            smiles = rdkit.chem.MolToSmiles(_read(rdkit, example))
        return hashlib.sha256(smiles.encode()).hexdigest()

    def encode(self, examples: Sequence[Any], on_progress: OnProgress | None = None) -> Tensor:
        """Make fingerprints.

        Args:
            examples: N SMILES.
            on_progress: told after each batch of 256.

        Returns:
            (N, D), float32.

        Raises:
            UserError: RDKit cannot read an example (its row, counted from 0, and its text are named), or is not
                installed.
        """
        rdkit = _rdkit()
        generator = rdkit.fingerprints.GetMorganGenerator(radius=self.radius, fpSize=self.n_bits)
        make = generator.GetCountFingerprintAsNumPy if self.counts else generator.GetFingerprintAsNumPy
        out = np.zeros((len(examples), self.n_bits), dtype=np.float32)
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            with rdkit.base.BlockLogs():
                for row, example in enumerate(batch, start):
                    out[row] = make(_read(rdkit, example, row))
            if on_progress is not None:
                on_progress(start + len(batch), len(examples))
        return torch.from_numpy(out)

    def settings(self) -> dict[str, Any]:
        """Return what makes this encoder again.

        Returns:
            Its name and its three settings.
        """
        return {"name": self.name, "radius": self.radius, "n_bits": self.n_bits, "counts": self.counts}

    def tensors(self) -> dict[str, Tensor]:
        """Return what was learnt: nothing.

        Returns:
            An empty dictionary.
        """
        return {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> MoleculeEncoder:
        """Make an encoder again.

        Args:
            settings: what ``settings`` returned.
            tensors: what ``tensors`` returned; not looked at.

        Returns:
            An equal encoder.

        Raises:
            UserError: they are those of another encoder, or incomplete.
        """
        try:
            name, radius, n_bits, counts = (settings[k] for k in ("name", "radius", "n_bits", "counts"))
        except KeyError as error:
            raise UserError(f"expected settings with {error.args[0]!r}, got {sorted(settings)}; fit again") from error
        if name != cls.name or type(radius) is not int or type(n_bits) is not int or type(counts) is not bool:
            raise UserError(f"expected settings of {cls.name}, got {dict(settings)}; the model is of another encoder")
        return cls(radius=radius, n_bits=n_bits, counts=counts)


def unreadable(examples: Sequence[Any]) -> dict[int, str]:
    """Find the SMILES that cannot be read.

    Args:
        examples: SMILES.

    Returns:
        Place of a bad one in ``examples`` -> why it cannot be read; empty where all is well.
    """
    rdkit = _rdkit()
    found: dict[int, str] = {}
    for i, example in enumerate(examples):
        try:
            with rdkit.base.BlockLogs():
                _read(rdkit, example)
        except UserError as error:
            found[i] = str(error)
    return found


class _Modules(NamedTuple):
    chem: Any
    base: Any
    fingerprints: Any


def _rdkit() -> _Modules:
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise UserError(
            "expected the package rdkit, which reads molecules, and it is not installed; "
            "install it: pip install 'kshot[molecules]'"
        ) from error
    return _Modules(Chem, rdBase, rdFingerprintGenerator)


def _read(rdkit: _Modules, example: Any, row: int | None = None) -> Any:
    place = "" if row is None else f" in row {row}"
    if not isinstance(example, str):
        raise UserError(f"expected a SMILES as text, got {type(example).__name__}{place}; pass strings such as 'CCO'")
    smiles = example.strip()
    # What follows a blank would be taken for a name, and a sentence that starts with "C" for methane.
    if not smiles or len(smiles.split()) > 1:
        raise UserError(f"expected one SMILES without blanks, got {_short(example)}{place}; correct it or leave it out")
    molecule = rdkit.chem.MolFromSmiles(smiles)
    if molecule is None:
        raise UserError(
            f"expected a SMILES that RDKit can read, got {_short(example)}{place}: {_problem(rdkit, smiles)}; "
            "correct it or leave it out"
        )
    return molecule


def _problem(rdkit: _Modules, smiles: str) -> str:
    molecule = rdkit.chem.MolFromSmiles(smiles, sanitize=False)
    problems = [] if molecule is None else rdkit.chem.DetectChemistryProblems(molecule)
    return problems[0].Message() if problems else "it is not written as SMILES are"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
