"""A real Alembic project in a temporary directory, driven by real commands in subprocesses."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from textwrap import dedent
from typing import TYPE_CHECKING

import alembic.command
import alembic.config

from tests.forked import REPOSITORY, Forked, zygote_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

TIMEOUT_SECONDS = 60.0

REVISION = '''\
"""{message}"""

import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}


def upgrade():
    pass


def downgrade():
    pass


'''


class Started:
    """A running command. It writes to files, since a full pipe would block it.

    The rest is what `subprocess.Popen` and `Forked` have in common.
    """

    def __init__(self, logs: Path) -> None:
        self.stdout_path = logs.with_suffix(".out")
        self.stderr_path = logs.with_suffix(".err")

    def read_stdout(self) -> str:
        """What it has printed so far."""
        return self.stdout_path.read_text()

    def read_stderr(self) -> str:
        """What it has logged so far."""
        return self.stderr_path.read_text()


class StartedByFork(Started, Forked):
    """`backfill`, forked from its zygote."""

    def __init__(
        self, arguments: tuple[str, ...], directory: Path, logs: Path, variables: Mapping[str, str]
    ) -> None:
        Started.__init__(self, logs)
        zygote, ours = zygote_for("backfill"), environment() | dict(variables)
        with self.stdout_path.open("w") as out, self.stderr_path.open("w") as err:
            Forked.__init__(self, zygote, "backfill", arguments, directory, ours, out, err)


class StartedAnew(Started, subprocess.Popen[str]):
    """Any command, from nothing."""

    def __init__(
        self,
        command: list[str],
        directory: Path,
        logs: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        Started.__init__(self, logs)
        with self.stdout_path.open("w") as out, self.stderr_path.open("w") as err:
            subprocess.Popen.__init__(
                self,
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                cwd=directory,
                env=environment() | dict(variables or {}),
                start_new_session=True,  # so that end() reaches its workers too
            )

    def end(self) -> None:
        """Kill it and all it has started; does nothing when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@dataclass
class AlembicProject:
    """What `alembic init` makes, with the database's URL filled in."""

    directory: Path
    started: list[Started] = field(default_factory=list)

    starts_anew = False
    """Whether start() lets Python start from nothing, as users' commands do."""

    @classmethod
    def create(cls, directory: Path, url: str) -> AlembicProject:
        directory.mkdir(parents=True)
        project = cls(directory)
        config = alembic.config.Config(project.ini)
        with contextlib.redirect_stdout(io.StringIO()):
            alembic.command.init(config, str(directory / "migrations"))
        # As `alembic init migrations` writes it, instead of our absolute path.
        project.set_option("script_location", "%(here)s/migrations")
        project.set_url(url)
        return project

    @property
    def ini(self) -> Path:
        return self.directory / "alembic.ini"

    @property
    def versions(self) -> Path:
        return self.directory / "migrations" / "versions"

    def set_url(self, url: str) -> None:
        self.set_option("sqlalchemy.url", url.replace("%", "%%"))

    def set_option(self, name: str, value: str) -> None:
        """Replace a line of alembic.ini; a percent sign in the value must be doubled already."""
        line = rf"(?m)^{re.escape(name)} = .*$"
        text, count = re.subn(line, lambda _: f"{name} = {value}", self.ini.read_text())
        if count != 1:
            raise ValueError(f"{self.ini} has {count} lines for {name}, not 1")
        self.ini.write_text(text)

    def revision(
        self, revision: str, *, down: str | None = None, body: str = "", message: str = "A test."
    ) -> Path:
        """Write a revision; `body` replaces its empty upgrade and downgrade and adds classes."""
        head = REVISION.format(message=message, revision=revision, down=down)
        return self.write(f"migrations/versions/{revision}.py", head + dedent(body))

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project, such as `migrations/backfills/names.py`."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    def alembic(
        self, *arguments: str, check: bool = True, timeout: float = TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run Alembic's own command to its end; raises if it fails, unless told not to check."""
        done = self._run("alembic", arguments, timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"alembic {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
        return done

    def backfill(
        self, *arguments: str, timeout: float = TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run our command to its end, whatever its exit code."""
        return self._run("backfill", arguments, timeout)

    def start(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Started:
        """Start our command and return at once, for tests that kill or stop it."""
        logs = self.directory / f"started-{len(self.started) + 1}"
        variables = variables or {}
        if self.starts_anew or "PYTHONPATH" in variables:  # which may change what is imported
            words = command("backfill", arguments)
            self.started.append(StartedAnew(words, self.directory, logs, variables))
        else:
            self.started.append(StartedByFork(arguments, self.directory, logs, variables))
        return self.started[-1]

    def __enter__(self) -> AlembicProject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.started:
            process.end()

    def _run(
        self, module: str, arguments: tuple[str, ...], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        return zygote_for(module).run(module, arguments, self.directory, environment(), timeout)


def command(module: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Ours, with this checkout's package and without what would change how Python runs."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return ours | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), ours.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",  # a killed process takes its buffers with it
        "PYTHONDONTWRITEBYTECODE": "1",  # else a revision rewritten within a second stays old
    }
