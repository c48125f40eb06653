"""What PostgreSQL tells of its health, in short queries on its statistics views.

Where a view hides what other users' sessions do, `pg_monitor` opens it; what needs no privilege
is preferred. PostgreSQL 12 to 18.
"""

from __future__ import annotations

import re
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.health import SELDOM, FreeDisk, Replica, most_active, reachable
from backfill.readings import (
    Budget,
    Gradual,
    Reading,
    Unavailable,
    Unreadable,
    worst,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill.dialects.base import Dialect
    from backfill.readings import Reader, Signal
    from backfill.settings import Settings

_SLOT_SHARE = 0.8
"""Of `max_slot_wal_keep_size`, beyond which the server gives a slot up."""
_REMEMBERED = 600
_SEGMENT = re.compile(r"[0-9A-F]{24}$")


def signals(dialect: Dialect, table: str, settings: Settings) -> list[Signal]:
    """Return what is watched for a run over a table, whose name is quoted."""
    replicas = [Replica(given, dialect) for given in settings.replicas]
    found: list[tuple[float, Signal]] = [
        (settings.max_blocked_seconds, Blocked(settings.max_blocked_seconds)),
        (settings.max_active_sessions != 0, ActiveSessions(settings)),
        (settings.max_wal_rate, WalRate(settings.max_wal_rate)),
        (settings.max_archive_queue, ArchiveQueue(settings.max_archive_queue)),
        (settings.max_retained_wal, RetainedWal(settings.max_retained_wal)),
        (settings.max_snapshot_age, OldestSnapshot(settings.max_snapshot_age)),
        (settings.max_dead_rows, DeadRows(settings.max_dead_rows, table)),
        (settings.max_dead_rows, Maintenance(table)),
        (settings.min_free_disk, FreeDisk(settings.min_free_disk, DataDirectory())),
    ]
    if replicas:
        found.append((settings.max_replica_lag, NamedReplicas(settings, replicas)))
    else:
        found.append((settings.max_replica_lag or settings.max_retained_wal, Standbys(settings)))
    return [signal for is_on, signal in found if is_on]


class _Monitored:
    """Needs to see what other users' sessions do."""

    def remedy(self, reader: Reader) -> str:
        with reader() as connection:
            return f"GRANT pg_monitor TO {connection.execute(_ME).scalar()}"


# -- harm that we do ---------------------------------------------------------------------


class Blocked(Gradual):
    """Sessions that wait for a lock which a transaction of ours holds: the harm itself."""

    name = "sessions blocked by us"

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def read(self, reader: Reader) -> Reading:
        with reader() as connection:
            since = connection.dialect.server_version_info >= (14,)  # type: ignore[operator]
            row = connection.execute(_BLOCKED_SINCE if since else _BLOCKED).one()
        sessions = f"{row.sessions} session{'s' if row.sessions > 1 else ''} blocked by us for"
        return Reading.of(sessions, float(row.seconds), "s", warn=0.0, stop=self._limit)


# -- load --------------------------------------------------------------------------------


class ActiveSessions(_Monitored, Gradual):
    """Sessions of others that are at work, not waiting for a lock or for their client."""

    name = "active sessions"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limit: tuple[float, str] | None = None

    def read(self, reader: Reader) -> Reading:
        with reader() as connection:
            row = connection.execute(_ACTIVE).one()
        if row.hidden:
            raise Unavailable
        if self._limit is None:
            self._limit = most_active(self._settings, is_here=_is_here(row.pid))
        limit, where = self._limit
        return Reading.of(self.name, row.active, "", what=where, stop=limit)


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


class _Following(Budget):
    """How far those are behind who replay our WAL, by time and by bytes."""

    name = "replica lag"

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.max_replica_lag
        self._bytes = settings.max_retained_wal
        self._clock = clock
        self._wal = WalClock()

    def _note(self, written: float) -> None:
        self._wal.note(self._clock(), written)
        self._written = written

    def _readings(self, who: str, row: Any) -> Iterator[Reading]:
        """What the server itself takes for the lag counts only as far as our clock goes back."""
        replayed = float(row.replayed)
        age = self._wal.age(replayed)
        if age is None:
            age = max(float(row.lag or 0), self._wal.span)
        if self._seconds:
            yield Reading.of(f"lag of replica {who}", age, "s", stop=self._seconds)
        if self._bytes:
            behind = max(0.0, self._written - replayed)
            yield Reading.of(f"WAL not replayed by {who}", behind, "B", stop=self._bytes)


class Standbys(_Monitored, _Following):
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
        queue = max(0, current - self._archived - 1)
        return Reading.of(self.name, queue, "", stop=self._limit)


def _segment_number(name: str, size: int) -> int:
    """Return a segment's number, counted from the first byte of WAL: a name has 8 hexadecimal
    digits each for the timeline, the 4 GiB, and the segment in these."""
    return int(name[8:16], 16) * (2**32 // size) + int(name[16:24], 16)


# -- what vacuum has to do -------------------------------------------------------------------


class OldestSnapshot(_Monitored, Gradual):
    """The oldest transaction of others, behind which VACUUM cannot remove what we leave."""

    name = "oldest snapshot"
    every = SELDOM

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def read(self, reader: Reader) -> Reading | None:
        with reader() as connection:
            row = connection.execute(_OLDEST).one()
        if row.hidden:
            raise Unavailable
        if row.age is None:
            return None
        name = f"{self.name} ({row.who})"
        return Reading.of(name, float(row.age), "s", stop=self._limit)


class _OfTable:
    def __init__(self, table: str) -> None:
        self._table = table

    def _row(self, reader: Reader, statement: sa.TextClause) -> Any:
        with reader() as connection:
            return connection.execute(statement, {"table": self._table}).one()


class DeadRows(_OfTable, Gradual):
    """Dead rows of the table, or of its worst partition, as a multiple of autovacuum's threshold.

    Nothing to watch where autovacuum is off: it would never get better.
    """

    name = "dead rows"
    every = SELDOM

    def __init__(self, limit: float, table: str) -> None:
        super().__init__(table)
        self._limit = limit

    def read(self, reader: Reader) -> Reading | None:
        row = self._row(reader, _DEAD_ROWS)
        if row.ratio is None:
            return None
        what = " times autovacuum's threshold"
        return Reading.of(self.name, float(row.ratio), "", what=what, stop=self._limit)


class Maintenance(_OfTable, Gradual):
    """VACUUM, or the like, at work on the table: what it does not get through, it begins again."""

    name = "VACUUM"
    every = SELDOM

    def read(self, reader: Reader) -> Reading | None:
        if not self._row(reader, _MAINTENANCE).is_on:
            return None
        text = "VACUUM or other maintenance is at work on the table (goes no faster meanwhile)"
        return Reading(0.0, 1.0, 2.0, text, holds=True)


class DataDirectory:
    """Where the server keeps its files, if it is on this machine and lets us look."""

    def __init__(self) -> None:
        self._paths: list[Path] | None = None

    def __call__(self, reader: Reader) -> list[Path]:
        if self._paths is None:
            with reader() as connection:
                row = connection.execute(_DATA_DIRECTORY).first()
            is_known = row is not None and row.setting and _is_here(row.pid)
            directory = Path(row.setting) if is_known and row is not None else None
            self._paths = reachable([directory, directory / "pg_wal"]) if directory else []
        return self._paths


def _is_here(backend: int) -> bool:
    """Whether a server process is one of this machine: where there is no /proc, nobody knows."""
    try:
        return Path(f"/proc/{backend}/cmdline").read_bytes().startswith(b"postgres")
    except OSError:
        return False


# -- SQL -------------------------------------------------------------------------------------

_ME = sa.text("SELECT quote_ident(current_user)")
_WRITTEN = sa.text("SELECT pg_current_wal_lsn() - '0/0' AS written")
_BLOCKED_TEXT = """
SELECT count(*) AS sessions,
  coalesce(sum(extract(epoch FROM clock_timestamp() - since)), 0) AS seconds
FROM (
  SELECT waiting.pid, coalesce(min({since}), min(ours.xact_start)) AS since
  FROM pg_locks AS waiting
  JOIN pg_stat_activity AS theirs USING (pid)
  JOIN pg_stat_activity AS ours ON ours.pid = ANY (pg_blocking_pids(waiting.pid))
  WHERE NOT waiting.granted
    AND theirs.application_name NOT LIKE 'backfill: %'
    AND ours.application_name LIKE 'backfill: %' AND ours.datname = current_database()
  GROUP BY waiting.pid
) AS blocked"""
_BLOCKED_SINCE = sa.text(_BLOCKED_TEXT.format(since="waiting.waitstart"))
_BLOCKED = sa.text(_BLOCKED_TEXT.format(since="ours.xact_start"))
"""Before version 14 nothing says since when a session waits: our transaction began before."""
_SEES_ALL = "pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
_ACTIVE = sa.text(f"""
SELECT pg_backend_pid() AS pid,
  count(*) FILTER (WHERE state = 'active'
    AND coalesce(wait_event_type, '') NOT IN ('Lock', 'Client', 'Activity', 'Timeout')) AS active,
  count(*) FILTER (WHERE usename <> current_user) > 0 AND NOT {_SEES_ALL} AS hidden
FROM pg_stat_activity
WHERE datname IS NOT NULL AND pid <> pg_backend_pid()
  AND application_name NOT LIKE 'backfill: %'""")
_STANDBYS = sa.text(f"""
SELECT coalesce(nullif(application_name, ''), host(client_addr), 'standby') AS who,
  pg_current_wal_lsn() - '0/0' AS written,
  replay_lsn - '0/0' AS replayed,
  extract(epoch FROM replay_lag) AS lag,
  walsenders.pid IS NOT NULL AND NOT {_SEES_ALL} AS is_hidden
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
FROM pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY restart_lsn LIMIT 1""")
_ARCHIVER = sa.text("""
SELECT current_setting('archive_mode') AS archive_mode,
  pg_size_bytes(current_setting('wal_segment_size')) AS segment_size,
  pg_current_wal_lsn() - '0/0' AS written, last_archived_wal
FROM pg_stat_archiver""")
_OLDEST = sa.text(f"""
WITH others AS (
  SELECT pid::text AS who, xact_start AS since, usename <> current_user AS is_foreign
  FROM pg_stat_activity
  WHERE datname = current_database() AND application_name NOT LIKE 'backfill: %'
    AND coalesce(backend_type, 'client backend') = 'client backend'
    AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
  UNION ALL
  SELECT 'prepared ' || gid, prepared, false
  FROM pg_prepared_xacts WHERE database = current_database()
)
SELECT (SELECT count(*) > 0 FROM others WHERE is_foreign) AND NOT {_SEES_ALL} AS hidden,
  oldest.who, extract(epoch FROM now() - oldest.since) AS age
FROM (SELECT 1) AS here
LEFT JOIN (SELECT who, since FROM others WHERE since IS NOT NULL ORDER BY since LIMIT 1)
  AS oldest ON true""")
_TREE = """
  SELECT CAST(:table AS regclass) AS relid
  UNION SELECT relid FROM pg_partition_tree(CAST(:table AS regclass)) WHERE isleaf"""
_OPTION = """coalesce(
      (SELECT option_value FROM pg_options_to_table(reloptions) WHERE option_name = '{0}'),
      current_setting('{0}', true))::float"""
_DEAD_ROWS = sa.text(f"""
SELECT max(dead / nullif(threshold, 0)) AS ratio
FROM (
  SELECT n_dead_tup::float AS dead,
    least(
      {_OPTION.format("autovacuum_vacuum_threshold")}
      + {_OPTION.format("autovacuum_vacuum_scale_factor")} * greatest(reltuples, n_live_tup, 0),
      nullif({_OPTION.format("autovacuum_vacuum_max_threshold")}, -1)) AS threshold
  FROM ({_TREE}) AS tree
  JOIN pg_class ON pg_class.oid = relid
  JOIN pg_stat_all_tables USING (relid)
  WHERE current_setting('autovacuum')::bool AND coalesce((
    SELECT option_value FROM pg_options_to_table(reloptions)
    WHERE option_name = 'autovacuum_enabled')::bool, true)
) AS tables""")
_MAINTENANCE = sa.text(f"""
SELECT EXISTS (
  SELECT FROM pg_locks JOIN ({_TREE}) AS tree ON relid = relation
  WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND granted AND mode = 'ShareUpdateExclusiveLock') AS is_on""")
_DATA_DIRECTORY = sa.text("""
SELECT setting, pg_backend_pid() AS pid FROM pg_settings WHERE name = 'data_directory'""")
