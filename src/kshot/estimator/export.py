"""ONNX export: encoder, head and calibration as one network that runs without Python, PyTorch and kshot.

Outputs of a classifier: ``probabilities`` (N, C), and, where the shots can vouch for any error rate, ``p_known`` (N,):
an example is unknown at a false-alarm rate a where ``p_known <= a``. Of a regressor: ``prediction`` (N,), and
``deviation`` (N,), how far targets are expected to lie from it. The names of the classes, and what must be done to an
example first, stand in the file's metadata under "kshot", and again in a JSON file beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.estimator.export_doors import Door, door_of
from kshot.estimator.export_network import Answer, Numbers

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor

#: How far probabilities of the exported network may lie from those of the model, or numbers, of how much targets vary.
TOLERANCE = 1e-4
_INSTALL = "pip install 'kshot[onnx]'"
_MODULES = ("onnx", "onnxscript", "onnxruntime")
#: What turns the letters of a terminal red or bold.
_COLOURS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


@dataclass(frozen=True)
class _Asked:
    # What the exported network gives: its outputs by name, what the model says of vectors, and how near that must be.
    network: nn.Module
    outputs: list[str]
    wanted: Callable[[Tensor], Sequence[Tensor]]
    near: Sequence[float]
    about: dict[str, Any]


def export_onnx(model: FewShotClassifier | FewShotRegressor, path: Path | str) -> Path:
    """Write a model as an ONNX file, once onnxruntime gives the same answers by it.

    Args:
        model: fitted.
        path: the file, usually ending in .onnx; a JSON file of the same name and ".json" is written beside it. Older
            ones of kshot are replaced.

    Returns:
        The path of the JSON file.

    Raises:
        UserError: the model is not fitted, its encoder can't be exported, the answers differ, a package is missing,
            another file is in the way, or the file can't be written.
    """
    path = Path(path)
    _need_packages()
    check_replaceable(path)
    if not hasattr(model, "fit_"):
        raise UserError("expected a fitted model to export, got one that has learnt nothing; call fit(X, y) first")
    door = door_of(model)
    asked = _asked(model, door)
    content = _to_onnx(asked.network, door, asked.outputs)
    about = {
        "kshot_onnx": 1,
        **asked.about,
        "kind": model.encoder_.kind,
        "encoder": model.encoder_.name,
        "encoder_fingerprint": model.encoder_.fingerprint,
        "inputs": list(door.inputs),
        "outputs": asked.outputs,
        "preprocessing": door.preprocessing,
    }
    data = _with_metadata(content, about)
    _check(data, asked, door)
    write_atomically(path, data)
    write_atomically(beside(path), json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return beside(path)


def beside(path: Path) -> Path:
    """Name the JSON file of an ONNX file.

    Args:
        path: the ONNX file.

    Returns:
        The file beside it.
    """
    return path.with_name(path.name + ".json")


def check_replaceable(path: Path) -> None:
    """Refuse to write an exported model over anything but an older one; whatever is no file or empty may be written to.

    Args:
        path: where the ONNX file is to be written.

    Raises:
        UserError: there, or where the JSON is to be written, is another file; or a package is missing to tell.
    """
    for file, ours in ((path, _is_export), (beside(path), _is_told)):
        if file.is_file() and file.stat().st_size and not ours(file):
            raise UserError(
                f"expected a new file or one that kshot has exported, {file} is something else; choose another name"
            )


def _is_export(path: Path) -> bool:
    _need_packages()
    # Both are compiled, without types.
    onnx = importlib.import_module("onnx")
    broken = importlib.import_module("google.protobuf.message").DecodeError
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except (broken, OSError):
        return False
    return any(entry.key == "kshot" for entry in proto.metadata_props)


def _is_told(path: Path) -> bool:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and "kshot_onnx" in told


def _asked(model: FewShotClassifier | FewShotRegressor, door: Door) -> _Asked:
    from kshot.estimator.regressor import FewShotRegressor

    if isinstance(model, FewShotRegressor):
        numbers = model.fit_
        near = TOLERANCE * max(float(model.y_.std()), 1e-12)
        return _Asked(
            Numbers(door.network, numbers).eval(),
            ["prediction", "deviation"],
            lambda z: [numbers.mean(z), numbers.deviation(z)],
            [near, near],
            {"task": "regression"},
        )
    fitted = model.fit_
    # A score as good as equal to that of a shot may fall on either side of it.
    steps = 2.5 / (len(fitted.reference) + 1)
    return _Asked(
        Answer(door.network, fitted).eval(),
        ["probabilities", "p_known"] if len(fitted.reference) else ["probabilities"],
        lambda z: [fitted.probabilities(z), fitted.p_values(z)],
        [TOLERANCE, steps],
        {"task": "classification", "classes": model.classes_.tolist()},
    )


def _need_packages() -> None:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"expected the packages {', '.join(_MODULES)}, {missing[0]} is not installed; {_INSTALL}")


def _to_onnx(answer: nn.Module, door: Door, outputs: list[str]) -> Any:
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
        if (stop := _interruption(error)) is not None:
            raise stop from None
        first = (_COLOURS.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"expected a network that ONNX can express, PyTorch could not export this one: {first}; encode outside, "
            "and fit and export a model of kind 'vector' on the vectors"
        ) from error
    if program is None:
        raise UserError("expected an ONNX program of PyTorch, got none; install a newer torch")
    return program.model_proto


def _interruption(error: BaseException) -> KeyboardInterrupt | None:
    # Ctrl-C and SIGTERM while PyTorch traces arrive within errors of its own.
    seen, left = set[int](), [error]
    while left:
        one = left.pop()
        if isinstance(one, KeyboardInterrupt):
            return one
        seen.add(id(one))
        left += [e for e in (one.__cause__, one.__context__) if e is not None and id(e) not in seen]
    return None


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


def _check(data: bytes, asked: _Asked, door: Door) -> None:
    import onnxruntime

    # A compiled module without types; its exceptions have no parent but Exception.
    failures = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    known = (failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        answers = [
            session.run(asked.outputs, dict(zip(door.inputs, map(_array, x), strict=True))) for x in door.examples
        ]
    except known as error:
        raise UserError(
            f"expected a network that onnxruntime can run, it says: {str(error)[:300]}; nothing was written: "
            "encode outside, and export a model of kind 'vector'"
        ) from error
    for inputs, arrays in zip(door.examples, answers, strict=True):
        got = [torch.from_numpy(array) for array in arrays]
        with torch.inference_mode():
            wanted = asked.wanted(door.embed(*inputs))
        for name, ours, theirs, most in zip(asked.outputs, wanted, got, asked.near, strict=False):
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
