"""A live load: point reads and updates by key, half and half, that come when they come.

Requests have a schedule, and a request's time counts from its scheduled start: one that waits
behind a slow one is late, as it is for the people who sent it. On PostgreSQL pgbench sends them;
elsewhere `clients` does, which keeps to the same rules and writes the same log.
"""

from __future__ import annotations

import contextlib
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
ENDED_BY_US = (0, -signal.SIGTERM)


class Request(NamedTuple):
    """What one request had to wait; in seconds, its start since the epoch."""

    scheduled: float
    waited: float
    is_update: bool


def _read(folder: Path) -> list[Request]:
    """All requests, in the order in which they were answered, client by client."""
    files = sorted(folder.glob("requests*"))
    return [request for file in files for request in _parsed(file.read_text("ascii"))]


def _parsed(log: str) -> Iterator[Request]:
    """Read pgbench's log: client, number, microseconds, script, and the moment of the answer."""
    for line in log.splitlines(keepends=True):
        if line.endswith("\n"):  # else it was being written when the program was ended
            _, _, microseconds, script, seconds, fraction, *_ = line.split()
            answered, waited = int(seconds) + int(fraction) / 1e6, int(microseconds) / 1e6
            yield Request(answered - waited, waited, script == "1")


@contextlib.contextmanager
def load(database: Database, rows: int, rate: float | None) -> Iterator[list[Request]]:
    """Have requests sent to the table `people`, so many a second, until the block ends.

    The list has them all when it has ended, client by client.

    Without a rate each client sends the next one as soon as the last one is answered.
    Raises CommandFailed if the program has ended before.
    """
    requests: list[Request] = []
    with tempfile.TemporaryDirectory(prefix="backfill-") as name:
        folder = Path(name)
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
                yield requests
            finally:
                process.terminate()
                process.wait()
            requests += _read(folder)
            errors.seek(0)
            if process.returncode not in ENDED_BY_US:
                raise CommandFailed(f"the load ended by itself:\n{errors.read()}")


def capacity(database: Database, rows: int, seconds: float) -> float:
    """Requests a second that the machine can answer, clients included."""
    with load(database, rows, None) as requests:
        time.sleep(seconds)
    answered = sorted(request.scheduled + request.waited for request in requests)
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
