"""PostgreSQL's write-ahead log: how fast it grows, and those who are behind it.

Standbys, replication slots and the archive; all but the first can be read without a privilege.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.health import OFTEN, SELDOM
from backfill.dialects.postgresql_rights import SEES_ALL, Monitored
from backfill.speed.readings import Budget, Gradual, Reading, Unavailable, Unreadable, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill.dialects.health import Replica
    from backfill.settings import Settings
    from backfill.speed.readings import Reader

_SLOT_SHARE = 0.8
"""Of `max_slot_wal_keep_size`, beyond which the server gives a slot up."""
_REMEMBERED = 2400
"""Readings: ten minutes."""
_REPLAY_SECONDS = 5.0
_KNOWN_SECONDS = 1.0
"""So long a replica must have been behind before its speed is known."""
_SEGMENT = re.compile(r"[0-9A-F]{24}$")


class WalRate(Gradual):
    """WAL that the whole server writes."""

    name = "WAL rate"

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._last: tuple[float, float] | None = None

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            written = float(connection.execute(_WRITTEN).scalar_one())
        now, last = self._clock(), self._last
        self._last = now, written
        if last is None or now <= last[0]:
            return None
        rate = (written - last[1]) / (now - last[0])
        return Reading.of(self.name, rate, "B/s", stop=self._limit)


# -- those who follow ----------------------------------------------------------------------


class WalClock:
    """Which WAL was written when: says of a position in the WAL how long ago it was the newest.

    So a replica's lag is known whatever it tells itself: `replay_lag` stays as it was while
    replay stands still, and a timestamp of the last transaction grows old on an idle primary.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def note(self, now: float, written: float) -> None:
        """Note how much was written until now."""
        if self._points and written < self._points[-1][1]:
            self._points.clear()  # another server
        self._points.append((now, written))

    def age(self, position: float) -> float | None:
        """Return seconds since this was the newest position; None: from before the first note."""
        newest, written = self._points[-1]
        if position >= written:
            return 0.0
        if position < self._points[0][1]:
            return None
        for (began, before), (ended, after) in pairwise(self._points):
            if before <= position < after:
                share = (position - before) / (after - before)
                return newest - (began + share * (ended - began))
        return 0.0

    @property
    def span(self) -> float:
        """Seconds from the first note that is remembered to the last."""
        return self._points[-1][0] - self._points[0][0]


class Replay:
    """How fast one replica replays, by the last seconds in which it had something to replay."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque()
        """Of each reading that found it behind before: the moment, the seconds and the bytes."""
        self._last: tuple[float, float, float] | None = None

    def note(self, now: float, written: float, replayed: float) -> None:
        """Note how much was written, and replayed, until now."""
        last, self._last = self._last, (now, written, replayed)
        if last is not None and replayed < last[2]:
            self._steps.clear()  # another server
        elif last is not None and last[2] < last[1]:
            self._steps.append((now, now - last[0], replayed - last[2]))
        while self._steps and now - self._steps[0][0] >= _REPLAY_SECONDS:
            self._steps.popleft()
        self._more = max(0.0, written - last[1]) if last is not None else 0.0

    @property
    def seconds(self) -> float:
        """Return how long it will take to replay what is written when it is read next; 0 while
        its speed is not known."""
        if self._last is None:
            return 0.0
        _, written, replayed = self._last
        seconds = sum(step[1] for step in self._steps)
        if seconds < _KNOWN_SECONDS or written <= replayed:
            return 0.0
        rate = sum(step[2] for step in self._steps) / seconds
        return (written + self._more - replayed) / max(rate, 1.0)


class _Following(Budget):
    """How far those are behind who replay our WAL, by time and by bytes.

    What a replica has yet to replay is its lag to come: known only when it has come, the limit
    would be passed by all that was written meanwhile. While there is anybody to follow it is read
    often, and work begins low until their speed is known.
    """

    name = "replica lag"

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.max_replica_lag
        self._bytes = settings.max_retained_wal
        self._clock = clock
        self._wal = WalClock()
        self._replays: defaultdict[str, Replay] = defaultdict(Replay)

    @property
    def every(self) -> float:  # type: ignore[override]
        return OFTEN if self._replays else 1.0

    def _note(self, written: float) -> None:
        self._wal.note(self._clock(), written)
        self._written = written

    def _readings(self, who: str, row: Any) -> Iterator[Reading]:
        """What the server itself takes for the lag counts only as far as our clock goes back."""
        replayed = float(row.replayed)
        age = self._wal.age(replayed)
        if age is None:
            age = max(float(row.lag or 0), self._wal.span)
        replay = self._replays[who]
        replay.note(self._clock(), self._written, replayed)
        if self._seconds:
            lag = max(age, replay.seconds)
            reading = Reading.of(f"lag of replica {who}", lag, "s", stop=self._seconds)
            yield replace(reading, begins_low=True)
        if self._bytes:
            behind = max(0.0, self._written - replayed)
            yield Reading.of(f"WAL not replayed by {who}", behind, "B", stop=self._bytes)


class Standbys(Monitored, _Following):
    """The standbys that stream from this primary, as it sees them.

    Logical subscribers confirm when they like; what they keep is watched as retained WAL.
    """

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            rows = connection.execute(_STANDBYS).all()
        if any(row.is_hidden for row in rows):
            raise Unavailable
        self._note(float(rows[0].written))
        return worst(
            reading
            for row in rows
            if row.replayed is not None
            for reading in self._readings(row.who, row)
        )


class NamedReplicas(_Following):
    """The replicas that the settings name, asked themselves."""

    is_brief = False
    stands_alone = True

    def __init__(
        self,
        settings: Settings,
        replicas: Sequence[Replica],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, clock)
        self._replicas = replicas

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            self._note(float(connection.execute(_WRITTEN).scalar_one()))
        return worst(reading for replica in self._replicas for reading in self._ask(replica))

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()

    def _ask(self, replica: Replica) -> Iterator[Reading]:
        with replica.reading() as connection:
            row = connection.execute(_REPLAYED).one()
        if row.replayed is None:
            raise Unreadable(f"{replica.name} is no replica: it replays nothing")
        return self._readings(replica.name, row)


class RetainedWal(Budget):
    """WAL that the server keeps for the slot that is behind most."""

    name = "WAL retained for a slot"
    every = SELDOM

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            row = connection.execute(_RETAINED).first()
        if row is None:
            return None
        limit = float(self._limit)
        if row.kept_at_most > 0:
            limit = min(limit, _SLOT_SHARE * float(row.kept_at_most))
        name = f"WAL retained for slot {row.slot_name}"
        return Reading.of(name, float(row.retained), "B", stop=limit)


class ArchiveQueue(Budget):
    """WAL segments that are complete and not archived.

    From the name of the last one archived, which everybody may see; to count the files that wait
    takes a privilege.
    """

    name = "WAL segments to archive"
    every = SELDOM

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._archived: int | None = None
        self._began: int | None = None
        """The segment of our first look, at an archiver that worked: what is older and was not
        archived never will be, as while archiving was off."""

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            row = connection.execute(_ARCHIVER).one()
        if row.archive_mode == "off":
            return None
        current = int(row.written) // row.segment_size
        if _SEGMENT.match(row.last_archived_wal or ""):
            self._archived = _segment_number(row.last_archived_wal, row.segment_size)
        elif self._archived is None:
            self._archived = current - 1  # nothing was ever archived: count from now on
        if self._began is None and not row.fails:
            self._began = current
        done = max(self._archived, (self._began or 0) - 1)
        queue = max(0, current - done - 1)
        return Reading.of(self.name, queue, "", stop=self._limit)


def _segment_number(name: str, size: int) -> int:
    """Return a segment's number, counted from the first byte of WAL: a name has 8 hexadecimal
    digits each for the timeline, the 4 GiB, and the segment in these."""
    return int(name[8:16], 16) * (2**32 // size) + int(name[16:24], 16)


# -- SQL -------------------------------------------------------------------------------------

_WRITTEN = sa.text("SELECT pg_current_wal_lsn() - '0/0' AS written")
_STANDBYS = sa.text(f"""
SELECT coalesce(nullif(application_name, ''), host(client_addr), 'standby') AS who,
  pg_current_wal_lsn() - '0/0' AS written,
  replay_lsn - '0/0' AS replayed,
  extract(epoch FROM replay_lag) AS lag,
  walsenders.pid IS NOT NULL AND NOT {SEES_ALL} AS is_hidden
FROM (SELECT 1) AS primary_server
LEFT JOIN pg_stat_replication AS walsenders ON NOT EXISTS (
  SELECT FROM pg_replication_slots
  WHERE active_pid = walsenders.pid AND slot_type = 'logical')""")
_REPLAYED = sa.text("""
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0' END AS replayed,
  extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) AS lag""")
_RETAINED = sa.text("""
SELECT slot_name, pg_current_wal_lsn() - restart_lsn AS retained,
  coalesce((SELECT setting::bigint * 1024 * 1024 FROM pg_settings
    WHERE name = 'max_slot_wal_keep_size'), -1) AS kept_at_most
FROM pg_replication_slots AS slots
WHERE restart_lsn IS NOT NULL AND coalesce(to_jsonb(slots) ->> 'wal_status', '') <> 'lost'
  AND to_jsonb(slots) ->> 'invalidation_reason' IS NULL
ORDER BY slots.restart_lsn LIMIT 1""")
"""A slot that was given up keeps nothing, whatever position it shows. PostgreSQL 13 says so, and 17
says why."""
_ARCHIVER = sa.text("""
SELECT current_setting('archive_mode') AS archive_mode,
  pg_size_bytes(current_setting('wal_segment_size')) AS segment_size,
  pg_current_wal_lsn() - '0/0' AS written, last_archived_wal,
  last_failed_time IS NOT NULL
    AND last_failed_time > coalesce(last_archived_time, '-infinity') AS fails
FROM pg_stat_archiver""")
