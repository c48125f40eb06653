"""Writers of an application that lock rows in random order, and how long they wait for them."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# How long the statement has waited for its row, in seconds, by the server's own clock: what the
# client does meanwhile does not count.
LOCK: Mapping[str, str] = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())"
    " FROM (SELECT id FROM things WHERE id = {} FOR UPDATE) AS locked",
    "mariadb": "SELECT TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) / 1000000"
    " FROM things WHERE id = {} FOR UPDATE",
}
AT_ONCE_SECONDS = 0.001
PAUSE_SECONDS = 0.001
"""Between two rows, as an application has something to do while it holds them."""


@dataclass
class Writer:
    """One connection. Its rows are its own, so that it waits for nobody but the run."""

    engine: sa.Engine
    keys: Sequence[int]
    dice: random.Random
    waits: list[float] = field(default_factory=list)
    """Seconds, for each row that it did not get at once."""
    errors: list[Exception] = field(default_factory=list)

    def work(self, stop: Event) -> None:
        with self.engine.connect() as connection:
            while not stop.is_set():
                self.write(connection)

    def write(self, connection: sa.Connection) -> None:
        try:
            self.lock_and_change(connection)
        except sa.exc.DBAPIError as error:
            connection.rollback()
            self.errors.append(error)

    def lock_and_change(self, connection: sa.Connection) -> None:
        """Lock a few rows one after the other, as they come, then change them all."""
        keys = self.dice.sample(self.keys, self.dice.randint(2, 5))
        for key in keys:
            lock = LOCK[connection.engine.name].format(key)
            seconds = float(connection.exec_driver_sql(lock).scalar_one())
            if seconds > AT_ONCE_SECONDS:
                self.waits.append(seconds)
            time.sleep(PAUSE_SECONDS)
        connection.exec_driver_sql(
            f"UPDATE things SET n = n + 1 WHERE id IN ({', '.join(map(str, keys))})"
        )
        connection.commit()


@contextmanager
def storm(
    engine: sa.Engine, keys: Sequence[int], writers: int, seed: int
) -> Iterator[list[Writer]]:
    """Let so many writers work, each on its part of the keys."""
    dice = random.Random(seed)
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
