"""The whole command by each driver of the servers, in a project with that driver's URL."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa

from backfill.dialects import ErrorKind, dialect_for
from backfill.dialects.mysql import MariaDB
from tests.acceptance.counting import (
    PATIENCE_SECONDS,
    PYTHON,
    SET_BASED,
    assert_counts,
    events,
    has_committed,
    last_words,
    prepare,
    values_of_n,
    wait_until,
)
from tests.databases import DRIVERS, Unavailable, free_port, kill
from tests.integration import support
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database, Servers
    from tests.projects import Started

PLAIN = {"postgresql": "psycopg", "mariadb": "pymysql"}
"""The drivers by which a test itself looks and interferes."""

BY_NAME = [name for name, driver in DRIVERS.items() if driver.database in PLAIN]
SYNCHRONOUS = [name for name in BY_NAME if not DRIVERS[name].is_async]
ROWS = 1_000


@pytest.fixture(params=BY_NAME)
def database(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> Iterator[Database]:
    """A fresh database, with the URL of one of its drivers."""
    try:
        fresh = servers.database(DRIVERS[request.param].database, tmp_path)
        with fresh as database:
            yield database.through(request.param)
    except Unavailable as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    engine = database.through(PLAIN[database.name]).engine()
    yield engine
    engine.dispose()


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Iterator[AlembicProject]:
    """As `alembic init` makes it; with `-t async` for an asynchronous driver."""
    with make_project(database.url, tmp_path / "project") as project:
        yield project


def make_project(url: str, directory: Path) -> AlembicProject:
    if DRIVERS[sa.make_url(url).get_driver_name()].is_async:
        return make_async_project(url, directory)
    return AlembicProject.create(directory, url)


def make_async_project(url: str, directory: Path) -> AlembicProject:
    directory.mkdir()
    project = AlembicProject(directory)
    config = alembic.config.Config(project.ini)
    with contextlib.redirect_stdout(io.StringIO()):
        alembic.command.init(config, str(directory / "migrations"), template="async")
    project.set_option("script_location", "%(here)s/migrations")
    project.set_url(url)
    return project


# -- a run that goes well -------------------------------------------------------------

BOTH_WAYS = f"""{PYTHON}

class CountDown(Backfill):
    table = "counters"
    where = "n > 0"
    values = {{"n": "n - 1"}}
"""


def test_run_from_plan_to_gate(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, BOTH_WAYS, 5 * ROWS)
    planned = project.backfill("plan", "--json")
    assert planned.returncode == 0, planned.stderr
    (up, down) = json.loads(planned.stdout)
    assert up["chunk_rows"] > 0
    assert "failed" not in str(up["warnings"] + down["warnings"])

    done = project.backfill("run", "--workers=3", "--chunk-size=500", "count_up")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: 5 * ROWS}
    done = project.backfill("run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {0: 5 * ROWS}
    gate = '\ndef upgrade():\n    op.require_backfill("count_down")\n'
    project.revision("b2", down="a1", body=gate)
    project.alembic("upgrade", "head")


NEXT_HUNDREDTH = f"""{SET_BASED}
    where = "n = 0 AND id % 100 = 7"
"""


def test_rows_that_lie_far_apart_are_written_by_their_keys(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, NEXT_HUNDREDTH, 10 * ROWS)
    done = project.backfill("run", "--chunk-size=50")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {0: 99 * ROWS // 10, 1: ROWS // 10}
    assert_counts(project, ROWS // 10, scanned=10 * ROWS)


def test_run_goes_on_where_it_stopped(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, PYTHON, ROWS)
    stopped = project.backfill("run", "--limit=300", "--chunk-size=50")
    assert stopped.returncode == 3, stopped.stderr
    assert values_of_n(engine) == {0: ROWS - 300, 1: 300}
    done = project.backfill("run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


# -- and those that do not -------------------------------------------------------------

COPY_NAMES = '''
from backfill import Backfill


def upgrade():
    op.create_table(
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("given", sa.String(60), nullable=False),
        sa.Column("name", sa.String(20)),
        sa.Column("n", sa.Integer),
        sa.UniqueConstraint("name", name="one_name"),
        sa.CheckConstraint("name <> 'refused'", name="no_refused"),
    )


class CopyNames(Backfill):
    """Python may return what the database, or the driver, will not have."""

    table = "things"
    where = "name IS NULL"
    reads = ["given"]
    writes = ["name", "n"]

    def transform(self, row):
        numbers = {"huge": 2**70, "object": object(), "word": "word"}
        return {"name": row.given, "n": numbers.get(row.given, 1)}
'''
BAD = {50: "taken", 100: "refused", 101: "too long " * 5, 200: "huge", 201: "object", 250: "word"}
CODES = {
    "postgresql": {50: "(23505), constraint one_name", 100: "(23514), constraint no_refused"},
    "mariadb": {50: "(1062), constraint one_name", 100: "(4025), constraint no_refused"},
}


def test_bad_rows_are_quarantined(
    project: AlembicProject, engine: sa.Engine, database: Database
) -> None:
    project.revision("a1", body=COPY_NAMES)
    project.alembic("upgrade", "head")
    with engine.begin() as connection:
        things = sa.Table("things", sa.MetaData(), autoload_with=connection)
        rows: list[dict[str, Any]] = [{"id": 0, "given": "", "name": "taken"}]
        rows += [{"id": i, "given": BAD.get(i, f"é {i}"), "name": None} for i in range(1, 300)]
        connection.execute(things.insert(), rows)

    done = project.backfill("run")
    assert done.returncode == 5, done.stderr
    found = json.loads(project.backfill("failures", "--json").stdout)
    errors = {failure["key"][0]: failure["error"] for failure in found}
    assert sorted(errors) == sorted(BAD)
    for key, expected in CODES[database.name].items():
        assert errors[key].endswith(expected), errors[key]
    with engine.connect() as connection:
        written = {row.id: row.name for row in connection.execute(sa.select(things))}
    expected_names = {i: None if i in BAD else f"é {i}" for i in range(1, 300)}
    assert written == {0: "taken", **expected_names}


def test_locked_row_is_waited_for(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, PYTHON, ROWS)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE counters SET n = n WHERE id = 500")
        runner = project.start("run", "--json", "--chunk-size=50")
        wait_until(lambda: len(reasons(runner)) >= 3, runner)
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert {reason.partition(" (")[0] for reason in reasons(runner)} == {
        "locked by the application"
    }
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def reasons(runner: Started) -> list[str]:
    """Why it tried again, each time."""
    return [event["reason"] for event in events(runner) if event["event"] == "retry"]


def test_connection_that_is_cut(
    project: AlembicProject,
    engine: sa.Engine,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(project, engine, PYTHON, ROWS)
    monkeypatch.setenv("ROW_SECONDS", "0.002")
    runner = project.start("run", "--json", "--chunk-size=4")
    wait_until(lambda: has_committed(runner), runner)
    for cuts in range(1, 4):
        before = len(events(runner))
        while len(reasons(runner)) < cuts:
            cut(database)
            wait_until(lambda: len(events(runner)) > before, runner)  # noqa: B023 (at once)
            before = len(events(runner))
        committed = len(events(runner))
        wait_until(lambda: len(events(runner)) > committed + 3, runner)  # noqa: B023 (at once)
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert "the connection was lost" in {reason.partition(" (")[0] for reason in reasons(runner)}
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def cut(database: Database) -> None:
    """End every connection of the application's user."""
    name = sa.make_url(database.url).database
    admin = sa.create_engine(
        database.admin_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        if database.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{name}' AND usename = 'app'"
            )
            return
        query = sa.text(
            "SELECT id FROM information_schema.processlist WHERE db = :name AND user = 'app'"
        )
        for thread in connection.scalars(query, {"name": name}).all():
            kill(connection, thread)


# -- what an error means ---------------------------------------------------------------

POSTGRESQL_ERRORS = {
    "INSERT INTO things VALUES (1, 1)": "DATA",
    "INSERT INTO things VALUES (2, NULL)": "DATA",
    "INSERT INTO things VALUES (2, 100)": "DATA",
    "INSERT INTO things VALUES (2, 2147483648)": "DATA",
    "UPDATE things SET n = 1 / 0": "DATA",
    "UPDATE things SET n = CAST('x' AS int)": "DATA",
    "DO $$ BEGIN RAISE 'no' ; END $$": "DATA",
    "UPDATE nothing SET n = 1": "SCHEMA",
    "UPDATE things SET nothing = 1": "SCHEMA",
    "SELECT rolpassword FROM pg_authid": "RIGHTS",
    "SELECT * FROM things FOR UPDATE NOWAIT": "LOCKED",
    "SET LOCAL lock_timeout = 10; UPDATE things SET n = 2": "LOCKED",
    "SET LOCAL statement_timeout = 10; SELECT pg_sleep(9)": "TOO_SLOW",
    "SET TRANSACTION READ ONLY; CREATE TABLE other (n int)": "READ_ONLY",
    "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$": "CONFLICT",
    "DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$": "CONFLICT",
    "DO $$ BEGIN RAISE SQLSTATE '53100'; END $$": "OUT_OF_SPACE",
    "DO $$ BEGIN RAISE SQLSTATE '57P03'; END $$": "NOT_READY",
    "SELECT pg_terminate_backend(pg_backend_pid())": "SESSION_LOST",
}
MARIADB_ERRORS = {
    "INSERT INTO things VALUES (1, 1)": "DATA",
    "INSERT INTO things VALUES (2, NULL)": "DATA",
    "INSERT INTO things VALUES (2, 100)": "DATA",
    "INSERT INTO things VALUES (2, 2147483648)": "DATA",
    "INSERT INTO things VALUES (2, 'x')": "DATA",
    "SIGNAL SQLSTATE '45000'": "DATA",
    "UPDATE nothing SET n = 1": "SCHEMA",
    "UPDATE things SET nothing = 1": "SCHEMA",
    "SELECT * FROM mysql.global_priv": "RIGHTS",
    "SELECT * FROM things FOR UPDATE NOWAIT": "LOCKED",
    "SET STATEMENT max_statement_time = 0.01 FOR SELECT SLEEP(9)": "TOO_SLOW",
    "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213": "CONFLICT",
    "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021": "OUT_OF_SPACE",
    "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290": "READ_ONLY",
    "KILL CONNECTION_ID()": "SESSION_LOST",
}
ERRORS = {"postgresql": POSTGRESQL_ERRORS, "mariadb": MARIADB_ERRORS}


@pytest.mark.parametrize("database", SYNCHRONOUS, indirect=True)
def test_every_error_has_its_meaning(database: Database, engine: sa.Engine) -> None:
    driven = database.engine()
    meant = dialect_for(driven)
    with engine.begin() as connection:
        columns = "id int PRIMARY KEY, n int NOT NULL CHECK (n < 100)"
        connection.exec_driver_sql(f"CREATE TABLE things ({columns})")
        connection.exec_driver_sql("INSERT INTO things VALUES (1, 1), (9, 1)")
    with engine.begin() as other:
        other.exec_driver_sql("UPDATE things SET n = 2 WHERE id = 9")
        found = {sql: meant.error_kind(error_of(driven, sql)) for sql in ERRORS[database.name]}
    assert {sql: kind.name for sql, kind in found.items()} == ERRORS[database.name]


def error_of(engine: sa.Engine, sql: str) -> sa.exc.DBAPIError:
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        for statement in sql.split("; ") if sql.startswith("SET ") else [sql]:
            connection.exec_driver_sql(statement)
    return caught.value


@pytest.mark.parametrize("database", SYNCHRONOUS, indirect=True)
def test_session_that_is_lost_while_it_begins(database: Database, engine: sa.Engine) -> None:
    """Before each of its first statements: a loss, which is tried again, and nothing else."""
    dialect = dialect_for(engine)
    left = itertools.count()

    def lose(*_: object) -> None:
        if next(left) == 0:
            cut(database)
            time.sleep(0.05)  # until the server has done so

    sa.event.listen(engine, "before_cursor_execute", lose)
    left = itertools.count(1)
    dialect.open(support.LIMITS).close()
    for number in range(1, next(left)):
        left = itertools.count(1 - number)
        with pytest.raises(sa.exc.DBAPIError) as caught:
            dialect.open(support.LIMITS).close()
        assert dialect.error_kind(caught.value) is ErrorKind.SESSION_LOST, number


@pytest.mark.parametrize("database", SYNCHRONOUS, indirect=True)
def test_database_that_does_not_answer(database: Database) -> None:
    nowhere = sa.create_engine(sa.make_url(database.url).set(port=free_port()))
    with pytest.raises(sa.exc.DBAPIError) as caught:
        nowhere.connect()
    assert dialect_for(nowhere).error_kind(caught.value) is ErrorKind.NOT_READY


@pytest.mark.parametrize(
    "database", [name for name in SYNCHRONOUS if DRIVERS[name].database == "mariadb"], indirect=True
)
def test_mariadb_by_the_name_of_mysql(project: AlembicProject, engine: sa.Engine) -> None:
    """Many say `mysql+pymysql://…`; the server tells that it is MariaDB, which can do more."""
    prepare(project, engine, PYTHON, ROWS)
    url = project_url(project).replace("mariadb+", "mysql+", 1)
    done = project.backfill("--url", url, "run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    named = sa.create_engine(url, poolclass=sa.NullPool)
    named.connect().close()
    assert type(dialect_for(named)) is MariaDB


def project_url(project: AlembicProject) -> str:
    url = alembic.config.Config(project.ini).get_main_option("sqlalchemy.url")
    assert url is not None
    return url
