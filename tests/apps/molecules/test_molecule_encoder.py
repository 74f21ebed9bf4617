"""Morgan fingerprints: the same molecule, however written, and clear words about what is none."""

import csv
import gzip
import sys
from pathlib import Path

import pytest
import torch

from kshot.apps.molecules import MoleculeEncoder
from kshot.apps.molecules.encoder import unreadable
from kshot.core import Encoder, UserError

pytest.importorskip("rdkit", reason="needs the package rdkit: pip install 'kshot[molecules]'")

ASPIRIN = ("CC(=O)Oc1ccccc1C(=O)O", "OC(=O)C1=CC=CC=C1OC(C)=O")


def test_it_is_an_encoder() -> None:
    encoder = MoleculeEncoder()
    assert isinstance(encoder, Encoder)
    assert (encoder.kind, encoder.name, encoder.dim) == ("molecule", "molecule:morgan", 2048)


def test_a_molecule_has_one_vector_and_one_key_however_it_is_written() -> None:
    encoder = MoleculeEncoder()
    x = encoder.encode([*ASPIRIN, "CCO"])
    assert x.dtype == torch.float32
    assert x.shape == (3, 2048)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])
    assert encoder.key(ASPIRIN[0]) == encoder.key(ASPIRIN[1]) != encoder.key("CCO")
    assert torch.equal(encoder.encode(["  CCO\n"]), x[2:])


def test_known_neighbourhoods_are_counted() -> None:
    # Ethane: two atoms alike, each alone (radius 0) and with its neighbour (radius 1), which covers the molecule: the
    # second atom's is a repetition. So two distinct entries: one found twice, one once.
    counts = MoleculeEncoder(counts=True).encode(["CC"])[0]
    assert sorted(counts[counts > 0].tolist()) == [1.0, 2.0]
    assert torch.equal((counts > 0).float(), MoleculeEncoder().encode(["CC"])[0])
    # Of radius 0, only the kinds of atoms: CH3 and OH of methanol.
    assert MoleculeEncoder(radius=0).encode(["CO"]).sum() == 2


def test_settings_change_the_fingerprint_and_bring_the_encoder_back() -> None:
    encoders = [
        MoleculeEncoder(),
        MoleculeEncoder(counts=True),
        MoleculeEncoder(radius=3),
        MoleculeEncoder(n_bits=1024),
    ]
    assert len({e.fingerprint for e in encoders}) == 4
    for encoder in encoders:
        again = MoleculeEncoder.from_settings(encoder.settings(), encoder.tensors())
        assert again == encoder
        assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "text:x", "radius": 2, "n_bits": 64, "counts": False}, "expected settings of molecule:morgan"),
        ({"name": "molecule:morgan", "radius": "2", "n_bits": 64, "counts": False}, "expected settings of"),
        ({"name": "molecule:morgan"}, "expected settings with 'radius'"),
    ],
)
def test_foreign_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoleculeEncoder.from_settings(settings)


@pytest.mark.parametrize("settings", [{"radius": -1}, {"n_bits": 0}, {"n_bits": 1 << 30}])
def test_senseless_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="is usual"):
        MoleculeEncoder(**settings)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("C1CC", "not written as SMILES are"),
        ("CF(C)C", "Explicit valence .* greater than permitted"),
        ("hello world", "without blanks"),
        ("C and nothing else", "without blanks"),
        ("", "without blanks"),
        (3.5, "expected a SMILES as text, got float"),
    ],
)
def test_bad_smiles_are_named_with_their_row_and_in_silence(bad, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = MoleculeEncoder()
    with pytest.raises(UserError, match=why) as caught:
        encoder.encode(["CCO", "CC", bad])
    assert "row 2" in str(caught.value)
    if isinstance(bad, str):
        assert repr(bad) in str(caught.value)
    with pytest.raises(UserError, match=why):
        encoder.key(bad)
    assert list(unreadable(["CCO", bad, "CC"])) == [1]
    assert capfd.readouterr() == ("", "")


def test_a_long_text_is_shortened_in_the_message() -> None:
    with pytest.raises(UserError) as caught:
        MoleculeEncoder().encode(["Q" * 1_000_000])
    assert len(str(caught.value)) < 400


def test_rdkit_speaks_again_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    from rdkit import Chem

    with pytest.raises(UserError):
        MoleculeEncoder().encode(["C1CC"])
    assert capfd.readouterr().err == ""
    Chem.MolFromSmiles("C1CC")
    assert "unclosed ring" in capfd.readouterr().err


def test_progress_and_no_examples() -> None:
    told: list[tuple[int, int]] = []
    x = MoleculeEncoder(n_bits=64).encode(["C" * (1 + i % 7) for i in range(300)], lambda *at: told.append(at))
    assert x.shape == (300, 64)
    assert told == [(256, 300), (300, 300)]
    assert MoleculeEncoder().encode([]).shape == (0, 2048)


def test_without_rdkit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(UserError, match=r"pip install 'kshot\[molecules\]'"):
        MoleculeEncoder().encode(["CCO"])


@pytest.mark.needs_data
@pytest.mark.slow
def test_tox21_is_encoded_alike_from_its_canonical_smiles(data_root: Path) -> None:
    from rdkit import Chem, rdBase

    path = data_root / "molecules" / "tox21.csv.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} in KSHOT_DATA")
    with gzip.open(path, "rt") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    bad = unreadable(smiles)
    assert len(smiles) == 8014
    # Aluminium with six bonds; the number depends on the release of RDKit.
    assert 0 < len(bad) < 20
    good = [s for i, s in enumerate(smiles) if i not in bad]
    with rdBase.BlockLogs():
        canonical = [Chem.MolToSmiles(Chem.MolFromSmiles(s)) for s in good]
    encoder = MoleculeEncoder()
    # What makes one key for all ways of writing a molecule right.
    assert torch.equal(encoder.encode(good), encoder.encode(canonical))
