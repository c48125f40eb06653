"""Sizes and rests of real chunks: bytes, time limits, `nice`, and what `backfill set` changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.budget import Budget
from backfill.dialects import dialect_for
from backfill.errors import StateError
from backfill.runs import Outcome
from backfill.speed.pacing import Delay, Done, Pace
from backfill.store import Store
from tests.integration.support import LIMITS, bound, complete, count, make, run, status

if TYPE_CHECKING:
    from tests.databases import Database

ANALYZE = {True: "ANALYZE TABLE things", False: "ANALYZE things"}
WIDTH = 5_000


class SetBased(Backfill):
    name = "fill"
    table = "things"
    where = "n IS NULL"
    values = {"n": "id"}  # noqa: RUF012


class InPython(Backfill):
    name = "fill"
    table = "things"
    where = "n IS NULL"
    reads = ("body",)
    writes = ("n",)

    def transform(self, row: Any) -> dict[str, Any]:
        return {"n": len(row.body)}


def things(engine: sa.Engine, rows: int, *, width: int = 1) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        sa.Column("body", sa.Text),
        rows=({"id": i, "n": None, "body": "x" * width} for i in range(1, rows + 1)),
    )


def analyze(engine: sa.Engine, database: Database) -> None:
    """Let the database gather statistics; MariaDB has a word more for it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(ANALYZE["plain_engines" in database.capabilities])


def test_rows_are_known_to_be_wide_from_the_databases_statistics(
    engine: sa.Engine, database: Database
) -> None:
    things(engine, 60, width=1_500)
    analyze(engine, database)
    target = bound(engine, SetBased)
    with (
        target.dialect.open(LIMITS) as connection,
        target.dialect.transaction(connection, LIMITS, write=False),
    ):
        found = target.dialect.row_bytes(connection, target.table)
    assert found is not None
    assert 1_400 <= found <= 4_000


@pytest.mark.parametrize("declaration", [SetBased, InPython])
def test_a_chunk_of_wide_rows_is_bounded_by_its_bytes(
    engine: sa.Engine, database: Database, declaration: type[Backfill]
) -> None:
    things(engine, 120, width=1_500)
    analyze(engine, database)
    ran = complete(engine, declaration, chunk_bytes=30_000, target_seconds=5)
    assert max(ran.numbers("chunk", "scanned")) <= 21
    assert sum(ran.numbers("chunk", "changed")) == 120


def test_rows_that_python_reads_are_measured_even_where_statistics_say_nothing(
    engine: sa.Engine,
) -> None:
    things(engine, 900, width=WIDTH)
    dialect = dialect_for(engine)
    dialect.row_bytes = lambda connection, table: None  # type: ignore[method-assign]
    dialect.first_rows = 500  # type: ignore[misc]
    ran = complete(engine, InPython, dialect=dialect, chunk_bytes=30 * WIDTH, target_seconds=5)
    first, *others = ran.numbers("chunk", "scanned")
    assert first == 500
    assert max(others) <= 30


def test_a_statement_that_takes_too_long_is_tried_on_half_of_its_rows(engine: sa.Engine) -> None:
    """Each row of these costs a scan of another table."""
    things(engine, 600)
    make(
        engine,
        "others",
        sa.Column("x", sa.Integer, primary_key=True, autoincrement=False),
        rows=({"x": -i} for i in range(1, 6_001)),
    )

    class CountOthers(Backfill):
        table = "things"
        where = "n IS NULL"
        values = {"n": "(SELECT count(*) FROM others WHERE others.x <> things.id)"}  # noqa: RUF012

    ran = complete(engine, CountOthers, statement_timeout=0.04, target_seconds=0.02)
    assert ran.numbers("retry", "attempt")
    assert ran.numbers("chunk", "scanned")[0] < 500
    assert sum(ran.numbers("chunk", "changed")) == 600


def test_nice_rests_in_proportion(engine: sa.Engine) -> None:
    things(engine, 200)
    began = time.monotonic()
    ran = complete(engine, InPython, chunk_size=40, nice=10)
    assert time.monotonic() - began >= 10 * sum(ran.numbers("chunk", "seconds")[:-1])


def test_set_lasts_until_the_run_has_ended_or_it_is_taken_back(engine: sa.Engine) -> None:
    table, store = things(engine, 1_000), Store(dialect_for(engine))
    assert run(engine, SetBased, budget=Budget(rows=100)).outcome is Outcome.STOPPED
    store.change("fill", {"chunk_size": 150, "nice": 0.1})
    assert store.change("fill", {"nice": None}).changed == {"chunk_size": 150}
    assert status(engine, SetBased)["set"] == {"chunk_size": 150}
    ran = complete(engine, SetBased, chunk_size=7)
    assert ran.numbers("chunk", "changed") == [150] * 6
    assert ran.texts("changed") == ["from now on chunk_size is 150"]
    assert count(engine, table, table.c.n.is_(None)) == 0
    with pytest.raises(StateError, match="no unfinished run"):
        store.change("fill", {"nice": 1.0})


def test_what_was_set_belongs_to_one_run(engine: sa.Engine) -> None:
    table, store = things(engine, 300), Store(dialect_for(engine))
    assert run(engine, SetBased, budget=Budget(rows=100)).outcome is Outcome.STOPPED
    store.change("fill", {"chunk_size": 50})
    complete(engine, SetBased, chunk_size=100)
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(n=None))
    ran = complete(engine, SetBased, chunk_size=100)
    assert ran.numbers("chunk", "changed") == [100] * 3
    assert status(engine, SetBased)["set"] == {}


def test_a_database_that_is_busy_slows_it_down_and_hears_why(engine: sa.Engine) -> None:
    things(engine, 200)
    ran = complete(engine, SetBased, chunk_size=40, throttle_query="SELECT 0.9")
    (reason,) = ran.texts("throttled")
    assert reason.startswith("slowed to ")
    assert "`throttle_query`" in reason
    query = sa.text("SELECT details FROM backfill_event WHERE what = 'throttled'")
    with engine.connect() as connection:
        assert connection.execute(query).scalars().all() == [reason]


@pytest.mark.parametrize("answer", ["0", "0.0", "'0'", "1 = 0"])
def test_a_database_that_is_free_is_none_of_our_business(engine: sa.Engine, answer: str) -> None:
    things(engine, 200)
    ran = complete(engine, SetBased, throttle_query=f"SELECT {answer}", budget=Budget(seconds=5))
    assert ran.texts("throttled") == []


@pytest.mark.parametrize("answer", ["body", "id + 4711", "n", "id FROM things WHERE 1 = 0"])
def test_what_a_query_returns_of_a_row_is_not_told(engine: sa.Engine, answer: str) -> None:
    things(engine, 10, width=50)
    query = f"SELECT {answer}" if "FROM" in answer else f"SELECT {answer} FROM things"
    ran = run(engine, SetBased, throttle_query=query, until="throttled")
    (reason,) = ran.texts("throttled")
    assert ran.outcome is Outcome.STOPPED
    assert "`throttle_query` must return one number between 0 (free) and 1 (stop)" in reason
    with engine.connect() as connection:
        query = "SELECT details FROM backfill_event WHERE what = 'throttled'"
        (told,) = connection.exec_driver_sql(query).scalars()
    assert told == reason
    assert "x" * 5 not in reason
    assert "47" not in reason


def test_a_stop_holds_while_a_chunk_is_taken_apart(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database refuses row 13; when that is known a signal stops us."""
    table = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        sa.CheckConstraint("n <> 13"),
        rows=({"id": i, "n": None} for i in range(1, 65)),
    )
    budget, written = Budget(), []
    at_full_pace = Pace.delay

    def delay(pace: Pace, done: Done | None) -> Delay:
        if not budget.failures:
            return at_full_pace(pace, done)
        written.append(done_rows())
        if len(written) == 3:
            budget.ask_to_stop("seen enough")
        return Delay(0.01, "waits: for the test", waits=True)

    def done_rows() -> int:
        with engine.connect() as connection:
            found = sa.select(sa.func.count()).where(table.c.n.is_not(None))
            return int(connection.execute(found).scalar_one())

    monkeypatch.setattr(Pace, "delay", delay)
    ran = run(engine, SetBased, budget=budget, chunk_size=64)
    assert ran.outcome is Outcome.STOPPED
    assert {*written, done_rows()} == {12}
