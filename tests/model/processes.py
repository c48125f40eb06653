"""A `backfill run` that goes on only when it is told to, and that can be killed, cut off or
disturbed at any statement. It runs in a thread of this process: to its database it is a process
like any other.

A process hands over where it holds nothing: before a transaction begins, and where it would sleep.
"""

from __future__ import annotations

import re
import sqlite3
from collections import deque
from contextlib import suppress
from contextvars import ContextVar, copy_context
from enum import Enum
from functools import partial
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
    from backfill.targets import Target

HANGS_SECONDS = 60
WAITS_SECONDS = 1.0
"""Who has not handed over by then waits for a lock, or the machine is very busy."""
LET_IN_SECONDS = 0.2
"""What somebody else needs, if he does not wait for a lock."""
OWNER: ContextVar[str] = ContextVar("OWNER", default="somebody:0:0:elsewhere")
"""Stands for the process in leases, which otherwise tell processes apart by their pid."""
_CHECKPOINT = re.compile(r"UPDATE\b.*\bbackfill_range SET `?cursor`?=", re.DOTALL)
COMMIT = "COMMIT"
CHECKPOINT = "COMMIT of a checkpoint"


class Fault(Enum):
    """What can happen to a process at a statement, before a COMMIT or after it."""

    KILL = "kill -9"
    LOSE = "the connection is lost"
    HOLD = "the connection is lost, and a COMMIT on its way arrives late"


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
        line: Line,
        declaration: type[Backfill],
        recording: Recording,
        now: Callable[[], int],
        **options: Any,
    ) -> None:
        self.name = name
        self.line = line
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.was_killed = False
        self.connections: list[Any] = []
        """The driver's own."""
        self.on_their_way: list[Any] = []
        """Connections that are lost for it, whose COMMIT the server has yet to get."""
        self.has_met = False
        """Whether the trouble that it was to meet has come."""
        self.proof_began: int | None = None
        """The step in which the last proof began."""
        self._declaration = declaration
        self._recording = recording
        self._now = now
        self._options = options
        self._go, self._yielded = Semaphore(0), Semaphore(0)
        self._open: set[int] = set()
        """Transactions that are open."""
        self._trouble: Fault | Callable[[], object] | None = None
        self._where: str | tuple[str, ...] = ""
        self._points_left = 0
        self._others: list[Thread] = []
        self._errors_of_others: list[BaseException] = []
        self._is_dead = False
        self._is_asked_to_stop = False
        self._thread = Thread(target=copy_context().run, args=(self._live,), daemon=True)
        self._thread.start()

    # -- what the machine does with it -----------------------------------------------------

    @property
    def has_ended(self) -> bool:
        return self.was_killed or self.result is not None or self.error is not None

    def advance(self, while_it_waits: Callable[[], object] = lambda: None) -> None:
        """Let it go on until it hands over again; `while_it_waits` is called if that takes long."""
        if self.has_ended:
            return
        self._go.release()
        if not self._yielded.acquire(timeout=WAITS_SECONDS):
            while_it_waits()
            if not self._yielded.acquire(timeout=HANGS_SECONDS):
                raise AssertionError(f"{self.name} hangs:\n{self._recording}")
        if self._errors_of_others:
            raise self._errors_of_others.pop()

    def hands_over_within(self, seconds: float) -> bool:
        """Whether it does, seen by whoever lets it go on."""
        is_in_time = self._yielded.acquire(timeout=seconds)
        if is_in_time:
            self._yielded.release()
        return is_in_time

    def meet(
        self,
        trouble: Fault | Callable[[], object],
        points: int = 0,
        *,
        where: str | tuple[str, ...] = "",
    ) -> None:
        """Let it meet trouble after so many more statements and commits, of those that begin with
        `where`: a fault, or what somebody else does at that moment, in a thread of his own."""
        self._trouble, self._points_left, self._where = trouble, points, where
        self.has_met = False

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
            for connection in self.connections:  # as the system does for a process that has died
                with suppress(self.line.engine.dialect.loaded_dbapi.Error):  # it was closed before
                    connection.close()
            self.was_killed = True
            self._recording.add(self.name, "is dead")
        except BaseException as error:
            self.error = error
            self._recording.add(self.name, f"ends: {error!r}")
        finally:
            self.line.process = None
            self._wait_for_others()
            self._yielded.release()

    def _run(self) -> Result:
        target = self.line.target(self._declaration)
        self.line.process = self
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
        self._wait_for_others()
        self._yielded.release()
        self._go.acquire()
        self._raise_if_dead()

    def pass_point(self, what: str) -> Fault | None:
        """Come past a statement or COMMIT: dies, or returns what else happens there."""
        self._raise_if_dead()
        self._recording.add(self.name, what)
        trouble = self._trouble
        if trouble is None or not what.startswith(self._where) or what.startswith("PRAGMA"):
            return None
        self._points_left -= 1
        if self._points_left >= 0:
            return None
        self._trouble, self.has_met = None, True
        if not isinstance(trouble, Fault):
            self._let_in(trouble)
            return None
        self._recording.add(self.name, f"!! {trouble.value}")
        self._is_dead = trouble is Fault.KILL
        self._raise_if_dead()
        return trouble

    def begins(self, connection: sa.Connection) -> None:
        self.hand_over()
        self._open.add(id(connection))

    def ends(self, connection: sa.Connection) -> None:
        self._open.discard(id(connection))

    def _raise_if_dead(self) -> None:
        if self._is_dead:
            raise Killed

    # -- somebody else, in the middle of a transaction ---------------------------------------

    def _let_in(self, action: Callable[[], object]) -> None:
        """Let somebody else do something; he may have to wait until our transaction has ended."""
        self._recording.add(self.name, "!! somebody else is at work")

        def act() -> None:
            try:
                action()
            except BaseException as error:
                self._errors_of_others.append(error)

        other = Thread(target=act, daemon=True)
        other.start()
        other.join(LET_IN_SECONDS)
        self._others.append(other)

    def _wait_for_others(self) -> None:
        while self._others:
            self._others.pop().join(HANGS_SECONDS)


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


class Line:
    """An engine whose statements and COMMITs are led past the process that uses it now."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.process: Process | None = None
        self._targets: dict[type[Backfill], Target] = {}
        self._checkpoints = set[int]()
        """Connections whose last statement was one."""
        sa.event.listen(engine, "connect", self._note)
        for what in ("begin", "commit", "rollback"):
            sa.event.listen(engine, what, partial(self._tell, what))
        dialect: Any = engine.dialect
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, partial(self._execute, getattr(dialect, name)))
        dialect.do_commit = partial(self._commit, dialect.do_commit)

    def target(self, declaration: type[Backfill]) -> Target:
        """Fit a declaration to the table, once: nothing can happen to whoever reads that."""
        if declaration not in self._targets:
            self._targets[declaration] = bound(self.engine, declaration)
        return self._targets[declaration]

    def _note(self, connection: Any, _record: Any) -> None:
        if self.process is not None:
            self.process.connections.append(connection)

    def _tell(self, what: str, connection: sa.Connection) -> None:
        if self.process is not None:
            (self.process.begins if what == "begin" else self.process.ends)(connection)

    def _execute(
        self, execute: Callable[..., Any], cursor: Any, text: str, *args: Any, **kwargs: Any
    ) -> Any:
        note = self._checkpoints.add if _CHECKPOINT.match(text) else self._checkpoints.discard
        note(id(cursor.connection))
        if self.process is not None and self.process.pass_point(text):
            _lose(cursor.connection)
        return execute(cursor, text, *args, **kwargs)

    def _commit(self, do_commit: Callable[[Any], None], connection: Any) -> None:
        process = self.process
        if process is None:
            do_commit(connection)
            return
        is_checkpoint = id(connection.dbapi_connection) in self._checkpoints
        fault = process.pass_point(CHECKPOINT if is_checkpoint else COMMIT)
        if fault is Fault.HOLD and not _is_file(connection):
            self._hold(connection, process)
        elif fault:
            _lose(connection.dbapi_connection)
        do_commit(connection)
        if process.pass_point("done: COMMIT"):
            _lose(connection.dbapi_connection)
            do_commit(connection)  # to see the driver's own error

    def _hold(self, connection: Any, process: Process) -> None:
        """Take the driver's connection away before its COMMIT, and leave a closed one instead."""
        process.connections.remove(connection.dbapi_connection)
        process.on_their_way.append(connection.dbapi_connection)
        dialect = self.engine.dialect
        arguments, options = dialect.create_connect_args(self.engine.url)
        connection.dbapi_connection = dialect.connect(*arguments, **options)
        connection.dbapi_connection.close()


def _is_file(connection: Any) -> bool:
    return isinstance(connection.dbapi_connection, sqlite3.Connection)


def _lose(connection: Any) -> None:
    """Cut a connection; where there is none, let the file be out of reach for a moment."""
    if not isinstance(connection, sqlite3.Connection):
        connection.close()
        return
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    raise error
