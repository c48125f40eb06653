"""Private servers that sync to the disk, as fresh installations do; tests have hastier ones."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from tests.databases import MariaDB, PostgreSQL, Server, sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.databases import Database


class Place(Protocol):
    """Where databases can be made: a server, or a folder."""

    def database(self) -> contextlib.AbstractContextManager[Database]:
        """An empty database, dropped afterwards."""

    def cpu_seconds(self) -> float:
        """What the server's processes have used so far."""

    def stop(self) -> None:
        """End the server."""


class Measured(Server):
    """A server that knows what it costs."""

    @staticmethod
    def choose_parent() -> None:
        """On a disk, as those that are in use."""

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in psutil.Process(self._guardian.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])  # with those of its children that ended
        return total


class DurablePostgreSQL(Measured, PostgreSQL):
    """As a fresh installation syncs and caches; of two options the last one counts."""

    def command(self) -> list[str]:
        defaults = {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "shared_buffers": "128MB",
        }
        return [*super().command(), *(f"--{name}={value}" for name, value in defaults.items())]


class DurableMariaDB(Measured, MariaDB):
    """As a fresh installation syncs and caches; of two options the last one counts."""

    def command(self) -> list[str]:
        return [
            *super().command(),
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-doublewrite=1",
            "--innodb-buffer-pool-size=128M",
            "--innodb-log-file-size=96M",
        ]

    def create_user(self) -> None:
        super().create_user()
        self.execute("GRANT PROCESS ON *.* TO app@'%'")  # as the documentation asks for


class Files:
    """SQLite: each database is a new file, and the client does the work."""

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        with tempfile.TemporaryDirectory(prefix="backfill-") as directory:
            yield sqlite_database(Path(directory))

    def cpu_seconds(self) -> float:
        return 0.0

    def stop(self) -> None:
        """Nothing runs."""


PLACES: Mapping[str, type[Place]] = {
    "postgresql": DurablePostgreSQL,
    "mariadb": DurableMariaDB,
    "sqlite": Files,
}

SETTINGS_SHOWN = {
    "postgresql": "fsync, synchronous_commit, full_page_writes on, shared_buffers 128 MB",
    "mariadb": "innodb_flush_log_at_trx_commit 1, doublewrite on, buffer pool 128 MB",
    "sqlite": "as Alembic's env.py opens it: journal DELETE, synchronous FULL",
}


@contextlib.contextmanager
def place_for(name: str) -> Iterator[Place]:
    """A server of that kind, until it is no longer needed."""
    place = PLACES[name]()
    try:
        yield place
    finally:
        place.stop()
