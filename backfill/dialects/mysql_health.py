"""What MariaDB and MySQL tell of their health.

Status variables are for everybody; InnoDB's lock waits take the privilege PROCESS, and a
replica's state one of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from backfill.dialects.base import LogFill
from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.health import (
    OFTEN,
    SELDOM,
    FreeDisk,
    OthersAtWork,
    Replica,
    gives_way_to_company,
    most_active,
    reachable,
)
from backfill.speed.readings import Budget, Gradual, Reading, Unavailable, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill.dialects.base import Dialect
    from backfill.settings import Settings
    from backfill.speed.readings import Reader, Signal

    Sessions = Callable[[], Sequence[int]]
    """Gives the server's numbers of our own connections."""


MARK = "CONCAT('backfill ', {})"
"""SQL: the name of the lock by which each session of ours, whose number is put in, is known as
such, to everybody and until it ends. Comments name statements only, and not who sleeps."""
_UNMARKED_SECONDS = (0.002, 0.008, 0.02)
"""Pauses between looks: a session of ours has no mark while it is made. Whoever did something
within a second is seen again."""


@dataclass(frozen=True, slots=True)
class Words:
    """How one of the two servers is asked."""

    others: sa.TextClause
    """Whether sessions of others, as far as this user sees them, do something, or did lately."""
    blocked: sa.TextClause
    history: sa.TextClause
    redo: sa.TextClause
    """Gives the three status variables on the redo log, as far as there are any, each with its
    name: in all written, flushed up to, and the most between these two."""
    redo_names: tuple[str, str, str]
    replica_since: tuple[int, ...]
    """The version that knows SHOW REPLICA STATUS."""
    replica_privilege: str


def signals(dialect: Dialect, words: Words, sessions: Sessions, settings: Settings) -> list[Signal]:
    """Return what is watched for a run."""

    def are_seen(reader: Reader) -> bool:
        with reader() as connection:
            return bool(connection.execute(words.others).scalar_one())

    def are_surely_seen(reader: Reader) -> bool:
        for pause in _UNMARKED_SECONDS:
            if not are_seen(reader):
                return False
            time.sleep(pause)
        return are_seen(reader)

    is_asked = gives_way_to_company(settings) or bool(settings.max_redo_fill)
    others = OthersAtWork(are_surely_seen, is_brief=False) if is_asked else None
    alone = Alone(dialect, others)
    found: list[tuple[float, Signal]] = [
        (settings.max_blocked_seconds, Blocked(settings.max_blocked_seconds, words, sessions)),
        (settings.max_active_sessions != 0, ThreadsRunning(settings, sessions)),
        (settings.max_redo_fill, RedoFill(settings.max_redo_fill, words, alone)),
        (settings.max_history_length, HistoryLength(settings.max_history_length, words)),
        (settings.min_free_disk, FreeDisk(settings.min_free_disk, DataDirectory())),
    ]
    if settings.replicas:
        replicas = [Replica(given, dialect) for given in settings.replicas]
        found.append((settings.max_replica_lag, ReplicaLag(settings, words, replicas)))
    chosen = [signal for is_on, signal in found if is_on]
    return chosen if others is None else [others, *chosen]


class Alone:
    """Whether it is sure that nobody else is at work."""

    def __init__(self, dialect: Dialect, others: OthersAtWork | None) -> None:
        self._dialect = dialect
        self._others = others
        self._sees_everybody: bool | None = None

    def __call__(self, reader: Reader) -> bool:
        if self._others is None or not self._others.were_missing:
            return False
        if self._sees_everybody is None:
            self._sees_everybody = self._may_see_everybody(reader)
        return self._sees_everybody

    def _may_see_everybody(self, reader: Reader) -> bool:
        try:
            with reader() as connection:
                connection.execute(_NEEDS_PROCESS)
        except sa.exc.DBAPIError as error:
            if self._dialect.error_kind(error) is not ErrorKind.RIGHTS:
                raise
            return False
        return True


class _Privileged:
    privilege = "PROCESS"

    def remedy(self, reader: Reader) -> str:
        with reader() as connection:
            me = str(connection.execute(_ME).scalar())
        user, _, host = me.rpartition("@")
        return f"GRANT {self.privilege} ON *.* TO '{user}'@'{host}'"


class Blocked(_Privileged, Gradual):
    """Sessions that wait for a row lock which a transaction of this command holds."""

    name = "sessions blocked by us"

    def __init__(self, limit: float, words: Words, sessions: Sessions) -> None:
        self._limit = limit
        self._statement = words.blocked
        self._sessions = sessions

    def read(self, reader: Reader) -> Reading:
        with reader() as connection:
            row = connection.execute(self._statement, {"ours": self._sessions()}).one()
        sessions = f"{row.sessions} session{'s' if row.sessions > 1 else ''} blocked by us for"
        return Reading.of(sessions, float(row.seconds or 0), "s", warn=0.0, stop=self._limit)


class ThreadsRunning(Gradual):
    """Threads of others that execute a statement."""

    name = "Threads_running"

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._limit: tuple[float, str] | None = None

    def read(self, reader: Reader) -> Reading:
        with reader() as connection:
            running = int(connection.execute(_RUNNING).one()[1])
            ours = connection.execute(_OURS_RUNNING, {"ours": self._sessions()}).scalar_one()
            if self._limit is None:
                directory = connection.execute(_DIRECTORY).one()
                self._limit = most_active(self._settings, is_here=bool(_here(directory)))
        limit, where = self._limit
        others = max(0, running - int(ours))
        return Reading.of(self.name, others, "", what=where, stop=limit)


class HistoryLength(_Privileged, Gradual):
    """Old row versions that wait to be purged, behind somebody's old snapshot."""

    name = "InnoDB's history list"
    every = SELDOM

    def __init__(self, limit: int, words: Words) -> None:
        self._limit = limit
        self._statement = words.history

    def read(self, reader: Reader) -> Reading:
        length = _only(reader, self._statement)
        return Reading.of(self.name, length, "", stop=self._limit)


class RedoFill(_Privileged, Gradual):
    """How full the redo log is: when it is full every writer waits for pages to be flushed.

    It never stops us: who writes less sees it emptied within a second. Where nobody else is at
    work nobody else waits, and the server itself makes us wait for no longer than it must.
    """

    name = "redo log"
    _GENTLE: ClassVar[float] = 0.94
    """Of the limit: InnoDB itself lets a busy log be filled to some 0.9 (measured)."""

    def __init__(self, limit: float, words: Words, is_alone: Callable[[Reader], bool]) -> None:
        self._limit = limit
        self._words = words
        self._is_alone = is_alone

    def read(self, reader: Reader) -> Reading | None:
        if self._is_alone(reader):
            return None
        with reader() as connection:
            found = log_fill(connection, self._words)
        if found is None:
            raise Unavailable
        fill = found.age / found.most
        warn = self._limit * self._GENTLE
        name = f"{self.name} is filled to"
        return Reading.of(name, fill, "%", warn=warn, stop=self._limit, is_soft=True)


def log_fill(connection: sa.Connection, words: Words) -> LogFill | None:
    """Return how full the redo log is; None where it cannot be told."""
    found = {name.lower(): float(value) for name, value in connection.execute(words.redo)}
    written, flushed, most = (found.get(name, 0.0) for name in words.redo_names)
    return LogFill(written - flushed, most, written) if written and flushed and most else None


class ReplicaLag(_Privileged, Budget):
    """The replicas that the settings name, by what they say themselves."""

    name = "replica lag"
    every = OFTEN
    is_brief = False
    stands_alone = True

    def __init__(self, settings: Settings, words: Words, replicas: Sequence[Replica]) -> None:
        self._limit = settings.max_replica_lag
        self._words = words
        self._replicas = replicas
        self.privilege = words.replica_privilege

    def read(self, reader: Reader) -> Reading | None:
        return worst(reading for replica in self._replicas for reading in self._ask(replica))

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()

    def remedy(self, reader: Reader) -> str:
        return f"on the replica, {super().remedy(self._replicas[0].reading)}"

    def _ask(self, replica: Replica) -> Iterator[Reading]:
        with replica.reading() as connection:
            version = connection.dialect.server_version_info or ()
            word = "REPLICA" if version >= self._words.replica_since else "SLAVE"
            rows = connection.exec_driver_sql(f"SHOW {word} STATUS").mappings().all()
        if not rows:
            yield self._stopped(replica, "is no replica")
        for row in rows:
            lag = row.get("Seconds_Behind_Source", row.get("Seconds_Behind_Master"))
            if lag is None:
                yield self._stopped(replica, "does not replicate")
            else:
                yield Reading.of(
                    f"lag of replica {replica.name}", float(lag), "s", stop=self._limit
                )

    def _stopped(self, replica: Replica, what: str) -> Reading:
        return Reading(self._limit, self._limit, self._limit, f"replica {replica.name} {what}")


class DataDirectory:
    """Where the server keeps its files, if it is on this machine and lets us look."""

    def __init__(self) -> None:
        self._paths: list[Path] | None = None

    def __call__(self, reader: Reader) -> list[Path]:
        if self._paths is None:
            with reader() as connection:
                self._paths = _here(connection.execute(_DIRECTORY).one())
        return self._paths


def _here(row: Any) -> list[Path]:
    """Return the data directory of a server on this machine; nothing for any other."""
    return reachable([Path(row.directory)]) if row.host == gethostname() else []


def _only(reader: Reader, statement: sa.TextClause) -> float:
    with reader() as connection:
        value = connection.execute(statement).scalar()
    if value is None:
        raise Unavailable
    return float(value)


# -- SQL -------------------------------------------------------------------------------------


def _with_ours(text: str) -> sa.TextClause:
    return sa.text(text).bindparams(sa.bindparam("ours", expanding=True))


_ME = sa.text("SELECT CURRENT_USER()")
_NEEDS_PROCESS = sa.text("SELECT COUNT(*) FROM information_schema.innodb_trx")
_DIRECTORY = sa.text("SELECT @@hostname AS host, @@datadir AS directory")
_RUNNING = sa.text("SHOW GLOBAL STATUS LIKE 'Threads_running'")
_OURS_RUNNING = _with_ours(
    "SELECT COUNT(*) FROM information_schema.processlist WHERE id IN :ours AND command <> 'Sleep'"
)


def _others(lately: str) -> sa.TextClause:
    """Threads of the server itself have users of these names."""
    return sa.text(f"""
SELECT EXISTS (
  SELECT 1 FROM information_schema.processlist
  WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler')
    AND command NOT IN ('Daemon', 'Binlog Dump', 'Binlog Dump GTID')
    AND (command <> 'Sleep' OR {lately})
    AND IS_USED_LOCK({MARK.format("id")}) IS NULL)""")


_MARIADB_REDO = (
    "innodb_lsn_current",
    "innodb_lsn_last_checkpoint",
    "innodb_checkpoint_max_age",
)
_MYSQL_REDO = (
    "innodb_redo_log_current_lsn",
    "innodb_redo_log_checkpoint_lsn",
    "innodb_redo_log_capacity_resized",
)


def _redo(schema: str, names: tuple[str, str, str]) -> sa.TextClause:
    wanted = ", ".join(f"'{name}'" for name in names)
    return sa.text(
        f"SELECT variable_name, variable_value FROM {schema}.global_status"
        f" WHERE variable_name IN ({wanted})"
    )


MARIADB = Words(
    others=_others("time_ms < 1000"),
    # When a wait began is known to the second only; that its statement began, to the millisecond.
    blocked=_with_ours("""
SELECT COUNT(*) AS sessions, SUM(time_ms) / 1000 AS seconds
FROM information_schema.processlist WHERE id IN (
  SELECT theirs.trx_mysql_thread_id
  FROM information_schema.innodb_lock_waits AS waits
  JOIN information_schema.innodb_trx AS ours ON ours.trx_id = waits.blocking_trx_id
  JOIN information_schema.innodb_trx AS theirs ON theirs.trx_id = waits.requesting_trx_id
  WHERE ours.trx_mysql_thread_id IN :ours AND theirs.trx_mysql_thread_id NOT IN :ours)"""),
    history=sa.text("""
SELECT variable_value FROM information_schema.global_status
WHERE variable_name = 'INNODB_HISTORY_LIST_LENGTH'"""),
    redo=_redo("information_schema", _MARIADB_REDO),
    redo_names=_MARIADB_REDO,
    replica_since=(10, 5, 1),
    replica_privilege="REPLICA MONITOR",
)
MYSQL = Words(
    others=_others("time < 1"),
    blocked=_with_ours("""
SELECT COUNT(*) AS sessions, SUM(timer_wait) / 1e12 AS seconds
FROM performance_schema.events_statements_current WHERE thread_id IN (
  SELECT waits.requesting_thread_id
  FROM performance_schema.data_lock_waits AS waits
  JOIN performance_schema.threads AS ours ON ours.thread_id = waits.blocking_thread_id
  JOIN performance_schema.threads AS theirs ON theirs.thread_id = waits.requesting_thread_id
  WHERE ours.processlist_id IN :ours AND theirs.processlist_id NOT IN :ours)"""),
    history=sa.text("""
SELECT count FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'"""),
    redo=_redo("performance_schema", _MYSQL_REDO),
    redo_names=_MYSQL_REDO,
    replica_since=(8, 0, 22),
    replica_privilege="REPLICATION CLIENT",
)
