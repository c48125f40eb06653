"""What Python returns for a column of another type is stored as SQLAlchemy's own UPDATE would store
it, or as the text that says what it is, or is a bad row: a fast path may neither make something
else of it (another row's value, a part of it, NULL, an object's repr) nor end the run."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import json
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from backfill import Backfill, quarantine
from backfill.runs import Outcome
from backfill.settings import Settings
from backfill.store import Store
from tests.databases import DRIVERS
from tests.integration.places import Places
from tests.integration.support import Row, bound, failures, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Servers

names = (f"run_{number}" for number in itertools.count(1))


class Color(enum.Enum):
    RED = "a"


class Text(str):
    """As numpy.str_ and many others are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Text({str(self)!r})"


class Float(float):
    """As numpy.float64 is."""

    def __repr__(self) -> str:
        return f"Float({float(self)})"


NOON = dt.datetime(2024, 2, 29, 12, 30, 59, 123456)
VALUES: list[Any] = [
    *(5, 300, 2**70, 1.5, Float(1.5), float("nan"), Decimal("1.10"), Decimal("1e3")),
    *(
        "a",
        "",
        "5",
        "5,6",
        "x" * 100,
        "a\0b",
        "\ud800",
        Text("a"),
        "2024-02-29",
        "{a}",
        "[1]",
        "true",
    ),
    *(b"ab", b"\xff", bytearray(b"ab"), memoryview(b"ab"), Color.RED, object(), UUID(int=5)),
    *(NOON, NOON.date(), NOON.time(), dt.timedelta(1, 3), NOON.replace(tzinfo=dt.timezone.utc)),
    *([1], ["a"], {"a": 1}, {"a": NOON}, (1,), {1}),
]
TYPES = {
    "sqlite": ["text", "integer", "numeric(5,2)", "real", "boolean", "blob", "date", "datetime"],
    "postgresql": [
        *("text", "varchar(30)", "short", "bigint", "numeric(5,2)", "double precision", "boolean"),
        *("bytea", "date", "timestamp", "timestamptz", "time", "interval", "uuid", "jsonb", "json"),
        *("text[]", "mood", "citext", "inet", "hstore"),
    ],
    "mariadb": [
        *(
            "text",
            "varchar(30)",
            "bigint",
            "decimal(5,2)",
            "double",
            "boolean",
            "blob",
            "binary(4)",
        ),
        *("date", "datetime(6)", "time(6)", "json", "uuid", "enum('a','b')", "bit(8)"),
        "varchar(30) CHARACTER SET latin1",
    ],
}
PLAIN = {"pysqlite", "psycopg", "pymysql"}
ALIKE = {"varchar(30)", "varchar(30) CHARACTER SET latin1", "citext", "timestamptz", "uuid"}
ALIKE |= {"numeric(5,2)", "decimal(5,2)", "boolean", "time", "short", "mood", "enum('a','b')"}
"""Types that take the same way as another one, so that one driver of the database is enough."""

CASES = [
    pytest.param(driver, declared, id=f"{driver}-{declared}".replace(" ", "-"))
    for driver, known in DRIVERS.items()
    for declared in TYPES[known.database]
    if not known.is_async and (driver in PLAIN or declared not in ALIKE)
]


@pytest.fixture(scope="module")
def places(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as stack:
        yield Places(servers, tmp_path_factory.mktemp("foreign"), stack)


@pytest.mark.parametrize(("driver", "declared"), CASES)
def test_values_of_other_types(places: Places, driver: str, declared: str) -> None:
    """`src` is what SQLAlchemy stores, `dst` what we do."""
    place = places[driver]
    place.make_pairs(declared, [None] * len(VALUES))

    class Foreign(Backfill):
        name = next(names)
        table = "things"
        writes = ("dst",)

        def transform(self, row: Any) -> Row:
            return {"dst": VALUES[row.id]}

    refused = store_by_sqlalchemy(place.engine, bound(place.engine, Foreign).table)
    ran = run(place.engine, Foreign, retry_seconds=2)
    assert ran.outcome in (Outcome.COMPLETE, Outcome.QUARANTINED), ran.result.text
    bad = {found["key"][0] for found in failures(place.engine, Foreign)}
    stored = place.pairs()
    wrong = {
        repr(value): stored[row]
        for row, value in enumerate(VALUES)
        if row not in bad
        and stored[row][1] not in {stored[twin][0] for twin in twins(value) - refused}
        and stored[row][1] not in texts(value)
    }
    assert wrong == {}, "SQLAlchemy, and we"


@pytest.mark.parametrize("driver", [name for name, known in DRIVERS.items() if not known.is_async])
def test_value_that_cannot_be_sent_fails_again(places: Places, driver: str) -> None:
    place = places[driver]
    place.make_pairs("varchar(30)", [None] * 2)

    class Unsendable(Backfill):
        name = next(names)
        table = "things"
        writes = ("dst",)

        def transform(self, row: Any) -> Row:
            return {"dst": "a" if row.id else "\ud800"}

    run(place.engine, Unsendable)
    assert [found["key"] for found in failures(place.engine, Unsendable)] == [[0]]
    assert retry(place.engine, Unsendable) == (0, 1)
    assert [found["attempts"] for found in failures(place.engine, Unsendable)] == [2]


def retry(engine: sa.Engine, declaration: type[Backfill]) -> tuple[int, int]:
    target = bound(engine, declaration)
    store = Store(target.dialect)
    current = store.current(declaration.name)
    assert current is not None
    return quarantine.retry(target, store, current, Settings())


def twins(value: Any) -> set[int]:
    """The rows of equal values, so also of the plain one that a subclass is made of."""
    return {row for row, other in enumerate(VALUES) if other is value or other == value}


def texts(value: Any) -> set[str]:
    """What may be stored for a value that SQLAlchemy, or the driver, refuses or spoils."""
    if isinstance(value, (dict, list)):
        return documents(value)
    if isinstance(value, dt.datetime):
        return {str(value), value.isoformat(), str(value.replace(tzinfo=None))}
    if isinstance(value, int):
        return {str(value), repr(float(value)).replace("+", "")}
    if isinstance(value, (str, Decimal, UUID, dt.date, dt.time)):
        return {str(value)}
    return {float.__repr__(value)} if isinstance(value, float) else set()


def documents(value: Any) -> set[str]:
    try:
        return {json.dumps(value)}
    except TypeError:
        return set()


def store_by_sqlalchemy(engine: sa.Engine, table: sa.Table) -> set[int]:
    """Write each value in a transaction of its own; the rows that were refused."""
    value = sa.bindparam("value", type_=table.c.src.type)
    update = sa.update(table).where(table.c.id == sa.bindparam("row")).values(src=value)
    refused = set()
    with engine.connect() as connection:
        for row, found in enumerate(VALUES):
            try:
                connection.execute(update, {"row": row, "value": found})
                connection.commit()
            except Exception:  # noqa: PERF203 (each value may be refused in another way)
                connection.rollback()
                refused.add(row)
    return refused
