"""Workers in processes of their own, for transforms that keep a processor busy.

A process is given no objects but where the project is: it loads the declaration as the command
did, claims key ranges and walks them. The database is the broker, as between machines; besides,
the processes share the command's budget, and each has a pipe of its own for its events: one that
is killed in the middle of a message keeps no lock that others wait for.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, cast

from backfill import retries
from backfill.budget import Budget, Stopped
from backfill.dialects import Limits, dialect_for
from backfill.discovery import discover, named
from backfill.errors import BackfillError, ConfigurationError, LeaseLost, WorkerFailed
from backfill.failures import describe
from backfill.overview import looking_at
from backfill.project import load_all
from backfill.runs import Status
from backfill.speed.collector import throttled
from backfill.speed.pacing import OF_THE_RUN, Pace, gist
from backfill.store import Store
from backfill.threads import work_in_threads
from backfill.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from backfill.budget import Shared
    from backfill.configuration import Origin
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.reporters import Event, Reporter
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.speed.throttles import Throttle

_LOOK_SECONDS = 0.1
_LAST_SECONDS = 15.0
"""How long the others may take for their chunks after one has died: it may have kept a lock."""
_DIED = "a worker process died (exit code {code}); what it committed stays: run again to go on"


@dataclass(frozen=True, slots=True)
class _Task:
    origin: Origin
    run: Run
    settings: Settings
    limits: Limits


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended; an exception would bring along what cannot be sent."""

    kind: type[Exception] | None = None
    text: str = ""
    status: Status = Status.FAILED


def work_in_processes(
    origin: Origin | None,
    run: Run,
    settings: Settings,
    limits: Limits,
    budget: Budget,
    report: Reporter,
) -> None:
    """Let `settings.processes` processes walk what is free of a run.

    Raises Stopped, LeaseLost, or WorkerFailed for anything else that ended one of them.
    """
    if origin is None:
        raise ConfigurationError(
            "`processes` needs a project that each process can load: run it by the command line."
        )
    context = multiprocessing.get_context("spawn")  # a fork would inherit connections and locks
    shared = budget.share(context)
    task = _Task(origin, run, settings, limits)
    pipes = [context.Pipe(duplex=False) for _ in range(settings.processes)]
    processes = [
        context.Process(target=_work, args=(task, shared, writer), daemon=True)
        for _, writer in pipes
    ]
    ends: list[_End] = []
    listener = Thread(target=_listen, args=([r for r, _ in pipes], report, ends), daemon=True)
    listener.start()
    try:
        for process, (_, writer) in zip(processes, pipes, strict=True):
            process.start()
            writer.close()  # so that its end is the end of the pipe
        _wait(processes, budget, shared)
    finally:
        for _, writer in pipes:
            writer.close()
        listener.join()
        budget.take_over(shared)
    _raise_worst(ends, processes)


def _listen(readers: list[Connection[Any, Any]], report: Reporter, ends: list[_End]) -> None:
    """Pass events on, until every pipe has ended; what all say of the run is told once."""
    told: dict[str, str] = {}
    while readers:
        for reader in cast("list[Connection[Any, Any]]", wait(readers)):
            try:
                message = reader.recv()
            except (EOFError, OSError):  # also in the middle of a message: it was killed
                readers.remove(reader)
                continue
            if isinstance(message, _End):
                ends.append(message)
            else:
                _pass_on(message, report, told)


def _pass_on(event: Event, report: Reporter, told: dict[str, str]) -> None:
    said = gist(event.text) if event.what == "throttled" else event.text
    if event.what not in OF_THE_RUN or told.get(event.what) != said:
        report(event)
    told[event.what] = said


def _wait(processes: Sequence[BaseProcess], budget: Budget, shared: Shared) -> None:
    """Wait until all have ended, and hand on the wish to stop."""
    running = list(processes)
    died_at = None
    while running:
        wait([process.sentinel for process in running], timeout=_LOOK_SECONDS)
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in processes):
            died_at = died_at or time.monotonic()
            if time.monotonic() - died_at > _LAST_SECONDS:
                for process in running:
                    process.kill()  # the database rolls back
        if budget.stop.is_set() or died_at is not None:
            shared.stop.set()


def _raise_worst(ends: Sequence[_End], processes: Sequence[BaseProcess]) -> None:
    died = [process.exitcode for process in processes if process.exitcode]
    if died:
        raise WorkerFailed(_DIED.format(code=died[0]), Status.FAILED)
    for kind in (WorkerFailed, LeaseLost, Stopped):
        for end in ends:
            if end.kind is kind:
                raise _error(end)


def _error(end: _End) -> Exception:
    if end.kind is LeaseLost:
        return LeaseLost(0)
    return Stopped(end.text) if end.kind is Stopped else WorkerFailed(end.text, end.status)


# -- in a process of its own -----------------------------------------------------------


class _Sender:
    """Sends the events of a process's threads, one after the other."""

    def __init__(self, writer: Connection[Any, Any]) -> None:
        self._writer = writer
        self._lock = Lock()

    def __call__(self, message: Event | _End) -> None:
        with self._lock:
            self._writer.send(message)


def _work(task: _Task, shared: Shared, writer: Connection[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Thread(target=_die_with_the_command, daemon=True).start()
    sys.stdout = sys.stderr  # the other one is the command's
    send = _Sender(writer)
    with ExitStack() as stack:
        send(_ended(task, Budget(shared=shared), send, stack))


def _die_with_the_command() -> None:
    """A command that was killed leaves nobody behind; the database rolls back."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _ended(task: _Task, budget: Budget, send: _Sender, stack: ExitStack) -> _End:
    dialect = None
    try:
        (project,) = load_all(task.origin, stack)
        dialect = dialect_for(project.engine)
        (one,) = named(discover(project.script, project.applied), [task.run.name])
        gc.freeze()
        dialect.call(_walk, task, one, dialect, budget, send)
    except Stopped as stopped:
        return _End(Stopped, str(stopped) or budget.reason)
    except LeaseLost:
        return _End(LeaseLost)
    except Exception as error:
        budget.break_off()
        return _failed(error, dialect)
    return _End()


def _walk(task: _Task, one: Declared, dialect: Dialect, budget: Budget, send: _Sender) -> None:
    with looking_at(one.declaration, dialect) as (_, target, _):
        store = Store(dialect)

    run, how = task.run, task.settings

    def watch(settings: Settings) -> AbstractContextManager[Throttle]:
        return throttled(target, store, run, settings, send)

    paced = Pace(store, run, how, send, watch, company_nice=dialect.company_nice)
    with store.kept_open(), paced as pace:

        def new_worker() -> Worker:
            return Worker(target, store, run, pace, task.limits, budget, send, waits=False)

        work_in_threads(new_worker, how.workers, budget)


def _failed(error: Exception, dialect: Dialect | None) -> _End:
    if dialect is None:
        why = error if isinstance(error, BackfillError) else type(error).__name__
        return _End(WorkerFailed, f"a worker process could not load the project: {why}")
    text = str(error) if isinstance(error, BackfillError) else describe(error, dialect)
    return _End(WorkerFailed, text, retries.status_after(error, dialect.error_kind))
