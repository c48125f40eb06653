"""`backfill.is_complete`, asked on the application's own connections and sessions."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import backfill
from backfill import Backfill, tables
from backfill.budget import Budget
from backfill.completion import LOOKED_AT
from backfill.dialects import dialect_for
from backfill.runs import NewRun, Status
from backfill.store import Store
from tests.availability import give_up
from tests.databases import DRIVERS, Unavailable
from tests.integration.support import complete, count, make, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.databases import Database, Servers

NAME = "fill_b"
NOW = datetime(2026, 1, 1)
SUCCEEDED = {
    "name": NAME,
    **dict.fromkeys(("number", "pass_number"), 1),
    **dict.fromkeys(("revision", "fingerprint"), ""),
    **dict.fromkeys(("created_at", "updated_at"), NOW),
    "status": "succeeded",
    "settings": "{}",
}


class FillB(Backfill):
    """Copy a."""

    table = "items"
    where = "b IS NULL"
    values: ClassVar = {"b": "a"}


class CountUp(Backfill):
    """Add one, once."""

    table = "items"
    values: ClassVar = {"a": "a + 1"}


def succeeded(engine: sa.Engine, declaration: type[Backfill]) -> None:
    """Record a success, as a run that has proved it would."""
    store = Store(dialect_for(engine))
    store.ensure()
    store.create(NewRun(declaration.name, 1, "a1", "", {}, None, None), [])
    for status in (Status.RUNNING, Status.SUCCEEDED):
        store.move(declaration.name, status)


def make_items(engine: sa.Engine, rows: int, b: int | None = None) -> sa.Table:
    return make(
        engine,
        "items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("a", sa.Integer, nullable=False),
        sa.Column("b", sa.Integer),
        rows=[{"id": i, "a": i, "b": b} for i in range(1, rows + 1)],
    )


def asked(engine: sa.Engine, what: str | type[Backfill] = NAME) -> bool:
    with engine.connect() as connection:
        return backfill.is_complete(connection, what)


@pytest.fixture
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """What is sent to the database."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


def test_before_while_and_after(engine: sa.Engine) -> None:
    make_items(engine, 10)
    assert not asked(engine)
    run(engine, FillB, budget=Budget(rows=5), chunk_size=5)
    assert not asked(engine)
    complete(engine, FillB)
    assert asked(engine)
    assert not asked(engine, "another")


def test_a_new_run_takes_it_back(engine: sa.Engine) -> None:
    """As after a downgrade and an upgrade: the next `backfill run` sees what is pending again."""
    table = make_items(engine, 10)
    succeeded(engine, FillB)
    with engine.begin() as connection:
        connection.execute(table.update().values(b=None))
    run(engine, FillB, budget=Budget(rows=5), chunk_size=5)
    assert not asked(engine)


def test_success_is_remembered_with_the_connection(
    engine: sa.Engine, statements: list[str]
) -> None:
    make_items(engine, 1)
    succeeded(engine, FillB)
    with engine.connect() as connection:
        assert backfill.is_complete(connection, NAME)
        del statements[:]
        assert backfill.is_complete(connection, NAME)
        assert statements == []
        assert backfill.is_complete(connection, NAME, remember=False)
        assert statements != []


def test_what_is_not_complete_is_asked_again(engine: sa.Engine) -> None:
    make_items(engine, 1)
    with engine.connect() as connection:
        assert not backfill.is_complete(connection, NAME)
        connection.rollback()  # a new snapshot, where the database keeps one
        succeeded(engine, FillB)
        assert backfill.is_complete(connection, NAME)


SESSIONS: dict[str, Callable[[sa.Engine], Any]] = {
    "Session": Session,
    "scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
}


@pytest.mark.parametrize("kind", SESSIONS)
def test_sessions(engine: sa.Engine, kind: str) -> None:
    table = make_items(engine, 1)
    succeeded(engine, FillB)
    session = SESSIONS[kind](engine)
    session.execute(table.insert().values(id=7, a=7))
    assert backfill.is_complete(session, NAME)
    session.rollback()
    session.close()
    assert count(engine, table) == 1


@pytest.fixture(params=["aiosqlite", "asyncpg"])
def asynchronous(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> Iterator[Database]:
    """A fresh database, with the URL of an asynchronous driver."""
    try:
        with servers.database(DRIVERS[request.param].database, tmp_path) as database:
            yield database.through(request.param)
    except Unavailable as error:
        give_up(request.param, error)


def test_asynchronous_ones(asynchronous: Database) -> None:
    asyncio.run(ask_asynchronously(create_async_engine(asynchronous.url, poolclass=sa.NullPool)))


async def ask_asynchronously(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda c: tables.metadata.create_all(c))
        await connection.execute(tables.schema.insert().values(version=tables.SCHEMA_VERSION))
        assert not await connection.run_sync(backfill.is_complete, NAME)
        await connection.execute(tables.run.insert().values(SUCCEEDED))
        assert await connection.run_sync(backfill.is_complete, NAME)
        with pytest.raises(TypeError, match="run_sync"):
            backfill.is_complete(connection, NAME)
        async with AsyncSession(connection) as session:
            assert await session.run_sync(backfill.is_complete, NAME)
            with pytest.raises(TypeError, match="run_sync"):
                backfill.is_complete(session, NAME)


def test_an_engine_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(TypeError, match="takes a Connection or a Session, not Engine"):
        backfill.is_complete(engine, NAME)


def test_on_a_connection_in_autocommit(engine: sa.Engine) -> None:
    make_items(engine, 1)
    succeeded(engine, FillB)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert backfill.is_complete(connection, NAME)


# -- with the class, the data are asked ----------------------------------------------------


def test_class_asks_the_data_of_a_small_table(engine: sa.Engine) -> None:
    table = make_items(engine, 3, b=1)
    assert not asked(engine, NAME)
    assert asked(engine, FillB)
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id == 3).values(b=None))
    assert not asked(engine, FillB)


def test_class_does_not_believe_a_success_that_the_data_deny(engine: sa.Engine) -> None:
    table = make_items(engine, 10)
    succeeded(engine, FillB)
    with engine.begin() as connection:
        connection.execute(table.update().values(b=None))
    assert (asked(engine, NAME), asked(engine, FillB)) == (True, False)


def test_class_does_not_walk_a_large_table(engine: sa.Engine, statements: list[str]) -> None:
    make_items(engine, LOOKED_AT + 1, b=1)
    assert not asked(engine, FillB)  # a row behind those might be pending
    succeeded(engine, FillB)
    del statements[:]
    assert asked(engine, FillB)
    assert all("LIMIT" in one for one in statements if "FROM items" in one and "1 = 0" not in one)


def test_class_without_where(engine: sa.Engine) -> None:
    table = make_items(engine, 0)
    assert asked(engine, CountUp)
    with engine.begin() as connection:
        connection.execute(table.insert().values(id=1, a=1))
    assert not asked(engine, CountUp)
    succeeded(engine, CountUp)
    assert asked(engine, CountUp)


def test_class_before_its_revision(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    make(engine, "items", sa.Column("id", sa.Integer, primary_key=True))
    assert not asked(engine, FillB)
    assert "the database refuses the SQL" in caplog.text or "no column 'b'" in caplog.text


# -- when unsure, False, and the caller's transaction goes on ------------------------------


def test_newer_state_tables(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    make_items(engine, 1)
    succeeded(engine, FillB)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE backfill_schema SET version = 99"))
    assert not asked(engine)
    assert "Install the newer backfill" in caplog.text


@pytest.mark.requires("schemas")  # and with them privileges by table
def test_without_the_privilege(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    table = make_items(engine, 1)
    succeeded(engine, FillB)
    with engine.begin() as connection:
        connection.execute(sa.text("REVOKE SELECT ON backfill_run FROM CURRENT_USER"))
    with engine.begin() as connection:
        connection.execute(table.insert().values(id=2, a=2))
        assert not backfill.is_complete(connection, NAME)
    assert "a privilege is missing" in caplog.text
    assert count(engine, table) == 2


@pytest.mark.parametrize("status", [Status.PAUSED, Status.CANCELLED, Status.FAILED])
def test_a_run_that_does_not_go_on(engine: sa.Engine, status: Status) -> None:
    make_items(engine, 10)
    store = Store(dialect_for(engine))
    store.ensure()
    store.create(NewRun(NAME, 1, "a1", "", {}, None, None), [])
    for one in (Status.RUNNING, status):
        store.move(NAME, one)
    assert not asked(engine, NAME)
