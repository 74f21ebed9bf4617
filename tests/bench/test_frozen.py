"""Frozen features: methods agree with easyfsl's where they are the same; both cases report what they measured."""

import importlib

import pytest
import torch
from torch import nn

from kshot.algorithms.transductive.bd_cspn import rectified_means
from kshot.algorithms.transductive.laplacianshot import neighbours
from kshot.algorithms.transductive.pt_map import PTMAP
from kshot.bench import frozen, peers
from kshot.core.episode import select
from kshot.evaluation.draw import Draw
from kshot.nn.flat import Flat
from kshot.nn.heads import class_means, memberships, unit


@pytest.fixture(scope="module")
def chunks():
    source = frozen._source(frozen._features())
    return [drawn.episodes for drawn in Draw(source, 4, 0).chunks(4)]


@pytest.mark.parametrize("name", ["protonet", "simpleshot"])
def test_the_same_answers_as_easyfsl(name, chunks):
    if not peers.installed("easyfsl"):
        pytest.skip("easyfsl is not installed")
    pair = frozen._pairs(frozen._features().features.mean(0))[name]
    torch.testing.assert_close(frozen._ours(pair.ours, chunks)(), frozen._theirs(pair, chunks)(), rtol=0, atol=0.02)


def test_every_method_does_better_than_chance(chunks):
    for name, pair in frozen._pairs(frozen._features().features.mean(0)).items():
        assert frozen._ours(pair.ours, chunks)().mean() > 0.35, name


def test_the_case_of_many_episodes():
    result = frozen.frozen_episodes(1, 64)
    assert [line.name for line in result.lines] == ["kshot"]
    assert result.passed is (result.lines[0].seconds <= 5e-4)
    assert result.extra["seconds_of_all"] == pytest.approx(64 * result.lines[0].seconds)


def test_the_case_against_easyfsl(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda name: False)
    result = frozen.frozen_easyfsl(1, 4)
    names = [line.name for line in result.lines]
    assert names == [f"kshot, {n}" for n in ("protonet", "simpleshot", "bd_cspn", "laplacianshot", "tim", "pt_map")]
    assert result.agreement == ""
    assert result.passed is None


def test_the_parts_that_the_papers_and_easyfsl_share_are_equal(chunks):
    if not peers.installed("easyfsl"):
        pytest.skip("easyfsl is not installed")
    methods = importlib.import_module("easyfsl.methods")
    (x, y, _), (asked, _, _) = select(chunks[0], 0)
    x, asked = unit(x), unit(asked)
    moved, labels, means = asked + x.mean(0) - asked.mean(0), memberships(y, 5, x.dtype), class_means(x, y, 5)
    nearest = memberships((unit(moved) @ unit(means).mT).argmax(-1), 5, x.dtype)

    def fitted(name):
        model = getattr(methods, name)(nn.Identity())
        model.process_support_set(x, y)
        return model

    model = fitted("BDCSPN")
    model.rectify_prototypes(asked)
    ours = rectified_means(torch.cat([x, moved]), torch.cat([labels, nearest]), means, 1.0)
    torch.testing.assert_close(model.prototypes, ours, rtol=1e-5, atol=1e-5)
    affinities = fitted("LaplacianShot").compute_pairwise_affinities(asked)
    assert torch.equal(affinities.sum(1), torch.full((len(asked),), 2.0))
    assert torch.equal(affinities, neighbours(asked, 2))
    model = fitted("PTMAP")
    z = model.compute_features(asked)
    ours = PTMAP(Flat((x.shape[1],))).assignment(z, model.prototypes)
    torch.testing.assert_close(model.compute_soft_assignments(z), ours, rtol=1e-3, atol=1e-3)
