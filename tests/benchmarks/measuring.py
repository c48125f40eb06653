"""One command in a process of its own: what it told, how long it took and what it used."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.projects import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A process's ru_maxrss begins with the memory of the one that forked it, which is ours; this one
# is smaller than any Python that has imported something.
LAUNCHER = """
import json, os, sys

result, *command = sys.argv[1:]
pid = os.posix_spawn(command[0], command, os.environ)
_, status, usage = os.wait4(pid, 0)
with open(result, "w") as file:
    cpu_seconds = usage.ru_utime + usage.ru_stime
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_maxrss, cpu_seconds], file)
"""


class CommandFailed(Exception):
    """A command exited with an error."""


@dataclass(frozen=True)
class Watched:
    """A process that has ended, and the lines of JSON that it printed, each with its moment."""

    started: float
    ended: float
    events: Sequence[tuple[float, Mapping[str, Any]]]
    peak_mb: float
    cpu_seconds: float
    """With those of the processes that it started itself."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    def moment(self, event: str) -> float:
        """When an event was first told."""
        return next(moment for moment, told in self.events if told["event"] == event)


def watch(command: Sequence[str], directory: Path, *, may_exit: Sequence[int] = (0,)) -> Watched:
    """Run a command that prints its events; raises if it exits with another code than these."""
    with (
        tempfile.TemporaryDirectory(prefix="backfill-") as folder,
        tempfile.TemporaryFile("w+") as errors,
    ):
        result = Path(folder) / "result.json"
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(result), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=directory,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            lines = [(time.perf_counter(), line) for line in process.stdout]
        ended = time.perf_counter()
        code, peak_kb, cpu_seconds = json.loads(result.read_text(encoding="utf-8"))
        if code not in may_exit:
            errors.seek(0)
            told = "".join(line for _, line in lines[-3:])
            raise CommandFailed(f"{' '.join(command)}: exit {code}\n{told}{errors.read()}")
    events = [(moment, json.loads(line)) for moment, line in lines]
    return Watched(started, ended, events, peak_kb / 1024, cpu_seconds)


def note(text: str) -> None:
    """Tell how it goes, apart from the results."""
    print(text, file=sys.stderr, flush=True)
