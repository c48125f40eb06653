"""The table changes while a backfill is on its way: a clear error, nothing lost or done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from backfill import Backfill, inline, quarantine, settings
from backfill.budget import Budget
from backfill.dialects import dialect_for
from backfill.errors import BackfillError, DeclarationError, KeyChanged
from backfill.runs import Outcome, Status
from backfill.store import Store
from tests.integration.support import bound, complete, failures, fill, read, run, status

ROWS = 60
HALF = ROWS // 2

Change = Callable[[sa.Connection], None]


def things(name: str = "things", key: Any = sa.Integer, n: Any = sa.Integer) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", key, primary_key=True, autoincrement=False),
        sa.Column("given", sa.Integer, nullable=False),
        sa.Column("n", n),
    )


@pytest.fixture
def table(engine: sa.Engine) -> sa.Table:
    rows = [{"id": i, "given": i, "n": None} for i in range(1, ROWS + 1)]
    made = things()
    made.create(engine)
    fill(engine, made, rows)
    return made


class Declares(Backfill, abstract=True):
    name = "fill_n"
    table = "things"
    where = "n IS NULL"
    chunk_size = 10


class InSql(Declares):
    name = "fill_n"
    values: ClassVar = {"n": "given"}


class InPython(Declares):
    name = "fill_n"
    reads = ("given",)
    writes = ("n",)

    def transform(self, row: Any) -> dict[str, Any]:
        return {"n": row.given}


def changing(engine: sa.Engine, change: Change) -> type[Backfill]:
    """What Python does, with a change of the table before row 31 is computed, once."""
    left = [change]

    class Changing(Declares):
        name = "fill_n"
        reads = ("given",)
        writes = ("n",)

        def transform(self, row: Any) -> dict[str, Any]:
            if int(row.id) > HALF and left:
                apply(engine, left.pop())
            return {"n": row.given}

    return Changing


def apply(engine: sa.Engine, change: Change) -> None:
    with engine.begin() as connection:
        change(connection)


# -- what happens to tables ------------------------------------------------------------------


def sql(*statements: str) -> Change:
    def change(connection: sa.Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    return change


def swap(new: sa.Table) -> Change:
    """As gh-ost, pt-online-schema-change and Alembic's batch mode do: a copy takes the name."""

    def change(connection: sa.Connection) -> None:
        made = new.to_metadata(sa.MetaData(), name="things_new")
        connection.execute(CreateTable(made))
        old = things()
        copied = [sa.cast(old.c[c.name], c.type) for c in made.c]
        connection.execute(made.insert().from_select(list(made.c.keys()), sa.select(*copied)))
        connection.exec_driver_sql("ALTER TABLE things RENAME TO things_old")
        connection.exec_driver_sql("ALTER TABLE things_new RENAME TO things")

    return change


DROP_WRITTEN = sql("ALTER TABLE things DROP COLUMN n")
DROP_READ = sql("ALTER TABLE things RENAME COLUMN given TO taken")
RENAME = sql("ALTER TABLE things RENAME TO elsewhere")
BREAKS = {
    "written column dropped": (DROP_WRITTEN, "no column 'n'", "ALTER TABLE things ADD n integer"),
    "read column renamed": (
        DROP_READ,
        "no column 'given'",
        "ALTER TABLE things RENAME COLUMN taken TO given",
    ),
    "table renamed": (RENAME, "no table 'things'", "ALTER TABLE elsewhere RENAME TO things"),
}


@pytest.mark.parametrize("what", list(BREAKS))
def test_change_that_breaks_a_run_is_told(engine: sa.Engine, table: sa.Table, what: str) -> None:
    """Under a run by Python; what is mended goes on where it was."""
    change, words, mended = BREAKS[what]
    ran = run(engine, changing(engine, change))
    assert ran.outcome is Outcome.FAILED
    assert words in ran.result.text, ran.result.text
    assert failures(engine, InPython) == [], "the rows are not to blame"
    assert status(engine, InPython)["status"] == "failed"
    apply(engine, sql(mended))
    complete(engine, InPython, accept_change=True)
    assert read(engine, table, "n") == list(range(1, ROWS + 1))


@pytest.mark.parametrize("what", list(BREAKS))
@pytest.mark.parametrize("way", [InSql, InPython])
def test_change_between_two_commands_is_told(
    engine: sa.Engine, table: sa.Table, what: str, way: type[Backfill]
) -> None:
    change, words, mended = BREAKS[what]
    run(engine, way, budget=Budget(rows=HALF))
    apply(engine, change)
    with pytest.raises(DeclarationError) as refused:
        run(engine, way)
    assert words in str(refused.value) or "refuses the SQL" in str(refused.value)
    assert status(engine, way)["status"] == "pending"
    apply(engine, sql(mended))
    complete(engine, way)
    assert read(engine, table, "n") == list(range(1, ROWS + 1))


KEPT = {
    "a copy": swap(things()),
    "wider key": swap(things(key=sa.BigInteger)),
    "wider column": swap(things(n=sa.BigInteger)),
}


@pytest.mark.parametrize("what", list(KEPT))
def test_swapped_table_is_walked_on(engine: sa.Engine, table: sa.Table, what: str) -> None:
    ran = run(engine, changing(engine, KEPT[what]))
    assert ran.outcome in (Outcome.COMPLETE, Outcome.FAILED), ran.result.text
    complete(engine, InPython, accept_change=True)
    assert read(engine, table, "n") == list(range(1, ROWS + 1))
    assert sa.inspect(engine).has_table("things_old")


@pytest.mark.parametrize("kind", [sa.String(20), sa.Numeric(10, 2)])
def test_type_of_what_is_written_changes(engine: sa.Engine, table: sa.Table, kind: Any) -> None:
    ran = run(engine, changing(engine, swap(things(n=kind))))
    assert ran.outcome in (Outcome.COMPLETE, Outcome.FAILED), ran.result.text
    assert failures(engine, InPython) == [], "the rows are not to blame"

    class Mended(Declares):
        name = "fill_n"
        reads = ("given",)
        writes = ("n",)

        def transform(self, row: Any) -> dict[str, Any]:
            return {"n": str(row.given) if isinstance(kind, sa.String) else row.given}

    complete(engine, Mended, accept_change=True)
    now = things(n=kind)
    assert [int(n) for n in read(engine, now, "n")] == list(range(1, ROWS + 1))


# -- the key ---------------------------------------------------------------------------------

TO_TEXT = swap(things(key=sa.String(20)))


class CountUp(Backfill):
    """Only the cursors tell what of this is done."""

    name = "count_up"
    table = "things"
    chunk_size = 10
    values: ClassVar = {"given": "given + 1000"}


def test_key_of_another_type_means_other_rows(engine: sa.Engine, table: sa.Table) -> None:
    """'9' is above '10': a cursor of numbers would leave rows out."""
    run(engine, CountUp, budget=Budget(rows=HALF))
    apply(engine, TO_TEXT)
    with pytest.raises(KeyChanged) as refused:
        run(engine, CountUp)
    for words in ("id (String) now", "was id (Integer)", "`backfill cancel count_up`"):
        assert words in str(refused.value)
    now = things(key=sa.String(20))
    done = sorted(n for n in read(engine, now, "given") if n > 1000)
    assert done == list(range(1001, 1001 + HALF)), "nothing was done twice"
    Store(dialect_for(engine)).move("count_up", Status.CANCELLED)
    complete(engine, CountUp)


def test_key_of_another_column_is_refused_too(engine: sa.Engine, table: sa.Table) -> None:
    """As where a revision makes another primary key, and the class names none."""
    run(engine, CountUp, budget=Budget(rows=HALF))
    new = sa.Table(
        "things",
        sa.MetaData(),
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("given", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
    )
    apply(engine, swap(new))
    with pytest.raises((KeyChanged, DeclarationError)):
        run(engine, CountUp)


def test_key_that_changes_under_a_run_is_no_success(engine: sa.Engine, table: sa.Table) -> None:
    left = [TO_TEXT]

    class Counting(Backfill):
        name = "count_up"
        table = "things"
        chunk_size = 10
        reads = ("given",)
        writes = ("given",)

        def transform(self, row: Any) -> dict[str, Any]:
            if int(row.id) > HALF and left:
                apply(engine, left.pop())
            return {"given": row.given + 1000}

    ran = run(engine, Counting)
    assert ran.outcome is Outcome.FAILED, ran.result.text
    assert status(engine, Counting)["status"] == "failed"


def test_quarantined_keys_are_not_taken_for_others(engine: sa.Engine, table: sa.Table) -> None:
    """`failures --retry` after the key has changed takes no row off the list unwritten."""

    class Picky(Declares):
        name = "picky"
        writes = ("n",)

        def transform(self, row: Any) -> dict[str, Any]:
            if row.id == 9:
                raise ValueError
            return {"n": 1}

    assert run(engine, Picky).outcome is Outcome.QUARANTINED
    apply(engine, TO_TEXT)
    target = bound(engine, Picky)
    kept = Store(target.dialect)
    found = kept.current("picky")
    assert found is not None
    with pytest.raises(KeyChanged):
        quarantine.retry(target, kept, found, settings.Settings())
    assert [one["key"] for one in failures(engine, Picky)] == [[9]]


def test_inline_gate_does_not_go_on_by_another_key(engine: sa.Engine, table: sa.Table) -> None:
    run(engine, CountUp, budget=Budget(rows=HALF))
    apply(engine, TO_TEXT)
    target = bound(engine, CountUp)
    with engine.connect() as connection, pytest.raises(BackfillError):
        inline.complete(connection, target, settings.Settings(), "")
