"""Every type of column goes through a transform unchanged, by every driver, says the database."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backfill import Backfill
from backfill.errors import DeclarationError
from backfill.planner import make_plan
from backfill.runs import Outcome
from backfill.settings import Settings
from tests.databases import DRIVERS
from tests.integration.kinds import (
    BYTES,
    DATES,
    KINDS,
    LABELS,
    MOMENTS,
    NOON,
    NUMBERS,
    TIMES,
    UUIDS,
    Kind,
)
from tests.integration.places import Places, literal
from tests.integration.support import Row, bound, complete, complete_by_limits, failures, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.databases import Servers
    from tests.integration.places import Place

# One run for each type, of many values; without shrinking, which would take minutes.
one_example = settings(
    max_examples=1, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
names = (f"run_{number}" for number in itertools.count(1))

# One that is held, and then those that are not.
BEYOND = {
    "sqlite": {
        "text": Kind("text", ["a", "\udcff"]),
        "datetime": Kind("datetime", [f"{NOON}.000001", "", "yesterday", 1700000000, 1.5, b"a"]),
        "date": Kind("date", ["2024-02-29", "", NOON, 5, "2024-02-30"]),
        "time": Kind("time", ["00:00:00.000001", "", "25:00", 5]),
        "numeric": Kind("numeric(20,6)", [1, "a", b"a", 0.123456789]),
        "real": Kind("real", [0.5, "a", b"a"]),
        "boolean": Kind("boolean", [1, 2, "yes"]),
        "json": Kind("json", ["{}", "{", "", 5, b"a"]),
    },
    "postgresql": {
        "date": Kind(
            "date", ["2024-02-29", "infinity", "-infinity", "0044-03-15 BC", "10000-01-01"]
        ),
        "timestamp": Kind(
            "timestamp", [NOON, "infinity", "-infinity", "0001-12-31 BC", "10000-01-01"]
        ),
        "timestamptz": Kind(
            "timestamptz",
            [f"{NOON}+00", "infinity", "-infinity", "0001-12-31 BC", "10000-01-01+00"],
        ),
        "time": Kind("time", ["12:30:00", "24:00:00"]),
        "interval": Kind("interval", ["1 day", "170000000 years"]),
        "months": Kind("interval", ["1 day", "1 mon", "1 year -3 days"]),
        "date[]": Kind("date[]", ["{2024-02-29}", "{infinity}", "{0044-03-15 BC}"]),
        "daterange": Kind("daterange", ["empty", "[2024-01-01,infinity]", "[0044-03-15 BC,)"]),
        "bounds": Kind("int[]", ["{1}", "[2:3]={1,2}"]),
        "jsonb": Kind("jsonb", ["{}", "0.10", "0.1234567890123456789", "1e400"]),
    },
    "mariadb": {
        "date": Kind("date", ["2024-02-29", "0000-00-00", "2024-00-00", "2024-02-00"]),
        "datetime": Kind(
            "datetime(6)", [NOON, "0000-00-00 00:00:00", "2024-00-00 00:00:00.000001"]
        ),
        "timestamp": Kind("timestamp", [NOON, "0000-00-00 00:00:00"]),
        "zerofill": Kind("int(5) zerofill", ["12345", "0"]),
        "year": Kind("year", ["1901", "0000"]),
    },
}

# What a driver itself makes of a value, before anybody could tell.
FAULTS = {
    "pysqlite-boolean": "a bool is 0 or 1",
    "psycopg-months": "a timedelta has no months",
    "psycopg2-months": "a timedelta has no months",
    "psycopg-bounds": "a list begins at 0",
    "psycopg2-bounds": "a list begins at 0",
    "psycopg-jsonb": "numbers in JSON are floats",
    "psycopg2-jsonb": "numbers in JSON are floats",
    "psycopg2-time": "it reads 24:00 as 00:00",
    "mysqldb-date": "it reads 0000-00-00 as NULL",
    "mysqldb-datetime": "it reads 0000-00-00 as NULL",
    "mysqldb-timestamp": "it reads 0000-00-00 as NULL",
    "mariadbconnector-date": "it reads 0000-00-00 as NULL",
    "mariadbconnector-datetime": "it reads 0000-00-00 as NULL",
    "mariadbconnector-timestamp": "it reads 0000-00-00 as NULL",
}
UNREADABLE = {
    "mariadbconnector-zerofill": "it cannot read 0, so that the row stands alone",
    "mariadbconnector-year": "it cannot read 0000, so that the row stands alone",
}

WORDS = ["", "a", "B", "b b", "é", "日本", "😀", "'\\%", "NULL", "{}", "\x01", "z\u200b"]
# Beside those of test_keys.py.
KEYS = {
    "sqlite": {
        "real": Kind("real", [float("-inf"), -1.5, 0.1, 1 / 3, 0.5, 1e300, float("inf")]),
        "numeric": Kind("numeric", [-1, 0.1, 1e-12, 1 / 3, 2**62 + 1, 1e30]),
        "boolean": Kind("boolean", [0, 1]),
        "no type": Kind("", [-1, 0.5, 2, "", "1", "a", "a\0b", b"", b"\0", b"a"]),
        "datetime": Kind("datetime", [NOON, f"{NOON}.000001", f"{NOON}.5", NOON[:10]]),
        "text": Kind("text", [*WORDS, "a\0", "a\0b"]),
    },
    "postgresql": {
        "smallint": Kind("smallint", ["-32768", "-1", "0", "1", "32767"]),
        "numeric": Kind(
            "numeric", [*NUMBERS[1:], "-1e-40", "1e30", "Infinity", "-Infinity", "NaN"]
        ),
        "boolean": Kind("boolean", ["t", "f"]),
        "time": Kind("time", TIMES),
        "timestamp(3)": Kind("timestamp(3)", [f"{NOON}.{i:03}" for i in range(9)]),
        "timestamptz": Kind("timestamptz", [f"{text}+00" for text in MOMENTS]),
        "date": Kind("date", DATES),
        "enum": Kind("mood", LABELS),
        "enum of a schema": Kind('"My Types"."Mood Type"', ["A b", "2"]),
        "citext": Kind("citext", WORDS),
        "char": Kind("char(9)", WORDS),
        "name": Kind("name", WORDS),
        "UTF-8 order": Kind('text COLLATE "pg_c_utf8"', WORDS),
        "bytea": Kind("bytea", BYTES),
    },
    "mariadb": {
        "tinyint unsigned": Kind("tinyint unsigned", ["0", "1", "127", "128", "255"]),
        "bigint unsigned": Kind("bigint unsigned", [2**64 - 1 - i * 2**61 for i in range(8)]),
        "zerofill": Kind("int(5) zerofill", ["1", "12", "12345"]),
        "decimal(65,30)": Kind("decimal(65,30)", ["0", "-1e-30", "1e-30", "9" * 35, "-1e34"]),
        "date": Kind("date", DATES),
        "datetime(6)": Kind("datetime(6)", MOMENTS),
        "binary": Kind("binary(8)", [b"\0", b"a", b"\xff" * 8, b"'\\%"]),
        "varbinary": Kind("varbinary(40)", BYTES),
        "latin1": Kind("varchar(9) CHARACTER SET latin1", ["", "a", "é", "€", "'\\%"]),
        "utf16": Kind("varchar(9) CHARACTER SET utf16", WORDS),
        "char": Kind("char(9)", WORDS),
        "uuid": Kind("uuid", [f"{i}{str(UUIDS[1])[1:]}" for i in range(9)]),
    },
}
# Two keys of these may be one for Python, or follow in another order.
NO_KEYS: dict[str, dict[str, Kind]] = {
    "sqlite": {},
    "postgresql": {"timetz": Kind("timetz", ["12:00+00", "13:00+01"])},
    "mariadb": {"time(6)": Kind("time(6)", ["00:00:00", "24:00:00"])},
}


@pytest.fixture(scope="module")
def places(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as stack:
        yield Places(servers, tmp_path_factory.mktemp("types"), stack)


def every(
    kinds: Mapping[str, Mapping[str, Any]], faults: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Each of them, by each driver of its database."""
    cases = [
        pytest.param(
            driver,
            kind,
            id=f"{driver}-{name}".replace(" ", "-"),
            marks=marks(f"{driver}-{name}", faults or {}),
        )
        for driver, known in DRIVERS.items()
        for name, kind in kinds[known.database].items()
        if not known.is_async  # tried through the command, in test_drivers.py
    ]
    return pytest.mark.parametrize(("driver", "kind"), cases)


def marks(case: str, faults: Mapping[str, str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(reason=faults[case])] if case in faults else []


class Copies(Backfill, abstract=True):
    """Copies a column into another one of the same type."""

    table = "things"
    reads = ("src",)
    writes = ("dst",)

    def transform(self, row: Any) -> Row:
        return {"dst": row.src}


def copying() -> type[Backfill]:
    return type("Copying", (Copies,), {"name": next(names)})


@every(KINDS, UNREADABLE)
def test_values_are_copied_unchanged(places: Places, driver: str, kind: Kind) -> None:
    place = places[driver]
    more: st.SearchStrategy[list[Any]] = st.just([])
    if kind.more is not None:
        # Hypothesis begins with the simplest example; a list of different values is never that.
        more = st.lists(kind.more, min_size=15, max_size=30, unique_by=str)

    @one_example
    @given(more)
    def check(more: list[Any]) -> None:
        place.make_pairs(kind.declared, [*kind.edges, None, *more])
        complete(place.engine, copying(), chunk_size=25)
        assert place.different(kind.form) == []

    check()


@every(BEYOND, FAULTS)
def test_value_that_python_cannot_hold_stands_alone(
    places: Places, driver: str, kind: Kind
) -> None:
    """It is copied all the same, or it is a bad row: never changed, and no harm to the others."""
    place = places[driver]
    good, *bad = kind.edges
    values = [value for each in bad for value in (good, each)]
    place.make_pairs(kind.declared, [*values, good])
    before = place.different()
    copies = copying()
    ran = run(place.engine, copies, chunk_size=4, retry_seconds=2)
    assert ran.outcome in (Outcome.COMPLETE, Outcome.QUARANTINED), ran.result.text
    left = place.different()
    assert left == [row for row in before if row in left], "changed"
    assert [list(row[:1]) for row in left] == [
        found["key"] for found in failures(place.engine, copies)
    ]
    assert [row for row in left if row[0] % 2 == 0] == []


def test_plan_tells_of_a_column_that_is_written_slowly(places: Places) -> None:
    """No fast path of MariaDB's takes a BIT."""
    place = places["pymysql"]
    place.make_pairs("bit(8)", [b"\1"] * 3)
    plan = make_plan(bound(place.engine, copying()), Settings())
    assert [warning for warning in plan.warnings if "'dst'" in warning and "slow" in warning]
    place.make_pairs("blob", [b"\1"] * 3)
    plan = make_plan(bound(place.engine, copying()), Settings())
    assert [warning for warning in plan.warnings if "'dst'" in warning] == []


class ToInterval(Backfill, abstract=True):
    """Makes an interval of every number of microseconds."""

    table = "things"
    reads = ("src",)
    writes = ("dst",)

    def transform(self, row: Any) -> Row:
        return {"dst": timedelta(microseconds=row.src)}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sign_of_an_interval_where_the_server_reads_them_by_the_standard(
    places: Places, driver: str
) -> None:
    """By `IntervalStyle = sql_standard` a leading minus is for all that follows without a sign."""
    place = places[driver]
    day = 86_400_000_000
    values = [0, -1, 1, -day, 1 - day, day - 1, -99_999 * day + 7, 3 * day - 4, -3 * day // 2]
    rows = ", ".join(f"({i}, {value}, NULL)" for i, value in enumerate(values))
    place.execute(
        "DROP TABLE IF EXISTS things",
        "CREATE TABLE things (id int NOT NULL PRIMARY KEY, src bigint NOT NULL, dst interval)",
        f"INSERT INTO things (id, src, dst) VALUES {rows}",
    )
    options = {"options": "-c IntervalStyle=sql_standard"}
    engine = sa.create_engine(place.engine.url, poolclass=sa.NullPool, connect_args=options)
    complete(engine, type("Making", (ToInterval,), {"name": next(names)}))
    written = place.rows("SELECT extract(epoch FROM dst) * 1000000 FROM things ORDER BY id")
    assert [value for (value,) in written] == values


class Counts(Backfill, abstract=True):
    """Adds one to every row's number."""

    table = "things"
    reads = ("n",)
    writes = ("n",)

    def transform(self, row: Any) -> Row:
        return {"n": row.n + 1}


def make_keyed(place: Place, kind: Kind) -> None:
    rows = ", ".join(f"({literal(place.database, value)}, 0)" for value in kind.edges)
    place.execute(
        "DROP TABLE IF EXISTS things",
        f"CREATE TABLE things (k {kind.declared} NOT NULL PRIMARY KEY, n int NOT NULL)",
        f"INSERT INTO things (k, n) VALUES {rows}",
    )


@every(KEYS)
def test_keys_are_walked_and_found(places: Places, driver: str, kind: Kind) -> None:
    """By limits, so that each cursor goes through its text."""
    place = places[driver]
    make_keyed(place, kind)
    counts = type("Counting", (Counts,), {"name": next(names)})
    complete_by_limits(place.engine, counts, len(kind.edges) // 2 + 1, chunk_size=3)
    assert place.rows("SELECT n, count(*) FROM things GROUP BY n") == [(1, len(kind.edges))]


@every(NO_KEYS)
def test_key_that_cannot_be_walked_is_refused(places: Places, driver: str, kind: Kind) -> None:
    place = places[driver]
    make_keyed(place, kind)
    with pytest.raises(DeclarationError, match="do not keep an exact order"):
        bound(place.engine, type("Counting", (Counts,), {"name": next(names)}))
