"""A live load: point reads and updates by key, half and half, that come when they come.

Requests have a schedule, and a request's time counts from its scheduled start: one that waits
behind a slow one is late, as it is for the people who sent it. On PostgreSQL pgbench sends them;
elsewhere `clients` does, which keeps to the same rules and writes the same log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from tests.benchmarks.measuring import CommandFailed
from tests.databases import PostgreSQL
from tests.projects import REPOSITORY, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Database

CLIENTS = 8
"""Connections, as a small pool has them."""
READ = "SELECT first, last, note FROM people WHERE id = :id"
UPDATE = "UPDATE people SET note = repeat('y', 60) WHERE id = :id"
TAIL = 1024
"""Bytes: some lines of the log."""
ENDED_BY_US = (0, -signal.SIGTERM)


class Request(NamedTuple):
    """What one request had to wait; in seconds, its start since the epoch."""

    scheduled: float
    waited: float
    is_update: bool


class Load:
    """A program that sends requests, and what they waited."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests: list[Request] = []
        """All of them, client by client, once the program has ended."""

    def last_wait(self) -> float:
        """The longest wait among the last ones answered, as far as they have been noted."""
        tails = (_tail(file) for file in self._folder.glob("requests*"))
        last = [request.waited for tail in tails for request in list(_parsed(tail))[-1:]]
        return max(last, default=0.0)

    def read(self) -> None:
        for file in sorted(self._folder.glob("requests*")):
            self.requests += _parsed(file.read_text("ascii"))


def _tail(file: Path) -> str:
    """The last lines of a file, the first of them whole."""
    with file.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - TAIL))
        return log.read().decode("ascii").partition("\n")[2]


def _parsed(log: str) -> Iterator[Request]:
    """Read pgbench's log: client, number, microseconds, script, and the moment of the answer."""
    for line in log.splitlines(keepends=True):
        if line.endswith("\n"):  # else it was being written when the program was ended
            _, _, microseconds, script, seconds, fraction, *_ = line.split()
            answered, waited = int(seconds) + int(fraction) / 1e6, int(microseconds) / 1e6
            yield Request(answered - waited, waited, script == "1")


@contextlib.contextmanager
def load(database: Database, rows: int, rate: float | None) -> Iterator[Load]:
    """Have requests sent to the table `people`, so many a second, until the block ends.

    Without a rate each client sends the next one as soon as the last one is answered.
    Raises CommandFailed if the program has ended before.
    """
    with tempfile.TemporaryDirectory(prefix="backfill-") as name:
        folder = Path(name)
        running = Load(folder)
        words = _pgbench if database.name == "postgresql" else _clients
        with (folder / "errors").open("w+") as errors:
            process = subprocess.Popen(
                words(database, rows, rate, folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=REPOSITORY,
                env=environment(),
            )
            try:
                yield running
            finally:
                process.terminate()
                process.wait()
            running.read()
            errors.seek(0)
            if process.returncode not in ENDED_BY_US:
                raise CommandFailed(f"the load ended by itself:\n{errors.read()}")


def capacity(database: Database, rows: int, seconds: float) -> float:
    """Requests a second that the machine can answer, clients included."""
    with load(database, rows, None) as running:
        time.sleep(seconds)
    answered = sorted(request.scheduled + request.waited for request in running.requests)
    return len(answered) / (answered[-1] - answered[0])


def _pgbench(database: Database, rows: int, rate: float | None, folder: Path) -> list[str]:
    scripts = []
    for name, statement in (("read", READ), ("update", UPDATE)):
        file = folder / f"{name}.sql"
        file.write_text(f"\\set id random(1, :rows)\n{statement};\n", encoding="ascii")
        scripts += ["--file", str(file)]
    url = sa.make_url(database.url).set(drivername="postgresql")
    return [
        str(PostgreSQL.package() / "pginstall/bin/pgbench"),
        *("--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--time=3600"),
        *("--log", f"--log-prefix={folder / 'requests'}", f"--define=rows={rows}", *scripts),
        *([f"--rate={rate}"] if rate else []),
        url.render_as_string(hide_password=False),
    ]


def _clients(database: Database, rows: int, rate: float | None, folder: Path) -> list[str]:
    words = (database.url, str(rows), str(rate or 0), str(folder))
    return command("tests.benchmarks.clients", words)
