"""The text encoder: the protocol, bad input, bounded work, and being made again from its settings."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kshot.apps.text import encoder as module
from kshot.apps.text.encoder import CHARACTERS_PER_TOKEN, TextEncoder, length_batches
from kshot.core import Encoder, UserError

SENTENCES = ["When will my card arrive?", "hi", "a somewhat longer sentence about nothing in particular", "card card"]


def test_it_is_an_encoder(encoder: TextEncoder) -> None:
    assert isinstance(encoder, Encoder)
    assert (encoder.kind, encoder.name, encoder.dim) == ("text", "text:all-MiniLM-L6-v2", 384)
    for name in ("text:all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert TextEncoder(name).fingerprint == encoder.fingerprint


def test_vectors_come_in_the_order_of_the_texts(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    z = encoder.encode(SENTENCES)
    assert z.dtype == torch.float32
    assert not z.is_inference()
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    alone = torch.cat([encoder.encode([text]) for text in SENTENCES])
    torch.testing.assert_close(z, alone, atol=1e-5, rtol=0)
    monkeypatch.setattr(module, "_BLOCK", 3)
    torch.testing.assert_close(encoder.encode(SENTENCES), alone, atol=1e-5, rtol=0)
    assert encoder.encode([]).shape == (0, 384)


def test_meaning_shows(encoder: TextEncoder) -> None:
    a, b, c = encoder.encode(["My card has not come yet.", "When do I get my new card?", "The cat sleeps on the sofa."])
    assert float(a @ b) > float(a @ c) + 0.2


def test_progress_reaches_the_end(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_TOKENS", 16)
    told: list[tuple[int, int]] = []
    encoder.encode(SENTENCES, on_progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (4, 4)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) > 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "text in row 3, got an empty one"),
        (" \t\n\u00a0", "text in row 3, got an empty one"),
        (" " * 10_000_000, "text in row 3, got an empty one"),
        (None, "text in row 3, got NoneType"),
        (3.5, "text in row 3, got float"),
        (b"bytes", "text in row 3, got bytes"),
        ("caf\udce9", "row 3, got half a character at place 4.*UTF-8"),
        ("\u200b\u200b", "expected words, got .* in row 3"),
    ],
)
def test_bad_rows_are_named(encoder: TextEncoder, bad: object, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=says):
        encoder.encode(["fine", "fine too", bad])  # type: ignore[list-item]
    monkeypatch.setattr(module, "_BLOCK", 2)
    with pytest.raises(UserError, match=says):
        encoder.encode(["fine", "fine too", bad])  # type: ignore[list-item]


@pytest.mark.parametrize("text", ["money " * 1_700_000, "x" * 10_000_000, "a" + " " * 10_000_000 + "b"])
def test_ten_megabytes_in_one_cell_are_cut_first(encoder: TextEncoder, text: str) -> None:
    seen: list[int] = []
    model = encoder._model

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
            seen.extend(len(one) for one in texts)
            return model.tokenize(texts)

    other = TextEncoder.__new__(TextEncoder)
    other.__dict__.update(encoder.__dict__, _model=Spy())
    z = other.encode([text])
    most = CHARACTERS_PER_TOKEN * encoder.max_length
    assert max(seen) <= most
    torch.testing.assert_close(z, encoder.encode([text[:most]]))


def test_long_texts_are_read_as_far_as_the_model_does(encoder: TextEncoder) -> None:
    start = "the quick brown fox jumps over the lazy dog " * 40
    assert [len(one) for one in encoder.tokenize([start])] == [256]
    assert encoder.encode([start + "and then"]).equal(encoder.encode([start + "or not"]))
    assert len(TextEncoder(max_length=8).tokenize([start])[0]) == 8


def test_key_is_of_the_content(encoder: TextEncoder) -> None:
    assert encoder.key("a") == encoder.key("a")
    assert len({encoder.key(x) for x in ("a", "b", " a", "\udce9", "x" * 20_000, "x" * 20_001)}) == 6
    with pytest.raises(UserError, match="expected a text, got int"):
        encoder.key(3)  # type: ignore[arg-type]


def test_fingerprint_follows_weights_and_settings(encoder: TextEncoder) -> None:
    change = {"whole/norm.bias": torch.full((384,), 0.01)}
    prints = {encoder.fingerprint, TextEncoder(max_length=64).fingerprint, encoder.changed(change, {}).fingerprint}
    assert len(prints) == 3
    assert TextEncoder().fingerprint == encoder.fingerprint


def test_restoring_gives_the_same_vectors(encoder: TextEncoder) -> None:
    frozen = TextEncoder.restore(json.loads(json.dumps(encoder.settings())), encoder.tensors())
    assert frozen.tensors() == {}
    assert frozen.encode(SENTENCES).equal(encoder.encode(SENTENCES))
    before = encoder.encode(SENTENCES)
    thin = {"left/layers.0.up.weight": torch.randn(1536, 2), "right/layers.0.up.weight": torch.randn(2, 384)}
    changed = encoder.changed({"whole/norm.bias": torch.rand(384).half(), **thin}, {"seed": 1})
    again = TextEncoder.restore(json.loads(json.dumps(changed.settings())), changed.tensors())
    assert again.encode(SENTENCES).equal(changed.encode(SENTENCES))
    assert again.settings() == changed.settings()
    assert again.fingerprint == changed.fingerprint
    assert not changed.encode(SENTENCES).equal(before)
    assert encoder.encode(SENTENCES).equal(before)


def test_pickling_keeps_what_was_learnt_and_little_else(encoder: TextEncoder) -> None:
    changed = encoder.changed({"whole/norm.bias": torch.rand(384).half()}, {"seed": 1})
    packed = pickle.dumps(changed)
    assert len(packed) < 10_000
    assert pickle.loads(packed).encode(SENTENCES).equal(changed.encode(SENTENCES))
    assert copy.deepcopy(changed) is changed


def test_restoring_refuses_what_does_not_fit(encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="others of the same name"):
        TextEncoder.restore({**encoder.settings(), "weights": "0" * 64}, {})
    for change in ({"whole/strange": torch.ones(3)}, {"whole/norm.bias": torch.ones(3)}):
        with pytest.raises(UserError, match="made for another model"):
            encoder.changed(change, {})
    changed = encoder.changed({"whole/norm.bias": torch.ones(384)}, {})
    with pytest.raises(UserError, match="fine-tuned already"):
        changed.changed({}, {})


def test_network_and_preprocessing_give_the_vectors_without_the_encoder(encoder: TextEncoder) -> None:
    how = json.loads(json.dumps(encoder.preprocessing()))
    tokenizer = Tokenizer.from_str(how["tokenizer_json"])
    tokenizer.enable_padding(pad_id=how["pad_token_id"])
    network, example = encoder.network()
    assert [t.shape for t in example] == [(2, 8), (2, 8)]
    assert example[1].sum(1).tolist() == [8, 3]
    cut = [text.strip()[: how["max_characters"]] for text in SENTENCES]
    found = tokenizer.encode_batch(cut)
    with torch.no_grad():
        z = network(torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found]))
    torch.testing.assert_close(z, encoder.encode(SENTENCES), atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_within_bounds(lengths: list[int], n_tokens: int) -> None:
    batches = list(length_batches(lengths, n_tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= n_tokens
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)
