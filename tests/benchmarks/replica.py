"""Does a replica keep up? The lag of a slow streaming replica while the table is filled.

    python -m tests.benchmarks.replica

PostgreSQL's replay is stopped for nine tenths of the time (SIGSTOP), so that it cannot follow a
backfill at full speed. The lag is that of the position replayed: how long ago the primary wrote
what comes next, by readings of our own. The goal: below the limit plus one chunk.
"""

from __future__ import annotations

import argparse
import bisect
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import sqlalchemy as sa

from tests.benchmarks import contest
from tests.benchmarks.measuring import CommandFailed, watch
from tests.benchmarks.servers import DurablePostgreSQL
from tests.benchmarks.tables import fill, flush
from tests.benchmarks.variants import Ours

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_STOPPED = 3
STOPPED_SECONDS, REPLAYED_SECONDS = 0.45, 0.05
READ_SECONDS = 0.05
POSITIONS = sa.text(
    "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') AS written,"
    " pg_wal_lsn_diff(min(replay_lsn), '0/0') AS replayed FROM pg_stat_replication"
)


class Standby(DurablePostgreSQL):
    """A streaming replica of another private server."""

    def __init__(self, primary: DurablePostgreSQL) -> None:
        self._primary = primary
        super().__init__()

    def initialise(self) -> None:
        self.binaries = self._reachable_package() / "pginstall/bin"
        self.password = self._primary.password
        url = self._primary.admin_url().set(drivername="postgresql")
        text = url.render_as_string(hide_password=False)
        self.run(
            self.binaries / "pg_basebackup",
            *("-D", self.data, "-d", text, "--write-recovery-conf", "--checkpoint=fast"),
        )

    def create_user(self) -> None:
        """It came with the copy."""

    def replayer(self) -> psutil.Process:
        """The process that applies what arrives."""
        below = psutil.Process(self._guardian.pid).children(recursive=True)
        return next(process for process in below if "startup" in " ".join(process.cmdline()))


class Positions:
    """What the primary had written and the replica replayed, at many moments."""

    def __init__(self, primary: DurablePostgreSQL) -> None:
        self._engine = primary.admin
        self._ends = threading.Event()
        self.moments: list[float] = []
        self.written: list[float] = []
        self.replayed: list[float] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        thread = threading.Thread(target=self._note)
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()

    def _note(self) -> None:
        with self._engine.connect() as connection:
            while not self._ends.wait(READ_SECONDS):
                row = connection.execute(POSITIONS).one()
                if row.replayed is not None:
                    self.moments.append(time.perf_counter())
                    self.written.append(float(row.written))
                    self.replayed.append(float(row.replayed))

    def lags(self, start: float, end: float) -> list[float]:
        """Seconds since the primary wrote what the replica replays next, at each moment."""
        found = []
        for moment, position in zip(self.moments, self.replayed, strict=True):
            newer = bisect.bisect_right(self.written, position)
            if start <= moment <= end:
                behind = newer < len(self.written) and self.moments[newer] < moment
                found.append(moment - self.moments[newer] if behind else 0.0)
        return found


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """Let a process run for a tenth of the time."""
    ends = threading.Event()

    def hold() -> None:
        while not ends.wait(REPLAYED_SECONDS):
            process.send_signal(signal.SIGSTOP)
            ends.wait(STOPPED_SECONDS)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def main() -> None:
    found = argparse.ArgumentParser(prog="python -m tests.benchmarks.replica")
    found.add_argument("--rows", type=int, default=1_000_000)
    found.add_argument("--seconds", type=float, default=40, help="how long to fill at most")
    found.add_argument("--limit", type=float, default=2, help="max_replica_lag, in seconds")
    options = found.parse_args()
    os.environ["BACKFILL_MAX_REPLICA_LAG"] = str(options.limit)
    primary = DurablePostgreSQL()
    try:
        measure(primary, options)
    finally:
        primary.stop()


def measure(primary: DurablePostgreSQL, options: argparse.Namespace) -> None:
    with primary.database() as database, tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        way = Ours("backfill", "backfill", "psycopg", ("--max-seconds", str(options.seconds)))
        words, directory = contest.command_for(way, "set", database, Path(folder))
        fill(database, contest.TABLE, options.rows, targets=[contest.COLUMN], undisturbed=True)
        flush(database, contest.TABLE)
        primary.execute("GRANT pg_monitor TO app")  # to others the replicas are hidden
        standby = Standby(primary)
        try:
            positions = Positions(primary)
            with positions.noted(), slowed(standby.replayer()):
                watched = watch(words, directory, may_exit=(0, EXIT_STOPPED))
        finally:
            standby.stop()
    chunks = [told for _, told in watched.events if told["event"] == "chunk"]
    longest = max(told["seconds"] for told in chunks)
    lags = positions.lags(watched.started, watched.ended)
    rows = sum(told["changed"] for told in chunks)
    for moment, told in watched.events:
        if told["event"] == "throttled":
            print(f"{moment - watched.started:6.1f} s: {told['text']}")
    print(
        f"PostgreSQL, a replica that replays for a tenth of the time: {rows:,} rows in"
        f" {watched.seconds:.0f} s; lag {max(lags):.2f} s at most, goal"
        f" {options.limit:g} s and a chunk ({longest:.2f} s)"
    )


if __name__ == "__main__":
    try:
        main()
    except CommandFailed as error:
        sys.exit(f"error: {error}")
