"""``kshot predict``: name new examples, say how sure, and which are none of the classes."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from tyro.conf import Positional, arg

from kshot.cli.fit_words import amount, brief, notes
from kshot.cli.fitted import (
    PREDICTIONS,
    check_apart,
    check_beginning_free,
    check_rate,
    check_report_free,
    examples_of,
    matched_columns,
    open_any,
    read_new,
    write_report,
)
from kshot.cli.flags import parse, typed
from kshot.cli.live import Display
from kshot.cli.predict_rows import checked_rows
from kshot.cli.tables import show, table
from kshot.core import UserError
from kshot.core.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor
    from kshot.estimator.sources import Source

#: Classes that the summary lists.
_SHOWN = 20
#: A label with a lower probability than this is not worth the room.
_LEAST = 0.005
#: Numbers in one block of probabilities or similarities; bounds memory.
_CELLS = 1 << 22

_ABOUT = """\
Name new examples: images and folders of them, CSV, TSV or JSONL files with
the columns that the model was fitted on, or .txt files with a text a line.

A line of the CSV says what the example is called, its label and probability,
p_known (how many of the shots left out looked as strange as this: small for
what belongs to no class), the labels that come next, and the nearest shot. By a
model of numbers: the prediction, and between what it lies with --coverage.

examples:
  kshot predict birds.kshot new_photos/ --out predictions.csv
  kshot predict birds.kshot a.jpg b.jpg --unknown-rate 0.05
  kshot predict topics.kshot --text "My card was stolen" "Where is my money?"
  kshot predict topics.kshot test.csv --label-column topic --report test.html"""


@dataclass(frozen=True)
class Predict:
    """Settings of ``kshot predict``.

    Attributes:
        model: the model file.
        inputs: files and folders.
        text: texts or SMILES, typed here.
        out: CSV file; - for standard output, and nothing else.
        unknown_rate: answer "unknown" where that may be wrong for this share of examples of the classes.
        top: how many labels for each example, with their probabilities.
        coverage: of a model of numbers: share of targets that are to lie within the intervals.
        text_column: column of texts or SMILES.
        label_column: column of true labels; the accuracy is then printed, too.
        skip_bad: leave unreadable examples out, and name them, in the place of stopping.
        report: write an HTML report on the model and these examples there.
        threads: threads on a CPU; 0 for PyTorch's choice.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL", help_behavior_hint="")]] = ""
    inputs: Positional[Annotated[tuple[str, ...], arg(metavar="INPUT...", help_behavior_hint="")]] = ()
    text: Annotated[tuple[str, ...], arg(metavar="TEXT...", help_behavior_hint="(default: none)")] = ()
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: a table on standard output)")] = ""
    unknown_rate: Annotated[float, arg(help_behavior_hint="(default: as the model was fitted)")] = 0.0
    top: int = 3
    coverage: float = 0.9
    text_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: found by its name)")] = ""
    label_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: none)")] = ""
    skip_bad: bool = False
    report: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: none)")] = ""
    threads: int = 0


class Answer(NamedTuple):
    """What a model says of one example.

    Attributes:
        label: the label, or that for unknown.
        p_known: p-value of belonging to any class; NaN where a model cannot tell.
        classes: the most probable labels, best first.
        probabilities: of them.
        nearest: name of the nearest shot.
        nearest_label: its label.
        similarity: cosine to it.
    """

    label: str
    p_known: float
    classes: list[str]
    probabilities: list[float]
    nearest: str
    nearest_label: str
    similarity: float


def run(args: Sequence[str]) -> int:
    """Predict.

    Args:
        args: the command line after ``kshot predict``.

    Returns:
        The exit status.

    Raises:
        UserError: no model or input is named, or something is wrong with one.
    """
    asked = parse(Predict, args, prog="kshot predict", about=_ABOUT)
    _check(asked)
    if asked.threads > 0:
        torch.set_num_threads(asked.threads)
    with Display() as display:
        opened, given = open_any(asked.model, display), typed(args, Predict)
        if not hasattr(opened, "classes_"):
            return _predict_numbers(asked, given, opened, display)
        model = _of_classes(asked, given, opened)
        rate = asked.unknown_rate if "unknown_rate" in given else model.unknown_rate or 0.0
        source = _read(asked, model, display)
        with matched_columns():
            z = model.embed(examples_of(source))
        answers = list(answer(model, z, rate, asked.top))
        _write(asked, source, answers)
        write_report(model, asked.report, display, X=examples_of(source), y=source.labels)
        if asked.out == "-":
            return 0
        for line in [*notes(source), *_warnings(model, rate)]:
            display.say(line)
    if asked.out:
        _print_summary(asked, source, answers)
    else:
        _print_table(source, answers)
    _print_accuracy(model, source, answers, rate)
    return 0


def _of_classes(asked: Predict, given: set[str], model: Any) -> FewShotClassifier:
    if "coverage" in given:
        raise UserError(f"--coverage is for models of numbers, {asked.model} tells classes; leave it out")
    return model


def _predict_numbers(asked: Predict, given: set[str], model: Any, display: Display) -> int:
    wrong = [f"--{name.replace('_', '-')}" for name in ("unknown_rate", "top") if name in given]
    if wrong:
        raise UserError(f"{', '.join(wrong)} is for models of classes, {asked.model} predicts numbers; leave it out")
    if not 0 < asked.coverage < 1:
        raise UserError(f"expected coverage between 0 and 1, got {asked.coverage:g}; 0.9 is usual")
    from kshot.cli.predict_numbers import predict_numbers

    source = _read(asked, model, display, numeric=True)
    predict_numbers(model, source, display, coverage=asked.coverage, out=asked.out, report=asked.report)
    return 0


def answer(model: FewShotClassifier, z: Tensor, rate: float, top: int) -> Iterator[Answer]:
    """Answer for embeddings, in blocks of bounded memory.

    Args:
        model: the model.
        z: (N, D).
        rate: error rate at which "unknown" is answered; 0 for never.
        top: so many labels each.

    Yields:
        An answer for each.
    """
    fitted = model.fit_
    classes = [str(label) for label in model.classes_]
    known = bool(len(fitted.reference))
    for part in z.split(max(1, _CELLS // max(fitted.n_classes, len(fitted.z)))):
        best = fitted.probabilities(part).topk(min(top, fitted.n_classes), dim=1)
        alike, shots = (found.squeeze(1).tolist() for found in fitted.nearest(part, 1))
        p_values = fitted.p_values(part).tolist()
        rows = zip(best.indices.tolist(), best.values.tolist(), p_values, alike, shots, strict=True)
        for indices, probabilities, p, similarity, shot in rows:
            labels = [classes[i] for i in indices]
            label = str(model.unknown_label_) if known and p <= rate else labels[0]
            near = classes[int(fitted.y[shot])]
            p_known = p if known else float("nan")
            yield Answer(label, p_known, labels, probabilities, model.names_[shot], near, similarity)


def _check(asked: Predict) -> None:
    check_rate(asked.unknown_rate)
    if asked.top < 1:
        raise UserError(f"expected top >= 1, got {asked.top}")
    if not asked.inputs and not asked.text:
        raise UserError("expected what to predict: kshot predict MODEL INPUT..., or --text TEXT")
    if asked.inputs and asked.text:
        raise UserError("expected either files or --text, got both; predict them apart")
    if asked.out not in ("", "-"):
        check_beginning_free(Path(asked.out), "the predictions", *PREDICTIONS)
        check_apart(asked.out, asked.model, asked.report, *asked.inputs)
    if asked.report:
        check_report_free(Path(asked.report))
        check_apart(asked.report, asked.model, *asked.inputs)


def _read(
    asked: Predict, model: FewShotClassifier | FewShotRegressor, display: Display, numeric: bool = False
) -> Source:
    if not asked.text:
        source = read_new(
            model,
            asked.inputs,
            display,
            text_column=asked.text_column or None,
            label_column=asked.label_column or None,
            skip_bad=asked.skip_bad,
            numeric=numeric,
        )
        return checked_rows(model.encoder_, source, ", ".join(asked.inputs), skip_bad=asked.skip_bad)
    if model.kind_ not in ("text", "molecule"):
        raise UserError(
            f"--text is for models of texts or molecules, {asked.model} is one of {model.kind_}s; name files"
        )
    from kshot.estimator.sources import Source

    return Source(model.kind_, list(asked.text), None, [f"text {i}" for i in range(1, 1 + len(asked.text))])


def _write(asked: Predict, source: Source, answers: Sequence[Answer]) -> None:
    if not asked.out:
        return
    text = _csv(source, answers)
    if asked.out == "-":
        print(text, end="")
    else:
        write_atomically(Path(asked.out), text)


def _csv(source: Source, answers: Sequence[Answer]) -> str:
    texts = source.kind in ("text", "molecule")
    ranks = range(2, 1 + len(answers[0].classes))
    header = ["input", *(["text"] if texts else []), "label", "probability", "p_known"]
    header += [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]
    header += ["nearest", "nearest_label", "similarity", *(["actual"] if source.labels else [])]
    out = io.StringIO()
    made = csv.writer(out, lineterminator="\n")
    made.writerow(header)
    for i, found in enumerate(answers):
        row: list[Any] = [source.names[i], *([source.examples[i]] if texts else []), found.label]
        row += [_digits(found.probabilities[0]), _digits(found.p_known)]
        for label, probability in zip(found.classes[1:], found.probabilities[1:], strict=True):
            row += [label, _digits(probability)]
        row += [found.nearest, found.nearest_label, _digits(found.similarity)]
        made.writerow([*row, *([source.labels[i]] if source.labels else [])])
    return out.getvalue()


def _digits(value: float) -> str:
    return "" if value != value else f"{value:.6g}"


def _warnings(model: FewShotClassifier, rate: float) -> list[str]:
    n = len(model.fit_.reference)
    if not rate:
        return []
    if not n:
        return ["note: nothing can be called unknown, since no class of the model has two examples"]
    least = 1 / (n + 1)
    return [] if rate >= least else [f"note: {n:,} shots left out vouch for no error rate below {least:.2g}; raise it"]


def _print_table(source: Source, answers: Sequence[Answer]) -> None:
    made = table("input", "label", "sure", "p_known", "or else", "nearest shot", unbroken=("label",))
    for i, found in enumerate(answers):
        name = brief(source.examples[i]) if source.kind in ("text", "molecule") else source.names[i]
        others = zip(found.classes, found.probabilities, strict=True)
        instead = ", ".join(f"{label} {_percent(p)}" for label, p in others if label != found.label and p >= _LEAST)
        sure = _percent(found.probabilities[0]) if found.label == found.classes[0] else ""
        known = "" if found.p_known != found.p_known else f"{found.p_known:.2g}"
        made.add_row(name, found.label, sure, known, instead, f"{found.nearest} ({found.nearest_label})")
    show(made)


def _print_summary(asked: Predict, source: Source, answers: Sequence[Answer]) -> None:
    counts = Counter(found.label for found in answers).most_common()
    made = table()
    for label, n in counts[:_SHOWN]:
        made.add_row(label, f"{n:,}")
    if len(counts) > _SHOWN:
        made.add_row(f"{len(counts) - _SHOWN:,} other labels", f"{sum(n for _, n in counts[_SHOWN:]):,}")
    show(made)
    print(f"{amount(len(source), source.kind)}, written to {asked.out}")


def _print_accuracy(model: FewShotClassifier, source: Source, answers: Sequence[Answer], rate: float) -> None:
    if not source.labels:
        return
    pairs = list(zip(answers, source.labels, strict=True))
    kept = [(found, label) for found, label in pairs if found.label == found.classes[0]]
    refusal = str(model.unknown_label_) if rate else None
    print(f"accuracy  {_accuracy(pairs)}{_of_refused(len(pairs) - len(kept), refusal, source.labels)}")
    if len(kept) < len(pairs):
        print(f"accuracy among those not refused  {_accuracy(kept) if kept else 'none'}")
    known = {*map(str, model.classes_), refusal}
    foreign = Counter(label for label in source.labels if label not in known)
    if foreign:
        from kshot.estimator.sources_result import listed

        n, named = foreign.total(), listed([label for label, _ in foreign.most_common()])
        print(f"note: {n:,} of the true labels ({named}) are none of the model's classes and count as errors")


def _of_refused(n: int, refusal: str | None, labels: Sequence[str]) -> str:
    if refusal is None:
        return ""
    if not n:
        return "; none was refused"
    return f"; a refused answer counts as wrong{f' unless its label is {refusal}' if refusal in labels else ''}"


def _accuracy(pairs: Sequence[tuple[Answer, str]]) -> str:
    from kshot.estimator.expected import wilson

    share = sum(found.label == label for found, label in pairs) / len(pairs)
    low, high = wilson(share, len(pairs))
    return f"{100 * share:.1f} % (95% interval {100 * low:.1f} to {100 * high:.1f}), on {len(pairs):,}"


def _percent(p: float) -> str:
    return f"{100 * p:.0f}%" if p < 0.995 else ">99%"
