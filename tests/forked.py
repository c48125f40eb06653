"""Real commands without the half second in which Python imports them: zygotes fork them.

Each module has a zygote of its own (tests/zygote.py), which is started for the first command, and
ends with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests import shim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent

# Alembic's and Flask's import nothing of ours: whether they do is what some tests are about.
IMPORTED: Mapping[str, Sequence[str]] = {
    "alembic": (),
    "backfill": ("backfill",),
    "flask": ("flask.cli", "flask_migrate", "flask_sqlalchemy"),
}


def zygote_for(module: str) -> Zygote:
    """This process's zygote for `python -m MODULE`."""
    if module not in _ZYGOTES:
        _ZYGOTES[module] = Zygote(IMPORTED[module])
        atexit.register(_ZYGOTES[module].close)
    return _ZYGOTES[module]


_ZYGOTES: dict[str, Zygote] = {}


def write_shims(folder: Path) -> None:
    """Write programs named `alembic`, `backfill` and `flask` that have zygotes run the real ones.

    They are for a PATH. What a shell starts with `&` they start from nothing.
    """
    for name in IMPORTED:
        program = str(Path(sys.executable).parent / name)
        words = [sys.executable, "-ISE", shim.__file__, zygote_for(name).address, program]
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        file.chmod(0o755)


class Zygote:
    """A process that forks commands, and ends when this one does."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="backfill-zygote-")
        self.address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(listener.fileno()), *modules],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,  # its end is ours
                start_new_session=True,  # Ctrl-C is pytest's
                pass_fds=[listener.fileno()],
            )

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run` with captured output and nothing to read.

        Raises:
            subprocess.TimeoutExpired: it was killed for taking longer than `timeout` seconds.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            command = Forked(self, module, arguments, directory, environment, out, err)
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.end()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command.args, code, out.read(), err.read())


class Forked:
    """A command in a session of its own, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        zygote: Zygote,
        module: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        out: IO[str],
        err: IO[str],
    ) -> None:
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        with Path(os.devnull).open() as nothing:
            self._supervisor = shim.ask(
                zygote.address,
                module,
                list(arguments),
                str(directory),
                dict(environment),
                [stream.fileno() for stream in (nothing, out, err)],
            )
        self._received = b""
        self.pid = int(self._line(None))

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired` after so many seconds."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(int(self._line(timeout)))
            self._supervisor.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Does nothing when it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and nothing that it has started."""
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill it and all it has started; does nothing when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def _line(self, timeout: float | None) -> bytes:
        while b"\n" not in self._received:
            if not select.select([self._supervisor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            received = self._supervisor.recv(100)
            if not received:
                raise RuntimeError("the zygote has ended; its standard error says why")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line
