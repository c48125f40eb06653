"""Canaries: words that are in a password or in a row, looked for wherever a command could leave
them: what it prints and logs, its processes' titles, and every column of the state tables."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import sqlalchemy as sa

from backfill import tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.projects import AlembicProject

IN_ROWS = "kanarie7f3a"
"""A part of every value that nobody may be shown."""
_LOOKS = 0.05


def password_canary(url: str) -> str:
    """The part of a test server's password that reads the same in every quoting."""
    password = sa.make_url(url).password
    assert password is not None
    found = password.rpartition("/")[2]
    assert len(found) >= 16
    return found


@dataclass
class Cage:
    """Runs a project's commands, and says where a canary has got out."""

    project: AlembicProject
    words: Sequence[str]
    engine: sa.Engine | None = None
    """Of the database whose state tables are looked through."""
    state_schema: str | None = None
    escapes: list[str] = field(default_factory=list)
    heard: str = ""
    """All that was printed: what a test is to find in there was not simply silent."""
    titles: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.project.starts_anew = True  # a fork has its zygote's title

    def run(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, looking at its title and those of its children meanwhile."""
        process = self.project.start(*arguments)
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"backfill {' '.join(arguments)} does not end")
            self._see_titles(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOKS)
        said = process.read_stdout(), process.read_stderr()
        self.listen(f"backfill {' '.join(arguments)}", *said)
        return subprocess.CompletedProcess(process.args, process.returncode, *said)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the quickest way there is: for what it says, whatever its title is."""
        done = self.project.backfill(*arguments)
        self.listen(f"backfill {' '.join(arguments)}", done.stdout, done.stderr)
        return done

    def listen(self, what: str, *texts: str) -> None:
        """Look for canaries in what a command has said."""
        for text in texts:
            self.heard += text
            self.escapes += [f"{what}: {line}" for line in text.splitlines() if self.has(line)]

    def has(self, text: str) -> bool:
        return any(word in text for word in self.words)

    def check(self) -> None:
        """No canary is anywhere, the state tables included."""
        if self.engine is not None:
            self.escapes += list(self._in_state(self.engine))
        if self.escapes:
            raise AssertionError("\n".join(["these have got out:", *self.escapes]))

    def _see_titles(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                title = " ".join(one.cmdline())
                if title not in self.titles and self.has(title):
                    self.escapes.append(f"title: {title}")
                self.titles.add(title)

    def _in_state(self, engine: sa.Engine) -> Iterator[str]:
        inspector = sa.inspect(engine)
        for table in tables.metadata.sorted_tables:
            if not inspector.has_table(table.name, self.state_schema):
                continue
            found = sa.Table(
                table.name, sa.MetaData(), schema=self.state_schema, autoload_with=engine
            )
            with engine.connect() as connection:
                for row in connection.execute(sa.select(found)).mappings():
                    for column, value in row.items():
                        if self.has(str(value)):
                            yield f"{table.name}.{column}: {value}"
