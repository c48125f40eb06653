"""What our writing adds to the latency of others, measured by a probe: something small that the
application might do, done again and again while we write and while we rest.

Comparing the two at nearly the same time leaves out what is not of our making: the set-point is
*added* latency, whatever the hour (performance.md's "interleaved A/B"; no other tool has it).
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects import ErrorKind
from backfill.speed.readings import Gradual, Reading, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.dialects import Dialect
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.speed.readings import Reader, Signal
    from backfill.speed.throttles import Activity
    from backfill.store import Store
    from backfill.targets import Target

    Act = Callable[[sa.Connection], object]

PROBE_SECONDS = 0.1
"""From one probe to the next: ten small transactions a second are no load."""
_REMEMBERED_SECONDS = 20.0
_NEEDED = 20
"""The least number of samples that have a 95th percentile."""
_PERCENTILE = 0.95
_ASKS_FOR_REST = 0.75
"""A load that makes pace rest a little (above `steering.BUSY`)."""
_CUT_SHORT = (ErrorKind.LOCKED, ErrorKind.TOO_SLOW)


class Comparison:
    """Latencies of the last seconds, of probes while we wrote and of probes while we did not."""

    def __init__(self) -> None:
        self._busy: deque[tuple[float, float]] = deque()
        self._quiet: deque[tuple[float, float]] = deque()

    def note(self, now: float, seconds: float, *, is_busy: bool) -> None:
        """Add a probe that ended now."""
        (self._busy if is_busy else self._quiet).append((now, seconds))
        for samples in (self._busy, self._quiet):
            while samples and now - samples[0][0] > _REMEMBERED_SECONDS:
                samples.popleft()

    @property
    def knows_busy(self) -> bool:
        return len(self._busy) >= _NEEDED

    @property
    def knows_quiet(self) -> bool:
        return len(self._quiet) >= _NEEDED

    @property
    def added(self) -> float:
        """Seconds that our writing adds at the 95th percentile, once both are known."""
        return max(0.0, _percentile(self._busy) - _percentile(self._quiet))


def _percentile(samples: deque[tuple[float, float]]) -> float:
    """Return the nearest rank: a latency that occurred."""
    latencies = sorted(seconds for _, seconds in samples)
    return latencies[math.ceil(_PERCENTILE * len(latencies)) - 1]


def judged(comparison: Comparison, limit: float) -> Reading:
    """Say what a comparison means for the pace; it never stops us, since it would then not see
    how things get better."""
    name = "added latency (p95)"
    if comparison.knows_busy and comparison.knows_quiet:
        added = comparison.added
        text = f"{name} {_shown(added)} (at most {_shown(limit)})"
        return Reading(added, 0.0, limit, text, is_soft=True)
    if comparison.knows_busy:
        text = f"{name} is not known: too few probes while we rest, so we rest a little"
        return Reading(_ASKS_FOR_REST, 0.0, 1.0, text, is_soft=True)
    # While we hardly write there is little to fear; with more to compare with, it may grow.
    text = f"{name} is not known: too few probes while we write"
    return Reading(0.0, 0.0, 1.0, text, holds=not comparison.knows_quiet, is_soft=True)


def _shown(seconds: float) -> str:
    return shown(seconds * 1000, "ms")


def probe_of(
    target: Target, store: Store, run: Run, settings: Settings, activity: Activity
) -> list[Signal]:
    """Return the probe that the settings ask for, if they do."""
    limit, dialect = settings.max_added_latency, target.dialect
    if not limit:
        return []
    if settings.probe_query is None:
        return [Probe(limit, OwnWork(target, store, run), activity, dialect, writes=True)]
    query = UserQuery(settings.probe_query)
    return [Probe(limit, query, activity, dialect, writes=False)]


class OwnWork:
    """A point read of the table, and a tiny write of our own to the run's row."""

    def __init__(self, target: Target, store: Store, run: Run) -> None:
        self._key = target.key
        self._store = store
        self._run = run
        self._read: sa.Select[Any] | None = None

    def __call__(self, connection: sa.Connection) -> None:
        if self._read is None:
            self._read = self._point(connection)
        connection.execute(self._read).all()
        self._store.touch(connection, self._run)

    def _point(self, connection: sa.Connection) -> sa.Select[Any]:
        """Return the query for one row, the one that comes first now."""
        every = sa.select(*self._key.selected)
        first = connection.execute(every.order_by(*self._key.columns).limit(1)).first()
        values = self._key.constants(tuple(first) if first is not None else ())
        pairs = zip(self._key.columns, values, strict=False)
        return every.where(*(column == value for column, value in pairs)).limit(1)


class UserQuery:
    """What the user says that matters."""

    def __init__(self, sql: str) -> None:
        self._sql = sql

    def __call__(self, connection: sa.Connection) -> None:
        plain = connection.execution_options(no_parameters=True)  # a % is just that
        found = plain.exec_driver_sql(self._sql)
        if found.returns_rows:
            found.all()


class Probe(Gradual):
    """Probes at a small fixed rate, and compares."""

    name = "added latency"
    every = PROBE_SECONDS
    is_brief = False

    def __init__(
        self,
        limit: float,
        act: Act,
        activity: Activity,
        dialect: Dialect,
        *,
        writes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._act = act
        self._activity = activity
        self._dialect = dialect
        self._writes = writes
        self._clock = clock
        self._comparison = Comparison()
        self._is_warm = False

    def read(self, reader: Reader) -> Reading:
        if not self._is_warm:
            with reader() as connection:  # to connect, and to prepare, is not what it measures
                connection.execute(sa.select(sa.literal(1)))
            self._is_warm = True
        before = self._activity.mark()
        began = self._clock()
        try:
            with reader(write=self._writes) as connection:
                self._act(connection)
        except Exception as error:
            if self._dialect.error_kind(error) not in _CUT_SHORT:
                raise
        ended = self._clock()  # one that was cut short has waited so long at least
        is_busy = before[0] > 0 or self._activity.mark() != before
        self._comparison.note(ended, ended - began, is_busy=is_busy)
        return judged(self._comparison, self._limit)
