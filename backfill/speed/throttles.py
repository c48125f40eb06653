"""Whether we may go on, and why not: arithmetic on the latest readings, without I/O."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from threading import Condition, Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from backfill.speed.readings import Reading, Signal

STALE_SECONDS = 15.0
"""The age after which a reading says nothing any more: block/spirit's."""
_STALE_ALONE_SECONDS = 5.0
"""The same for what may hang for long, and never has to wait for other signals."""
_SMOOTHING = 0.5
"""The weight of the newest reading, which makes an average of about three (block/spirit). Stop
levels are compared with the newest reading alone."""
_FIRST_SECONDS = 5.0
"""How long verdicts wait for the first readings: the workers get ready meanwhile."""
_FAINT = 0.05
"""A load is worth a reason above this: an average never quite gets back to nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all signals together say at this moment."""

    load: float = 0.0
    """0 free .. 1 at the stop level, of the worst signal that steers; may be above 1."""
    stops: bool = False
    """Write nothing until it clears."""
    reason: str = ""
    """For people, with value and limit: "replica lag 12.3 s (stops at 10 s)"; "" when free."""
    may_grow: bool = True
    """False: hold. A signal that steers is stale, or a budget is near its limit."""
    has_company: bool = False
    """Others are at work, or nobody knows: a signal is stale."""
    begins_low: bool = False
    """Work should begin low, and grow from there."""


FREE = Verdict()


class Activity:
    """When the workers of one process hold locks: a probe tells these times from the others."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._now = 0
        self._begun = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wrap a transaction that writes."""
        with self._lock:
            self._now += 1
            self._begun += 1
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def mark(self) -> tuple[int, int]:
        """Return how many transactions are open, and how many have been begun so far."""
        with self._lock:
            return self._now, self._begun


class Throttle:
    """Puts the readings of one command together; safe to ask from any thread.

    Without signals it always answers FREE.
    """

    def __init__(
        self,
        signals: Iterable[Signal] = (),
        activity: Activity | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = Condition()
        self._gauges = {signal: _Gauge(signal) for signal in signals}
        self._activity = activity or Activity()
        self._patient_until = -inf

    def begin(self) -> None:
        """Let verdicts wait until each signal was asked once, for some seconds."""
        self._patient_until = self._clock() + _FIRST_SECONDS

    def writing(self) -> AbstractContextManager[None]:
        """Wrap each transaction that writes: a probe compares these times with the others."""
        return self._activity.writing()

    def verdict(self) -> Verdict:
        """Return the worst of all signals, with its reason."""
        with self._lock:
            if (seconds := self._patient_until - self._clock()) > 0:
                self._lock.wait_for(self._is_complete, seconds)
            now = self._clock()
            found = [gauge.verdict(now) for gauge in self._gauges.values()]
        worst = max(found, key=_badness, default=FREE)
        return Verdict(
            load=max((one.load for one in found), default=0.0),
            stops=worst.stops,
            reason=worst.reason,
            may_grow=all(one.may_grow for one in found),
            has_company=any(one.has_company for one in found),
            begins_low=any(one.begins_low for one in found),
        )

    def feed(self, signal: Signal, reading: Reading | None) -> None:
        """Take in what a signal said just now."""
        with self._lock:
            if signal in self._gauges:
                self._gauges[signal].take(reading, self._clock())
            self._lock.notify_all()

    def miss(self, signal: Signal, problem: str) -> None:
        """Note why a signal could not be read: its last reading counts until it is stale."""
        with self._lock:
            if signal in self._gauges:
                self._gauges[signal].problem = problem
            self._lock.notify_all()

    def drop(self, signal: Signal) -> None:
        """Forget a signal that cannot be had here."""
        with self._lock:
            self._gauges.pop(signal, None)
            self._lock.notify_all()

    def _is_complete(self) -> bool:
        return all(gauge.was_asked for gauge in self._gauges.values())


@dataclass(slots=True)
class _Gauge:
    """The latest reading of one signal."""

    signal: Signal
    reading: Reading | None = None
    load: float = 0.0
    read_at: float | None = None
    problem: str = ""

    @property
    def was_asked(self) -> bool:
        return self.read_at is not None or bool(self.problem)

    def take(self, reading: Reading | None, now: float) -> None:
        load = reading.load if reading is not None and self.signal.steers else 0.0
        self.load = load if self.read_at is None else self.load + _SMOOTHING * (load - self.load)
        self.reading, self.read_at, self.problem = reading, now, ""

    def verdict(self, now: float) -> Verdict:
        holds_for = _STALE_ALONE_SECONDS if self.signal.stands_alone else STALE_SECONDS
        if self.read_at is None or now - self.read_at > holds_for:
            return self._stale(now)
        if self.reading is None:
            return Verdict(self.load)
        is_near = self.reading.value >= self.reading.warn
        holds = self.reading.holds or (is_near and not self.signal.steers)
        is_worth_telling = self.reading.stops or holds or self.load > _FAINT
        return Verdict(
            load=self.load,
            stops=self.reading.stops,
            reason=self.reading.text if is_worth_telling else "",
            may_grow=not holds,
            has_company=self.reading.has_company,
            begins_low=self.reading.begins_low,
        )

    def _stale(self, now: float) -> Verdict:
        since = "yet" if self.read_at is None else f"for {now - self.read_at:.0f} s"
        why = f": {self.problem}" if self.problem else ""
        reason = f"{self.signal.name} is not known {since}{why}"
        stops = self.signal.fails_closed
        return Verdict(0.0, stops, reason, may_grow=False, has_company=True)


def _badness(verdict: Verdict) -> tuple[bool, float, bool]:
    return verdict.stops, verdict.load, not verdict.may_grow
