"""A process that has imported what a command will, and forks for each command.

The command has its own session, directory, environment and streams, and runs a module as
`python -m` does, or a script as its `#!` line does. A supervisor, forked as well, waits for it and
tells how it ended. tests/forked.py starts zygotes; tests/shim.py asks them for commands.
"""

from __future__ import annotations

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
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.shim import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIBRARIES = (
    *("alembic.__main__", "alembic.command", "alembic.autogenerate.api", "alembic.ddl"),
    *("logging.config", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.sqlite.aiosqlite"),
    *("sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.mysql.pymysql"),
    *("psycopg", "pymysql", "aiosqlite", "asyncpg"),
)


def main() -> None:
    number, *modules = sys.argv[1:]
    listener = socket.socket(fileno=int(number))
    wait_for_a_client(listener)  # there may be none
    import_beforehand(modules)
    asked, streams = serve(listener)
    become(asked, streams)
    if is_script(asked["program"]):
        runpy.run_path(asked["program"], run_name="__main__")
    else:
        runpy.run_module(asked["program"], run_name="__main__", alter_sys=True)


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


def wait_for_a_client(listener: socket.socket) -> None:
    """Return when there is one; end when standard input does, and so pytest."""
    readable, _, _ = select.select([listener, sys.stdin], [], [])
    if sys.stdin in readable:
        os._exit(0)


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each command asked for; returns in the command's process, and nowhere else."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    while True:
        wait_for_a_client(listener)
        client, _ = listener.accept()
        with client:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                return begin(client)


def begin(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork the command, and tell its pid; returns in its process. This one supervises it."""
    asked, streams = receive(client)
    pid = os.fork()
    if pid != 0:
        for fd in streams:
            os.close(fd)
        supervise(pid, client)
    os.setsid()
    client.sendall(f"{os.getpid()}\n".encode())
    return asked, streams


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and the command's three standard streams."""
    head, streams, _, _ = socket.recv_fds(client, LENGTH_BYTES, 3)
    with client.makefile("rb") as rest:
        message = rest.read(int.from_bytes(head, "big"))
    return json.loads(message), streams


def supervise(pid: int, client: socket.socket) -> None:
    """Tell how the command ended, and end."""
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        client.sendall(f"{status}\n".encode())
    os._exit(0)


def become(asked: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Make this process what the command's would be when Python has started."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, max(streams) + 1)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through=True)  # PYTHONUNBUFFERED comes too late
    program, directory = asked["program"], asked["directory"]
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    first = str(Path(program).parent) if is_script(program) else directory
    paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *paths, *(path for path in sys.path[1:] if path not in paths)]
    sys.argv = [program, *asked["arguments"]]
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()


def is_script(program: str) -> bool:
    """Whether it is a path, and no module's name."""
    return os.sep in program


if __name__ == "__main__":
    main()
