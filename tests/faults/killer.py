"""`backfill` that notes each statement and COMMIT in a file, and may kill itself at one of them.

python -m tests.faults.killer RECORD [--at NAME --moment before|during|after] -- run …
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import defaultdict
from threading import Thread
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from backfill.cli import cli
from tests.faults.points import commit_of, name_of


class Killer:
    """Sees what every engine of this process sends."""

    def __init__(self, record: str, at: str | None, moment: str, delay: float) -> None:
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._at = at
        self._moment = moment
        self._delay = delay
        self._statements: dict[int, list[str]] = defaultdict(list)
        """Names of the statements of each connection's open transaction."""

    def watch(self) -> None:
        """Look at every engine there will be."""
        sa.event.listen(sa.Engine, "before_cursor_execute", self._before)
        sa.event.listen(sa.Engine, "after_cursor_execute", self._after)
        dialects: Any = DefaultDialect
        do_commit, do_rollback = dialects.do_commit, dialects.do_rollback

        def commit(dialect: DefaultDialect, connection: Any) -> None:
            name = commit_of(self._statements.pop(_identity(connection), []))
            self._pass(name, "before")
            self._pass(name, "during")
            do_commit(dialect, connection)
            self._pass(name, "after")

        def rollback(dialect: DefaultDialect, connection: Any) -> None:
            self._statements.pop(_identity(connection), None)
            do_rollback(dialect, connection)

        dialects.do_commit, dialects.do_rollback = commit, rollback

    def _before(self, connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        name = name_of(statement)
        self._statements[_identity(connection.connection)].append(name)
        self._pass(name, "before")

    def _after(self, _connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        self._pass(name_of(statement), "after")

    def _pass(self, name: str, moment: str) -> None:
        line = f"{time.time():.4f} {os.getpid()} {moment} {name}\n"
        os.write(self._record, line.encode())
        if (name, moment) != (self._at, self._moment):
            return
        if moment == "during":
            Thread(target=_die_after, args=(self._delay,), daemon=True).start()
        else:
            _die_after(0)


def _identity(connection: Any) -> int:
    return id(getattr(connection, "dbapi_connection", connection))


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("record")
    parser.add_argument("--at")
    parser.add_argument("--moment", default="before")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("command", nargs="+")
    options = vars(parser.parse_args())
    command = options.pop("command")
    Killer(**options).watch()
    cli(command, prog_name="backfill")


if __name__ == "__main__":
    main()
