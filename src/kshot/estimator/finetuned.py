"""Fitting with a fine-tuned encoder, and judging it on shots that neither encoder nor head has seen.

The vectors of shots that an encoder was tuned on lie where their labels want them, so leave-one-out on them flatters.
Here the encoder is tuned anew without a fifth of the shots, the head is chosen and calibrated on that fifth, and only
then is an encoder tuned on all. Further fifths are left out in turn until ``ENOUGH`` shots were judged; so few shots,
which are quick to tune on, are all judged, and many cost twice the time of one tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError, generator
from kshot.estimator.calibrate import PRIOR, calibrated_loss, fit_temperature
from kshot.estimator.expected import expected_accuracy
from kshot.estimator.fit import ONE_SHOT_HEAD, Fit
from kshot.estimator.heads import STRENGTHS, fit_head, fit_path
from kshot.estimator.held_out import HeldOut, candidates, folds
from kshot.estimator.unknown import Familiarity

FOLDS = 5
#: Shots judged, after which no more are left out.
ENOUGH = 120

_Tune = Callable[[list[int]], Encoder]


def fit_finetuned(
    encoder: Encoder,
    examples: Sequence[Any],
    y: Tensor,
    n_classes: int,
    *,
    head: str = "auto",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Encoder, Fit]:
    """Tune an encoder to the shots, and fit a head on its vectors.

    Args:
        encoder: frozen; it stays as it is.
        examples: N shots.
        y: int64 (N,), 0..C-1, each class at least once.
        n_classes: C.
        head: as in ``kshot.estimator.fit.fit``.
        seed: of the folds and of tuning.
        on_progress: told steps of each tuning in turn.

    Returns:
        The tuned encoder and the classifier.

    Raises:
        UserError: such an encoder cannot be tuned, or there is no such head.
    """
    tune = _tuner(encoder, examples, y, seed, on_progress)
    if head != "auto" and head not in STRENGTHS:
        raise UserError(f"head must be one of auto, {', '.join(STRENGTHS)}, got {head!r}")
    parts = _parts(y, seed)
    if not parts:
        tuned = tune(list(range(len(y))))
        z = tuned.encode(examples)
        name = ONE_SHOT_HEAD if head == "auto" else head
        fitted = fit_head(z, y, n_classes, name, STRENGTHS[name][0])
        return tuned, Fit(z, y, n_classes, fitted, PRIOR, z.new_zeros(0), seed=seed)
    names = candidates(len(y), encoder.dim, n_classes) if head == "auto" else {head: STRENGTHS[head]}
    tried, strangeness = _judge(tune, examples, y, n_classes, parts, names)
    losses = {key: calibrated_loss(answers) for key, answers in tried.items()}
    best = min(losses, key=lambda key: losses[key])
    answers = tried[best]
    tuned = tune(list(range(len(y))))
    z = tuned.encode(examples)
    counts = torch.bincount(y, minlength=n_classes)
    return tuned, Fit(
        z,
        y,
        n_classes,
        fit_head(z, y, n_classes, *best),
        fit_temperature(answers),
        strangeness.sort().values,
        answers,
        expected_accuracy(answers, float(counts[counts > 1].double().mean())),
        {f"{name} {r:g}": losses[name, r] for name, r in sorted(losses, key=lambda key: losses[key])},
        seed,
    )


def _parts(y: Tensor, seed: int) -> list[Tensor]:
    if int(torch.bincount(y).max()) < 2:
        return []
    found: list[Tensor] = []
    for part in folds(y, generator(seed, "folds"), FOLDS):
        if sum(len(p) for p in found) < ENOUGH:
            found.append(part)
    return found


def _judge(
    tune: _Tune,
    examples: Sequence[Any],
    y: Tensor,
    n_classes: int,
    parts: Sequence[Tensor],
    names: dict[str, tuple[float, ...]],
) -> tuple[dict[tuple[str, float], HeldOut], Tensor]:
    rows: dict[tuple[str, float], list[Tensor]] = {
        (name, r): [] for name, strengths in names.items() for r in strengths
    }
    strange: list[Tensor] = []
    for part in parts:
        out = torch.zeros(len(y), dtype=torch.bool)
        out[part] = True
        kept = (~out).nonzero().squeeze(1)
        tuned = tune(kept.tolist())
        z = tuned.encode([examples[i] for i in kept.tolist()])
        new = tuned.encode([examples[i] for i in part.tolist()])
        strange.append(Familiarity.of(z, y[kept], n_classes).strangeness(new))
        for name, strengths in names.items():
            for r, fitted in zip(strengths, fit_path(z, y[kept], n_classes, name, strengths), strict=True):
                rows[name, r].append(fitted.logits(new))
    index = torch.cat(list(parts))
    return {key: HeldOut(index, torch.cat(found), y[index]) for key, found in rows.items()}, torch.cat(strange)


def _tuner(encoder: Encoder, examples: Sequence[Any], y: Tensor, seed: int, on_progress: OnProgress | None) -> _Tune:
    if encoder.kind != "text":
        raise UserError(
            f"fine-tuning adapts encoders of texts, got {encoder.name} of kind {encoder.kind!r}; leave finetune out"
        )
    from kshot.apps.text.encoder import TextEncoder
    from kshot.apps.text.finetune import finetune

    if not isinstance(encoder, TextEncoder):
        raise UserError(f"fine-tuning adapts encoders named 'text:...', got {encoder.name}; leave finetune out")

    def tune(index: list[int]) -> Any:
        return finetune(encoder, [examples[i] for i in index], y[index], seed=seed, on_progress=on_progress)

    return tune
