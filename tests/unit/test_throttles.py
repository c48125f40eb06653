"""Throttle: the worst of all readings, its reason, and what holds when they grow old."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from backfill.speed.readings import Budget, Gradual, Reading, Unavailable, shown, worst
from backfill.speed.throttles import FREE, STALE_SECONDS, Activity, Throttle, Verdict

if TYPE_CHECKING:
    from backfill.speed.readings import Reader

LIMIT = 10.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Load(Gradual):
    name = "load"

    def read(self, reader: Reader) -> Reading | None:
        raise Unavailable


class Lag(Budget):
    name = "replica lag"

    def read(self, reader: Reader) -> Reading | None:
        raise Unavailable


def load(value: float) -> Reading:
    return Reading.of("load", value, "", stop=LIMIT, warn=0.0)


def lag(value: float) -> Reading:
    return Reading.of("replica lag", value, "s", stop=LIMIT)


def told(signal: Load | Lag, *readings: Reading | None) -> Verdict:
    throttle = Throttle([signal], clock=Clock())
    for reading in readings:
        throttle.feed(signal, reading)
    return throttle.verdict()


# -- one reading -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "meant"), [(0, 0.0), (4, 0.0), (5, 0.0), (7.5, 0.5), (10, 1.0), (20, 3.0)]
)
def test_load_goes_from_the_warning_to_the_stop_level(value: float, meant: float) -> None:
    assert Reading.of("x", value, "", stop=LIMIT).load == meant


def test_a_switch_is_free_or_stops() -> None:
    on, off = Reading(1.0, 1.0, 1.0, "on"), Reading(0.0, 1.0, 1.0, "off")
    assert (on.load, on.stops, off.load, off.stops) == (1.0, True, 0.0, False)


def test_text_has_the_value_and_its_limit() -> None:
    assert lag(12.34).text == "replica lag 12.3 s (stops at 10 s)"
    sessions = Reading.of("active sessions", 12, "", stop=8, what=" on 2 processors")
    assert sessions.text == "active sessions 12 on 2 processors (stops at 8)"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.0123, "s", "0.0123 s"),
        (3600, "s", "3,600 s"),
        (1_000_000, "", "1,000,000"),
        (42, "", "42"),
        (512, "B", "512 B"),
        (4 * 1024**3, "B", "4 GiB"),
        (1.5 * 1024**2, "B/s", "1.5 MiB/s"),
        (0.854, "%", "85%"),
    ],
)
def test_numbers_are_for_people(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_worst_is_nearest_to_its_own_limit() -> None:
    seconds, size = Reading.of("a", 3, "s", stop=10), Reading.of("b", 900, "B", stop=1000)
    assert worst([seconds, size]) is size
    assert worst([]) is None


# -- the verdict -----------------------------------------------------------------------------


def test_nothing_to_watch_is_free() -> None:
    assert Throttle().verdict() == FREE == Verdict(0.0, stops=False, reason="", may_grow=True)


def test_what_steers_gives_its_load_and_its_reason() -> None:
    assert told(Load(), load(4)) == Verdict(0.4, reason="load 4 (stops at 10)")
    assert told(Load(), load(0)) == FREE
    assert told(Load(), None) == FREE


def test_company_is_whoever_says_so_and_when_nobody_knows() -> None:
    there = Reading(0.0, 1.0, 2.0, "others at work", has_company=True)
    assert told(Load(), there) == Verdict(has_company=True)
    assert told(Load(), there, load(0)) == FREE
    throttle = Throttle([Load()], clock=Clock())
    assert throttle.verdict().has_company


def test_a_stop_level_stops_at_once_and_clears_at_once() -> None:
    calm = [load(0)] * 5
    stopped = told(Load(), *calm, load(10))
    assert (stopped.stops, stopped.reason) == (True, "load 10 (stops at 10)")
    assert not told(Load(), load(10), load(9)).stops


def test_steering_follows_an_average_of_about_three() -> None:
    loads = [told(Load(), load(0), *[load(8)] * n).load for n in range(1, 6)]
    assert loads == pytest.approx([0.4, 0.6, 0.7, 0.75, 0.775])


def test_the_first_reading_counts_in_full() -> None:
    assert told(Load(), load(8)).load == 0.8


def test_an_average_that_fades_out_is_no_reason() -> None:
    fading = told(Load(), load(8), *[load(0)] * 5)
    assert 0 < fading.load < 0.05
    assert fading.reason == ""


def test_a_budget_never_steers() -> None:
    assert told(Lag(), lag(4)) == FREE
    near = told(Lag(), lag(6))
    assert near == Verdict(0.0, reason="replica lag 6 s (stops at 10 s)", may_grow=False)
    assert told(Lag(), lag(11)).load == 0.0
    assert told(Lag(), lag(11)).stops


def test_a_reading_may_hold_whatever_its_value() -> None:
    held = Reading(0.0, 1.0, 2.0, "VACUUM is at work", holds=True)
    assert told(Load(), held) == Verdict(0.0, reason="VACUUM is at work", may_grow=False)


def test_a_soft_reading_steers_beyond_its_limit_and_does_not_stop() -> None:
    soft = Reading(20.0, 0.0, 10.0, "added latency 20 ms", is_soft=True)
    assert told(Load(), soft) == Verdict(2.0, stops=False, reason="added latency 20 ms")


def test_the_worst_of_all_is_told() -> None:
    steering, budget = Load(), Lag()
    throttle = Throttle([steering, budget], clock=Clock())
    throttle.feed(steering, load(3))
    throttle.feed(budget, lag(7))
    assert throttle.verdict() == Verdict(0.3, reason="load 3 (stops at 10)", may_grow=False)
    throttle.feed(budget, lag(17))
    verdict = throttle.verdict()
    assert (verdict.load, verdict.stops) == (0.3, True)
    assert verdict.reason == "replica lag 17 s (stops at 10 s)"


def test_what_cannot_be_had_is_forgotten() -> None:
    signal = Lag()
    throttle = Throttle([signal], clock=Clock())
    assert throttle.verdict().stops
    throttle.drop(signal)
    throttle.feed(signal, lag(20))
    throttle.miss(signal, "gone")
    assert throttle.verdict() == FREE


# -- age -------------------------------------------------------------------------------------


def test_a_budget_that_was_never_read_stops() -> None:
    verdict = told(Lag())
    assert (verdict.stops, verdict.reason) == (True, "replica lag is not known yet")


def test_steering_that_was_never_read_holds() -> None:
    assert told(Load()) == Verdict(reason="load is not known yet", may_grow=False, has_company=True)


@pytest.mark.parametrize(("signal", "stops"), [(Lag(), True), (Load(), False)])
def test_an_old_reading_counts_until_it_is_stale(signal: Load | Lag, stops: bool) -> None:
    clock = Clock()
    throttle = Throttle([signal], clock=clock)
    throttle.feed(signal, lag(1))
    throttle.miss(signal, "the connection was lost (57P01)")
    clock.now += STALE_SECONDS
    assert throttle.verdict().may_grow
    clock.now += 1
    reason = f"{signal.name} is not known for 16 s: the connection was lost (57P01)"
    in_doubt = Verdict(0.0, stops, reason, may_grow=False, has_company=True)
    assert throttle.verdict() == in_doubt
    throttle.feed(signal, lag(1))
    assert throttle.verdict().may_grow


class Alone(Budget):
    name = "a web address"
    stands_alone = True

    def read(self, reader: Reader) -> Reading | None:
        raise Unavailable


def test_what_may_hang_is_stale_sooner() -> None:
    clock, signal = Clock(), Alone()
    throttle = Throttle([signal], clock=clock)
    throttle.feed(signal, lag(1))
    clock.now += 5
    assert not throttle.verdict().stops
    clock.now += 1
    assert throttle.verdict().stops


def test_what_is_stale_does_not_hide_what_stops() -> None:
    steering, budget = Load(), Lag()
    throttle = Throttle([steering, budget], clock=Clock())
    throttle.feed(budget, lag(20))
    verdict = throttle.verdict()
    assert (verdict.stops, verdict.may_grow) == (True, False)
    assert verdict.reason == "replica lag 20 s (stops at 10 s)"


# -- activity ----------------------------------------------------------------------------------


def test_activity_counts_what_is_open_and_what_was_begun() -> None:
    activity = Activity()
    with activity.writing():
        with activity.writing():
            assert activity.mark() == (2, 2)
        assert activity.mark() == (1, 2)
    assert activity.mark() == (0, 2)


def test_activity_ends_with_an_error_too() -> None:
    activity = Activity()
    with pytest.raises(ZeroDivisionError), activity.writing():
        raise ZeroDivisionError
    assert activity.mark() == (0, 1)


def test_any_thread_may_ask() -> None:
    signal = Load()
    throttle = Throttle([signal])

    def work() -> None:
        for value in range(500):
            with throttle.writing():
                throttle.feed(signal, load(value % 10))
                throttle.verdict()

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert throttle.verdict().load < 1
