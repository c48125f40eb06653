"""The oracle of every fault: `n = n + 1` beside an application that adds thousands.

Whatever happens, `n % 1000` is how often our part was applied and the rest is the application's,
which writes each of its changes into a ledger in the same transaction. The verifier is SQL of its
own: it knows the three numbers and none of our code.

    with stage.servers.database(stage.kind, stage.directory) as database:
        with Counting.on(database, stage.directory, stage.dice) as counting:
            with counting.application():
                …  # start commands, let things go wrong, count them in `counting.faults`
                counting.finish()
            return counting.attempt()
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.acceptance.counting import PATIENCE_SECONDS, has_committed, wait_until
from tests.faults.fault import Attempt
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database
    from tests.projects import Started

APPLICATIONS_STEP = 1000

CREATE = '''
import os
import time

from backfill import Backfill


def upgrade():
    op.create_table(
        "counters",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("counter", sa.Integer, nullable=False, index=True),
        sa.Column("amount", sa.Integer, nullable=False),
    )


class CountUp(Backfill):
    """Add one to every row."""

    table = "counters"
'''
WAYS = {
    "values": CREATE + '    values = {"n": "n + 1"}\n',
    "transform": CREATE
    + """
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        time.sleep(float(os.environ.get("ROW_SECONDS", 0)))
        return {"n": row.n + 1}
""",
    "apply": CREATE
    + """
    def apply(self, connection, chunk):
        connection.execute(chunk.update().values(n=chunk.table.c.n + 1))
""",
    "where": CREATE
    + f"""
    where = "n % {APPLICATIONS_STEP} = 0"
    values = {{"n": "n + 1"}}
""",
}
"""What a user can declare. By `where` a row that is done is not pending: so the run ends with a
proof, and would hide what was written twice; without one nothing does."""
STATE = ("failure", "event", "range", "run", "schema")
"""Our tables, those that refer to others first."""

counters = sa.table("counters", sa.column("id"), sa.column("n"))
ledger = sa.table("ledger", sa.column("counter"), sa.column("amount"))

WRONG = f"""
SELECT counters.id, counters.n % {APPLICATIONS_STEP},
       (counters.n - counters.n % {APPLICATIONS_STEP}) - COALESCE(SUM(ledger.amount), 0)
FROM counters LEFT JOIN ledger ON ledger.counter = counters.id
GROUP BY counters.id, counters.n
HAVING counters.n <> 1 + COALESCE(SUM(ledger.amount), 0)
"""


@dataclass
class Counting:
    """The project, the application beside it, and what they left in the database."""

    project: AlembicProject
    engine: sa.Engine
    rows: int
    dice: random.Random
    options: tuple[str, ...] = ("--chunk-size=7",)
    """Of each `backfill run`, unless a fault says otherwise."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment of each command that is started in the background."""
    faults: int = 0
    recoveries: list[float] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def on(
        cls,
        database: Database,
        directory: Path,
        dice: random.Random,
        *,
        way: str = "values",
        rows: int = 2_000,
    ) -> Iterator[Counting]:
        """The project on an empty database, its table filled; its processes end with the block."""
        engine = database.engine()
        with AlembicProject.create(directory / "project", database.url) as project:
            project.revision("a1", body=WAYS[way])
            project.alembic("upgrade", "head")
            with engine.begin() as connection:
                values = [{"id": key, "n": 0} for key in range(1, rows + 1)]
                connection.execute(sa.insert(counters), values)
            yield cls(project, engine, rows, dice)
        engine.dispose()

    def start(self, *options: str, **variables: str) -> Started:
        """`backfill run` in the background, with these options instead of ours."""
        arguments = ("run", "--json", *(options or self.options))
        return self.project.start(*arguments, variables=self.variables | variables)

    def start_and_wait_for_a_chunk(self, *options: str, **variables: str) -> Started:
        process = self.start(*options, **variables)
        wait_until(lambda: has_committed(process), process)
        return process

    @contextlib.contextmanager
    def recovering(
        self, at_least: float = 0.0, at_most: float = PATIENCE_SECONDS
    ) -> Iterator[None]:
        """Count a fault that ends as the block begins; the block ends with the next chunk.

        Raises AssertionError if that takes less or more seconds than it may.
        """
        self.faults += 1
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.recoveries.append(seconds)
        if not at_least <= seconds <= at_most:
            raise AssertionError(
                f"the next chunk came after {seconds:.2f} s, not {at_least:g} to {at_most:g} s"
            )

    @contextlib.contextmanager
    def application(self, pause_seconds: float = 0.005) -> Iterator[Application]:
        """The application at work, until the block ends."""
        application = Application(
            self.engine, self.rows, random.Random(self.dice.random()), pause_seconds
        )
        thread = Thread(target=application.work)
        thread.start()
        try:
            yield application
        finally:
            application.stop.set()
            thread.join()

    def finish(self, *options: str, seconds: float = 60.0) -> None:
        """Run the same command until it says that all is done; fails if it does not."""
        done = self.project.backfill("run", *(options or self.options), timeout=seconds)
        if done.returncode != 0:
            raise AssertionError(f"the last run ended with {done.returncode}: {done.stderr}")

    def begin_anew(self) -> None:
        """Take back what all runs did, and forget them; the application's part stays."""
        with self.engine.begin() as connection:
            for name in STATE:
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS backfill_{name}")
            ours = counters.c.n % APPLICATIONS_STEP
            connection.execute(sa.update(counters).values(n=counters.c.n - ours))

    def attempt(self) -> Attempt:
        """What was found, when the last run has come to its end."""
        return Attempt(self.faults, self.rows, self.wrong(), self.recoveries)

    def wrong(self) -> list[str]:
        """What the verifier finds wrong in the rows, and in the counts that `status` tells."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.text(WRONG)).all()
            total = connection.exec_driver_sql("SELECT COUNT(*) FROM counters").scalar_one()
        found = [
            f"row {key}: ours {ours} times, the application's off by {by}" for key, ours, by in rows
        ]
        if total != self.rows:
            found.append(f"{total} rows of {self.rows}")
        return found + self.wrong_counts()

    def wrong_counts(self) -> list[str]:
        done = self.project.backfill("status", "--json")
        (document,) = json.loads(done.stdout)
        expected = {
            "status": "succeeded",
            "rows_changed": self.rows,
            "rows_scanned": self.rows,
        }
        ranges = sum(one["rows_changed"] for one in document["ranges"])
        found = [
            f"status says {name} = {document[name]}, not {value}"
            for name, value in expected.items()
            if document[name] != value
        ]
        if ranges != self.rows:
            found.append(f"the ranges' rows_changed add up to {ranges}, not {self.rows}")
        return found


@dataclass
class Application:
    """One connection that adds thousands to random rows, each change with its line in the ledger.

    A change that fails is undone by the database with its line, so whatever becomes of the
    server, rows and ledger agree.
    """

    engine: sa.Engine
    rows: int
    dice: random.Random
    pause_seconds: float
    stop: Event = field(default_factory=Event)
    changes: int = 0
    errors: list[sa.exc.DBAPIError] = field(default_factory=list)

    def work(self) -> None:
        while not self.stop.is_set():
            self.work_on_one_connection()

    def work_on_one_connection(self) -> None:
        try:
            with self.engine.connect() as connection:
                while not self.stop.wait(self.dice.uniform(0, 2 * self.pause_seconds)):
                    self.change(connection)
        except sa.exc.DBAPIError as error:
            self.errors.append(error)
            self.stop.wait(0.05)

    def change(self, connection: sa.Connection) -> None:
        key = self.dice.randint(1, self.rows)
        amount = APPLICATIONS_STEP * self.dice.randint(1, 3)
        row = counters.c.id == key
        with connection.begin():
            connection.execute(sa.update(counters).where(row).values(n=counters.c.n + amount))
            connection.execute(sa.insert(ledger).values(counter=key, amount=amount))
        self.changes += 1
