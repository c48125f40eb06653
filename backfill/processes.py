"""Workers in processes of their own, for transforms that keep a processor busy.

A process is given no objects but where the project is: it loads the declaration as the command
did, claims key ranges and walks them. The database is the broker, as between machines; besides,
the processes share the command's budget, and a queue that brings events to the reporter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING

from backfill import retries
from backfill.budget import Budget, Stopped
from backfill.collector import throttled
from backfill.dialects import Limits, dialect_for
from backfill.discovery import discover, named
from backfill.errors import BackfillError, ConfigurationError, LeaseLost, WorkerFailed
from backfill.failures import describe
from backfill.overview import looking_at
from backfill.pacing import OF_THE_RUN, Pace, gist
from backfill.project import load_all
from backfill.runs import Status
from backfill.store import Store
from backfill.threads import work_in_threads
from backfill.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.process import BaseProcess
    from multiprocessing.queues import Queue, SimpleQueue

    from backfill.budget import Shared
    from backfill.configuration import Origin
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.reporters import Event, Reporter
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.throttles import Throttle

_LOOK_SECONDS = 0.1
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
    events: Queue[Event | None] = context.Queue()
    ends: SimpleQueue[_End] = context.SimpleQueue()
    listener = Thread(target=_listen, args=(events, report), daemon=True)
    listener.start()
    task = _Task(origin, run, settings, limits)
    processes = [
        context.Process(target=_work, args=(task, shared, events, ends), daemon=True)
        for _ in range(settings.processes)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, budget, shared)
    finally:
        events.put(None)
        listener.join()
        budget.take_over(shared)
    _raise_worst([ends.get() for _ in processes if not ends.empty()], processes)


def _listen(events: Queue[Event | None], report: Reporter) -> None:
    """Pass events on; what all processes say of the run is told once."""
    told: dict[str, str] = {}
    while (event := events.get()) is not None:
        said = gist(event.text) if event.what == "throttled" else event.text
        if event.what not in OF_THE_RUN or told.get(event.what) != said:
            report(event)
        told[event.what] = said


def _wait(processes: Sequence[BaseProcess], budget: Budget, shared: Shared) -> None:
    """Wait until all have ended, and hand on the wish to stop."""
    running = list(processes)
    while running:
        wait([process.sentinel for process in running], timeout=_LOOK_SECONDS)
        running = [process for process in running if process.is_alive()]
        if budget.stop.is_set() or any(p.exitcode for p in processes):
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


def _work(
    task: _Task, shared: Shared, events: Queue[Event | None], ends: SimpleQueue[_End]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Thread(target=_die_with_the_command, daemon=True).start()
    with ExitStack() as stack:
        ends.put(_ended(task, Budget(shared=shared), events, stack))


def _die_with_the_command() -> None:
    """A command that was killed leaves nobody behind; the database rolls back."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _ended(task: _Task, budget: Budget, events: Queue[Event | None], stack: ExitStack) -> _End:
    dialect = None
    try:
        (project,) = load_all(task.origin, stack)
        dialect = dialect_for(project.engine)
        (one,) = named(discover(project.script, project.applied), [task.run.name])
        gc.freeze()
        dialect.call(_walk, task, one, dialect, budget, events)
    except Stopped as stopped:
        return _End(Stopped, str(stopped) or budget.reason)
    except LeaseLost:
        return _End(LeaseLost)
    except Exception as error:
        budget.break_off()
        return _failed(error, dialect)
    return _End()


def _walk(
    task: _Task, one: Declared, dialect: Dialect, budget: Budget, events: Queue[Event | None]
) -> None:
    with looking_at(one.declaration, dialect) as (_, target, _):
        store = Store(dialect)

    run, how = task.run, task.settings

    def watch(settings: Settings) -> AbstractContextManager[Throttle]:
        return throttled(target, store, run, settings, events.put)

    with store.kept_open(), Pace(store, run, how, events.put, watch) as pace:

        def new_worker() -> Worker:
            return Worker(target, store, run, pace, task.limits, budget, events.put, waits=False)

        work_in_threads(new_worker, how.workers, budget)


def _failed(error: Exception, dialect: Dialect | None) -> _End:
    if dialect is None:
        return _End(WorkerFailed, f"a worker process could not load the project: {error}")
    text = str(error) if isinstance(error, BackfillError) else describe(error, dialect)
    return _End(WorkerFailed, text, retries.status_after(error, dialect.error_kind))
