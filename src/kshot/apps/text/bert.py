"""A sentence network: BERT's encoder, the mean over tokens, unit length; only what encoding sentences needs.

Method: BERT, Devlin et al., NAACL 2019, arXiv 1810.04805; pooled as in Sentence-BERT, Reimers and Gurevych, EMNLP 2019,
arXiv 1908.10084. Written anew in plain torch since importing the transformers library takes longer than encoding a few
hundred sentences, and since one fused product for queries, keys and values is faster.

Differs from the paper: no dropout, no pooler, no segments (every token is of the first), and no pretraining heads.

Checked by: ``tests/apps/text/test_bert.py``, against sentence-transformers to 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BertShape:
    """Sizes of a network.

    Attributes:
        n_tokens: size of the vocabulary.
        n_positions: the longest text that it can read, in tokens.
        dim: D.
        n_heads: heads of attention; they divide D.
        n_layers: layers.
        inner: width of the feed-forward part.
        eps: added to the variance by layer norm.
    """

    n_tokens: int
    n_positions: int
    dim: int
    n_heads: int
    n_layers: int
    inner: int
    eps: float = 1e-12

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertShape:
        """Read a published configuration.

        Args:
            config: what ``config.json`` beside published weights holds.

        Returns:
            The sizes.
        """
        return cls(
            n_tokens=config["vocab_size"],
            n_positions=config["max_position_embeddings"],
            dim=config["hidden_size"],
            n_heads=config["num_attention_heads"],
            n_layers=config["num_hidden_layers"],
            inner=config["intermediate_size"],
            eps=config["layer_norm_eps"],
        )


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, each added to its input and normalised after.

    Attributes:
        n_heads: heads of attention.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.out = nn.Linear(shape.dim, shape.dim)
        self.attention_norm = nn.LayerNorm(shape.dim, shape.eps)
        self.up = nn.Linear(shape.dim, shape.inner)
        self.down = nn.Linear(shape.inner, shape.dim)
        self.norm = nn.LayerNorm(shape.dim, shape.eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (N, L, D) tokens.
            bias: (N, 1, 1, L), 0 where a token is and very negative where there is none.

        Returns:
            (N, L, D).
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.attention_norm(x + self.out(seen.transpose(1, 2).flatten(2)))
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Sentences as token numbers -> unit vectors.

    Embeddings are 0 until published weights are loaded; random ones would take longer than all else.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(torch.zeros(shape.n_tokens, shape.dim), freeze=False)
        self.positions = nn.Embedding.from_pretrained(torch.zeros(shape.n_positions, shape.dim), freeze=False)
        self.norm = nn.LayerNorm(shape.dim, shape.eps)
        self.layers = nn.ModuleList(BertLayer(shape) for _ in range(shape.n_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode sentences.

        Args:
            input_ids: (N, L) token numbers.
            attention_mask: (N, L), 1 where a token is and 0 where the row is filled up.

        Returns:
            (N, D), rows of unit length.
        """
        here = attention_mask.to(self.norm.weight.dtype)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.tokens(input_ids) + self.positions(places))
        bias = (1 - here)[:, None, None, :] * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        mean = (x * here[..., None]).sum(1) / here.sum(1, keepdim=True)
        return F.normalize(mean, dim=-1)


#: Our name of a layer's module -> its published name; "qkv" joins three.
_LAYER_NAMES = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def from_published(config: Mapping[str, Any], published: Mapping[str, Tensor]) -> Bert:
    """Build a network from published weights.

    The embedding of the first segment, which every token has, is added to those of the positions.

    Args:
        config: see ``BertShape.from_config``.
        published: weights under their published names.

    Returns:
        The network, in evaluation mode.

    Raises:
        KeyError: a weight or a size is absent.
    """
    shape = BertShape.from_config(config)
    held = {name.removeprefix("bert."): t for name, t in published.items()}
    state = {
        "tokens.weight": held["embeddings.word_embeddings.weight"],
        "positions.weight": held["embeddings.position_embeddings.weight"]
        + held["embeddings.token_type_embeddings.weight"][0],
    }
    for what in ("weight", "bias"):
        state[f"norm.{what}"] = held[f"embeddings.LayerNorm.{what}"]
        for i in range(shape.n_layers):
            theirs = f"encoder.layer.{i}."
            parts = [held[f"{theirs}attention.self.{part}.{what}"] for part in ("query", "key", "value")]
            state[f"layers.{i}.qkv.{what}"] = torch.cat(parts)
            for ours, name in _LAYER_NAMES.items():
                state[f"layers.{i}.{ours}.{what}"] = held[f"{theirs}{name}.{what}"]
    with torch.device("meta"):
        network = Bert(shape)
    network.load_state_dict({name: t.float() for name, t in state.items()}, assign=True)
    return network.eval()
