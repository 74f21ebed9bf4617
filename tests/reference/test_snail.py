"""SNAIL against the pseudocode of its paper, one whole sequence for each query (float64)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.algorithms import SNAIL
from kshot.core import Spec, UserError
from kshot.nn.causal import AttentionBlock, DenseBlock, TCBlock
from kshot.testing import synthetic_episode, tiny_backbone

SIZES = {"tc_filters": 3, "keys": (3, 4, 5), "values": (2, 3, 4)}


def dense_block(block: DenseBlock, x: Tensor) -> Tensor:
    """A causal convolution of kernel 2 over (C, L), with zeros before the beginning."""
    n = block.now.out_features // 2
    kernel = torch.stack([block.before.weight, block.now.weight], -1)
    both = F.conv1d(F.pad(x[None], (block.dilation, 0)), kernel, block.now.bias, dilation=block.dilation)[0]
    return torch.cat([x, torch.tanh(both[:n]) * torch.sigmoid(both[n:])])


def attention_block(block: AttentionBlock, x: Tensor) -> Tensor:
    steps, answers = x.T, []
    for t in range(len(steps)):
        asked = block.asks(steps[t])
        scores = [float(asked @ block.keys(steps[i])) / math.sqrt(block.key_size) for i in range(t + 1)]
        total = sum(math.exp(s) for s in scores)
        answers.append(sum(math.exp(s) / total * block.values(steps[i]) for i, s in enumerate(scores)))
    return torch.cat([x, torch.stack(answers).T])


@pytest.mark.parametrize(("length", "n_shot"), [(7, 2), (3, 3), (20, 1)])
def test_every_query_is_the_last_step_of_a_sequence(length: int, n_shot: int) -> None:
    """Also where the sequence is longer than the blocks were made for, and where it is shorter than their reach."""
    spec = Spec("classification", (1, 8, 8), 3)
    learner = SNAIL(tiny_backbone(spec), spec, length=length, **SIZES).double().eval()
    support, query = synthetic_episode(spec, n_shot=n_shot, n_query=2)
    with torch.no_grad():
        got = learner.predict(learner.adapt(support), query.x)
        zs, zq = learner.backbone(support.x), learner.backbone(query.x)
        known = torch.cat([zs, F.one_hot(support.y, 3).double()], 1)
        for q, z in enumerate(zq):
            x = torch.cat([known, torch.cat([z, torch.zeros(3, dtype=z.dtype)])[None]]).T
            for layer in learner.body:
                if isinstance(layer, AttentionBlock):
                    x = attention_block(layer, x)
                    continue
                for block in layer.blocks:
                    x = dense_block(block, x)
            torch.testing.assert_close(got[q], learner.head(x[:, -1]), rtol=1e-9, atol=1e-11)


def test_dilations_and_widths_are_those_of_the_paper() -> None:
    """Section 3 and the appendix on Omniglot: T = 26, 64 features and 5 labels."""
    block = TCBlock(10, 26, 128)
    assert [b.dilation for b in block.blocks] == [2, 4, 8, 16, 32]
    assert block.n_features == 10 + 5 * 128
    spec = Spec("classification", (1, 28, 28), 5)
    backbone = torch.nn.Identity()
    backbone.n_features = 64
    learner = SNAIL(backbone, spec)
    assert learner.head.in_features == 64 + 5 + 32 + 640 + 128 + 640 + 256


def test_bad_sizes() -> None:
    spec = Spec("regression", (2,), 1)
    with pytest.raises(UserError, match="three attentions"):
        SNAIL(tiny_backbone(spec), spec, keys=(1, 2))
    with pytest.raises(UserError, match="length of at least 2"):
        SNAIL(tiny_backbone(spec), spec, length=1)
