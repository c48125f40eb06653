"""What a database or a driver does without an error is not taken for done: rows that are left out,
values that are cut, and keys that are one for Python and two for the database."""

from __future__ import annotations

from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from backfill import Backfill
from backfill.dialects import dialect_for
from backfill.dialects.postgresql_types import KeyDate, KeyMoment
from backfill.errors import DeclarationError
from backfill.runs import Outcome
from tests.databases import Unavailable
from tests.integration.support import bound, complete, make, read, run, status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Database

# -- keys ------------------------------------------------------------------------------------


class Counts(Backfill, abstract=True):
    table = "measured"


class CountsInSql(Counts):
    values = {"n": "n + 1"}  # noqa: RUF012


class CountsInPython(Counts):
    reads = ["n"]  # noqa: RUF012
    writes = ["n"]  # noqa: RUF012

    def transform(self, row: Any) -> dict[str, Any]:
        return {"n": row.n + 1}


@pytest.fixture
def autumn(database: Database, engine: sa.Engine) -> Iterator[sa.Engine]:
    """Sessions in a zone whose clocks show an hour twice."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"ALTER DATABASE {engine.url.database} SET timezone = 'Europe/Berlin'"
        )
    engine.dispose()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE measured (at timestamptz, sensor int, n int, PRIMARY KEY (at, sensor));"
            "INSERT INTO measured SELECT h, s, 0 FROM generate_series(1, 30) AS s, generate_series("
            "'2023-10-28 22:00+00'::timestamptz, '2023-10-29 03:00+00', '1 hour') AS h"
        )
    return engine


@pytest.mark.requires("zoned_times")
@pytest.mark.parametrize("way", [CountsInSql, CountsInPython])
def test_an_hour_that_clocks_show_twice(autumn: sa.Engine, way: type[Backfill]) -> None:
    """Both are 02:00 for Python, which compares moments of one zone by the clock."""
    assert sum(complete(autumn, way, chunk_size=7).numbers("chunk", "changed")) == 180
    with autumn.connect() as connection:
        done = connection.exec_driver_sql("SELECT n, count(*) FROM measured GROUP BY n").all()
    assert [tuple(row) for row in done] == [(1, 180)]


@pytest.mark.requires("zoned_times")
def test_values_go_to_their_own_hour(autumn: sa.Engine) -> None:
    """The application changes rows while they are computed: all are looked at again."""

    class Copies(Counts):
        reads = ["sensor", "n"]  # noqa: RUF012
        writes = ["n"]  # noqa: RUF012

        def transform_chunk(self, rows: Any) -> list[Any]:
            with autumn.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE measured SET sensor = sensor WHERE sensor = 1 AND n = 0"
                )
            return [{"n": row.n * 2 + 1} for row in rows]

    with autumn.begin() as connection:
        connection.exec_driver_sql("UPDATE measured SET n = extract(epoch FROM at)::int / 3600")
        wanted = (
            "SELECT count(*) FROM measured WHERE n <> extract(epoch FROM at)::int / 3600 * 2 + 1"
        )
    complete(autumn, Copies)
    with autumn.connect() as connection:
        assert connection.exec_driver_sql(wanted).scalar_one() == 0


@pytest.mark.requires("zoned_times")
@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
def test_infinity_is_not_a_day_of_the_year_9999(
    database: Database, engine: sa.Engine, kind: str
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE measured (id int, at {kind}, n int DEFAULT 0, PRIMARY KEY (id, at));"
            "INSERT INTO measured (id, at) SELECT i, 'infinity' FROM generate_series(1, 9) AS i"
        )
    try:
        other = database.through("psycopg2").engine()
    except Unavailable as missing:
        pytest.skip(str(missing))
    with pytest.raises(DeclarationError, match="a key of measured cannot be read"):
        complete(other, CountsInSql)
    other.dispose()


@pytest.mark.requires("zoned_times")
def test_a_borrowed_connection_reads_infinity_as_before(database: Database) -> None:
    """A migration's own one, in which a gate completes a backfill."""
    try:
        other = database.through("psycopg2").engine()
    except Unavailable as missing:
        pytest.skip(str(missing))
    far = sa.text("SELECT DATE 'infinity'")
    with other.connect() as connection:
        with dialect_for(other).borrowing(connection), pytest.raises(sa.exc.DataError):
            connection.execute(far).scalar_one()
        assert connection.execute(far).scalar_one() == date.max
    other.dispose()


def test_asyncpg_does_not_tell_infinity_either() -> None:
    dialect = postgresql.asyncpg.dialect()
    for kind, last in [
        (KeyDate(), date.max),
        (KeyMoment(), datetime.min),
        (KeyMoment(timezone=True), datetime.max.replace(tzinfo=timezone.utc)),
    ]:
        with pytest.raises(DeclarationError, match="infinity"):
            kind.process_result_value(last, dialect)


KEYS = {
    "a text of any length": "at TEXT NOT NULL UNIQUE",
    "first characters": "at VARCHAR(200) NOT NULL, UNIQUE (at(5))",
    "a long one beside another": "id INT NOT NULL, at VARCHAR(2000) NOT NULL, UNIQUE (id, at)",
    "a period": "at INT NOT NULL, b DATE NOT NULL, e DATE NOT NULL, PERIOD FOR p (b, e),"
    " UNIQUE (at, p WITHOUT OVERLAPS)",
}


@pytest.mark.requires("plain_engines")
@pytest.mark.parametrize("columns", KEYS.values(), ids=KEYS)
def test_a_key_whose_index_does_not_order_its_rows(engine: sa.Engine, columns: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE measured ({columns}, n INT)")
    names = ["id", "at"] if "id" in columns else ["at"]
    declared = type("Declared", (CountsInSql,), {"key": names})
    with pytest.raises(DeclarationError, match="by which rows are not walked in order"):
        bound(engine, declared)


@pytest.mark.requires("plain_engines")
@pytest.mark.parametrize("kind", ["DATE", "DATETIME(6)"])
def test_a_zero_date_is_no_key(engine: sa.Engine, kind: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("SET SESSION sql_mode = ''")
        connection.exec_driver_sql(f"CREATE TABLE measured (at {kind} PRIMARY KEY, n INT)")
        connection.exec_driver_sql(
            "INSERT INTO measured VALUES ('0000-00-00', 0), ('2020-01-01', 0)"
        )
        connection.exec_driver_sql("SET SESSION sql_mode = DEFAULT")
    ran = run(engine, CountsInPython)
    assert ran.outcome is Outcome.FAILED
    assert "zero date" in ran.result.text


# -- rows and values -------------------------------------------------------------------------

SKIPS = {
    "postgresql": [
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN CASE WHEN NEW.id / 10 * 10 = NEW.id - 3 THEN NULL ELSE NEW END; END'",
        "CREATE TRIGGER skip BEFORE UPDATE ON measured FOR EACH ROW EXECUTE FUNCTION skip()",
    ],
    "sqlite": [
        "CREATE TRIGGER skip BEFORE UPDATE ON measured WHEN NEW.id / 10 * 10 = NEW.id - 3"
        " BEGIN SELECT RAISE(IGNORE); END",
    ],
}


def make_measured(engine: sa.Engine, *more: sa.Column[Any]) -> sa.Table:
    return make(
        engine,
        "measured",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        *more,
        rows=[{"id": i, "n": 0} for i in range(40)],
    )


@pytest.mark.requires("partial_indexes")  # MariaDB's triggers can only raise an error
@pytest.mark.parametrize("way", [CountsInSql, CountsInPython])
def test_a_row_that_a_trigger_leaves_out_is_quarantined(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    table = make_measured(engine)
    with engine.begin() as connection:
        for statement in SKIPS[engine.dialect.name]:
            connection.exec_driver_sql(statement)
    ran = run(engine, way, chunk_size=15)
    assert ran.outcome is Outcome.QUARANTINED
    assert read(engine, table, "n") == [int(i % 10 != 3) for i in range(40)]
    assert status(engine, way)["failures"] == 4
    assert all("left out without an error" in text for text in ran.texts("quarantined"))


@pytest.mark.requires("zoned_times")
def test_rows_that_a_policy_does_not_let_write(database: Database, engine: sa.Engine) -> None:
    """They are shown to this user, who may not change them."""
    table = make_measured(engine)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE measured ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE measured FORCE ROW LEVEL SECURITY",
            "CREATE POLICY seen ON measured FOR SELECT USING (true)",
            "CREATE POLICY written ON measured FOR UPDATE USING (id <> 7)",
        ):
            connection.exec_driver_sql(statement)
        is_bound = "SELECT row_security_active('measured')"
        if not connection.exec_driver_sql(is_bound).scalar_one():
            pytest.skip("this user is above policies")
    ran = run(engine, CountsInSql)
    assert ran.outcome is Outcome.QUARANTINED
    assert read(engine, table, "n") == [int(i != 7) for i in range(40)]
    assert "policies of 'measured' decide which rows this user sees" in ran.texts("message")[0]


@pytest.mark.requires("untyped_columns")
def test_a_value_that_would_delete_another_row(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE measured (id INTEGER PRIMARY KEY, n INT UNIQUE ON CONFLICT REPLACE)"
        )
    with pytest.raises(DeclarationError, match="ON CONFLICT REPLACE"):
        bound(engine, CountsInSql)


@pytest.mark.requires("plain_engines")
@pytest.mark.parametrize("by_sql", [True, False])
def test_a_value_is_not_cut(database: Database, by_sql: bool) -> None:
    """Where the application's sessions are not strict."""
    lax = sa.create_engine(database.url, connect_args={"init_command": "SET sql_mode = ''"})
    table = make_measured(lax, sa.Column("t", sa.String(3)))

    class Writes(Counts):
        if by_sql:
            values = {"t": "CASE WHEN id = 5 THEN 'long' ELSE 'fit' END"}
        else:
            writes = ["t"]

            def transform(self, row: Any) -> dict[str, Any]:
                return {"t": "long" if row.id == 5 else "fit"}

            reads = ["id"]

    assert run(lax, Writes).outcome is Outcome.QUARANTINED
    assert read(lax, table, "t") == [None if i == 5 else "fit" for i in range(40)]
    lax.dispose()
