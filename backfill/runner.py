"""A run from its first claim to its proof: the file that joins everything below it.

`Runner.run` -> `walk_pass` -> `Worker.work` (workers.py) -> one chunk, one transaction.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from backfill import owners, retries, sync
from backfill.aftercare import AfterCare
from backfill.budget import Stopped
from backfill.dialects import ErrorKind, Limits
from backfill.dialects.readers import Helpers, Reader, Readers
from backfill.dialects.triggers import label_of
from backfill.errors import (
    BackfillError,
    CommitUnknown,
    DeclarationChanged,
    DeclarationError,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    WorkerFailed,
)
from backfill.failures import describe
from backfill.keys import START
from backfill.processes import work_in_processes
from backfill.proof import any_pending, count_around, incomplete_reason
from backfill.ranges import check_whole, cut_range, cut_table, is_free
from backfill.reporters import Event
from backfill.runs import NewRun, Outcome, Result, Run, Status
from backfill.speed.collector import throttled
from backfill.speed.pacing import Pace
from backfill.sweeps import Sweeps
from backfill.targets import bind, check_key
from backfill.threads import work_in_threads
from backfill.trail import Trail
from backfill.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from backfill.budget import Budget
    from backfill.configuration import Origin
    from backfill.reporters import Reporter
    from backfill.settings import Settings
    from backfill.speed.throttles import Throttle
    from backfill.store import Store
    from backfill.targets import Target

P = ParamSpec("P")
T = TypeVar("T")

_OLDER_TRANSACTIONS_SECONDS = 0.2
_FEWEST_HELPERS = 1
_SOON = 1.0
"""Seconds of a wait that need not be told."""


class Runner:
    """Runs one backfill to the end, or until it is stopped."""

    def __init__(
        self,
        target: Target,
        store: Store,
        settings: Settings,
        budget: Budget,
        report: Reporter,
        origin: Origin | None = None,
    ) -> None:
        self.origin = origin
        self.target = target
        self.store = store
        self.settings = settings
        self.budget = budget
        self.report = report
        self.name = target.declaration.name
        self.trail = Trail()
        self._helpers: Helpers | None = None
        """Who reads for the proof beside us."""
        self._sweeps = Sweeps(target)
        label, by_index = label_of(self.name), not target.key.is_single
        self.limits = replace(Limits.of(settings, label, by_index=by_index), awaits_disk=False)
        self._care = AfterCare(target, self.limits, settings, report, budget.stop.wait)

    def run(self, *, accept_change: bool = False, again: bool = False) -> Result:
        """Walk, sweep and prove, until no row is pending or somebody stops us.

        `accept_change` goes on although the class is not the one that the run began with;
        `again` begins anew where the last run has succeeded.
        """
        with self.store.kept_open(), _little_garbage():
            try:
                return self._run(accept_change=accept_change, again=again)
            except Stopped as stopped:  # while there was no run to work on yet
                text = f"stopped: {self.budget.reason or stopped}"
                return Result(Outcome.STOPPED, f"{text}; `backfill run {self.name}` goes on")

    def _run(self, *, accept_change: bool, again: bool) -> Result:
        self._patiently(self.store.ensure)
        run = self._patiently(self.open, accept_change=accept_change, again=again)
        if run is None:
            return Result(Outcome.COMPLETE, "already complete")
        if run.status is Status.PAUSED:
            return Result(Outcome.STOPPED, f"is paused; `backfill resume {self.name}` first")
        try:
            changed, failures = self._patiently(self.store.totals, run)
            self.budget.begin(failures=failures)
            self._care.begin(run.rows_estimated, changed)
            with self._paced(run) as pace:
                while True:
                    self.walk_pass(run, pace)
                    self._patiently(self._resume_running, run)
                    if self._patiently(self.is_proved, run):
                        return self._patiently(self.finish, run)
                    self._patiently(pace.look)
                    run = self._patiently(self.next_pass, run, pace.settings.max_passes)
        except Stopped as stopped:
            return self._stopped(run, str(stopped))
        except (LeaseLost, InvalidTransition):
            return self._revoked(run)  # somebody else decided what becomes of the run
        except LeaseHeld as held:
            return Result(Outcome.HELD, str(held))
        except WorkerFailed as failed:
            return self._failed(run, failed.status, str(failed))
        except BackfillError as error:
            return self._failed(run, self._status_after(error), str(error))
        except Exception as error:
            text = self._told(error)
            return self._failed(run, self._status_after(error), text)

    def _told(self, error: Exception) -> str:
        """Return what is to be said of an error; of a table that was changed, what has changed."""
        dialect = self.target.dialect
        text = describe(error, dialect)
        if dialect.error_kind(error) is ErrorKind.SCHEMA:
            with suppress(DBAPIError), self._reading() as connection:
                try:
                    bind(self.target.declaration, dialect, connection)
                except DeclarationError as problem:
                    return f"{text}: {problem}"
        return text

    def _paced(self, run: Run) -> Pace:
        """Return the pace of this command. Where processes do the work, each has its signals."""

        def watch(how: Settings) -> AbstractContextManager[Throttle]:
            return throttled(self.target, self.store, run, how, self.report)

        is_here = self.settings.processes == 1
        nice, watched = self.target.dialect.company_nice, watch if is_here else None
        return Pace(self.store, run, self.settings, self.report, watched, company_nice=nice)

    # -- opening -----------------------------------------------------------------------

    def open(self, *, accept_change: bool, again: bool = False) -> Run | None:
        """Return the run to go on with, a new one if there is none; None if all is done."""
        run = self.store.current(self.name)
        fingerprint = self.target.declaration.fingerprint()
        if run is not None and not run.is_over:
            if run.status is Status.PAUSED:
                return run
            check_key(self.target, run)
            check_whole(self.target, run, self.store.ranges(run))
            if run.fingerprint != fingerprint and not accept_change:
                raise DeclarationChanged(self.name)
            if run.fingerprint != fingerprint:
                self.store.accept(run, fingerprint)
            self._keep_up()
            self._share(run)
            self._say_started(run)
            return run
        has_succeeded = run is not None and run.status is Status.SUCCEEDED
        if has_succeeded and not again and self.is_complete():
            return None
        waits = not self._keep_up()
        number = run.number + 1 if run is not None else 1
        run = self.create(fingerprint, number=number, waits=waits)
        self._say_started(run)
        return run

    def is_complete(self) -> bool:
        """Whether the data says that a run which succeeded once is still complete."""
        with self.target.dialect.open(self.limits) as connection:
            reason = incomplete_reason(
                connection, self.target, reading=lambda: self._reading(connection)
            )
        return reason is None

    def _keep_up(self) -> bool:
        """Install the triggers of `sync` before the bound is taken; whether all that is written
        later, or by a transaction that is open now, has met them.

        It has where they were made on the table, since their lock waits for such transactions; not
        where only a function was replaced. Where nothing is pending none are made: the gate may be
        passed, and would not remove them.
        """
        dialect, target = self.target.dialect, self.target
        if not target.declaration.sync:
            return False
        with dialect.open(self.limits) as connection:
            with self._reading(connection):
                is_there = sync.is_installed(target.declaration, dialect, connection)
            if not is_there and not any_pending(Readers(self._reader(connection)), target):
                return False
            is_new = self._install(connection)
        if is_new:
            self._say(
                "sync", f"triggers keep up with new writes, until the gate or `cancel {self.name}`"
            )
        return not (is_there and is_new)

    def _install(self, connection: sa.Connection) -> bool:
        """Install the triggers, and say what we wait for where that takes a while: SQLite's only
        write lock is waited for within BEGIN."""
        dialect = self.target.dialect
        soon = replace(self.limits, lock_timeout=_SOON, statement_timeout=_SOON)
        try:
            with dialect.transaction(connection, soon):
                return sync.install(self.target, connection)
        except DBAPIError as error:
            if dialect.error_kind(error) is not ErrorKind.LOCKED:
                raise
        self._say("waiting", "waiting for another writer to let the triggers of `sync` in")
        with dialect.transaction(connection, self.limits):
            return sync.install(self.target, connection)

    def create(self, fingerprint: str, *, number: int, waits: bool) -> Run:
        """Record a new run: its upper bound is the highest key of this moment.

        With `waits` its proof waits for older transactions, whose rows may not be seen yet.
        """
        declaration = self.target.declaration
        with self._reading() as connection:
            estimate = self.target.dialect.row_estimate(connection, self.target.table)
            bounds = cut_table(connection, self.target, estimate, self.settings.walkers)
            horizon = self.target.dialect.horizon(connection) if waits else None
        new = NewRun(
            name=self.name,
            number=number,
            revision=declaration.revision or "",
            fingerprint=fingerprint,
            settings=self.settings.recorded(),
            rows_estimated=estimate,
            horizon=horizon,
            key=self.target.key.shape,
            is_empty=not bounds,
        )
        return self.store.create(new, bounds)

    def _share(self, run: Run) -> None:
        """Cut free ranges of an interrupted run where there are fewer of them than workers."""
        workers = self.settings.walkers
        left = [found for found in self.store.ranges(run) if not found.finished]
        if len(left) >= workers or not all(is_free(found) for found in left):
            return
        for found in left:
            rows = (run.rows_estimated or 0) // len(left)
            with self._reading() as connection:
                bounds = cut_range(connection, self.target, found, rows, workers)
            if len(bounds) > 1:
                self.store.split(run, found, bounds)

    # -- walking -----------------------------------------------------------------------

    def walk_pass(self, run: Run, pace: Pace) -> None:
        """Let the workers walk every range of the pass. Raises Stopped, LeaseLost, LeaseHeld."""
        how = self.settings
        self.trail = Trail()
        if how.processes > 1:
            work_in_processes(self.origin, run, how, self.limits, self.budget, self.report)
        else:
            work_in_threads(
                lambda: self._patiently(self._worker, run, pace), how.workers, self.budget
            )
        self._helpers = self._helpers_beside(pace)
        self._patiently(self._wait_for_others, run)

    def _worker(self, run: Run, pace: Pace) -> Worker:
        return Worker(
            self.target,
            self.store,
            run,
            pace,
            self.limits,
            self.budget,
            self.report,
            trail=self.trail,
        )

    def _wait_for_others(self, run: Run) -> None:
        """All that was free is walked; another runner may still have a range."""
        for found in self.store.ranges(run):
            if not found.finished:
                now = self.store.current(self.name)
                if now is None or now.status is not Status.RUNNING:
                    raise LeaseLost(found.id)
                raise LeaseHeld(self.name, owners.shown(found.owner) if found.owner else "another")

    # -- proving -----------------------------------------------------------------------

    def is_proved(self, run: Run) -> bool:
        """Whether no row is pending, seen after every transaction from before the bound ended."""
        if self.target.pending is None:
            return True
        with self.target.dialect.open(self.limits) as connection:
            if run.horizon is not None and run.pass_number == 1:
                self._await_horizon(run, run.horizon, connection)
            quarantined = [failure.key for failure in self.store.failures(run)]
            walked = list(self.trail.stretches(self.store.ranges(run)))
            readers = Readers(self._reader(connection), self._helpers)
            return not any_pending(readers, self.target, quarantined, walked=walked)

    def _helpers_beside(self, pace: Pace) -> Helpers | None:
        """Return who may read beside us while nobody else is at work, for one core of the server
        more or as many as may walk. With processes nobody: these keep the signals to themselves."""
        if self.settings.processes > 1:
            return None
        count = max(self.settings.workers - 1, _FEWEST_HELPERS)
        call = self.target.dialect.call
        return Helpers(count, self._another_reader, call, lambda: not pace.sees_company())

    @contextmanager
    def _another_reader(self) -> Iterator[Reader]:
        with self.target.dialect.open(self.limits) as connection:
            yield self._reader(connection)

    def _reader(self, connection: sa.Connection) -> Reader:
        return Reader(connection, lambda: self._reading(connection))

    def _await_horizon(self, run: Run, horizon: str, connection: sa.Connection) -> None:
        """Wait for the transactions whose rows could not be seen yet."""
        said = None
        while True:
            with self._reading(connection):
                older = self.target.dialect.older_than_horizon(connection, horizon)
            if older is None:
                return
            self._raise_if_revoked(run)
            if older != said:
                said = older
                self._say("waiting", f"waiting for {older} to end: its rows are not seen yet")
            self.budget.stop.wait(_OLDER_TRANSACTIONS_SECONDS)

    def _raise_if_revoked(self, run: Run) -> None:
        now = self.store.current(self.name)
        if now is None or now.id != run.id or now.status not in (Status.PENDING, Status.RUNNING):
            raise LeaseLost(0)

    def next_pass(self, run: Run, max_passes: int) -> Run:
        """Begin another sweep over the rows that are pending again. Raises RunFailed."""
        number = run.pass_number
        self._sweeps.note(number, self.store.changed_in_pass(run, number))
        if self._sweeps.are_suspect(max_passes):
            self._sweeps.judge(*self._pending_around(run), max_passes)
        with self._reading() as connection:
            bounds = cut_table(connection, self.target, run.rows_estimated, self.settings.walkers)
        self.store.add_pass(run, bounds)
        self._say("swept", f"some rows are pending (again): sweep {run.pass_number}")
        following = self.store.current(self.name)
        if following is None or following.id != run.id or following.status is not Status.RUNNING:
            raise LeaseLost(0)
        return following

    def _pending_around(self, run: Run) -> tuple[int, int]:
        """Count the rows that are pending where the last pass has been, and behind its end."""
        quarantined = [failure.key for failure in self.store.failures(run)]
        upper = START
        for stretch in self.trail.stretches(self.store.ranges(run)):
            upper = stretch.upto
        with self.target.dialect.open(self.limits) as connection:
            return count_around(
                connection,
                self.target,
                upper,
                quarantined,
                reading=lambda: self._reading(connection),
            )

    # -- ending ------------------------------------------------------------------------

    def finish(self, run: Run) -> Result:
        """Record the success, or that rows are in quarantine."""
        self._refuse_another_key(run)
        now = self.store.current(self.name)
        changed, quarantined = self.store.totals(run)
        if now is not None and now.id == run.id and now.status is Status.SUCCEEDED:
            return Result(Outcome.COMPLETE, "was completed by another runner")
        if quarantined:
            text = (
                f"finished, but {quarantined:,} rows are quarantined: see"
                f" `backfill failures {self.name}`"
            )
            self.store.move(self.name, Status.FAILED, error=text, only=run)
            result = self._ended(run, Outcome.QUARANTINED, Status.FAILED, text)
        else:
            self.store.move(self.name, Status.SUCCEEDED, only=run)
            text = f"complete, {changed:,} rows changed"
            result = self._ended(run, Outcome.COMPLETE, Status.SUCCEEDED, text)
        self._care.end(changed)
        return result

    def _refuse_another_key(self, run: Run) -> None:
        """Raise KeyChanged where the key has changed under the walk, and no data could tell which
        rows it has missed."""
        if self.target.pending is None:
            with self._reading() as connection:
                now = bind(self.target.declaration, self.target.dialect, connection)
            check_key(now, replace(run, key=self.target.key.shape))

    def _stopped(self, run: Run, reason: str) -> Result:
        try:
            self.store.rest(run)
        except (SQLAlchemyError, CommitUnknown) as error:  # the leases tell nobody works on it
            self._say("message", f"status not written: {describe(error, self.target.dialect)}")
        text = f"stopped: {self.budget.reason or reason}; `backfill run {self.name}` goes on"
        return self._ended(run, Outcome.STOPPED, Status.PENDING, text)

    def _revoked(self, run: Run) -> Result:
        now = self._patiently(self.store.current, self.name)
        if now is None:
            return self._left(run, "the run is not recorded any more")
        if now.id != run.id:
            return Result(Outcome.FAILED, "another run was begun meanwhile")
        if now.status is Status.PAUSED:
            text = f"paused from outside; `backfill resume {self.name}` and run again to go on"
            return self._ended(run, Outcome.STOPPED, now.status, text)
        if now.status is Status.CANCELLED:
            if self.target.declaration.sync:  # they may have been installed after the cancel
                sync.withdraw(self.target.declaration, self.target.dialect)
            return self._ended(run, Outcome.FAILED, now.status, "cancelled from outside")
        if now.status is Status.STALE:
            return self._ended(run, Outcome.FAILED, now.status, now.error or "stale")
        if now.status is Status.FAILED:
            return self._ended(run, Outcome.FAILED, now.status, now.error or "failed elsewhere")
        if now.status is Status.SUCCEEDED:
            return Result(Outcome.COMPLETE, "was completed by another runner")
        if self._patiently(self._is_left, now):
            return self._left(run, "our lease is gone, and nobody else has one")
        return self._ended(run, Outcome.HELD, now.status, "another runner has taken over")

    def _is_left(self, run: Run) -> bool:
        """Whether something of a run is to be done, and nobody else is at it."""
        left = [found for found in self.store.ranges(run) if not found.finished]
        mine = owners.myself()
        return bool(left) and all(found.owner == mine or is_free(found) for found in left)

    def _left(self, run: Run, what: str) -> Result:
        """What we knew is not recorded: the database has gone back to an earlier state."""
        text = (
            f"{what}: has another server taken over, or was a backup restored?"
            f" `backfill run {self.name}` goes on from what is recorded"
        )
        return self._ended(run, Outcome.STOPPED, Status.PENDING, text)

    def _status_after(self, error: Exception) -> Status:
        return retries.status_after(error, self.target.dialect.error_kind)

    def _failed(self, run: Run, status: Status, text: str) -> Result:
        try:
            self._resume_running(run)
            self.store.move(self.name, status, error=text, only=run)
        except (InvalidTransition, LeaseLost):
            return self._revoked(run)
        except Exception as second:
            why = describe(second, self.target.dialect)
            text += f" (and the run's status could not be written: {why})"
        outcome = Outcome.STOPPED if status is Status.PAUSED else Outcome.FAILED
        return self._ended(run, outcome, status, text)

    def _ended(self, run: Run, outcome: Outcome, status: Status, text: str) -> Result:
        self._say("finished", text, status=status.value)
        return Result(outcome, text, was_reported=True)

    def _resume_running(self, run: Run) -> None:
        """Say in the run's status that we work on it, where no range was left to claim."""
        now = self.store.current(self.name)
        if now is not None and now.id == run.id and now.status in (Status.PENDING, Status.FAILED):
            self.store.move(self.name, Status.RUNNING, only=run)

    def _patiently(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Repeat a step between two passes while the database cannot be asked."""
        dialect = self.target.dialect

        def tell(error: BaseException, _policy: retries.Policy, attempt: int) -> None:
            self._say("retry", f"waits: {describe(error, dialect)}" if attempt == 1 else "")

        def sleep(seconds: float) -> None:
            self.budget.stop.wait(seconds)
            self.budget.raise_if_over()

        caller = retries.retrying(
            kind_of=dialect.error_kind,
            recover=tell,
            sleep=sleep,
            seconds=self.settings.retry_seconds,
        )
        return caller(step, *args, **kwargs)

    # -- small things --------------------------------------------------------------------

    @contextmanager
    def _reading(self, connection: sa.Connection | None = None) -> Iterator[sa.Connection]:
        """Read in a short transaction, which is also the place to notice that we should stop."""
        self.budget.raise_if_over()
        dialect = self.target.dialect
        with ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(dialect.open(self.limits))
            stack.enter_context(dialect.transaction(connection, self.limits, write=False))
            yield connection

    def _say(self, what: str, text: str = "", **numbers: object) -> None:
        self.report(Event(what, self.name, text, dict(numbers)))

    def _say_started(self, run: Run) -> None:
        ranges = self.store.ranges(run)
        scanned = sum(found.rows_scanned for found in ranges)
        about = "" if run.rows_estimated is None else f" of about {run.rows_estimated:,} rows"
        text = (
            f"goes on after {scanned:,}{about}"
            if scanned
            else f"starts{about and ' on' + about[3:]}"
        )
        self._say(
            "started",
            text,
            rows_estimated=run.rows_estimated,
            rows_scanned=scanned,
            ranges=len(ranges),
        )


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Keep Python's collector off all that was imported: it would walk through it again and again
    while rows come and go (measured: a third of the client's time)."""
    is_frozen = gc.get_freeze_count() > 0
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()
