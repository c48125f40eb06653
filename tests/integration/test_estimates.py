"""How many rows a table has, as `plan` and `run` say it before they have read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.dialects import dialect_for
from backfill.planner import make_plan
from backfill.settings import Settings
from tests.integration.support import LIMITS, bound, make

if TYPE_CHECKING:
    from collections.abc import Sequence


class Fill(Backfill):
    table = "things"
    where = "n IS NULL"
    values = {"n": "1"}  # noqa: RUF012


def things(engine: sa.Engine, rows: int, *, width: int = 1) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        sa.Column("body", sa.Text),
        rows=({"id": i, "n": None, "body": "x" * width} for i in range(1, rows + 1)),
    )


def estimate(engine: sa.Engine, table: sa.Table) -> tuple[int | None, Sequence[str]]:
    """What is told of a table, and the statements for it."""
    dialect = dialect_for(engine)
    sent: list[str] = []
    with (
        dialect.open(LIMITS) as connection,
        dialect.transaction(connection, LIMITS, write=False),
    ):
        sa.event.listen(
            connection, "before_cursor_execute", lambda *given: sent.append(str(given[2]))
        )
        return dialect.row_estimate(connection, table), sent


@pytest.mark.parametrize("rows", [0, 1, 10])
def test_a_few_rows_that_nobody_has_analyzed(engine: sa.Engine, rows: int) -> None:
    things(engine, rows)
    found = make_plan(bound(engine, Fill), Settings()).rows_estimated
    assert found is None or found <= 10 * max(rows, 1)


@pytest.mark.requires("dead_rows")
def test_a_small_file_is_counted(engine: sa.Engine) -> None:
    assert estimate(engine, things(engine, 500))[0] == 500


@pytest.mark.requires("dead_rows")
def test_a_large_file_is_not_counted(engine: sa.Engine) -> None:
    """Its few rows are wide: by the planner's guess alone it may be a small one."""
    table = things(engine, 100, width=1_500)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT pg_relation_size('things')").scalar_one() > 81_920
    before = reads(engine)
    found, sent = estimate(engine, table)
    assert (found or 0) > 100
    assert len(sent) == 2
    assert reads(engine) == before


@pytest.mark.requires("dead_rows")
def test_partitions_are_not_counted(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (id int, n int) PARTITION BY RANGE (id)")
        connection.exec_driver_sql("CREATE TABLE part PARTITION OF things DEFAULT")
        connection.exec_driver_sql("INSERT INTO things VALUES (1, 1)")
    found, _ = estimate(engine, sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer)))
    assert (found or 0) > 1


def reads(engine: sa.Engine) -> int:
    """How often the table was scanned."""
    with engine.connect() as connection:
        query = "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'things'"
        return int(connection.exec_driver_sql(query).scalar_one())
