"""Every registered method keeps the contract: every kind of task, every normalisation, and its main options."""

import itertools
from collections.abc import Callable

import pytest
import torch

import kshot.algorithms  # noqa: F401  registers all of ours
from kshot.core import Learner, Spec, methods, tree_map
from kshot.engine.batch import Batching, OuterStep
from kshot.nn.conv import Conv4
from kshot.nn.norm import NORMALISATIONS
from kshot.testing import CLAUSES, Checked, ContractError, check_learner, synthetic_episode, tiny_backbone
from kshot.testing.gradients import loss_of_weights
from kshot.testing.synthetic import SPECS, synthetic_episodes

#: Options that change what a method computes, beside its defaults.
OPTIONS = {
    "baseline": [{"n_inner_steps": 4}],
    "baselinepp": [{"n_inner_steps": 4, "scale": 3.0}],
    "bd_cspn": [{"n_confident": 1, "scale": 3.0}],
    "dkt": [{"kernel": "cosine"}, {"kernel": "linear"}, {"kernel": "rbf"}],
    "deepemd": [{"temperature": 2.0, "sharpness": 4.0, "n_steps": 6}],
    "feat": [{"temperature": 2.0, "balance": 0.0}],
    "finetune": [{"n_inner_steps": 2, "inner_lr": 0.01}],
    "gaussian_protonet": [{"covariance": "diagonal"}],
    "hausdorff": [{"max_points": 7, "threshold": 0.6}],
    "laplacianshot": [{"lam": 0.2, "n_neighbours": 1, "n_steps": 3}],
    "linear_probe": [{"penalty": 0.1}],
    "lrd2": [{"n_steps": 2}],
    "matching": [{"fce": True, "n_processing": 2}],
    "metaoptnet": [{"penalty": 1.0}],
    "nearest": [{}],
    "pt_map": [{"n_steps": 2, "power": 1.0}],
    "r2d2": [{}],
    "relation": [{}, {"combine": "sum"}],
    "simpleshot": [{"transform": "un"}, {"transform": "l2n"}],
    "tim": [{"n_steps": 3, "alpha": 1.0}],
    "transductive_finetuning": [{"n_inner_steps": 2, "inner_lr": 0.01}],
    "anil": [{"n_inner_steps": 3, "inner_lr": 0.05}, {"first_order": True}],
    "boil": [{"first_order": True}],
    "cavia": [{"n_context": 3, "n_inner_steps": 3, "inner_lr": 0.3, "first_order": True}],
    "imaml": [{"strength": 0.5, "n_cg_steps": 2, "n_inner_steps_eval": 2}],
    "mamlpp": [{"multi_step_steps": 10**18}, {"first_order_steps": 5, "n_inner_steps_eval": 3, "truncate": 1}],
    "metacurvature": [{"n_inner_steps": 2, "first_order": True}],
    "metasgd": [{"n_inner_steps": 2, "rate_spread": 2.0}, {"first_order": True}, {"n_inner_steps": 2, "truncate": 1}],
    "protomaml": [{"first_order": True}],
    "reptile": [{"inner_optimiser": "adam", "inner_lr": 1e-4, "n_inner_steps": 2}, {"inner_batch": 4}],
    "cnp": [{"encoder_layers": 1}],
    "dnc": [{"n_heads": 1, "n_hidden": 7}],
    "lstm": [{"n_layers": 2}],
    "mann": [{"n_heads": 1, "usage_decay": 0.5}],
    "snail": [{"length": 30}],
    "transformer": [{"n_layers": 1, "n_heads": 1}],
    "maml": [
        {"first_order": True},
        {"n_inner_steps": 3, "n_inner_steps_eval": 2, "inner_lr": 0.1},
        {"n_inner_steps": 2, "first_order": True},
        {"n_inner_steps": 3, "truncate": 2},
        {"n_inner_steps": 2, "inner_optimiser": "momentum", "inner_clip": 0.5},
        {"n_inner_steps": 2, "inner_optimiser": "adam", "inner_lr": 1e-3},
    ],
    "ntm": [
        {"controller": "feedforward", "n_heads": 2, "n_slots": 5},
        {"memory_start": "learned", "n_slots": 7, "n_layers": 2, "reads": "after"},
    ],
    "protonet": [{"distance": "cosine"}],
}

#: Sizes of networks that are large by default: what is computed does not hang on them.
SMALL: dict[str, dict[str, object]] = {
    "baseline": {"n_inner_steps": 5},
    "baselinepp": {"n_inner_steps": 5},
    "finetune": {"n_inner_steps": 3},
    "tim": {"n_steps": 5},
    "transductive_finetuning": {"n_inner_steps": 3},
    "imaml": {"n_inner_steps": 2, "n_cg_steps": 2},
    "cnp": {"n_hidden": 6, "encoder_layers": 2, "decoder_layers": 2},
    "dnc": {"n_hidden": 5, "n_slots": 6, "slot_width": 4, "n_heads": 2},
    "lstm": {"n_hidden": 6},
    "mann": {"n_hidden": 5, "n_slots": 9, "slot_width": 4, "n_heads": 2},
    "ntm": {"n_hidden": 6, "n_slots": 9, "slot_width": 4},
    "snail": {"length": 7, "tc_filters": 3, "keys": (3, 4, 5), "values": (2, 3, 4)},
    "transformer": {"width": 8, "n_layers": 2, "n_heads": 2},
}

#: Clauses whose outcome hangs on the normalisation.
NORMALISED = ("shapes", "pure", "order", "leak", "state", "reach", "gradient", "batching")

PAIRS = [(name, kind) for name, m in methods().items() for kind in m.learner.kinds]


def built(name: str, normalisation: str | None = None, **options: object) -> Callable[[Spec], Learner]:
    cls = methods()[name].learner
    chosen = normalisation or cls.default_normalisation
    sizes = {**SMALL.get(name, {}), **options}
    return lambda spec: cls.from_backbone(tiny_backbone(spec, chosen), spec, **sizes)


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
def test_inference_mode_changes_no_answer(name: str, kind: str) -> None:
    learner = built(name)(SPECS[kind]).double().eval()
    support, query = synthetic_episode(SPECS[kind])
    with torch.no_grad():
        expected = learner.predict(learner.adapt(support), query.x)
    with torch.inference_mode():
        # And of tensors that were made in inference mode themselves.
        for given in (support, tree_map(torch.clone, support)):
            got = learner.predict(learner.adapt(given), query.x)
            torch.testing.assert_close(got.clone(), expected)


#: How far off a loss in mixed precision may be: bfloat16 has three digits, and an inner loop may double what they lose.
ROUGH = {"rel": 0.1, "abs": 0.02}


@pytest.mark.parametrize(("name", "kind"), [p for p in PAIRS if methods()[p[0]].learner.trained_on != "nothing"])
def test_mixed_precision(name: str, kind: str) -> None:
    """Of every method, on a network with running statistics, whose buffers stay float32."""
    learner, episodes = (
        built(name, "running")(SPECS[kind]).train(),
        synthetic_episodes(SPECS[kind], 2, dtype=torch.float32),
    )
    kept = {key: t.dtype for key, t in learner.state_dict().items()}
    for way in ("loop", "vmap", *(["native"] if learner.native else [])):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            exact = OuterStep(learner, Batching(way))(episodes)
            torch.manual_seed(0)
            mixed = OuterStep(learner, Batching(way), lambda: torch.autocast("cpu", torch.bfloat16))(episodes)
        assert mixed.losses.tolist() == pytest.approx(exact.losses.tolist(), **ROUGH), way
        assert all(bool(g.isfinite().all()) for g in mixed.grads.values())
        assert {key: t.dtype for key, t in learner.state_dict().items()} == kept
        assert all(t.dtype == kept[key] for key, t in mixed.buffers.items() if key in kept)


#: One learner for each way of using a network: every mode of normalisation is tried on these, the default on all.
WAYS = (
    "boil",
    "finetune",
    "lstm",
    "maml",
    "mamlpp",
    "matching",
    "metaoptnet",
    "protonet",
    "r2d2",
    "relation",
    "snail",
    "tim",
)
NORMALISABLE = [(name, kind) for name, kind in PAIRS if name in WAYS and kind == "classification"]


@pytest.mark.parametrize(("name", "kind"), NORMALISABLE)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_normalisation(name: str, kind: str, normalisation: str) -> None:
    report = notes(check_learner(built(name, normalisation), SPECS[kind], clauses=NORMALISED))
    assert "cannot" not in report["batching"]
    assert report["leak"].startswith("declared transductive" if leaking(name, normalisation) else "inductive")


def leaking(name: str, normalisation: str) -> bool:
    found = methods()[name]
    # What has nothing to train leaves the network aside.
    return found.family == "transductive" or (normalisation == "episode" and found.learner.trained_on != "nothing")


#: What sees the queries together by its own nature, and what does through batch statistics of the queries.
LEAKS = [(name, None) for name, m in methods().items() if m.family == "transductive"]
LEAKS += [(name, "episode") for name, kind in PAIRS if kind == "classification" and leaking(name, "episode")]


@pytest.mark.parametrize(("name", "normalisation"), LEAKS)
def test_the_leak_clause_catches_whatever_lets_queries_see_each_other(
    name: str, normalisation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = built(name, normalisation)
    monkeypatch.setattr(methods()[name].learner, "transductive", False)
    with pytest.raises(ContractError, match="breaks the clause 'leak'"):
        check_learner(build, SPECS["classification"], clauses=["leak"])


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, each in OPTIONS.items() for o in each])
def test_options(name: str, options: dict[str, object]) -> None:
    check_learner(built(name, **options), SPECS["classification"])


def test_the_list_of_options_is_kept_up() -> None:
    assert set(OPTIONS) == set(methods())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_pytorchs_own_check_of_gradients_agrees(name: str, kind: str) -> None:
    """The clause measures slopes by itself, which is quicker and names the parameter; here is the second opinion."""
    learner = built(name)(SPECS[kind]).double().train()
    if learner.trained_on == "nothing":
        pytest.skip("the learner says that there is nothing to train")
    if not learner.exact_gradient:
        pytest.skip("the learner says exact_gradient = False: its gradient is no derivative, on purpose")
    loss, weights = loss_of_weights(learner, synthetic_episode(SPECS[kind]))
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


#: The learners that have kernels, or did when others were written after them.
CONV4 = [
    pytest.param(name, n, marks=[] if n == methods()[name].learner.default_normalisation else pytest.mark.slow)
    for name in ("maml", "protonet")
    for n in ("running", "episode")
]


@pytest.mark.parametrize(("name", "normalisation"), CONV4)
def test_batchings_agree_on_the_networks_of_the_papers(name: str, normalisation: str) -> None:
    """Conv4 with 64 filters on 28x28 images, for which there may be kernels of their own."""
    cls, spec = methods()[name].learner, Spec("classification", (1, 28, 28), 2)
    report = check_learner(
        lambda s: cls.from_backbone(Conv4(normalisation=normalisation), s, **SMALL.get(name, {})),
        spec,
        clauses=["batching"],
    )
    with torch.random.fork_rng(devices=[]):
        learner = cls.from_backbone(Conv4(normalisation=normalisation), spec, **SMALL.get(name, {}))
    # While training, which is when kernels run, what draws random numbers is compared nowhere.
    compared = ("native",) if "random numbers" in report[0].note else ("native", "fused")
    for kind in compared:
        assert (kind in report[0].note) is getattr(learner.train(), kind)


#: One learner for each way of being compiled; a program takes minutes, and all learners would take hours.
COMPILED = [(name, kind) for name, kind in PAIRS if name in ("maml", "protonet")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kind"), COMPILED)
def test_compiled_programs_agree(name: str, kind: str) -> None:
    report = check_learner(built(name), SPECS[kind], clauses=["batching"], compiled=True)
    assert {"loop, compiled", "vmap, compiled"} <= set(report[0].note.split("; "))


@pytest.mark.slow
def test_seeds_of_the_contract_are_no_lucky_choice() -> None:
    for (name, kind), seed in itertools.product(PAIRS, (1, 2)):
        check_learner(built(name), SPECS[kind], clauses=["support", "gradient", "leak"], seed=seed)
