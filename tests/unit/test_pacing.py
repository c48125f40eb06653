"""Pace: how long workers rest, what makes them wait, and what they hear from elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import pytest

from backfill.errors import ConfigurationError, LeaseLost
from backfill.runs import Status, Terms
from backfill.settings import Settings, resolve
from backfill.speed.pacing import Delay, Done, Pace, Rate, gist
from backfill.speed.throttles import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backfill.reporters import Event
    from backfill.runs import Run
    from backfill.speed.throttles import Throttle
    from backfill.store import Store

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
COMPANY = "others are at work: rests 1 s for each second of work"


@dataclass
class Simulated:
    """A pace on a clock that the test moves, a store and a throttle that it sets."""

    told: Mapping[str, Any] = field(default_factory=dict)
    status: Status = Status.RUNNING
    sharing: int = 1
    changed: Mapping[str, Any] = field(default_factory=dict)
    now: float = 1_000.0
    wall: datetime = NOON
    found: Verdict = field(default_factory=Verdict)
    events: list[Event] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    looks: int = 0
    company_nice: float = 1.0
    watched: list[Settings] = field(default_factory=list)
    """The settings by which signals are watched now."""
    name: str = "fill"

    def __post_init__(self) -> None:
        self.pace = Pace(
            cast("Store", self),
            cast("Run", self),
            resolve(("the test", self.told)),
            self.events.append,
            self.watch,
            company_nice=self.company_nice,
            clock=lambda: self.now,
            now=lambda: self.wall,
        ).__enter__()

    @contextmanager
    def watch(self, settings: Settings) -> Iterator[Throttle]:
        """What the signals are: here, the test itself."""
        self.watched.append(settings)
        yield cast("Throttle", self)
        self.watched.pop()

    def verdict(self) -> Verdict:
        return self.found

    def terms(self, run: object) -> Terms:
        self.looks += 1
        return Terms(self.status, self.sharing, self.changed)

    def last_note(self, run: object) -> tuple[str, str] | None:
        return self.notes[-1] if self.notes else None

    def note(self, run: object, what: str, details: str) -> None:
        self.notes.append((what, details))

    def rest(self, seconds: float = 0.05, rows: int = 500) -> float:
        """How long to rest right after a chunk of so many seconds."""
        delay = self.pace.delay(Done(self.now - seconds, self.now, rows))
        assert not delay.waits
        return delay.seconds

    def after(self, seconds: float) -> Pace:
        self.now += seconds
        self.pace.look()
        return self.pace


# -- rest ------------------------------------------------------------------------------------


def test_no_rest_unless_told() -> None:
    assert Simulated().pace.delay(None) == Delay(0.0)
    assert Simulated().rest() == 0.0


@pytest.mark.parametrize(("nice", "rest"), [(0, 0.0), (0.5, 0.025), (1, 0.05), (10, 0.5)])
def test_nice_rests_in_proportion_to_the_chunk(nice: float, rest: float) -> None:
    assert Simulated({"nice": nice}).rest(0.05) == pytest.approx(rest)


def test_what_has_passed_since_is_rest() -> None:
    simulated = Simulated({"nice": 1})
    done = Done(simulated.now - 0.05, simulated.now, 500)
    simulated.now += 0.03
    assert simulated.pace.delay(done).seconds == pytest.approx(0.02)
    simulated.now += 0.03
    assert simulated.pace.delay(done).seconds == 0.0


@pytest.mark.parametrize(("sharing", "rest"), [(1, 0.45), (2, 0.95), (4, 1.95)])
def test_a_cap_is_shared_by_the_live_leases(sharing: int, rest: float) -> None:
    simulated = Simulated({"rows_per_second": 1_000}, sharing=sharing)
    simulated.after(0)
    assert simulated.rest(0.05, rows=500) == pytest.approx(rest)


def test_in_the_first_second_a_cap_is_shared_by_all_workers_of_the_command() -> None:
    """They claim their ranges one after the other."""
    simulated = Simulated({"rows_per_second": 1_000, "workers": 2, "processes": 2})
    assert simulated.pace.size(5_000) == 250
    assert simulated.after(0.5).size(5_000) == 250
    assert simulated.after(1).size(5_000) == 1_000


def test_the_longer_of_both_rests_counts() -> None:
    simulated = Simulated({"rows_per_second": 1_000, "nice": 100})
    assert simulated.rest(0.05, rows=500) == pytest.approx(5.0)
    assert simulated.rest(0.001, rows=500) == pytest.approx(0.499)


@pytest.mark.parametrize(
    ("cap", "sharing", "size"), [(1_000, 1, 1_000), (1_000, 4, 250), (0.5, 1, 1), (10**9, 1, 5_000)]
)
def test_a_chunk_is_no_more_than_a_second_of_the_cap(cap: float, sharing: int, size: int) -> None:
    simulated = Simulated({"rows_per_second": cap}, sharing=sharing)
    assert simulated.after(0).size(5_000) == size


@pytest.mark.parametrize(
    ("told", "rest"),
    [({}, 0.05), ({"nice": 0}, 0.0), ({"nice": 3}, 0.15), ({"chunk_size": 7}, 0.05)],
)
def test_rests_for_others_at_work_unless_told_how_much(told: dict[str, float], rest: float) -> None:
    simulated = Simulated(told)
    assert not simulated.pace.has_company
    simulated.found = Verdict(has_company=True)
    assert simulated.rest(0.05) == pytest.approx(rest)
    assert simulated.pace.has_company
    simulated.found = Verdict()
    assert simulated.rest(0.05) == pytest.approx(rest if "nice" in told else 0.0)


def test_a_database_may_need_longer_rests_in_company() -> None:
    simulated = Simulated(company_nice=5, found=Verdict(has_company=True))
    assert simulated.rest(0.01) == pytest.approx(0.05)
    simulated.now += 2
    assert simulated.pace.delay(None).reason == COMPANY.replace("1 s", "5 s")


def test_company_is_told_when_it_lasts_and_taken_back_when_it_is_gone_for_long() -> None:
    simulated = Simulated(found=Verdict(has_company=True))
    for _ in range(30):
        simulated.pace.tell(simulated.pace.delay(None).reason)
        simulated.now += 0.1
    assert [text for _, text in simulated.notes] == [COMPANY]
    for second in range(240):
        simulated.found = Verdict(has_company=second // 10 % 2 > 0)
        simulated.pace.tell(simulated.pace.delay(None).reason)
        simulated.now += 1
    assert len(simulated.notes) == 1
    simulated.found = Verdict()
    for _ in range(8):
        simulated.pace.tell(simulated.pace.delay(None).reason)
        simulated.now += 10
    assert [text for _, text in simulated.notes][1:] == ["goes on at its full pace"]


def test_a_load_is_told_beside_company_and_not_the_other_way_round() -> None:
    simulated = Simulated()
    slowed = "slowed to 80%: sessions 3.1 (stops at 4)"
    for reason in (COMPANY, slowed, COMPANY, slowed, ""):
        simulated.pace.tell(reason)
    assert [text for _, text in simulated.notes] == [COMPANY, slowed]


# -- waiting ---------------------------------------------------------------------------------


def test_outside_its_window_it_waits_and_says_until_when() -> None:
    simulated = Simulated({"window": "22:00-06:00 Europe/Berlin"})
    delay = simulated.pace.delay(None)
    assert delay.waits
    assert delay.reason == "waits until 22:00 Europe/Berlin (window 22:00-06:00)"
    assert 0 < delay.seconds <= 1
    simulated.wall = NOON.replace(hour=21)
    assert simulated.pace.delay(None) == Delay(0.0)


def test_stops_while_a_signal_is_at_its_stop_level_and_begins_low_again() -> None:
    simulated = Simulated()
    assert simulated.pace.delay(None) == Delay(0.0)
    simulated.now += 1
    simulated.found = Verdict(1.2, stops=True, reason="replica lag 12.3 s (stops at 10 s)")
    delay = simulated.pace.delay(None)
    assert (delay.waits, delay.reason) == (True, "waits: replica lag 12.3 s (stops at 10 s)")
    simulated.found, simulated.now = Verdict(), simulated.now + 1
    assert simulated.rest(0.05) == pytest.approx(0.45)
    assert simulated.pace.delay(None).reason.startswith("slowed to 10%: ")


def test_what_is_not_known_yet_at_the_start_does_not_slow_us_later() -> None:
    simulated = Simulated(found=Verdict(0.0, stops=True, reason="replica lag is not known yet"))
    assert simulated.pace.delay(None).waits
    simulated.found, simulated.now = Verdict(), simulated.now + 1
    assert simulated.rest() == 0.0


def test_begins_low_where_what_comes_of_it_is_seen_late() -> None:
    simulated = Simulated(found=Verdict(begins_low=True))
    assert simulated.rest(0.05) == pytest.approx(0.45)
    reason = simulated.pace.delay(None).reason
    assert reason == "slowed to 10%: begins low, since replicas are followed"
    for _ in range(30):
        simulated.now += 1
        simulated.pace.delay(None)
    assert simulated.rest(0.05) == 0.0


def test_load_slows_it_down_a_step_a_second() -> None:
    simulated = Simulated(found=Verdict(0.9, reason="active sessions 0.9 a core (stops at 1)"))
    rests = []
    for _ in range(20):
        rests.append(simulated.rest(0.05))
        simulated.now += 0.1
    assert rests[0] > 0
    assert len(set(rests)) <= 3
    reason = simulated.pace.delay(None).reason
    assert reason.startswith("slowed to ")
    assert reason.endswith("active sessions 0.9 a core (stops at 1)")


def test_a_small_share_takes_smaller_chunks() -> None:
    simulated = Simulated(found=Verdict(5.0, reason="too much"))
    for _ in range(20):
        simulated.rest()
        simulated.now += 1
    assert simulated.pace.size(1_000) == 200


# -- telling ---------------------------------------------------------------------------------


def test_a_reason_is_told_once_and_noted_once() -> None:
    simulated = Simulated()
    for reason in ("", "", "waits: lag 1.5 s", "waits: lag 2,000 s", "waits: disk", "", ""):
        simulated.pace.tell(reason)
    texts = ["waits: lag 1.5 s", "waits: disk", "goes on at its full pace"]
    assert [(e.what, e.name, e.text) for e in simulated.events] == [
        ("throttled", "fill", text) for text in texts
    ]
    reasons = [event.numbers["reason"] for event in simulated.events]
    assert reasons == ["waits: lag 1.5 s", "waits: disk", None]
    assert simulated.notes == [("throttled", text) for text in texts]


def test_a_load_that_comes_and_goes_is_told_once() -> None:
    simulated = Simulated()
    for _ in range(30):
        simulated.pace.tell("slowed to 80%: sessions 3.1 (stops at 4)")
        simulated.now += 10
        simulated.pace.tell("")
        simulated.now += 10
    assert len(simulated.notes) == 1
    simulated.pace.tell("waits: sessions 4.2 (stops at 4)")
    simulated.now += 61
    simulated.pace.tell("")
    assert [text.split()[0] for _, text in simulated.notes] == ["slowed", "waits:", "goes"]


def test_what_another_process_has_noted_is_not_noted_again() -> None:
    simulated = Simulated(notes=[("throttled", "waits: lag 7 s")])
    simulated.pace.tell("waits: lag 8 s")
    assert [event.text for event in simulated.events] == ["waits: lag 8 s"]
    assert len(simulated.notes) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("waits: lag 1 s", "waits: lag 12.5 s", True),
        ("waits until 22:00 UTC", "waits until 1:00 UTC", True),
        ("waits: lag 1 s", "waits: disk 1 s", False),
        ("", None, True),
    ],
)
def test_other_figures_are_the_same_reason(one: str, other: str | None, same: bool) -> None:
    assert (gist(one) == gist(other)) is same


# -- what is decided elsewhere ---------------------------------------------------------------


def test_looks_once_a_second_unless_asked_to_look_again() -> None:
    simulated = Simulated()
    for _ in range(21):
        simulated.pace.look()
        simulated.now += 0.1
    assert simulated.looks == 3
    simulated.pace.look_again()
    simulated.pace.look()
    assert simulated.looks == 4


@pytest.mark.parametrize("status", [Status.PAUSED, Status.CANCELLED, Status.FAILED])
def test_a_run_that_was_stopped_elsewhere_ends_every_worker(status: Status) -> None:
    simulated = Simulated(status=status)
    for _ in range(3):
        with pytest.raises(LeaseLost):
            simulated.pace.look()


def test_set_changes_what_was_told_and_is_taken_back() -> None:
    simulated = Simulated({"nice": 1})
    simulated.changed = {"nice": 2, "window": "13:00-14:00"}
    assert simulated.after(1).settings.nice == 2
    assert simulated.pace.delay(None).waits
    simulated.changed = {"nice": 0.5}
    assert simulated.after(1).settings == Settings(nice=0.5)
    simulated.changed = {}
    assert simulated.after(1).settings == Settings(nice=1)
    assert [event.text for event in simulated.events] == [
        "from now on nice is 2.0, window is 13:00-14:00",
        "from now on nice is 0.5, window is None",
        "from now on nice is 1.0",
    ]


def test_a_change_that_this_version_does_not_know_is_not_passed_over() -> None:
    simulated = Simulated(changed={"nicer": 2})
    with pytest.raises(ConfigurationError, match="`backfill set` has an unknown setting 'nicer'"):
        simulated.pace.look()


def test_a_new_limit_of_a_signal_is_watched_at_once() -> None:
    simulated = Simulated({"max_replica_lag": 10})
    (before,) = simulated.watched
    simulated.changed = {"max_replica_lag": 60, "nice": 1}
    (after,) = simulated.after(1) and simulated.watched
    assert (before.max_replica_lag, after.max_replica_lag) == (10, 60)
    simulated.changed = {"max_replica_lag": 60, "nice": 2}
    assert simulated.after(1) and simulated.watched == [after]
    simulated.pace.__exit__()
    assert simulated.watched == []


def test_signals_that_are_not_known_yet_after_a_change_do_not_make_it_begin_low() -> None:
    simulated = Simulated()
    assert simulated.rest() == 0.0
    simulated.changed = {"max_replica_lag": 60}
    simulated.found = Verdict(0.0, stops=True, reason="replica lag is not known yet")
    assert simulated.after(1).delay(None).waits
    simulated.now += 1
    simulated.found = Verdict()
    assert simulated.rest() == 0.0


def test_rate_is_that_of_the_last_seconds_with_their_rests() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.per_second == 0
    now[0] = 0.01
    rate.count(5_000)  # the first chunk of a run with a cap: no rest yet
    for _ in range(3):
        now[0] += 1
        rate.count(20_000)
    assert 18_000 < rate.per_second < 23_000
    for _ in range(60):
        now[0] += 1
        rate.count(500)
    assert 490 < rate.per_second < 700
