"""The walk cuts any table into chunks that leave nothing out and never cost more than they may."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backfill import Backfill, chunks, proof, strides, survey, trail, walk
from backfill.companion import Companion
from backfill.dialects import dialect_for
from backfill.dialects.readers import Helpers, Reader, Readers
from backfill.keys import START
from backfill.proof import any_pending, count_pending
from backfill.scans import last_key
from backfill.targets import Target, bind
from backfill.trail import Stretch
from backfill.walk import Walk
from tests.integration.support import make, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.chunks import Chunk
    from backfill.keys import KeyValues
    from tests.databases import Database

STRIDE = 40
MANY_SECONDS = 1e9

# Without shrinking: it would try thousands of tables.
examples = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)

Keys = Sequence[tuple[int, ...]]

NUMBERS = st.integers(-300, 300).map(lambda i: (i, 0))
PAIRS = st.tuples(st.integers(-2, 2), st.integers(-30, 30))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Keys, Keys]:
    """The keys of all rows, and of those that are pending: few, many or all."""
    keys = sorted(draw(st.sets(draw(st.sampled_from([NUMBERS, PAIRS])), max_size=250)))
    one_in = draw(st.sampled_from([1, 2, 3, 10, 50, 1000]))
    offset = draw(st.integers(0, 49))
    return keys, [key for i, key in enumerate(keys) if (i + offset) % one_in == 0]


sizes = st.lists(st.integers(1, STRIDE), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def short_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (proof, strides, trail):
        monkeypatch.setattr(module, "LONGEST_STRIDE", STRIDE)


@pytest.fixture
def table(engine: sa.Engine) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("a", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
    )


class SetBased(Backfill):
    table = "things"
    where = "n IS NULL"
    values = {"n": "1"}  # noqa: RUF012


class Python(Backfill):
    table = "things"
    where = "n IS NULL"
    writes = ("n",)

    def transform(self, row: Any) -> dict[str, Any]:
        return {"n": 1}


class SetBasedOnAll(Backfill):
    table = "things"
    values = {"n": "1"}  # noqa: RUF012


class PythonOnAll(Backfill):
    table = "things"
    writes = ("n",)

    def transform(self, row: Any) -> dict[str, Any]:
        return {"n": 1}


every_way = pytest.mark.parametrize("way", [SetBased, Python, SetBasedOnAll, PythonOnAll])


@contextmanager
def holding(engine: sa.Engine, table: sa.Table, keys: Keys, pending: Keys) -> Iterator[Any]:
    """A transaction in which the table has these rows; undone at the end."""
    waiting = set(pending)
    names = table.primary_key.columns.keys()
    rows = [
        {**dict(zip(names, key, strict=True)), "n": None if key in waiting else 0} for key in keys
    ]
    with engine.connect() as connection:
        if rows:
            connection.execute(table.insert(), rows)
        yield connection
        connection.rollback()


def bound(engine: sa.Engine, declaration: type[Backfill]) -> Target:
    with engine.connect() as connection:
        return bind(declaration, dialect_for(engine), connection)


def walked(
    connection: sa.Connection, walk: Walk, target: Target, sizes: Sequence[int], pending: Keys
) -> list[tuple[int, Chunk]]:
    """Walk the whole table; the chunks with the sizes that were asked for."""
    found: list[tuple[int, Chunk]] = []
    after, upper = START, last_key(connection, target.key)
    for size in itertools.cycle(sizes):
        if after == upper:
            return found
        assert len(found) <= 1000, "it does not end"
        chunk = walk.next(connection, after, upper, size, MANY_SECONDS)
        changed = len(within(pending, chunk.after, chunk.upto))
        chunk = walk.scans.counted(connection, chunk, changed)
        found.append((size, chunk))
        walk.learn(chunk, changed)
        assert chunk.is_last == (chunk.upto == upper)
        after = chunk.upto
    raise AssertionError  # pragma: no cover - cycle() does not end


def within(keys: Keys, after: KeyValues, upto: KeyValues) -> Keys:
    return [key for key in keys if after < key <= upto]


class Scans:
    """How many rows each statement looks at, by its bounds and limits."""

    def __init__(self, engine: sa.Engine, keys: Keys, pending: Keys) -> None:
        self._engine = engine
        self._keys = keys
        self._pending = pending
        self.rows: list[int] = []

    def __enter__(self) -> Scans:
        sa.event.listen(self._engine, "before_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sa.event.remove(self._engine, "before_execute", self._note)

    def _note(self, connection: Any, statement: Any, many: Any, given: Any, options: Any) -> None:
        if "high_0" in given:
            low, high = (self._bound(name, given) for name in ("low", "high"))
            self.rows.append(self._passed(within(self._keys, low, high), given))

    def _bound(self, name: str, given: dict[str, Any]) -> KeyValues:
        return tuple(given[f"{name}_{i}"] for i in range(2) if f"{name}_{i}" in given)

    def _passed(self, keys: Keys, given: dict[str, Any]) -> int:
        if "offset" in given:
            return min(len(keys), given["offset"] + 1)
        if "size" not in given:
            return len(keys)
        waiting = set(self._pending)
        positions = [i for i, key in enumerate(keys, 1) if key in waiting]
        return positions[given["size"] - 1] if len(positions) >= given["size"] else len(keys)


@every_way
def test_chunks_cover_every_row_once(
    engine: sa.Engine, table: sa.Table, way: type[Backfill]
) -> None:
    target = bound(engine, way)

    @examples
    @given(tables(), sizes)
    def check(drawn: tuple[Keys, Keys], sizes: list[int]) -> None:
        keys, pending = drawn
        todo = pending if way.where else keys
        with (
            holding(engine, table, keys, pending) as connection,
            Scans(connection.engine, keys, todo) as scans,
        ):
            found = walked(connection, Walk(target), target, sizes, todo)
        cuts = [START, *(chunk.upto for _, chunk in found)]
        assert [chunk.after for _, chunk in found] == cuts[:-1]
        assert cuts == sorted(set(cuts))
        assert cuts[-1] == (keys[-1] if keys else START)
        for size, chunk in found:
            assert chunk.scanned == len(within(keys, chunk.after, chunk.upto))
            mine = within(todo, chunk.after, chunk.upto)
            assert len(mine) <= size
            assert chunk.page is None or chunk.page.keys == mine
        assert sum(chunk.scanned for _, chunk in found) == len(keys)
        assert max(scans.rows, default=0) <= STRIDE

    check()


@st.composite
def numbers(draw: st.DrawFn) -> tuple[Keys, Keys]:
    """Whole numbers in rows without a gap, with gaps between, and those that are pending."""
    lengths = st.tuples(st.integers(1, 90), st.sampled_from([0, 1, 2, 50]))
    starts = st.integers(-100, 100) | st.sampled_from([2**53 - 50, 2**63 - 1000])
    keys, following = [], draw(starts)
    for length, gap in draw(st.lists(lengths, max_size=6)):
        keys += [(following + i,) for i in range(length)]
        following += length + gap
    one_in = draw(st.sampled_from([1, 2, 3, 50]))
    return keys, keys[::one_in]


@every_way
def test_chunks_of_whole_numbers_are_exact(engine: sa.Engine, way: type[Backfill]) -> None:
    """Also where their bounds are reckoned: no row left out, none above the size, all counted."""
    table = make(engine, "things", *numbered())
    target = bound(engine, way)

    @examples
    @given(numbers(), sizes)
    def check(drawn: tuple[Keys, Keys], sizes: list[int]) -> None:
        keys, pending = drawn
        todo = pending if way.where else keys
        with holding(engine, table, keys, pending) as connection:
            found = walked(connection, Walk(target), target, sizes, todo)
        cuts = [START, *(chunk.upto for _, chunk in found)]
        assert [chunk.after for _, chunk in found] == cuts[:-1]
        assert cuts[-1] == (keys[-1] if keys else START)
        for size, chunk in found:
            assert chunk.scanned == len(within(keys, chunk.after, chunk.upto))
            mine = within(todo, chunk.after, chunk.upto)
            assert len(mine) <= size
            assert chunk.page is None or chunk.page.keys == mine

    check()


@pytest.mark.parametrize("way", [SetBased, Python])
@pytest.mark.parametrize("size", [1, 2, 10, 100])
@pytest.mark.parametrize(
    "is_pending",
    [lambda i: i % 50 == 0, lambda i: i % 200 == 0, lambda i: i % 400 < 8, lambda i: i > 2900],
    ids=["one in 50", "one in 200", "8 of 400", "the last"],
)
def test_what_does_not_fit_is_not_looked_at_again_and_again(
    engine: sa.Engine,
    way: type[Backfill],
    size: int,
    is_pending: Callable[[int], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Strides are long behind rows that are done, and chunks may be short."""
    monkeypatch.setattr(strides, "LONGEST_STRIDE", 1000)
    keys = [(i,) for i in range(3000)]
    pending = [key for key in keys[1500:] if is_pending(key[0])]
    make(engine, "things", *numbered())
    target = bound(engine, way)
    with (
        holding(engine, target.table, keys, pending) as connection,
        Scans(connection.engine, keys, pending) as scans,
    ):
        found = walked(connection, Walk(target), target, [size], pending)
    assert sum(chunk.scanned for _, chunk in found) == len(keys)
    assert max(scans.rows) <= 1000
    assert sum(scans.rows) <= 6 * len(keys)


def numbered() -> tuple[sa.Column[Any], ...]:
    key = sa.Column("a", sa.BigInteger, primary_key=True, autoincrement=False)
    return key, sa.Column("n", sa.Integer)


@pytest.mark.parametrize("way", [SetBased, SetBasedOnAll])
def test_whole_numbers_without_a_gap_are_not_searched(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    keys = [(i,) for i in range(200)]
    table = make(engine, "things", *numbered())
    target = bound(engine, way)
    sent: list[str] = []
    with holding(engine, table, keys, keys) as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *told: sent.append(told[2]))
        found = walked(connection, Walk(target), target, [10], keys)
    assert [chunk.scanned for _, chunk in found] == [10] * 20
    # The end of the table, the first chunk, and the last one, which says that it is the last.
    assert len(sent) <= 4


@pytest.mark.parametrize("way", [SetBased, Python])
def test_pending_rows_among_whole_numbers_without_a_gap_take_one_scan_a_stride(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    """It counts the rows and finds those that are pending: nothing is looked at twice."""
    make(engine, "things", *numbered())
    rest, sent = looked_over(engine, way)
    assert rest.page is not None
    assert rest.page.keys == [(i,) for i in range(50, 400, 50)]
    assert (rest.scanned, rest.is_last) == (390, True)
    scans = [sql for sql in sent if " > " in sql]
    assert len(scans) == 2 + 10, "the first stride is searched for, and shows that there is no gap"


def test_no_more_keys_are_looked_up_than_a_statement_may_bind(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a chunk may be as long as the longest stride."""
    for module in (chunks, walk):
        monkeypatch.setattr(module, "MOST_SCATTERED", 5)
    keys = [(i,) for i in range(400)]
    table = make(engine, "things", *numbered())
    target = bound(engine, Python)
    looked_up: list[int] = []

    def note(connection: Any, statement: Any, many: Any, given: Any, options: Any) -> None:
        looked_up.append(len(given.get("keys", ())))

    with holding(engine, table, keys, keys[200:]) as connection:
        sa.event.listen(connection.engine, "before_execute", note)
        found = walked(connection, Walk(target), target, [STRIDE], keys[200:])
    assert [key for _, chunk in found if chunk.page for key in chunk.page.keys] == keys[200:]
    assert max(looked_up) <= 5


INDEXES = {
    "of the column": "CREATE INDEX found ON things (n)",
    "partial": "CREATE INDEX found ON things (a) WHERE n IS NULL",
    "expression": "CREATE INDEX found ON things ((n + 1))",
}


@pytest.mark.parametrize(
    "index",
    [
        "of the column",
        pytest.param("partial", marks=pytest.mark.requires("partial_indexes")),
        pytest.param("expression", marks=pytest.mark.requires("expression_indexes", "row_locks")),
    ],
)
@pytest.mark.parametrize("way", [SetBased, Python])
def test_index_that_finds_pending_rows_is_left_to_the_database(
    engine: sa.Engine, way: type[Backfill], index: str
) -> None:
    """It serves a WHERE clause alone; `plan` advises to make one."""
    make(engine, "things", *numbered())
    with engine.begin() as connection:
        connection.exec_driver_sql(INDEXES[index])
    check_where_clause(engine, way, "IS NULL")


@pytest.mark.parametrize("way", [SetBased, Python])
def test_where_that_asks_other_rows_stays_in_the_where_clause(
    engine: sa.Engine, way: type[Backfill]
) -> None:
    """Elsewhere MariaDB answers it anew for each row, by a scan of the other table."""
    make(engine, "things", *numbered())

    where = "n IS NULL AND a IN (Select a FROM things AS others)"
    check_where_clause(engine, type("Asking", (way,), {"where": where}), "Select")


def check_where_clause(engine: sa.Engine, way: type[Backfill], words: str) -> None:
    """These words of `where` stand in a WHERE clause, and the right rows are found."""
    rest, sent = looked_over(engine, way)
    assert rest.page is not None
    assert rest.page.keys == [(i,) for i in range(50, 400, 50)]
    searches = [sql for sql in sent if words in sql]
    assert searches
    assert all(sql.index("WHERE") < sql.index(words) for sql in searches)


@pytest.mark.requires("cut_values")
def test_numbers_that_are_cut_off_are_not_taken_for_keys(engine: sa.Engine) -> None:
    make(engine, "things", *numbered())
    for most in range(4, 12):
        setting = f"SET SESSION group_concat_max_len = {most}"
        rest, _ = looked_over(engine, SetBased, setting)
        assert rest.page is not None
        assert rest.page.keys == [(i,) for i in range(50, 400, 50)]
        assert (rest.scanned, rest.is_last) == (390, True)


@pytest.mark.requires("cut_values")
def test_numbers_that_are_too_long_for_a_packet_are_not_taken_for_none(
    database: Database, engine: sa.Engine
) -> None:
    table = make(engine, "things", *numbered())
    keys = list(range(400))
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"a": key} for key in keys])
    dialect = dialect_for(engine)
    query = sa.select(dialect.gathered(table.c.a, table.c.a >= 0))
    with engine.connect() as connection:
        assert sorted(dialect.numbers_in(connection.scalar(query)) or ()) == keys
    engine.dispose()
    with sa.create_engine(database.admin_url).connect() as admin:
        admin.exec_driver_sql("SET GLOBAL max_allowed_packet = 1024")
        try:
            with engine.connect() as connection:
                assert dialect.numbers_in(connection.scalar(query)) is None
        finally:
            engine.dispose()
            admin.exec_driver_sql("SET GLOBAL max_allowed_packet = DEFAULT")


def looked_over(
    engine: sa.Engine, way: type[Backfill], setting: str = "SELECT 1"
) -> tuple[Chunk, list[str]]:
    """The second chunk of 400 rows, one in 50 of them pending; and the SQL that was sent."""
    keys = [(i,) for i in range(400)]
    target = bound(engine, way)
    sent: list[str] = []
    with holding(engine, target.table, keys, keys[::50]) as connection:
        connection.exec_driver_sql(setting)
        walk, upper = Walk(target), last_key(connection, target.key)
        first = walk.next(connection, START, upper, 10, seconds=-1)
        walk.learn(first, 1)
        sa.event.listen(connection, "before_cursor_execute", lambda *told: sent.append(told[2]))
        return walk.next(connection, first.upto, upper, 10, MANY_SECONDS), sent


def test_rows_that_are_done_by_others_while_they_are_read(engine: sa.Engine) -> None:
    """Between the scan that found them and the read: what did not fit is still ahead."""
    keys = [(i,) for i in range(400)]
    pending = keys[:100:20] + keys[100::5]
    table = make(engine, "things", *numbered())
    target = bound(engine, Python)
    reads: list[str] = []
    with holding(engine, table, keys, pending) as connection:

        def do_some(connection: sa.Connection, cursor: Any, sql: str, *_: Any) -> None:
            if sql.startswith("SELECT") and (" IN " in sql or " ANY " in sql):
                reads.append(sql)
                connection.execute(table.update().where(table.c.a % 25 == 0).values(n=1))

        sa.event.listen(connection, "before_cursor_execute", do_some)
        walk, upper = Walk(target), last_key(connection, target.key)
        after, seen = START, 0
        while after != upper:
            chunk = walk.next(connection, after, upper, 10, MANY_SECONDS)
            walk.learn(chunk, 0)
            assert chunk.page is not None
            left = [key for key in within(pending, after, chunk.upto) if key[0] % 25]
            assert [key for key in chunk.page.keys if key[0] % 25] == left
            after, seen = chunk.upto, seen + chunk.scanned
    assert reads
    assert seen == len(keys)


@pytest.mark.parametrize("way", [SetBased, Python])
@pytest.mark.parametrize("breaks", [None, 0, 3], ids=["in health", "fails at once", "fails later"])
def test_two_readers_leave_nothing_out(
    engine: sa.Engine, way: type[Backfill], breaks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks through a part of a stretch; what one of them fails at, the other one reads."""
    monkeypatch.setattr(survey, "_WORTH_SHARING", 10)
    table, keys = make(engine, "things", *numbered()), [(i,) for i in range(400) if i % 7]
    pending = [*keys[:100:50], *keys[100:200:5], keys[-1]]
    fill(engine, table, keys, pending)
    target = bound(engine, way)
    with engine.connect() as connection, engine.connect() as another:
        beside = Beside(another, breaks)
        helpers = Helpers(1, beside.open, target.dialect.call, lambda: True)
        with closing(Companion(helpers)) as companion, Scans(engine, keys, pending) as scans:
            beside.await_arrival(companion)
            found = walked(connection, Walk(target, companion=companion), target, [3, 30], pending)
    assert max(scans.rows) <= STRIDE
    assert beside.reads == breaks + 1 if breaks is not None else beside.reads > 3
    assert sum(chunk.scanned for _, chunk in found) == len(keys)
    for size, chunk in found:
        assert chunk.scanned == len(within(keys, chunk.after, chunk.upto))
        if chunk.page is not None:
            assert chunk.page.keys == within(pending, chunk.after, chunk.upto)
            assert len(chunk.page) <= size
        after = chunk.after
        for upto, rows in chunk.strides:
            assert rows == len(within(keys, after, upto))
            after = upto


def fill(engine: sa.Engine, table: sa.Table, keys: Keys, pending: Keys) -> None:
    rows = [{"a": key, "n": None if (key,) in pending else 0} for (key,) in keys]
    with engine.begin() as connection:
        connection.execute(table.insert(), rows)


class Beside:
    """A second connection, which breaks after so many reads."""

    def __init__(self, connection: sa.Connection, breaks: int | None) -> None:
        self.reads = 0
        self._reader = Reader(connection, self._reading)
        self._breaks = breaks

    @contextmanager
    def open(self) -> Iterator[Reader]:
        yield self._reader

    def await_arrival(self, companion: Companion) -> None:
        while not companion.is_ready():
            time.sleep(0.001)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self.reads += 1
        if self._breaks is not None and self.reads > self._breaks:
            raise OSError("the connection is gone")
        with self._reader.connection.begin():
            yield


@pytest.mark.requires("untyped_columns")
def test_column_of_whole_numbers_that_holds_others(engine: sa.Engine) -> None:
    """After a stretch without gaps, where bounds are reckoned."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (a INT PRIMARY KEY NOT NULL, n INT)")
        for key in [*range(40), *(i + 0.5 for i in range(20, 40)), "a", "b"]:
            connection.exec_driver_sql("INSERT INTO things VALUES (?, 0)", (key,))
    ran = run(engine, SetBasedOnAll, chunk_size=5)
    assert ran.result.text == "complete, 62 rows changed"
    assert sum(ran.numbers("chunk", "scanned")) == 62


@pytest.mark.parametrize("way", [SetBased, Python])
def test_proof_sees_every_pending_row(
    engine: sa.Engine, table: sa.Table, way: type[Backfill]
) -> None:
    target = bound(engine, way)

    @examples
    @given(tables(), st.sampled_from([0, 1, 5, 1000]))
    def check(drawn: tuple[Keys, Keys], bad: int) -> None:
        keys, pending = drawn
        quarantined = pending[::-1][:bad]
        with holding(engine, table, keys, pending) as connection:
            with Scans(connection.engine, keys, pending) as scans:
                assert count_pending(connection, target) == len(pending)
            assert max(scans.rows, default=0) <= STRIDE
            assert any_pending(Readers(Reader(connection)), target) == bool(pending)
            left = len(pending) > len(quarantined)
            assert any_pending(Readers(Reader(connection)), target, quarantined) == left

    check()


@pytest.mark.parametrize("way", [SetBased, Python])
def test_proof_by_key_takes_no_more_than_a_look_a_stride(
    engine: sa.Engine, table: sa.Table, way: type[Backfill], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stride's end, and the look; no search for ends that the walk has passed."""
    target = bound(engine, way)
    monkeypatch.setattr(type(target.dialect), "all_at_once", lambda *_: None)
    expected = {0: 1, STRIDE - 1: 1, STRIDE: 2, len(NUMBERED) - 1: len(NUMBERED) // STRIDE}
    for pending, looks in expected.items():
        with (
            holding(engine, table, NUMBERED, [NUMBERED[pending]]) as connection,
            Scans(connection.engine, NUMBERED, []) as scans,
        ):
            assert any_pending(Readers(Reader(connection)), target)
        assert len(scans.rows) == looks * 2


@pytest.mark.parametrize("way", [SetBased, Python])
def test_proof_of_what_was_walked_takes_one_look_a_stride(
    engine: sa.Engine, table: sa.Table, way: type[Backfill], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = bound(engine, way)
    monkeypatch.setattr(type(target.dialect), "all_at_once", lambda *_: None)
    ends = [START, *NUMBERED[STRIDE - 1 :: STRIDE], NUMBERED[-1]]
    passed = [Stretch(low, high, STRIDE) for low, high in pairwise(ends)]
    for pending in (NUMBERED[0], NUMBERED[150], NUMBERED[-1], None):
        with (
            holding(engine, table, NUMBERED, [pending] if pending else []) as connection,
            Scans(connection.engine, NUMBERED, []) as scans,
        ):
            assert any_pending(Readers(Reader(connection)), target, walked=passed) == (
                pending is not None
            )
        assert len(scans.rows) <= len(passed)
        assert max(scans.rows) <= STRIDE


NUMBERED: Keys = [(i, 0) for i in range(400)]


@pytest.mark.parametrize("way", [SetBased, Python])
@pytest.mark.parametrize(
    "pending",
    [NUMBERED[::200], NUMBERED[-1:], [], NUMBERED[:1], NUMBERED[190:210]],
    ids=["one in 200", "only the last", "none", "only the first", "a few together"],
)
def test_empty_stretches_cost_few_chunks_and_short_statements(
    engine: sa.Engine, table: sa.Table, way: type[Backfill], pending: Keys
) -> None:
    target = bound(engine, way)
    with (
        holding(engine, table, NUMBERED, pending) as connection,
        Scans(connection.engine, NUMBERED, pending) as scans,
    ):
        found = walked(connection, Walk(target), target, [5], pending)
    assert sum(chunk.scanned for _, chunk in found) == len(NUMBERED)
    # Every row passes three statements at most: the bound, the page, and a count where it ends.
    assert max(scans.rows) <= STRIDE
    assert sum(scans.rows) <= 3 * len(NUMBERED)
    assert len(found) <= 4 + len(pending)


@pytest.mark.parametrize("way", [SetBased, Python])
def test_empty_stretch_is_left_when_time_is_up(
    engine: sa.Engine, table: sa.Table, way: type[Backfill]
) -> None:
    """So that the lease is renewed and a stop is noticed."""
    target = bound(engine, way)
    walk = Walk(target, clock=ticking())
    with holding(engine, table, NUMBERED, []) as connection:
        after, upper = START, last_key(connection, target.key)
        cuts = []
        while after != upper:
            chunk = walk.next(connection, after, upper, 5, 0.5)
            walk.learn(chunk, 0)
            cuts.append(chunk.scanned)
            after = chunk.upto
    assert sum(cuts) == len(NUMBERED)
    assert max(cuts) == STRIDE
    assert len(cuts) > len(NUMBERED) // STRIDE


def ticking() -> Callable[[], float]:
    seconds = itertools.count()
    return lambda: float(next(seconds))


@pytest.mark.parametrize("way", [SetBased, Python])
def test_quarantined_rows_are_passed_over(
    engine: sa.Engine, table: sa.Table, way: type[Backfill]
) -> None:
    target = bound(engine, way)
    bad = NUMBERED[3:80:7]
    with holding(engine, table, NUMBERED, NUMBERED[:100]) as connection:
        walk = Walk(target, bad)
        after, upper = START, last_key(connection, target.key)
        seen: list[KeyValues] = []
        while after != upper:
            chunk = walk.next(connection, after, upper, 9, MANY_SECONDS)
            seen += walk.scans.locked(connection, chunk).keys
            after = chunk.upto
    assert seen == [key for key in NUMBERED[:100] if key not in bad]


def test_rows_that_come_and_go_during_the_walk(engine: sa.Engine, table: sa.Table) -> None:
    """The bound stays what it was, also when its own row is gone."""
    target = bound(engine, SetBasedOnAll)
    with holding(engine, table, NUMBERED[:50], []) as connection:
        walk, upper = Walk(target), last_key(connection, target.key)
        first = walk.next(connection, START, upper, 20, MANY_SECONDS)
        connection.execute(table.delete().where(table.c.a.in_([5, 25, 49])))
        connection.execute(table.insert(), [{"a": 60, "b": 0}, {"a": 30, "b": 7}])
        second = walk.next(connection, first.upto, upper, 20, MANY_SECONDS)
        third = walk.next(connection, second.upto, upper, 20, MANY_SECONDS)
    assert (first.upto, second.upto, third.upto) == ((19, 0), (39, 0), (49, 0))
    assert (first.scanned, second.scanned, third.scanned) == (20, 20, 9)
    assert third.is_last


@pytest.mark.requires("untyped_columns")
def test_ids_that_are_no_counters(engine: sa.Engine) -> None:
    """The span of SQLite's rowids is no estimate then, and more than its integers hold."""
    table = make(
        engine,
        "things",
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
        rows=[{"a": key, "n": None} for key in (-(2**63), -5, 0, 7, 2**63 - 1)],
    )
    ran = run(engine, SetBased, chunk_size=2)
    assert ran.result.text == "complete, 5 rows changed"
    assert ran.numbers("started", "rows_estimated")[0] < 1_000_000
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.sum(table.c.n))) == 5
