"""The oracle sees each kind of wrong row and count: else no fault could be found by it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.faults.oracle import APPLICATIONS_STEP, Counting, counters, ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database

ROWS = 30


@pytest.fixture
def counting(database: Database, tmp_path: Path) -> Iterator[Counting]:
    """A run that has come to its end, beside an application which changed some rows."""
    with Counting.on(database, tmp_path, random.Random(0), rows=ROWS) as counting:
        with counting.application() as application:
            counting.finish()
            while not application.changes:
                application.stop.wait(0.01)
        yield counting


def add(amount: int) -> sa.Update:
    return sa.update(counters).where(counters.c.id == 7).values(n=counters.c.n + amount)


def set_count(column: str, value: int) -> sa.Executable:
    return sa.text(f"UPDATE backfill_range SET {column} = {value}")


def set_status(value: str) -> sa.Executable:
    return sa.text(f"UPDATE backfill_run SET status = '{value}'")


STRAY = 5 * APPLICATIONS_STEP  # the application adds less at a time
SPOILT_AND_MENDED: list[tuple[str, sa.Executable, sa.Executable]] = [
    ("row 7: ours 2 times", add(1), add(-1)),
    ("row 7: ours 0 times", add(-1), add(1)),
    ("the application's off by 1000", add(APPLICATIONS_STEP), add(-APPLICATIONS_STEP)),
    (
        "the application's off by -5000",
        sa.insert(ledger).values(counter=7, amount=STRAY),
        sa.delete(ledger).where(ledger.c.amount == STRAY),
    ),
    (
        "31 rows of 30",
        sa.insert(counters).values(id=ROWS + 1, n=1),
        sa.delete(counters).where(counters.c.id == ROWS + 1),
    ),
    ("rows_changed add up to 29", set_count("rows_changed", 29), set_count("rows_changed", 30)),
    ("rows_scanned = 31", set_count("rows_scanned", 31), set_count("rows_scanned", 30)),
    ("status = running", set_status("running"), set_status("succeeded")),
]


def test_what_is_wrong_is_found_and_nothing_else(counting: Counting) -> None:
    assert counting.wrong() == []
    for expected, spoil, mend in SPOILT_AND_MENDED:
        execute(counting.engine, spoil)
        found = counting.wrong()
        execute(counting.engine, mend)
        assert any(expected in sentence for sentence in found), (expected, found)
    assert counting.wrong() == []


def execute(engine: sa.Engine, statement: sa.Executable) -> None:
    with engine.begin() as connection:
        connection.execute(statement)
