"""The server under a run: it crashes, restarts, fails over, is full, is closed, or kills sessions.

The application's connections go the same way as the runner's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.acceptance.counting import last_words, rows_changed_by, wait_until
from tests.databases import Account, PostgreSQL, Standby, small_filesystem
from tests.faults.fault import Attempt, Fault
from tests.faults.network import chunks_of, configure, finished, port_of
from tests.faults.oracle import Counting
from tests.faults.proxy import Proxy
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.databases import Database, Server
    from tests.faults.fault import Stage
    from tests.projects import Started

ROWS = 1_400
OPTIONS = ("--chunk-size=7", "--rows-per-second=700")
"""So that a run lasts for two seconds at least, of which much is rest."""
STOPPED = 3
"""The exit code of a run that waits for somebody."""

SERVER = frozenset({"server"})
POSTGRESQL = frozenset({"standbys"})
MARIADB = frozenset({"history_list"})
SQLITE = frozenset({"attached_files"})
"""Capabilities that only one of the databases has."""


# -- what faults share ---------------------------------------------------------------------------


@contextlib.contextmanager
def mortal(stage: Stage) -> Iterator[tuple[Server, Database]]:
    """A database on the server that may be crashed; it runs again afterwards, whatever happened."""
    server = stage.servers.mortal(stage.kind)
    with server.database() as database:
        try:
            yield server, database
        finally:
            if not server.is_running:
                server.start_again()


@contextlib.contextmanager
def counting_on(stage: Stage, database: Database, **settings: float) -> Iterator[Counting]:
    """The project and its application, by turns with `values` and with a transform."""
    way = stage.dice.choice(["values", "transform"])
    with (
        Counting.on(database, stage.directory, stage.dice, way=way, rows=ROWS) as counting,
        counting.application(),
    ):
        counting.options = OPTIONS
        configure(counting, settings)
        yield counting


def recover(counting: Counting, process: Started) -> None:
    """Wait for the next chunk, from now on."""
    before = chunks_of(process)
    with counting.recovering():
        wait_until(lambda: chunks_of(process) > before or process.poll() == 0)


def paused_and_resumed(
    counting: Counting, process: Started, *, mend: Callable[[], None]
) -> Attempt:
    """A run pauses by itself; when the cause is mended, somebody lets it go on to its end."""
    wait_until(lambda: process.poll() is not None)
    if process.poll() != STOPPED or not has_told(process, "out of space"):
        raise AssertionError(f"it did not pause for want of space: {last_words(process)}")
    mend()
    counting.project.backfill("resume", "count_up")  # refused where its pause found no space
    with counting.recovering():
        process = counting.start_and_wait_for_a_chunk()
    return finished(counting, process)


def has_told(process: Started, text: str) -> bool:
    """Whether a run has said this, in any of its events."""
    return text in process.read_stdout()


def retries_of(process: Started) -> int:
    return process.read_stdout().count('"event": "retry"')


# -- crashes -------------------------------------------------------------------------------------


def crash(stage: Stage, *, times: int) -> Attempt:
    """End the server at once, and start it again on its files."""
    with mortal(stage) as (server, database), counting_on(stage, database) as counting:
        process = counting.start_and_wait_for_a_chunk()
        for _ in range(times):
            time.sleep(stage.dice.uniform(0, 0.2))
            server.crash()
            server.start_again()
            recover(counting, process)
        return finished(counting, process)


def crash_and_lose(stage: Stage) -> Attempt:
    """The same where the last commits before a crash are lost, with the runner's last claims."""
    later, at_once = LATER[stage.kind]
    with mortal(stage) as (server, database):
        name = sa.make_url(database.url).database
        server.execute(later.format(name))
        try:
            with counting_on(stage, database) as counting:
                process = counting.start_and_wait_for_a_chunk()
                before = chunks_of(process)
                wait_until(lambda: chunks_of(process) > before + SAFE_CHUNKS, process)
                send(server, TERMINATE, sessions(server))
                recover(counting, process)
                server.crash()
                server.start_again()
                recover(counting, process)
                return finished(counting, process)
        finally:
            server.execute(at_once.format(name))


SAFE_CHUNKS = 110
"""By then, more than a second later, the beginning of the run is on the disk."""
LATER = {
    "postgresql": (
        "ALTER DATABASE {} SET synchronous_commit = off",
        "ALTER DATABASE {} RESET synchronous_commit",
    ),
    "mariadb": (
        "SET GLOBAL innodb_flush_log_at_trx_commit = 0",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
    ),
}


def kill_backend(stage: Stage, *, times: int) -> Attempt:
    """Kill the process behind one of the runner's sessions: PostgreSQL restarts them all."""
    with mortal(stage) as (server, database), counting_on(stage, database) as counting:
        process = counting.start_and_wait_for_a_chunk()
        for _ in range(times):
            time.sleep(stage.dice.uniform(0, 0.2))
            for number in sessions(server, "application_name LIKE 'backfill%'")[:1]:
                os.kill(number, signal.SIGKILL)
            server.wait_until_ready()
            recover(counting, process)
        return finished(counting, process)


def sessions(server: Server, condition: str = "1 = 1") -> list[int]:
    """The server's numbers of the sessions of tests' users."""
    view = {
        "postgresql": ("pid", "pg_stat_activity", "usename"),
        "mariadb": ("id", "information_schema.processlist", "user"),
    }
    number, table, user = view[server.name]
    query = f"SELECT {number} FROM {table} WHERE {user} = 'app' AND {condition}"
    with server.admin.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())


# -- an administrator ----------------------------------------------------------------------------


def administer(stage: Stage, *, words: dict[str, str], times: int) -> Attempt:
    """End sessions, or cancel their statements, whoever's they are, at random moments."""
    server = stage.servers.server(stage.kind)
    with server.database() as database, counting_on(stage, database) as counting:
        process = counting.start_and_wait_for_a_chunk()
        for _ in range(times):
            send(server, words, sessions(server))
            recover(counting, process)
        return finished(counting, process)


def send(server: Server, words: dict[str, str], numbers: Iterable[int]) -> None:
    """Say something to each of these sessions."""
    for number in numbers:
        with contextlib.suppress(sa.exc.DBAPIError):  # it has ended by itself
            server.execute(words[server.name].format(number))


TERMINATE = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
CANCEL = {"postgresql": "SELECT pg_cancel_backend({})", "mariadb": "KILL QUERY {}"}


def close_the_door(stage: Stage, *, seconds: float) -> Attempt:
    """End all sessions, and let nobody in: too many connections."""
    server = stage.servers.server(stage.kind)
    with server.database() as database, counting_on(stage, database) as counting:
        process = counting.start_and_wait_for_a_chunk()
        with too_many_connections(server, database):
            wait_until(lambda: has_told(process, "accepts no connection"), process)
            time.sleep(seconds)
            assert process.poll() is None, last_words(process)
        recover(counting, process)
        return finished(counting, process)


@contextlib.contextmanager
def too_many_connections(server: Server, database: Database) -> Iterator[None]:
    """No room for another session of the tests' user, whose sessions are ended."""
    closed, opened = {
        "postgresql": ("ALTER ROLE app CONNECTION LIMIT 0", "ALTER ROLE app CONNECTION LIMIT -1"),
        "mariadb": ("SET GLOBAL max_connections = 10", "SET GLOBAL max_connections = 151"),
    }[server.name]
    with contextlib.ExitStack() as stack:
        ours = set[int]()
        if server.name == "mariadb":  # ten is the least that it takes
            engine = database.engine()
            for _ in range(10):
                other = stack.enter_context(engine.connect())
                ours.add(other.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one())
        stack.callback(server.execute, opened)
        server.execute(closed)
        send(server, TERMINATE, set(sessions(server)) - ours)
        yield


def read_only(stage: Stage, *, seconds: float) -> Attempt:
    """Refuse all writes for a while, as a demoted primary does."""
    server = stage.servers.server(stage.kind)
    with server.database() as database, counting_on(stage, database) as counting:
        process = counting.start_and_wait_for_a_chunk()
        server.execute("SET GLOBAL read_only = ON")
        try:
            wait_until(lambda: has_told(process, "the database is read-only"), process)
            time.sleep(seconds)
        finally:
            server.execute("SET GLOBAL read_only = OFF")
        recover(counting, process)
        return finished(counting, process)


# -- failover ------------------------------------------------------------------------------------


def fail_over(stage: Stage, *, gap_chunks: int) -> Attempt:
    """Lose a primary whose standby is behind by some chunks that were acknowledged.

    Clients are led to the standby while it is read-only still; then it is promoted.
    """
    with contextlib.ExitStack() as stack:
        primary, database = stack.enter_context(mortal(stage))
        assert isinstance(primary, PostgreSQL)
        standby = Standby(primary)
        stack.callback(standby.stop)
        between = stack.enter_context(Proxy(stage.kind, port_of(database)))
        database = replace(database, url=between.url(database.url))
        counting = stack.enter_context(counting_on(stage, database))

        process = counting.start_and_wait_for_a_chunk()
        standby.wait_until_it_has_caught_up()
        standby.stop_following()
        before = chunks_of(process)
        wait_until(lambda: chunks_of(process) >= before + gap_chunks, process)
        primary.crash()
        lost = rows_changed_by(process)
        between.target = standby.port
        wait_until(lambda: has_told(process, "the database is read-only"), process)
        lost -= changed_on(standby, database)
        assert lost > 0, "no acknowledged row was lost"
        standby.promote()
        recover(counting, process)
        return finished(counting, process)


def changed_on(server: Server, database: Database) -> int:
    """How many rows the run's ranges say were changed."""
    name = sa.make_url(database.url).database
    engine = sa.create_engine(server.admin_url(name), poolclass=sa.NullPool)
    with engine.connect() as connection:
        query = "SELECT sum(rows_changed) FROM backfill_range"
        return int(connection.exec_driver_sql(query).scalar_one())


# -- no room -------------------------------------------------------------------------------------


def fill(directory: Path) -> Path:
    """Leave no byte free on a file system."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def fill_tablespace(stage: Stage) -> Attempt:
    """Fill the disk that the database's tables are on."""
    server = stage.servers.server(stage.kind)
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_filesystem(server.directory / "small", 12, server.account))
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        stack.callback(server.execute, "DROP TABLESPACE small")
        database = stack.enter_context(server.database())
        name = sa.make_url(database.url).database
        server.execute(f"ALTER DATABASE {name} SET TABLESPACE small")
        counting = stack.enter_context(counting_on(stage, database))
        process = counting.start_and_wait_for_a_chunk()
        return paused_and_resumed(counting, process, mend=fill(disk).unlink)


def fill_sqlite(stage: Stage) -> Attempt:
    """Fill the disk that the file is on; in WAL mode, where each COMMIT needs room."""
    with small_filesystem(stage.directory / "small", 24, Account.own()) as disk:
        database = file_in(stage, disk)
        with database.engine().connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = wal")
        with counting_on(stage, database, min_free_disk=0) as counting:
            process = counting.start_and_wait_for_a_chunk()
            return paused_and_resumed(counting, process, mend=fill(disk).unlink)


def file_in(stage: Stage, directory: Path) -> Database:
    with stage.servers.database("sqlite", directory) as database:
        return database


class SmallLog(PostgreSQL):
    """Its write-ahead log is on a file system of its own."""

    def __init__(self) -> None:
        self._mounted = contextlib.ExitStack()
        super().__init__("--min_wal_size=32MB", "--max_wal_size=32MB")

    def initialise(self) -> None:
        super().initialise()
        self.disk = self._mounted.enter_context(
            small_filesystem(self.directory / "small", 96, self.account)
        )
        log = self.data / "pg_wal"
        shutil.copytree(log, self.disk / "wal")
        shutil.rmtree(log)
        log.symlink_to(self.disk / "wal")
        for path in (self.disk / "wal", *(self.disk / "wal").rglob("*")):
            os.chown(path, *self.account)

    def stop(self) -> None:
        self._mounted.close()  # first: all of its directory is removed
        super().stop()


def fill_log(stage: Stage) -> Attempt:
    """Fill the disk of the write-ahead log: the server crashes, and comes up when there is room."""
    with contextlib.ExitStack() as stack:
        server = SmallLog()
        stack.callback(server.stop)
        database = stack.enter_context(server.database())
        counting = stack.enter_context(counting_on(stage, database))
        process = counting.start_and_wait_for_a_chunk()
        ballast = fill(server.disk)
        with contextlib.suppress(sa.exc.DBAPIError):
            for _ in range(100):
                server.execute("SELECT pg_logical_emit_message(false, '', repeat('.', 1000000))")
        wait_until(lambda: has_told(process, '"event": "retry"'), process)
        ballast.unlink()
        try:
            server.wait_until_ready()
        except RuntimeError:  # it has ended, maybe only when it tried to come up
            server.start_again()
        recover(counting, process)
        return finished(counting, process)


def fill_lock_table(stage: Stage) -> Attempt:
    """Take all locks that the server has memory for."""
    with contextlib.ExitStack() as stack:
        server, database = stack.enter_context(mortal(stage))
        counting = stack.enter_context(counting_on(stage, database))
        process = counting.start_and_wait_for_a_chunk()
        hog = stack.enter_context(server.admin.connect())
        with contextlib.suppress(sa.exc.DBAPIError):
            hog.exec_driver_sql("SELECT pg_advisory_lock(n) FROM generate_series(1, 1000000) AS n")

        def let_go() -> None:
            hog.exec_driver_sql("SELECT pg_advisory_unlock_all()")

        return paused_and_resumed(counting, process, mend=let_go)


# -- SQLite --------------------------------------------------------------------------------------


def lock_file(stage: Stage, *, times: int) -> Attempt:
    """Hold SQLite's only write lock for longer than we wait for it."""
    database = file_in(stage, stage.directory)
    with counting_on(stage, database, statement_timeout=0.5) as counting:
        process = counting.start_and_wait_for_a_chunk()
        for _ in range(times):
            before = retries_of(process)
            with lock_held(database):
                wait_until(lambda: retries_of(process) > before, process)  # noqa: B023
            recover(counting, process)
        return finished(counting, process)


@contextlib.contextmanager
def lock_held(database: Database) -> Iterator[None]:
    file = sa.make_url(database.url).database
    assert file is not None
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def copy_file(stage: Stage) -> Attempt:
    """Copy the database in the middle of a run, and let both go on to their ends."""
    database = file_in(stage, stage.directory)
    with counting_on(stage, database, lease_seconds=2) as counting:
        process = counting.start_and_wait_for_a_chunk()
        copied = copy_of(database, stage.directory / "copy.sqlite3")
        with AlembicProject.create(stage.directory / "copied", copied) as project:
            shutil.copytree(counting.project.versions, project.versions, dirs_exist_ok=True)
            engine = sa.create_engine(copied, poolclass=sa.NullPool)
            again = replace(counting, project=project, engine=engine)
            with again.recovering():
                again.start_and_wait_for_a_chunk()
            there = finished(again, project.started[-1])
        here = finished(counting, process)
        rows, wrong = here.rows + there.rows, here.wrong + there.wrong
        return Attempt(again.faults, rows, wrong, counting.recoveries)


def copy_of(database: Database, path: Path) -> str:
    """SQLite's own way to copy what is in use."""
    file = sa.make_url(database.url).database
    assert file is not None
    with (
        contextlib.closing(sqlite3.connect(file, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
    return f"sqlite:///{path}"


FAULTS = [
    Fault("server crash and restart", partial(crash, times=2), requires=SERVER, in_soak=100),
    Fault("server crash, last commits lost", crash_and_lose, requires=SERVER, in_soak=50),
    Fault("SIGKILL of a backend", partial(kill_backend, times=2), requires=POSTGRESQL, in_soak=50),
    Fault(
        "sessions ended by an administrator",
        partial(administer, words=TERMINATE, times=8),
        requires=SERVER,
    ),
    Fault(
        "statements cancelled by an administrator",
        partial(administer, words=CANCEL, times=8),
        requires=SERVER,
    ),
    Fault("too many connections", partial(close_the_door, seconds=0.5), requires=SERVER),
    Fault("read-only for a while", partial(read_only, seconds=0.5), requires=MARIADB),
    Fault(
        "failover, asynchronous gap",
        partial(fail_over, gap_chunks=20),
        requires=POSTGRESQL,
        in_soak=50,
    ),
    Fault("disk of the tables full", fill_tablespace, requires=POSTGRESQL, in_soak=20),
    Fault("disk of the file full", fill_sqlite, requires=SQLITE, in_soak=20),
    Fault("disk of the write-ahead log full", fill_log, requires=POSTGRESQL, in_soak=10),
    Fault("lock table full", fill_lock_table, requires=POSTGRESQL, in_soak=20),
    Fault("locked by another writer", partial(lock_file, times=2), requires=SQLITE),
    Fault("copied in the middle of a run", copy_file, requires=SQLITE, in_soak=20),
]
