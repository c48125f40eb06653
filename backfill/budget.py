"""What the workers of one command share: what they may still do, and whose turn it is to write."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext

_TURN = 0.5
"""Seconds of writing after which we pause while others write, too."""
_TURN_ALONE = 2.0
"""The same while nobody else does: less than the 5 s for which most clients wait for a lock."""
_GAP = 0.11
_POLL = 0.02
_COMPANY = 30.0
"""Seconds for which somebody who wrote is expected to write again."""


class Stopped(Exception):
    """Somebody asked us to stop; a chunk that was not committed is simply left."""


class Turn:
    """Lets our workers write one at a time, and others in between.

    SQLite's lock has no queue: who waits for it looks every 100 ms at last
    (sqliteDefaultBusyCallback in its main.c), and would never find the moment between our COMMIT
    and our next BEGIN. So we pause for longer than that: now and then while nobody else seems to
    write, and often once somebody does.
    """

    def __init__(self, sleep: Callable[[float], object], clock: Callable[[], float]) -> None:
        self._sleep = sleep
        self._clock = clock
        self._lock = Lock()
        self._held = 0.0
        self._company_until = 0.0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn for a transaction; give way when we have written for a while."""
        with self._lock:
            started = self._clock()
            try:
                yield
            finally:
                now = self._clock()
                self._held += now - started
                if self._held > (_TURN if now < self._company_until else _TURN_ALONE):
                    self._held = 0.0
                    self._sleep(_GAP)

    def note_company(self) -> None:
        """Somebody else has written."""
        self._company_until = self._clock() + _COMPANY


class Number(Protocol):
    """A whole number that several workers change."""

    value: int


@dataclass(slots=True)
class _Local:
    value: int


class SharedFlag:
    """An Event for several processes, without the lock that one which is killed would keep."""

    def __init__(self, context: BaseContext) -> None:
        self._value = context.Value("b", 0, lock=False)

    def is_set(self) -> bool:
        return bool(self._value.value)

    def set(self) -> None:
        self._value.value = 1

    def wait(self, seconds: float) -> bool:
        """Sleep for so long, or until it is set; whether it is."""
        deadline = time.monotonic() + seconds
        while not self.is_set() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _POLL))
        return self.is_set()


@dataclass(slots=True)
class Shared:
    """What is left of a budget, for the threads of one process, or for several processes."""

    lock: Any
    stop: Any
    is_broken: Number
    failures: Number
    rows: Number
    has_limit: bool
    deadline: float | None


class Budget:
    """What one command may still do: rows to change (`--limit`) and seconds, for all workers."""

    def __init__(
        self,
        rows: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        shared: Shared | None = None,
    ) -> None:
        deadline = None if seconds is None else clock() + seconds
        numbers = (_Local(0), _Local(0), _Local(rows or 0))
        self._left = shared or Shared(Lock(), Flag(), *numbers, rows is not None, deadline)
        self._clock = clock
        self._told = False
        self.turn = Turn(self.stop.wait, clock)
        self.reason = ""

    @property
    def stop(self) -> Flag:
        """Set when somebody asked for it, or time is up."""
        stop: Flag = self._left.stop
        return stop

    @property
    def failures(self) -> int:
        """Rows in quarantine, of all workers."""
        return self._left.failures.value

    def begin(self, failures: int) -> None:
        """Begin a run that has so many rows in quarantine already."""
        with self._left.lock:
            self._left.failures.value = failures
            self._left.is_broken.value = 0
            self._told = False

    def break_off(self) -> None:
        """Let the other workers of this run stop: one of them met an error."""
        with self._left.lock:
            self._left.is_broken.value = 1

    def ask_to_stop(self, reason: str) -> None:
        """Let every worker finish its chunk and stop."""
        self.reason = self.reason or reason
        self.stop.set()

    def raise_if_over(self) -> None:
        """Raise Stopped when it is time, or when somebody asked for it."""
        left = self._left
        if left.deadline is not None and self._clock() >= left.deadline:
            self.ask_to_stop("--max-seconds was reached")
        if left.is_broken.value or self.stop.is_set():
            raise Stopped(self.reason)

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until somebody asks us to stop, or time is up: raises Stopped."""
        deadline = self._left.deadline
        left = seconds if deadline is None else max(0.0, deadline - self._clock())
        self.stop.wait(min(seconds, left))
        self.raise_if_over()

    def take(self, rows: int) -> int:
        """Reserve rows for a chunk. Raises Stopped when it is time, or no row is left."""
        self.raise_if_over()
        if not self._left.has_limit:
            return rows
        with self._left.lock:
            granted = min(rows, self._left.rows.value)
            self._left.rows.value -= max(granted, 0)
        if granted <= 0:  # others may yet give some back, so only this worker stops
            self.reason = self.reason or "--limit was reached"
            raise Stopped(self.reason)
        return granted

    def give_back(self, rows: int) -> None:
        """Return what a chunk had reserved and did not use."""
        if self._left.has_limit:
            with self._left.lock:
                self._left.rows.value += rows

    def count_failures(self, rows: int) -> None:
        """Add rows that were quarantined."""
        if rows:
            with self._left.lock:
                self._left.failures.value += rows

    def tell_once(self, tell: Callable[[], None]) -> None:
        """Call `tell`, unless something was told before."""
        told, self._told = self._told, True
        if not told:
            tell()

    def share(self, context: BaseContext) -> Shared:
        """Return the same for other processes; `take_over` what they left of it."""
        left = self._left
        is_broken, failures, rows = (
            context.Value("q", number.value, lock=False)
            for number in (left.is_broken, left.failures, left.rows)
        )
        lock, stop = context.Lock(), SharedFlag(context)
        return Shared(lock, stop, is_broken, failures, rows, left.has_limit, left.deadline)

    def take_over(self, shared: Shared) -> None:
        """Go on with what other processes left."""
        self._left.failures.value = shared.failures.value
        self._left.rows.value = shared.rows.value
