import time

import pytest

from kshot.bench.timing import Timing, ratio, take_turns


def test_contenders_take_turns_and_warm_up_is_not_counted():
    calls = []
    timings = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert len(timings["a"].seconds) == len(timings["b"].seconds) == 3


def test_a_slower_contender_has_a_ratio_above_one():
    timings = take_turns({"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}, rounds=3)
    median, least, greatest = ratio(timings["slow"], timings["fast"])
    assert 1 < least <= median <= greatest


def test_ratio_is_taken_round_by_round():
    # A machine that is twice as slow in the second round changes no ratio.
    assert ratio(Timing((2.0, 4.0, 2.0)), Timing((1.0, 2.0, 1.0))) == (2.0, 2.0, 2.0)


def test_median_and_spread():
    timing = Timing((3.0, 1.0, 2.0))
    assert timing.median == 2.0
    assert timing.spread == (1.0, 3.0)
    assert ratio(Timing((1.0,)), Timing((2.0,)))[0] == pytest.approx(0.5)
