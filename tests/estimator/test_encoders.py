"""Encoders by name, by object and by function; what kind examples are of; and the networks of runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.apps.tables import TableEncoder, VectorEncoder
from kshot.core import Encoder, Spec, UserError
from kshot.estimator.encoders import encoder_from, kind_by_encoder, kind_of, make_encoder
from kshot.estimator.examples import MOST_THUMBNAILS, listed, names_of, thumbnails_of
from kshot.estimator.own_encoders import OwnEncoder
from kshot.estimator.run_encoder import RunEncoder
from kshot.experiment.config import BackboneConfig
from kshot.nn.conv import Conv4


@pytest.mark.parametrize(
    ("examples", "kind"),
    [
        (["a cat", "a dog"], "text"),
        (["CCO", "c1ccccc1"], "text"),
        (["a.jpg", "b/c.PNG"], "image"),
        (["a.jpg", "what is a.jpg good for"], "text"),
        ([Path("a"), Path("b")], "image"),
        ([Image.new("RGB", (3, 3))], "image"),
        (np.zeros((2, 3)), "table"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), "image"),
        (torch.zeros(2, 3), "table"),
        ([[1.0, 2.0], [3.0, None]], "table"),
        (np.array(["a", "b"]), "text"),
        (np.array([["a"], ["b"]], dtype=object), "text"),
        (np.array([[1, 2], [3, 4]], dtype=object), "table"),
        ([], "table"),
    ],
)
def test_kinds(examples: Any, kind: str) -> None:
    assert kind_of(examples) == kind


def test_examples_of_two_kinds() -> None:
    with pytest.raises(UserError, match=r"got text \(example 0\) and image \(example 2\)"):
        kind_of(["a", "b", Image.new("L", (2, 2))])
    with pytest.raises(UserError, match="put it into a list"):
        kind_of(Path("photo.jpg"))


def test_lists_names_and_thumbnails() -> None:
    assert listed(np.array([["a"], ["b"]], dtype=object), "text") == ["a", "b"]
    assert type(listed(np.array(["a"]), "text")[0]) is str
    with pytest.raises(UserError, match="at least one example, got none"):
        listed([], "text")
    assert names_of(["x" * 100, " a\n b "], "text") == ["x" * 60 + "…", "a b"]
    assert names_of(np.zeros((2, 2)), "table") == ["row 1", "row 2"]
    assert thumbnails_of([np.array([1.0, 0.123456])], "table", [0]) == ["1, 0.1235"]
    assert thumbnails_of([Path("gone.jpg")], "image", [0]) == [b""]


def test_thumbnails_of_many_shots_are_shared_out() -> None:
    labels = [0] * (MOST_THUMBNAILS + 100) + [1] * 5
    found = thumbnails_of(["text"] * len(labels), "text", labels)
    assert sum(bool(t) for t in found[:-5]) == MOST_THUMBNAILS // 2
    assert all(found[-5:])


def test_names() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    assert isinstance(make_encoder("auto", "table", rows), TableEncoder)
    assert make_encoder("table:quantile", "table", rows).dim == 2
    vector = make_encoder("vector:identity", "vector", rows)
    assert isinstance(vector, VectorEncoder)
    assert isinstance(vector, Encoder)
    assert make_encoder("auto", "molecule").name == "molecule:morgan"
    assert kind_by_encoder("image:resnet18") == "image"
    assert kind_by_encoder("C:\\runs\\proto") is None
    assert kind_by_encoder(vector) == "vector"
    assert kind_by_encoder(len) is None


@pytest.mark.parametrize(
    ("encoder", "kind", "message"),
    [
        ("image:resnet18", "text", "an encoder of kind 'text', got image:resnet18 of kind 'image'"),
        ("molecule:maccs", "molecule", "expected the encoder molecule:morgan"),
        ("table:minmax", "table", "expected the encoder table:quantile"),
        ("auto", "sound", "kind must be one of auto, image"),
        (3, "text", "as a name, an Encoder, a network or a function, got int"),
        (VectorEncoder(3), "text", "of kind 'vector'"),
    ],
)
def test_encoders_that_do_not_fit(encoder: Any, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_encoder(encoder, kind)


def test_encoders_come_back_from_their_settings() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3))
    table = make_encoder("auto", "table", rows)
    again = encoder_from(table.settings(), table.tensors(), "table")
    assert again.fingerprint == table.fingerprint
    assert torch.equal(again.encode(rows), table.encode(rows))
    assert encoder_from(VectorEncoder(4).settings(), {}, "vector") == VectorEncoder(4)
    with pytest.raises(UserError, match=r"load\(path, encoder=\.\.\.\)"):
        encoder_from(OwnEncoder(len, "text").settings(), {}, "text")


def test_functions() -> None:
    told: list[tuple[int, int]] = []
    own = OwnEncoder(lambda batch: [[len(t), 1] for t in batch], "text")
    z = own.encode(["a" * i for i in range(100)], lambda done, n: told.append((done, n)))
    assert z[:, 0].tolist() == list(range(100))
    assert told == [(64, 100), (100, 100)]
    assert own.dim == 2
    with pytest.raises(UserError, match=r"expected vectors \(2, D\) of function:.*, got \(1, 2\)"):
        OwnEncoder(lambda batch: [[0, 1]], "text").encode(["a", "b"])


def test_networks_with_encode_are_asked_through_it() -> None:
    class Sentences(torch.nn.Module):
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(t), 2.0] for t in texts])

    assert OwnEncoder(Sentences(), "text").encode(["abc"]).tolist() == [[3, 2]]


def run_encoder(normalisation: str = "running") -> RunEncoder:
    network = BackboneConfig(backbone="conv4", n_filters=4, normalisation=normalisation)
    return RunEncoder(Conv4(1, 4, 28, normalisation), network, (1, 28, 28), "runs/proto")


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(n) for n in noise]


def test_the_network_of_a_run_encodes_pictures_one_by_one() -> None:
    encoder = run_encoder()
    z = encoder.encode(pictures())
    assert z.shape == (3, encoder.dim)
    torch.testing.assert_close(encoder.encode(pictures()[1:2]), z[1:2])
    x = encoder.prepare(Image.new("L", (50, 50), 255))
    assert x.shape == (1, 28, 28)
    assert float(x.min()) == 1
    assert encoder.key(pictures()[0]) != encoder.key(pictures()[1])


def test_the_network_of_a_run_is_kept_whole() -> None:
    encoder = run_encoder()
    again = encoder_from(encoder.settings(), encoder.tensors(), "image")
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(pictures()), encoder.encode(pictures()))
    with pytest.raises(UserError, match="is damaged"):
        encoder_from(encoder.settings(), {}, "image")


@pytest.mark.parametrize("normalisation", ["episode", "support"])
def test_networks_that_look_at_the_whole_batch_are_refused(normalisation: str) -> None:
    with pytest.raises(UserError, match="statistics of a batch"):
        run_encoder(normalisation)


def test_a_run_by_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("")
    backbone = Conv4(1, 4, 28)
    learner = SimpleNamespace(backbone=backbone, spec=Spec("classification", (1, 28, 28), 5))
    config = SimpleNamespace(
        algorithm="protonet", network=BackboneConfig(backbone="conv4", n_filters=4, normalisation="running")
    )
    monkeypatch.setattr("kshot.estimator.run_encoder.load_run", lambda run: (config, learner, 7))
    encoder = make_encoder(str(tmp_path), "image")
    assert encoder.name == str(tmp_path)
    with pytest.raises(UserError, match="of kind 'text'"):
        make_encoder(str(tmp_path), "text")
    learner.backbone = None
    with pytest.raises(UserError, match="a method with a backbone, protonet in"):
        make_encoder(str(tmp_path), "image")
