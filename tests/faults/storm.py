"""Writers of an application that lock rows in the opposite order of ours, and how long they wait.

Each of them has rows of its own, so that it waits for nobody but the run.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.faults.oracle import APPLICATIONS_STEP, counters, ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# How long the statement has waited for its row, in seconds, by the server's own clock: what the
# client does meanwhile does not count.
LOCK: Mapping[str, str] = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())"
    " FROM (SELECT id FROM counters WHERE id = {} FOR UPDATE) AS locked",
    "mariadb": "SELECT TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) / 1000000"
    " FROM counters WHERE id = {} FOR UPDATE",
}
AT_ONCE_SECONDS = 0.001
PAUSE_SECONDS = 0.001
"""Between two rows, as an application has something to do while it holds them."""
NEAR = 40
"""Rows of one transaction are not further apart."""


@dataclass
class Writer:
    """One connection, and its own rows in ascending order."""

    engine: sa.Engine
    keys: Sequence[int]
    dice: random.Random
    waits: list[float] = field(default_factory=list)
    """Seconds, for each row that it did not get at once."""
    errors: list[sa.exc.DBAPIError] = field(default_factory=list)

    def work(self, stop: Event) -> None:
        with self.engine.connect() as connection:
            while not stop.is_set():
                self.write(connection)

    def write(self, connection: sa.Connection) -> None:
        try:
            with connection.begin():
                self.lock_and_change(connection)
        except sa.exc.DBAPIError as error:
            self.errors.append(error)

    def lock_and_change(self, connection: sa.Connection) -> None:
        """Lock a few rows one after the other, the last one first; then change them all."""
        keys = self.a_few_keys()
        for key in keys:
            lock = LOCK[connection.engine.name].format(key)
            seconds = float(connection.exec_driver_sql(lock).scalar_one())
            if seconds > AT_ONCE_SECONDS:
                self.waits.append(seconds)
            time.sleep(PAUSE_SECONDS)
        ours = counters.c.id.in_(keys)
        values = [{"counter": key, "amount": APPLICATIONS_STEP} for key in keys]
        more = counters.c.n + APPLICATIONS_STEP
        connection.execute(sa.update(counters).where(ours).values(n=more))
        connection.execute(sa.insert(ledger), values)

    def a_few_keys(self) -> list[int]:
        first = self.dice.randrange(len(self.keys))
        near = self.keys[first : first + NEAR]
        return sorted(self.dice.sample(near, min(len(near), self.dice.randint(2, 5))), reverse=True)


@contextmanager
def storm(
    engine: sa.Engine, keys: Sequence[int], writers: int, dice: random.Random
) -> Iterator[list[Writer]]:
    """Let so many writers work, each on its part of the keys."""
    found = [Writer(engine, keys[i::writers], random.Random(dice.random())) for i in range(writers)]
    stop = Event()
    threads = [Thread(target=writer.work, args=(stop,)) for writer in found]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def waits_too_long(writers: Sequence[Writer]) -> list[str]:
    """What the application lost to the run: a transaction, or time.

    Hardly a wait is longer than 50 ms (on a machine that has other work one in ten may be), and
    none is as long as PostgreSQL lets a deadlock last, 1 s.
    """
    waits = [seconds for writer in writers for seconds in writer.waits]
    long = [seconds for seconds in waits if seconds > 0.05]
    found = [f"the application lost a transaction: {e.orig}" for w in writers for e in w.errors]
    if len(long) > len(waits) // 10 or max(waits, default=0) >= 0.5:
        found.append(f"of {len(waits)} waits {len(long)} were long, up to {max(waits):.2f} s")
    return found
