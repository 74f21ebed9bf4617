"""The catalogue: names, options, opening, and what `kshot data` asks of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kshot.core import UserError, generator
from kshot.data import catalog
from kshot.data.store import Archive

SMALL = {"n_way": 3, "n_shot": 1, "n_query": 2}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A data set of two archives whose contents are the files' own text."""
    archives = tuple(Archive(f"letters/{n}.zip", f"http://127.0.0.1:9/{n}", "", n, Path.read_text) for n in "ab")
    entry = replace(catalog.dataset("omniglot"), name="letters", archives=archives)
    monkeypatch.setattr(catalog, "_ENTRIES", (*catalog._ENTRIES, entry))
    folder = catalog.store.data_root() / "letters"
    folder.mkdir(parents=True)
    return [folder / "a.zip", folder / "b.zip"]


def test_names_are_in_order_and_entries_are_complete() -> None:
    found = catalog.datasets()
    assert list(found) == sorted(found)
    generated = {"copy", "repeat_copy", "associative_recall", "ngrams", "priority_sort", "sinusoid", "glyphs"}
    assert {"omniglot", *generated} <= set(found)
    assert not any(found[name].archives for name in generated)
    for name, entry in found.items():
        assert catalog.dataset(name) is entry
        assert entry.name == name
        assert entry.splits in (("meta_train", "meta_val", "meta_test"), ("meta_test",))
        assert entry.summary
        assert entry.licence
        assert entry.url.startswith("https://")


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown data set 'omnigloth'; did you mean 'omniglot'"):
        catalog.dataset("omnigloth")


def test_every_option_can_be_offered_on_the_command_line() -> None:
    options = {name: entry.options for name, entry in catalog.datasets().items()}
    sampling = ["within_group", "turns_apart", "n_way_range", "n_shot_range", "augment", "shuffle"]
    own = ["scheme", "image_size", "rotations", "trainval", "downscale"]
    assert list(options["omniglot"]) == [*own, *sampling]
    assert list(options["glyphs"]) == ["image_size", *sampling]
    assert list(options["sinusoid"]) == []
    assert list(options["copy"]) == ["min_length", "max_length", "n_bits"]
    assert list(options["ngrams"]) == ["n_bits", "context_bits", "min_context_bits"]
    for found in options.values():
        for p in found.values():
            assert p.default is not p.empty
            assert p.annotation is not p.empty
            assert not isinstance(p.annotation, str)


def test_sinusoid_opens_without_ways() -> None:
    source = catalog.open_source("sinusoid", "meta_test", n_way=5, n_shot=7, n_query=4)
    episodes = source.episodes(source.plan(2, generator(0)))
    assert source.spec.kind == "regression"
    assert episodes.support.x.shape == (2, 7, 1)
    assert episodes.query.x.shape == (2, 4, 1)


@pytest.mark.parametrize("name", ["glyphs", "omniglot", "sinusoid"])
def test_unknown_option_lists_the_known(name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown option of {name} 'withingroup'.*Known: (image_size|scheme|none)"):
        catalog.open_source(name, "meta_train", **SMALL, withingroup=1.0)


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="unknown split of sinusoid 'test'"):
        catalog.open_source("sinusoid", "test", **SMALL)


def test_fetch_and_verify_of_generated_data_do_nothing() -> None:
    assert catalog.fetch("sinusoid") == []
    assert catalog.verify("glyphs") == []


def test_verify_checks_what_is_present(letters: list[Path]) -> None:
    with pytest.raises(UserError, match=r"expected an archive of letters below .*`kshot data fetch letters`"):
        catalog.verify("letters")
    letters[0].write_text("a")
    assert catalog.verify("letters") == letters[:1]
    letters[1].write_text("damaged")
    with pytest.raises(UserError, match=r"b\.zip"):
        catalog.verify("letters")


def test_fetch_keeps_what_is_right(letters: list[Path]) -> None:
    for path, text in zip(letters, "ab", strict=True):
        path.write_text(text)
    assert catalog.fetch("letters") == letters


def test_status_of_every_data_set(letters: list[Path]) -> None:
    letters[0].write_text("a")
    catalog.verify("letters")
    found = catalog.status()
    assert list(found) == sorted(catalog.datasets())
    assert [(s.present, s.verified, s.n_bytes) for s in found["letters"]] == [(True, True, 1), (False, False, None)]
    assert [s.present for s in found["omniglot"]] == [False] * 4
    assert found["glyphs"] == []


def test_importing_the_catalogue_touches_no_optional_or_heavy_package() -> None:
    heavy = ["matplotlib", "PIL", "safetensors", "filelock", "tyro", "rich", "lightning_fabric"]
    code = (
        f"import torch, sys; before = set(sys.modules); import kshot.data; print({heavy} & sys.modules.keys() - before)"
    )
    code = code.replace("[", "{").replace("]", "}")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
