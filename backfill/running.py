"""What `backfill run`, `upgrade` and `failures --retry` do: runners, reporters and signals."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from backfill import overview, quarantine
from backfill.budget import Budget, Stopped
from backfill.dialects import PASSING
from backfill.errors import DeclarationError
from backfill.failures import describe
from backfill.reporters import Forgiving, JsonReporter, LogReporter, TerminalReporter
from backfill.runner import Runner, patience
from backfill.runs import Outcome
from backfill.speed.collector import throttled
from backfill.speed.pacing import Pace, gist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import TextIO

    from backfill.context import Context
    from backfill.discovery import Declared
    from backfill.reporters import Reporter
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.speed.throttles import Throttle
    from backfill.store import Store
    from backfill.targets import Target

EXIT_NOW = 3
"""The exit code of a second Ctrl-C: stopped, and resumable."""


class Runs:
    """Runs backfills one after the other, with one budget, and tells of them."""

    def __init__(
        self,
        options: dict[str, Any],
        budget: Budget,
        report: Reporter,
        *,
        accept_change: bool,
        again: bool = False,
    ) -> None:
        self.budget = budget
        self.report = report
        self._options = options
        self._accept_change = accept_change
        self._again = again

    def one(self, context: Context, one: Declared) -> Outcome:
        """Run a backfill, or go on with it."""
        return context.dialect.call(self._run, context, one)

    def _run(self, context: Context, one: Declared) -> Outcome:
        how, dialect = context.settings(one, self._options), context.dialect
        bind = patience(one.name, dialect, self.budget, how.retry_seconds, self.report)
        try:
            target = bind(context.target, one)
        except Stopped as stopped:
            return _not_begun(one, self.budget.reason or str(stopped))
        except DBAPIError as error:
            if dialect.error_kind(error) not in PASSING:
                raise
            return _not_begun(one, describe(error, dialect))
        except DeclarationError:
            if self._again or not overview.is_history(one, dialect):
                raise
            say(f"{one.name}: is complete; later revisions have changed what it was about")
            return Outcome.COMPLETE
        return self._go_on(
            Runner(target, context.store, how, self.budget, self.report, context.origin)
        )

    def _go_on(self, runner: Runner) -> Outcome:
        result = runner.run(accept_change=self._accept_change, again=self._again)
        if not result.was_reported:
            say(f"{runner.name}: {result.text}")
        return result.outcome


@contextmanager
def runs(
    options: dict[str, Any],
    *,
    limit: int | None,
    max_seconds: float | None,
    accept_change: bool,
    as_json: bool,
    again: bool = False,
) -> Iterator[Runs]:
    """Give what runs backfills for one command, until a signal or its budget stops it."""
    budget = Budget(limit, max_seconds)
    _stop_on_signals(budget)
    streams = sys.stdout, sys.stderr
    report = Forgiving(_reporter(as_json), lambda: _unheard(budget, streams))
    # What revisions and transforms print is no JSON.
    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    try:
        with aside:
            yield Runs(options, budget, report, accept_change=accept_change, again=again)
    finally:
        report.close()


def run_due(
    due: Sequence[tuple[Context, Declared]], runs: Runs, *, passes_over_cancelled: bool
) -> list[Outcome]:
    """Run backfills one after the other, until one fails or is stopped.

    One whose `depends_on` is not complete is not started; one that does not fit its table stops
    none but those that depend on it.
    """
    outcomes = []
    seen, complete = set[str](), set[str]()
    for context, one in due:
        if passes_over_cancelled and context.dialect.call(context.was_cancelled, one):
            say(f"{one.name}: was cancelled; `backfill run {one.name}` begins anew")
            outcomes.append(Outcome.FAILED)
            seen.add(one.name)
            continue
        unmet = None if complete.issuperset(one.depends_on) else context.unmet(one)
        if unmet is not None:
            say(f"{one.name}: waits for {unmet}")
            if seen.isdisjoint(one.depends_on):  # else their outcome is told already
                outcomes.append(Outcome.FAILED)
            seen.add(one.name)
            continue
        seen.add(one.name)
        try:
            outcomes.append(runs.one(context, one))
        except DeclarationError as refused:  # before anything was written
            if len(due) == 1:
                raise
            say(str(refused))
            outcomes.append(Outcome.FAILED)
            continue
        if outcomes[-1] is Outcome.COMPLETE:
            complete.add(one.name)
        if outcomes[-1] in (Outcome.FAILED, Outcome.STOPPED):
            break
    return outcomes


def _not_begun(one: Declared, why: str) -> Outcome:
    say(f"{one.name}: stopped before it began: {why}; `backfill run {one.name}` goes on")
    return Outcome.STOPPED


def retry_failures(context: Context, one: Declared) -> Outcome:
    """Try a backfill's quarantined rows again, and prove a walk that was at its end."""
    found = context.store.current(one.name) if context.store.exists() else None
    if found is None or not context.store.failures(found):
        return Outcome.COMPLETE
    target, how = context.target(one), context.settings(one, {})
    watch, nice = _watch(context.store, target, found), target.dialect.company_nice
    with Pace(context.store, found, how, _quiet, watch, company_nice=nice) as pace:
        resolved, left = quarantine.retry(
            target, context.store, found, how, lambda: _stand_by(pace, one.name)
        )
    say(f"{one.name}: {resolved:,} rows written, {left:,} stay in quarantine")
    if left:
        return Outcome.QUARANTINED
    if not all(r.finished for r in context.store.ranges(found)):
        return Outcome.COMPLETE
    runner = Runner(target, context.store, how, Budget(), LogReporter(_quiet), context.origin)
    result = runner.run(accept_change=True)  # to retry is to accept the class as it is now
    say(f"{one.name}: {result.text}")
    return result.outcome


def _watch(
    store: Store, target: Target, run: Run
) -> Callable[[Settings], AbstractContextManager[Throttle]]:
    return lambda how: throttled(target, store, run, how, _quiet)


def _stand_by(pace: Pace, name: str) -> None:
    """Wait, and say why, while a window is closed or a signal stops us."""
    said = ""
    while (delay := pace.delay(None)).waits:
        if gist(delay.reason) != said:
            say(f"{name}: {delay.reason}")
        said = gist(delay.reason)
        time.sleep(delay.seconds)


def _quiet(_told: object) -> None:
    """The result is told in one line of its own."""


def say(text: str) -> None:
    """Tell a person, beside what a program reads."""
    print(text, file=sys.stderr, flush=True)


def _reporter(as_json: bool) -> Reporter:
    if as_json:
        return JsonReporter()
    if sys.stderr.isatty():
        return TerminalReporter()
    return LogReporter(say)


def _unheard(budget: Budget, streams: Iterable[TextIO]) -> None:
    """Stop after the chunk: whoever read our output has gone, as in `backfill run | head`."""
    budget.ask_to_stop("nobody reads the output any more")
    for stream in streams:
        with suppress(OSError, ValueError):
            stream.flush()
            continue
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop_on_signals(budget: Budget) -> None:
    """First Ctrl-C: finish the chunk and stop. Second: now; the database rolls back."""

    def handle(number: int, _frame: Any) -> None:
        if budget.stop.is_set():
            os._exit(EXIT_NOW)
        budget.ask_to_stop(f"by {signal.Signals(number).name}")
        say("Stopping after this chunk; Ctrl-C again stops now.")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    atexit.register(_ignore_signals)


def _ignore_signals() -> None:
    """All is said and done: while Python shuts down, its handlers are gone, and a signal would put
    itself in the exit code's place."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
