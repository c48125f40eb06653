"""What a transform reads and returns arrives unchanged, for every type of column."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql

from backfill import Backfill
from backfill.writers import rows as rows_writer
from tests.integration.support import Row, complete, count, fill, make, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.databases import Database

# Without shrinking: a run for each candidate would take minutes.
few_examples = settings(
    max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
names = (f"run_{number}" for number in itertools.count(1))

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CHARACTERS, max_size=30)
TEXTS = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "\\n",
    "a\nb\r\n\tc",
    "%",
    "%s %(x)s",
    ":x",
    "é日本😀",
    "{}",
    "[]",
]
TEXTS += ["null", "NULL", "\\u0041", "\u2028", "\x7f", "\x01", "a ", "0x41", "  a", "/*", "--", "#"]
BYTES = [b"", b"\0", b"\0\xff\xfe'\"\\%", bytes(range(256)), b"4142"]
NOON = dt.datetime(2024, 2, 29, 12, 30, 59, 123456)
ZONES = st.sampled_from([dt.timezone.utc, dt.timezone(dt.timedelta(hours=5, minutes=30))])
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e6, 1e6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = [
    {},
    [],
    {"a": None},
    {"'\"\\%": ["\n", {"é😀": [True, 1.5, 2**53]}]},
    [[[]]],
    {"": ""},
    [1, None, "x"],
]


def equal(a: Any, b: Any) -> bool:
    return bool(a == b)


def equal_floats(a: Any, b: Any) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


@dataclass(frozen=True)
class Kind:
    """A type of column, values that every run tries, and how to find more."""

    type: Any
    edges: Sequence[Any]
    more: st.SearchStrategy[Any]
    needs: str | None = None
    same: Callable[[Any, Any], bool] = field(default=equal)


def integers(bits: int) -> tuple[list[int], st.SearchStrategy[int]]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [low, low + 1, -1, 0, 1, high], st.integers(low, high)


def variant(kind: Any, **others: Any) -> Any:
    """A type that some databases spell in their own way."""
    if "mysql" in others:
        kind = kind.with_variant(others["mysql"], "mysql", "mariadb")
    if "postgresql" in others:
        kind = kind.with_variant(others["postgresql"], "postgresql")
    return kind


KINDS: dict[str, Kind] = {
    "small integer": Kind(sa.SmallInteger(), *integers(16)),
    "integer": Kind(sa.Integer(), *integers(32)),
    "big integer": Kind(sa.BigInteger(), *integers(64)),
    "numeric": Kind(
        sa.Numeric(20, 6),
        [Decimal("0"), Decimal("-0.000001"), Decimal("99999999.999999"), Decimal("1E+3")],
        st.decimals(-(10**8), 10**8, places=6),
    ),
    "wide numeric": Kind(
        sa.Numeric(20, 6),
        [Decimal("99999999999999.999999"), Decimal("-99999999999999.999999")],
        st.decimals(-(10**14) + 1, 10**14 - 1, places=6),
        needs="exact_numbers",
    ),
    "double": Kind(
        sa.Double(),
        [0.0, -0.0, 0.1, 1 / 3, 1e-300, -1.7976931348623157e308, 2.0**53 + 2],
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    "any double": Kind(
        sa.Double(), [math.inf, -math.inf, math.nan], st.floats(), needs="nan", same=equal_floats
    ),
    "text": Kind(sa.Text(), TEXTS, TEXT),
    "string": Kind(sa.String(40), TEXTS, TEXT),
    "fixed string": Kind(
        sa.CHAR(5),
        ["abcde", "'\\%\n\"", "é日本😀a"],
        st.text(CHARACTERS, min_size=4, max_size=4).map(lambda text: text + "x"),
    ),
    "bytes": Kind(sa.LargeBinary(), BYTES, st.binary(max_size=40)),
    "long bytes": Kind(
        variant(sa.LargeBinary(), mysql=mysql.LONGBLOB()), BYTES, st.binary(max_size=40)
    ),
    "short bytes": Kind(
        variant(sa.LargeBinary(), mysql=mysql.VARBINARY(300)), BYTES, st.binary(max_size=40)
    ),
    "bool": Kind(sa.Boolean(), [True, False], st.booleans()),
    "date": Kind(
        sa.Date(), [dt.date(1000, 1, 1), dt.date(9999, 12, 31)], st.dates(dt.date(1000, 1, 1))
    ),
    "datetime": Kind(
        variant(sa.DateTime(), mysql=mysql.DATETIME(fsp=6)),
        [NOON, NOON.replace(microsecond=1), NOON.replace(microsecond=0), dt.datetime(9999, 12, 31)],
        st.datetimes(dt.datetime(1000, 1, 1)),
    ),
    "time": Kind(
        variant(sa.Time(), mysql=mysql.TIME(fsp=6)),
        [dt.time(), NOON.time(), dt.time.max],
        st.times(),
    ),
    "zoned datetime": Kind(
        sa.DateTime(timezone=True),
        [NOON.replace(tzinfo=dt.timezone.utc)],
        st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=ZONES),
        needs="zoned_times",
    ),
    "interval": Kind(
        sa.Interval(native=True),
        [dt.timedelta(0), dt.timedelta(-1, 1, 1)],
        st.timedeltas(dt.timedelta(-10000), dt.timedelta(10000)),
        needs="arrays",
    ),
    "UUID": Kind(sa.Uuid(), [], st.uuids(version=4), needs="native_uuid"),
    "JSON": Kind(sa.JSON(), DOCUMENTS, st.lists(NESTED) | st.dictionaries(TEXT, NESTED)),
    "JSONB": Kind(
        variant(sa.JSON(), postgresql=postgresql.JSONB()),
        DOCUMENTS,
        st.lists(NESTED) | st.dictionaries(TEXT, NESTED),
        needs="arrays",
    ),
    "array of integers": Kind(
        sa.ARRAY(sa.Integer), [[], [1], [None, 2]], st.lists(st.integers(-9, 9)), needs="arrays"
    ),
    "array of texts": Kind(
        sa.ARRAY(sa.Text),
        [[], ["a,b", "{}", '"', "NULL", None, "\\"]],
        st.lists(st.none() | TEXT),
        needs="arrays",
    ),
    "enum": Kind(
        sa.Enum("a", "b b", "ç'\"", name="letters"),
        ["a", "b b", "ç'\""],
        st.sampled_from(["a", "b b", "ç'\""]),
    ),
}

GROUPS: dict[str, list[str]] = {
    "numbers": ["small integer", "integer", "big integer", "numeric", "wide numeric"],
    "floats": ["double", "any double", "bool"],
    "texts": ["text", "string", "fixed string", "enum", "UUID"],
    "bytes": ["bytes", "long bytes", "short bytes"],
    "times": ["date", "datetime", "time", "zoned datetime", "interval"],
    "documents": ["JSON", "JSONB"],
    "arrays": ["array of integers", "array of texts"],
}

every_group = pytest.mark.parametrize(
    "group",
    [
        *(group for group in GROUPS if group != "arrays"),
        pytest.param("arrays", marks=pytest.mark.requires("arrays")),
    ],
)


@every_group
def test_values_are_read_and_written_unchanged(
    database: Database, engine: sa.Engine, group: str
) -> None:
    """`copied` is what was read; `direct` is what Python made."""
    kinds = {name: KINDS[name] for name in GROUPS[group]}
    kinds = {n: k for n, k in kinds.items() if not k.needs or k.needs in database.capabilities}
    table = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *(
            sa.Column(f"{use} {name}", kind.type)
            for name, kind in kinds.items()
            for use in ("given", "copied", "direct")
        ),
    )

    @few_examples
    @given(st.fixed_dictionaries({n: st.lists(k.more, max_size=30) for n, k in kinds.items()}))
    def check(more: dict[str, list[Any]]) -> None:
        values = {name: [*kind.edges, None, *more[name]] for name, kind in kinds.items()}
        refill(engine, table, values)
        complete(engine, copying(values), chunk_size=13)
        for name, kind in kinds.items():
            for use in ("given", "copied", "direct"):
                check_column(engine, table.c[f"{use} {name}"], values[name], kind)

    check()


def refill(engine: sa.Engine, table: sa.Table, values: dict[str, list[Any]]) -> None:
    """A row for each number; the shorter lists begin again."""
    rows = max(map(len, values.values()))
    with engine.begin() as connection:
        connection.execute(table.delete())
        for i in range(rows):
            given_values = {f"given {n}": _or_null(v[i % len(v)]) for n, v in values.items()}
            connection.execute(table.insert().values({"id": i, **given_values}))


def _or_null(value: Any) -> Any:
    """SQLAlchemy writes None to a JSON column as `null`."""
    return sa.null() if value is None else value


def copying(values: dict[str, list[Any]]) -> type[Backfill]:
    class Copying(Backfill):
        name = next(names)
        table = "things"
        reads = [f"given {n}" for n in values]  # noqa: RUF012
        writes = [f"{use} {n}" for n in values for use in ("copied", "direct")]  # noqa: RUF012

        def transform(self, row: Any) -> Row:
            copied = {f"copied {n}": row[f"given {n}"] for n in values}
            return {**copied, **{f"direct {n}": v[row.id % len(v)] for n, v in values.items()}}

    return Copying


def check_column(
    engine: sa.Engine, column: sa.Column[Any], values: Sequence[Any], kind: Kind
) -> None:
    found = read(engine, column.table, column.name)
    expected = [values[i % len(values)] for i in range(len(found))]
    assert all(map(kind.same, found, expected)), column.name
    nulls = count(engine, column.table, column.is_(sa.null()))
    assert nulls == expected.count(None), column.name


PART = st.fixed_dictionaries(
    {},
    optional={
        "i": st.none() | st.integers(-(2**31), 2**31 - 1),
        "t": st.none() | TEXT,
        "b": st.none() | st.binary(max_size=10),
        "d": st.none() | st.dates(dt.date(1000, 1, 1)),
    },
)


@pytest.mark.parametrize("way", ["transform", "transform_chunk"])
def test_rows_that_name_some_of_the_columns(engine: sa.Engine, way: str) -> None:
    """Each row is written where its mapping says so, and nowhere else."""
    table = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("i", sa.Integer),
        sa.Column("t", sa.Text),
        sa.Column("b", sa.LargeBinary),
        sa.Column("d", sa.Date),
    )
    before = {"i": 7, "t": "before", "b": b"before", "d": dt.date(2000, 1, 1)}

    @few_examples
    @given(st.lists(st.none() | PART, min_size=20, max_size=60))
    def check(parts: list[Row | None]) -> None:
        with engine.begin() as connection:
            connection.execute(table.delete())
        fill(engine, table, [{"id": i, **before} for i in range(len(parts))])
        ran = complete(engine, writing_parts(parts, way), chunk_size=30)
        found = read(engine, table, *before)
        assert found == [tuple({**before, **(part or {})}.values()) for part in parts]
        assert sum(ran.numbers("chunk", "changed")) == sum(bool(part) for part in parts)

    check()


def test_names_that_a_bulk_statement_might_use_itself(engine: sa.Engine) -> None:
    """A `where` names columns plainly, beside what is sent."""
    table = make(
        engine,
        "computed",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Integer) for name in ("k0", "w0", "version")),
        rows=[{"id": i, "k0": 1, "w0": 1, "version": 1} for i in range(30)],
    )

    class Renews(Backfill):
        table = "computed"
        where = "version < 2 AND k0 = 1 AND w0 > 0"
        writes = ("w0", "version")

        def transform(self, row: Any) -> Row:
            return {"w0": row.id, "version": 2}

    complete(engine, Renews, chunk_size=7)
    assert read(engine, table, "w0", "version") == [(i, 2) for i in range(30)]


def writing_parts(parts: Sequence[Row | None], way: str) -> type[Backfill]:
    def transform(self: Backfill, row: Any) -> Row | None:
        return parts[row.id]

    def transform_chunk(self: Backfill, rows: Sequence[Any]) -> list[Row | None]:
        return [parts[row.id] for row in rows]

    methods = {"transform": transform, "transform_chunk": transform_chunk}
    body = {"name": next(names), "table": "things", "writes": ["i", "t", "b", "d"]}
    return type("Parts", (Backfill,), {**body, way: methods[way]})


@pytest.mark.parametrize("way", ["transform", "transform_chunk"])
def test_document_that_is_changed_in_place(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A transform may change the value that it was given: that is no change by the application."""
    monkeypatch.setattr(rows_writer, "UNDER_LOCK_SECONDS", 0)  # any "change" goes another round
    table = make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.JSON),
        rows=[{"id": i, "data": {"tags": ["a"], "n": i}} for i in range(20)],
    )
    computed: list[int] = []

    def transform(self: Backfill, row: Any) -> Row:
        computed.append(row.id)
        # MariaDB's JSON is text with a check.
        data = json.loads(row.data) if isinstance(row.data, str) else row.data
        data["tags"].append("b")
        return {"data": data}

    def transform_chunk(self: Backfill, rows: Sequence[Any]) -> list[Row]:
        return [transform(self, row) for row in rows]

    methods = {"transform": transform, "transform_chunk": transform_chunk}
    body = {"table": "things", "reads": ["data"], "writes": ["data"], way: methods[way]}
    complete(engine, type("AddTag", (Backfill,), body), chunk_size=7)
    assert read(engine, table, "data") == [{"tags": ["a", "b"], "n": i} for i in range(20)]
    assert computed == list(range(20))


@pytest.mark.requires("custom_types")
def test_columns_of_types_that_sqlalchemy_does_not_know(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for statement in (
            "CREATE TYPE pair AS (a int, b text)",
            "CREATE DOMAIN short AS varchar(3) CHECK (VALUE <> 'bad')",
            "CREATE TABLE things (id int PRIMARY KEY, p pair, s short, t xid8, x int4range)",
            "INSERT INTO things"
            " SELECT i, ROW(i, 'x')::pair, 'abc', '1', '[1,2)' FROM generate_series(1, 8) i",
        ):
            connection.exec_driver_sql(statement)

    class Strange(Backfill):
        table = "things"
        writes = ("s", "p", "x")

        def transform(self, row: Any) -> Row:
            return {"s": f"n{row.id}", "p": f"({row.id},y)", "x": f"[{row.id},9)"}

    complete(engine, Strange, chunk_size=4)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT s, p::text, x::text FROM things ORDER BY id")
        assert [tuple(r) for r in rows] == [(f"n{i}", f"({i},y)", f"[{i},9)") for i in range(1, 9)]


def test_python_writes_a_table_of_any_name(engine: sa.Engine) -> None:
    """Names in SQL that we write ourselves are quoted, and a percent sign is just that."""
    rows = [{"Id x": i, "a%b": f"v{i}", "New Col": None} for i in range(30)]
    made = make(
        engine,
        "My%Table",
        sa.Column("Id x", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("a%b", sa.String(20)),
        sa.Column("New Col", sa.String(20)),
        rows=rows,
    )

    class Copying(Backfill):
        table = "My%Table"
        where = made.c["New Col"].is_(None)
        reads = ("a%b",)
        writes = ("New Col",)

        def transform(self, row: Any) -> Row:
            return {"New Col": row["a%b"]}

    complete(engine, Copying)
    assert read(engine, made, "New Col") == [f"v{i}" for i in range(30)]
