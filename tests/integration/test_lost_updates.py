"""The application writes between our reading and our writing: what it wrote is what is computed."""

# ruff: noqa: RUF012

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill, inline
from backfill.budget import Turn
from backfill.settings import Settings
from backfill.writers import rows as rows_writer
from tests.integration.support import bound, complete, fill, make, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

ROWS = 40


def make_things(engine: sa.Engine, keys: Iterable[int]) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("doubled", sa.Integer),
        rows=[{"id": i, "n": i} for i in keys],
    )


@pytest.fixture
def table(engine: sa.Engine) -> sa.Table:
    return make_things(engine, range(ROWS))


@pytest.fixture
def sparse(engine: sa.Engine) -> sa.Table:
    """Things whose keys leave room for others; the last one is far away."""
    return make_things(engine, [*range(0, 2 * ROWS, 2), 10_000])


class Doubling(Backfill, abstract=True):
    """Doubles n; while the first row is computed for the first time, `meanwhile` is called."""

    table = "things"
    where = "doubled IS NULL"
    reads = ["n"]
    writes = ["doubled"]
    meanwhile: Callable[[], None]
    computed: list[int]

    def transform(self, row: Any) -> dict[str, Any] | None:
        self.computed.append(row.id)
        if len(self.computed) == 1:
            type(self).meanwhile()
        return {"doubled": 2 * row.n}


def doubling(meanwhile: Callable[[], None], **more: Any) -> type[Doubling]:
    body = {"name": "double", "meanwhile": staticmethod(meanwhile), "computed": []}
    return type("Double", (Doubling,), {**body, **more})


def doubled(engine: sa.Engine, table: sa.Table) -> Iterator[tuple[int, int]]:
    return ((n, d) for n, d in read(engine, table, "n", "doubled"))


def test_committed_change_is_computed(engine: sa.Engine, table: sa.Table) -> None:
    def change() -> None:
        with engine.begin() as connection:
            connection.execute(table.update().where(table.c.id.in_([3, 17])).values(n=1000))

    declaration = doubling(change)
    complete(engine, declaration)
    assert all(d == 2 * n for n, d in doubled(engine, table))
    assert len(declaration.computed) == ROWS + 2, "only what changed is computed again"


def test_row_that_the_application_filled_is_left_alone(engine: sa.Engine, table: sa.Table) -> None:
    def fill_one() -> None:
        with engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == 5).values(doubled=-1))

    ran = complete(engine, doubling(fill_one))
    assert read(engine, table, "doubled") == [-1 if i == 5 else 2 * i for i in range(ROWS)]
    assert sum(ran.numbers("chunk", "changed")) == ROWS - 1


def test_rows_that_come_and_go(engine: sa.Engine, table: sa.Table) -> None:
    def replace() -> None:
        with engine.begin() as connection:
            connection.execute(table.delete().where(table.c.id == 7))
            connection.execute(table.insert(), [{"id": 7, "n": 70}, {"id": -1, "n": 5}])
            connection.execute(table.delete().where(table.c.id == 8))

    complete(engine, doubling(replace))
    assert all(d == 2 * n for n, d in doubled(engine, table))
    assert len(read(engine, table, "id")) == ROWS


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("key", [-1, 1, 2 * ROWS - 3, 2 * ROWS - 1])
@pytest.mark.parametrize("body", [{}, {"where": None}], ids=["where", "no where"])
def test_row_that_comes_into_a_chunk_that_is_computed(
    engine: sa.Engine, sparse: sa.Table, body: dict[str, Any], key: int
) -> None:
    """Before its first key, between two, and behind its last: the cursor has yet to pass it."""

    def come() -> None:
        with engine.begin() as connection:
            connection.execute(sparse.insert().values(id=key, n=1000))

    complete(engine, doubling(come, **body))
    assert all(d == 2 * n for n, d in doubled(engine, sparse))


def test_flood_into_a_chunk_is_cut_into_chunks(engine: sa.Engine, sparse: sa.Table) -> None:
    def come() -> None:
        fill(engine, sparse, [{"id": i, "n": i} for i in range(-3_000, 0)])

    ran = complete(engine, doubling(come, where=None), chunk_size=20)
    assert max(ran.numbers("chunk", "changed")) <= 20
    assert all(d == 2 * n for n, d in doubled(engine, sparse))


@pytest.mark.requires("row_locks")
def test_flood_into_a_chunk_of_an_inline_gate(engine: sa.Engine, sparse: sa.Table) -> None:
    def come() -> None:
        fill(engine, sparse, [{"id": i, "n": i} for i in range(-3_000, 0)])

    target = bound(engine, doubling(come, where=None, revision="a1"))
    with engine.begin() as connection:
        inline.complete(connection, target, Settings(), "")
    assert all(d == 2 * n for n, d in doubled(engine, sparse))


@pytest.mark.parametrize("body", [{}, {"where": None}], ids=["where", "no where"])
def test_row_that_was_left_and_changes_meanwhile(
    engine: sa.Engine, sparse: sa.Table, body: dict[str, Any]
) -> None:
    def leave_one(_: Any, row: Any) -> dict[str, Any] | None:
        if row.id == 2 and row.n == 2:
            with engine.begin() as connection:
                connection.execute(sparse.update().where(sparse.c.id == 2).values(n=5))
            return None
        return {"doubled": 2 * row.n}

    complete(engine, doubling(lambda: None, transform=leave_one, **body))
    assert all(d == 2 * n for n, d in doubled(engine, sparse))


def test_change_that_is_committed_while_we_wait_for_its_lock(
    engine: sa.Engine, table: sa.Table
) -> None:
    """The statement has its snapshot already; what it finds when the lock is free is newer."""
    held = threading.Event()

    def change_slowly() -> None:
        with engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == 11).values(n=500))
            held.set()
            threading.Event().wait(0.4)

    application = threading.Thread(target=change_slowly)

    def begin() -> None:
        application.start()
        assert held.wait(10)

    complete(engine, doubling(begin), lock_timeout=5)
    application.join()
    assert all(d == 2 * n for n, d in doubled(engine, table))


def test_change_of_every_row_in_three_rounds(
    engine: sa.Engine, table: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes is computed anew, and not under locks, for which this transform would wait."""
    monkeypatch.setattr(rows_writer, "UNDER_LOCK_SECONDS", 0)

    class Restless(Doubling):
        name = "double"
        computed = []
        meanwhile = staticmethod(lambda: None)

        def transform(self, row: Any) -> dict[str, Any]:
            if row.id == 0 and len(self.computed) < 3:
                self.computed.append(row.id)
                with engine.begin() as connection:
                    connection.execute(table.update().values(n=table.c.n + 1))
            return {"doubled": 2 * row.n}

    complete(engine, Restless)
    assert all(d == 2 * n for n, d in doubled(engine, table))
    assert [n for n, _ in doubled(engine, table)] == [i + 3 for i in range(ROWS)]


def test_equal_for_sql_is_not_the_same(engine: sa.Engine) -> None:
    """Letters of another case, where the collation takes no notice."""
    table = make(
        engine,
        "words",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("word", sa.String(20), nullable=False),
        sa.Column("copy", sa.String(20)),
    )
    fill(engine, table, [{"id": i, "word": "abc"} for i in range(5)])

    class Copying(Doubling):
        name = "copying"
        table = "words"
        where = "copy IS NULL"
        reads = ["word"]
        writes = ["copy"]
        computed = []

        def transform(self, row: Any) -> dict[str, Any]:
            if not self.computed:
                self.computed.append(row.id)
                with engine.begin() as connection:
                    connection.execute(table.update().values(word="ABC"))
            return {"copy": row.word}

    complete(engine, Copying)
    assert read(engine, table, "copy") == ["ABC"] * 5


def test_rows_that_are_done_between_those_that_are_not(engine: sa.Engine, table: sa.Table) -> None:
    """The way with locks, which follows a change, meets them and leaves them alone."""
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id % 2 == 1).values(doubled=-1))

    def change() -> None:
        with engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == 4).values(n=1000))

    ran = complete(engine, doubling(change), chunk_size=10)
    assert ran.texts("retry") == []
    expected = [-1 if i % 2 else 2 * (1000 if i == 4 else i) for i in range(ROWS)]
    assert read(engine, table, "doubled") == expected


@pytest.mark.requires("nan")
def test_encoding_of_the_connection(engine: sa.Engine) -> None:
    """What travels packed is UTF-8; a connection may talk something else."""
    latin = sa.create_engine(
        engine.url, poolclass=sa.NullPool, connect_args={"client_encoding": "latin1"}
    )
    table = make(
        engine,
        "words",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("copy", sa.String(20)),
        rows=[{"id": i} for i in range(3)],
    )

    class Copying(Doubling):
        name = "copying"
        table = "words"
        where = "copy IS NULL"
        reads = []
        writes = ["copy"]
        computed = []
        meanwhile = staticmethod(lambda: None)

        def transform(self, row: Any) -> dict[str, Any]:
            return {"copy": "café"}

    complete(latin, Copying)
    assert read(engine, table, "copy") == ["café"] * 3


@pytest.fixture
def attached(engine: sa.Engine, tmp_path: Path) -> sa.Table:
    """The table, in a file of its own."""

    @sa.event.listens_for(engine, "connect")
    def attach(connection: Any, _record: Any) -> None:
        connection.execute("ATTACH ? AS other", [str(tmp_path / "other.sqlite3")])

    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("doubled", sa.Integer),
        rows=[{"id": i, "n": i} for i in range(ROWS)],
        schema="other",
    )


@pytest.mark.requires("attached_files")
def test_change_in_an_attached_file(engine: sa.Engine, attached: sa.Table) -> None:
    """Each file tells of writes to itself alone."""

    def change() -> None:
        with engine.begin() as connection:
            connection.execute(attached.update().where(attached.c.id == 3).values(n=1000))

    declaration = type("Double", (doubling(change),), {"table": "other.things"})
    complete(engine, declaration)
    assert all(d == 2 * n for n, d in doubled(engine, attached))


@pytest.mark.requires("attached_files")
def test_company_in_an_attached_file(
    engine: sa.Engine, attached: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes to it gets a turn between our chunks, too."""
    noticed: list[int] = []
    monkeypatch.setattr(Turn, "note_company", lambda _turn: noticed.append(1))

    class Double(Doubling):
        name = "double"
        table = "other.things"
        computed = []

        def transform(self, row: Any) -> dict[str, Any]:
            self.computed.append(row.id)
            if self.computed.count(25) == 1 and row.id == 25:
                with engine.begin() as connection:
                    connection.execute(attached.update().values(n=-1))
            return {"doubled": 2 * row.n}

    complete(engine, Double, chunk_size=10)
    assert noticed


@pytest.mark.requires("untyped_columns")
@pytest.mark.parametrize("declared", ["", "blob"])
@pytest.mark.parametrize(("before", "after"), [("1", "1.0"), ("1.0", "1"), ("0.0", "-0.0")])
def test_equal_for_python_is_not_the_same(
    engine: sa.Engine, declared: str, before: str, after: str
) -> None:
    """Numbers of another type, or sign."""

    def execute(statement: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)

    execute(f"CREATE TABLE words (id integer NOT NULL PRIMARY KEY, word {declared}, copy text)")
    execute(f"INSERT INTO words (id, word) VALUES (1, {before}), (2, {before}), (3, 'x')")

    class Copying(Doubling):
        name = "copying"
        table = "words"
        where = None  # type: ignore[assignment]  # no sweep comes by again
        reads = ["word"]
        writes = ["copy"]
        computed = []

        def transform(self, row: Any) -> dict[str, Any]:
            self.computed.append(row.id)
            if len(self.computed) == 1:
                execute(f"UPDATE words SET word = {after} WHERE id = 2")
            return {"copy": repr(row.word)}

    complete(engine, Copying)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT copy FROM words ORDER BY id")
        assert [copy for (copy,) in rows] == [before, after, "'x'"]
    assert Copying.computed == [1, 2, 3, 2], "only what changed is computed again"
