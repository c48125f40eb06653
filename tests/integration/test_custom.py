"""Statements of the user's own: what they change is done once, and counted."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from backfill import Backfill, inline
from backfill.settings import Settings
from tests.integration.support import bound, complete, fill, make, read, run, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.statements import ChunkStatements

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("year", sa.Integer, nullable=False),
)
archive = sa.Table(
    "orders_archive",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("year", sa.Integer, nullable=False),
)


class ArchiveOldOrders(Backfill):
    """Move the orders before 2020 into their own table."""

    revision = "x"
    table = "orders"
    where = "year < 2020"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> None:
        rows = chunk.select(chunk.table.c.id, chunk.table.c.year)
        connection.execute(sa.insert(archive).from_select(["id", "year"], rows))
        connection.execute(chunk.delete())


def test_rows_are_moved_once_and_counted(engine: sa.Engine) -> None:
    metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": i, "year": 2022 if i % 3 == 0 else 2019} for i in range(1, 1001)]
        connection.execute(sa.insert(orders), rows)

    complete(engine, ArchiveOldOrders, chunk_size=50)

    with engine.connect() as connection:
        left = set(connection.scalars(sa.select(orders.c.id)))
        moved = set(connection.scalars(sa.select(archive.c.id)))
    assert left == {i for i in range(1, 1001) if i % 3 == 0}
    assert moved == {i for i in range(1, 1001) if i % 3}
    assert status(engine, ArchiveOldOrders)["rows_changed"] == len(moved)


def test_the_last_row_of_a_table_may_be_moved(engine: sa.Engine) -> None:
    """What is proved at the end has no highest key any more."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(orders), [{"id": i, "year": 2019} for i in range(1, 101)])

    complete(engine, ArchiveOldOrders, chunk_size=30)

    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(orders)) == 0


class ArchiveBesideWriters(ArchiveOldOrders):
    """While the application inserts and changes rows between the two statements."""

    name = "archive_beside_writers"
    between: ClassVar[Callable[[], None]]

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> None:
        rows = chunk.select(chunk.table.c.id, chunk.table.c.year)
        connection.execute(sa.insert(archive).from_select(["id", "year"], rows))
        type(self).between()
        connection.execute(chunk.delete())


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("where", ["year < 2020", None])
def test_both_statements_are_about_the_same_rows(engine: sa.Engine, where: str | None) -> None:
    """What is inserted between them is not deleted, and what is changed waits."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": i, "year": 2001} for i in range(0, 100, 10)]
        connection.execute(sa.insert(orders), rows)
    inserted, changed = list[int](), list[int]()

    def write() -> None:
        if inserted:
            return
        inserted.extend([5, 45])
        with engine.begin() as connection:
            rows = [{"id": i, "year": 2002} for i in inserted]
            connection.execute(sa.insert(orders), rows)
        writer.start()

    def change() -> None:
        with engine.begin() as connection:
            found = connection.execute(sa.update(orders).where(orders.c.id == 20).values(year=2003))
            changed.append(found.rowcount)

    writer = threading.Thread(target=change)
    members = {"where": where, "between": staticmethod(write)}
    complete(engine, type("Beside", (ArchiveBesideWriters,), members), chunk_size=100)
    writer.join(30)
    with engine.connect() as connection:
        left = {row.id: row.year for row in connection.execute(sa.select(orders))}
        moved = {row.id: row.year for row in connection.execute(sa.select(archive))}
    assert changed == [0], "it waited, and found the row gone"
    assert left.keys() | moved.keys() == {*range(0, 100, 10), 5, 45}
    assert not left.keys() & moved.keys()
    assert {key: year for key, year in moved.items() if key % 10 == 0} == dict.fromkeys(
        range(0, 100, 10), 2001
    )


class ArchiveByCompositeKey(Backfill):
    revision = "x"
    table = "lines"
    where = "year < 2020"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int:
        return connection.execute(chunk.delete()).rowcount


class Empty(Backfill):
    """Delete all."""

    table = "orders"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int:
        return connection.execute(chunk.delete()).rowcount


@pytest.mark.requires("schemas")
def test_rows_that_a_policy_lets_nobody_lock_are_done(engine: sa.Engine) -> None:
    """To lock a row takes the policies of an UPDATE, too."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(orders), [{"id": i, "year": 2000 + i} for i in range(20)])
        for statement in (
            "ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "CREATE POLICY to_read ON orders FOR SELECT USING (true)",
            "CREATE POLICY to_delete ON orders FOR DELETE USING (true)",
            "CREATE POLICY to_update ON orders FOR UPDATE USING (year % 2 = 0)",
        ):
            connection.execute(sa.text(statement))
    complete(engine, Empty, chunk_size=7)
    assert read(engine, orders, "id") == []


@pytest.mark.requires("row_locks")
def test_inside_a_revision_locks_are_waited_for(engine: sa.Engine) -> None:
    """As the migration's other statements do; a run gives way, and comes again."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(orders), [{"id": i, "year": 2019} for i in range(1, 21)])
    target = bound(engine, Empty)
    with engine.connect() as holder:
        holder.execute(sa.update(orders).where(orders.c.id == 5).values(year=2020))
        threading.Timer(0.3, holder.commit).start()
        with engine.begin() as connection:
            assert inline.complete(connection, target, Settings(), "alembic_version") == 20
    assert read(engine, orders, "id") == []


def test_rows_of_a_composite_key(engine: sa.Engine) -> None:
    lines = make(
        engine,
        "lines",
        sa.Column("a", sa.String(10), primary_key=True),
        sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("year", sa.Integer, nullable=False),
        rows=[{"a": f"it's {i % 7}", "b": i, "year": 2019 if i % 3 else 2022} for i in range(1000)],
    )
    complete(engine, ArchiveByCompositeKey, chunk_size=50)
    assert sorted(read(engine, lines, "b")) == [i for i in range(1000) if i % 3 == 0]
    assert status(engine, ArchiveByCompositeKey)["rows_changed"] == 666


class Misspells(ArchiveOldOrders):
    name = "misspells"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> None:
        connection.execute(chunk.update().values(yaer=1))


def test_an_error_is_told_with_the_line_of_the_class(engine: sa.Engine) -> None:
    """SQLAlchemy raises it, somewhere deep in its own code."""
    metadata.create_all(engine)
    fill(engine, orders, [{"id": 1, "year": 2000}])
    ran = run(engine, Misspells)
    line = Misspells.apply.__code__.co_firstlineno + 1
    assert f"CompileError at test_custom.py:{line} in apply" in ran.result.text


@pytest.mark.requires("untyped_columns")
def test_trouble_at_its_end_is_not_blamed_on_apply(engine: sa.Engine) -> None:
    """Its savepoint is there, and cannot be released right now."""
    metadata.create_all(engine)
    fill(engine, orders, [{"id": i, "year": 2000} for i in range(3)])
    left = [sqlite3.OperationalError("database is locked")]
    left[0].sqlite_errorcode = 5  # SQLITE_BUSY

    def fail_once(cursor: Any, statement: str, *_: Any) -> None:
        if left and statement.startswith("RELEASE"):
            raise left.pop()

    sa.event.listen(engine, "do_execute", fail_once)
    complete(engine, ArchiveOldOrders)
    assert not left
