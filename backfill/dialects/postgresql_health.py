"""What PostgreSQL tells of its health, in short queries on its statistics views.

Where a view hides what other users' sessions do, `pg_monitor` opens it; what needs no privilege
is preferred. PostgreSQL 12 to 18.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.health import (
    SELDOM,
    FreeDisk,
    OthersAtWork,
    Replica,
    gives_way_to_company,
    most_active,
    reachable,
)
from backfill.dialects.postgresql_rights import SEES_ALL, Monitored
from backfill.dialects.postgresql_sessions import is_direct
from backfill.dialects.postgresql_wal import (
    ArchiveQueue,
    NamedReplicas,
    RetainedWal,
    Standbys,
    WalRate,
)
from backfill.speed.readings import Gradual, Reading, Unavailable

_FEWEST_DEAD = 100_000.0
"""No threshold is thought to be lower: so many are dead within seconds, and autovacuum comes once a
minute (`autovacuum_naptime`)."""

if TYPE_CHECKING:
    from backfill.dialects.base import Dialect
    from backfill.settings import Settings
    from backfill.speed.readings import Reader, Signal


def signals(dialect: Dialect, table: str, settings: Settings) -> list[Signal]:
    """Return what is watched for a run over a table, whose name is quoted."""
    named = [Replica(given, dialect) for given in settings.replicas]
    following = NamedReplicas(settings, named) if named else Standbys(settings)
    found: list[tuple[float, Signal]] = [
        (gives_way_to_company(settings), OthersAtWork(others_are_at_work)),
        (settings.max_blocked_seconds, Blocked(settings.max_blocked_seconds)),
        (settings.max_active_sessions != 0, ActiveSessions(settings)),
        (settings.max_wal_rate, WalRate(settings.max_wal_rate)),
        (settings.max_archive_queue, ArchiveQueue(settings.max_archive_queue)),
        (settings.max_retained_wal, RetainedWal(settings.max_retained_wal)),
        (settings.max_snapshot_age, OldestSnapshot(settings.max_snapshot_age)),
        (settings.max_dead_rows, DeadRows(settings.max_dead_rows, table)),
        (settings.max_dead_rows, Maintenance(table)),
        (settings.min_free_disk, FreeDisk(settings.min_free_disk, DataDirectory())),
        (settings.max_replica_lag or settings.max_retained_wal, following),
    ]
    return [signal for is_on, signal in found if is_on]


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


def others_are_at_work(reader: Reader) -> bool:
    """Whether sessions of others do something, or did within the last second.

    Behind a pooler a session that does nothing may have been ours or theirs: there only those
    count that do something at this moment, which ours do under their name.
    """
    with reader() as connection:
        recent = is_direct(connection)
        return bool(connection.execute(_OTHERS, {"recent": recent}).scalar_one())


class ActiveSessions(Monitored, Gradual):
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


# -- what vacuum has to do -------------------------------------------------------------------


class OldestSnapshot(Monitored, Gradual):
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

    Where that is set very low, as with a scale factor of 0, as a multiple of what is worth a word.
    Nothing to watch where autovacuum is off: it would never get better.
    """

    name = "dead rows"
    every = SELDOM

    def __init__(self, limit: float, table: str) -> None:
        super().__init__(table)
        self._limit = limit

    def read(self, reader: Reader) -> Reading | None:
        row = self._row(reader, _DEAD_ROWS.bindparams(fewest=_FEWEST_DEAD))
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
_ACTIVE = sa.text(f"""
SELECT pg_backend_pid() AS pid,
  count(*) FILTER (WHERE state = 'active'
    AND coalesce(wait_event_type, '') NOT IN ('Lock', 'Client', 'Activity', 'Timeout')) AS active,
  count(*) FILTER (WHERE usename <> current_user) > 0 AND NOT {SEES_ALL} AS hidden
FROM pg_stat_activity
WHERE datname IS NOT NULL AND pid <> pg_backend_pid()
  AND application_name NOT LIKE 'backfill: %'""")
# Of other users' sessions everybody sees whether they have a snapshot, or have written.
_OTHERS = sa.text("""
SELECT EXISTS (
  SELECT FROM pg_stat_activity
  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND application_name NOT LIKE 'backfill: %'
    AND coalesce(query, '') NOT LIKE 'VACUUM /* backfill: %'
    AND CASE
      WHEN state = 'active'
        THEN coalesce(wait_event_type, '') NOT IN ('Client', 'Activity', 'Timeout')
      WHEN state IS NULL THEN backend_xid IS NOT NULL OR backend_xmin IS NOT NULL
      ELSE :recent AND state_change > clock_timestamp() - interval '1 second'
    END)""").bindparams(sa.bindparam("recent", type_=sa.Boolean()))
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
SELECT (SELECT count(*) > 0 FROM others WHERE is_foreign) AND NOT {SEES_ALL} AS hidden,
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
SELECT max(dead / greatest(threshold, :fewest)) AS ratio
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
