"""The model file: all of a fitted estimator in one file, but for weights that were downloaded.

The encoder is kept by name and settings, with the hash of its weights; what it learnt from the shots is kept whole.
When the file is read, the encoder is opened anew and must have the same hash. See ``kshot.estimator.container`` for the
layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError
from kshot.core.encoder import ENCODER_KINDS
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
_PARAMS = ("head", "unknown_rate", "unknown_label", "finetune", "use_class_names", "cache")
#: What a damaged header or tensor raises where it is used.
_DAMAGE = (KeyError, TypeError, IndexError, AttributeError, RuntimeError, ValueError, OverflowError)


class _Unfit(ValueError):
    """A part of a file that is not what it should be."""


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
        encoder: only for a model whose encoder was a function or network, or came from a repository of the hub that its
            name gives: that very one.
        on_progress: told (done, all) examples while encoding.

    Returns:
        The fitted model.

    Raises:
        UserError: the file is foreign, damaged or of a newer version, or its encoder is not to be had.
    """
    path = Path(path)
    content = container.read(path)
    try:
        _check_header(content.header)
        model = (_classifier if content.header["task"] == "classification" else _regressor)(content)
        _restore(model, content, encoder)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(container.damaged(path, _told(error))) from error
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

    Raises:
        UserError: the file is foreign, of a newer version, or damaged at its beginning.
    """
    path = Path(path)
    header = container.header_of(path, container.read_metadata(path))
    try:
        _check_header(header)
    except _DAMAGE as error:
        raise UserError(container.damaged(path, _told(error))) from error
    return header


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


def _told(error: Exception) -> str:
    why = str(error) if isinstance(error, _Unfit) else f"{type(error).__name__}: {error}"
    return " ".join(why.split())[:200]


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise _Unfit(what)


def _number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> None:
    # Strictly between, so that it is finite; NaN is between nothing.
    _demand(type(value) in (int, float) and low < value < high, f"{what} is {value!r:.40}")


def _check_header(h: Mapping[str, Any]) -> None:
    # JSON may hold anything in any place; what is wrong here would be a traceback later, or a wrong answer.
    _demand(h["task"] in ("classification", "regression"), f"its task is {h['task']!r:.40}")
    _demand(h["kind"] in ENCODER_KINDS, f"its kind is {h['kind']!r:.40}")
    encoder, columns, n_features = h["encoder"], h["columns"], h["n_features"]
    _demand(all(isinstance(encoder[k], str) for k in ("name", "fingerprint")), "its encoder has no name")
    _demand(isinstance(encoder["settings"], dict), "its encoder has no settings")
    _demand(type(h["n_shots"]) is int, "its number of shots is none")
    _demand(n_features is None or (type(n_features) is int and n_features > 0), f"n_features is {n_features!r:.40}")
    _demand(isinstance(columns, list) and all(isinstance(c, str) for c in columns), "its columns are no names")
    _demand(not columns or n_features in (None, len(columns)), f"{len(columns)} columns are named of {n_features}")
    for name, value in (h["expected"] or {}).items():
        _number(value, f"{name} of what to expect")
    if h["task"] == "classification":
        _check_classification(h)
        return
    _number(h["kernel"]["share"], "share of the kernel", -1e-9, 1 + 1e-9)
    for name in ("length", "ridge"):
        _number(h["kernel"][name], f"{name} of the kernel", 0)


def _check_classification(h: Mapping[str, Any]) -> None:
    wanted, classes, params = labels.TYPES[h["class_type"]], h["classes"], h["params"]
    _demand(isinstance(classes, list) and len(classes) > 1, "it has less than two classes")
    _demand(all(type(c) is wanted for c in classes), f"its classes are not all of type {h['class_type']}")
    _demand(len(set(classes)) == len(classes), "a class stands twice in it")
    counts = h["shots"]
    _demand(len(counts) == len(classes) and all(type(n) is int and n > 0 for n in counts), "a class has no shots")
    _demand(h["head"]["name"] in STRENGTHS, f"its head is {h['head']['name']!r:.40}")
    _number(h["head"]["strength"], "strength of its head", 0)
    _number(h["temperature"], "its temperature", 0)
    _number(h["least_rate"], "its least rate", 0)
    _demand(type(h["seed"]) is int, f"its seed is {h['seed']!r:.40}")
    for name, loss in h["losses"].items():
        _number(loss, f"the loss of {name:.40}")
    _demand(set(params) <= set(_PARAMS), f"it has parameters beside {', '.join(_PARAMS)}")
    _demand(params["head"] in ("auto", *STRENGTHS), f"the head that was asked for is {params['head']!r:.40}")
    if params["unknown_rate"] is not None:
        _number(params["unknown_rate"], "its unknown_rate", 0, 1)
    label = params["unknown_label"]
    _demand(label is None or isinstance(label, str | int | float), f"its unknown_label is {label!r:.40}")


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
    model.fit_ = Fit(
        t["z"],
        t["y"],
        len(h["classes"]),
        head,
        float(h["temperature"]),
        t["reference"],
        held_out,
        expected,
        h["losses"],
        h["seed"],
        t.get("class_names"),
    )
    model.classes_ = np.array(h["classes"], dtype=np.dtype(h["class_dtype"]))
    # A narrow type would cut names, and round numbers.
    _demand(model.classes_.tolist() == h["classes"], f"its classes do not fit into {h['class_dtype']!r:.40}")
    _check_fit(model.fit_)
    return model


def _check_fit(fitted: Fit) -> None:
    (n, d), c, head = fitted.z.shape, fitted.n_classes, fitted.head
    shapes = [fitted.y.shape, head.weight.shape, head.bias.shape, head.centre.shape]
    fits = shapes == [(n,), (c, d), (c,), (d,)] and (fitted.names is None or fitted.names.shape == (c, d))
    _demand(fits and fitted.reference.ndim == 1, "its parts do not fit each other")
    _check_finite(vectors=fitted.z, **{name: getattr(head, name) for name in _HEAD})
    _check_labels(fitted.y, c)
    _demand(len(fitted.y.unique()) == c, "a class has no shots")
    if fitted.held_out is not None:
        index, logits, known = fitted.held_out
        _demand(len(index) == len(known) and logits.shape == (len(index), c), "its held-out answers do not fit")
        _check_labels(index, n)
        _check_labels(known, c)


def _check_finite(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        _demand(t.is_floating_point() and bool(t.isfinite().all()), f"its {name} is not finite")
    _demand(len({t.dtype for t in tensors.values()}) == 1, f"its {' and '.join(tensors)} are of different types")


def _check_labels(y: Tensor, n: int) -> None:
    _demand(y.dtype == torch.int64 and len(y) > 0, "its labels are none")
    _demand(int(y.min()) >= 0 and int(y.max()) < n, f"its labels are not within 0 to {n - 1}")


def _of_regressor(model: FewShotRegressor) -> Content:
    header = {
        "kernel": model.fit_.kernel._asdict(),
        "expected": model.expected_error_._asdict(),
        "params": {"cache": model.cache},
    }
    return Content(header, {"z": model.z_, "y": torch.from_numpy(model.y_.copy())})


def _regressor(content: Content) -> FewShotRegressor:
    h, t = content
    _demand(set(h["params"]) <= {"cache"}, "it has parameters beside cache")
    model = FewShotRegressor(**h["params"])
    model.z_, model.y_ = t["z"], t["y"].numpy()
    _demand(
        t["z"].ndim == 2 and t["y"].shape == t["z"].shape[:1] and len(t["z"]) > 1, "its parts do not fit each other"
    )
    _check_finite(vectors=t["z"])
    _check_finite(targets=t["y"])
    unit = h["kind"] != "table"
    model.fit_ = fit_kernel_ridge(
        t["z"], t["y"], unit=unit, order=torch.arange(len(t["z"])), kernel=Kernel(**h["kernel"])
    )
    return model


def _restore(model: FewShotClassifier | FewShotRegressor, content: Content, own: Any) -> None:
    h, t = content
    model.kind_ = model.kind = h["kind"]
    names, thumbnails = (container.unpack(t[f"{k}.bytes"], t[f"{k}.offsets"]) for k in ("names", "thumbnails"))
    _demand(len(names) == len(thumbnails) == len(t["z"]), "its shots do not have a name and a picture or text each")
    model.names_ = [name.decode("utf-8", "surrogateescape") for name in names]
    model._shots = []
    model._thumbnails = list(thumbnails) if h["kind"] == "image" else [b.decode("utf-8") for b in thumbnails]
    if h["n_features"] is not None:
        model.n_features_in_ = h["n_features"]
    if h["columns"]:
        model.feature_names_in_ = np.array(h["columns"], dtype=object)
    # Last, since it takes longest.
    model.encoder_ = _encoder(h, t, own)
    model.encoder = h["encoder"]["name"] if own is None else own


def _encoder(h: dict[str, Any], t: dict[str, Tensor], own: Any) -> Encoder:
    from kshot.estimator.encoders import make_encoder

    tensors = {name.removeprefix("encoder."): value for name, value in t.items() if name.startswith("encoder.")}
    settings = h["encoder"]["settings"]
    if own is None:
        _check_place(settings, h["kind"])
    elif isinstance(own, str) and own == settings.get("name"):
        # Who names it allows it to be opened, with the settings and the tuning that the file holds.
        own = None
    encoder = encoder_from(settings, tensors, h["kind"]) if own is None else make_encoder(own, h["kind"])
    _demand(encoder.kind == h["kind"], f"its encoder is of kind {encoder.kind}, and not {h['kind']}")
    if encoder.fingerprint != h["encoder"]["fingerprint"]:
        raise UserError(
            f"expected the encoder {h['encoder']['name']} as it was when the model was fitted, got one with other "
            "weights or settings, so that vectors would differ; install the versions that were used then (the model is "
            f"of kshot {h['kshot']}), or fit again"
        )
    return encoder


def _check_place(settings: Mapping[str, Any], kind: str) -> None:
    # A model file alone must not have anybody's repository fetched.
    prefix, _, model = str(settings.get("name", "")).partition(":")
    if prefix == kind and ":" in model and "version" not in settings and not settings.get("run"):
        raise UserError(
            f"expected an encoder that is known by its name alone, got {model!r}, a repository that no model file may "
            f"have fetched; if you trust it, pass it yourself: load(path, encoder={settings['name']!r}), or fit again "
            "with another encoder"
        )
