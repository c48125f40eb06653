"""Runs behind PgBouncer in transaction mode, where nothing that belongs to a session may be relied
on, or left behind."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import (
    add_counters,
    start_and_wait_for_a_chunk,
    values_of_n,
)
from tests.availability import give_up
from tests.databases import Unavailable
from tests.integration.test_drivers import BOTH_WAYS, make_project
from tests.poolers import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database
    from tests.projects import AlembicProject

ROWS = 3_000
SESSIONS = 2
"""Fewer than we have connections, so that each of ours meets the others' sessions."""
WORKERS = "--workers=3"

pytestmark = pytest.mark.requires("poolers")


@pytest.fixture
def pooled(database: Database) -> Iterator[Database]:
    """The database through PgBouncer. Without it: skipped here, failed in CI."""
    with ExitStack() as stack:
        try:
            pooled = stack.enter_context(pgbouncer(database, SESSIONS))
        except Unavailable as error:
            give_up("PgBouncer", error)
        yield pooled


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_killed_run_goes_on_and_leaves_nothing_to_others(
    driver: str, pooled: Database, engine: sa.Engine, tmp_path: Path
) -> None:
    with (
        project_on(pooled, driver, tmp_path / "project") as project,
        application_on(pooled) as seen,
    ):
        project.revision("a1", body=BOTH_WAYS)
        project.alembic("upgrade", "head")
        add_counters(engine, ROWS)
        start_and_wait_for_a_chunk(project, WORKERS, "--chunk-size=20").end()
        done = project.backfill("run", WORKERS, "--chunk-size=200")
        assert done.returncode == 0, done.stderr
        documents = json.loads(project.backfill("status", "--json").stdout)
    assert [one["rows_changed"] for one in documents] == [ROWS, ROWS], "each row up, then down"
    assert values_of_n(engine) == {0: ROWS}
    assert set(seen) == {CLEAN}
    assert left_in_the_sessions(pooled) == {CLEAN}


def project_on(pooled: Database, driver: str, directory: Path) -> AlembicProject:
    """A project whose env.py does what its driver needs behind such a pooler, and no more."""
    project = make_project(pooled.through(driver).url, directory)
    if driver == "asyncpg":
        env = directory / "migrations" / "env.py"
        plain, asked = "poolclass=pool.NullPool,", 'connect_args={"statement_cache_size": 0},'
        assert plain in env.read_text()
        env.write_text(env.read_text().replace(plain, f"{plain} {asked}"))
    return project


# -- what others find in a session -----------------------------------------------------------------

NAME = "the application"
# PgBouncer itself sets what it tracks: these, for each client as the client has them.
TRACKED = "'application_name', 'client_encoding', 'DateStyle', 'TimeZone'"
FOUND = f"""
    SELECT current_setting('application_name'),
        (SELECT string_agg(name || '=' || setting, ' ') FROM pg_settings
         WHERE source = 'session' AND setting <> reset_val AND name NOT IN ({TRACKED})),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_cursors WHERE name <> ''),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_class WHERE pg_my_temp_schema() = relnamespace),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')
"""
CLEAN = (NAME, None, 0, 0, 0, 0, 0)


def application(pooled: Database) -> sa.Engine:
    """Another client of the pool, which prepares nothing, as is the rule behind such a pooler."""
    given = {"application_name": NAME, "prepare_threshold": None}
    return sa.create_engine(pooled.url, poolclass=sa.NullPool, connect_args=given)


@contextmanager
def application_on(pooled: Database) -> Iterator[list[Any]]:
    """It looks at its session in one transaction after the other, while we are at work."""
    seen: list[Any] = []
    stop = Event()

    def look() -> None:
        with application(pooled).connect() as connection:
            while not stop.wait(0.01):
                with connection.begin():
                    seen.append(tuple(connection.exec_driver_sql(FOUND).one()))

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def left_in_the_sessions(pooled: Database) -> set[Any]:
    """What it finds in all of the pool's sessions, which it takes at once."""
    with ExitStack() as stack:
        taken = [stack.enter_context(application(pooled).connect()) for _ in range(SESSIONS)]
        found = [tuple(connection.exec_driver_sql(FOUND).one()) for connection in taken]
        assert len({c.exec_driver_sql("SELECT pg_backend_pid()").scalar() for c in taken}) > 1
        return set(found)
