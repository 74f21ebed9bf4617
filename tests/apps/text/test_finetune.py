"""Fine-tuning: the loss against plain loops, and that it learns, repeats, stores and refuses as it says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from kshot.apps.text import finetune as module
from kshot.apps.text.encoder import TextEncoder
from kshot.apps.text.finetune import Finetuning, class_means, finetune, mixed_loss, pair_batches
from kshot.core import DivergedError, UserError, generator
from kshot.nn.contrastive import supervised_contrastive

#: Two classes that meaning does not part: even and odd rows of four topics.
TEXTS = [
    "my card is lost",
    "my card is late",
    "the sun is warm",
    "the rain is cold",
    "dogs bark at night",
    "cats sleep all day",
    "trains leave at noon",
    "ships leave at dawn",
]
LABELS = torch.tensor([0, 1] * 4)
QUICK = Finetuning(epochs=3, n_layers=2)


def loss_by_loops(z: torch.Tensor, y: torch.Tensor, temperature: float) -> float:
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        below = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        same = [p for p in others if y[p] == y[i]]
        if same:
            shares = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / below) for p in same]
            losses.append(-sum(shares) / len(same))
    return sum(losses) / len(losses)


def test_contrastive_loss_is_that_of_the_paper() -> None:
    z = F.normalize(torch.randn(9, 5, dtype=torch.float64, generator=generator(0, "z")), dim=1).requires_grad_()
    y = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 1])
    loss = supervised_contrastive(z, y, 0.2)
    assert loss.item() == pytest.approx(loss_by_loops(z.detach(), y, 0.2), abs=1e-12)
    loss.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_sentences_without_a_fellow_add_nothing() -> None:
    z = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    loss = supervised_contrastive(z, torch.arange(3), 0.1)
    assert loss.item() == 0
    loss.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_mixed_loss_weighs_its_parts() -> None:
    z, y = F.normalize(torch.randn(6, 4), dim=1), torch.tensor([0, 1, 2] * 2)
    head = torch.randn(3, 4)
    cosines = F.cosine_similarity(z[:, None], head[None], dim=-1)
    cross = F.cross_entropy(cosines / 0.1, y)
    contrast = supervised_contrastive(z, y, 0.1)
    for weight in (0.0, 0.25, 1.0):
        expected = weight * contrast + (1 - weight) * cross
        torch.testing.assert_close(mixed_loss(z, y, head, 0.1, weight), expected)


def test_class_means_are_means() -> None:
    z, y = torch.randn(7, 3), torch.tensor([0, 1, 1, 2, 2, 2, 0])
    expected = torch.stack([z[y == c].mean(0) for c in range(3)])
    torch.testing.assert_close(class_means(z, y), expected)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(2, 20))
def test_batches_hold_every_example_once_and_in_pairs(labels: list[int], size: int) -> None:
    y = torch.tensor(labels)
    batches = pair_batches(y, size, generator(0, "batches"))
    assert sorted(i for batch in batches for i in batch) == list(range(len(labels)))
    assert all(0 < len(batch) <= size for batch in batches)
    lone = sum(labels[i] not in [labels[j] for j in batch if j != i] for batch in batches for i in batch)
    assert lone <= sum(labels.count(c) % 2 for c in set(labels))


def test_balanced_batches_hold_all_classes() -> None:
    y = torch.arange(6).repeat_interleave(4)
    for batch in pair_batches(y, 12, generator(0, "batches")):
        assert sorted(y[batch].tolist()) == [c for c in range(6) for _ in range(2)]


@pytest.mark.parametrize("rank", [None, 4])
def test_it_learns_and_leaves_the_encoder_alone(encoder: TextEncoder, rank: int | None) -> None:
    before = encoder.encode(TEXTS)
    kept, seen = encoder.fingerprint, []
    plan = Finetuning(epochs=12, lr=3e-4 if rank is None else 3e-3, n_layers=3, rank=rank)
    tuned = finetune(encoder, TEXTS, LABELS, plan=plan, on_progress=lambda done, of: seen.append((done, of)))
    after = tuned.encode(TEXTS)

    def gap(z: torch.Tensor) -> float:
        cosines, same = z @ z.T, LABELS[:, None] == LABELS
        return float(cosines[same].mean() - cosines[~same].mean())

    assert gap(after) > gap(before) + 0.15
    assert encoder.encode(TEXTS).equal(before)
    assert encoder.tensors() == {}
    del encoder.__dict__["fingerprint"]
    assert encoder.fingerprint == kept != tuned.fingerprint
    assert seen == [(i, 12) for i in range(1, 13)]


@pytest.mark.parametrize("rank", [None, 4])
def test_what_is_stored_makes_the_same_encoder(encoder: TextEncoder, rank: int | None) -> None:
    tuned = finetune(encoder, TEXTS, LABELS, plan=Finetuning(epochs=2, n_layers=2, rank=rank), seed=3)
    again = TextEncoder.restore(json.loads(json.dumps(tuned.settings())), tuned.tensors())
    assert again.encode(TEXTS).equal(tuned.encode(TEXTS))
    assert again.fingerprint == tuned.fingerprint
    told = tuned.settings()["finetuned"]
    assert (told["seed"], told["n_texts"], told["steps"], told["rank"]) == (3, 8, 2, rank)
    names = {name.partition("/")[2] for name in tuned.tensors()}
    assert {name.split(".")[1] for name in names} == {"4", "5"}
    assert {name.partition("/")[0] for name in tuned.tensors()} == ({"whole"} if rank is None else {"left", "right"})
    n_values = sum(t.numel() for t in tuned.tensors().values())
    assert n_values <= (2 * 1_774_464 if rank is None else 2 * 4 * (1536 + 768 + 1920 + 1920))


def test_a_seed_repeats_and_another_does_not(encoder: TextEncoder) -> None:
    runs = [finetune(encoder, TEXTS, LABELS, plan=Finetuning(epochs=2, n_layers=1, rank=2), seed=s) for s in (0, 0, 1)]
    z = [run.encode(TEXTS) for run in runs]
    assert z[0].equal(z[1])
    assert not z[0].equal(z[2])
    state = torch.random.get_rng_state()
    finetune(encoder, TEXTS, LABELS, plan=Finetuning(epochs=1, n_layers=1, rank=2))
    assert torch.random.get_rng_state().equal(state)


def test_steps_are_bounded(encoder: TextEncoder) -> None:
    tuned = finetune(encoder, TEXTS, LABELS, plan=Finetuning(epochs=50, max_steps=3, batch_size=4, n_layers=1))
    assert tuned.settings()["finetuned"]["steps"] == 3


def test_one_sentence_of_a_class_works(encoder: TextEncoder) -> None:
    tuned = finetune(encoder, TEXTS[:3], torch.tensor([0, 1, 1]), plan=QUICK)
    assert bool(tuned.encode(TEXTS).isfinite().all())


@pytest.mark.parametrize(
    ("labels", "says"),
    [([0, 0, 0], "at least 2 classes"), ([0, 1], "a label for each of 3"), ([0, 2, 2], "labels 0 to 1, got 0 to 2")],
)
def test_labels_that_do_not_fit_are_refused(encoder: TextEncoder, labels: list[int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        finetune(encoder, TEXTS[:3], torch.tensor(labels), plan=QUICK)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"epochs": 0}, "epochs of at least 1"),
        ({"batch_size": 1}, "batch_size of at least 2"),
        ({"contrast": 1.5}, "contrast between 0 and 1"),
        ({"rank": 0}, "rank of at least 1"),
        ({"n_layers": 0}, "n_layers of at least 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"share": 0.0}, "share above 0"),
        ({"share": 1.1}, "share above 0 and at most 1"),
        ({"lr": float("nan")}, "lr above 0"),
    ],
)
def test_a_plan_out_of_range_is_refused(plan: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Finetuning(**plan)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_share_of_the_change_is_kept(encoder: TextEncoder, rank: int | None) -> None:
    def change(share: float) -> dict[str, torch.Tensor]:
        plan = Finetuning(epochs=2, n_layers=1, rank=rank, share=share)
        held = finetune(encoder, TEXTS, LABELS, plan=plan).tensors()
        if rank is None:
            return {name: t.float() for name, t in held.items()}
        left = [name.removeprefix("left/") for name in held if name.startswith("left/")]
        return {name: held[f"left/{name}"].float() @ held[f"right/{name}"].float() for name in left}

    whole, quarter = change(1.0), change(0.25)
    assert any(bool(t.any()) for t in whole.values())
    for name, t in whole.items():
        torch.testing.assert_close(quarter[name], 0.25 * t, rtol=2e-2, atol=1e-6)


def test_names_count_as_one_more_sentence(encoder: TextEncoder) -> None:
    plan = Finetuning(epochs=2, n_layers=1)
    named = finetune(encoder, TEXTS, LABELS, names=["even", "odd"], plan=plan)
    written = finetune(encoder, [*TEXTS, "even", "odd"], torch.cat([LABELS, torch.arange(2)]), plan=plan)
    assert named.encode(TEXTS).equal(written.encode(TEXTS))
    with pytest.raises(UserError, match="a name for each of 2 classes, got 1"):
        finetune(encoder, TEXTS, LABELS, names=["even"], plan=plan)


def test_a_tuned_encoder_is_not_tuned_again(encoder: TextEncoder) -> None:
    tuned = encoder.changed({"whole/norm.bias": torch.full((384,), 0.01)}, {})
    with pytest.raises(UserError, match="fine-tuned already"):
        finetune(tuned, TEXTS, LABELS, plan=QUICK)


def test_a_loss_that_is_not_finite_stops(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mixed_loss", lambda z, *rest: z.sum() * torch.nan)
    with pytest.raises(DivergedError, match="lower learning rate"):
        finetune(encoder, TEXTS, LABELS, plan=QUICK)
