"""ONNX export: encoder, head and calibration as one network that runs without Python, PyTorch and kshot.

Outputs: ``probabilities`` (N, C), and, where the shots can vouch for any error rate, ``p_known`` (N,): an example is
unknown at a false-alarm rate a where ``p_known <= a``. The names of the classes, and what must be done to an example
first, stand in the file's metadata under "kshot", and again in a JSON file beside it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kshot.core import UserError, generator
from kshot.core.files import write_atomically
from kshot.estimator.export_network import Answer, Lifted, Quantiles, Vectors

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier

#: How far probabilities of the exported network may lie from those of the model.
TOLERANCE = 1e-4
_INSTALL = "pip install 'kshot[onnx]'"
_MODULES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Door:
    """How examples get into the exported network.

    Attributes:
        network: inputs -> vectors.
        inputs: name -> names of its axes that may have any length, by their number.
        examples: batches of inputs, to trace with (the first) and to check with (all).
        embed: inputs -> vectors, as the model itself makes them.
        preprocessing: what must be done to an example first; plain JSON values.
    """

    network: nn.Module
    inputs: dict[str, dict[int, str]]
    examples: list[tuple[Tensor, ...]]
    embed: Callable[..., Tensor]
    preprocessing: dict[str, Any]


def export_onnx(model: FewShotClassifier, path: Path | str) -> Path:
    """Write a model as an ONNX file, once onnxruntime gives the same answers by it.

    Args:
        model: fitted.
        path: the file, usually ending in .onnx; a JSON file of the same name and ".json" is written beside it.

    Returns:
        The path of the JSON file.

    Raises:
        UserError: the model is not fitted, its encoder can't be exported, the answers differ, a package is missing, or
            the file can't be written.
    """
    _need_packages()
    if not hasattr(model, "fit_"):
        raise UserError("expected a fitted model to export, got one that has learnt nothing; call fit(X, y) first")
    door = _door(model)
    answer = Answer(door.network, model.fit_).eval()
    outputs = ["probabilities", "p_known"] if len(model.fit_.reference) else ["probabilities"]
    content = _to_onnx(answer, door, outputs)
    about = {
        "kshot_onnx": 1,
        "classes": model.classes_.tolist(),
        "kind": model.encoder_.kind,
        "encoder": model.encoder_.name,
        "encoder_fingerprint": model.encoder_.fingerprint,
        "inputs": list(door.inputs),
        "outputs": outputs,
        "preprocessing": door.preprocessing,
    }
    data = _with_metadata(content, about)
    _check(data, model, door, outputs)
    path = Path(path)
    beside = path.with_name(path.name + ".json")
    write_atomically(path, data)
    write_atomically(beside, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return beside


def _need_packages() -> None:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"expected the packages {', '.join(_MODULES)}, {missing[0]} is not installed; {_INSTALL}")


def _door(model: FewShotClassifier) -> Door:
    encoder: Any = model.encoder_
    if encoder.name == "table:quantile":
        return _table(encoder)
    if encoder.kind == "molecule" or encoder.name == "vector:identity":
        return _vectors(encoder)
    if isinstance(getattr(encoder, "function", None), nn.Module):
        return _own(encoder, model)
    if not hasattr(encoder, "network"):
        raise UserError(
            f"expected an encoder with a network, got {encoder.name}, a function that can't be exported; encode by it "
            "yourself and fit a model of kind 'vector' on the vectors"
        )
    if encoder.kind == "text":
        return _text(encoder)
    network, example = encoder.network()
    name = "pixels" if encoder.kind == "image" else "rows"
    return _plain(network, name, example, encoder.preprocessing())


def _plain(network: nn.Module, name: str, example: Tensor, preprocessing: dict[str, Any]) -> Door:
    network = copy.deepcopy(network).cpu().eval()
    random = generator(0, "export")
    examples = [(torch.randn((n, *example.shape[1:]), generator=random),) for n in (2, 3, 1)]
    about = {**preprocessing, "input": {"name": name, "type": "float32", "shape": ["N", *example.shape[1:]]}}
    return Door(network, {name: {0: "N"}}, examples, network, about)


def _own(encoder: Any, model: FewShotClassifier) -> Door:
    if encoder.kind in ("text", "molecule") or hasattr(encoder.function, "encode"):
        raise UserError(
            f"expected a network that takes tensors, {encoder.name} takes {encoder.kind}s as they are; encode by it "
            "yourself and fit a model of kind 'vector' on the vectors"
        )
    if encoder.kind == "image":
        from kshot.apps.vision.preprocess import Preprocessing

        how = Preprocessing()
        about = {"layout": "NCHW", "channels": "RGB", "range": [0, 1], **how.settings()}
        return _plain(encoder.function, "pixels", torch.zeros(2, 3, *how.size), about)
    network = Lifted(encoder.function) if encoder.kind == "table" else encoder.function
    return _plain(network, "rows", torch.zeros(2, model.n_features_in_), {})


def _vectors(encoder: Any) -> Door:
    about: dict[str, Any] = {"input": {"name": "vectors", "type": "float32", "shape": ["N", encoder.dim]}}
    if encoder.kind == "molecule":
        about["fingerprint"] = encoder.settings()
    random = generator(0, "export")
    examples = [((torch.randn(n, encoder.dim, generator=random) > 1).float(),) for n in (4, 3, 1)]
    if encoder.kind == "vector":
        examples = [(torch.randn(n, encoder.dim, generator=random),) for n in (4, 3, 1)]
    network = Vectors()
    return Door(network, {"vectors": {0: "N"}}, examples, network, about)


def _table(encoder: Any) -> Door:
    from kshot.estimator.embedded import lift

    random = generator(0, "export")
    medians = encoder.state["medians"]
    ends = [encoder.state["knots"].min(), encoder.state["knots"].max()] if encoder.dim else [0.0, 1.0]

    def rows(n: int) -> Tensor:
        spread = torch.rand(n, len(medians), generator=random, dtype=torch.double)
        drawn = torch.where(spread < 0.5, medians * (0.5 + 2 * spread), ends[0] + (ends[1] - ends[0]) * spread)
        return drawn.masked_fill(torch.rand(n, len(medians), generator=random) < 0.1, torch.nan)

    about = {"input": {"name": "rows", "type": "float64", "shape": ["N", len(medians)], "missing": "NaN"}}
    return Door(
        Quantiles(encoder.state),
        {"rows": {0: "N"}},
        [(rows(n),) for n in (64, 3, 1)],
        lambda x: lift(encoder.encode(x.numpy()), "table"),
        about,
    )


def _text(encoder: Any) -> Door:
    network = copy.deepcopy(encoder.network()[0]).cpu().eval()
    texts = [
        "When will my new card arrive?",
        "Hello",
        "I was charged twice for the same thing, please pay it back " * 4,
    ]

    def inputs(chosen: list[str]) -> tuple[Tensor, ...]:
        return tuple(t.cpu() for t in encoder.pad(encoder.tokenize(chosen)))

    axes = {0: "N", 1: "L"}
    about = encoder.preprocessing()
    return Door(
        network,
        dict.fromkeys(about["inputs"], axes),
        [inputs(texts[:2]), inputs(texts), inputs(texts[1:2])],
        network,
        {**about, "input": {"names": about["inputs"], "type": "int64", "shape": ["N", "L"]}},
    )


def _to_onnx(answer: Answer, door: Door, outputs: list[str]) -> Any:
    example = door.examples[0]
    shapes = tuple(
        {i: torch.export.Dim(name, min=1) if name == "N" else torch.export.Dim.DYNAMIC for i, name in axes.items()}
        for axes in door.inputs.values()
    )
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                answer,
                example,
                input_names=list(door.inputs),
                output_names=outputs,
                dynamic_shapes=(shapes,),
                dynamo=True,
                verbose=False,
                optimize=True,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"expected a network that ONNX can express, PyTorch could not export this one: {first}; encode outside, "
            "and fit and export a model of kind 'vector' on the vectors"
        ) from error
    if program is None:
        raise UserError("expected an ONNX program of PyTorch, got none; install a newer torch")
    return program.model_proto


def _with_metadata(proto: Any, about: dict[str, Any]) -> bytes:
    from kshot import __version__  # imported here: kshot itself imports this room when asked for a classifier

    proto.producer_name, proto.producer_version = "kshot", __version__
    # Traces of the source code that PyTorch keeps at every node: of no use outside, and a third of a small file.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = "kshot", json.dumps(about, ensure_ascii=False)
    try:
        return proto.SerializeToString()
    except ValueError as error:
        raise UserError(
            f"expected a model of at most 2 GB, the limit of an ONNX file: {error}; use a smaller encoder"
        ) from error


def _check(data: bytes, model: FewShotClassifier, door: Door, outputs: list[str]) -> None:
    import onnxruntime

    # A compiled module without types; its exceptions have no parent but Exception.
    failures = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    known = (failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        answers = [session.run(outputs, dict(zip(door.inputs, map(_array, x), strict=True))) for x in door.examples]
    except known as error:
        raise UserError(
            f"expected a network that onnxruntime can run, it says: {str(error)[:300]}; nothing was written: "
            "encode outside, and export a model of kind 'vector'"
        ) from error
    step = 1 / (len(model.fit_.reference) + 1)
    for inputs, arrays in zip(door.examples, answers, strict=True):
        got = [torch.from_numpy(array) for array in arrays]
        with torch.inference_mode():
            z = door.embed(*inputs)
            wanted = [model.fit_.probabilities(z), model.fit_.p_values(z)]
        # A score as good as equal to that of a shot may fall on either side of it.
        for name, ours, theirs, most in zip(outputs, wanted, got, (TOLERANCE, 2.5 * step), strict=False):
            off = float((ours - theirs).abs().max())
            if ours.shape != theirs.shape or not off <= most:
                raise UserError(
                    f"expected the exported network to give the same {name} to {most:.1g}, they differ by {off:.2g}; "
                    "nothing was written: encode outside, and export a model of kind 'vector'"
                )


def _array(t: Tensor) -> Any:
    return t.numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    # PyTorch's exporter announces changes of its own inside, and logs which optional packages it lacks.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Said where several inputs share the axis N, which is what is wanted.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)
