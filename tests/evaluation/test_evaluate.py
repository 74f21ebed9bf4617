from __future__ import annotations

import pytest
import torch
from torch import nn

from kshot.algorithms.gradient.maml import MAML
from kshot.algorithms.metric.protonet import ProtoNet
from kshot.core import Learner, Spec, UserError
from kshot.data.image_tasks import ImageTasks
from kshot.data.sinusoid import Sinusoid
from kshot.evaluation import accuracy_by_shots, accuracy_by_step, compare, evaluate, evaluating, mean_ci95, over_seeds
from kshot.evaluation.draw import BLOCK, Draw, fingerprint
from kshot.nn.conv import Conv4


def same(a, b, tolerance=0.0):
    return all(torch.allclose(a.per_episode[k], b.per_episode[k], rtol=0, atol=tolerance) for k in a.per_episode)


def test_scores_equal_a_plain_loop(learner, source):
    scores = evaluate(learner, source, n_episodes=20, batching="loop")

    by_hand = []
    for _, batch in Draw(source, 20, 0).chunks(20):
        for t in range(20):
            x, y = batch.support.x[t].flatten(1), batch.support.y[t]
            means = torch.stack([x[y == w].mean(0) for w in range(3)])
            nearest = torch.cdist(batch.query.x[t].flatten(1), means).argmin(1)
            by_hand.append((nearest == batch.query.y[t]).double().mean())
    assert torch.equal(scores.per_episode["accuracy"], torch.stack(by_hand))
    assert 0.4 < scores.estimate.mean < 1
    assert scores.metric == "accuracy"
    assert scores.n_episodes == 20
    assert scores.bins is not None
    assert scores.bins[0].sum() == 20 * 12


def test_wrong_sign_is_seen(source):
    learner = type("Wrong", (type_of_centroid(source),), {})(gain=-1.0)
    assert evaluate(learner, source, n_episodes=20).estimate.mean < 1 / 3


def type_of_centroid(_source):
    from kshot.core import Split

    class Centroid(Learner):
        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def adapt(self, support: Split):
            return torch.stack([support.x[support.y == w].mean(0).flatten() for w in range(3)])

        def predict(self, state, x):
            return -self.gain * torch.cdist(x.flatten(1), state)

    return Centroid


def test_loop_and_vmap_agree(learner, line, source, sinusoid):
    for who, where in ((learner, source), (line, sinusoid)):
        loop = evaluate(who, where, n_episodes=10, batching="loop")
        vmap = evaluate(who, where, n_episodes=10, batching="vmap")
        assert loop.fingerprint == vmap.fingerprint
        # float32 sums in another order
        assert same(loop, vmap, 1e-4)


@pytest.mark.parametrize("normalisation", ["running", "support", "episode"])
def test_loop_and_vmap_agree_on_networks(source, normalisation):
    spec = Spec("classification", (1, 12, 12), 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Conv4(1, 8, 16, normalisation, "stride")
        networks = ProtoNet(backbone), MAML.from_backbone(backbone, spec, n_inner_steps_eval=2)
    for network in networks:
        before = {k: v.clone() for k, v in network.state_dict().items()}
        loop = evaluate(network, source, n_episodes=6, batching="loop")
        assert same(loop, evaluate(network, source, n_episodes=6, batching="vmap"), 1e-4)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("chunk", [1, 7, BLOCK, 1000])
def test_result_does_not_depend_on_chunk(learner, source, chunk):
    reference = evaluate(learner, source, n_episodes=BLOCK + 6, batching="loop")
    chunked = evaluate(learner, source, n_episodes=BLOCK + 6, batching="loop", chunk=chunk)
    assert same(reference, chunked)
    assert reference.fingerprint == chunked.fingerprint


def test_fewer_episodes_are_the_first_ones_and_a_seed_changes_them(learner, source):
    many, few = (evaluate(learner, source, n_episodes=n, batching="loop") for n in (BLOCK + 10, 9))
    assert torch.equal(many.per_episode["nll"][:9], few.per_episode["nll"])
    other = evaluate(learner, source, n_episodes=9, seed=1, batching="loop")
    assert not torch.equal(other.per_episode["nll"], few.per_episode["nll"])
    assert other.fingerprint != few.fingerprint


def test_auto_falls_back_to_a_loop_for_what_vmap_cannot_do(source):
    class Branching(type_of_centroid(source)):
        def predict(self, state, x):
            return super().predict(state, x) * (2.0 if float(state.sum()) > 0 else 1.0)

    learner = Branching(1.0)
    loop = evaluate(learner, source, n_episodes=5, batching="loop")
    assert same(evaluate(learner, source, n_episodes=5, batching="auto"), loop)
    with pytest.raises(RuntimeError):
        evaluate(learner, source, n_episodes=5, batching="vmap")


def test_auto_distrusts_a_vmap_that_answers_differently(source):
    class Mixing(type_of_centroid(source)):
        mapped = False

        def predict(self, state, x):
            # Under vmap the answer is off: a stand-in for layers whose batching rule does something else.
            return super().predict(state, x) + (
                5.0 * x.flatten(1)[:, :3] if torch._C._functorch.is_batchedtensor(x) else 0
            )

    learner = Mixing(1.0)
    assert same(evaluate(learner, source, n_episodes=5), evaluate(learner, source, n_episodes=5, batching="loop"))


def test_progress_is_told(learner, source):
    seen = []
    evaluate(learner, source, n_episodes=10, chunk=4, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_varying_sources_are_scored_episode_by_episode(learner, varying):
    ways = [e.support.n_way for _, e in Draw(varying, 12, 0).chunks(5)]
    scores = evaluate(learner, varying, n_episodes=12)
    assert len(set(ways)) > 1
    assert scores.per_episode["accuracy"].shape == (12,)
    assert same(scores, evaluate(learner, varying, n_episodes=12, batching="loop"), 1e-4)


def test_regression_error_in_closed_form(line, slopes):
    # The gradient at slope s is 2 (s - truth): after k steps of 0.01 the squared error is 0.98^(2k).
    scores = evaluate(line, slopes, n_episodes=8)
    assert scores.metric == "mse"
    assert scores.ece is None
    assert scores.per_episode["mse"].tolist() == pytest.approx([0.98**6] * 8, rel=1e-5)


def test_curve_over_inner_steps(line, slopes):
    curve = accuracy_by_step(line, slopes, n_steps=5, n_episodes=8)
    assert (curve.along, curve.metric, curve.x) == ("inner steps", "mse", (0, 1, 2, 3, 4, 5))
    assert [e.mean for e in curve.estimates] == pytest.approx([0.98 ** (2 * k) for k in range(6)], rel=1e-5)
    assert len(accuracy_by_step(line, slopes, n_episodes=8).x) == 4  # the learner's own 3 steps


def test_tasks_that_share_their_classes_count_as_runs_at_every_step(line, slopes, monkeypatch):
    """Five tasks a run: along inner steps as in the evaluation, and a last one that is cut short counts."""
    monkeypatch.setattr(type(slopes), "run_length", 5, raising=False)
    for n, runs in ((20, 4), (18, 4), (16, 4), (4, 4)):
        curve, scores = accuracy_by_step(line, slopes, n_episodes=n), evaluate(line, slopes, n_episodes=n)
        assert curve.estimates[-1].n == scores.estimate.n == runs
        assert curve.estimates[-1].mean == pytest.approx(scores.estimate.mean)
        assert curve.estimates[-1].ci95 == pytest.approx(scores.estimate.ci95)
        assert scores.estimate.mean == pytest.approx(float(scores.per_episode["mse"].mean()))
    parts = scores.per_episode["mse"]
    assert scores.estimate.ci95 == pytest.approx(mean_ci95(parts).ci95), "of one run no more can be told"
    cut = evaluate(line, slopes, n_episodes=18)
    means = [float(run.mean()) for run in cut.per_episode["mse"].split(5)]
    assert cut.estimate.ci95 == pytest.approx(over_seeds(means).ci95)


def test_last_step_of_the_curve_is_the_evaluation(line, sinusoid):
    curve = accuracy_by_step(line, sinusoid, n_episodes=30)
    assert curve.estimates[-1].mean == pytest.approx(evaluate(line, sinusoid, n_episodes=30).estimate.mean)


def test_curve_over_shots(learner, source_of_shots):
    curve = accuracy_by_shots(learner, source_of_shots, [5, 1], n_episodes=40)
    assert (curve.along, curve.x) == ("shots", (1, 5))
    assert curve.estimates[1].mean > curve.estimates[0].mean
    with pytest.raises(UserError, match="at least one number of shots"):
        accuracy_by_shots(learner, source_of_shots, [])


def test_learner_without_steps_has_no_such_curve(learner, source):
    with pytest.raises(UserError, match="takes no inner steps"):
        accuracy_by_step(learner, source)


def test_evaluation_leaves_no_trace(learner, source):
    class Wrapped(Learner):
        def __init__(self):
            super().__init__()
            self.inner, self.frozen = learner, nn.Dropout(0.5)
            self.grads = []

        def adapt(self, support):
            self.grads.append(torch.is_grad_enabled() or self.training or self.frozen.training)
            return self.frozen(learner.adapt(support))

        def predict(self, state, x):
            return learner.predict(state, x)

    wrapped = Wrapped()
    wrapped.frozen.eval()
    wrapped.inner.train()
    before = [m.training for m in wrapped.modules()]
    rng = torch.get_rng_state()

    scores = evaluate(wrapped, source, n_episodes=4)

    assert same(scores, evaluate(learner, source, n_episodes=4), 1e-4)
    assert [m.training for m in wrapped.modules()] == before
    assert before.count(True) == 2
    assert not any(wrapped.grads)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in wrapped.parameters())


def test_modes_come_back_after_an_error(learner):
    def fail():
        with evaluating(learner):
            assert not learner.training
            raise KeyError

    learner.train()
    with pytest.raises(KeyError):
        fail()
    assert learner.training
    assert torch.is_grad_enabled()


def test_kind_that_does_not_fit_is_refused(learner, line, source, slopes):
    with pytest.raises(UserError, match="does classification, got tasks of regression"):
        evaluate(learner, slopes)
    with pytest.raises(UserError, match="does regression, got tasks of classification"):
        evaluate(line, source)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("classification", (1, 28, 28), 3), r"built for classification of inputs \(1, 28, 28\)"),
        (Spec("classification", (1, 12, 12), 5), "pass n_way=5"),
    ],
)
def test_learner_that_names_its_tasks_is_held_to_them(learner, source, spec, message):
    learner.spec, learner.any_way = spec, False
    with pytest.raises(UserError, match=message):
        evaluate(learner, source)


def test_answers_of_the_wrong_width_are_refused(learner, source):
    class Five(type(learner)):
        def predict(self, state, x):
            return torch.zeros(len(x), 5)

    with pytest.raises(UserError, match=r"answered with shape \(12, 5\), expected \(12, 3\)"):
        evaluate(Five(), source, n_episodes=2)


def test_nan_answers_name_the_episode(learner, source):
    class Late(type(learner)):
        calls = 0

        def predict(self, state, x):
            self.calls += 1
            return super().predict(state, x) * (float("nan") if self.calls == 4 else 1.0)

    with pytest.raises(UserError, match="NaN or infinity on episode 3"):
        evaluate(Late(), source, n_episodes=6, batching="loop")


def test_damaged_data_is_refused(learner, source):
    class Holes(ImageTasks):
        def episodes(self, plan):
            episode = super().episodes(plan)
            episode.query.x[0, 0] = float("nan")
            return episode

    holes = Holes(source.images, name="holes", n_way=3, n_query=4)
    with pytest.raises(UserError, match=r"finite numbers in query\.x"):
        evaluate(learner, holes)


def spoilt(source, episode, change):
    """A source whose one episode, counted over all chunks, has other labels."""

    class Spoilt(ImageTasks):
        drawn = 0

        def episodes(self, plan):
            batch = super().episodes(plan)
            if self.drawn <= episode < self.drawn + len(batch.support.y):
                change(batch, episode - self.drawn)
            self.drawn += len(batch.support.y)
            return batch

    return Spoilt(source.images, name="spoilt", n_way=3, n_query=4)


def without_class_2(batch, task):
    batch.support.y[task] = batch.support.y[task].clamp(max=1)


def with_a_label_too_many(batch, task):
    batch.query.y[task, 0] = 3


@pytest.mark.parametrize("episode", [0, 2, 9])
def test_a_class_without_support_is_refused_in_whatever_episode(learner, source, episode):
    spoilt_source = spoilt(source, episode, without_class_2)
    with pytest.raises(UserError, match=f"episode {episode}: support has 2 classes but n_way=3: class 2 has no"):
        evaluate(learner, spoilt_source, n_episodes=12, chunk=4)
    # Those before it are as they should be.
    if episode:
        assert evaluate(learner, spoilt(source, episode, without_class_2), n_episodes=episode).n_episodes == episode


def test_a_label_out_of_range_is_refused_in_whatever_episode(learner, source):
    with pytest.raises(UserError, match=r"episode 5: query\.y: expected labels 0\.\.2 for 3 classes, got 0\.\.3"):
        evaluate(learner, spoilt(source, 5, with_a_label_too_many), n_episodes=12, chunk=4)


@pytest.mark.parametrize("bad", [{"n_episodes": 0}, {"chunk": 0}, {"batching": "magic"}])
def test_bad_arguments_are_refused(learner, source, bad):
    with pytest.raises(UserError, match=r"expected|must be"):
        evaluate(learner, source, **bad)


def test_compare_needs_identical_episodes(learner, source):
    first = evaluate(learner, source, n_episodes=30)
    second = evaluate(type(learner)(gain=-1.0), source, n_episodes=30)

    assert compare(first, second).difference.mean == pytest.approx(first.estimate.mean - second.estimate.mean)
    assert compare(first, second).p_value < 0.01
    assert compare(first, second, "nll").difference.mean < 0
    with pytest.raises(UserError, match="identical episodes"):
        compare(first, evaluate(learner, source, n_episodes=30, seed=5))
    with pytest.raises(UserError, match="'ece'"):
        compare(first, second, "ece")
    with pytest.raises(UserError, match="unknown score 'f1'"):
        first.estimate_of("f1")


def test_fingerprint_tells_sources_apart(learner, source, source_of_shots):
    a = evaluate(learner, source, n_episodes=4).fingerprint
    b = evaluate(learner, source_of_shots(2), n_episodes=4).fingerprint
    assert a == evaluate(learner, source_of_shots(1), n_episodes=4).fingerprint
    assert a != b


def test_where_a_formula_cuts_support_from_queries_counts():
    """Five points and fifteen are other tasks than ten and ten, though both are drawn as twenty."""
    few, many = (fingerprint(Sinusoid(n_shot=k, n_query=20 - k), 64, 0) for k in (5, 10))
    assert few != many
    assert few == fingerprint(Sinusoid(n_shot=5, n_query=15), 64, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(learner, source, source_of_shots):
    on_cpu = evaluate(learner, source, n_episodes=20)
    on_gpu = evaluate(learner, source_of_shots(1), n_episodes=20, device="cuda")
    assert on_gpu.fingerprint == on_cpu.fingerprint
    # float32 in another order, and perhaps TF32 products
    assert same(on_cpu, on_gpu, 1e-2)


def test_the_order_of_a_support_is_no_other_episode(source):
    plain, mixed = (ImageTasks(source.images, name="a", n_way=3, n_query=2, shuffle=on) for on in (False, True))
    learner = ProtoNet(nn.Flatten())
    first, second = (evaluate(learner, source, n_episodes=5) for source in (plain, mixed))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.per_episode["accuracy"], second.per_episode["accuracy"])
