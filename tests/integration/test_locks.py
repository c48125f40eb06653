"""What a run holds against everybody else, and when: seen by an application beside it, and in the
server's own views. Moments are fixed by hooks: after each statement, in a transform, at an event.
"""

# ruff: noqa: RUF012

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from backfill import Backfill, budget
from backfill.runs import Outcome
from tests.integration import support
from tests.integration.neighbours import (
    ADMINISTRATORS,
    NEIGHBOURS,
    after_each_statement,
    errors_kept_from_the_run,
    wait_until,
)
from tests.integration.support import Recorder, complete, complete_in_parallel, read, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.reporters import Event
    from backfill.statements import ChunkStatements
    from tests.databases import Database
    from tests.integration.neighbours import Administrator, Neighbour

ROWS = 40
CHUNK = 10
KEYS = [10 * i for i in range(1, ROWS + 1)]
CHUNKS = [set(KEYS[i : i + CHUNK]) for i in range(0, ROWS, CHUNK)]

_CLAIM = re.compile(r"UPDATE\b.*\bbackfill_range SET .*\btoken=", re.DOTALL)
_CHECKPOINT = re.compile(r"UPDATE\b.*\bbackfill_range SET `?cursor`?=", re.DOTALL)


@pytest.fixture
def things(engine: sa.Engine) -> sa.Table:
    """Its pending rows are in an index, so that there are gaps in that one too."""
    metadata = sa.MetaData()
    table = sa.Table(
        "things",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, index=True),
        postgresql_with={"autovacuum_enabled": "false"},  # it takes locks of its own
    )
    sa.Table(
        "children",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("thing", sa.Integer, sa.ForeignKey("things.id"), nullable=False),
    )
    metadata.create_all(engine)
    support.fill(engine, table, [{"id": key, "n": key} for key in KEYS])
    return table


@pytest.fixture
def neighbour(database: Database, things: sa.Table) -> Neighbour:
    return NEIGHBOURS[database.name](database, things.name)


@pytest.fixture
def administrator(database: Database, things: sa.Table) -> Iterator[Administrator]:
    administrator = ADMINISTRATORS[database.name](database, things.name)
    yield administrator
    administrator.close()


# -- ways to fill a column -------------------------------------------------------------------------


class Fill(Backfill, abstract=True):
    table = "things"
    where = "done IS NULL"


class SetBased(Fill):
    name = "fill"
    values = {"done": "n"}


class Python(Fill):
    name = "fill"
    reads = ["n"]
    writes = ["done"]
    meanwhile: Callable[[int], object] = staticmethod(lambda key: None)
    """Called in each row's computation."""

    def transform(self, row: Any) -> dict[str, int]:
        type(self).meanwhile(row.id)
        return {"done": row.n}


class PythonInChunks(Fill):
    name = "fill"
    reads = ["n"]
    writes = ["done"]
    meanwhile: Callable[[int], object] = staticmethod(lambda key: None)

    def transform_chunk(self, rows: Any) -> list[dict[str, int]]:
        type(self).meanwhile(rows[0].id)
        return [{"done": row.n} for row in rows]


class Custom(Fill):
    name = "fill"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int:
        return connection.execute(chunk.update().values(done=chunk.table.c.n)).rowcount


def overtaken(neighbour: Neighbour) -> type[Python]:
    """Its first row is changed once while it is computed, so that it locks rows before it writes
    them from then on, where it would not otherwise."""
    left = [f"UPDATE things SET n = -1 WHERE id = {KEYS[0]}"]

    def change(key: int) -> None:
        while left:
            neighbour.execute(left.pop())

    return type("Overtaken", (Python,), {"name": "fill", "meanwhile": staticmethod(change)})


@pytest.fixture(params=["set-based", "python", "overtaken", "custom"])
def declaration(request: pytest.FixtureRequest, neighbour: Neighbour) -> type[Fill]:
    """Each way to fill `done`."""
    if request.param == "overtaken":
        return overtaken(neighbour)
    ways = {"set-based": SetBased, "python": Python, "custom": Custom}
    return ways[request.param]


def meanwhile(way: type[Fill], do: Callable[[int], object]) -> type[Fill]:
    """The way with something that happens while Python computes."""
    return type("Meanwhile", (way,), {"name": "fill", "meanwhile": staticmethod(do)})


def at_checkpoints(do: Callable[[], object]) -> Callable[[sa.Connection, str], None]:
    """Do something at the end of each chunk's transaction, before its COMMIT."""

    def look(_connection: sa.Connection, text: str) -> None:
        if _CHECKPOINT.match(text):
            do()

    return look


@contextmanager
def at_events(do: Callable[[Event], object]) -> Iterator[None]:
    """Do something whenever anybody is told of the run."""
    with errors_kept_from_the_run() as kept:

        class Doing(Recorder):
            def __call__(self, event: Event) -> None:
                super().__call__(event)
                kept(lambda: do(event))

        with patch.object(support, "Recorder", Doing):
            yield


@contextmanager
def at_rests(do: Callable[[], object]) -> Iterator[budget.Budget]:
    """Do something whenever the run sleeps, if it has the budget that it is given."""
    with errors_kept_from_the_run() as kept:

        class Rest(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                kept(do)
                return super().wait(timeout)

        with patch.object(budget, "Flag", Rest):
            yield budget.Budget()


# -- while a chunk is open -------------------------------------------------------------------------


@pytest.mark.requires("row_locks")
def test_weakest_locks_whatever_the_server_is_set_to(
    engine: sa.Engine, declaration: type[Fill], administrator: Administrator
) -> None:
    """Of two workers on a server whose transactions are serializable if nobody says otherwise,
    which would lock what is only read, and the gaps between."""
    modes, levels, cursors = Counter[str](), Counter[str](), list[str]()
    one_at_a_time = threading.Lock()

    def look(connection: sa.Connection, _text: str) -> None:
        driver: Any = connection.connection.dbapi_connection
        levels[asked(driver, administrator.isolation)[0].lower().replace("-", " ")] += 1
        if administrator.cursors:
            cursors.extend(asked(driver, administrator.cursors))
        with one_at_a_time:
            for session in administrator.sessions():
                modes.update(session.locks)

    with administrator.serializable_by_default(), after_each_statement(engine, look):
        complete_in_parallel(engine, declaration, threads=2, ranges=4, chunk_size=CHUNK // 2)
    assert modes[administrator.writing] > 0
    assert set(modes) <= administrator.weakest
    assert set(levels) == {"read committed"}
    assert cursors == []


def asked(driver: Any, question: str) -> list[Any]:
    """Ask on the run's own connection, past SQLAlchemy."""
    with driver.cursor() as cursor:
        cursor.execute(question)
        return [row[0] for row in cursor.fetchall()]


@pytest.mark.requires("row_locks")
def test_rows_of_one_chunk_are_locked_and_no_others(
    engine: sa.Engine, declaration: type[Fill], neighbour: Neighbour
) -> None:
    """Those of the last one are free again, and those of the next one still."""
    locked: list[set[int]] = []
    look = at_checkpoints(lambda: locked.append(neighbour.locked_keys()))
    with after_each_statement(engine, look):
        complete(engine, declaration, chunk_size=CHUNK)
    assert [keys for keys in locked if keys] == CHUNKS


@pytest.mark.requires("key_share")
def test_foreign_keys_to_rows_of_an_open_chunk_are_checked(
    engine: sa.Engine, declaration: type[Fill], neighbour: Neighbour
) -> None:
    closed: list[set[int]] = []

    def refer() -> None:
        closed.append(neighbour.keys_closed_to_children())
        keys = sorted(neighbour.locked_keys())
        if keys:
            values = ", ".join(f"({key})" for key in keys)
            neighbour.execute(f"INSERT INTO children (thing) VALUES {values}")

    with after_each_statement(engine, at_checkpoints(refer)):
        complete(engine, declaration, chunk_size=CHUNK)
    assert set().union(*closed) == set()
    children = sa.Table("children", sa.MetaData(), autoload_with=engine)
    assert sorted(read(engine, children, "thing")) == KEYS


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("way", [SetBased, Python, Custom])
def test_rows_are_inserted_between_those_of_an_open_chunk(
    engine: sa.Engine, way: type[Fill], neighbour: Neighbour, things: sa.Table
) -> None:
    """Pending ones too: there is no gap lock in the key, nor in the index of what is pending."""
    around: list[tuple[int, int]] = []

    def insert() -> None:
        locked = neighbour.locked_keys()
        if locked and len(around) < 2:
            low, high = min(locked), max(locked)
            around.append((low, high))
            places = (low - 4, low + 2, high + 2, 10_000 + low)
            rows = ", ".join(f"({key}, 0, NULL), ({key + 1}, 0, 1)" for key in places)
            neighbour.execute(f"INSERT INTO things (id, n, done) VALUES {rows}")

    with after_each_statement(engine, at_checkpoints(insert)):
        complete(engine, way, chunk_size=CHUNK)
    assert len(around) == 2
    assert None not in read(engine, things, "done")


@pytest.mark.parametrize("way", [SetBased, Python])
def test_rows_of_an_open_chunk_are_read(
    engine: sa.Engine, way: type[Fill], neighbour: Neighbour
) -> None:
    seen: list[set[int]] = []
    with after_each_statement(engine, at_checkpoints(lambda: seen.append(neighbour.keys()))):
        complete(engine, way, chunk_size=CHUNK)
    assert len(seen) >= len(CHUNKS)
    assert all(keys == set(KEYS) for keys in seen)


# -- between chunks --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Python, PythonInChunks])
def test_nothing_is_held_while_python_computes(
    engine: sa.Engine,
    database: Database,
    neighbour: Neighbour,
    way: type[Fill],
) -> None:
    """While both workers are at it."""
    calls = Counter[int]()
    with errors_kept_from_the_run() as do:
        together = threading.Barrier(2, lambda: do(lambda: take_everything(database, neighbour)))

        def take(_key: int) -> None:
            calls[threading.get_ident()] += 1
            if calls[threading.get_ident()] <= 2:
                together.wait(30)

        complete_in_parallel(engine, meanwhile(way, take), threads=2, ranges=2, chunk_size=CHUNK)
    assert len(calls) == 2


def take_everything(database: Database, neighbour: Neighbour) -> None:
    """Have the table for oneself; and nobody is in a transaction, or has a snapshot."""
    with neighbour.alone():
        pass
    if database.name in ADMINISTRATORS:
        administrator = ADMINISTRATORS[database.name](database, "things")
        wait_until(lambda: not any(session.is_open for session in administrator.sessions()), 3)
        administrator.close()


@pytest.mark.parametrize("way", [SetBased, Python])
def test_nothing_is_held_while_anybody_is_told(
    engine: sa.Engine,
    database: Database,
    way: type[Fill],
    neighbour: Neighbour,
) -> None:
    """After each chunk, before the next one; a terminal may keep us waiting."""
    with at_events(lambda _event: take_everything(database, neighbour)):
        ran = complete(engine, way, chunk_size=CHUNK)
    assert len(ran.numbers("chunk", "changed")) >= len(CHUNKS)


def test_nothing_is_held_while_a_bad_row_is_told_of(
    engine: sa.Engine, database: Database, neighbour: Neighbour
) -> None:
    """Nor while its traceback is shown."""

    def refuse(key: int) -> None:
        if key == KEYS[CHUNK]:
            raise ValueError

    with at_events(lambda _event: take_everything(database, neighbour)):
        ran = run(engine, meanwhile(Python, refuse), chunk_size=CHUNK)
    assert ran.outcome is Outcome.QUARANTINED
    assert len(ran.texts("message")) == 1


@pytest.mark.parametrize("way", [SetBased, Python])
def test_nothing_is_held_while_we_rest(
    engine: sa.Engine, database: Database, way: type[Fill], neighbour: Neighbour
) -> None:
    rests: list[None] = []

    def rest() -> None:
        rests.append(None)
        take_everything(database, neighbour)

    with at_rests(rest) as given:
        complete(engine, way, budget=given, chunk_size=CHUNK, nice=0.5)
    assert len(rests) >= len(CHUNKS) - 1


# -- conflicts -------------------------------------------------------------------------------------


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("way", [SetBased, Python, Custom])
def test_chunk_that_meets_a_locked_row_lets_go_of_all(
    engine: sa.Engine, way: type[Fill], neighbour: Neighbour
) -> None:
    """Even of rows that it has written before it came to that one."""
    held: list[set[int]] = []
    key = KEYS[CHUNK // 2]
    with ExitStack() as application:

        def lock_a_row(event: Event) -> None:
            if event.what == "started":
                session = application.enter_context(neighbour.session())
                session.exec_driver_sql(f"SELECT id FROM things WHERE id = {key} FOR UPDATE")
            elif event.what == "retry":
                held.append(neighbour.locked_keys())
                if len(held) == 3:
                    application.close()

        with at_events(lock_a_row):
            complete(engine, way, chunk_size=CHUNK)
    assert held == [{key}] * 3


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("way", [SetBased, Custom])
def test_alter_table_waits_for_one_chunk_at_most(
    engine: sa.Engine, way: type[Fill], neighbour: Neighbour, administrator: Administrator
) -> None:
    """In the middle of a chunk it waits for what we have read, and we might wait for it to write.
    (PostgreSQL lets us write first, MariaDB takes that for a deadlock, of which we are the victim.)
    """
    found: list[int] = []
    alter = threading.Thread(target=lambda: found.append(rows_done_when_alone(neighbour)))
    steps = [_CLAIM, re.compile(r"SELECT\b.*\bFROM things\b", re.DOTALL)]

    def begin(_connection: sa.Connection, text: str) -> None:
        if steps and steps[0].match(text):
            steps.pop(0)
            if not steps:
                alter.start()
                wait_until(lambda: any(session.is_waiting for session in administrator.sessions()))

    with after_each_statement(engine, begin):
        complete(engine, way, chunk_size=CHUNK)
    alter.join()
    assert len(found) == 1, "it failed"
    assert found[0] <= CHUNK


def rows_done_when_alone(neighbour: Neighbour) -> int:
    """Wait for the whole table, as ALTER TABLE does, and count what we have filled by then."""
    with neighbour.alone(is_patient=True) as connection:
        done = "SELECT count(*) FROM things WHERE done IS NOT NULL"
        return int(connection.exec_driver_sql(done).scalar_one())


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.requires("server")
def test_administrator_sees_which_run_it_is(
    engine: sa.Engine,
    neighbour: Neighbour,
    administrator: Administrator,
) -> None:
    """In the list of sessions, while the run's is at work: here it waits for the table."""
    has_begun = threading.Event()
    with ExitStack() as application:

        def take(event: Event) -> None:
            if event.what == "started":
                application.enter_context(neighbour.alone())
                has_begun.set()

        runner = threading.Thread(target=complete, args=(engine, SetBased))
        with at_events(take):
            runner.start()
            try:
                assert has_begun.wait(30)
                wait_until(lambda: "backfill: fill" in names_of_waiting(administrator))
            finally:
                application.close()
                runner.join()


def names_of_waiting(administrator: Administrator) -> set[str]:
    return {session.name for session in administrator.sessions() if session.is_waiting}
