"""Two backfills on 336,776 real flights: kill one, run it again, then make the columns NOT NULL.

    python examples/flights/quickstart.py [--keep DIR] [--url URL]

Works on a copy of this folder with its own SQLite database, deleted at the end unless kept. With
--url it does the same in an empty PostgreSQL or MariaDB database, and leaves the tables there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SQLITE = "sqlite:///flights.sqlite3"
FLIGHTS = 336_776
KILL_AT = 0.4  # of the rows; the kill itself lands a little later
PATIENCE_SECONDS = 600.0


class BrokenPromise(Exception):
    """Something was not as this example says."""


@dataclass(frozen=True)
class Project:
    """A working copy of this folder, and the database that its alembic.ini names."""

    folder: Path
    engine: sa.Engine

    def run(self, *command: str) -> int:
        """Run a command as a person would, and say how long it took."""
        started = time.monotonic()
        process = self.start(command)
        try:
            code = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()  # does nothing to one that has ended
        print(f"({time.monotonic() - started:.1f} s, exit code {code})", flush=True)
        return code

    def must_run(self, *command: str) -> None:
        if code := self.run(*command):
            raise BrokenPromise(f"`{' '.join(command)}` ended with exit code {code}")

    def run_and_kill(self, *command: str) -> None:
        """Start a command and kill it, with SIGKILL, when enough departures are filled."""
        started = time.monotonic()
        process = self.start(command)
        try:
            while self.filled_share() < KILL_AT:
                if process.poll() is not None:
                    raise BrokenPromise(f"the run ended by itself, with {process.returncode}")
                if time.monotonic() - started > PATIENCE_SECONDS:
                    raise BrokenPromise("the run does not get on")
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        print(f"\nKilled (kill -9) after {time.monotonic() - started:.1f} s.", flush=True)

    def start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Print the command and start it, in this Python."""
        print(f"$ {' '.join(command)}", flush=True)
        program, *arguments = command
        module = [] if program == "python" else ["-m", program]
        return subprocess.Popen(
            [sys.executable, *module, *arguments],
            cwd=self.folder,
            env=environment(),
            # In a log, one stream keeps the lines in order; a terminal does so by itself.
            stderr=None if sys.stdout.isatty() else subprocess.STDOUT,
        )

    def filled_share(self) -> float:
        """The share of filled departures among some rows: cheap, so it does not slow the run."""
        sample = range(1, FLIGHTS, FLIGHTS // 50)
        query = sa.text("SELECT count(sched_dep_utc) FROM flights WHERE id IN :ids")
        query = query.bindparams(sa.bindparam("ids", list(sample), expanding=True))
        return self.number(query) / len(sample)

    def filled(self) -> int:
        return self.number(sa.text("SELECT count(sched_dep_utc) FROM flights"))

    def number(self, query: sa.TextClause) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def main() -> int:
    options = parse_arguments()
    started = time.monotonic()
    try:
        if importlib.util.find_spec("backfill") is None:
            raise BrokenPromise("backfill is not installed here: `pip install .` in the checkout")
        with working_copy(options.keep) as folder:
            walk_through(open_project(folder, options.url))
    except (BrokenPromise, sa.exc.DBAPIError, subprocess.TimeoutExpired) as error:
        print(f"\nNOT AS PROMISED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    if options.keep:
        print(f"The project is in {options.keep}: try `backfill status` there.")
    return 0


def walk_through(project: Project) -> None:
    heading("1. A table with 336,776 real flights")
    project.must_run("alembic", "upgrade", "0001")

    heading("2. The next release needs three more columns: add them, nullable")
    project.must_run("alembic", "upgrade", "0002")

    heading("3. Fill them, and lose the process in the middle")
    project.must_run("backfill", "plan")
    project.run_and_kill("backfill", "run")
    filled = project.filled()
    print(f"{filled:,} of {FLIGHTS:,} departures are filled ({filled / FLIGHTS:.0%}).")
    if not 0 < filled < FLIGHTS:
        raise BrokenPromise("the kill was meant to land in the middle of the second backfill")

    heading("4. Half done is not done: revision 0003 is refused")
    project.must_run("backfill", "status")
    if project.run("alembic", "upgrade", "head") == 0:
        raise BrokenPromise("revision 0003 did not wait for the backfills")

    heading("5. The same command goes on; then the columns become NOT NULL")
    project.must_run("backfill", "run")
    project.must_run("alembic", "upgrade", "head")

    heading("6. Is it right? Checked without backfill")
    project.must_run("python", "check.py")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave it there")
    parser.add_argument("--url", default=SQLITE, help="an empty database (default: SQLite)")
    return parser.parse_args()


@contextmanager
def working_copy(keep: Path | None) -> Iterator[Path]:
    """Copy this folder to `keep`, or to a temporary folder that is deleted in the end."""
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise BrokenPromise(f"{keep} is not empty")
    folder = keep or Path(tempfile.mkdtemp(prefix="flights-"))
    try:
        ignored = shutil.ignore_patterns("__pycache__", "*.sqlite3*")
        shutil.copytree(HERE, folder, ignore=ignored, dirs_exist_ok=True)
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def open_project(folder: Path, url_text: str) -> Project:
    """Write the URL into the copy of alembic.ini, where a percent sign is doubled."""
    ini = folder / "alembic.ini"
    line = f"sqlalchemy.url = {url_text.replace('%', '%%')}"
    ini.write_text(re.sub(r"(?m)^sqlalchemy\.url = .*$", lambda _: line, ini.read_text()))
    url = sa.make_url(url_text)
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(folder / url.database))
    engine = sa.create_engine(url)
    if taken := {"flights", "alembic_version"}.intersection(sa.inspect(engine).get_table_names()):
        raise BrokenPromise(f"the database is not empty: it has {', '.join(sorted(taken))}")
    return Project(folder, engine)


def environment() -> dict[str, str]:
    """Ours, but what a killed process printed is not lost, and no other project is meant."""
    kept = {name: value for name, value in os.environ.items() if name != "ALEMBIC_CONFIG"}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def heading(text: str) -> None:
    print(f"\n== {text} ==", flush=True)


if __name__ == "__main__":
    sys.exit(main())
