"""Fine-tuning the last blocks of a picture encoder on a few pictures of each class, before a head is fitted.

Method: supervised contrastive learning, Khosla et al., NeurIPS 2020, arXiv 2004.11362, together with cross-entropy over
cosines to one learnt vector per class (Baseline++, Chen et al., ICLR 2019, arXiv 1904.04232), which starts at the mean
of the class. The idea: pull pictures of one class, and views of one picture, together and away from all others.

    z_i, y_i   unit vector and label of view i of a batch     z, y
    P(i)       the other views of the batch with that label   see kshot.nn.contrastive
    tau        temperature                                    temperature
    w_c        learnt vector of class c                       head

Differs from the paper: the network is pretrained, and only its last blocks are trained; batch norm keeps its running
statistics. So what comes to these blocks is computed once for a few views of each picture and kept, and all of the
training, with shots left out as well, works on that.

Checked by: ``tests/apps/vision/test_finetune.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.apps.vision.batches import encode_in_batches
from kshot.apps.vision.encoder import ImageEncoder
from kshot.apps.vision.simplify import simplified
from kshot.apps.vision.split import Body, cut
from kshot.apps.vision.views import view
from kshot.core import DivergedError, OnProgress, UserError, generator
from kshot.nn.contrastive import cosine_cross_entropy, supervised_contrastive

#: Views of all pictures together, and bytes of what is kept of them.
MOST_VIEWS, MOST_BYTES = 2500, 1 << 30
_BLOCK = 256


@dataclass(frozen=True)
class Finetuning:
    """How to fine-tune.

    Attributes:
        steps: of the optimiser.
        batch_size: views in a step, at least 4.
        n_views: of each picture, itself among them; fewer where there are many pictures.
        least_part: share of its area that a view shows at least.
        n_blocks: how many of the last blocks are trained.
        lr: greatest learning rate; it rises over the first tenth of the steps and falls to 0.
        head_lr: the same of the class vectors.
        weight_decay: of AdamW.
        temperature: tau of both losses.
        contrast: weight of the contrastive loss, 0 to 1; cross-entropy has the rest.

    Raises:
        UserError: a value is out of range.
    """

    steps: int = 40
    batch_size: int = 64
    n_views: int = 6
    least_part: float = 0.6
    n_blocks: int = 3
    lr: float = 3e-4
    head_lr: float = 1e-2
    weight_decay: float = 0.01
    temperature: float = 0.1
    contrast: float = 0.5

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 4, "n_views": 1, "n_blocks": 1}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise UserError(f"expected {name} of at least {at_least}, got {getattr(self, name)}")
        if not 0 <= self.contrast <= 1:
            raise UserError(f"expected contrast between 0 and 1, got {self.contrast}")
        for name in ("lr", "head_lr", "temperature", "least_part"):
            if not getattr(self, name) > 0:
                raise UserError(f"expected {name} above 0, got {getattr(self, name)}")
        if self.least_part > 1:
            raise UserError(f"expected least_part of at most 1, got {self.least_part}; 1 shows the whole")


class ImageTuner:
    """What tuning on some of a person's pictures needs, made once for all of them.

    Args:
        encoder: frozen; it stays as it is.
        examples: N pictures.
        plan: how, None for the defaults.
        seed: of views, batches and their order.
        on_progress: told of the views that went through the body, and then of the steps of each tuning.

    Raises:
        UserError: the encoder is tuned already, its network cannot be cut, or a picture cannot be read.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        examples: Sequence[Any],
        *,
        plan: Finetuning | None = None,
        seed: int = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        if encoder.tensors():
            raise UserError("expected a frozen encoder, got one that was fine-tuned already; start from a fresh one")
        self.encoder, self.plan, self.seed = encoder, plan or Finetuning(), seed
        self.on_progress = on_progress
        network = encoder.plain_network().to(memory_format=torch.channels_last)
        example = torch.randn((2, 3, *encoder.prepare.size), generator=generator(seed, "image example"))
        name, self._tail = cut(network, self.plan.n_blocks, example)
        body = Body(simplified(network, example).to(memory_format=torch.channels_last), name)
        with torch.no_grad():
            kept = body(example)
        self._shape, self._layout = kept.shape[1:], torch.channels_last if kept.ndim == 4 else torch.contiguous_format
        self._trained = self._tail.trainable(kept.float())
        self._before = {name: p.detach().clone() for name, p in self._trained.items()}
        room = MOST_BYTES // (2 * self._shape.numel() * max(len(examples), 1))
        self.n_views = max(1, min(self.plan.n_views, MOST_VIEWS // max(len(examples), 1), room))
        self._kept = self._run(body, examples)

    def tune(self, index: Sequence[int], labels: Tensor) -> dict[str, Tensor]:
        """Tune on some of the pictures.

        Args:
            index: which, M of them.
            labels: (M,) their classes, 0 to W - 1, each of them there.

        Returns:
            Name of a parameter -> what is added to it, in half precision: a change, see ``ImageEncoder.changed``.

        Raises:
            UserError: a single class, or labels that do not fit.
            DivergedError: the loss was not finite.
        """
        _check(index, labels)
        plan, rows = self.plan, torch.tensor(list(index))
        self._set({})
        head = nn.Parameter(_class_means(F.normalize(self.vectors({}, index), dim=-1), labels))
        source = generator(self.seed, "finetune images")
        optimiser = torch.optim.AdamW(
            [
                {"params": list(self._trained.values()), "lr": plan.lr},
                {"params": [head], "lr": plan.head_lr, "weight_decay": 0.0},
            ],
            weight_decay=plan.weight_decay,
        )
        rise = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, plan.steps))
        for step in range(1, plan.steps + 1):
            some, views = _batch(labels, self.n_views, plan.batch_size, source)
            z = F.normalize(self._tail(self._given(rows[some] * self.n_views + views)), dim=-1)
            y = labels[some]
            loss = plan.contrast * supervised_contrastive(z, y, plan.temperature)
            loss = loss + (1 - plan.contrast) * cosine_cross_entropy(z, y, head, plan.temperature)
            if not bool(loss.isfinite()):
                raise DivergedError(step, "the loss of fine-tuning", "use a lower learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(list(self._trained.values()), 1.0)
            optimiser.step()
            rise.step()
            if self.on_progress is not None:
                self.on_progress(step, plan.steps)
        return {name: (p.detach() - self._before[name]).half() for name, p in self._trained.items()}

    def vectors(self, change: dict[str, Tensor], index: Sequence[int]) -> Tensor:
        """Encode some of the pictures as an encoder with a change does, but for the last digits.

        Args:
            change: from ``tune``; empty for the frozen encoder.
            index: which, M of them.

        Returns:
            (M, D), float32.
        """
        self._set(change)
        rows = torch.tensor(list(index)) * self.n_views
        with torch.no_grad():
            return torch.cat([self._tail(self._given(some)) for some in rows.split(_BLOCK)])

    def tuned(self, change: dict[str, Tensor]) -> ImageEncoder:
        """Make an encoder of a change.

        Args:
            change: from ``tune``.

        Returns:
            The encoder, which can be kept in a model file.
        """
        return self.encoder.changed(change, {**asdict(self.plan), "seed": self.seed, "n_views": self.n_views})

    def _run(self, body: Body, examples: Sequence[Any]) -> Tensor:
        # Everything that comes to the first block of the tail, view 0 of each picture being the picture itself.
        prepare, plan = self.encoder.prepare, self.plan

        def read(which: tuple[int, int]) -> np.ndarray:
            i, n = which
            pixels = prepare.read(examples[i])
            source = generator(self.seed, f"view {i} {n}")
            return pixels if n == 0 else view(pixels, source, least=plan.least_part)

        def forward(pixels: Tensor) -> Tensor:
            with torch.inference_mode():
                return body(prepare.normalise(pixels)).contiguous().flatten(1)

        asked = [(i, n) for i in range(len(examples)) for n in range(self.n_views)]
        kept = torch.empty(len(asked), self._shape.numel(), dtype=torch.float16)
        for start in range(0, len(asked), _BLOCK):
            some = asked[start : start + _BLOCK]
            kept[start : start + len(some)] = encode_in_batches(
                some,
                read,
                forward,
                dim=self._shape.numel(),
                batch_size=8,
                n_threads=self.encoder.n_threads or torch.get_num_threads(),
                in_threads=True,
            )
            if self.on_progress is not None:
                self.on_progress(start + len(some), len(asked))
        return kept

    def _given(self, rows: Tensor) -> Tensor:
        return self._kept[rows].float().view(-1, *self._shape).contiguous(memory_format=self._layout)

    def _set(self, change: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._trained.items():
                p.copy_(self._before[name] + change[name].float() if name in change else self._before[name])


def _batch(labels: Tensor, n_views: int, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    # Two pictures of as many classes as there is room for, and of each picture two views, or one where there is one.
    each = min(n_views, 2)
    order = torch.randperm(len(labels), generator=source)
    order = order[labels[order].argsort(stable=True)]
    starts = torch.searchsorted(labels[order], labels[order])
    pairs = order[torch.arange(len(order)) - starts < 2]
    n_classes = max(size // (2 * each), 2)
    chosen = torch.randperm(int(labels.max()) + 1, generator=source)[:n_classes]
    some = pairs[torch.isin(labels[pairs], chosen)]
    views = torch.rand(len(some), n_views, generator=source).argsort(1)[:, :each]
    return some.repeat_interleave(each), views.flatten()


def _class_means(z: Tensor, y: Tensor) -> Tensor:
    sums = torch.zeros(int(y.max()) + 1, z.shape[1]).index_add_(0, y, z)
    return sums / y.bincount()[:, None]


def _rate(step: int, n_steps: int) -> float:
    warm = max(n_steps // 10, 1)
    return min((step + 1) / warm, (n_steps - step) / max(n_steps - warm, 1))


def _check(index: Sequence[int], labels: Tensor) -> None:
    if labels.shape != (len(index),):
        raise UserError(f"expected a label for each of {len(index)} pictures, got shape {tuple(labels.shape)}")
    n_classes = len(labels.unique())
    if n_classes < 2:
        raise UserError(f"expected at least 2 classes to fine-tune on, got {n_classes}; add another class")
    if int(labels.min()) != 0 or int(labels.max()) != n_classes - 1:
        raise UserError(f"expected labels 0 to {n_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
