"""Every registered method keeps the contract: every kind of task, every normalisation, and its main options."""

import itertools
from collections.abc import Callable

import pytest
import torch

import kshot.algorithms  # noqa: F401  registers all of ours
from kshot.core import Learner, Spec, methods
from kshot.nn.conv import Conv4
from kshot.nn.norm import NORMALISATIONS
from kshot.testing import CLAUSES, Checked, check_learner, synthetic_episode, tiny_backbone
from kshot.testing.gradients import loss_of_weights
from kshot.testing.synthetic import SPECS

#: Options that change what a method computes, beside its defaults.
OPTIONS = {
    "maml": [
        {"first_order": True},
        {"n_inner_steps": 3, "n_inner_steps_eval": 2, "inner_lr": 0.1},
        {"n_inner_steps": 2, "first_order": True},
    ],
    "protonet": [{"distance": "cosine"}],
}

#: Clauses whose outcome hangs on the normalisation.
NORMALISED = ("shapes", "pure", "order", "leak", "state", "reach", "gradient", "batching")

PAIRS = [(name, kind) for name, m in methods().items() for kind in m.learner.kinds]


def built(name: str, normalisation: str | None = None, **options: object) -> Callable[[Spec], Learner]:
    cls = methods()[name].learner
    chosen = normalisation or cls.default_normalisation
    return lambda spec: cls.from_backbone(tiny_backbone(spec, chosen), spec, **options)


def notes(report: list[Checked]) -> dict[str, str]:
    return {line.clause: line.note for line in report}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_clause_with_the_papers_normalisation(name: str, kind: str) -> None:
    report = notes(check_learner(built(name), SPECS[kind], clauses=[*CLAUSES, "curvature"]))
    assert set(report) == {*CLAUSES, "curvature"}
    # A method that can no longer be mapped would lose its fastest batching without a sound.
    assert "vmap" in report["batching"]
    assert "cannot" not in report["batching"]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_normalisation(name: str, kind: str, normalisation: str) -> None:
    report = notes(check_learner(built(name, normalisation), SPECS[kind], clauses=NORMALISED))
    assert "cannot" not in report["batching"]
    assert report["leak"].startswith("declared transductive" if normalisation == "episode" else "inductive")


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, each in OPTIONS.items() for o in each])
def test_options(name: str, options: dict[str, object]) -> None:
    check_learner(built(name, **options), SPECS["classification"])


def test_the_list_of_options_is_kept_up() -> None:
    assert set(OPTIONS) == set(methods())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_pytorchs_own_check_of_gradients_agrees(name: str, kind: str) -> None:
    """The clause measures slopes by itself, which is quicker and names the parameter; here is the second opinion."""
    learner = built(name)(SPECS[kind]).double().train()
    loss, weights = loss_of_weights(learner, synthetic_episode(SPECS[kind]))
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


CONV4 = [
    pytest.param(name, n, marks=[] if n == m.learner.default_normalisation else pytest.mark.slow)
    for name, m in methods().items()
    for n in ("running", "episode")
]


@pytest.mark.parametrize(("name", "normalisation"), CONV4)
def test_batchings_agree_on_the_networks_of_the_papers(name: str, normalisation: str) -> None:
    """Conv4 with 64 filters on 28x28 images, for which there may be kernels of their own."""
    cls, spec = methods()[name].learner, Spec("classification", (1, 28, 28), 2)
    report = check_learner(
        lambda s: cls.from_backbone(Conv4(normalisation=normalisation), s), spec, clauses=["batching"]
    )
    with torch.random.fork_rng(devices=[]):
        learner = cls.from_backbone(Conv4(normalisation=normalisation), spec)
    for kind in ("native", "fused"):
        assert (kind in report[0].note) is getattr(learner.train(), kind)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_compiled_programs_agree(name: str, kind: str) -> None:
    report = check_learner(built(name), SPECS[kind], clauses=["batching"], compiled=True)
    assert {"loop, compiled", "vmap, compiled"} <= set(report[0].note.split("; "))


def test_seeds_of_the_contract_are_no_lucky_choice() -> None:
    for (name, kind), seed in itertools.product(PAIRS, (1, 2)):
        check_learner(built(name), SPECS[kind], clauses=["support", "gradient", "leak"], seed=seed)
