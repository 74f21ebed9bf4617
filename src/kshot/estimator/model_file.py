"""The model file: all of a fitted estimator in one file, but for weights that were downloaded.

The encoder is kept by name and settings, with the hash of its weights; what it learnt from the shots is kept whole.
When the file is read, the encoder is opened anew and must have the same hash. See ``kshot.estimator.container`` for the
layout.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError
from kshot.estimator import container, labels
from kshot.estimator.classifier import FewShotClassifier
from kshot.estimator.container import Content
from kshot.estimator.embedded import check_is_fitted
from kshot.estimator.encoders import encoder_from
from kshot.estimator.expected import Expected
from kshot.estimator.fit import Fit
from kshot.estimator.heads import STRENGTHS, Head
from kshot.estimator.held_out import HeldOut
from kshot.estimator.kernel_ridge import Kernel, fit_kernel_ridge
from kshot.estimator.regressor import FewShotRegressor

#: Answers for shots left out are kept up to so many numbers; they serve reports only.
MOST_HELD_OUT = 20_000_000
_HEAD = ("centre", "weight", "bias")


def save_model(model: FewShotClassifier | FewShotRegressor, path: str | Path) -> None:
    """Write a fitted model.

    Args:
        model: fitted.
        path: the file; replaced whole if it is there.
    """
    check_is_fitted(model)
    settings = model.encoder_.settings()
    header: dict[str, Any] = {
        "task": "classification" if isinstance(model, FewShotClassifier) else "regression",
        "kind": model.kind_,
        "encoder": {"settings": settings, "name": model.encoder_.name, "fingerprint": model.encoder_.fingerprint},
        "columns": [str(c) for c in getattr(model, "feature_names_in_", [])],
        "n_features": getattr(model, "n_features_in_", None),
        "n_shots": len(model.names_),
    }
    thumbnails = [t.encode("utf-8", "replace") if isinstance(t, str) else t for t in model.thumbnails_]
    tensors = {f"encoder.{name}": t for name, t in model.encoder_.tensors().items()}
    tensors |= {f"thumbnails.{name}": t for name, t in container.pack(thumbnails).items()}
    names = [name.encode("utf-8", "surrogateescape") for name in model.names_]
    tensors |= {f"names.{name}": t for name, t in container.pack(names).items()}
    own = _of_classifier(model) if isinstance(model, FewShotClassifier) else _of_regressor(model)
    container.write(Path(path), Content(header | own.header, tensors | own.tensors))


def load_model(
    path: str | Path, *, encoder: Any = None, on_progress: OnProgress | None = None
) -> FewShotClassifier | FewShotRegressor:
    """Read a model.

    Args:
        path: the file.
        encoder: only for a model whose encoder was a function or network: that very one.
        on_progress: told (done, all) examples while encoding.

    Returns:
        The fitted model.

    Raises:
        UserError: the file is foreign, damaged or of a newer version, or its encoder is not to be had.
    """
    path = Path(path)
    content = container.read(path)
    try:
        model = (_classifier if content.header["task"] == "classification" else _regressor)(content)
        _restore(model, content, encoder)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(container.damaged(path, f"{type(error).__name__}: {error}")) from error
    model.on_progress = on_progress
    return model


def describe(path: str | Path) -> dict[str, Any]:
    """Say what a model file is, without opening its encoder.

    Args:
        path: the file.

    Returns:
        JSON values: "kshot_model", "kshot", "task", "kind", "encoder", "n_shots", "columns"; of a classifier "classes",
        "shots" (of each class), "head", "temperature", "expected" (accuracy, low, high, n; or None), "least_rate",
        "losses", "params"; of a regressor "kernel" and "expected".
    """
    return container.header_of(Path(path), container.read_metadata(Path(path)))


def is_model(path: str | Path) -> bool:
    """Tell whether a file is a model, of whatever version.

    Args:
        path: the file.

    Returns:
        True if it is one, from its beginning.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(1 << 20)
    except OSError:
        return False
    return start[8:9] == b"{" and b'"kshot_model"' in start


def _of_classifier(model: FewShotClassifier) -> Content:
    fitted = model.fit_
    head: dict[str, Any] = {
        "classes": model.classes_.tolist(),
        "class_type": labels.type_of(model.classes_),
        "class_dtype": model.classes_.dtype.str,
        "shots": torch.bincount(fitted.y, minlength=fitted.n_classes).tolist(),
        "head": {"name": fitted.head.name, "strength": fitted.head.strength},
        "temperature": fitted.temperature,
        "expected": None if fitted.expected is None else fitted.expected._asdict(),
        "least_rate": 1 / (len(fitted.reference) + 1),
        "losses": {name: loss for name, loss in fitted.losses.items() if math.isfinite(loss)},
        "seed": fitted.seed,
        "params": {
            "head": model.head,
            "unknown_rate": model.unknown_rate,
            "unknown_label": _plain(model.unknown_label),
            "finetune": model.finetune,
            "use_class_names": model.use_class_names,
            "cache": model.cache,
        },
    }
    tensors = {f"head.{name}": getattr(fitted.head, name) for name in _HEAD}
    tensors |= {"z": fitted.z, "y": fitted.y, "reference": fitted.reference}
    if fitted.held_out is not None and fitted.held_out.logits.numel() <= MOST_HELD_OUT:
        tensors |= {f"held_out.{name}": t for name, t in fitted.held_out._asdict().items()}
    if fitted.names is not None:
        tensors["class_names"] = fitted.names
    return Content(head, tensors)


def _plain(label: Any) -> Any:
    plain = label.item() if isinstance(label, np.generic) else label
    if plain is not None and not isinstance(plain, str | int | float | bool):
        raise UserError(f"expected a text or a number as unknown_label, got {plain!r:.80}; a file holds nothing else")
    return plain


def _classifier(content: Content) -> FewShotClassifier:
    h, t = content
    model = FewShotClassifier(**h["params"])
    head = Head(h["head"]["name"], float(h["head"]["strength"]), *(t[f"head.{name}"] for name in _HEAD))
    held_out = HeldOut(*(t[f"held_out.{name}"] for name in HeldOut._fields)) if "held_out.index" in t else None
    expected = None if h["expected"] is None else Expected(**h["expected"])
    n = len(h["classes"])
    model.fit_ = Fit(
        t["z"],
        t["y"],
        n,
        head,
        float(h["temperature"]),
        t["reference"],
        held_out,
        expected,
        h["losses"],
        h["seed"],
        t.get("class_names"),
    )
    wanted = labels.TYPES[h["class_type"]]
    model.classes_ = np.array([wanted(c) for c in h["classes"]], dtype=np.dtype(h["class_dtype"]))
    if head.name not in STRENGTHS or not _fits(model.fit_):
        raise KeyError("its parts do not fit each other")
    return model


def _fits(fitted: Fit) -> bool:
    (n, d), c = fitted.z.shape, fitted.n_classes
    shapes = [fitted.y.shape, fitted.head.weight.shape, fitted.head.bias.shape, fitted.head.centre.shape]
    if fitted.names is not None and fitted.names.shape != (c, d):
        return False
    return shapes == [(n,), (c, d), (c,), (d,)] and int(fitted.y.min()) >= 0 and int(fitted.y.max()) == c - 1


def _of_regressor(model: FewShotRegressor) -> Content:
    header = {
        "kernel": model.fit_.kernel._asdict(),
        "expected": model.expected_error_._asdict(),
        "params": {"cache": model.cache},
    }
    return Content(header, {"z": model.z_, "y": torch.from_numpy(model.y_.copy())})


def _regressor(content: Content) -> FewShotRegressor:
    h, t = content
    model = FewShotRegressor(**h["params"])
    model.z_, model.y_ = t["z"], t["y"].numpy()
    unit = h["kind"] != "table"
    model.fit_ = fit_kernel_ridge(
        t["z"], t["y"], unit=unit, order=torch.arange(len(t["z"])), kernel=Kernel(**h["kernel"])
    )
    return model


def _restore(model: FewShotClassifier | FewShotRegressor, content: Content, own: Any) -> None:
    h, t = content
    model.kind_ = model.kind = h["kind"]
    model.encoder_ = _encoder(h, t, own)
    model.encoder = h["encoder"]["name"] if own is None else own
    names = container.unpack(t["names.bytes"], t["names.offsets"])
    model.names_ = [name.decode("utf-8", "surrogateescape") for name in names]
    thumbnails = container.unpack(t["thumbnails.bytes"], t["thumbnails.offsets"])
    model._shots = []
    model._thumbnails = list(thumbnails) if h["kind"] == "image" else [b.decode("utf-8") for b in thumbnails]
    if h["n_features"] is not None:
        model.n_features_in_ = int(h["n_features"])
    if h["columns"]:
        model.feature_names_in_ = np.array(h["columns"], dtype=object)


def _encoder(h: dict[str, Any], t: dict[str, Tensor], own: Any) -> Encoder:
    from kshot.estimator.encoders import make_encoder

    tensors = {name.removeprefix("encoder."): value for name, value in t.items() if name.startswith("encoder.")}
    settings = h["encoder"]["settings"]
    encoder = encoder_from(settings, tensors, h["kind"]) if own is None else make_encoder(own, h["kind"])
    if encoder.fingerprint != h["encoder"]["fingerprint"]:
        raise UserError(
            f"expected the encoder {h['encoder']['name']} as it was when the model was fitted, got one with other "
            "weights or settings, so that vectors would differ; install the versions that were used then (the model is "
            f"of kshot {h['kshot']}), or fit again"
        )
    return encoder
