"""The model file: the same answers afterwards, and a clear error for everything that is no model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kshot.core import UserError

pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")

from safetensors.torch import load_file, save_file

from kshot.estimator import FewShotClassifier, FewShotRegressor, container
from kshot.estimator.container import pack, unpack
from kshot.estimator.model_file import describe, is_model, load_model


def rows(seed: int = 0) -> Any:
    y = np.repeat(np.arange(3), 5)
    centres = np.random.default_rng(9).normal(size=(3, 4)) * 3
    return centres[y] + np.random.default_rng(seed).normal(size=(15, 4)), y


def letters(texts: Any) -> np.ndarray:
    return np.array([[t.count(chr(97 + i)) + 0.1 for i in range(26)] for t in texts])


@pytest.fixture
def saved(tmp_path: Path) -> tuple[FewShotClassifier, Path]:
    x, y = rows()
    model = FewShotClassifier(unknown_rate=0.2, head="ridge").fit(x, np.array(["ant", "bee", "cat"])[y])
    model.save(tmp_path / "model.kshot")
    return model, tmp_path / "model.kshot"


def test_a_loaded_classifier_answers_the_same(saved: tuple[FewShotClassifier, Path]) -> None:
    model, path = saved
    again = FewShotClassifier.load(path)
    x, _ = rows(seed=1)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    np.testing.assert_array_equal(again.p_values(x), model.p_values(x))
    np.testing.assert_array_equal(again.nearest(x)[1], model.nearest(x)[1])
    assert again.expected_accuracy_ == model.expected_accuracy_
    assert again.doubts_() == model.doubts_()
    assert again.names_ == model.names_
    assert again.thumbnails_ == model.thumbnails_
    assert again.fit_.losses == model.fit_.losses
    assert again.unknown_rate == 0.2
    with pytest.raises(ValueError, match="X has 2 features, but FewShotClassifier is expecting 4"):
        again.predict(x[:, :2])


def test_the_same_fit_is_the_same_file(saved: tuple[FewShotClassifier, Path], tmp_path: Path) -> None:
    x, y = rows()
    for name in "abcd":
        model = FewShotClassifier(unknown_rate=0.2, head="ridge").fit(x, np.array(["ant", "bee", "cat"])[y])
        model.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == saved[1].read_bytes()


def test_what_a_file_is_stands_at_its_beginning(saved: tuple[FewShotClassifier, Path]) -> None:
    assert saved[1].read_bytes()[8:].startswith(b'{"__metadata__":{"kshot_model":"1",')
    assert is_model(saved[1])


def test_what_a_file_says_of_itself(saved: tuple[FewShotClassifier, Path]) -> None:
    model, path = saved
    said = describe(path)
    assert said["task"] == "classification"
    assert said["classes"] == ["ant", "bee", "cat"]
    assert said["shots"] == [5, 5, 5]
    assert said["head"]["name"] == "ridge"
    assert said["kind"] == "table"
    assert said["kshot_model"] == 1
    assert said["least_rate"] == pytest.approx(1 / 16)
    assert said["encoder"]["fingerprint"] == model.encoder_.fingerprint
    assert is_model(path)


@pytest.mark.parametrize(
    "labels",
    [[3, 5, 8], [0.5, 1.0, 2.0], ["ä", "b", "日本"], np.array(["a", "b", "c"], dtype=object)],
)
def test_labels_keep_their_type(tmp_path: Path, labels: Any) -> None:
    x, y = rows()
    # Floats that are no whole numbers are targets of a regression to scikit-learn.
    labels = [0.0, 1.0, 2.0] if 0.5 in labels else labels
    model = FewShotClassifier().fit(x, np.asarray(labels)[y])
    model.save(tmp_path / "m")
    again = FewShotClassifier.load(tmp_path / "m")
    assert again.classes_.dtype == model.classes_.dtype
    assert again.classes_.tolist() == model.classes_.tolist()


def test_truth_values_keep_their_type(tmp_path: Path) -> None:
    x, y = rows()
    FewShotClassifier().fit(x, y == 1).save(tmp_path / "m")
    assert FewShotClassifier.load(tmp_path / "m").predict(x).dtype == np.bool_


def test_classes_come_and_go_in_a_loaded_model(saved: tuple[FewShotClassifier, Path], tmp_path: Path) -> None:
    x, _ = rows()
    model = FewShotClassifier.load(saved[1]).add_class("dragonfly", x[:3] + 20)
    model.remove_class("bee").save(tmp_path / "b" / "model.kshot")
    again = FewShotClassifier.load(tmp_path / "b" / "model.kshot")
    assert again.classes_.tolist() == ["ant", "cat", "dragonfly"]
    assert again.names_ == model.names_
    assert len(again.thumbnails_) == 13
    assert again.predict(x[:3] + 20).tolist() == ["dragonfly"] * 3
    assert again.expected_accuracy_ is None


def test_embedded_names_of_classes_are_kept(tmp_path: Path) -> None:
    texts = ["aab", "aba", "baa", "xyx", "yxx", "xxy"]
    model = FewShotClassifier(encoder=letters, use_class_names=True).fit(texts, ["ab"] * 3 + ["xy"] * 3)
    object.__setattr__(model.fit_, "names", torch.ones(2, 26))
    model.save(tmp_path / "m")
    again = FewShotClassifier.load(tmp_path / "m", encoder=letters)
    assert torch.equal(again.fit_.names, torch.ones(2, 26))
    assert again.use_class_names
    assert again.add_class("no", ["nnn"]).fit_.names.shape == (3, 26)


def test_a_regressor(tmp_path: Path) -> None:
    x, y = rows()
    model = FewShotRegressor().fit(x, y + 0.5)
    model.save(tmp_path / "m.kshot")
    again = FewShotRegressor.load(tmp_path / "m.kshot")
    new, _ = rows(seed=2)
    np.testing.assert_array_equal(again.predict(new), model.predict(new))
    np.testing.assert_array_equal(again.predict_interval(new), model.predict_interval(new))
    assert again.expected_error_ == model.expected_error_
    with pytest.raises(UserError, match="expected a classifier"):
        FewShotClassifier.load(tmp_path / "m.kshot")


def test_a_model_of_a_function_needs_the_function(tmp_path: Path) -> None:
    texts, y = ["aab", "aba", "xyx", "yxx"], ["ab", "ab", "xy", "xy"]
    FewShotClassifier(encoder=letters).fit(texts, y).save(tmp_path / "m")
    with pytest.raises(
        UserError, match=r"the encoder 'function:letters' beside the model.*load\(path, encoder=\.\.\.\)"
    ):
        FewShotClassifier.load(tmp_path / "m")
    assert FewShotClassifier.load(tmp_path / "m", encoder=letters).predict(["bab"]).tolist() == ["ab"]
    with pytest.raises(UserError, match="with other weights or settings"):
        FewShotClassifier.load(tmp_path / "m", encoder=lambda texts: letters(texts))


def test_a_network_with_other_weights_is_found_out(tmp_path: Path) -> None:
    x, y = rows()
    network = torch.nn.Linear(4, 6)
    FewShotClassifier(encoder=network).fit(x, y).save(tmp_path / "m")
    assert FewShotClassifier.load(tmp_path / "m", encoder=network).predict(x).shape == (15,)
    with torch.no_grad():
        network.weight += 0.1
    with pytest.raises(UserError, match="with other weights or settings, so that vectors would differ"):
        FewShotClassifier.load(tmp_path / "m", encoder=network)


def test_the_hash_of_an_encoder_must_match(
    saved: tuple[FewShotClassifier, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kshot.apps.tables import TableEncoder

    monkeypatch.setattr(TableEncoder, "fingerprint", "0" * 64)
    with pytest.raises(UserError, match=r"install the versions that were used then.*or fit again"):
        load_model(saved[1])


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(saved: tuple[FewShotClassifier, Path], share: float) -> None:
    data = saved[1].read_bytes()
    saved[1].write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"damaged or truncated|something else"):
        load_model(saved[1])


def test_no_flipped_byte_goes_unnoticed(saved: tuple[FewShotClassifier, Path]) -> None:
    data = saved[1].read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 60).tolist():
        saved[1].write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        try:
            again = load_model(saved[1])
        except UserError:
            continue
        # Spaces that fill up the header, and the names of fields that nobody reads, may change.
        assert isinstance(again, FewShotClassifier)
        np.testing.assert_array_equal(again.fit_.z, saved[0].fit_.z)
        assert again.classes_.tolist() == saved[0].classes_.tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"PK\x03\x04 not a model",
        b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 1 << 60) + b"{}",
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert not is_model(path)
    with pytest.raises(UserError, match=r"expected a model of kshot in .*photo\.jpg, got something else"):
        load_model(path)


def test_weights_of_another_program_are_no_model(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="got something else; make one by: kshot fit DATA --out"):
        load_model(tmp_path / "other.safetensors")
    assert not is_model(tmp_path / "other.safetensors")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_model(tmp_path / "absent.kshot")
    with pytest.raises(UserError, match="expected a model at"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        FewShotClassifier().fit(*rows()).save(tmp_path)
    assert not is_model(tmp_path / "absent.kshot")


def rewritten(path: Path, **changes: str) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"] |= changes
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_a_model_from_the_future(saved: tuple[FewShotClassifier, Path]) -> None:
    rewritten(saved[1], kshot_model="2", kshot="9.1.0")
    message = r"format 2: made by kshot 9\.1\.0, this is .*; upgrade: pip install --upgrade kshot"
    for read in (load_model, describe):
        with pytest.raises(UserError, match=message):
            read(saved[1])
    assert is_model(saved[1])


def test_a_header_that_was_tampered_with(saved: tuple[FewShotClassifier, Path]) -> None:
    rewritten(saved[1], header="{}")
    with pytest.raises(UserError, match="its content does not match its hash"):
        load_model(saved[1])
    rewritten(saved[1], header="[" * 100_000)
    with pytest.raises(UserError, match="damaged or truncated"):
        load_model(saved[1])


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    saved: tuple[FewShotClassifier, Path], monkeypatch: Any
) -> None:
    model, path = saved
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kshot.core.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_in_a_file_can_be_run(saved: tuple[FewShotClassifier, Path]) -> None:
    tensors = load_file(saved[1])
    assert {t.dtype for t in tensors.values()} <= {torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool}
    assert b"cposix" not in saved[1].read_bytes()
    assert describe(saved[1])["encoder"]["settings"] == {"name": "table:quantile", "n_quantiles": 256}


def test_lists_of_bytes_survive() -> None:
    items = [b"", b"abc", b"\x00" * 5, b""]
    packed = pack(items)
    assert unpack(packed["bytes"], packed["offsets"]) == items
    empty = pack([b"", b""])
    assert unpack(empty["bytes"], empty["offsets"]) == [b"", b""]


def forged(path: Path, place: str, value: Any) -> None:
    """Change one part of a file; its hash is right again."""
    content = container.read(path)
    if place in content.tensors:
        content.tensors[place] = value
    else:
        *above, last = place.split(".")
        inner: Any = content.header
        for key in above:
            inner = inner[key]
        inner[last] = value
    container.write(path, content)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ("temperature", "abc", "its temperature is 'abc'"),
        ("temperature", 0, "its temperature is 0"),
        ("temperature", None, "its temperature is None"),
        ("head.strength", "x", "strength of its head is 'x'"),
        ("head.name", "forest", "its head is 'forest'"),
        ("class_type", "whole", "its classes are not all of type whole"),
        ("class_type", "colour", "KeyError: 'colour'"),
        ("class_dtype", "<U1", "its classes do not fit into '<U1'"),
        ("class_dtype", "abc", "TypeError"),
        ("classes", ["ant", "ant", "cat"], "a class stands twice"),
        ("n_features", "abc", "n_features is 'abc'"),
        ("n_features", 4.5, "n_features is 4.5"),
        ("columns", ["a"], "1 columns are named of 4"),
        ("params.unknown_rate", "x", "its unknown_rate is 'x'"),
        ("params.unknown_label", ["x"], "its unknown_label is"),
        ("expected.low", "x", "low of what to expect is 'x'"),
        ("losses", {"ridge 1": "x"}, "the loss of ridge 1 is 'x'"),
        ("kind", "smell", "its kind is 'smell'"),
        ("seed", "x", "its seed is 'x'"),
        ("thumbnails.bytes", torch.full((100_000,), 255, dtype=torch.uint8), "UnicodeDecodeError"),
        ("names.offsets", torch.tensor([0, 1]), "a name and a picture or text each"),
        ("head.weight", torch.full((3, 5), float("nan")), "its weight is not finite"),
        ("head.bias", torch.zeros(3, dtype=torch.float64), "of different types"),
        ("y", torch.tensor([0, 2] * 7 + [2]), "a class has no shots"),
        ("held_out.labels", torch.full((15,), 3), "its labels are not within 0 to 2"),
    ],
)
def test_a_damaged_part_is_told_in_a_line(
    saved: tuple[FewShotClassifier, Path], place: str, value: Any, why: str
) -> None:
    forged(saved[1], place, value)
    with pytest.raises(UserError, match=r"expected a whole model in .* damaged or truncated") as caught:
        load_model(saved[1])
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ("kernel.ridge", "x", "ridge of the kernel is 'x'"),
        ("kernel.length", 0, "length of the kernel is 0"),
        ("y", torch.full((15,), float("nan"), dtype=torch.float64), "its targets is not finite"),
        ("task", "poetry", "its task is 'poetry'"),
    ],
)
def test_a_damaged_part_of_a_regressor(tmp_path: Path, place: str, value: Any, why: str) -> None:
    x, y = rows()
    FewShotRegressor().fit(x, y + 0.5).save(tmp_path / "m")
    forged(tmp_path / "m", place, value)
    with pytest.raises(UserError, match="damaged or truncated") as caught:
        load_model(tmp_path / "m")
    assert why in str(caught.value)


@pytest.mark.parametrize("name", ["image:hf-hub:some/model", "image:local-dir:weights"])
def test_no_repository_is_fetched_unless_a_person_names_it(
    saved: tuple[FewShotClassifier, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved
    opened: list[str] = []

    def fake(settings: Any, tensors: Any, kind: str) -> Any:
        opened.append(settings["name"])
        return SimpleNamespace(kind=kind, fingerprint=model.encoder_.fingerprint)

    monkeypatch.setattr("kshot.estimator.model_file.encoder_from", fake)
    forged(path, "kind", name.partition(":")[0])
    forged(path, "encoder.settings", {"name": name})
    with pytest.raises(UserError, match=r"known by its name alone, got .*pass it yourself: load\(path, encoder="):
        load_model(path)
    assert not opened
    load_model(path, encoder=name)
    assert opened == [name]
