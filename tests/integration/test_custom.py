"""Statements of the user's own: what they change is done once, and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill import Backfill
from tests.integration.support import complete, status

if TYPE_CHECKING:
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
