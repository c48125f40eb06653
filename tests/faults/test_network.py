"""What the network's faults are to people: how long they last, what is said, how it ends."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from backfill.dialects import ErrorKind, Limits, dialect_for
from tests.acceptance.counting import last_words, wait_until
from tests.databases import DRIVERS, Unavailable, free_port
from tests.faults.network import PLAIN, configure, port_of
from tests.faults.oracle import Counting
from tests.faults.proxy import Proxy
from tests.faults.servers import TERMINATE, has_told, send, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from backfill.dialects import Dialect
    from tests.databases import Database, Server, Servers
    from tests.projects import AlembicProject

SECONDS = 2.0
LIMITS = Limits(lock_timeout=0.5, statement_timeout=SECONDS / 2, idle_timeout=SECONDS / 2)
SLACK_SECONDS = 3.0
"""How much later than promised something may be on a machine that is busy."""
BY_NAME = [name for name, driver in DRIVERS.items() if driver.database in PLAIN]


@pytest.fixture
def dice() -> random.Random:
    return random.Random(1)


# -- a server that says nothing ------------------------------------------------------------------


@pytest.fixture(params=BY_NAME)
def driven(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """A fresh database, with the URL of one of its drivers."""
    try:
        with servers.database(DRIVERS[request.param].database, tmp_path) as database:
            yield database.through(request.param)
    except Unavailable as error:
        pytest.skip(f"{request.param}: {error}")


def given_up(dialect: Dialect, work: Callable[[], object]) -> tuple[ErrorKind, float]:
    """What becomes of somebody who waits for the server, and when."""
    started = time.monotonic()
    with pytest.raises(Exception) as caught:
        work()
    return dialect.error_kind(caught.value), time.monotonic() - started


def test_server_that_falls_silent_is_given_up(driven: Database) -> None:
    with Proxy(driven.name, port_of(driven)) as between:
        engine = sa.create_engine(between.url(driven.url), poolclass=sa.NullPool)
        dialect = dialect_for(engine)

        def ask_in_vain() -> tuple[ErrorKind, float]:
            connection = dialect.open(LIMITS)
            with dialect.transaction(connection, LIMITS, write=False):
                connection.exec_driver_sql("SELECT 1")
            try:
                between.fall_silent()

                def ask() -> None:
                    with dialect.transaction(connection, LIMITS, write=False):
                        connection.exec_driver_sql("SELECT 1")

                return given_up(dialect, ask)
            finally:
                connection.close()

        kind, seconds = dialect.call(ask_in_vain)
    assert kind is ErrorKind.SESSION_LOST
    assert SECONDS <= seconds <= SECONDS + SLACK_SECONDS


def test_server_that_accepts_and_says_nothing_is_given_up(driven: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = sa.make_url(driven.url).set(port=silent.getsockname()[1])
        dialect = dialect_for(sa.create_engine(url, poolclass=sa.NullPool))
        kind, seconds = dialect.call(given_up, dialect, lambda: dialect.open(LIMITS))
    assert kind in (ErrorKind.NOT_READY, ErrorKind.SESSION_LOST)
    assert seconds <= SECONDS + SLACK_SECONDS


@pytest.mark.requires("server")
def test_connections_of_the_application_are_not_hurried(database: Database) -> None:
    """The engine may be the application's own: its connections keep their own limits."""
    engine, seen = database.engine(), []
    dialect = dialect_for(engine)

    def note(_dialect: object, _record: object, _arguments: object, options: dict[str, object]):  # type: ignore[no-untyped-def]
        seen.append(options.get("connect_timeout"))

    sa.event.listen(engine, "do_connect", note)
    engine.connect().close()
    dialect.open(LIMITS).close()
    assert seen == [None, SECONDS]


# -- before the run has begun --------------------------------------------------------------------


@pytest.mark.requires("server")
@pytest.mark.parametrize("wrong", ["port", "host", "password"])
def test_server_that_cannot_be_reached_is_told_at_once(
    project: AlembicProject, database: Database, wrong: str
) -> None:
    url = sa.make_url(database.url)
    elsewhere = {
        "port": url.set(port=free_port()),
        "host": url.set(host="backfill.invalid"),
        "password": url.set(password="%p@ss:/secret"),
    }[wrong]
    project.set_url(elsewhere.render_as_string(hide_password=False))
    done = project.backfill("run", timeout=20)
    assert done.returncode == 1
    assert "could not be run" in done.stderr
    assert "%p@ss" not in done.stdout + done.stderr


# -- in the middle of a run ----------------------------------------------------------------------


@contextlib.contextmanager
def another_password(server: Server, project: AlembicProject) -> Iterator[None]:
    alter = {
        "postgresql": "ALTER ROLE app PASSWORD '{}'",
        "mariadb": "SET PASSWORD FOR app@'%' = PASSWORD('{}')",
    }[server.name]
    server.execute(alter.format("another"))
    try:
        yield
    finally:
        server.execute(alter.format(server.password))


NO_NAME = """
import pathlib

from sqlalchemy import event
from sqlalchemy.engine import Engine


@event.listens_for(Engine, "do_connect")
def lose_the_name(dialect, record, arguments, options):
    if pathlib.Path("no-name").exists():
        options["host"] = "backfill.invalid"

"""


@contextlib.contextmanager
def no_name(server: Server, project: AlembicProject) -> Iterator[None]:
    mark = project.write("no-name", "")
    try:
        yield
    finally:
        mark.unlink()


TROUBLES: dict[str, Callable[[Server, AlembicProject], AbstractContextManager[None]]] = {
    "password": another_password,
    "name": no_name,
}
SAID = {"password": ("password authentication failed", "1045"), "name": ("not known",)}


@pytest.mark.requires("server")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_does_not_end_is_not_tried_for_ever(
    servers: Servers, database: Database, tmp_path: Path, dice: random.Random, trouble: str
) -> None:
    server = servers.server(database.name)
    with Counting.on(database, tmp_path, dice) as counting:
        env = counting.project.directory / "migrations" / "env.py"
        env.write_text(NO_NAME + env.read_text())
        configure(counting, {"retry_seconds": 2})
        process = counting.start_and_wait_for_a_chunk()
        with TROUBLES[trouble](server, counting.project):
            send(server, TERMINATE, sessions(server))
            wait_until(lambda: process.poll() is not None, seconds=20)
            assert process.poll() in (1, 3), last_words(process)
            assert any(has_told(process, text) for text in SAID[trouble]), last_words(process)
            assert server.password not in process.read_stdout() + process.read_stderr()
        counting.finish()
        assert counting.wrong() == []


@pytest.mark.requires("server")
def test_waiting_is_told_with_its_reason(
    servers: Servers, database: Database, tmp_path: Path, dice: random.Random
) -> None:
    with (
        Counting.on(database, tmp_path, dice) as counting,
        Proxy(database.name, port_of(database)) as between,
    ):
        counting.project.set_url(between.url(database.url))
        process = counting.start_and_wait_for_a_chunk()
        between.refuse()
        wait_until(lambda: has_told(process, "accepts no connection"), process)
        between.accept()
        wait_until(lambda: process.poll() is not None)
        assert process.poll() == 0, last_words(process)
        told = [json.loads(line) for line in process.read_stdout().splitlines()]
        reasons = [one.get("reason", "") for one in told if one["event"] == "retry"]
        assert any("refused" in reason for reason in reasons)
        assert counting.wrong() == []
