"""Every kind of key, name and SQL text is taken as it stands, and every row is done once."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backfill import Backfill, DeclarationWarning
from backfill.errors import DeclarationError
from backfill.runs import Outcome
from tests.integration.support import (
    Row,
    complete,
    complete_by_limits,
    complete_in_parallel,
    fill,
    make,
    read,
    run,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backfill.statements import ChunkStatements

ROWS = 100
NOON = dt.datetime(2024, 2, 29, 12, 0, 0)
EXACT = sa.String(60).with_variant(mysql.VARCHAR(60, collation="utf8mb4_bin"), "mysql", "mariadb")
CASE_BLIND = (
    sa.String(60)
    .with_variant(sa.String(60, collation="NOCASE"), "sqlite")
    .with_variant(mysql.VARCHAR(60, collation="utf8mb4_unicode_ci"), "mysql", "mariadb")
)
LATIN = sa.String(9).with_variant(mysql.VARCHAR(9, charset="latin1"), "mysql", "mariadb")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
BYTES = sa.LargeBinary().with_variant(mysql.VARBINARY(40), "mysql", "mariadb")
WORDS = ["a", "A", "b B", "'", '"', "\\", "%", ":x", "é", "ß", "日本", "😀", "ab", "a b", "_", "Z"]


@dataclass(frozen=True)
class Kind:
    """A kind of key: types of its columns, and the keys of the rows."""

    types: Sequence[Any]
    keys: Sequence[tuple[Any, ...]]
    primary: bool = True
    """Else there is an `id` besides, in another order."""

    @property
    def names(self) -> list[str]:
        return [f"k{i}" for i in range(len(self.types))]

    def table(self) -> sa.Table:
        columns = [
            sa.Column(name, kind, primary_key=self.primary, autoincrement=False, nullable=False)
            for name, kind in zip(self.names, self.types, strict=True)
        ]
        if not self.primary:
            unique = sa.UniqueConstraint(*self.names)
            columns = [sa.Column("id", sa.Integer, primary_key=True), *columns, unique]  # type: ignore[list-item]
        n, done = (sa.Column(name, sa.Integer, nullable=False) for name in ("n", "done"))
        return sa.Table("things", sa.MetaData(), *columns, n, done)

    def rows(self) -> list[Row]:
        """In no order; two of three are still to do."""
        shuffled = [self.keys[i * 37 % len(self.keys)] for i in range(len(self.keys))]
        return [
            {**dict(zip(self.names, key, strict=True)), "n": 10 * i, "done": int(i % 3 == 0)}
            for i, key in enumerate(shuffled)
        ]


def numbered(make: Callable[[int], Any]) -> list[tuple[Any, ...]]:
    return [(make(i),) for i in range(ROWS)]


def words(i: int) -> str:
    return f"{WORDS[i % len(WORDS)]}{WORDS[i // len(WORDS)]}"


KINDS = {
    "integer": Kind([sa.Integer], numbered(lambda i: (i - 50) ** 3)),
    "big integer": Kind(
        [sa.BigInteger],
        numbered(lambda i: (-1) ** i * (2**53 + i) if i % 3 else (-1) ** i * (2**63 - 1 - i)),
    ),
    "string": Kind([EXACT], numbered(words)),
    "case-blind string": Kind([CASE_BLIND], numbered(lambda i: f"{'xX'[i % 2]}é {i % 10} {i}")),
    "fixed string": Kind([sa.CHAR(12)], numbered(lambda i: f"{i:03}'%\\é")),
    "native UUID": Kind([sa.Uuid()], numbered(lambda i: uuid.uuid5(uuid.NAMESPACE_DNS, str(i)))),
    "UUID as text": Kind(
        [sa.Uuid(native_uuid=False)], numbered(lambda i: uuid.uuid5(uuid.NAMESPACE_DNS, str(i)))
    ),
    "datetime": Kind([MOMENT], numbered(lambda i: NOON + dt.timedelta(days=i % 5, microseconds=i))),
    "zoned datetime": Kind(
        [sa.DateTime(timezone=True)],
        numbered(lambda i: (NOON + dt.timedelta(microseconds=i)).replace(tzinfo=dt.timezone.utc)),
    ),
    "date": Kind([sa.Date], numbered(lambda i: dt.date(1969, 12, 1) + dt.timedelta(days=i))),
    "numeric": Kind([sa.Numeric(20, 6)], numbered(lambda i: Decimal(i - 50) ** 5 / 1000)),
    "wide numeric": Kind(
        [sa.Numeric(20, 6)], numbered(lambda i: Decimal((i - 50) * 10**18 + i).scaleb(-6))
    ),
    "bytes": Kind(
        [BYTES], numbered(lambda i: bytes([0, 37, 39, 92, 255][i % 5 :]) + bytes([255 - i]))
    ),
    "string, integer": Kind([EXACT, sa.Integer], [(words(i % 7), -i) for i in range(ROWS)]),
    "datetime, string, integer": Kind(
        [MOMENT, EXACT, sa.BigInteger],
        [(NOON, words(i % 5), 2**60 + i) for i in range(ROWS - 20)]
        + [(NOON + dt.timedelta(microseconds=i - 10), "z", i) for i in range(20)],
    ),
    "UUID, date": Kind(
        [sa.Uuid(), sa.Date],
        [
            (uuid.UUID(int=2**127 + i % 4), dt.date(2000, 1, 1) + dt.timedelta(days=i))
            for i in range(ROWS)
        ],
    ),
    "domain": Kind([postgresql.DOMAIN("ident", sa.BigInteger)], numbered(lambda i: (i - 50) ** 3)),
    "fixed string, integer": Kind(
        [sa.CHAR(12), sa.Integer], [(f"é {i % 9}", i) for i in range(ROWS)]
    ),
    "string of another character set, integer": Kind(
        [
            sa.String(9).with_variant(mysql.VARCHAR(9, charset="latin1"), "mysql", "mariadb"),
            sa.Integer,
        ],
        [(f"é{i % 9}" if i % 3 else "a", i) for i in range(ROWS)],
    ),
    "enum, numeric": Kind(
        [sa.Enum("sad", "glad", name="mood"), sa.Numeric(20, 6)],
        [(("sad", "glad")[i % 2], Decimal(i) / 8) for i in range(ROWS)],
    ),
    "unique, not primary": Kind([EXACT], numbered(words), primary=False),
    "unique pair, not primary": Kind(
        [sa.Integer, EXACT], [(i % 3, words(i)) for i in range(ROWS)], primary=False
    ),
}
NEEDS = {
    "native UUID": "native_uuid",
    "UUID, date": "native_uuid",
    "zoned datetime": "zoned_times",
    "wide numeric": "exact_numbers",
    "domain": "schemas",
    "enum, numeric": "schemas",
}

every_kind = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            id=name.replace(" ", "-"),
            marks=[pytest.mark.requires(NEEDS[name])] if name in NEEDS else [],
        )
        for name, kind in KINDS.items()
    ],
)


def set_based(kind: Kind, name_: str, *, pending: bool) -> type[Backfill]:
    """Adds one to every `n`; to those that are not done, if only the pending are wanted."""

    class SetBased(Backfill):
        name = name_
        table = "things"
        key = None if kind.primary else kind.names
        where = "done = 0" if pending else None
        values = {"n": "n + 1", "done": "1"} if pending else {"n": "n + 1"}

    return SetBased


def python(kind: Kind, name_: str, *, pending: bool) -> type[Backfill]:
    """The same in Python."""

    class Python(Backfill):
        name = name_
        table = "things"
        key = None if kind.primary else kind.names
        where = "done = 0" if pending else None
        reads = ("n",)
        writes = ("n", "done") if pending else ("n",)

        def transform(self, row: Any) -> Row:
            return {"n": row.n + 1, "done": 1} if pending else {"n": row.n + 1}

    return Python


def custom(kind: Kind, name_: str, *, pending: bool) -> type[Backfill]:
    """The same by a statement of one's own."""

    class Custom(Backfill):
        name = name_
        table = "things"
        key = None if kind.primary else kind.names
        where = "done = 0" if pending else None

        def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int:
            n, done = chunk.table.c.n, {"done": 1} if pending else {}
            return connection.execute(chunk.update().values(n=n + 1, **done)).rowcount

    return Custom


@every_kind
def test_each_row_is_done_exactly_once(engine: sa.Engine, kind: Kind) -> None:
    """By limits, so that the cursor goes through text; in parallel, so that bounds do."""
    table = made(engine, kind)
    check_all(engine, table, set_based(kind, "all", pending=False), by_limits)
    check_pending(engine, table, python(kind, "pending", pending=True), in_parallel)
    if len(kind.types) > 1:
        check_all(engine, table, custom(kind, "custom", pending=False), at_once)


@pytest.mark.parametrize("way", [set_based, python])
def test_every_way_to_go_through_a_composite_key(
    engine: sa.Engine, way: Callable[..., type[Backfill]]
) -> None:
    kind = KINDS["datetime, string, integer"]
    table = made(engine, kind)
    for how in (at_once, by_limits, in_parallel):
        check_all(engine, table, way(kind, f"all_{how.__name__}", pending=False), how)
        check_pending(engine, table, way(kind, f"pending_{how.__name__}", pending=True), how)
        with engine.begin() as connection:
            connection.execute(table.update().values(done=0).where(table.c.n % 20 < 10))


def made(engine: sa.Engine, kind: Kind) -> sa.Table:
    table = kind.table()
    table.create(engine)
    fill(engine, table, kind.rows())
    return table


def at_once(engine: sa.Engine, declaration: type[Backfill], rows: int) -> None:
    ran = complete(engine, declaration, chunk_size=7)
    assert sum(ran.numbers("chunk", "changed")) == rows
    assert max(ran.numbers("chunk", "changed")) <= 7


def by_limits(engine: sa.Engine, declaration: type[Backfill], rows: int) -> None:
    turns = complete_by_limits(engine, declaration, 40, chunk_size=7)
    assert turns == -(-rows // 40)


def in_parallel(engine: sa.Engine, declaration: type[Backfill], rows: int) -> None:
    ran = complete_in_parallel(engine, declaration, threads=3, ranges=5, chunk_size=7)
    assert len(set(ran.numbers("chunk", "range"))) == 5


def check_all(
    engine: sa.Engine, table: sa.Table, declaration: type[Backfill], how: Callable[..., None]
) -> None:
    before = read(engine, table, "n", "done")
    assert len(before) == ROWS
    how(engine, declaration, ROWS)
    assert read(engine, table, "n", "done") == [(n + 1, done) for n, done in before]
    now = status(engine, declaration)
    assert (now["status"], now["rows_scanned"], now["rows_changed"]) == ("succeeded", ROWS, ROWS)


def check_pending(
    engine: sa.Engine, table: sa.Table, declaration: type[Backfill], how: Callable[..., None]
) -> None:
    before = read(engine, table, "n", "done")
    pending = sum(not done for _, done in before)
    assert 0 < pending < ROWS
    how(engine, declaration, pending)
    assert read(engine, table, "n", "done") == [(n + (not done), 1) for n, done in before]
    now = status(engine, declaration)
    assert (now["status"], now["rows_changed"]) == ("succeeded", pending)


# -- names -----------------------------------------------------------------------------


@pytest.mark.requires("schemas")
@pytest.mark.parametrize("where_it_is", [{"table": "sales.orders"}, {"schema": "sales"}])
@pytest.mark.parametrize("way", ["values", "transform"])
def test_table_in_a_schema(engine: sa.Engine, where_it_is: dict[str, str], way: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("sales"))
    there, here = (
        make(
            engine,
            "orders",
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("n", sa.Integer, nullable=False),
            rows=[{"id": i, "n": i} for i in range(30)],
            schema=schema,
        )
        for schema in ("sales", None)
    )

    def transform(self: Backfill, row: Any) -> Row:
        return {"n": row.n + 1}

    level: Row = {"values": {"n": "n + 1"}}
    if way == "transform":
        level = {"transform": transform, "reads": ["n"], "writes": ["n"]}
    body = {"table": "orders", **where_it_is, **level}
    complete(engine, type("InSchema", (Backfill,), body), chunk_size=7)
    assert read(engine, there, "n") == [i + 1 for i in range(30)]
    assert read(engine, here, "n") == list(range(30))


def test_table_whose_name_has_a_dot(engine: sa.Engine) -> None:
    things = make_numbers(engine, "sales.orders", rows=30)

    class Dotted(Backfill):
        table = "sales.orders"
        values = {"n": "n + 1"}  # noqa: RUF012

    complete(engine, Dotted, chunk_size=7)
    assert read(engine, things, "n") == [i + 1 for i in range(30)]


STRANGE = ["Weird Name", "count", "index", "class", "100%", "a:b", "%(x)s", "from", "key_0"]


@pytest.fixture
def strange(engine: sa.Engine) -> sa.Table:
    return make(
        engine,
        "order",
        sa.Column("select", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in STRANGE),
        rows=[{"select": i, **dict.fromkeys(STRANGE, i)} for i in range(30)],
    )


def test_strange_names_in_sql_text(engine: sa.Engine, strange: sa.Table) -> None:
    def quoted(name: str) -> str:
        quote = engine.dialect.identifier_preparer.initial_quote
        return f"{quote}{name}{quote}"

    class Strange(Backfill):
        table = "order"
        where = f"{quoted('100%')} < 1000 AND {quoted('a:b')} < 1000"
        values = {name: f"{quoted(name)} + 1000" for name in STRANGE}  # noqa: RUF012

    complete(engine, Strange, chunk_size=7)
    assert read(engine, strange, *STRANGE) == [(1000 + i,) * len(STRANGE) for i in range(30)]


def test_strange_names_in_expressions(engine: sa.Engine, strange: sa.Table) -> None:
    class Strange(Backfill):
        table = "order"
        where = sa.and_(sa.column("100%") < 1000, sa.column("a:b") < 1000)
        values = {name: sa.column(name) + 1000 for name in STRANGE}  # noqa: RUF012

    complete(engine, Strange, chunk_size=7)
    assert read(engine, strange, *STRANGE) == [(1000 + i,) * len(STRANGE) for i in range(30)]


def test_strange_names_in_python(engine: sa.Engine, strange: sa.Table) -> None:
    class Strange(Backfill):
        table = "order"
        reads = STRANGE
        writes = STRANGE

        def transform(self, row: Any) -> Row:
            assert row.count == row.index == row["select"]
            return {name: row[name] + 1000 for name in STRANGE}

    complete(engine, Strange, chunk_size=7)
    assert read(engine, strange, *STRANGE) == [(1000 + i,) * len(STRANGE) for i in range(30)]


@pytest.mark.parametrize("key", ["a%b", "a:b", "Select", "count"])
def test_strange_name_of_the_key(engine: sa.Engine, key: str) -> None:
    things = make(
        engine,
        "things",
        sa.Column(key, sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        rows=[{key: i, "n": None if i % 3 else i} for i in range(30)],
    )

    class Strange(Backfill):
        table = "things"
        where = "n IS NULL"
        writes = ("n",)

        def transform(self, row: Any) -> Row:
            if row[key] == 7:
                raise ValueError
            return {"n": row[key]}

    ran = run(engine, Strange, chunk_size=7)
    assert ran.outcome is Outcome.QUARANTINED, ran.result.text
    assert read(engine, things, "n") == [i if i != 7 else None for i in range(30)]


# -- SQL text --------------------------------------------------------------------------


NUMBERS = 12


def make_numbers(engine: sa.Engine, name: str = "things", rows: int = NUMBERS) -> sa.Table:
    return make(
        engine,
        name,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("m", sa.Integer, nullable=False),
        sa.Column("note", sa.String(100)),
        rows=[{"id": i, "n": i, "m": 7 * i, "note": f"row {i}"} for i in range(rows)],
    )


Case = tuple[Any, Any, "Callable[[int], Any]"]
"""`where`, the value for `note`, and what `note` of a row is then."""


def check_cases(engine: sa.Engine, cases: Sequence[Case]) -> None:
    things = make_numbers(engine)
    before = read(engine, things, "id", "note")
    for number, (where, value, expected) in enumerate(cases):
        with engine.begin() as connection:
            for i, note in before:
                connection.execute(things.update().where(things.c.id == i).values(note=note))
        body = {"name": f"case_{number}", "table": "things", "where": where}
        way = type("Case", (Backfill,), {**body, "values": {"note": value}})
        complete(engine, way, chunk_size=7)
        assert read(engine, things, "note") == [expected(i) for i, _ in before], str(value)


def always(text: str) -> Callable[[int], str]:
    return lambda i: text


VALUES = {
    "'100%:x'": "100%:x",
    "'%s %(name)s %% {x} ?'": "%s %(name)s %% {x} ?",
    "'a::b :c'": "a::b :c",
    "'O''Brien \"x\" `y`'": 'O\'Brien "x" `y`',
    "'a' -- 100% of :them": "a",
    "/* %s :x ' */ 'a'": "a",
    "'a -- b'": "a -- b",
    "'#1 é 日本 😀'": "#1 é 日本 😀",
    "CASE WHEN n % 2 = 0 THEN 'even' ELSE 'even' END": "even",
    "'a'\n\n": "a",
}
CONDITIONS: list[tuple[str, Callable[[int], bool]]] = [
    ("note LIKE '%1%' AND note <> 'x'", lambda i: "1" in str(i)),
    ("note <> 'x' AND note <> '100%:x' AND n % 3 = 0", lambda i: i % 3 == 0),
    ("note <> 'x' AND (n < 3 OR n > 9) -- :x 100%", lambda i: i < 3 or i > 9),
    ("n < 3 AND note <> 'x' OR n > 9 AND note <> 'x'", lambda i: i < 3 or i > 9),
    ("note <> 'x' /* ? %s */ AND n IN (1, 2)", lambda i: i in (1, 2)),
    ("note NOT IN ('x', ':y') AND n BETWEEN 5 AND 9", lambda i: 5 <= i <= 9),
]


def test_text_of_a_value_stands_as_it_is(engine: sa.Engine) -> None:
    check_cases(engine, [("note LIKE 'row%'", sql, always(text)) for sql, text in VALUES.items()])


def test_text_of_where_stands_as_it_is(engine: sa.Engine) -> None:
    def expected(matches: Callable[[int], bool]) -> Callable[[int], str]:
        return lambda i: "x" if matches(i) else f"row {i}"

    check_cases(engine, [(sql, "'x'", expected(matches)) for sql, matches in CONDITIONS])


def test_backslash_means_what_it_means_to_the_database(engine: sa.Engine) -> None:
    text = r"'a\\:d\%'"
    with engine.connect() as connection:
        meaning = connection.execute(sa.select(sa.literal_column(text))).scalar_one()
    check_cases(engine, [("note LIKE 'row%'", text, always(meaning))])


@pytest.mark.requires("colon_casts")
def test_casts_with_colons(engine: sa.Engine) -> None:
    where, value = "note::text LIKE 'row%' AND n::bigint > 3", "n::text || '::%'"
    check_cases(engine, [(where, value, lambda i: f"{i}::%" if i > 3 else f"row {i}")])


@pytest.mark.parametrize("text", ["note LIKE 'row%'", "note LIKE 'row%' -- :all"])
def test_text_of_where_holds_for_python_too(engine: sa.Engine, text: str) -> None:
    things = make_numbers(engine)

    class Text(Backfill):
        table = "things"
        where = text
        writes = ("note",)

        def transform(self, row: Any) -> Row:
            return {"note": f"%s :{row.id}"}

    complete(engine, Text, chunk_size=7)
    assert read(engine, things, "note") == [f"%s :{i}" for i in range(NUMBERS)]


# -- expressions -----------------------------------------------------------------------

light = sa.table("things", sa.column("n"), sa.column("m"), sa.column("note"))
note = sa.column("note", sa.String)


def test_expressions(engine: sa.Engine) -> None:
    replaced = sa.func.replace(light.c.note, "row", "it")
    few = sa.and_(light.c.n < 5, light.c.note.not_in(["low", "x"]))
    low = sa.case((light.c.m < 100, "low"), else_="high")
    pair = sa.and_(note != "x", sa.tuple_(light.c.n, light.c.m) == (1, 7))
    cases: list[Case] = [
        (sa.column("note") != "x", sa.literal("x"), always("x")),
        (sa.column("note").like("row%"), sa.literal("100%:x"), always("100%:x")),
        (light.c.note.startswith("row"), replaced, lambda i: f"it {i}"),
        (few, low, lambda i: "low" if i < 5 else f"row {i}"),
        ("note <> 'x'", sa.func.coalesce(sa.null(), sa.literal("x")), always("x")),
        (note != "x", "'x'", always("x")),
        (pair, "'x'", lambda i: "x" if i == 1 else f"row {i}"),
    ]
    check_cases(engine, cases)


def test_expression_that_looks_into_another_table(engine: sa.Engine) -> None:
    things = make_numbers(engine)
    names = make(
        engine,
        "names",
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("note", sa.String(100)),
        rows=[{"n": i, "note": f"name {i}"} for i in range(0, NUMBERS, 2)],
    )
    name = sa.select(names.c.note).where(names.c.n == light.c.n).scalar_subquery()

    class Looks(Backfill):
        table = "things"
        where = sa.and_(sa.exists().where(names.c.n == light.c.n), light.c.note.like("row%"))
        values = {"note": name}  # noqa: RUF012

    complete(engine, Looks, chunk_size=7)
    expected = [f"row {i}" if i % 2 else f"name {i}" for i in range(NUMBERS)]
    assert read(engine, things, "note") == expected


def test_a_bare_name_in_a_subquery_is_its_own_tables(engine: sa.Engine) -> None:
    """As SQL takes it; not that of the table which is filled."""
    things = make_numbers(engine)
    make(
        engine,
        "names",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("note", sa.String(100)),
        rows=[{"number": i, "note": f"name {i}"} for i in range(NUMBERS)],
    )
    name = sa.select(sa.column("note")).select_from(sa.table("names"))
    name = name.where(sa.column("number") == light.c.n)

    class Looks(Backfill):
        table = "things"
        values = {"note": name.scalar_subquery()}  # noqa: RUF012

    complete(engine, Looks, chunk_size=7)
    assert read(engine, things, "note") == [f"name {i}" for i in range(NUMBERS)]


@pytest.mark.requires("schemas")
def test_a_table_of_the_same_name_in_another_schema_is_another_one(engine: sa.Engine) -> None:
    things = make_numbers(engine)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("legacy"))
    make(
        engine,
        "things",
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("note", sa.String(100)),
        schema="legacy",
        rows=[{"n": i, "note": f"legacy {i}"} for i in range(5)],
    )
    old = sa.table("things", sa.column("n"), sa.column("note"), schema="legacy").alias()

    class Looks(Backfill):
        table = "things"

        def where(self, table: sa.Table) -> Any:
            return sa.exists().where(old.c.n == table.c.n) & table.c.note.like("row%")

        def values(self, table: sa.Table) -> Row:
            return {"note": sa.select(old.c.note).where(old.c.n == table.c.n).scalar_subquery()}

    complete(engine, Looks, chunk_size=7)
    expected = [f"legacy {i}" if i < 5 else f"row {i}" for i in range(NUMBERS)]
    assert read(engine, things, "note") == expected
    unaliased = sa.select(old.original.c.note).where(old.original.c.n == light.c.n)
    values = {"note": unaliased.scalar_subquery()}
    with pytest.raises(DeclarationError):  # SQLAlchemy mixes up the names, but nobody the rows
        run(engine, type("Mixed", (Backfill,), {"table": "things", "values": values}))


def test_where_and_values_as_methods(engine: sa.Engine) -> None:
    things = make_numbers(engine)

    class Methods(Backfill):
        table = "things"

        def where(self, table: sa.Table) -> Any:
            return table.c.m < 35

        def values(self, table: sa.Table) -> Row:
            return {"n": table.c.n + table.c.m, "m": "m + 1000"}

    complete(engine, Methods, chunk_size=7)
    expected = [(8 * i, 7 * i + 1000) if i < 5 else (i, 7 * i) for i in range(NUMBERS)]
    assert read(engine, things, "n", "m") == expected


def test_methods_that_return_text(engine: sa.Engine) -> None:
    things = make_numbers(engine)

    class Methods(Backfill):
        table = "things"

        def where(self, table: sa.Table) -> Any:
            return "note LIKE 'row%'"

        def values(self, table: sa.Table) -> Row:
            return {"note": "'100%:x'"}

    complete(engine, Methods, chunk_size=7)
    assert set(read(engine, things, "note")) == {"100%:x"}


def test_values_are_those_from_before_the_statement(engine: sa.Engine) -> None:
    """In standard SQL the assignments of an UPDATE see the old row."""
    things = make_numbers(engine)

    class Swap(Backfill):
        table = "things"
        values = {"n": "m", "m": "n"}  # noqa: RUF012

    complete(engine, Swap, chunk_size=7)
    assert read(engine, things, "n", "m") == [(7 * i, i) for i in range(NUMBERS)]


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column("n")
    m: Mapped[int]
    note: Mapped[str]


def test_mapped_class_is_taken_and_warned_about(engine: sa.Engine) -> None:
    things = make_numbers(engine)
    with pytest.warns(DeclarationWarning, match='table = "things" is safer'):

        class Mapping(Backfill):
            table = Thing
            where = sa.and_(Thing.number < 9, Thing.note.startswith("row"))
            values = {  # noqa: RUF012
                "note": "'x'",
                "n": Thing.number + Thing.m,
                "m": Thing.number,
            }

    complete(engine, Mapping, chunk_size=7)
    expected = [("x", 8 * i) if i < 9 else (f"row {i}", i) for i in range(NUMBERS)]
    assert read(engine, things, "note", "n") == expected
