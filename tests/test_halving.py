"""ASHA's rule against hand-made rungs and a plain recomputation."""

from __future__ import annotations

import math
import random

import pytest

from csg_ray.scale.halving import SuccessiveHalving


def test_rungs_are_powers_below_the_budget() -> None:
    assert list(SuccessiveHalving(9, 1, 3, "max").rungs) == [1, 3]
    assert list(SuccessiveHalving(10, 2, 2, "max").rungs) == [2, 4, 8]
    assert list(SuccessiveHalving(2, 2, 2, "max").rungs) == []


def test_nobody_is_cut_against_fewer_than_reduction_factor_peers() -> None:
    rule = SuccessiveHalving(9, 1, 3, "max")
    descending = [rule.stops(str(i), 1, 1.0 - i / 10) for i in range(4)]
    assert descending == [False, False, False, True]


def test_best_third_rounded_up_goes_on() -> None:
    rule = SuccessiveHalving(9, 1, 3, "max")
    for name, value in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        assert not rule.stops(name, 1, value)
    assert not rule.stops("d", 1, 0.6)  # second of four, two go on
    assert rule.stops("e", 1, 0.55)  # third of five, two go on


def test_min_mode_turns_the_order_round() -> None:
    rule = SuccessiveHalving(9, 1, 3, "min")
    for name, value in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        rule.stops(name, 1, value)
    assert not rule.stops("d", 1, 0.05)
    assert rule.stops("e", 1, 0.95)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_is_worst_even_among_its_like(value: float) -> None:
    rule = SuccessiveHalving(9, 1, 3, "max")
    for name in "abc":
        assert not rule.stops(name, 1, math.nan)
    assert rule.stops("d", 1, value)
    assert not rule.stops("e", 1, 0.0)


def test_a_trial_is_counted_once_per_rung() -> None:
    rule = SuccessiveHalving(9, 1, 3, "max")
    for _ in range(5):
        rule.stops("a", 1, 0.5)
    assert rule.rungs[1] == {"a": 0.5}


def test_a_lost_report_is_made_up_by_the_next_one() -> None:
    rule = SuccessiveHalving(9, 1, 3, "max")
    for name in "abc":
        rule.stops(name, 1, 0.9)
    assert rule.stops("d", 2, 0.1)


def test_epochs_before_the_grace_period_decide_nothing() -> None:
    rule = SuccessiveHalving(27, 3, 3, "max")
    assert not any(rule.stops(str(i), epoch, 0.0) for i in range(9) for epoch in (1, 2))
    assert rule.rungs == {3: {}, 9: {}}


def test_replaying_the_reports_restores_every_later_decision() -> None:
    draws = random.Random(0)
    reports = [(str(i % 40), 1 + i // 40, draws.random()) for i in range(200)]
    rule = SuccessiveHalving(9, 1, 3, "max")
    for report in reports[:120]:
        rule.stops(*report)
    replayed = SuccessiveHalving(9, 1, 3, "max")
    for report in reports[:120]:
        replayed.stops(*report)
    assert [rule.stops(*r) for r in reports[120:]] == [replayed.stops(*r) for r in reports[120:]]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_against_counting_the_better_peers(mode: str) -> None:
    draws = random.Random(1)
    rule = SuccessiveHalving(9, 1, 4, mode)
    seen: list[float] = []
    for i in range(1000):
        value = draws.choice([draws.random(), draws.randrange(9) / 8, math.nan, math.inf])
        score = -math.inf if not math.isfinite(value) else value if mode == "max" else -value
        better = sum(peer > score for peer in seen)
        keep = -(-(len(seen) + 1) // 4)
        expected = len(seen) >= 4 and (better >= keep or score == -math.inf)
        assert rule.stops(str(i), 1, value) is expected
        seen.append(score)
