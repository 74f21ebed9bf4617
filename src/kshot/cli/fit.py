"""``kshot fit``: from a folder or a table of a few examples to a model file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from tyro.conf import Positional, arg

from kshot.cli.fit_words import amount, expectation, notes, size, spread, title, vouched
from kshot.cli.fitted import (
    Encoding,
    check_apart,
    check_model_free,
    check_rate,
    check_report_free,
    examples_of,
    remember_columns,
    shot_names,
    write_report,
)
from kshot.cli.flags import parse, typed
from kshot.cli.live import Display
from kshot.cli.tables import show, table
from kshot.cli.words import command_line
from kshot.core import UserError
from kshot.evaluation.report.wording import duration, listing

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.fit import Fit
    from kshot.estimator.sources import Source

#: Doubtful labels and near-duplicates that are printed; the report has all.
_SHOWN = 10

_ABOUT = """\
Learn from a few labelled examples. DATA is a folder with one folder of images
for each class, or a CSV, TSV or JSONL file with a label column and a text
column, a SMILES column, or columns of numbers. Prints what to expect of the
model on new examples, and which labels to look at again.

With --task regression the labels are numbers, and numbers are predicted.

examples:
  kshot fit photos/ --out birds.kshot
  kshot fit questions.csv --text-column question --label-column topic --out topics.kshot
  kshot fit questions.csv --out topics.kshot --finetune --report topics.html
  kshot fit photos/ --out birds.kshot --encoder image:vit_small_patch14_dinov2.lvd142m
  kshot fit houses.csv --out prices.kshot --task regression --label-column price"""


@dataclass(frozen=True)
class FitSettings:
    """Settings of ``kshot fit``.

    Attributes:
        data: folder or file.
        out: the model file; an older model there is replaced, any other file is not.
        text_column: column of texts or SMILES.
        label_column: column of labels.
        task: classification, or regression where labels are numbers to be predicted; auto is classification, but asks
            back where labels look like amounts.
        columns: columns of numbers.
        kind: what examples are; auto tells by the data.
        encoder: what turns examples into vectors: auto, image:MODEL of timm, text:MODEL of sentence-transformers,
            molecule:morgan, table:quantile, or the folder of a run of kshot train.
        head: what is learnt on the vectors; auto chooses by leaving shots out.
        finetune: train the encoder on the shots, too (text, images); takes minutes.
        use_class_names: of texts, let the name of each class count as one more example, where that helps.
        unknown_rate: share of examples of the classes that may be answered "unknown" by mistake; 0 answers always.
        skip_bad: leave unreadable examples out, and name them, in the place of stopping.
        report: write an HTML report there.
        seed: of all randomness.
        threads: threads on a CPU; 0 for PyTorch's choice.
        cache: keep encoded examples, so that a second fit is quick.
    """

    data: Positional[Annotated[str, arg(metavar="DATA", help_behavior_hint="")]] = ""
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="(required)")] = ""
    text_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: found by its name or content)")] = ""
    label_column: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: found by its name)")] = ""
    columns: Annotated[
        tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: all that are numbers)")
    ] = ()
    task: Literal["auto", "classification", "regression"] = "auto"
    kind: Literal["auto", "image", "text", "molecule", "table"] = "auto"
    encoder: str = "auto"
    head: Literal["auto", "prototypes", "cosine", "ridge", "logistic"] = "auto"
    finetune: bool = False
    use_class_names: bool = True
    unknown_rate: Annotated[float, arg(help_behavior_hint="(default: 0, never unknown)")] = 0.0
    skip_bad: bool = False
    report: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: none)")] = ""
    seed: int = 0
    threads: int = 0
    cache: bool = True


def run(args: Sequence[str]) -> int:
    """Fit a model and write it.

    Args:
        args: the command line after ``kshot fit``.

    Returns:
        The exit status.

    Raises:
        UserError: no data or no model file is named, or one of many things is wrong with the data.
    """
    asked = parse(FitSettings, args, prog="kshot fit", about=_ABOUT)
    _check(asked)
    if asked.threads > 0:
        torch.set_num_threads(asked.threads)
    if asked.task == "regression":
        from kshot.cli.fit_numbers import fit_numbers

        return fit_numbers(asked, typed(args, FitSettings))
    began = time.monotonic()
    with Display() as display:
        source = read_asked(asked, display)
        model = _fit(asked, source, display)
        model.save(asked.out)
        write_report(model, asked.report, display)
    _print(asked, model, source, time.monotonic() - began)
    return 0


def _check(asked: FitSettings) -> None:
    # Found before the work, not after it.
    if not asked.data:
        raise UserError("expected a folder or a file of labelled examples: kshot fit DATA --out MODEL")
    if not asked.out:
        again = command_line("fit", [asked.data, "--out", "model.kshot"])
        raise UserError(f"expected a file for the model, got none; name one, as in: {again}")
    check_rate(asked.unknown_rate)
    check_model_free(Path(asked.out))
    if asked.report:
        check_report_free(Path(asked.report))
        check_apart(asked.report, asked.out, asked.data)


def read_asked(asked: FitSettings, display: Display) -> Source:
    """Read the examples that are asked for.

    Args:
        asked: the settings.
        display: where it is shown.

    Returns:
        The examples with their labels.
    """
    with display.waiting(f"reading {asked.data}"):
        from kshot.estimator.sources import read_training
        from kshot.estimator.sources_targets import check_named

        source = read_training(
            asked.data,
            kind=None if asked.kind == "auto" else asked.kind,
            text_column=asked.text_column or None,
            label_column=asked.label_column or None,
            columns=asked.columns,
            skip_bad=asked.skip_bad,
            numeric=asked.task == "regression",
            on_progress=Encoding(display, "trying"),
        )
        found = check_named(source.labels or [], asked.data) if asked.task == "auto" else []
        return replace(source, notes=[*source.notes, *found])


def _fit(asked: FitSettings, source: Source, display: Display) -> FewShotClassifier:
    with display.waiting("fitting"):
        from kshot.estimator.classifier import FewShotClassifier

        model = FewShotClassifier(
            asked.encoder,
            asked.head,
            kind=source.kind,
            unknown_rate=asked.unknown_rate or None,
            unknown_label="none of these" if "unknown" in (source.labels or []) else None,
            finetune=asked.finetune,
            use_class_names=asked.use_class_names,
            cache=asked.cache,
            random_state=asked.seed,
            on_progress=Encoding(display, "encoding and fine-tuning" if asked.finetune else "encoding"),
        )
        model.fit(examples_of(source), source.labels, names=shot_names(source))
    remember_columns(model, source)
    return model


def _print(asked: FitSettings, model: FewShotClassifier, source: Source, seconds: float) -> None:
    fitted = model.fit_
    counts = torch.bincount(fitted.y, minlength=fitted.n_classes)
    made = table()
    made.add_row(
        "read", f"{amount(len(source), source.kind)} of {fitted.n_classes:,} classes, {spread(counts)} a class"
    )
    made.add_row("encoder", f"{model.encoder_.name}, {model.encoder_.dim:,} numbers for each{_tuning(asked, model)}")
    made.add_row("head", _head(fitted))
    made.add_row("expected accuracy", expectation(fitted.expected))
    made.add_row("unknown", vouched(len(fitted.reference)))
    made.add_row("written", f"{asked.out}, {size(Path(asked.out))}, in {duration(seconds)}")
    show(made)
    for line in notes(source):
        print(line)
    single = [str(label) for label, n in zip(model.classes_, counts.tolist(), strict=True) if n == 1]
    if single:
        print(
            f"note: how well {listing(single)} will be told cannot be estimated from a single example of each; add more"
        )
    _print_doubts(model, source)
    _print_duplicates(model, source)
    _print_next(asked, source)


def _tuning(asked: FitSettings, model: FewShotClassifier) -> str:
    if not asked.finetune:
        return ""
    kept = "left as it was: tuning did not tell shots left out better, or none could be left out"
    return ", fine-tuned" if model.encoder_.tensors() else f", {kept}"


def _head(fitted: Fit) -> str:
    head = f"{fitted.head.name} {fitted.head.strength:g}"
    tried = len(fitted.losses)
    return f"{head}, the best of {tried} on shots left out" if tried > 1 else head


def _print_doubts(model: FewShotClassifier, source: Source) -> None:
    found = model.fit_.doubts
    if not found:
        return
    made = table("look again", "label", "looks like", "", unbroken=("look again", "label", "looks like"))
    for doubt in found[:_SHOWN]:
        label, instead = model.classes_[doubt.label], model.classes_[doubt.instead]
        odds = f"{100 * doubt.other:.0f} % against {100 * doubt.own:.0f} %"
        made.add_row(title(source, doubt.index), str(label), str(instead), odds)
    print(f"\n{len(found):,} label{'s' if len(found) > 1 else ''} may be wrong{_first(found)}:")
    show(made)


def _print_duplicates(model: FewShotClassifier, source: Source) -> None:
    # Those under two labels first: one of the two is wrong.
    y = model.fit_.y
    found = sorted(model.fit_.duplicates, key=lambda pair: bool(y[pair.first] == y[pair.second]))
    if not found:
        return
    made = table("one", "and the other", "alike", "", unbroken=("one", "and the other"))
    for pair in found[:_SHOWN]:
        a, b = (str(model.classes_[y[i]]) for i in (pair.first, pair.second))
        labels = a if a == b else f"labelled {a} and {b}"
        made.add_row(title(source, pair.first), title(source, pair.second), f"{100 * pair.similarity:.1f} %", labels)
    print(f"\n{len(found):,} pair{'s' if len(found) > 1 else ''} nearly the same{_first(found)}:")
    show(made)


def _first(found: Sequence[object]) -> str:
    return f", the first {_SHOWN}" if len(found) > _SHOWN else ""


def _print_next(asked: FitSettings, source: Source) -> None:
    new = {"image": "NEW_IMAGES", "table": "NEW.csv"}.get(source.kind, "NEW.csv")
    print("\ngo on with:")
    print(f"  {command_line('predict', [asked.out, new, '--out', 'predictions.csv'])}")
    print(f"  {command_line('add', [asked.out, '--class', 'NAME', new])}")
    if not asked.report:
        print(f"  {command_line('info', [asked.out, '--report', 'report.html'])}")
