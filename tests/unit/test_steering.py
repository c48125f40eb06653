"""Steering, on simulated databases whose load is partly of our own making."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.speed.steering import AGAIN, BUSY, FREE, LOWEST, Steering

if TYPE_CHECKING:
    from collections.abc import Callable

SMOOTHING = 0.5
"""The throttle's: a load is an average of about three readings."""


@dataclass
class Simulated:
    """A load of `gain` at a whole share, and what others cause, above a warning level.

    It is seen `late` ticks after it was caused, and smoothed.
    """

    gain: float
    others: Callable[[int], float] = lambda tick: 0.0
    warn: float = 0.0
    late: int = 0
    noise: float = 0.0
    seed: int = 0
    shares: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def run(self, ticks: int, share: float = 1.0) -> Simulated:
        dice, steering = random.Random(self.seed), Steering(share)
        caused = deque([share] * (self.late + 1), maxlen=self.late + 1)
        smooth: float | None = None
        for tick in range(ticks):
            value = self.others(tick) + self.gain * caused[0] * dice.lognormvariate(0, self.noise)
            load = max(0.0, value - self.warn) / (1 - self.warn)
            smooth = load if smooth is None else smooth + SMOOTHING * (load - smooth)
            steering = steering.after_stop() if value >= 1 else steering.after(smooth)
            caused.append(steering.share)
            self.shares.append(steering.share)
            self.loads.append(load)
        return self


def test_nothing_to_fear_is_a_whole_share() -> None:
    assert Simulated(gain=0.2).run(50, share=LOWEST).shares[-1] == 1.0


@pytest.mark.parametrize("late", [0, 1, 3])
@pytest.mark.parametrize("warn", [0.0, 0.5])
@pytest.mark.parametrize("gain", [0.6, 0.8, 0.95, 1.5, 3.0])
def test_settles_without_a_sawtooth_on_what_it_causes(gain: float, warn: float, late: int) -> None:
    simulated = Simulated(gain, warn=warn, late=late).run(200)
    shares = simulated.shares[100:]
    assert max(shares) - min(shares) < 0.02
    assert simulated.loads[-1] <= BUSY
    assert simulated.loads[-1] >= FREE - 0.03 or shares[-1] == 1.0


@pytest.mark.parametrize("gain", [1.5, 3.0, 8.0])
def test_steep_and_late_loads_rarely_reach_their_stop(gain: float) -> None:
    """What the worst of them can do: a warning just below the stop, seen three ticks late."""
    simulated = Simulated(gain, warn=0.8, late=3).run(1_000)
    stops = sum(before < 1 <= after for before, after in pairwise(simulated.loads[200:]))
    assert stops <= 800 / 30


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gain", [0.6, 0.9, 1.5])
def test_noise_does_not_swing_it(gain: float, seed: int) -> None:
    shares = Simulated(gain, noise=0.1, seed=seed).run(600).shares[100:]
    steps = [abs(after - before) for before, after in pairwise(shares)]
    assert sum(step > 0.1 for step in steps) <= 3
    assert max(shares) < 2.5 * min(shares)


def test_gives_way_within_a_few_ticks_and_comes_back() -> None:
    busy = range(50, 100)
    simulated = Simulated(0.1, others=lambda tick: 0.65 if tick in busy else 0.0).run(160)
    shares = simulated.shares
    assert shares[49] == 1.0
    assert min(shares[50:54]) < 0.8
    assert max(simulated.loads[60:100]) <= BUSY + 0.05
    assert min(shares[60:100]) < 0.7
    assert shares[140] > 0.9


def test_gives_all_but_the_last_to_others_who_need_it() -> None:
    shares = Simulated(0.1, others=lambda tick: 0.9).run(60).shares
    assert shares[6] <= 0.5
    assert shares[-1] == LOWEST


def test_begins_low_after_a_stop() -> None:
    stopped = Steering(0.8).after_stop()
    shares = [stopped.share]
    for _ in range(60):
        stopped = stopped.after(0.0)
        shares.append(stopped.share)
    assert shares[0] == AGAIN
    assert max(after - before for before, after in pairwise(shares)) <= 0.0501
    assert shares[10] < 0.5
    assert shares[-1] == 1.0


def test_a_stop_does_not_raise_a_share() -> None:
    assert Steering(LOWEST).after_stop().share == LOWEST


def test_holds_while_a_signal_is_not_known() -> None:
    assert Steering(0.5).after(0.0, may_grow=False).share == 0.5
    assert Steering(0.5).after(0.9, may_grow=False).share < 0.5


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.booleans(), st.booleans()), max_size=60))
def test_a_share_is_a_share_whatever_happens(ticks: list[tuple[float, bool, bool]]) -> None:
    steering = Steering()
    for load, stops, may_grow in ticks:
        before = steering.share
        steering = steering.after_stop() if stops else steering.after(load, may_grow=may_grow)
        assert LOWEST <= steering.share <= 1.0
        assert steering.share <= before + 0.0501
        assert load < FREE or steering.share <= before
        assert 0 < steering.size_factor <= 1


def test_rest_makes_the_share() -> None:
    assert Steering(1.0).rest(0.05, nice=0) == 0
    assert Steering(1.0).rest(0.05, nice=2) == pytest.approx(0.1)
    work, rest = 0.05, Steering(0.25).rest(0.05, nice=1)
    assert work / (work + rest) == pytest.approx(0.25 / 2)


def test_chunks_shrink_only_below_a_small_share() -> None:
    factors = [Steering(share).size_factor for share in (1.0, 0.5, 0.25, 0.125, LOWEST)]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.2])
