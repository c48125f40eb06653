"""An application changes, inserts and deletes rows while a Python transform runs."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.acceptance.counting import (
    PATIENCE_SECONDS,
    last_words,
    seeded_dice,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from tests.projects import AlembicProject

ROWS = 3_000
WRITERS = 3

BODY = '''
import time

from backfill import Backfill


def upgrade():
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.Integer, nullable=False),
        sa.Column("doubled", sa.Integer),
    )


class FillDoubled(Backfill):
    """Double the amounts; whoever changes an amount takes the doubled one away."""

    table = "orders"
    where = "doubled IS NULL"
    reads = ["amount"]
    writes = ["doubled"]

    def transform(self, row):
        time.sleep(0.001)
        return {"doubled": row.amount * 2}
'''
orders = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.Column("doubled", sa.Integer),
)


def test_no_update_of_a_live_writer_is_lost(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKFILL_MAX_PASSES", "100")
    project.revision("a1", body=BODY)
    project.alembic("upgrade", "head")
    writers = prepare_writers(engine)
    with working(writers):
        runner = project.start("run", "--json", "--chunk-size=50")
        wait_until(lambda: '"event": "swept"' in runner.read_stdout(), runner)
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert [error for writer in writers for error in writer.errors] == []
    assert min(writer.transactions for writer in writers) > 50
    truth = {key: amount for writer in writers for key, amount in writer.ledger.items()}
    with engine.connect() as connection:
        found = connection.execute(sa.select(orders)).all()
    assert {row.id: row.amount for row in found} == truth
    assert [row for row in found if row.doubled != row.amount * 2] == []
    assert project.backfill("verify").returncode == 0


def prepare_writers(engine: sa.Engine) -> list[Writer]:
    """Fill every other key of the table, and deal keys and gaps out to the writers."""
    dice = seeded_dice()
    amounts = {key: dice.randrange(1_000_000) for key in range(2, 2 * ROWS, 2)}
    with engine.begin() as connection:
        rows = [{"id": key, "amount": amount} for key, amount in amounts.items()]
        connection.execute(sa.insert(orders), rows)
    gaps = [*range(1, 2 * ROWS, 2), *range(2 * ROWS, 3 * ROWS)]
    return [
        Writer(
            engine,
            random.Random(dice.random()),
            ledger={key: amount for key, amount in amounts.items() if key % WRITERS == i},
            unused=[key for key in gaps if key % WRITERS == i],
        )
        for i in range(WRITERS)
    ]


@contextlib.contextmanager
def working(writers: list[Writer]) -> Iterator[None]:
    stop = Event()
    threads = [Thread(target=writer.work, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@dataclass
class Writer:
    """One connection of the application, with rows of its own: its ledger is the truth on them.

    Several rows a transaction, in any order and with pauses, so that it holds locks while it
    waits for others.
    """

    engine: sa.Engine
    dice: random.Random
    ledger: dict[int, int]
    unused: list[int]
    transactions: int = 0
    errors: list[Exception] = field(default_factory=list)

    def work(self, stop: Event) -> None:
        with self.engine.connect() as connection:
            while not stop.is_set():
                try:
                    self.write(connection)
                except sa.exc.DBAPIError as error:
                    self.errors.append(error)
                stop.wait(self.dice.uniform(0, 0.005))

    def write(self, connection: sa.Connection) -> None:
        """Commit one transaction, and then note it in the ledger."""
        before = dict(self.ledger)
        try:
            with connection.begin():
                for _ in range(self.dice.randint(1, 4)):
                    connection.execute(self.change())
                    time.sleep(self.dice.uniform(0, 0.002))
        except sa.exc.DBAPIError:
            self.ledger = before
            raise
        self.transactions += 1

    def change(self) -> sa.Executable:
        kind = self.dice.choices(["update", "insert", "delete"], [6, 2, 1])[0]
        amount = self.dice.randrange(1_000_000)
        if kind == "insert" and self.unused:
            key = self.unused.pop(self.dice.randrange(len(self.unused)))
            self.ledger[key] = amount
            return sa.insert(orders).values(id=key, amount=amount)
        key = self.dice.choice(list(self.ledger))
        if kind == "delete":
            del self.ledger[key]
            return sa.delete(orders).where(orders.c.id == key)
        self.ledger[key] = amount
        return sa.update(orders).where(orders.c.id == key).values(amount=amount, doubled=None)
