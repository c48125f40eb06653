"""The oracle where rows are inserted, deleted, given other keys, and made pending again.

A row is known by its name, which it keeps. Writers tell a ledger of each birth, change and death
in the same transaction, so that it says what must be there at the end. The verifier is SQL and
arithmetic of its own: it knows none of our code. The runner is in this process, so that it can be
said what the writers do before it looks whether all is done.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa

from backfill import Backfill
from backfill.runner import Runner
from tests.acceptance.counting import wait_until
from tests.faults.oracle import APPLICATIONS_STEP
from tests.integration import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backfill.reporters import Event as Told
    from backfill.runs import Run
    from tests.databases import Database

WRITERS = 3
PAUSE_SECONDS = 0.01

metadata = sa.MetaData()
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Integer, nullable=False, unique=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer),
)
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Integer, nullable=False, index=True),
    sa.Column("what", sa.String(10), nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
)


def count_up(way: str, **attributes: Any) -> type[Backfill]:
    """A class that adds one to every row, and says so in `done`."""

    def transform(self: Any, row: Any) -> dict[str, int]:
        return {"n": row.n + 1, "done": 1}

    def apply(self: Any, connection: sa.Connection, chunk: Any) -> int:
        update = chunk.update().values(n=chunk.table.c.n + 1, done=1)
        return connection.execute(update).rowcount

    ways: dict[str, dict[str, Any]] = {
        "values": {"values": {"n": "n + 1", "done": "1"}},
        "transform": {"reads": ["n"], "writes": ["n", "done"], "transform": transform},
        "apply": {"apply": apply},
    }
    body = {"table": "counters", "revision": "a1", "__module__": __name__}
    return type("CountUp", (Backfill,), body | ways[way] | attributes)


# What the ledger says of each name: the application's part, if it was there from the beginning,
# how often our part was taken back, and `n` when it was deleted.
TOLD = """
SELECT name,
       SUM(CASE WHEN what IN ('first', 'born', 'added') THEN amount ELSE 0 END),
       SUM(CASE WHEN what = 'first' THEN 1 ELSE 0 END),
       SUM(CASE WHEN what = 'undone' THEN 1 ELSE 0 END),
       SUM(CASE WHEN what = 'died' THEN amount END)
FROM ledger GROUP BY name
"""
FOUND = "SELECT name, id, n FROM counters"

ALL_DEEDS: Mapping[str, int] = {"add": 6, "bear": 3, "move": 3, "undo": 2, "bury": 1}
WITHOUT_WHERE: Mapping[str, int] = {"add": 6, "bear": 3, "bury": 2}
"""What a backfill without a `where` promises something about: keys stay, and nothing is undone."""


@dataclass
class Population:
    """A table of which every other key is in use, the writers beside it, and what they left."""

    engine: sa.Engine
    dice: random.Random
    declaration: type[Backfill]
    rows: int = 400
    """At the beginning."""
    writers: Sequence[Writer] = field(default=())
    threads: Sequence[Thread] = field(default=())

    @classmethod
    @contextlib.contextmanager
    def on(
        cls, database: Database, dice: random.Random, declaration: type[Backfill]
    ) -> Iterator[Population]:
        """An empty database's new population, whose writers end with the block."""
        engine = database.engine()
        population = cls(engine, dice, declaration)
        names = range(1, population.rows + 1)
        metadata.create_all(engine)
        born = [{"id": 2 * name, "name": name, "n": 0} for name in names]
        support.fill(engine, counters, born)
        support.fill(engine, ledger, [{"name": n, "what": "first", "amount": 0} for n in names])
        try:
            yield population
        finally:
            population.stop()
            engine.dispose()

    def begin(self, deeds: Mapping[str, int]) -> None:
        """Let writers do such deeds, which have these weights."""
        self.writers = [Writer(self, number, deeds) for number in range(WRITERS)]
        self.threads = [Thread(target=writer.work) for writer in self.writers]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        for writer in self.writers:
            writer.stop.set()
        for thread in self.threads:
            thread.join()

    def wait_for_more(self) -> None:
        """Let every writer commit something once more."""
        before = [writer.commits for writer in self.writers]
        wait_until(lambda: all(w.commits > n for w, n in zip(self.writers, before, strict=True)))

    def run(
        self,
        deeds: Mapping[str, int],
        before_proof: Callable[[int], object],
        **options: Any,
    ) -> support.Ran:
        """Run the backfill; the writers begin when it has taken its bound, and before each proof,
        which are numbered, something happens."""
        proofs = itertools.count(1)
        is_proved = Runner.is_proved

        class Beginning(support.Recorder):
            def __call__(recorder, event: Told) -> None:
                super().__call__(event)
                if event.what == "started" and not self.writers:
                    self.begin(deeds)

        def proved_later(runner: Runner, run: Run) -> bool:
            before_proof(next(proofs))
            return is_proved(runner, run)

        with (
            patch.object(support, "Recorder", Beginning),
            patch.object(Runner, "is_proved", proved_later),
        ):
            return support.run(self.engine, self.declaration, **options)

    # -- the verifier ----------------------------------------------------------------------

    def wrong(self) -> list[str]:
        """What is wrong in the rows, in the counts that `status` tells, and what the application
        lost."""
        found, written = self.verified()
        status = support.status(self.engine, self.declaration)
        said = (status["status"], status["rows_changed"])
        if said != ("succeeded", written):
            found.append(f"status says {said}, not {written}")
        return found + self.lost()

    def lost(self) -> list[str]:
        errors = [error for writer in self.writers for error in writer.errors]
        return [f"the application lost: {error.orig}" for error in errors]

    @property
    def faults(self) -> int:
        """How often a writer has committed something."""
        return sum(writer.commits for writer in self.writers)

    def verified(self) -> tuple[list[str], int]:
        """What is wrong in the rows, and how often ours was written by all that one can see."""
        with self.engine.connect() as connection:
            told = {row[0]: row[1:] for row in connection.execute(sa.text(TOLD))}
            found = {row[0]: row[1:] for row in connection.execute(sa.text(FOUND))}
        wrong = [f"row {name} is there and in no ledger" for name in found.keys() - told.keys()]
        written = 0
        for name, (amount, is_first, undone, at_death) in told.items():
            if (at_death is None) != (name in found):
                wrong.append(f"row {name} is {'gone' if at_death is None else 'back'}")
                continue
            key, n = found.get(name, (None, at_death))
            ours = int(n - amount)
            allowed = {0, 1} if at_death is not None else self.allowed(key, is_first=bool(is_first))
            if ours not in allowed:
                wrong.append(f"row {name}, now {key}: ours {ours} times, not {allowed}")
            written += ours + int(undone)
        return wrong, written

    def allowed(self, key: int, *, is_first: bool) -> set[int]:
        """How often ours may have been applied to a row that is there at the end."""
        if self.declaration.where or is_first:
            return {1}
        return {0} if key > self.bound else {0, 1}

    @property
    def bound(self) -> int:
        """The highest key of the beginning."""
        return 2 * self.rows


class Writer:
    """One connection of the application, with names and keys of its own.

    Several deeds a transaction, in any order and with pauses, so that it holds rows while it
    waits for others.
    """

    def __init__(self, population: Population, number: int, deeds: Mapping[str, int]) -> None:
        rows = range(1, population.rows + 1)
        self.engine = population.engine
        self.dice = random.Random(population.dice.random())
        self.deeds = deeds
        self.keys = {name: 2 * name for name in rows if name % WRITERS == number}
        between = range(1, population.bound, 2)
        self.unused = [key for key in between if key % WRITERS == number]
        self.beyond = itertools.count(population.bound + 1 + number, WRITERS)
        self.names = itertools.count(1_000_000 + number, WRITERS)
        self.stop = Event()
        self.commits = 0
        self.errors: list[sa.exc.DBAPIError] = []

    def work(self) -> None:
        with self.engine.connect() as connection:
            if connection.engine.name == "sqlite":  # on a loaded machine 5 s may be too few
                connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
                connection.commit()
            while not self.stop.wait(self.dice.uniform(0, PAUSE_SECONDS)):
                self.write(connection)

    def write(self, connection: sa.Connection) -> None:
        keys, unused = dict(self.keys), list(self.unused)
        try:
            with connection.begin():
                for _ in range(self.dice.randint(1, 4)):
                    (deed,) = self.dice.choices([*self.deeds], [*self.deeds.values()])
                    getattr(self, deed)(connection)
                    time.sleep(self.dice.uniform(0, 0.002))
            self.commits += 1
        except sa.exc.DBAPIError as error:
            self.keys, self.unused = keys, unused
            self.errors.append(error)

    # -- deeds -----------------------------------------------------------------------------

    def add(self, connection: sa.Connection) -> None:
        amount = APPLICATIONS_STEP * self.dice.randint(1, 3)
        name = self.somebody()
        connection.execute(self.update(name).values(n=counters.c.n + amount))
        self.tell(connection, name, "added", amount)

    def bear(self, connection: sa.Connection) -> None:
        """Insert a row in front of the cursor, behind it, or beyond the end."""
        name, key = next(self.names), self.an_unused_key()
        amount = APPLICATIONS_STEP * self.dice.randint(0, 3)
        connection.execute(sa.insert(counters).values(id=key, name=name, n=amount))
        self.tell(connection, name, "born", amount)
        self.keys[name] = key

    def move(self, connection: sa.Connection) -> None:
        """Give a row another key, in front of the cursor or behind it."""
        name, key = self.somebody(), self.an_unused_key()
        connection.execute(self.update(name).values(id=key))
        self.unused.append(self.keys[name])
        self.keys[name] = key

    def undo(self, connection: sa.Connection) -> None:
        """Take ours back, where it is there: the row is pending again."""
        name = self.somebody()
        update = self.update(name).where(counters.c.done.is_not(None))
        if connection.execute(update.values(n=counters.c.n - 1, done=None)).rowcount:
            self.tell(connection, name, "undone", 0)

    def bury(self, connection: sa.Connection) -> None:
        name = self.somebody()
        connection.execute(self.update(name).values(n=counters.c.n))  # ours until we commit
        his = counters.c.name == name
        last = sa.select(counters.c.name, sa.literal_column("'died'"), counters.c.n).where(his)
        connection.execute(sa.insert(ledger).from_select(["name", "what", "amount"], last))
        connection.execute(sa.delete(counters).where(his))
        self.unused.append(self.keys.pop(name))

    def somebody(self) -> int:
        return self.dice.choice([*self.keys])

    def an_unused_key(self) -> int:
        if self.unused and self.dice.random() < 0.5:
            return self.unused.pop(self.dice.randrange(len(self.unused)))
        return next(self.beyond)

    @staticmethod
    def update(name: int) -> sa.Update:
        return sa.update(counters).where(counters.c.name == name)

    @staticmethod
    def tell(connection: sa.Connection, name: int, what: str, amount: int) -> None:
        connection.execute(sa.insert(ledger).values(name=name, what=what, amount=amount))
