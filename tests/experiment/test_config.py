"""Settings: what is written is read again, and what does not fit is refused by name."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.core import UserError
from kshot.engine.train import TrainConfig
from kshot.experiment.config import (
    BackboneConfig,
    DeviceConfig,
    EvalConfig,
    RunConfig,
    TaskConfig,
    differences,
    load_config,
    save_config,
    typed,
)


@given(
    n_way=st.integers(2, 10**6),
    outer_lr=st.floats(1e-12, 1e12),
    hidden=st.lists(st.integers(1, 10**6), max_size=4),
    device=st.text(max_size=8),
    flag=st.booleans(),
)
def test_what_is_written_is_read_again(tmp_path_factory, n_way, outer_lr, hidden, device, flag):
    config = RunConfig(
        "maml",
        "omniglot",
        task=TaskConfig(n_way=n_way),
        evaluation=EvalConfig(eval_n_way=n_way),
        network=BackboneConfig(hidden=tuple(hidden)),
        train=TrainConfig(outer_lr=outer_lr, deterministic=flag),
        where=DeviceConfig(device=device),
        options={"inner_lr": outer_lr, "first_order": flag},
        data_options={"n_way_range": (2, n_way), "scheme": "lake"},
    )
    path = tmp_path_factory.mktemp("config") / "config.toml"
    save_config(path, config)
    again = load_config(path)
    assert differences(config, again) == []
    assert again.network == config.network
    assert again.train == config.train


def test_differences_are_named_with_both_values():
    one = RunConfig("maml", "omniglot", options={"inner_lr": 0.4})
    other = RunConfig("maml", "omniglot", task=TaskConfig(n_way=20), options={"first_order": True})
    assert differences(one, other) == [
        "options.first_order: None / True",
        "options.inner_lr: 0.4 / None",
        "task.n_way: 5 / 20",
    ]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        ([1, 2], tuple[int, int], (1, 2)),
        ((1, 2), tuple[int, int] | None, (1, 2)),
        ([], tuple[int, ...], ()),
        (None, int | None, None),
        ("lake", Literal["vinyals", "lake"], "lake"),
        (105, Literal[28, 105], 105),
        ({"a": 1}, dict[str, int], {"a": 1}),
        (["x"], Any, ["x"]),
    ],
)
def test_typed_values(value, hint, expected):
    got = typed(value, hint, "here")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ("3", int, "here: expected int, got str '3'"),
        (True, int, "expected int, got bool True"),
        (1, bool, "expected bool, got int 1"),
        (3.5, int, "expected int, got float 3.5"),
        ([1], tuple[int, int], "expected 2 values, got 1"),
        (["a"], tuple[int, ...], "expected int, got str 'a'"),
        (3, tuple[int, ...], "expected list, got int 3"),
        ("moon", Literal["sun"], "expected one of sun, got 'moon'"),
        (True, Literal[1], "expected one of 1, got True"),
        ("3", int | None, "expected int, got str '3'"),
        (None, int, "expected int, got NoneType None"),
    ],
)
def test_values_of_a_wrong_type(value, hint, said):
    with pytest.raises(UserError) as error:
        typed(value, hint, "here")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaskConfig(n_way=1),
        lambda: TaskConfig(n_shot=0),
        lambda: TaskConfig(n_tasks=0),
        lambda: EvalConfig(val_episodes=1),
        lambda: EvalConfig(eval_episodes=1),
        lambda: EvalConfig(eval_n_way=-1),
    ],
)
def test_numbers_that_make_no_sense(make):
    with pytest.raises(UserError, match="expected"):
        make()
