"""What an application next to a run brings about, where it is no matter of counting rows."""

# ruff: noqa: RUF012

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from backfill import Backfill, proving, runner
from backfill.runs import Outcome, Status
from backfill.store import Store
from tests.faults.population import Population, count_up
from tests.integration import support
from tests.integration.support import Recorder, bound, complete, read, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.reporters import Event
    from backfill.statements import ChunkStatements
    from tests.databases import Database

ROWS = 40
KEYS = [10 * i for i in range(1, ROWS + 1)]


@pytest.fixture
def things(engine: sa.Engine) -> sa.Table:
    return support.make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Integer, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer),
        rows=[{"id": key, "name": key, "n": 0} for key in KEYS],
    )


def execute(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# -- keys that move ----------------------------------------------------------------------------


class Counts(Backfill, abstract=True):
    table = "things"
    chunk_size = 10


class SetBased(Counts):
    name = "count"
    values = {"n": "n + 1", "done": "1"}


class Python(Counts):
    name = "count"
    reads = ["n"]
    writes = ["n", "done"]

    def transform(self, row: Any) -> dict[str, int]:
        return {"n": row.n + 1, "done": 1}


class Custom(Counts):
    name = "count"

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int:
        update = chunk.update().values(n=chunk.table.c.n + 1, done=1)
        return connection.execute(update).rowcount


FORWARDS, BACKWARDS, BEYOND = 20, 390, 380
MOVES = (
    f"UPDATE things SET id = 395 WHERE id = {FORWARDS}",
    f"UPDATE things SET id = 5 WHERE id = {BACKWARDS}",
    f"UPDATE things SET id = 9999 WHERE id = {BEYOND}",
)


def after_the_first_chunk(do: Callable[[], object]) -> Any:
    """Do something when a quarter of the rows is behind the cursor."""
    left = [do]

    class Doing(Recorder):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if event.what == "chunk" and left:
                left.pop()()

    return patch.object(support, "Recorder", Doing)


@pytest.mark.parametrize("way", [SetBased, Python, Custom])
def test_row_whose_key_changes_is_done_once(
    engine: sa.Engine, things: sa.Table, way: type[Counts]
) -> None:
    """With a `where` it is told by what it holds, and not by where it is."""
    declaration = type("Count", (way,), {"name": "count", "where": "done IS NULL"})
    with after_the_first_chunk(lambda: execute(engine, *MOVES)):
        ran = complete(engine, declaration)
    assert read(engine, things, "n") == [1] * ROWS
    assert sum(ran.numbers("chunk", "changed")) == ROWS


@pytest.mark.parametrize("way", [SetBased, Python, Custom])
def test_keys_have_to_stay_without_a_where(
    engine: sa.Engine, things: sa.Table, way: type[Counts]
) -> None:
    """Nothing but its key tells whether a row is done: as the plan and the manual say."""
    with after_the_first_chunk(lambda: execute(engine, *MOVES)):
        complete(engine, way)
    times = dict(read(engine, things, "name", "n"))
    others = dict.fromkeys(KEYS, 1)
    assert times == {**others, FORWARDS: 2, BACKWARDS: 0, BEYOND: 0}


# -- rows that become pending for ever -----------------------------------------------------------


@pytest.fixture
def before_each_proof(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], object]], None]:
    """Let something happen again and again, when all has just been done."""
    proofs: list[int] = []
    is_any_pending = proving.any_pending

    def later(do: Callable[[int], object]) -> None:
        def proved_later(*given: Any, **more: Any) -> bool:
            proofs.append(1)
            do(len(proofs))
            return is_any_pending(*given, **more)

        monkeypatch.setattr(proving, "any_pending", proved_later)

    return later


class Fill(SetBased):
    name = "fill"
    where = "done IS NULL"


class FillInPython(Python):
    name = "fill"
    where = "done IS NULL"


def insert_one(engine: sa.Engine) -> Callable[[int], None]:
    return lambda number: execute(
        engine, f"INSERT INTO things (id, name, n) VALUES ({1000 + number}, {number}, 0)"
    )


@pytest.mark.usefixtures("things")
def test_rows_inserted_for_ever_are_told_of(engine: sa.Engine, before_each_proof: Any) -> None:
    """One for each sweep: that all of these change as many rows does not blame the class."""
    before_each_proof(insert_one(engine))
    ran = run(engine, Fill, max_passes=5)
    assert ran.outcome is Outcome.FAILED
    assert len(ran.texts("swept")) == 5
    assert "after 6 sweeps, of which the last changed 1: somebody keeps writing" in ran.result.text
    assert "1 behind the last sweep's highest key" in ran.result.text
    assert "0 up to it" in ran.result.text
    assert "or say `sync = True`" in ran.result.text


@pytest.mark.usefixtures("things")
def test_rows_taken_back_for_ever_are_told_of(engine: sa.Engine, before_each_proof: Any) -> None:
    def take_back(number: int) -> None:
        execute(engine, f"UPDATE things SET done = NULL WHERE id <= {10 * (number % 2 + 1)}")

    before_each_proof(take_back)
    ran = run(engine, FillInPython, max_passes=3)
    assert ran.outcome is Outcome.FAILED
    assert "0 behind the last sweep's highest key" in ran.result.text
    assert "1 up to it (inserted or changed since)" in ran.result.text
    assert "sync" not in ran.result.text


def test_run_goes_on_when_they_are_filled_by_whoever_inserts_them(
    engine: sa.Engine, things: sa.Table, before_each_proof: Any
) -> None:
    before_each_proof(insert_one(engine))
    assert run(engine, Fill, max_passes=1).outcome is Outcome.FAILED
    before_each_proof(lambda _number: None)
    complete(engine, Fill)
    assert set(read(engine, things, "n")) == {1}


# -- the oracle ---------------------------------------------------------------------------------


def test_oracle_notices_a_run_that_does_not_sweep(database: Database) -> None:
    with (
        Population.on(database, random.Random(1), count_up("values", where="done IS NULL")) as all_,
        patch.object(runner.Runner, "is_proved", lambda *_: True),
    ):
        ran = all_.run({"bear": 1, "undo": 1}, lambda _proof: all_.wait_for_more())
        all_.stop()
        assert ran.outcome is Outcome.COMPLETE
        assert any("ours 0 times" in sentence for sentence in all_.wrong())


# -- a transaction that does not end -------------------------------------------------------------


@pytest.mark.requires("row_locks")
@pytest.mark.parametrize("way", [SetBased, Python, Custom])
def test_transaction_that_does_not_end_pauses_the_run(
    engine: sa.Engine, things: sa.Table, way: type[Counts]
) -> None:
    """When its patience is over it says what it waited for, and goes on when that is gone."""
    store = Store(bound(engine, way).dialect)
    with engine.connect() as application:
        application.exec_driver_sql(f"SELECT id FROM things WHERE id = {KEYS[25]} FOR UPDATE")
        ran = run(engine, way, retry_seconds=1)
        paused = store.current("count")
    assert ran.outcome is Outcome.STOPPED
    assert "locked" in ran.result.text
    assert paused is not None and paused.status is Status.PAUSED
    done = read(engine, things, "n")
    assert done[:24] == [1] * 24  # to lock the 25th, InnoDB may look at the one behind it
    assert done[25:] == [0] * 15
    store.move("count", Status.PENDING)
    complete(engine, way)
    assert read(engine, things, "n") == [1] * ROWS
