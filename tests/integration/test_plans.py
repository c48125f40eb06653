"""Every statement on the user's table is a range of an index, and none reads more than it may.

Both are asked of the database: its plan for each statement that a run really sends, with that
statement's parameters, and how many rows it read for it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa

from backfill import Backfill, proof, strides, trail
from backfill.dialects import dialect_for
from tests.integration.plans import WATCHES
from tests.integration.support import bound, complete, count, make

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.databases import Database
    from tests.integration.plans import Watch

SHARE = 20
"""A longest stride is to its table as 50,000 rows are to a million: planners look at the ratio."""
FEW = 20
"""Rows that any statement may read besides: both ends of an index, dead rows among them."""
SAMPLE = 60
"""What a look at the widths of a few rows costs, in rows."""


@pytest.fixture
def watch(database: Database, engine: sa.Engine) -> Watch:
    return WATCHES[database.name](engine, "things")


def shorten_strides(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (proof, strides, trail):
        monkeypatch.setattr(module, "LONGEST_STRIDE", rows)


# -- ways to fill a column ---------------------------------------------------------------------


def set_based(column: str, **body: Any) -> type[Backfill]:
    return declared(column, body, values={column: "1"})


def python(column: str, **body: Any) -> type[Backfill]:
    def transform(self: Backfill, row: Any) -> dict[str, Any]:
        return {column: 1}

    return declared(column, body, reads=["note"], writes=[column], transform=transform)


def custom(column: str, **body: Any) -> type[Backfill]:
    def apply(self: Backfill, connection: sa.Connection, chunk: Any) -> int:
        return connection.execute(chunk.update().values({column: 1})).rowcount

    return declared(column, body, apply=apply)


def declared(column: str, body: dict[str, Any], **more: Any) -> type[Backfill]:
    return type("Fill", (Backfill,), {"name": f"fill_{column}", "table": "things", **body, **more})


# -- plans -------------------------------------------------------------------------------------

ROWS = 8_000
CHUNK = 400


@dataclass(frozen=True)
class Kind:
    """A kind of key: types of its columns, and the key of each row."""

    types: Sequence[Any]
    key: Callable[[int], tuple[Any, ...]]
    primary: bool = True
    """Else there is an `id` besides, in another order."""

    @property
    def names(self) -> list[str]:
        return [f"k{i}" for i in range(len(self.types))]

    def columns(self) -> list[Any]:
        columns: list[Any] = [
            sa.Column(name, kind, primary_key=self.primary, autoincrement=False, nullable=False)
            for name, kind in zip(self.names, self.types, strict=True)
        ]
        if self.primary:
            return columns
        return [sa.Column("id", sa.Integer, primary_key=True), *columns,
                sa.UniqueConstraint(*self.names)]  # fmt: skip


def scattered(i: int) -> int:
    """Another number for each, in no order: neighbours are stored far apart."""
    return i * 7919 % 1_000_003


KINDS = {
    "integer": Kind([sa.Integer], lambda i: (7 * i - 50_000,)),
    "text": Kind([sa.String(40)], lambda i: (f"key {scattered(i)}",)),
    "UUID": Kind([sa.Uuid()], lambda i: (uuid.uuid5(uuid.NAMESPACE_DNS, str(i)),)),
    "pair": Kind([sa.Integer, sa.Integer], lambda i: (i % 97, i)),
    "three": Kind(
        [sa.Integer, sa.String(40), sa.BigInteger], lambda i: (i % 7, f"group {i % 31}", i)
    ),
    "huge prefix": Kind([sa.Integer, sa.Integer], lambda i: (5 if i % 20 else i % 11, i)),
    "unique": Kind([sa.BigInteger], lambda i: (scattered(i),), primary=False),
}
# Without `where`; with one that all rows match; with one that one row in a hundred matches.
RUNS = {
    f"{way.__name__}_{rows}": (way, rows)
    for way, *all_rows in [
        (set_based, "all", "sparse"),
        (python, "dense", "sparse"),
        (custom, "all", "sparse"),
    ]
    for rows in all_rows
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=[name.replace(" ", "-") for name in KINDS])
def test_statements_are_index_ranges(
    engine: sa.Engine, watch: Watch, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_strides(monkeypatch, ROWS // SHARE)
    few = {name: None if rows != "sparse" else 0 for name, (_, rows) in RUNS.items()}
    make(
        engine,
        "things",
        *kind.columns(),
        sa.Column("note", sa.String(200)),
        *(sa.Column(name, sa.Integer) for name in RUNS),
        rows=[
            {
                **dict(zip(kind.names, kind.key(i), strict=True)),
                "note": "x" * 120,
                **(few if i % 100 else dict.fromkeys(RUNS)),
            }
            for i in range(ROWS)
        ],
    )
    faults = []
    for name, (way, rows) in RUNS.items():
        where = None if rows == "all" else f"{name} IS NULL"
        declaration = way(name, key=None if kind.primary else kind.names, where=where)
        watch.settle()
        a_row = reads_a_row(engine, watch, declaration)
        with watch:
            ran = complete(engine, declaration, chunk_size=CHUNK)
        assert sum(ran.numbers("chunk", "changed")) == (ROWS // 100 if rows == "sparse" else ROWS)
        faults += unfit(watch, name, ROWS // SHARE, a_row)
    assert not faults, told(faults)


def unfit(watch: Watch, name: str, stride: int, a_row: float) -> list[str]:
    """The statements that are no index range, or read more than a stride; what reads only an
    end of the table may do that as it likes.
    """
    most, few, sample = watch.dearest * a_row * stride, FEW * a_row, SAMPLE * a_row
    return [
        f"{name}: {statement}"
        for statement in watch.statements
        if statement.reads > (most + few if statement.has_condition else few + sample)
        or statement.passed > most + few
        or (statement.has_condition and not statement.is_range)
    ]


def told(faults: Sequence[str]) -> str:
    first = "\n\n".join(faults[:5])
    return f"{len(faults)} statements, the first of them:\n\n{first}"


def reads_a_row(engine: sa.Engine, watch: Watch, declaration: type[Backfill]) -> float:
    """What the database counts for each row of one walk over the table, as one writes it by hand:
    its predicate, between two keys, in the order of the key.
    """
    target = bound(engine, declaration)
    key = target.key
    ends = [
        sa.select(*key.selected).order_by(*(order(column) for column in key.columns)).limit(1)
        for order in (sa.asc, sa.desc)
    ]
    with engine.connect() as connection:
        low, high = (key.constants(tuple(connection.execute(end).one())) for end in ends)
    walk = sa.select(*key.selected).where(key.above(low, inclusive=True), key.upto(high))
    if target.pending is not None:
        walk = walk.where(target.pending)
    with watch, engine.connect() as connection:
        connection.execute(walk.order_by(*key.columns)).all()
    (statement,) = watch.statements
    return statement.reads / count(engine, target.table)


# -- bounded work ------------------------------------------------------------------------------

MANY = 60_000


class Spread(NamedTuple):
    """Where the rows are that are to do."""

    is_pending: Callable[[Any], Any]
    """By its number in the order of the key."""
    writes: float = 0
    """So much of a pass is added where more than a few rows are written."""


SPREADS = {
    "evenly": Spread(lambda i: i % 100 == 0),
    "at_the_end": Spread(lambda i: i >= MANY - MANY // 100),
    "after_nothing": Spread(lambda i: sa.and_(i >= MANY // 2, i % 10 == 0), writes=1.5),
    "nowhere": Spread(lambda i: i < 0),
}


@dataclass(frozen=True)
class Layout:
    """How a big table is made."""

    key: Callable[[Any], Sequence[Any]]
    """The key of the i-th row in its order."""
    place: Callable[[Any], Any] | None = None
    """Its primary key, by which it is stored, where that is another one."""

    def make(self, engine: sa.Engine) -> None:
        """Let the database make the rows."""
        numbers = make(engine, "numbers", sa.Column("n", sa.Integer), rows=NUMBERS)
        high, low = numbers.alias(), numbers.alias()
        pairs = high.join(low, high.c.n < MANY // len(NUMBERS))
        i = high.c.n * len(NUMBERS) + low.c.n
        values = {f"k{n}": value for n, value in enumerate(self.key(i))}
        kind = Kind([sa.BigInteger] * len(values), lambda i: (), primary=self.place is None)
        if self.place is not None:
            values["id"] = self.place(i)
        for name, spread in SPREADS.items():
            values[name] = sa.case((spread.is_pending(i), None), else_=0)
        values["note"] = sa.literal("x" * 60)
        flags = (sa.Column(name, sa.Integer) for name in SPREADS)
        table = make(engine, "things", *kind.columns(), *flags, sa.Column("note", sa.String(60)))
        rows = sa.select(*values.values()).select_from(pairs).order_by(values.get("id", i))
        with engine.begin() as connection:
            connection.execute(table.insert().from_select(list(values), rows))


NUMBERS = [{"n": n} for n in range(1_000)]
IN_ORDER = Layout(lambda i: [7 * i])
OUT_OF_ORDER = Layout(lambda i: [7 * i], place=lambda i: i * 7919 % MANY + 1)
HUGE_PREFIX = Layout(
    lambda i: [sa.case((i < MANY // 50, i // 60), (i < MANY - 500, 50), else_=60), i]
)


@pytest.mark.parametrize(
    ("layout", "way"),
    [
        pytest.param(IN_ORDER, set_based, id="in-order-set-based"),
        pytest.param(IN_ORDER, python, id="in-order-python"),
        pytest.param(IN_ORDER, custom, id="in-order-custom"),
        pytest.param(OUT_OF_ORDER, python, id="out-of-order-python"),
        pytest.param(HUGE_PREFIX, set_based, id="huge-prefix-set-based"),
        pytest.param(HUGE_PREFIX, python, id="huge-prefix-python"),
    ],
)
def test_sparse_work_is_bounded(
    engine: sa.Engine,
    watch: Watch,
    layout: Layout,
    way: Callable[..., type[Backfill]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Statement by statement and in all, wherever the rows are that are to do."""
    check_sparse_work(engine, watch, layout, way, monkeypatch)


@pytest.mark.requires("generic_plans")
def test_sparse_work_is_bounded_for_any_parameters(
    engine: sa.Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that is made once knows neither the range nor the limit."""
    watch.planning = watch.plannings[-1]
    check_sparse_work(engine, watch, HUGE_PREFIX, python, monkeypatch)


def check_sparse_work(
    engine: sa.Engine,
    watch: Watch,
    layout: Layout,
    way: Callable[..., type[Backfill]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stride = MANY // SHARE
    shorten_strides(monkeypatch, stride)
    # The proof goes by key, as where others write all the time.
    monkeypatch.setattr(type(dialect_for(engine)), "all_at_once", lambda *_: None)
    layout.make(engine)
    watch.settle()
    faults = []
    for name, spread in SPREADS.items():
        key = None if layout.place is None else ["k0"]
        declaration = way(name, key=key, where=f"{name} IS NULL")
        a_row = reads_a_row(engine, watch, declaration)
        with watch:
            complete(engine, declaration, chunk_size=stride // 50)
        faults += unfit(watch, name, stride, a_row)
        # What cannot be looked up by a list of keys is written by a range, which is one pass more.
        by_range = way is custom or len(layout.key(sa.literal(0))) > 1
        passes = watch.total() / (a_row * MANY)
        if passes > watch.passes + spread.writes + by_range + 0.5:
            faults.append(f"{name}: {passes:.1f} times the table in all")
    assert not faults, told(faults)
