"""What the commands on fitted models share: opening one, a bar while it encodes, and what may be written over.

Nothing of scikit-learn or of an encoder is imported before a model is opened, so that help comes at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import TaskID

from kshot.cli.live import Display
from kshot.core import UserError

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor
    from kshot.estimator.sources import Source

#: How the header of a file of predictions begins: of classes, of texts in classes, and of numbers.
PREDICTIONS = ("input,label,probability", "input,text,label,probability", "input,prediction,", "input,text,prediction,")


class Encoding:
    """A bar that counts examples while they are encoded: a listener for ``on_progress``.

    Args:
        display: where.
        title: what goes on.
    """

    def __init__(self, display: Display, title: str = "encoding") -> None:
        self._display, self._title = display, title
        self._bar: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        """Move the bar, which is there while there is something left to do.

        Args:
            done: examples that are encoded.
            total: all of them.
        """
        if self._bar is None and done < total:
            self._bar = self._display.bar(self._title, total, "examples")
        if self._bar is None:
            return
        self._display.move(self._bar, done, total, f"{done:,}/{total:,}")
        if done >= total:
            self._display.drop(self._bar)
            self._bar = None


def open_any(path: str, display: Display) -> FewShotClassifier | FewShotRegressor:
    """Open a model; it shows how far it is whenever it encodes.

    Args:
        path: the model file.
        display: where.

    Returns:
        The model.

    Raises:
        UserError: no file is named, it is not there, holds no model, or is damaged.
    """
    if not path:
        raise UserError("expected a model file first, one that kshot fit has written")
    with display.waiting(f"opening {path}"):
        from kshot.estimator.model_file import load_model

        return load_model(Path(path), on_progress=Encoding(display))


def open_model(path: str, display: Display) -> FewShotClassifier:
    """Open a model of classes, as ``open_any`` does.

    Args:
        path: the model file.
        display: where.

    Returns:
        The model.

    Raises:
        UserError: there is none, or it is one of numbers.
    """
    model = open_any(path, display)
    from kshot.estimator.regressor import FewShotRegressor

    if isinstance(model, FewShotRegressor):
        raise UserError(
            f"expected a model of classes, {path} predicts numbers and has none; to change it, fit anew on all examples"
        )
    return model


def read_new(
    model: FewShotClassifier | FewShotRegressor, inputs: Sequence[str], display: Display, **asked: Any
) -> Source:
    """Read examples of the kind that a model was fitted on.

    Args:
        model: the model.
        inputs: files and folders.
        display: where it is shown.
        **asked: further arguments of ``kshot.estimator.sources.read_inputs``.

    Returns:
        The examples.

    Raises:
        UserError: no input is named, or something is wrong with one.
    """
    if not inputs:
        raise UserError("expected a file or folder of examples after the model, got none; name one")
    with display.waiting("reading"):
        from kshot.estimator.sources import read_inputs

        kind = "table" if model.kind_ == "vector" else model.kind_
        columns = tuple(getattr(model, "feature_names_in_", ()))
        return read_inputs(inputs, kind=kind, columns=columns, on_progress=Encoding(display, "trying"), **asked)


def examples_of(source: Source) -> Any:
    """Return the examples as an estimator takes them.

    Args:
        source: what was read.

    Returns:
        A list, or an array of the rows of a table.
    """
    return np.asarray(source.examples, dtype=np.float64) if source.kind == "table" else source.examples


def remember_columns(model: FewShotClassifier | FewShotRegressor, source: Source) -> None:
    """Let a model file say which columns it was fitted on, so that new files may have them in another order.

    Args:
        model: fitted.
        source: what it was fitted on.
    """
    if source.columns:
        model.feature_names_in_ = np.array(source.columns, dtype=object)


@contextmanager
def matched_columns() -> Iterator[None]:
    """Keep scikit-learn from warning that an array has no names of columns: ``read_new`` has matched them.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        yield


def shot_names(source: Source) -> list[str] | None:
    """Name shots as a model file should remember them.

    Args:
        source: what was read.

    Returns:
        Paths or rows; None for texts, which say themselves what they are.
    """
    return source.names if source.kind in ("image", "table") else None


def check_model_free(path: Path) -> None:
    """Refuse to write a model over something else; a model that is there may be replaced.

    Args:
        path: where the model is to be written.

    Raises:
        UserError: another file is there, or a folder.
    """
    _check_file(path, "the model")
    if path.exists():
        from kshot.estimator.model_file import is_model

        if not (path.is_file() and is_model(path)):
            raise UserError(f"expected a new file or an older model, {path} is something else; choose another --out")


def check_beginning_free(path: Path, what: str, *beginnings: str) -> None:
    """Refuse to write over a file that does not begin as what is to be written does.

    Args:
        path: where it is to be written.
        what: it is, such as "the report".
        *beginnings: how such a file may begin.

    Raises:
        UserError: another file is there, or a folder.
    """
    _check_file(path, what)
    # What is no file, such as a pipe, has no beginning to look at: reading it might wait for ever.
    if not path.is_file():
        return
    with path.open("rb") as f:
        start = f.read(200).lstrip().lower()
    if start and not start.startswith(tuple(b.lower().encode() for b in beginnings)):
        raise UserError(
            f"{path} is there and is something else than {what} that it would be replaced by; choose another file"
        )


def check_json_free(path: str) -> None:
    """Refuse to write JSON over anything but JSON.

    Args:
        path: where it is to be written; empty or "-" for nowhere.

    Raises:
        UserError: another file is there, or a folder.
    """
    if path not in ("", "-"):
        check_beginning_free(Path(path), "the JSON", "{")


def check_apart(path: str, *others: str) -> None:
    """Refuse to write one file over another of the same command.

    Args:
        path: where something is to be written.
        *others: what is read, or written too; empty names count for nothing.

    Raises:
        UserError: two are the same file.
    """
    for other in others:
        if other and Path(other).resolve() == Path(path).resolve():
            raise UserError(f"expected different files, got {path} twice; choose another name for one of them")


def check_report_free(path: Path) -> None:
    """Refuse to write a report over anything but a page of HTML.

    Args:
        path: where the report is to be written.

    Raises:
        UserError: another file is there, or a folder.
    """
    check_beginning_free(path, "the report", "<!doctype html", "<html")


def check_onnx_free(path: Path) -> None:
    """Refuse to write an exported model, or the JSON beside it, over anything but an older one.

    Args:
        path: where the ONNX file is to be written.

    Raises:
        UserError: another file is there, or a folder, or the folder may not be written to.
    """
    from kshot.estimator.export import beside, check_replaceable

    _check_file(path, "the model")
    _check_file(beside(path), "the JSON beside the model")
    check_replaceable(path)


def _check_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise UserError(f"expected a file for {what}, {path} is a folder; name a file in it")
    # Found out before minutes of work, and not when the rest is already written.
    above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not above.is_dir():
        raise UserError(f"{what} cannot be written to {path}: {above} is a file; choose another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{what} cannot be written to {path}: you may not write to {above}; choose another folder")


def check_rate(rate: float) -> None:
    """Make sure that an error rate is one.

    Args:
        rate: share of examples of the classes that may be called unknown.

    Raises:
        UserError: it is not within 0..1.
    """
    if not 0 <= rate < 1:
        raise UserError(f"expected an unknown rate of at least 0 and below 1, got {rate:g}; 0.05 is usual")


def label_like(text: str, classes: Sequence[Any]) -> Any:
    """Read a class as it was typed, in the type that the classes of a model have.

    Args:
        text: what was typed; space around it means nothing, unless a class is written with it.
        classes: labels of the model.

    Returns:
        A label: the class that is written so, or else a new one of the same type.

    Raises:
        UserError: nothing was typed, or classes are numbers, and this is none.
    """
    same = [label for label in classes if str(label) == text]
    text = text.strip()
    if not text:
        raise UserError("expected the name of a class, got none; name one: --class NAME")
    same += [label for label in classes if str(label) == text]
    if same:
        return same[0]
    kind = type(classes[0])
    if issubclass(kind, str):
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"expected a number, as the classes of this model are, got {text!r}; number it") from error


def write_report(model: FewShotClassifier | FewShotRegressor, path: str, display: Display, **new: Any) -> None:
    """Write the report of a model, if one is asked for.

    Args:
        model: the model.
        path: the HTML file; none if empty.
        display: where it is shown.
        **new: further arguments of ``kshot.estimator.report.write_model_report``.
    """
    if not path:
        return
    with display.waiting("drawing the report"), matched_columns():
        from kshot.estimator.report import write_model_report

        write_model_report(model, Path(path), **new)
