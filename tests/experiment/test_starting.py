"""A run starts from the weights of another as far as they fit, says so, and a continuation has its own."""

import dataclasses
import shutil

import pytest
import torch

from kshot.core import UserError
from kshot.engine.checkpoint import Checkpoints
from kshot.engine.train import TrainConfig
from kshot.evaluation.record import read_record
from kshot.experiment import run
from kshot.experiment.config import BackboneConfig, EvalConfig, RunConfig, TaskConfig
from kshot.experiment.folder import run_config
from kshot.experiment.run import UNSURPASSED, evaluate_run, train_run

TRAIN = TrainConfig(steps=2, batching="loop", validate_every=2, checkpoint_every=1, log_every=1)
BASE = RunConfig(
    "protonet",
    "glyphs",
    task=TaskConfig(3, 1, 2, 2),
    evaluation=EvalConfig(eval_episodes=4, val_episodes=4),
    network=BackboneConfig(n_filters=4),
    train=TRAIN,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a run, and its learner."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    return folder, train_run(BASE, folder).learner


def _from(base, **changed):
    return dataclasses.replace(BASE, start=str(base[0]), **changed)


def _first(config, out):
    """Train, and keep what the learner was before the first step.

    Returns:
        The outcome, the first state, and what was said of it.
    """
    seen = {}

    def keep(name, step, values):
        if name == "built":
            state = {k: v.clone() for k, v in values["learner"].state_dict().items()}
            seen.update(state=state, said=values["start"])

    return train_run(config, out, on_event=keep), seen["state"], seen["said"]


def test_a_run_of_the_same_method_takes_everything(base, tmp_path):
    seeded = dataclasses.replace(TRAIN, seed=1)
    outcome, state, said = _first(_from(base, train=seeded), tmp_path / "a")
    expected = base[1].state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)
    assert said == f"{base[0]} (protonet on glyphs, step 2): all {len(state)} tensors"
    about = {"algorithm": "protonet", "data": "glyphs", "step": 2}
    assert run_config(tmp_path / "a").started_from == about
    assert read_record(tmp_path / "a" / "result.json").to_dict()["started_from"] == about
    assert outcome.record.to_dict()["started_from"] == about
    tested = evaluate_run(tmp_path / "a", n_episodes=2)[-1]
    assert tested.to_dict()["started_from"] == about


@pytest.mark.parametrize("name", ["feat", "maml", "protomaml", "relation"])
def test_another_method_takes_the_network(base, tmp_path, name):
    """Under whatever name it holds it: MAML's is a part of a sequence, Proto-MAML's is all there is."""
    outcome, state, said = _first(_from(base, algorithm=name), tmp_path / "a")
    theirs = base[1].state_dict()
    taken = 0
    for there, tensor in theirs.items():
        ours = [k for k in state if k.endswith(there.removeprefix("backbone"))]
        for k in ours:
            assert torch.equal(state[k], tensor), k
            taken += 1
    assert taken == sum("blocks" in k and not k.startswith("relation") for k in state)
    assert ("all" if taken == len(state) else f": {taken} of {len(state)} tensors; new, in ") in said
    assert outcome.config.started_from["algorithm"] == "protonet"


def test_what_has_another_shape_is_new(base, tmp_path):
    """A head for more classes is drawn, and the network before it taken."""
    five = dataclasses.replace(_from(base), algorithm="maml", start="")
    train_run(five, tmp_path / "three")
    wide = dataclasses.replace(five, task=TaskConfig(4, 1, 2, 2), start=str(tmp_path / "three"))
    _, state, said = _first(wide, tmp_path / "four")
    assert "tensors; new, in model: 2" in said
    assert sum(v.shape[:1] == (4,) and "1." in k for k, v in state.items()) >= 2


def test_a_continuation_has_its_own_weights(base, tmp_path):
    """Also where the run that it started from is gone."""
    gone = tmp_path / "gone"
    shutil.copytree(base[0], gone)
    config = dataclasses.replace(_from(base), start=str(gone))
    train_run(config, tmp_path / "whole")
    train_run(dataclasses.replace(config, train=dataclasses.replace(TRAIN, steps=1)), tmp_path / "parts")
    shutil.rmtree(gone)
    train_run(config, tmp_path / "parts", resume=True)
    whole, parts = (Checkpoints(tmp_path / n / "checkpoints").load_newest()[0]["learner"] for n in ("whole", "parts"))
    assert all(torch.equal(parts[k], whole[k]) for k in whole)
    assert run_config(tmp_path / "parts").started_from["step"] == 2


def test_a_start_that_is_never_bettered_is_kept_and_said(base, tmp_path, monkeypatch):
    """What is tested are the weights that training started from."""
    said, values = [], iter((0.9, 0.1))
    monkeypatch.setattr(run, "_validation", lambda *_: next(values))

    def listen(name, step, values):
        if name == "warning":
            said.append(values["message"])

    outcome = train_run(_from(base), tmp_path / "a", on_event=listen)
    theirs = base[1].state_dict()
    assert all(torch.equal(t, theirs[k]) for k, t in outcome.learner.state_dict().items())
    assert said == [UNSURPASSED]
    rows = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2"]


def test_what_cannot_be_started_from_is_refused(base, tmp_path):
    with pytest.raises(UserError, match=r"nothing to start from in .*: expected a run folder"):
        train_run(dataclasses.replace(BASE, start=str(tmp_path / "none")), tmp_path / "a")
    wider = dataclasses.replace(_from(base), network=BackboneConfig(n_filters=5))
    with pytest.raises(UserError, match=r"nothing of the run .* fits: it is protonet on glyphs with backbone conv4"):
        train_run(wider, tmp_path / "a")
    no_network = dataclasses.replace(_from(base), algorithm="lstm", network=BackboneConfig(backbone="none"))
    with pytest.raises(UserError, match="nothing of the run"):
        train_run(no_network, tmp_path / "a")
    (tmp_path / "bare").mkdir()
    shutil.copy(base[0] / "config.toml", tmp_path / "bare")
    with pytest.raises(UserError, match=r"nothing to start from .* the folder has none. Train it first"):
        train_run(dataclasses.replace(BASE, start=str(tmp_path / "bare")), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_a_learner_is_and_how_far_it_came_stay_its_own(base, tmp_path):
    """MAML++ counts its steps, and a memory knows its size and its order of reading."""
    maml = dataclasses.replace(BASE, algorithm="mamlpp")
    train_run(maml, tmp_path / "a")
    _, state, said = _first(dataclasses.replace(maml, start=str(tmp_path / "a")), tmp_path / "b")
    assert int(state["outer_steps"]) == 0
    assert said.endswith(f"all {len(state) - 1} tensors")
    machine = dataclasses.replace(
        BASE, algorithm="ntm", data="copy", network=BackboneConfig(backbone="none"), options={"reads": "after"}
    )
    train_run(machine, tmp_path / "c")
    other = dataclasses.replace(machine, options={"reads": "before", "n_slots": 64}, start=str(tmp_path / "c"))
    _, _, said = _first(other, tmp_path / "d")
    assert "no place here for cell.reads_after" in said


def test_a_single_number_is_no_network(base, tmp_path):
    narrow = dataclasses.replace(BASE, algorithm="metaoptnet", network=BackboneConfig(n_filters=4))
    train_run(narrow, tmp_path / "a")
    wide = dataclasses.replace(narrow, network=BackboneConfig(n_filters=8), start=str(tmp_path / "a"))
    with pytest.raises(UserError, match="nothing of the run"):
        train_run(wide, tmp_path / "b")
