"""Recipes of Neural Turing Machines: the five tasks of their paper, with the settings of its tables."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kshot.engine.config import TrainConfig
from kshot.experiment.config import EvalConfig, RunConfig, TaskConfig
from kshot.experiment.recipes.recipe import Recipe, Row

_NTM = "Graves, Wayne, Danihelka, 2014, arXiv:1410.5401"
_PROTOCOL = (
    "One pass over fresh sequences, {how}, every entry of the gradient within ±10 (of a mean over bits, where the "
    "paper's loss is a sum). The weights of the best validation are tested. Published are curves only, but for what is "
    "quoted."
)


class _Rule(NamedTuple):
    """How the weights are changed.

    Attributes:
        optimiser: its name.
        n_tasks: sequences of a step.
        how: the same in words.
    """

    optimiser: str
    n_tasks: int
    how: str


_RMSPROP = _Rule("rmsprop", 1, "RMSProp with momentum 0.9, one sequence a step as in the paper")
#: With the paper's rule no seed that was tried had learnt to recall after 60,000 sequences.
_ADAM = _Rule("adam", 16, "Adam, 16 sequences a step (the paper: RMSProp, one sequence)")
_ADAM_64 = _ADAM._replace(n_tasks=64, how="Adam, 64 sequences a step (the paper: RMSProp, one sequence)")


class _Task(NamedTuple):
    """One task: how long it trains, how often it validates, and what is asked of a Neural Turing Machine.

    Attributes:
        title: as the rows name it.
        steps: outer steps.
        validate_every: steps between validations.
        rows: what is tested.
        protocol: what is special about it.
        rule: how the weights are changed.
        slower: steps after which the rate falls to 0.3 of what it was; never if 0.
        cosine: the rate falls to zero by a cosine.
        clip_norm: bound on the norm of the gradient, 0 for none.
        rewind: factor on the rate where training falls apart, and goes on from its best weights; 0 for never.
    """

    title: str
    steps: int
    validate_every: int
    rows: tuple[Row, ...]
    protocol: str = ""
    rule: _Rule = _RMSPROP
    slower: int = 0
    cosine: bool = False
    clip_norm: float = 0.0
    rewind: float = 0.0


def _sized(name: str, least: float | None = None, *, n: int = 100, published: float | None = None, **size: int) -> Row:
    source = f"{_NTM}, section 4.3" if published is not None else ""
    return Row(name, published, least, source, {"n_episodes": n, "data_options": size})


def _until(bits: float, median: float | None = None, slowest: float | None = None) -> tuple[Row, Row]:
    name = f"sequences until < {bits:g} bits per sequence"
    return (
        Row(f"{name}, median over seeds", None, median, "", {"until": bits}, over_seeds="median"),
        Row(f"{name}, slowest seed", None, slowest, "", {"until": bits}, over_seeds="largest"),
    )


def _lengths(*lengths: int) -> tuple[Row, ...]:
    return tuple(_sized(f"length {n}", min_length=n, max_length=n) for n in lengths)


def _copies(length: int, repeats: int) -> Row:
    size = {"min_length": length, "max_length": length, "min_repeats": repeats, "max_repeats": repeats}
    return _sized(f"length {length}, {repeats} copies", **size)


def _items(n: int, least: float | None = None, published: float | None = None) -> Row:
    return _sized(f"{n} items", least, published=published, min_items=n, max_items=n)


_WITHIN = {"n_episodes": 600}

_COPY = _Task(
    "copy",
    20_000,
    1000,
    (
        Row("length 1 to 20", None, 0.1, "", _WITHIN),
        *_until(0.1, 60_000, 150_000),
        *_lengths(20, 30, 50, 120),
    ),
)
#: One seed of ten needs 27,000 sequences.
_COPY_FF = _COPY._replace(steps=40_000)
#: To compare memories at the start; nothing is asked of them.
_START = _COPY._replace(rows=(Row("length 1 to 20", None, None, "", _WITHIN), *_until(0.1), *_lengths(20, 50, 120)))
_REPEAT = _Task(
    "repeat copy",
    100_000,
    2000,
    (
        Row("length and copies 1 to 10", None, None, "", _WITHIN),
        *_until(1.0),
        _copies(10, 20),
        _copies(20, 10),
    ),
    "The number of copies is less its mean and over its deviation in training, also where more are asked.",
)
_RECALL = (
    Row("2 to 6 items", None, None, "", _WITHIN),
    *_until(1.0),
    _items(6),
    _items(10),
    _items(12),
)
#: Of a sequence, where a training had others.
_FIVE = {"data_options": {"min_context_bits": 5}}
_NGRAMS = _Task(
    "n-grams",
    6000,
    500,
    (
        Row("bits per sequence of 200", None, None, "", {"n_episodes": 1000}),
        Row("above the best possible", None, 1.5, "", {"n_episodes": 1000, "excess": True}),
    ),
    "The rate is 3e-3 for 4,000 steps, and then 9e-4. The best possible is the estimator of the paper's Eq. 10, on the "
    "same sequences.",
    rule=_ADAM,
    slower=4000,
)
#: One bit of five says next to nothing about the next, so that nothing leads from one bit to five: trained on five
#: alone, it came to 179.5 bits of validation, between what one bit is good for and two. Without a bound on the norm of
#: the gradient it lost what it had learned where that was 25 for once, of 0.2 usually.
_NGRAMS_MIXED = _Task(
    "n-grams of which one to five bits decide",
    13_500,
    500,
    (
        Row("bits per sequence of 200, of which 1 to 5 bits decide", None, None, "", {"n_episodes": 1000}),
        Row("above the best possible where 5 decide", None, None, "", {"n_episodes": 1000, "excess": True, **_FIVE}),
    ),
    "Heads read what the step wrote. In a sequence one to five of the last bits decide, as many sequences for each. "
    "The rate is 1e-3, and 0.3 of what it was after every 4,500 steps. The gradient is cut to a norm of 0.3.",
    rule=_ADAM,
    slower=4_500,
    clip_norm=0.3,
)
_BACK = "Where a validation falls far, training goes on from its best weights at half the rate."
#: From 8e-4 on, after a rise of 250 steps, it fell apart twice within 1,500; 1.2e-3 without a rise was at 237 bits of
#: validation after 250, from 160. By 64 sequences a step 6e-4 stood at 154 after 5,000 steps.
_NGRAMS_FOUR = _NGRAMS_MIXED._replace(
    title="n-grams of which four or five bits decide",
    steps=4_500,
    rows=(
        Row("bits per sequence of 200, of which 4 or 5 bits decide", None, None, "", {"n_episodes": 1000}),
        *_NGRAMS_MIXED.rows[1:],
    ),
    protocol="Heads read what the step wrote. The machine of `ntm-ngrams-ff-mixed` goes on where four or five bits "
    f"decide, at 6e-4, with the same bound. {_BACK}",
    slower=0,
    rewind=0.5,
)
_NGRAMS_LAST = _NGRAMS_FOUR._replace(
    title=_NGRAMS.title,
    steps=6_500,
    validate_every=250,
    rows=tuple(dataclasses.replace(row, test={**row.test, **_FIVE}) for row in _NGRAMS.rows),
    protocol="Heads read what the step wrote. The machine of `ntm-ngrams-ff-four` goes on by more sequences a step, at "
    f"6e-4, and after 5,000 steps at 1.8e-4, with the same bound. {_BACK} In the test five bits decide, and the best "
    "possible is the estimator of the paper's Eq. 10, on the same sequences.",
    rule=_ADAM_64,
    slower=5_000,
)
#: One head on a memory that is constant at the start needs the way over fewer bits, above; four on a learned one stand
#: between one bit and two for 2,000 steps, and then find the way alone.
_NGRAMS_HEADS = _NGRAMS._replace(
    steps=14_000,
    protocol="Heads read what the step wrote; there are four, on a memory that is learned at the start; the paper has "
    "one. The rate is 1e-3, and 3e-4 after 9,000 steps. The gradient is cut to a norm of 0.3. "
    f"{_BACK} The best possible is the estimator of the paper's Eq. 10, on the same sequences.",
    slower=9_000,
    clip_norm=0.3,
    rewind=0.5,
)
#: At 1e-3 it fell apart after 1,500 steps. 5,000 of these steps came to 135.8 bits of validation, from 137.4.
_NGRAMS_AGAIN = _NGRAMS_HEADS._replace(
    protocol="Heads read what the step wrote. The machine of `ntm-ngrams-ff-heads` goes on, at a rate that falls from "
    f"8e-4 to zero by a cosine, with the same bound. {_BACK} The best possible is the estimator of the paper's Eq. 10, "
    "on the same sequences.",
    slower=0,
    cosine=True,
)
_SORT = _Task("priority sort", 400_000, 10_000, (Row("16 highest of 20", None, 25.0, "", {"n_episodes": 200}),))
#: At 1e-4, more than three times the rate of the paper, validation was unsteady after 130,000 sequences, and at 3e-5,
#: the paper's, still between 23 and 38 bits in the end.
_SORT_LSTM = _SORT._replace(
    slower=130_000,
    protocol="The rate is 1e-4, and 0.3 of what it was after every 130,000 sequences; the paper has 3e-5 throughout.",
)
#: In validation 400 steps came to 115 bits so, and to 122 with reads before writes. A rate of 3e-3 left the numbers
#: soon. At 1e-3 it was at chance after 2,000 steps in one training, and after 9,900, from 56 bits, in another; with the
#: gradient cut to a norm of 0.3 after 1,900; at 6e-4 after 11,500, from 72. So it goes back where it falls apart.
_SORT_FF = _SORT._replace(
    steps=28_000,
    validate_every=500,
    protocol=f"Heads read what the step wrote. The rate falls from 8e-4 to zero by a cosine. {_BACK}",
    rule=_ADAM,
    cosine=True,
    rewind=0.5,
)


def _recipe(
    name: str, algorithm: str, data: str, task: _Task, rate: float, options: dict[str, Any], **data_options: Any
) -> Recipe:
    config = RunConfig(
        algorithm,
        data,
        task=TaskConfig(n_tasks=task.rule.n_tasks),
        evaluation=EvalConfig(eval_episodes=0, val_episodes=100),
        train=TrainConfig(
            steps=task.steps,
            optimiser=task.rule.optimiser,
            outer_lr=rate,
            schedule="cosine" if task.cosine else "step" if task.slower else "constant",
            lr_every=task.slower,
            lr_gamma=0.3 if task.slower else 0.5,
            clip_value=10.0,
            clip_norm=task.clip_norm,
            rewind=task.rewind,
            validate_every=task.validate_every,
            checkpoint_every=task.validate_every,
            log_every=100,
        ),
        options=options,
        data_options=data_options,
    )
    protocol = f"{_PROTOCOL.format(how=task.rule.how)} {task.protocol}".strip()
    return Recipe(name, "Graves, Wayne, Danihelka, 2014", config, task.rows, protocol)


def _ntm(name: str, data: str, task: _Task, rate: float, **options: Any) -> Recipe:
    return _recipe(name, "ntm", data, task, rate, {"n_slots": 128, "slot_width": 20, **options})


_LSTM = {"controller": "lstm", "n_hidden": 100, "n_heads": 1}
_FF = {"controller": "feedforward", "n_hidden": 100, "n_heads": 1}
_LATE = {**_FF, "n_slots": 128, "slot_width": 20, "reads": "after"}
_HEADS = {**_LATE, "n_heads": 4, "memory_start": "learned"}
_NGRAMS_FF_HEADS = _recipe("ntm-ngrams-ff-heads", "ntm", "ngrams", _NGRAMS_HEADS, 1e-3, _HEADS)
_NGRAMS_FF_MIXED = _recipe("ntm-ngrams-ff-mixed", "ntm", "ngrams", _NGRAMS_MIXED, 1e-3, _LATE, min_context_bits=1)
_NGRAMS_FF_FOUR = dataclasses.replace(
    _recipe("ntm-ngrams-ff-four", "ntm", "ngrams", _NGRAMS_FOUR, 6e-4, _LATE, min_context_bits=4),
    starts_from=_NGRAMS_FF_MIXED,
)
_NGRAMS_FF = dataclasses.replace(
    _recipe("ntm-ngrams-ff", "ntm", "ngrams", _NGRAMS_LAST, 6e-4, _LATE, min_context_bits=4),
    starts_from=_NGRAMS_FF_FOUR,
)
_RECALL_LSTM = _Task("associative recall", 6000, 250, (*_RECALL, _items(15), _items(20)), rule=_ADAM)
_RECALL_FF = _RECALL_LSTM._replace(rows=(*_RECALL, _items(15, 1.0, 1.0), _items(20)))
_BASELINE = _COPY._replace(rows=(Row("length 1 to 20", None, None, "", _WITHIN), *_until(0.1), *_lengths(20, 120)))


RECIPES = (
    _ntm("ntm-copy", "copy", _COPY, 1e-4, **_LSTM),
    _ntm("ntm-copy-ff", "copy", _COPY_FF, 1e-4, **_FF),
    _ntm("ntm-copy-learned", "copy", _START, 1e-4, **_LSTM, memory_start="learned"),
    _ntm("ntm-copy-random", "copy", _START, 1e-4, **_LSTM, memory_start="random"),
    _recipe("lstm-copy", "lstm", "copy", _BASELINE, 3e-5, {"n_hidden": 256, "n_layers": 3}),
    _ntm("ntm-repeat-copy", "repeat_copy", _REPEAT, 1e-4, **_LSTM),
    _ntm("ntm-repeat-copy-ff", "repeat_copy", _REPEAT, 1e-4, **_FF),
    _ntm("ntm-associative-recall", "associative_recall", _RECALL_LSTM, 1e-3, **_LSTM),
    _ntm(
        "ntm-associative-recall-ff",
        "associative_recall",
        _RECALL_FF,
        1e-3,
        controller="feedforward",
        n_hidden=256,
        n_heads=4,
    ),
    # In validation 22,400 sequences came to 142 bits at this rate, and as many at a third of it to 182. A cosine from
    # it to zero along 8,000 steps stood at 160 after 5,000.
    _ntm("ntm-ngrams", "ngrams", _NGRAMS, 3e-3, **_LSTM),
    _NGRAMS_FF_MIXED,
    _NGRAMS_FF_FOUR,
    _NGRAMS_FF,
    _NGRAMS_FF_HEADS,
    dataclasses.replace(
        _recipe("ntm-ngrams-ff-heads-again", "ntm", "ngrams", _NGRAMS_AGAIN, 8e-4, _HEADS), starts_from=_NGRAMS_FF_HEADS
    ),
    _ntm(
        "ntm-priority-sort", "priority_sort", _SORT_LSTM, 1e-4, controller="lstm", n_hidden=100, n_layers=2, n_heads=5
    ),
    _ntm(
        *("ntm-priority-sort-ff", "priority_sort", _SORT_FF, 8e-4),
        controller="feedforward",
        n_hidden=512,
        n_heads=8,
        reads="after",
    ),
)
