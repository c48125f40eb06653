"""Real commands without the half second in which Python imports them.

A zygote is a process that has imported what a command will, and forks for each command: the child
has its own session, directory, environment and output, and runs the module as `python -m` does.
A supervisor, forked as well, waits for the command and tells how it ended. Commands that a test
wants to be started from nothing are none of the zygote's business (`projects.Started`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent

LIBRARIES = (
    *("alembic.__main__", "alembic.command", "alembic.autogenerate.api", "alembic.ddl"),
    *("logging.config", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.sqlite.aiosqlite"),
    *("sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.mysql.pymysql"),
    *("psycopg", "pymysql", "aiosqlite", "asyncpg"),
)

# Alembic's and Flask's import nothing of ours: whether they do is what some tests are about.
IMPORTED: Mapping[str, Sequence[str]] = {
    "alembic": (),
    "backfill": ("backfill",),
    "flask": ("flask.cli", "flask_migrate", "flask_sqlalchemy"),
}

LENGTH_BYTES = 8


def zygote_for(module: str) -> Zygote:
    """This process's zygote for `python -m MODULE`."""
    if module not in _ZYGOTES:
        _ZYGOTES[module] = Zygote(IMPORTED[module])
        atexit.register(_ZYGOTES[module].close)
    return _ZYGOTES[module]


_ZYGOTES: dict[str, Zygote] = {}


class Zygote:
    """A process that forks commands, and ends when this one does."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._ours, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno()), *modules],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is pytest's
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        self._ours.close()
        self._process.wait()

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
            command = self.start(module, arguments, directory, environment, out, err)
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.end()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command.args, code, out.read(), err.read())

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        out: IO[str],
        err: IO[str],
    ) -> Forked:
        """Like `subprocess.Popen` in a session of its own, writing to these files."""
        asked = {
            "module": module,
            "arguments": list(arguments),
            "directory": str(directory),
            "environment": dict(environment),
        }
        message = json.dumps(asked).encode()
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            fds = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._ours, [len(message).to_bytes(LENGTH_BYTES, "big")], fds)
            self._ours.sendall(message)
        return Forked([sys.executable, "-m", module, *arguments], ours)


class Forked:
    """A command that a zygote has forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, args: Sequence[str], supervisor: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._supervisor = supervisor
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
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it and all it has started; does nothing when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(self.pid, signal.SIGKILL)  # too young to lead a group
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


def serve(control: socket.socket) -> tuple[dict[str, Any], int, int]:
    """Fork for each command asked for; returns in the command's process, and nowhere else."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    while True:
        head, fds, _, _ = socket.recv_fds(control, LENGTH_BYTES, 3)
        if not head:
            os._exit(0)  # pytest has ended
        asked = json.loads(_exactly(control, int.from_bytes(head, "big")))
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            with socket.socket(fileno=fds[0]) as answers:
                pid = os.fork()
                if pid != 0:
                    _supervise(pid, answers)
            return asked, fds[1], fds[2]
        for fd in fds:
            os.close(fd)


def _exactly(control: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += control.recv(count - len(received))
    return received


def _supervise(pid: int, answers: socket.socket) -> None:
    """Tell the pid and how it ended, and end."""
    with contextlib.suppress(BrokenPipeError):
        answers.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        answers.sendall(f"{status}\n".encode())
    os._exit(0)


def become(asked: Mapping[str, Any], out: int, err: int) -> None:
    """Make this process what the command's would be when Python has started."""
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, max(out, err) + 1)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through=True)  # PYTHONUNBUFFERED comes too late
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [
        asked["directory"],
        *paths,
        *(path for path in sys.path[1:] if path not in paths),
    ]
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()


def import_beforehand(modules: Sequence[str]) -> None:
    """Everything that a command may need. A driver that is missing is the test's matter."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in modules:
        path = getattr(importlib.import_module(name), "__path__", [])
        if name == "backfill":
            for found in pkgutil.walk_packages(path, "backfill."):
                if not found.name.endswith("__main__"):
                    importlib.import_module(found.name)
    gc.collect()
    gc.freeze()


def main() -> None:
    control, *modules = sys.argv[1:]
    import_beforehand(modules)
    asked, out, err = serve(socket.socket(fileno=int(control)))
    become(asked, out, err)
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
