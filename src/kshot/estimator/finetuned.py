"""Fitting with a fine-tuned encoder, and judging it on shots that neither encoder nor head has seen.

The vectors of shots that an encoder was tuned on lie where their labels want them, so leave-one-out on them flatters.
Here the encoder is tuned anew without a fifth of the shots, the head is chosen and calibrated on that fifth, and only
then is an encoder tuned on all. Further fifths are left out in turn until ``ENOUGH`` shots were judged; so few shots,
which are quick to tune on, are all judged, and many cost twice the time of one tuning.

The name of a class counts as one more shot of it, for the encoder as for the head, where names help the frozen encoder
to tell shots that are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError, generator
from kshot.estimator.calibrate import PRIOR, calibrated_loss, fit_temperature
from kshot.estimator.expected import expected_accuracy
from kshot.estimator.fit import ONE_SHOT_HEAD, Fit, fit
from kshot.estimator.heads import STRENGTHS, fit_head, fit_path
from kshot.estimator.held_out import HeldOut, candidates, folds, with_names
from kshot.estimator.unknown import Familiarity

FOLDS = 5
#: Shots judged, after which no more are left out.
ENOUGH = 120
#: The head that says whether names help: it is fitted in no time.
_QUICK_HEAD = "prototypes"

_Tune = Callable[[list[int]], Encoder]


def fit_finetuned(
    encoder: Encoder,
    examples: Sequence[Any],
    y: Tensor,
    n_classes: int,
    *,
    names: Sequence[str] | None = None,
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
        names: what each class is called; None to leave names out.
        head: as in ``kshot.estimator.fit.fit``.
        seed: of the folds and of tuning.
        on_progress: told steps of each tuning in turn.

    Returns:
        The tuned encoder and the classifier.

    Raises:
        UserError: such an encoder cannot be tuned, or there is no such head.
    """
    if head != "auto" and head not in STRENGTHS:
        raise UserError(f"head must be one of auto, {', '.join(STRENGTHS)}, got {head!r}")
    if encoder.kind == "image":
        from kshot.estimator.finetuned_images import fit_finetuned_images

        return fit_finetuned_images(encoder, examples, y, n_classes, head=head, seed=seed, on_progress=on_progress)
    said = _helpful(encoder, examples, y, n_classes, names, seed)
    tune = _tuner(encoder, examples, y, said, seed, on_progress)
    parts = _parts(y, seed)
    tried: dict[tuple[str, float], HeldOut] = {}
    strangeness = torch.zeros(0)
    if parts:
        heads = candidates(len(y), encoder.dim, n_classes) if head == "auto" else {head: STRENGTHS[head]}
        tried, strangeness = _judge(tune, examples, y, n_classes, parts, heads, said)
    losses = {key: calibrated_loss(answers) for key, answers in tried.items()}
    name = ONE_SHOT_HEAD if head == "auto" else head
    best = min(losses, key=lambda key: losses[key]) if losses else (name, STRENGTHS[name][0])
    answers = tried.get(best)
    tuned = tune(list(range(len(y))))
    z, named = tuned.encode(examples), tuned.encode(said) if said else None
    counts = torch.bincount(y, minlength=n_classes)
    n_shots = float(counts[counts > 1].double().mean()) + float(named is not None)
    return tuned, Fit(
        z,
        y,
        n_classes,
        fit_head(*with_names(z, y, named), n_classes, *best),
        PRIOR if answers is None else fit_temperature(answers),
        strangeness.sort().values,
        answers,
        None if answers is None else expected_accuracy(answers, n_shots),
        {f"{name} {r:g}": losses[name, r] for name, r in sorted(losses, key=lambda key: losses[key])},
        seed,
        named,
    )


def _helpful(
    encoder: Encoder, examples: Sequence[Any], y: Tensor, n_classes: int, names: Sequence[str] | None, seed: int
) -> list[str]:
    # Which names to use: all, or none.
    if not names or encoder.kind != "text":
        return []
    z, said = encoder.encode(examples), encoder.encode(names)
    helped = fit(z, y, n_classes, head=_QUICK_HEAD, seed=seed, names=said).names is not None
    return list(names) if helped else []


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
    heads: dict[str, tuple[float, ...]],
    names: Sequence[str],
) -> tuple[dict[tuple[str, float], HeldOut], Tensor]:
    rows: dict[tuple[str, float], list[Tensor]] = {
        (name, r): [] for name, strengths in heads.items() for r in strengths
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
        seen = with_names(z, y[kept], tuned.encode(names) if names else None)
        for name, strengths in heads.items():
            for r, fitted in zip(strengths, fit_path(*seen, n_classes, name, strengths), strict=True):
                rows[name, r].append(fitted.logits(new))
    index = torch.cat(list(parts))
    return {key: HeldOut(index, torch.cat(found), y[index]) for key, found in rows.items()}, torch.cat(strange)


def _tuner(
    encoder: Encoder,
    examples: Sequence[Any],
    y: Tensor,
    names: Sequence[str],
    seed: int,
    on_progress: OnProgress | None,
) -> _Tune:
    if encoder.kind != "text":
        raise UserError(
            f"fine-tuning adapts encoders of texts and images, got {encoder.name} of kind {encoder.kind!r}; "
            "leave finetune out"
        )
    from kshot.apps.text.encoder import TextEncoder
    from kshot.apps.text.finetune import finetune

    if not isinstance(encoder, TextEncoder):
        raise UserError(f"fine-tuning adapts encoders named 'text:...', got {encoder.name}; leave finetune out")

    def tune(index: list[int]) -> Any:
        shots = [examples[i] for i in index]
        return finetune(encoder, shots, y[index], names=names, seed=seed, on_progress=on_progress)

    return tune
