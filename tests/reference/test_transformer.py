"""The in-context transformer as one masked attention over all tokens, by PyTorch's own (float64)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.algorithms import Transformer
from kshot.core import Spec, UserError
from kshot.nn.attention import SetLayer
from kshot.testing import synthetic_episode, tiny_backbone


def layer_by_masks(layer: SetLayer, tokens: Tensor, n_support: int) -> Tensor:
    """Rows are who asks, columns who is asked: support sees support, a query that and itself."""
    n = len(tokens)
    allowed = torch.eye(n, dtype=torch.bool)
    allowed[:, :n_support] = True
    allowed[:n_support, n_support:] = False
    x = layer.before_attention(tokens)
    keys, values = layer.holds(x).chunk(2, -1)
    heads = [t.view(n, layer.n_heads, -1).transpose(0, 1) for t in (layer.asks(x), keys, values)]
    found = F.scaled_dot_product_attention(*heads, attn_mask=allowed).transpose(0, 1).reshape(n, -1)
    tokens = tokens + layer.joins(found)
    return tokens + layer.network(layer.before_network(tokens))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_all_tokens_under_one_mask(kind: str) -> None:
    spec = Spec("classification", (1, 8, 8), 3) if kind == "classification" else Spec("regression", (2,), 2)
    learner = Transformer(tiny_backbone(spec), spec, width=8, n_layers=3, n_heads=2).double().eval()
    support, query = synthetic_episode(spec, n_shot=3, n_query=2)
    with torch.no_grad():
        y = F.one_hot(support.y, 3).double() if kind == "classification" else support.y
        known = learner.example(learner.backbone(support.x)) + learner.label(y)
        tokens = torch.cat([known, learner.example(learner.backbone(query.x))])
        for layer in learner.layers:
            tokens = layer_by_masks(layer, tokens, len(known))
        got = learner.predict(learner.adapt(support), query.x)
    torch.testing.assert_close(got, learner.answer(tokens[len(known) :]), rtol=1e-9, atol=1e-11)


def test_bad_sizes() -> None:
    spec = Spec("regression", (2,), 1)
    with pytest.raises(UserError, match="width that n_heads divides"):
        Transformer(tiny_backbone(spec), spec, width=10, n_heads=4)
    with pytest.raises(UserError, match="n_layers"):
        Transformer(tiny_backbone(spec), spec, n_layers=0)
