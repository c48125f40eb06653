"""A bad row stands alone: the others are written, it is listed without its values."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill import Backfill, proving, quarantine, tables
from backfill.dialects import dialect_for
from backfill.errors import DeclarationChanged, InvalidTransition
from backfill.isolation import Isolation
from backfill.planner import make_plan
from backfill.runs import Outcome, Status
from backfill.settings import Settings, resolve
from backfill.store import Store
from tests.integration.support import Ran, Row, bound, complete, failures, make, read, run, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROWS = 1000
BAD = [1, 2, 333, 500, 501, 999, 1000]
CANARY = "canary"
"""A part of every value that is in a row; it may be in nothing that we say."""


def make_things(engine: sa.Engine, bad: str = "refused", rows: int = ROWS) -> sa.Table:
    """`name` is to become `given`; for the bad rows the table, or Python, will not have it."""
    given = {i: f"{CANARY} {bad}" if i in BAD else f"{CANARY} {i}" for i in range(1, rows + 1)}
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("given", sa.String(60), nullable=False),
        sa.Column("name", sa.String(60)),
        sa.Column("n", sa.Integer, nullable=False),
        sa.UniqueConstraint("name", name="one_name"),
        sa.CheckConstraint("name NOT LIKE '%refused%'", name="no_refused"),
        rows=[
            {"id": 0, "given": "", "name": f"{CANARY} taken", "n": 0},
            *({"id": i, "given": g, "name": None, "n": 0} for i, g in given.items()),
        ],
    )


class Declares(Backfill, abstract=True):
    name = "copy_names"
    table = "things"
    where = "name IS NULL"
    chunk_size = ROWS


class InSql(Declares):
    name = "copy_names"
    values = {"name": "given", "n": "n + 1"}  # noqa: RUF012


class InPython(Declares):
    """The database refuses what it returns."""

    name = "copy_names"
    reads = ("given", "n")
    writes = ("name", "n")

    def transform(self, row: Any) -> Row:
        return {"name": row.given, "n": row.n + 1}


class Raising(Declares):
    name = "copy_names"
    reads = ("given", "n")
    writes = ("name", "n")

    def transform(self, row: Any) -> Row:
        if "refused" in row.given:
            raise ValueError(f"cannot do {row.given}")
        return {"name": row.given, "n": row.n + 1}


class RaisingAnEnd(Declares):
    """`next()` of nothing raises what iterators end with."""

    name = "copy_names"
    reads = ("given", "n")
    writes = ("name", "n")

    def transform(self, row: Any) -> Row:
        given = next(text for text in [row.given] if "refused" not in text)
        return {"name": given, "n": row.n + 1}


class RaisingForMany(Declares):
    name = "copy_names"
    reads = ("given", "n")
    writes = ("name", "n")

    def transform_chunk(self, rows: Sequence[Any]) -> list[Row]:
        refused = [row.given for row in rows if "refused" in row.given]
        if refused:
            raise LookupError(f"cannot do {refused}")
        return [{"name": row.given, "n": row.n + 1} for row in rows]


class Applied(Declares):
    name = "copy_names"

    def apply(self, connection: sa.Connection, chunk: Any) -> None:
        columns = chunk.table.c
        connection.execute(chunk.update().values(name=columns.given, n=columns.n + 1))


SPREAD = range(0, 3000, 25)
"""Keys of the rows that are pending, among many that are not."""


def test_parts_of_few_rows_far_apart_do_not_pass_what_lies_between(engine: sa.Engine) -> None:
    """They are looked up by their keys, like the chunk that they are parts of."""
    given = {i: f"{CANARY} refused" if i == SPREAD[50] else f"{CANARY} {i}" for i in range(3000)}
    things = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("given", sa.String(60), nullable=False),
        sa.Column("name", sa.String(60)),
        sa.Column("n", sa.Integer, nullable=False),
        sa.CheckConstraint("name NOT LIKE '%refused%'", name="no_refused"),
        rows=[
            {"id": i, "given": g, "name": None if i in SPREAD else "", "n": 0}
            for i, g in given.items()
        ],
    )
    sent = list[str]()

    def note(_: Any, _cursor: Any, sql: str, *_more: Any) -> None:
        if "UPDATE" in sql and "things SET" in sql:
            sent.append(sql)

    sa.event.listen(engine, "before_cursor_execute", note)
    ran = run(engine, InSql, chunk_size=100)
    assert ran.outcome is Outcome.QUARANTINED
    assert [one["key"] for one in failures(engine, InSql)] == [[SPREAD[50]]]
    assert read(engine, things, "n") == [int(i in SPREAD and i != SPREAD[50]) for i in range(3000)]
    assert sum(ran.numbers("chunk", "scanned")) == 3000
    first_lookup = next(i for i, sql in enumerate(sent) if "id >" not in sql and "id <" not in sql)
    assert len(sent[first_lookup:]) > 5
    assert not [sql for sql in sent[first_lookup:] if "id >" in sql or "id <" in sql]


CASES = [
    pytest.param(InSql, "refused", "no_refused", id="CHECK"),
    pytest.param(InSql, "taken", "name", id="UNIQUE"),
    pytest.param(InPython, "refused", "no_refused", id="CHECK-after-transform"),
    pytest.param(InPython, "taken", "name", id="UNIQUE-after-transform"),
    pytest.param(Raising, "refused", "ValueError at test_bad_rows.py", id="transform"),
    pytest.param(RaisingAnEnd, "refused", "StopIteration", id="StopIteration"),
    pytest.param(RaisingForMany, "refused", "LookupError at test_bad_rows.py", id="chunk"),
    pytest.param(Applied, "refused", "no_refused", id="apply"),
]


@pytest.mark.parametrize(("way", "bad", "cause"), CASES)
def test_bad_rows_stand_alone(engine: sa.Engine, way: type[Backfill], bad: str, cause: str) -> None:
    things = make_things(engine, bad)
    ran = run(engine, way)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert read(engine, things, "name", "n") == expected(bad=bad)
    check_list(engine, way, cause, attempts=1)
    check_silence(engine, ran)

    again = run(engine, way)
    assert again.outcome is Outcome.QUARANTINED
    assert sum(again.numbers("chunk", "changed")) == 0
    assert read(engine, things, "name", "n") == expected(bad=bad)
    check_list(engine, way, cause, attempts=1)

    assert retry(engine, way) == (0, len(BAD))
    check_list(engine, way, cause, attempts=2)
    mend(engine, things)
    assert retry(engine, way) == (len(BAD), 0)
    assert failures(engine, way) == []
    assert read(engine, things, "name", "n") == expected(bad=None)

    complete(engine, way)
    now = status(engine, way)
    assert (now["status"], now["rows_changed"], now["failures"]) == ("succeeded", ROWS, 0)


def expected(bad: str | None) -> list[tuple[str | None, int]]:
    """`name` and `n` of all rows while the bad ones are what they are, or when they are mended."""
    named: list[tuple[str | None, int]] = [(f"{CANARY} taken", 0)]
    for i in range(1, ROWS + 1):
        if i in BAD and bad is not None:
            named.append((None, 0))
        else:
            named.append((f"{CANARY} {i}", 1))
    return named


def mend(engine: sa.Engine, things: sa.Table) -> None:
    """The application corrects the values that nobody wanted."""
    with engine.begin() as connection:
        for i in BAD:
            statement = things.update().where(things.c.id == i)
            connection.execute(statement.values(given=f"{CANARY} {i}"))


def check_list(engine: sa.Engine, way: type[Backfill], cause: str, *, attempts: int) -> None:
    found = failures(engine, way)
    assert sorted(one["key"] for one in found) == [[i] for i in BAD]
    assert {one["attempts"] for one in found} == {attempts}
    assert all(cause in one["error"] for one in found), found[0]
    now = status(engine, way)
    assert (now["status"], now["failures"]) == ("failed", len(BAD))
    assert now["rows_changed"] == ROWS - len(BAD)


def check_silence(engine: sa.Engine, ran: Ran) -> None:
    """No value of a row is in what was told, or in the state tables."""
    assert CANARY not in repr(ran)
    with engine.connect() as connection:
        for table in tables.metadata.sorted_tables:
            assert CANARY not in repr(connection.execute(sa.select(table)).all())


def retry(engine: sa.Engine, way: type[Backfill], **options: Any) -> tuple[int, int]:
    target = bound(engine, way)
    store = Store(target.dialect)
    current = store.current(way.name)
    assert current is not None
    return quarantine.retry(target, store, current, resolve(("the test", options)))


def test_bad_rows_stand_alone_without_where(engine: sa.Engine) -> None:
    """Nothing tells a written row here but the cursor."""

    class OnAll(Backfill):
        name = "copy_names"
        table = "things"
        chunk_size = ROWS
        values = {"name": "CASE id WHEN 0 THEN name ELSE given END", "n": "n + 1"}  # noqa: RUF012

    things = make_things(engine)
    assert run(engine, OnAll).outcome is Outcome.QUARANTINED
    for _ in range(2):
        (_, first), *others = read(engine, things, "name", "n")
        assert (first, others) == (1, expected(bad="refused")[1:])
        assert run(engine, OnAll).outcome is Outcome.QUARANTINED
    mend(engine, things)
    assert retry(engine, OnAll) == (len(BAD), 0)
    complete(engine, OnAll)
    assert read(engine, things, "n") == [1] * (ROWS + 1)


def test_a_row_that_may_not_be_tried_is_not_blamed(engine: sa.Engine) -> None:
    make_things(engine)
    assert run(engine, InSql).outcome is Outcome.QUARANTINED
    Store(dialect_for(engine)).move(InSql.name, Status.CANCELLED)
    before = failures(engine, InSql)
    with pytest.raises(InvalidTransition):
        retry(engine, InSql)
    assert failures(engine, InSql) == before


@pytest.mark.parametrize("way", [InSql, Raising])
def test_another_run_forgets_bad_rows_that_are_gone_or_done(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    """The application has seen to them; one that is left keeps its place."""
    things = make_things(engine)
    assert run(engine, way).outcome is Outcome.QUARANTINED
    with engine.begin() as connection:
        connection.execute(things.delete().where(things.c.id.in_(BAD[:3])))
        others = things.c.id.in_(BAD[3:-1])
        connection.execute(things.update().where(others).values(name=things.c.id))
    again = run(engine, way)
    assert again.outcome is Outcome.QUARANTINED
    assert f"1 rows are quarantined: see `backfill failures {way.name}`" in again.result.text
    assert f"`backfill failures {way.name} --retry`" in again.result.text
    assert [one["key"] for one in failures(engine, way)] == [BAD[-1:]]
    with engine.begin() as connection:
        connection.execute(things.delete().where(things.c.id == BAD[-1]))
    complete(engine, way)
    assert failures(engine, way) == []


def test_bad_row_about_which_where_cannot_be_asked_stays(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_things(engine)
    assert run(engine, InSql).outcome is Outcome.QUARANTINED
    before = failures(engine, InSql)

    def refuse(*_: Any) -> bool:
        raise sa.exc.DataError("SELECT", {}, Exception("one that no row's where survives"))

    monkeypatch.setattr(proving, "is_left", refuse)
    assert run(engine, InSql).outcome is Outcome.QUARANTINED
    assert failures(engine, InSql) == before


@pytest.mark.parametrize("way", [InSql, Raising])
def test_bad_row_that_is_gone_or_done_is_off_the_list(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    things = make_things(engine)
    assert run(engine, way).outcome is Outcome.QUARANTINED
    with engine.begin() as connection:
        connection.execute(things.delete().where(things.c.id == BAD[0]))
        connection.execute(things.update().where(things.c.id == BAD[1]).values(name="by hand"))
    assert retry(engine, way) == (2, len(BAD) - 2)
    assert sorted(one["key"] for one in failures(engine, way)) == [[i] for i in BAD[2:]]
    assert read(engine, things, "name")[1] == "by hand"


def make_numbers(engine: sa.Engine, numbers: Iterable[int], **more: Any) -> sa.Table:
    """Rows that are to be counted up; above 1,000 the database refuses it."""
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.CheckConstraint("n <= 1000", name="few"),
        rows=[{"id": 100 * i, "part": 1, "n": n} for i, n in enumerate(numbers)],
        **more,
    )


class Counts(Backfill, abstract=True):
    name = "count_up"
    table = "things"


class CountedInSql(Counts):
    values = {"n": "n + 1"}  # noqa: RUF012


class CountedInPython(Counts):
    reads = ("n",)
    writes = ("n",)

    def transform(self, row: Any) -> Row:
        return {"n": row.n + 1}


class CountedByHand(Counts):
    def apply(self, connection: sa.Connection, chunk: Any) -> None:
        connection.execute(chunk.update().values(n=chunk.table.c.n + 1))


COUNTED = [CountedInSql, CountedInPython, CountedByHand]


@pytest.mark.parametrize("way", COUNTED)
def test_bad_row_that_is_gone_takes_no_other_with_it(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    """Without a `where` nothing tells that the rows before it are done."""
    things = make_numbers(engine, [0, 0, 1000, 0])
    assert run(engine, way).outcome is Outcome.QUARANTINED
    with engine.begin() as connection:
        connection.execute(things.delete().where(things.c.id == 200))
    assert retry(engine, way) == (1, 0)
    assert read(engine, things, "n") == [1, 1, 1]


@pytest.mark.parametrize("way", COUNTED)
@pytest.mark.parametrize("stays", [True, False])
def test_rows_that_come_beside_a_bad_row(
    engine: sa.Engine, way: type[Backfill], stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = make_numbers(engine, [0, 0, 1000, 0])
    passing, coming = Isolation._give_up, list(range(150, 170))

    def meanwhile(self: Any, chunk: Any, error: Exception) -> int:
        with engine.begin() as connection:
            if not stays:
                connection.execute(things.delete().where(things.c.id == 200))
            for key in coming:
                connection.execute(things.insert().values(id=key, part=1, n=0))
            coming.clear()
        return passing(self, chunk, error)

    monkeypatch.setattr(Isolation, "_give_up", meanwhile)
    ran = run(engine, way)
    assert ran.outcome is (Outcome.QUARANTINED if stays else Outcome.COMPLETE), ran.result.text
    assert read(engine, things, "n") == [1] * 22 + [1000] * stays + [1]
    assert min(ran.numbers("chunk", "scanned")) >= 0


def test_bad_rows_that_come_before_each_other_are_too_many(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = make_numbers(engine, [0, 0, 1000, 0])
    passing, coming = Isolation._give_up, list(range(150, 199))

    def meanwhile(self: Any, chunk: Any, error: Exception) -> int:
        if coming:
            with engine.begin() as connection:
                connection.execute(things.insert().values(id=coming.pop(), part=1, n=1000))
        return passing(self, chunk, error)

    monkeypatch.setattr(Isolation, "_give_up", meanwhile)
    ran = run(engine, CountedInSql, max_failures=3)
    assert ran.outcome is Outcome.FAILED
    assert "max_failures" in ran.result.text


@pytest.mark.parametrize("way", [InSql, InPython, Raising, RaisingForMany, Applied])
def test_too_many_bad_rows_stop_the_run_and_a_mended_class_goes_on(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    things = make_things(engine)
    ran = run(engine, way, chunk_size=100, max_failures=3)
    assert ran.outcome is Outcome.FAILED
    assert "more than max_failures = 3 rows cannot be written" in ran.result.text
    check_silence(engine, ran)
    assert status(engine, way)["status"] == "failed"
    listed = [one["key"][0] for one in failures(engine, way)]
    assert listed == BAD[:3]
    written = read(engine, things, "n")
    assert written == [int(0 < i < BAD[3] and i not in BAD) for i in range(ROWS + 1)]

    class Mended(Declares):
        name = "copy_names"
        values = {"name": "REPLACE(given, 'refused', CAST(id AS CHAR(20)))", "n": "n + 1"}  # noqa: RUF012

    with pytest.raises(DeclarationChanged, match="--accept-change"):
        run(engine, Mended, chunk_size=100)
    assert read(engine, things, "n") == written
    ran = run(engine, Mended, chunk_size=100, max_failures=3, accept_change=True)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert retry(engine, Mended) == (3, 0)
    complete(engine, Mended)
    assert read(engine, things, "name", "n") == expected(bad=None)


def test_transform_that_always_raises_stops_early(engine: sa.Engine) -> None:
    things = make_things(engine)
    calls: list[int] = []

    class Broken(Declares):
        name = "broken"
        reads = ("given",)
        writes = ("name",)

        def transform(self, row: Any) -> Row:
            calls.append(row.id)
            raise ValueError(f"cannot do {row.given}")

    ran = run(engine, Broken, chunk_size=50, max_failures=100)
    assert ran.outcome is Outcome.FAILED
    assert "more than max_failures = 100" in ran.result.text
    assert calls == list(range(1, len(calls) + 1))
    assert 100 < len(calls) <= 150
    (traceback,) = ran.texts("message")
    assert "in transform" in traceback
    assert "raise ValueError(" in traceback
    assert traceback.rstrip().endswith("ValueError")
    check_silence(engine, ran)
    assert set(read(engine, things, "n")) == {0}


def test_bug_in_a_transform_leaves_few_entries(engine: sa.Engine) -> None:
    """After a few chunks, with the traceback once, and not an entry a row; wherever there is no
    company (that of the other tests on the server would make many chunks of a few rows)."""
    things = make_things(engine, rows=5_000)

    class Bug(Backfill):
        name = "bug"
        table = "things"
        writes = ("name",)

        def transform(self, row: Any) -> Row:
            return {"name": row.no_such_column}

    ran = run(engine, Bug, target_seconds=0.5)
    assert ran.outcome is Outcome.FAILED
    assert "it is the declaration and not the rows" in ran.result.text
    assert len(ran.texts("message")) == 1
    assert len(failures(engine, Bug)) <= Settings().max_failures
    assert len(ran.numbers("chunk", "changed")) <= 3
    assert set(read(engine, things, "n")) == {0}


MANY = 10_000
WRITES_EACH = 20
"""Extra UPDATEs for each bad row among so many: at each of the 13 halvings, one that fails and one
that does not, less those that bad rows share."""


@pytest.mark.parametrize("way", [InSql, InPython, Raising, RaisingForMany])
def test_seven_bad_rows_of_ten_thousand(engine: sa.Engine, way: type[Backfill]) -> None:
    """What they cost grows with the logarithm of the chunk; the others are written as ever."""
    things = make_things(engine, rows=MANY)
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    ran = run(engine, way, chunk_size=MANY)
    sa.event.remove(engine, "before_cursor_execute", note)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert sorted(one["key"] for one in failures(engine, way)) == [[i] for i in BAD]
    named = read(engine, things, "name")[1:]
    assert [i for i, name in enumerate(named, 1) if name is None] == BAD
    assert sum(read(engine, things, "n")) == MANY - len(BAD)
    writes = [text for text in sent if "UPDATE" in text and "SET name" in text]
    assert len(writes) <= 1 + WRITES_EACH * len(BAD), len(writes)


# -- rows that are too slow ----------------------------------------------------------------

SLOW = {
    "postgresql": [
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.id IN (3, 17) THEN PERFORM pg_sleep(30); END IF; RETURN NEW; END $$",
        "CREATE TRIGGER dawdle BEFORE UPDATE ON things FOR EACH ROW EXECUTE FUNCTION dawdle()",
    ],
    "mariadb": [
        "CREATE TRIGGER dawdle BEFORE UPDATE ON things FOR EACH ROW"
        " IF NEW.id IN (3, 17) THEN DO SLEEP(30); END IF",
    ],
}
HURRY: Row = {"chunk_size": 8, "statement_timeout": 0.2}


@pytest.mark.requires("server")
@pytest.mark.parametrize("way", [InSql, InPython, Applied])
def test_row_that_always_takes_too_long_stands_alone(
    engine: sa.Engine, way: type[Backfill], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that meets the time limit alone, again and again, does not keep the others waiting."""
    things = make_things(engine, "good", rows=20)
    with engine.begin() as connection:
        connection.execute(things.update().values(given=sa.cast(things.c.id, sa.String(20))))
        for statement in SLOW[engine.dialect.name]:
            connection.exec_driver_sql(statement)
    ran = run(engine, way, **HURRY)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    found = failures(engine, way)
    assert [one["key"] for one in found] == [[3], [17]]
    assert all("longer than `statement_timeout`" in one["error"] for one in found), found
    done = [int(i not in (0, 3, 17)) for i in range(21)]
    assert read(engine, things, "n") == done
    monkeypatch.setattr(quarantine, "_PATIENCE_SECONDS", 0.1)
    assert retry(engine, way, **HURRY) == (0, 2)
    assert [one["attempts"] for one in failures(engine, way)] == [2, 2]
    with engine.begin() as connection:
        on = " ON things" if engine.dialect.name == "postgresql" else ""
        connection.exec_driver_sql(f"DROP TRIGGER dawdle{on}")
    assert retry(engine, way) == (2, 0)
    complete(engine, way)


# -- values that are hard to carry -----------------------------------------------------------

HUGE = "10 MB: é" + "x" * 10_000_000
HARD: list[Any] = ["", "a\0b", "\ud800", "\u202egnirts", "%s %(x)s :x", HUGE, "\x1b[31m", "'; --"]
REFUSED_BY: dict[str, list[int]] = {"sqlite": [2], "postgresql": [1, 2], "mariadb": [2]}


@pytest.mark.parametrize("one_by_one", [True, False])
def test_text_that_is_hard_to_carry(engine: sa.Engine, one_by_one: bool) -> None:
    """It arrives as it is, or its row is listed: NUL and half a character are refused by some."""
    long = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
    things = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", long),
        rows=[{"id": i} for i in range(len(HARD))],
    )

    class Hard(Backfill):
        table = "things"
        writes = ("name",)
        chunk_size = 1 if one_by_one else 100

        def transform(self, row: Any) -> Row:
            return {"name": HARD[row.id]}

    ran = run(engine, Hard)
    refused = REFUSED_BY[engine.dialect.name]
    assert [one["key"] for one in failures(engine, Hard)] == [[i] for i in refused]
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert all(len(one["error"]) < 200 for one in failures(engine, Hard))
    assert read(engine, things, "name") == [
        None if i in refused else text for i, text in enumerate(HARD)
    ]


def test_binary_values_are_planned_and_written(engine: sa.Engine) -> None:
    """SQLAlchemy wraps what goes into a LargeBinary before the driver gets it."""
    things = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary),
        rows=[{"id": i} for i in range(50)],
    )

    class Pack(Backfill):
        table = "things"
        where = "data IS NULL"
        writes = ("data",)

        def transform(self, row: Any) -> Row:
            return {"data": b"\0" + bytes([row.id])}

    plan = make_plan(bound(engine, Pack), Settings())
    assert [text for text in plan.warnings if "failed" in text] == []
    assert plan.chunk_rows == 50
    assert not [text for text in plan.statements if "= ? WHERE" in text], "not row by row"
    complete(engine, Pack)
    assert read(engine, things, "data") == [b"\0" + bytes([i]) for i in range(50)]


@pytest.mark.parametrize("where_it_is", ["read", "key"])
@pytest.mark.requires("untyped_columns")
def test_junk_in_a_column_of_moments(engine: sa.Engine, where_it_is: str) -> None:
    """SQLite stores anything there; SQLAlchemy cannot read it. One bad row, and no more."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE things (at DATETIME NOT NULL, id INTEGER UNIQUE NOT NULL, n INTEGER)"
        )
        moments = ["2024-02-29 12:30:00", "junk", "2024-02-30 99:99:99", "", "2024-01-01", "0"]
        for i, moment in enumerate(moments):
            connection.exec_driver_sql(
                "INSERT INTO things (at, id) VALUES (?, ?)", (f"{moment}", i)
            )
        connection.exec_driver_sql("CREATE UNIQUE INDEX moments ON things (at)")

    class Read(Backfill):
        name = "read"
        table = "things"
        key = "at" if where_it_is == "key" else "id"
        where = "n IS NULL"
        reads = ("at",)
        writes = ("n",)

        def transform(self, row: Any) -> Row:
            return {"n": 1}

    ran = run(engine, Read)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    listed = failures(engine, Read)
    with engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT id FROM things WHERE n IS NULL ORDER BY id")
        pending = [row[0] for row in left]
    assert 1 in pending and 0 not in pending
    assert len(listed) == len(pending)


# Types, and a value that the driver refuses to read.
UNREADABLE = {"postgresql": ("timestamp", "'infinity'"), "sqlite": ("text", "CAST(X'FF' AS text)")}


@pytest.mark.requires("unreadable_values")
@pytest.mark.parametrize("bad", [5, 95, 185])
def test_row_that_cannot_be_read_is_the_only_one_blamed(engine: sa.Engine, bad: int) -> None:
    """Its chunk is cut again by keys alone, and may be another one: pending rows are few."""
    declared, unreadable = UNREADABLE[engine.dialect.name]
    things = sa.Table(
        "things",
        sa.MetaData(),
        *(sa.Column(name, sa.Integer, primary_key=True) for name in ("a", "b")),
        sa.Column("n", sa.Integer),
    )
    pending = [*range(bad % 10, 200, 10), 96]
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE things (a integer NOT NULL, b integer NOT NULL, given {declared},"
            " n integer, PRIMARY KEY (a, b))"
        )
        connection.execute(
            things.insert(),
            [{"a": i // 50, "b": i, "n": None if i in pending else 0} for i in range(200)],
        )
        connection.exec_driver_sql(f"UPDATE things SET given = {unreadable} WHERE b = {bad}")

    class Reading(Backfill):
        name = "reading"
        table = "things"
        where = "n IS NULL"
        reads = ("given",)
        writes = ("n",)

        def transform(self, row: Any) -> Row:
            return {"n": 1}

    assert run(engine, Reading, chunk_size=10).outcome is Outcome.QUARANTINED
    assert [one["key"] for one in failures(engine, Reading)] == [[bad // 50, bad]]
    left = dict.fromkeys(pending, 1) | {bad: None}
    assert read(engine, things, "n") == [left.get(i, 0) for i in range(200)]


class ReturningText(Declares):
    writes = ("name",)

    def transform(self, row: Any) -> Any:
        return f"{CANARY} {row.id}"


class ReturningOtherColumns(Declares):
    writes = ("name",)

    def transform(self, row: Any) -> Row:
        return {"name": "x", "nmae": f"{CANARY} {row.id}"}


class ReturningTooFew(Declares):
    writes = ("name",)

    def transform_chunk(self, rows: Sequence[Any]) -> list[Row]:
        return [{"name": f"{CANARY} {row.id}"} for row in rows[1:]]


class ReturningNothing(Declares):
    writes = ("name",)

    def transform_chunk(self, rows: Sequence[Any]) -> Any:
        """A `return` was forgotten."""


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (ReturningNothing, "returned nothing; return one for each row"),
        (ReturningText, "must return a mapping of columns to values"),
        (ReturningOtherColumns, "returned nmae, which `writes` does not name"),
        (ReturningTooFew, "results; return one for each row"),
    ],
)
def test_result_of_a_wrong_kind_is_no_bad_row(
    engine: sa.Engine, way: type[Backfill], words: str
) -> None:
    things = make_things(engine)
    before = read(engine, things, "name", "n")
    ran = run(engine, way)
    assert ran.outcome is Outcome.FAILED
    assert words in ran.result.text
    check_silence(engine, ran)
    assert failures(engine, way) == []
    assert read(engine, things, "name", "n") == before


# -- apply -----------------------------------------------------------------------------


def commit(connection: sa.Connection) -> None:
    connection.commit()


def commit_in_sql(connection: sa.Connection) -> None:
    connection.exec_driver_sql("COMMIT")


def roll_back(connection: sa.Connection) -> None:
    connection.rollback()


def roll_back_in_sql(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ROLLBACK")


def close(connection: sa.Connection) -> None:
    connection.close()


def ending(end: Callable[[sa.Connection], None], when: int) -> type[Backfill]:
    """Ends the transaction in the chunk of this number, the first time that it comes by."""
    calls: list[int] = []

    class Ending(Backfill):
        name = "ending"
        table = "things"

        def apply(self, connection: sa.Connection, chunk: Any) -> None:
            calls.append(1)
            connection.execute(chunk.update().values(n=chunk.table.c.n + 1))
            if len(calls) == when:
                end(connection)

    return Ending


@pytest.mark.parametrize("end", [commit, roll_back, roll_back_in_sql, close])
@pytest.mark.parametrize("when", [1, 4])
def test_apply_that_ends_the_transaction_is_refused(
    engine: sa.Engine, end: Callable[[sa.Connection], None], when: int
) -> None:
    """The writes and the checkpoint belong together, whatever `apply` does."""
    things = make_things(engine, rows=100)
    way = ending(end, when)
    ran = run(engine, way, chunk_size=10)
    assert ran.outcome is Outcome.FAILED, ran.result.text
    if end is not close:
        assert "apply()" in ran.result.text
    assert read(engine, things, "n") == [1] * 10 * (when - 1) + [0] * (101 - 10 * (when - 1))
    complete(engine, way, chunk_size=10)
    assert read(engine, things, "n") == [1] * 101


def test_apply_that_commits_in_sql_is_told(engine: sa.Engine) -> None:
    """What is committed cannot be taken back, but the run does not go on over it."""
    make_things(engine, rows=100)
    ran = run(engine, ending(commit_in_sql, 4), chunk_size=10)
    assert ran.outcome is Outcome.FAILED, ran.result.text
    assert "apply()" in ran.result.text
    assert status(engine, ending(commit_in_sql, 4))["rows_changed"] == 30


def test_apply_that_raises_leaves_nothing_half_done(engine: sa.Engine) -> None:
    things = make_things(engine, rows=100)
    calls: list[int] = []

    class Raises(Backfill):
        name = "raises"
        table = "things"

        def apply(self, connection: sa.Connection, chunk: Any) -> None:
            calls.append(1)
            connection.execute(chunk.update().values(n=chunk.table.c.n + 1))
            if len(calls) == 4:
                raise ValueError(f"cannot do {CANARY}")

    ran = run(engine, Raises, chunk_size=10)
    assert ran.outcome is Outcome.FAILED
    assert "ValueError at test_bad_rows.py" in ran.result.text
    check_silence(engine, ran)
    assert read(engine, things, "n") == [1] * 30 + [0] * 71
    complete(engine, Raises, chunk_size=10)
    assert read(engine, things, "n") == [1] * 101


# -- errors that seldom are about a row ----------------------------------------------------------

ODD, ODDER = -(2**63), 1 - 2**63
RAISE = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.x = {ODD} THEN RAISE 'odd' USING ERRCODE = 'MY001'; END IF;"
        f" IF NEW.x = {ODDER} THEN RAISE 'odd' USING ERRCODE = 'MY002'; END IF;"
        " RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON odd FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        f"CREATE TRIGGER refuse BEFORE UPDATE ON odd FOR EACH ROW IF NEW.x = {ODD} THEN"
        " SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 31999;"
        f" ELSEIF NEW.x = {ODDER} THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 31998; END IF"
    ],
    "sqlite": [
        f"CREATE TRIGGER refuse BEFORE UPDATE ON odd WHEN NEW.x <= {ODDER} BEGIN"
        " SELECT json_extract('[]', 'odd'); END"
    ],
}


class OddInSql(Backfill):
    name = "odd"
    revision = "x"
    table = "odd"
    where = "n = 0"
    values = {"n": "1"}  # noqa: RUF012


class OddInPython(Backfill):
    name = "odd"
    revision = "x"
    table = "odd"
    where = "n = 0"
    reads = ("x",)
    writes = ("n",)

    def transform(self, row: Any) -> Any:
        return {"n": 1}


class OddInApply(Backfill):
    name = "odd"
    revision = "x"
    table = "odd"
    where = "n = 0"

    def apply(self, connection: sa.Connection, chunk: Any) -> Any:
        return connection.execute(chunk.update().values(n=1)).rowcount


def make_odd(
    engine: sa.Engine, odd: Sequence[int], rows: int = 40, odder: Sequence[int] = ()
) -> sa.Table:
    table = make(
        engine,
        "odd",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("x", sa.BigInteger),
        sa.Column("n", sa.Integer),
        rows=[
            {"id": i, "x": ODD if i in odd else ODDER if i in odder else i, "n": 0}
            for i in range(rows)
        ],
    )
    dialect = "mysql" if engine.dialect.name == "mariadb" else engine.dialect.name
    with engine.begin() as connection:
        for statement in RAISE[dialect]:
            connection.exec_driver_sql(statement.replace("%", "%%"))
    return table


@pytest.mark.parametrize("declaration", [OddInSql, OddInPython, OddInApply])
@pytest.mark.parametrize("odd", [[0], [17], [38, 39], [i for i in range(40) if i % 2]])
def test_odd_error_is_a_rows_where_others_can_be_written(
    engine: sa.Engine, declaration: type[Backfill], odd: list[int]
) -> None:
    """A code that nobody knows stops all, unless rows beside it show that it is about one."""
    table = make_odd(engine, odd)
    ran = run(engine, declaration)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    written = {key for key, n in read(engine, table, "id", "n") if n == 1}
    assert written == set(range(40)) - set(odd)
    assert [found["key"] for found in failures(engine, declaration)] == [[i] for i in odd]
    assert retry(engine, declaration) == (0, len(odd))


@pytest.mark.parametrize("declaration", [OddInSql, OddInPython, OddInApply])
def test_odd_error_of_every_row_stops_the_run(
    engine: sa.Engine, declaration: type[Backfill]
) -> None:
    table = make_odd(engine, range(40))
    ran = run(engine, declaration)
    assert ran.outcome is Outcome.FAILED
    assert {n for _, n in read(engine, table, "id", "n")} == {0}
    assert failures(engine, declaration) == []


@pytest.mark.parametrize("declaration", [OddInSql, OddInPython, OddInApply])
@pytest.mark.parametrize(
    ("rows", "odd", "odder"),
    [
        (40, [3, 30], [5, 20, 38]),
        (4, [2], [3]),
        (8, [4, 5], [6, 7]),
        (8, [0, 1], [2, 3]),
        (11, [6, 7], [8, 9, 10]),
        (9, [], [0, 8]),
    ],
)
def test_odd_errors_of_two_kinds_are_rows_too(
    engine: sa.Engine,
    declaration: type[Backfill],
    rows: int,
    odd: list[int],
    odder: list[int],
) -> None:
    """Also where those of one kind are alone in a part of the chunk."""
    table = make_odd(engine, odd, rows, odder)
    ran = run(engine, declaration)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    bad = sorted([*odd, *odder])
    assert sum(read(engine, table, "n")) == rows - len(bad)
    assert [found["key"] for found in failures(engine, declaration)] == [[i] for i in bad]


@pytest.mark.parametrize("declaration", [OddInSql, OddInPython, OddInApply])
def test_odd_error_that_was_a_rows_is_everybodys_later(
    engine: sa.Engine, declaration: type[Backfill]
) -> None:
    """As where a column is dropped while a run lasts: each chunk is judged by its own rows."""
    table = make_odd(engine, [3, *range(10, 40)])
    ran = run(engine, declaration, chunk_size=10)
    assert ran.outcome is Outcome.FAILED
    assert [found["key"] for found in failures(engine, declaration)] == [[3]]
    assert sum(read(engine, table, "n")) == 9


class AlwaysRaising(Backfill):
    name = "always_raising"
    table = "pairs"
    where = "n IS NULL"
    writes = ("n",)

    def transform(self, row: Any) -> Row:
        raise ValueError("no row will do")


@pytest.mark.parametrize("width", [1, 2])
def test_more_rows_in_quarantine_than_an_expression_has_levels(
    engine: sa.Engine, width: int
) -> None:
    columns = ["a", "b"][:width]
    make(
        engine,
        "pairs",
        *(sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in columns),
        sa.Column("n", sa.Integer),
        rows=[{**dict.fromkeys(columns, i), "n": None} for i in range(1100)],
    )
    for _ in range(2):
        ran = run(engine, AlwaysRaising, max_failures=2000)
        assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert len(failures(engine, AlwaysRaising)) == 1100


@pytest.mark.requires("cut_values")
@pytest.mark.parametrize("rows", [[2], [1, 2, 3]], ids=["alone", "beside others"])
def test_value_that_no_packet_holds(engine: sa.Engine, rows: list[int]) -> None:
    """The server hangs up on who sends it."""
    table = make(
        engine,
        "texts",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", mysql.LONGTEXT),
        rows=[{"id": i, "body": None} for i in rows],
    )

    class TooLong(Backfill):
        table = "texts"
        where = "body IS NULL"
        writes = ("body",)

        def transform(self, row: Any) -> Row:
            return {"body": "x" * (20_000_000 if row.id == 2 else 10)}

    ran = run(engine, TooLong)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert read(engine, table, "body") == [None if i == 2 else "x" * 10 for i in rows]


@pytest.mark.requires("nan")
def test_driver_tells_no_value_of_a_row_that_it_sends_by_itself(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """psycopg logs what ends its pipeline, with the server's words."""
    table = make_odd(engine, [])

    class NoNumber(OddInPython):
        def transform(self, row: Any) -> Any:
            return {"n": Decimal("NaN") if row.x == 7 else Decimal(1)}

    ran = run(engine, NoNumber)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert sum(read(engine, table, "n")) == 39
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
