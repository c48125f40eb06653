"""The latency probe: what it compares, and what it says with too little to compare."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from backfill.speed.probing import PROBE_SECONDS, Comparison, judged
from backfill.speed.steering import BUSY, FREE, LOWEST, Steering

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 0.005


def compared(busy: list[float], quiet: list[float]) -> Comparison:
    comparison = Comparison()
    for seconds in busy:
        comparison.note(0.0, seconds, is_busy=True)
    for seconds in quiet:
        comparison.note(0.0, seconds, is_busy=False)
    return comparison


def test_added_latency_is_the_difference_of_percentiles() -> None:
    busy = [0.002] * 18 + [0.012] * 2  # the 19th of 20 is the 95th percentile
    assert compared(busy, [0.002] * 20).added == pytest.approx(0.010)
    assert compared([0.002] * 19 + [1.0], [0.002] * 20).added == 0.0


def test_what_is_slow_in_any_case_is_not_added() -> None:
    assert compared([0.050] * 30, [0.050] * 30).added == 0.0
    assert compared([0.050] * 30, [0.080] * 30).added == 0.0


def test_reading_steers_by_the_limit_and_never_stops() -> None:
    reading = judged(compared([0.012] * 20, [0.002] * 20), LIMIT)
    assert reading.load == pytest.approx(2.0)
    assert not reading.stops
    assert reading.text == "added latency (p95) 10 ms (at most 5 ms)"


def test_too_few_of_both_says_so_and_holds() -> None:
    reading = judged(compared([0.1] * 19, [0.1] * 19), LIMIT)
    assert (reading.load, reading.holds) == (0.0, True)
    assert "not known" in reading.text


def test_without_rest_it_asks_for_some() -> None:
    reading = judged(compared([0.1] * 20, []), LIMIT)
    assert (reading.load > BUSY, reading.stops, reading.holds) == (True, False, False)
    assert "too few probes while we rest" in reading.text


def test_without_work_it_lets_us_grow() -> None:
    reading = judged(compared([], [0.1] * 20), LIMIT)
    assert (reading.load < FREE, reading.holds) == (True, False)


def test_old_samples_are_forgotten() -> None:
    comparison = compared([9.0] * 20, [0.001] * 20)
    comparison.note(21.0, 0.001, is_busy=False)
    assert not comparison.knows_busy
    assert not comparison.knows_quiet


# -- with the pace, against a simulated database ---------------------------------------------


def simulated(latency: Callable[[bool, float], float], seconds: int) -> list[float]:
    """The share of each second, steered by a probe of this latency (busy or not, share)."""
    dice, comparison, steering = random.Random(7), Comparison(), Steering()
    shares = []
    for tick in range(seconds):
        for step in range(round(1 / PROBE_SECONDS)):
            is_busy = dice.random() < steering.share
            took = latency(is_busy, steering.share) * dice.uniform(0.8, 1.2)
            comparison.note(tick + step * PROBE_SECONDS, took, is_busy=is_busy)
        reading = judged(comparison, LIMIT)
        steering = steering.after(reading.load, may_grow=not reading.holds)
        shares.append(steering.share)
    return shares


def test_harmless_work_keeps_nearly_all_of_the_time() -> None:
    shares = simulated(lambda busy, share: 0.002, 300)
    assert sum(shares[60:]) / 240 > 0.6


def test_harmful_work_gives_way_but_goes_on() -> None:
    shares = simulated(lambda busy, share: 0.042 if busy else 0.002, 300)
    assert sum(shares[60:]) / 240 < 0.25
    assert min(shares) >= LOWEST


def test_latency_that_is_not_ours_changes_nothing() -> None:
    calm = simulated(lambda busy, share: 0.002, 300)
    slow = simulated(lambda busy, share: 0.004, 300)
    assert sum(slow[60:]) == pytest.approx(sum(calm[60:]), rel=0.2)


def test_harm_that_grows_with_the_share_settles_below_the_limit() -> None:
    added = []

    def latency(busy: bool, share: float) -> float:
        added.append(0.010 * share)
        return 0.002 + (0.010 * share if busy else 0)

    simulated(latency, 600)
    later = added[len(added) // 2 :]
    assert sum(later) / len(later) < LIMIT
