"""PgBouncer before a test's database, in transaction mode: each transaction may be on another
session, and a session is everybody's in turn.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.databases import (
    GUARDIAN,
    START_SECONDS,
    Account,
    clean_environment,
    find_program,
    free_port,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Database

SETTINGS = """\
[databases]
* = host={server} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {sessions}
"""


@contextmanager
def pgbouncer(database: Database, sessions: int) -> Iterator[Database]:
    """The same database through a pooler that has so many sessions to lend; raises Unavailable."""
    program = find_program("pgbouncer")
    url = sa.make_url(database.url)
    directory = Path(tempfile.mkdtemp(prefix="backfill-"))
    users, settings, port = directory / "users", directory / "settings", free_port()
    users.write_text(f'"{url.username}" "{url.password}"\n')
    settings.write_text(
        SETTINGS.format(
            server=url.host, server_port=url.port, port=port, users=users, sessions=sessions
        )
    )
    account = Account.without_root()  # PgBouncer refuses to run as root
    for path in (directory, users, settings):
        os.chown(path, *account)
    # Runs as long as pytest does at most, like the servers; nothing in it is worth an orderly end.
    command = [directory, signal.SIGKILL.value, *account, program, settings]
    with (directory / "log").open("wb") as log:
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARDIAN, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=clean_environment(),
            start_new_session=True,
        )
    try:
        _wait_until_it_listens(guardian, port, directory / "log")
        yield replace(database, url=url.set(port=port).render_as_string(hide_password=False))
    finally:
        guardian.communicate(b"x", timeout=START_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_it_listens(guardian: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if guardian.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PgBouncer does not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)
