"""An application that wants the same rows: storms, long transactions, conflicts, and rows that
come, go and move. Whatever it does it wins, and the run gets through between.
"""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.runs import Outcome
from tests.acceptance.counting import events, last_words, wait_until
from tests.databases import CAPABILITIES_OF
from tests.faults.fault import Attempt, Fault
from tests.faults.oracle import Application, Counting, counters, ledger
from tests.faults.population import ALL_DEEDS, WITHOUT_WHERE, Population, count_up
from tests.faults.storm import storm, waits_too_long
from tests.faults.triggers import create_trigger, drop_trigger, raises
from tests.integration import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill import Backfill
    from tests.faults.fault import Stage
    from tests.integration.support import Ran
    from tests.projects import Started

ROW_LOCKS = frozenset({"row_locks"})
AT_COMMIT = frozenset({"deferred_constraints"})

OURS = "NEW.n % 1000 <> OLD.n % 1000"
"""What tells a write of the backfill from one of the application."""


@contextlib.contextmanager
def counting_on(stage: Stage, way: str = "values", rows: int = 2_000) -> Iterator[Counting]:
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=rows) as counting,
    ):
        yield counting


def finished(counting: Counting, process: Started, *wrong: str) -> Attempt:
    """What a run that needs no help left when it has ended."""
    if process.wait(60) != 0:
        raise AssertionError(f"it does not get through: {last_words(process)}")
    found = [*wrong, *counting.wrong()]
    return Attempt(counting.faults, counting.rows, found, counting.recoveries)


def told(process: Started, what: str) -> int:
    """How many events of a kind a run has told of so far."""
    return sum(event["event"] == what for event in events(process))


def wait_for(process: Started, what: str, number: int = 1) -> None:
    wait_until(lambda: told(process, what) >= number, process)


# -- rows that the application has locked ------------------------------------------------------


def storm_in_the_opposite_order(stage: Stage, way: str) -> Attempt:
    """Four writers lock a few rows each, the last one first, while we lock ours in key order."""
    with counting_on(stage, way, rows=600) as counting:
        keys = range(1, counting.rows + 1)
        with storm(counting.engine, keys, 4, stage.dice) as writers:
            process = counting.start("--chunk-size=50")
            process.wait(60)
        waits = [seconds for writer in writers for seconds in writer.waits]
        counting.faults = told(process, "retry") + len(waits)
        return finished(counting, process, *waits_too_long(writers))


def row_that_every_write_locks(stage: Stage) -> Attempt:
    """A trigger counts writes in one row, which the application locks before it writes others: we
    have it the other way round, and can do nothing about it."""
    with counting_on(stage, rows=300) as counting:
        with counting.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE totals (writes integer NOT NULL)")
            connection.exec_driver_sql("INSERT INTO totals (writes) VALUES (0)")
        create_trigger(counting.engine, "count_writes", "UPDATE totals SET writes = writes + 1")
        application = Totalling(
            counting.engine, counting.rows, random.Random(stage.dice.random()), 0.05
        )
        with working(application):
            process = counting.start()
            process.wait(60)
        counting.faults = told(process, "retry")
        with counting.engine.connect() as connection:
            writes = connection.exec_driver_sql("SELECT writes FROM totals").scalar_one()
        expected = counting.rows + application.changes
        wrong = [] if writes == expected else [f"the trigger counts {writes}, not {expected}"]
        lost = [f"the application lost: {error.orig}" for error in application.errors]
        return finished(counting, process, *wrong, *lost)


@dataclass
class Totalling(Application):
    """Locks the row of totals before it changes another one."""

    def change(self, connection: sa.Connection) -> None:
        with connection.begin():
            connection.exec_driver_sql("UPDATE totals SET writes = writes")
            self.stop.wait(0.03)  # longer than we wait for a lock
            self.write(connection)
        self.changes += 1

    def write(self, connection: sa.Connection) -> None:
        key, amount = self.dice.randint(1, self.rows), 1_000
        row = counters.c.id == key
        connection.execute(sa.update(counters).where(row).values(n=counters.c.n + amount))
        connection.execute(sa.insert(ledger).values(counter=key, amount=amount))


@contextlib.contextmanager
def working(application: Application) -> Iterator[None]:
    thread = Thread(target=application.work)
    thread.start()
    try:
        yield
    finally:
        application.stop.set()
        thread.join()


def long_transactions(stage: Stage, way: str) -> Attempt:
    """Transactions keep a row of the next chunk until the run has met it several times."""
    with counting_on(stage, way, rows=400) as counting, counting.application():
        process = counting.start_and_wait_for_a_chunk()
        for _ in range(3):
            with counting.engine.connect() as connection, connection.begin():
                lock_a_row_ahead(connection)
                wait_for(process, "retry", told(process, "retry") + 4)
            chunks = told(process, "chunk")
            with counting.recovering():
                wait_for(process, "chunk", chunks + 1)
        return finished(counting, process)


def lock_a_row_ahead(connection: sa.Connection) -> None:
    """Change a row that the run has yet to come to, and tell the ledger."""
    cursor = sa.text("SELECT MIN(id) FROM counters WHERE n % 1000 = 0")
    ahead = 20
    while True:
        key = connection.execute(cursor).scalar_one() + ahead
        is_there = sa.and_(counters.c.id == key, sa.text("n % 1000 = 0"))
        more = sa.update(counters).where(is_there).values(n=counters.c.n + 1000)
        if connection.execute(more).rowcount:
            connection.execute(sa.insert(ledger).values(counter=key, amount=1000))
            return
        ahead += 20


# -- conflicts that the database reports --------------------------------------------------------


def serialization_failures(stage: Stage, way: str, *, at_commit: bool = False) -> Attempt:
    """One row in 20 makes the database report a conflict, beside an application that asks for
    the strictest isolation and begins again when it is refused."""
    with counting_on(stage, way, rows=140) as counting:
        create_trigger(
            counting.engine,
            "conflict",
            raises(stage.kind, "conflict"),
            when=f"{OURS} AND {{random}} < 0.05",
            at_commit=at_commit,
        )
        strict = counting.engine.execution_options(isolation_level="SERIALIZABLE")
        application = Summing(strict, counting.rows, random.Random(stage.dice.random()), 0.01)
        with working(application):
            process = counting.start()
            process.wait(60)
        counting.faults = told(process, "retry") + len(application.errors)
        return finished(counting, process)


@dataclass
class Summing(Application):
    """Reads many rows before it changes one of them, all in one transaction."""

    def change(self, connection: sa.Connection) -> None:
        with connection.begin():
            connection.exec_driver_sql("SELECT SUM(n) FROM counters").scalar_one()
            key, amount = self.dice.randint(1, self.rows), 1_000
            row = counters.c.id == key
            connection.execute(sa.update(counters).where(row).values(n=counters.c.n + amount))
            connection.execute(sa.insert(ledger).values(counter=key, amount=amount))
        self.changes += 1


# -- rows that come, go and move ---------------------------------------------------------------


@contextlib.contextmanager
def population_of(stage: Stage, declaration: type[Backfill]) -> Iterator[Population]:
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Population.on(database, stage.dice, declaration) as population,
    ):
        yield population


def came_to_its_end(population: Population, ran: Ran, *wrong: str) -> Attempt:
    if ran.outcome is not Outcome.COMPLETE:
        raise AssertionError(f"it does not get through: {ran.result.text}")
    return Attempt(population.faults, population.rows, [*wrong, *population.wrong()])


def rows_that_come_go_and_move(stage: Stage, way: str) -> Attempt:
    """In front of the cursor and behind it, while the table is walked and swept."""
    with population_of(stage, count_up(way, where="done IS NULL")) as population:

        def meanwhile(proof: int) -> None:
            population.wait_for_more() if proof < 3 else population.stop()

        return came_to_its_end(population, population.run(ALL_DEEDS, meanwhile, chunk_size=20))


def rows_that_come_and_go_without_where(stage: Stage, way: str) -> Attempt:
    """Nothing is swept: what was there at the beginning is done once, the rest once at most."""
    with population_of(stage, count_up(way)) as population:

        def at_the_end(_proof: int) -> None:
            population.wait_for_more()
            population.stop()

        return came_to_its_end(population, population.run(WITHOUT_WHERE, at_the_end, chunk_size=20))


def rows_inserted_for_ever(stage: Stage) -> Attempt:
    """The run ends and says why; when the application fills new rows itself, it gets through."""
    with population_of(stage, count_up("values", where="done IS NULL")) as population:
        ran = population.run({"bear": 1}, lambda _proof: population.wait_for_more(), max_passes=2)
        wrong = [] if len(ran.texts("swept")) == 2 else [f"{len(ran.texts('swept'))} sweeps"]
        if ran.outcome is not Outcome.FAILED or "keeps writing rows" not in ran.result.text:
            wrong.append(f"{ran.outcome}: {ran.result.text}")
        population.stop()
        ran = support.run(population.engine, population.declaration)
        return came_to_its_end(population, ran, *wrong)


def rows_inserted_for_ever_with_sync(stage: Stage) -> Attempt:
    """The triggers do new rows, so that the run gets through while the application goes on."""
    declaration = count_up("values", where="done IS NULL", sync=True)
    with population_of(stage, declaration) as population:
        ran = population.run(SYNCED, lambda _proof: population.wait_for_more(), chunk_size=20)
        if ran.outcome is not Outcome.COMPLETE:
            raise AssertionError(f"it does not get through: {ran.result.text}")
        population.wait_for_more()
        population.stop()
        wrong, _ = population.verified()
        return Attempt(population.faults, population.rows, wrong + population.lost())


SYNCED = {"add": 3, "bear": 6, "move": 2, "bury": 1}


# -- foreign keys and triggers that fail -------------------------------------------------------


def trigger_that_refuses_rows(stage: Stage, way: str) -> Attempt:
    """Seven rows are put aside; when the trigger is gone they are done, and once."""
    with counting_on(stage, way, rows=140) as counting, counting.application():
        bad = sorted(stage.dice.sample(range(1, counting.rows + 1), 7))
        create_trigger(
            counting.engine,
            "refuse",
            raises(stage.kind, "refused"),
            when=f"{OURS} AND NEW.id IN ({', '.join(map(str, bad))})",
        )
        wrong = quarantine_of(counting, bad)
        drop_trigger(counting.engine, "refuse")
        return retried(counting, wrong, faults=len(bad))


def foreign_key_that_fails(stage: Stage, *, at_commit: bool = False) -> Attempt:
    """A trigger writes a row that refers to another one, which is locked now and then, or missing:
    for every tenth row until somebody adds it."""
    with counting_on(stage, rows=100) as counting:
        make_visits(counting, at_commit=at_commit)
        with counting.application(), parents_locked(stage, counting):
            bad = [key for key in range(1, counting.rows + 1) if key % 10 == 3]
            wrong = quarantine_of(counting, bad)
            with counting.engine.begin() as connection:
                connection.exec_driver_sql("INSERT INTO parents (id) VALUES (3)")
            attempt = retried(counting, wrong, faults=len(bad))
        query = "SELECT COUNT(*), COUNT(DISTINCT counter) FROM visits"
        with counting.engine.connect() as connection:
            visits = tuple(connection.exec_driver_sql(query).one())
        if visits != (counting.rows, counting.rows):
            attempt.wrong.append(f"{visits} visits of so many rows, not one of each")
        return attempt


def make_visits(counting: Counting, *, at_commit: bool) -> None:
    """Let each write of ours insert a row that refers to one of ten others, of which one is
    missing."""
    if counting.engine.name == "sqlite":  # there, whoever wants foreign keys has to say so
        env = counting.project.directory / "migrations" / "env.py"
        env.write_text(FOREIGN_KEYS + env.read_text())
    deferred = "DEFERRABLE INITIALLY DEFERRED" if at_commit else ""
    with counting.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parents (id integer PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE visits (counter integer NOT NULL, parent integer NOT NULL,"
            f" FOREIGN KEY (parent) REFERENCES parents (id) {deferred})"
        )
        parents = ", ".join(f"({i})" for i in range(10) if i != 3)
        connection.exec_driver_sql(f"INSERT INTO parents (id) VALUES {parents}")
    visit = "INSERT INTO visits (counter, parent) VALUES (NEW.id, NEW.id % 10)"
    create_trigger(counting.engine, "visit", visit, when=OURS)


FOREIGN_KEYS = """
from sqlalchemy import Engine, event


@event.listens_for(Engine, "connect")
def enforce_foreign_keys(connection, _record):
    connection.execute("PRAGMA foreign_keys = ON")


"""


@contextlib.contextmanager
def parents_locked(stage: Stage, counting: Counting) -> Iterator[None]:
    """Lock a row that others refer to, again and again, for longer than we wait for it."""
    if not CAPABILITIES_OF[stage.kind] >= ROW_LOCKS:
        yield
        return
    locking = Locking(counting.engine, counting.rows, counting.dice, 0.01)
    with working(locking):
        yield


class Locking(Application):
    def change(self, connection: sa.Connection) -> None:
        with connection.begin():
            connection.exec_driver_sql("SELECT id FROM parents WHERE id = 7 FOR UPDATE")
            self.stop.wait(0.04)


def quarantine_of(counting: Counting, bad: list[int]) -> list[str]:
    """Run to the end, where these rows are in quarantine and no others; what is wrong about it."""
    process = counting.start()
    if process.wait(60) != 5:
        raise AssertionError(f"not exit code 5: {last_words(process)}")
    listed = json.loads(counting.project.backfill("failures", "--json").stdout)
    found = sorted(one["key"][0] for one in listed)
    return [] if found == bad else [f"in quarantine are {found}, not {bad}"]


def retried(counting: Counting, wrong: list[str], *, faults: int) -> Attempt:
    """Try the rows in quarantine again, whose cause is gone."""
    done = counting.project.backfill("failures", "--retry")
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return Attempt(faults, counting.rows, wrong + counting.wrong())


def each_way(
    name: str,
    attempt: Callable[..., Attempt],
    *quick: str,
    requires: frozenset[str] = frozenset(),
) -> Iterator[Fault]:
    """The fault for each way to write; the quick ones are tried in CI, too."""
    for way in ("values", "transform", "apply"):
        yield Fault(f"{name}, {way}", partial(attempt, way=way), requires, in_ci=int(way in quick))


FAULTS = [
    *each_way(
        "deadlock storm",
        storm_in_the_opposite_order,
        *("values", "transform", "apply"),
        requires=ROW_LOCKS,
    ),
    Fault("a row that every write locks", row_that_every_write_locks, requires=ROW_LOCKS),
    *each_way("long transactions", long_transactions, "values", "transform", requires=ROW_LOCKS),
    *each_way("serialization failures", serialization_failures, "transform", requires=ROW_LOCKS),
    *each_way(
        "serialization failures at COMMIT",
        partial(serialization_failures, at_commit=True),
        "values",
        requires=ROW_LOCKS | AT_COMMIT,
    ),
    *each_way("rows come, go and move", rows_that_come_go_and_move, "values", "transform", "apply"),
    *each_way("rows come and go, no where", rows_that_come_and_go_without_where, "transform"),
    Fault("rows inserted for ever", rows_inserted_for_ever),
    Fault("rows inserted for ever, with sync", rows_inserted_for_ever_with_sync),
    *each_way("a trigger that refuses rows", trigger_that_refuses_rows, "transform"),
    Fault("a foreign key that fails", foreign_key_that_fails),
    Fault(
        "a foreign key that fails at COMMIT",
        partial(foreign_key_that_fails, at_commit=True),
        requires=AT_COMMIT,
    ),
]
