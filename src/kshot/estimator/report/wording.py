"""Sentences and numbers of the report."""

from __future__ import annotations

import math
from typing import Any

from kshot.estimator.heads import STRENGTHS
from kshot.estimator.report.subject import Subject
from kshot.estimator.unknown import smallest_rate

View = dict[str, Any]
_ONE_SHOT = (
    "Every class has a single shot, so none could be left out: accuracy can't be estimated, probabilities rest on a "
    "rule of thumb, and nothing is called unknown. A second shot of each class changes that."
)
_CHANGED = (
    "Classes were added or removed since the model was fitted. Estimates of its accuracy went with them; fit again on "
    "all shots to have them back."
)
#: What an example is, by its kind.
NOUNS = {"image": "picture", "text": "text", "molecule": "molecule", "table": "row", "vector": "vector"}


def share(value: float) -> str:
    """Write a share as a percentage with one digit.

    Args:
        value: of 0..1.

    Returns:
        Such as "97.5%", "100%"; "< 0.1%" for what rounds to nothing without being nothing.
    """
    if 1e-9 < value < 0.0005:
        return "< 0.1%"
    if 0.9995 <= value < 1 - 1e-9:
        return "> 99.9%"
    return f"{100 * value:.1f}%" if 1e-9 < value < 1 - 1e-9 else f"{100 * value:.0f}%"


def whole(value: float) -> str:
    """Write a share as a percentage without digits.

    Args:
        value: of 0..1.

    Returns:
        Such as "97%"; "< 1%" and "> 99%" near the ends.
    """
    if 0 < value < 0.005:
        return "< 1%"
    if 0.995 <= value < 1:
        return "> 99%"
    return f"{100 * value:.0f}%"


def amount(value: float, error: float) -> str:
    """Write a number with as many digits as its error allows.

    Args:
        value: any.
        error: to expect of such numbers.

    Returns:
        Such as "1,002,310", "0.27".
    """
    places = min(max(1 - math.floor(math.log10(error)), 0), 9) if error > 0 else 4
    return f"{value:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def count(n: int, noun: str) -> str:
    """Write a number of things.

    Args:
        n: how many.
        noun: in the singular, with a regular plural.

    Returns:
        Such as "1 class", "1,200 shots".
    """
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def noun(subject: Subject) -> str:
    """Name what an example is.

    Args:
        subject: of the report.

    Returns:
        Such as "picture".
    """
    return NOUNS.get(subject.kind, "example")


def title(subject: Subject) -> str:
    """Make the heading.

    Args:
        subject: of the report.

    Returns:
        Such as "5 classes learnt from 25 pictures".
    """
    fit = subject.fit
    return f"{count(fit.n_classes, 'class')} learnt from {count(len(fit.y), noun(subject))}"


def introduction(subject: Subject) -> str:
    """Say what the model is.

    Args:
        subject: of the report.

    Returns:
        A sentence or two.
    """
    fit = subject.fit
    text = f"Each {noun(subject)} becomes {fit.z.shape[1]:,} numbers by the encoder {subject.encoder}; "
    text += f"a {fit.head.name.removesuffix('s')} head sorts them. "
    if fit.losses:
        tried = len({key.split()[0] for key in fit.losses})
        text += f"It was chosen among {count(tried, 'kind')} of heads by leaving shots out. " if tried > 1 else ""
    if fit.held_out is not None:
        text += (
            "All estimates on this page come from shots that were left out and judged by a head that had not seen them."
        )
    return text.strip()


def headlines(subject: Subject) -> list[View]:
    """Make the large numbers at the top.

    Args:
        subject: of the report.

    Returns:
        Expected accuracy, shots of a class, and the rate of false alarms that can be vouched for.
    """
    fit, counts = subject.fit, subject.counts
    found: list[View] = []
    expected = fit.expected
    if expected is not None:
        between = (
            f"95% interval {share(expected.low)} to {share(expected.high)}, from {count(expected.n, 'shot')} left out"
        )
        big = f"{100 * expected.accuracy:.1f}"
        found.append({"who": "Expected accuracy", "big": big, "small": "%", "what": between, "tone": 0})
    else:
        found.append({"who": "Expected accuracy", "big": "?", "small": "", "what": "not known", "tone": 9})
    least, most = int(counts.min()), int(counts.max())
    big = f"{least:,}" if least == most else f"{least:,}\N{EN DASH}{most:,}"
    found.append({"who": "Shots of a class", "big": big, "small": "", "what": f"{len(fit.y):,} in all", "tone": 2})
    if len(fit.reference):
        rate = smallest_rate(fit.reference)
        digits = max(1, -math.floor(math.log10(100 * rate)))
        what = "the least false-alarm rate of \N{LEFT DOUBLE QUOTATION MARK}unknown\N{RIGHT DOUBLE QUOTATION MARK}"
        found.append(
            {
                "who": "Can vouch for",
                "big": f"{100 * rate:.{digits}f}",
                "small": "%",
                "what": what,
                "tone": 1,
            }
        )
    return found


def remarks(subject: Subject) -> list[View]:
    """List what to look at, and what can't be said.

    Args:
        subject: of the report.

    Returns:
        Items of text, each with the place on the page that tells more.
    """
    fit, counts = subject.fit, subject.counts
    found: list[View] = []
    single = int((counts == 1).sum())
    if int(counts.max()) == 1:
        found.append(_remark(_ONE_SHOT))
    elif fit.held_out is None:
        found.append(_remark(_CHANGED))
    elif single:
        what = f"{count(single, 'class')} of {fit.n_classes:,} {'has' if single == 1 else 'have'}"
        found.append(
            _remark(f"{what} a single shot and can't be judged; the estimates speak of the others.", "classes")
        )
    if fit.doubts:
        n = len(fit.doubts)
        verb = "seems" if n == 1 else "seem"
        found.append(_remark(f"{count(n, 'shot')} {verb} to have a wrong label. Look at them first.", "doubts"))
    if fit.duplicates:
        n = len(fit.duplicates)
        crossing = sum(int(fit.y[p.first]) != int(fit.y[p.second]) for p in fit.duplicates)
        more = "" if not crossing else ", under two labels" if n == 1 else f", {crossing:,} of them under two labels"
        found.append(
            _remark(
                f"{count(n, 'pair')} of shots {'is' if n == 1 else 'are'} nearly the same{more}. "
                "A shot that was left out while its twin stayed makes the estimates too good.",
                "duplicates",
            )
        )
    weak = int(((subject.right * 2 < subject.judged) & (subject.judged > 1)).sum())
    if weak:
        verb = "is" if weak == 1 else "are"
        found.append(_remark(f"{count(weak, 'class')} {verb} mistaken more often than not.", "classes"))
    return found


def _remark(text: str, to: str = "") -> View:
    return {"text": text, "to": to}


def facts(subject: Subject) -> list[tuple[str, str]]:
    """State how the model was made.

    Args:
        subject: of the report.

    Returns:
        (name, text) pairs.
    """
    from kshot import __version__  # imported here: kshot itself imports this room when asked for a classifier

    fit = subject.fit
    strength = f", strength {fit.head.strength:g}" if len(STRENGTHS.get(fit.head.name, ())) > 1 else ""
    return [
        ("Encoder", subject.encoder),
        ("Length of a vector", f"{fit.z.shape[1]:,}"),
        ("Head", f"{fit.head.name}{strength}"),
        ("Temperature", f"{fit.temperature:.3g}"),
        ("Seed", str(fit.seed)),
        *subject.facts,
        ("Written by", f"kshot {__version__}"),
    ]
