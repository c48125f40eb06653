"""A `backfill run` that goes on only when it is told to, and that can be killed or cut off at any
statement. It runs in a thread of this process: to its database it is a process like any other.

A process hands over where it holds nothing: before a transaction begins, and where it would sleep.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextvars import ContextVar, copy_context
from enum import Enum
from threading import Lock, Semaphore, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import settings
from backfill.budget import Budget, Shared
from backfill.runner import Runner
from backfill.store import Store
from tests.integration.support import Recorder, bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill import Backfill
    from backfill.runs import Result, Run

HANGS_SECONDS = 60
OWNER: ContextVar[str] = ContextVar("OWNER", default="somebody:0:0:elsewhere")
"""Stands for the process in leases, which otherwise tell processes apart by their pid."""


class Fault(Enum):
    """What can happen to a process at a statement, before a COMMIT or after it."""

    KILL = "kill -9"
    LOSE = "the connection is lost"


class Killed(BaseException):
    """Nothing in a process that is killed can handle it."""


class Recording:
    """The last events of all processes, for whoever has to understand a failure."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=200)

    def add(self, who: str, what: str) -> None:
        self._last.append(f"{who:>10}  {' '.join(what.split())[:3000]}")

    def __str__(self) -> str:
        return "\n".join(self._last)


class _Observed(Runner):
    """Tells when it begins to prove: later work need not be seen by it."""

    before_proof: Callable[[], None]

    def is_proved(self, run: Run) -> bool:
        self.before_proof()
        return super().is_proved(run)


class Process:
    """One simulated `backfill run`."""

    def __init__(
        self,
        name: str,
        engine: sa.Engine,
        declaration: type[Backfill],
        recording: Recording,
        now: Callable[[], int],
        **options: Any,
    ) -> None:
        self.name = name
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.was_killed = False
        self.connections: list[Any] = []
        """The driver's own."""
        self.proof_began: int | None = None
        """The step in which the last proof began."""
        self._engine = engine
        self._declaration = declaration
        self._recording = recording
        self._now = now
        self._options = options
        self._go, self._yielded = Semaphore(0), Semaphore(0)
        self._open: set[int] = set()
        """Transactions that are open."""
        self._fault: Fault | None = None
        self._points_left = 0
        self._is_dead = False
        self._is_asked_to_stop = False
        self._thread = Thread(target=copy_context().run, args=(self._live,), daemon=True)
        self._thread.start()

    # -- what the machine does with it -----------------------------------------------------

    @property
    def has_ended(self) -> bool:
        return self.was_killed or self.result is not None or self.error is not None

    def advance(self) -> None:
        """Let it go on until it hands over again."""
        if self.has_ended:
            return
        self._go.release()
        if not self._yielded.acquire(timeout=HANGS_SECONDS):
            raise AssertionError(f"{self.name} hangs:\n{self._recording}")

    def meet(self, fault: Fault, points: int) -> None:
        """Let it meet a fault after so many more statements and commits."""
        self._fault, self._points_left = fault, points

    def kill(self) -> None:
        """End it as it is."""
        self._is_dead = True
        while not self.has_ended:
            self.advance()

    def stop(self) -> None:
        """Ask it to finish its chunk and stop, as the first Ctrl-C does."""
        self._is_asked_to_stop = True

    # -- its own life ------------------------------------------------------------------------

    def _live(self) -> None:
        self._go.acquire()
        OWNER.set(f"{self.name}:1:0:elsewhere")
        try:
            self.result = self._run()
            self._recording.add(self.name, f"ends: {self.result}")
        except Killed:
            for connection in self.connections:
                connection.close()  # as the system does for a process that has died
            self.was_killed = True
            self._recording.add(self.name, "is dead")
        except BaseException as error:
            self.error = error
            self._recording.add(self.name, f"ends: {error!r}")
        finally:
            self._engine.dispose()
            self._yielded.release()

    def _run(self) -> Result:
        target = bound(self._engine, self._declaration)  # writes nothing: it may fail in peace
        _instrument(self._engine, self)
        how = settings.resolve(("the machine", self._options))
        counts = (SimpleNamespace(value=0) for _ in range(3))
        budget = Budget(shared=Shared(Lock(), _Stop(self), *counts, False, None))
        runner = _Observed(target, Store(target.dialect), how, budget, Recorder())
        runner.before_proof = self._begin_proof
        return runner.run()

    def _begin_proof(self) -> None:
        self.proof_began = self._now()

    def hand_over(self) -> None:
        """Wait until the machine lets it go on."""
        self._raise_if_dead()
        if self._open:
            return
        self._yielded.release()
        self._go.acquire()
        self._raise_if_dead()

    def pass_point(self, what: str) -> Fault | None:
        """Come past a statement or COMMIT: dies, or returns what else happens there."""
        self._raise_if_dead()
        self._recording.add(self.name, what)
        fault = self._fault
        if fault is None:
            return None
        self._points_left -= 1
        if self._points_left >= 0:
            return None
        self._fault = None
        self._recording.add(self.name, f"!! {fault.value}")
        self._is_dead = fault is Fault.KILL
        self._raise_if_dead()
        return fault

    def begins(self, connection: sa.Connection) -> None:
        self.hand_over()
        self._open.add(id(connection))

    def ends(self, connection: sa.Connection) -> None:
        self._open.discard(id(connection))

    def _raise_if_dead(self) -> None:
        if self._is_dead:
            raise Killed


class _Stop:
    """The flag on which a runner sleeps: here it hands over instead."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def is_set(self) -> bool:
        return self._process._is_asked_to_stop

    def set(self) -> None:
        self._process.stop()

    def wait(self, _seconds: float) -> bool:
        self._process.hand_over()
        return self.is_set()


def _instrument(engine: sa.Engine, process: Process) -> None:
    """Lead every statement and COMMIT of an engine past a process."""
    dialect: Any = engine.dialect
    sa.event.listen(engine, "connect", lambda raw, _record: process.connections.append(raw))
    sa.event.listen(engine, "begin", process.begins)
    sa.event.listen(engine, "commit", process.ends)
    sa.event.listen(engine, "rollback", process.ends)

    def statement(execute: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(cursor: Any, text: str, *args: Any, **kwargs: Any) -> Any:
            if process.pass_point(text):
                _lose(cursor.connection)
            return execute(cursor, text, *args, **kwargs)

        return wrapped

    def commit(do_commit: Callable[[Any], None]) -> Callable[[Any], None]:
        def wrapped(connection: Any) -> None:
            if process.pass_point("COMMIT"):
                _lose(connection.dbapi_connection)
            do_commit(connection)
            if process.pass_point("COMMIT is done"):
                _lose(connection.dbapi_connection)
                do_commit(connection)  # to see the driver's own error

        return wrapped

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, statement(getattr(dialect, name)))
    dialect.do_commit = commit(dialect.do_commit)


def _lose(connection: Any) -> None:
    """Cut a connection; where there is none, let the file be out of reach for a moment."""
    if not isinstance(connection, sqlite3.Connection):
        connection.close()
        return
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    raise error
