"""Fitting with a fine-tuned encoder of pictures, or with the frozen one where that tells shots left out better.

Both are judged on the same shots, which neither encoder nor head has seen, see ``kshot.estimator.finetuned``. The
pictures go through the lower part of the network once, for a few views of each; every tuning works on what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kshot.core import Encoder, OnProgress, UserError, generator
from kshot.estimator.calibrate import calibrated_loss, fit_temperature
from kshot.estimator.expected import expected_accuracy
from kshot.estimator.fit import ONE_SHOT_HEADS, Fit, fit
from kshot.estimator.heads import STRENGTHS, fit_head, fit_path
from kshot.estimator.held_out import HeldOut, candidates, folds
from kshot.estimator.unknown import Familiarity

if TYPE_CHECKING:
    from kshot.apps.vision.finetune import ImageTuner

FOLDS = 5
#: Shots judged, after which no more are left out.
ENOUGH = 120
#: Beyond so many shots logistic heads would take longer than the tuning.
QUICK_HEADS = 1000

_Change = dict[str, Tensor]


def fit_finetuned_images(
    encoder: Encoder,
    examples: Sequence[Any],
    y: Tensor,
    n_classes: int,
    *,
    head: str = "auto",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[Encoder, Fit]:
    """Tune an encoder to the shots if that helps, and fit a head on its vectors.

    Args:
        encoder: frozen; it stays as it is.
        examples: N pictures.
        y: int64 (N,), 0..C-1, each class at least once.
        n_classes: C.
        head: as in ``kshot.estimator.fit.fit``.
        seed: of the folds and of tuning.
        on_progress: told of pictures and of the steps of each tuning in turn.

    Returns:
        The tuned encoder, or the frozen one where tuning does not tell shots left out better or none can be left out;
        and the classifier.

    Raises:
        UserError: such an encoder cannot be tuned, or there is no such head.
    """
    from kshot.apps.vision.encoder import ImageEncoder
    from kshot.apps.vision.finetune import ImageTuner

    if not isinstance(encoder, ImageEncoder):
        raise UserError(
            f"fine-tuning adapts networks of timm, named 'image:...', got {encoder.name}, whose weights no model file "
            "holds; leave finetune out"
        )
    if head != "auto" and head not in STRENGTHS:
        raise UserError(f"head must be one of auto, {', '.join(STRENGTHS)}, got {head!r}")
    parts = _parts(y, seed)
    if not parts:
        return encoder, _frozen(encoder, examples, y, n_classes, head, seed)
    tuner = ImageTuner(encoder, examples, seed=seed, on_progress=on_progress)
    heads = _heads(len(y), encoder.dim, n_classes) if head == "auto" else {head: STRENGTHS[head]}
    strange: list[Tensor] = []
    frozen = _judge(tuner, lambda kept: {}, y, n_classes, parts, heads)
    tried = _judge(tuner, lambda kept: tuner.tune(kept, y[kept]), y, n_classes, parts, heads, strange)
    losses = {key: calibrated_loss(answers) for key, answers in tried.items()}
    best = min(losses, key=lambda key: losses[key])
    if not _better(losses[best], min(calibrated_loss(answers) for answers in frozen.values())):
        return encoder, _frozen(encoder, examples, y, n_classes, head, seed)
    everything = list(range(len(y)))
    change = tuner.tune(everything, y)
    z = tuner.vectors(change, everything)
    counts = torch.bincount(y, minlength=n_classes)
    n_shots = float(counts[counts > 1].double().mean())
    return tuner.tuned(change), Fit(
        z,
        y,
        n_classes,
        fit_head(z, y, n_classes, *best),
        fit_temperature(tried[best]),
        torch.cat(strange).sort().values,
        tried[best],
        expected_accuracy(tried[best], n_shots, n_seen=n_shots * (1 - 1 / min(FOLDS, int(counts.max())))),
        {f"{name} {r:g}": losses[name, r] for name, r in sorted(losses, key=lambda key: losses[key])},
        seed,
    )


def _heads(n: int, d: int, n_classes: int) -> dict[str, tuple[float, ...]]:
    heads = candidates(n, d, n_classes)
    return {name: all_r for name, all_r in heads.items() if name != "logistic" or n <= QUICK_HEADS}


def _better(tuned: float, frozen: float) -> bool:
    # By their calibrated log-losses on the same shots left out.
    return tuned < frozen


def _frozen(encoder: Encoder, examples: Sequence[Any], y: Tensor, n_classes: int, head: str, seed: int) -> Fit:
    z = encoder.encode(examples)
    return fit(z, y, n_classes, head=head, seed=seed, one_shot_head=ONE_SHOT_HEADS["image"])


def _parts(y: Tensor, seed: int) -> list[Tensor]:
    found: list[Tensor] = []
    if int(torch.bincount(y).max()) > 1:
        for part in folds(y, generator(seed, "folds"), FOLDS):
            if sum(len(p) for p in found) < ENOUGH:
                found.append(part)
    return found


def _judge(
    tuner: ImageTuner,
    change: Callable[[list[int]], _Change],
    y: Tensor,
    n_classes: int,
    parts: Sequence[Tensor],
    heads: dict[str, tuple[float, ...]],
    strange: list[Tensor] | None = None,
) -> dict[tuple[str, float], HeldOut]:
    # How strange those left out are is told on the way, where it is asked for.
    rows: dict[tuple[str, float], list[Tensor]] = {(name, r): [] for name, all_r in heads.items() for r in all_r}
    for part in parts:
        out = torch.zeros(len(y), dtype=torch.bool)
        out[part] = True
        kept = (~out).nonzero().squeeze(1).tolist()
        z = tuner.vectors(change(kept), [*kept, *part.tolist()])
        seen, new = z[: len(kept)], z[len(kept) :]
        if strange is not None:
            strange.append(Familiarity.of(seen, y[kept], n_classes).strangeness(new))
        for name, all_r in heads.items():
            for r, fitted in zip(all_r, fit_path(seen, y[kept], n_classes, name, all_r), strict=True):
                rows[name, r].append(fitted.logits(new))
    index = torch.cat(list(parts))
    return {key: HeldOut(index, torch.cat(found), y[index]) for key, found in rows.items()}
