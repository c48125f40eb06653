"""A run from its first claim to its proof: the file that joins everything below it.

`Runner.run` -> `Opening.run` (opening.py), then `walk_pass` -> `Worker.work` (workers.py) ->
`Committer.advance` (committing.py), one chunk, one transaction; `Proving.is_proved` (proving.py)
after each pass.
"""

from __future__ import annotations

import gc
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from backfill import owners, retries, sync
from backfill.aftercare import AfterCare
from backfill.budget import Stopped
from backfill.companion import Companion
from backfill.connections import Connections
from backfill.dialects import ErrorKind, Limits
from backfill.dialects.readers import Helpers
from backfill.dialects.triggers import label_of
from backfill.errors import (
    BackfillError,
    CommitUnknown,
    DeclarationError,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    WorkerFailed,
)
from backfill.failures import describe
from backfill.opening import Opening
from backfill.processes import work_in_processes
from backfill.proving import Proving
from backfill.ranges import is_free
from backfill.reporters import Event
from backfill.runs import Outcome, Result, Run, Status
from backfill.short_reads import ShortReads
from backfill.speed.collector import throttled
from backfill.speed.pacing import Pace
from backfill.targets import bind, check_key
from backfill.threads import work_in_threads
from backfill.trail import Trail
from backfill.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import tenacity

    from backfill.budget import Budget
    from backfill.configuration import Origin
    from backfill.dialects import Dialect
    from backfill.reporters import Reporter
    from backfill.settings import Settings
    from backfill.speed.throttles import Throttle
    from backfill.store import Store
    from backfill.targets import Target

P = ParamSpec("P")
T = TypeVar("T")

_FEWEST_HELPERS = 1


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
        """Who reads beside us."""
        label, by_index = label_of(self.name), not target.key.is_single
        self.limits = replace(Limits.of(settings, label, by_index=by_index), awaits_disk=False)
        self._connections = Connections(target.dialect, self.limits)
        self._reads = ShortReads(self._connections, budget)
        self._opening = Opening(target, store, settings, self.limits, self._reads, self._say)
        self._proving = Proving(target, store, settings, budget, self._reads, self._say)
        self._care = AfterCare(target, self._connections, settings, report, budget.stop.wait)

    def run(self, *, accept_change: bool = False, again: bool = False) -> Result:
        """Walk, sweep and prove, until no row is pending or somebody stops us.

        `accept_change` goes on although the class is not the one that the run began with;
        `again` begins anew where the last run has succeeded.
        """
        with self.store.kept_open(), self._connections.kept_open(), _little_garbage():
            try:
                return self._run(accept_change=accept_change, again=again)
            except Stopped as stopped:  # while there was no run to work on yet
                text = f"stopped: {self.budget.reason or stopped}"
                return Result(Outcome.STOPPED, f"{text}; `backfill run {self.name}` goes on")

    def _run(self, *, accept_change: bool, again: bool) -> Result:
        self._patiently(self.store.ensure)
        run = self._patiently(self._opening.run, accept_change=accept_change, again=again)
        if run is None:
            return Result(Outcome.COMPLETE, "already complete")
        if run.status is Status.PAUSED:
            return Result(Outcome.STOPPED, f"is paused; `backfill resume {self.name}` first")
        try:
            with self._paced(run) as pace:  # reads the signals beside all that follows
                changed, failures = self._patiently(self.store.totals, run)
                self.budget.begin(failures=failures)
                self._care.begin(run.rows_estimated, changed)
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
            with suppress(DBAPIError), self._reads.transaction() as connection:
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

    # -- walking -----------------------------------------------------------------------

    def walk_pass(self, run: Run, pace: Pace) -> None:
        """Let the workers walk every range of the pass. Raises Stopped, LeaseLost, LeaseHeld."""
        how = self.settings
        self.trail = Trail()
        self._helpers = self._helpers_beside(pace)
        if how.processes > 1:
            work_in_processes(self.origin, run, how, self.limits, self.budget, self.report)
        else:
            with self._companion() as companion:
                work_in_threads(
                    lambda: self._patiently(self._worker, run, pace, companion),
                    how.workers,
                    self.budget,
                )
        self._patiently(self._wait_for_others, run)

    @contextmanager
    def _companion(self) -> Iterator[Companion | None]:
        """Give the only worker a second reader; several are that to each other."""
        if self._helpers is None or self.settings.workers > 1:
            yield None
            return
        with closing(Companion(self._helpers)) as companion:
            yield companion

    def _worker(self, run: Run, pace: Pace, companion: Companion | None) -> Worker:
        return Worker(
            self.target,
            self.store,
            run,
            pace,
            self.limits,
            self.budget,
            self.report,
            trail=self.trail,
            companion=companion,
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
        return self._proving.is_proved(run, self.trail, self._helpers)

    def next_pass(self, run: Run, max_passes: int) -> Run:
        """Begin another sweep over the rows that are pending again. Raises RunFailed."""
        return self._proving.next_pass(run, self.trail, max_passes)

    def _helpers_beside(self, pace: Pace) -> Helpers | None:
        """Return who may read beside us while nobody else is at work, for one core of the server
        more or as many as may walk. With processes nobody: these keep the signals to themselves."""
        if self.settings.processes > 1:
            return None
        count = max(self.settings.workers - 1, _FEWEST_HELPERS)
        call = self.target.dialect.call
        return Helpers(count, self._reads.open, call, lambda: not pace.sees_company())

    # -- ending ------------------------------------------------------------------------

    def finish(self, run: Run) -> Result:
        """Record the success, or that rows are in quarantine."""
        self._refuse_another_key(run)
        self._proving.resolve_mended(run)
        now = self.store.current(self.name)
        changed, quarantined = self.store.totals(run)
        if now is not None and now.id == run.id and now.status is Status.SUCCEEDED:
            return Result(Outcome.COMPLETE, "was completed by another runner")
        if quarantined:
            text = (
                f"finished, but {quarantined:,} rows are quarantined: see"
                f" `backfill failures {self.name}`; once they are mended,"
                f" `backfill failures {self.name} --retry`"
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
            with self._reads.transaction() as connection:
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
        dialect, seconds = self.target.dialect, self.settings.retry_seconds
        caller = patience(self.name, dialect, self.budget, seconds, self.report)
        return caller(step, *args, **kwargs)

    # -- small things --------------------------------------------------------------------

    def _say(self, what: str, text: str = "", **numbers: object) -> None:
        self.report(Event(what, self.name, text, dict(numbers)))


def patience(
    name: str, dialect: Dialect, budget: Budget, seconds: float, report: Reporter
) -> tenacity.Retrying:
    """Return a caller that repeats a step outside of the walk, for so many seconds, while the
    database cannot be asked. It tells what it waits for; it raises Stopped."""

    def tell(error: BaseException, _policy: retries.Policy, attempt: int) -> None:
        why = describe(error, dialect)
        text = f"waits: {why}" if attempt == 1 else ""
        report(Event("retry", name, text, {"attempt": attempt, "reason": why}))

    return retries.retrying(
        kind_of=dialect.error_kind, recover=tell, sleep=budget.sleep, seconds=seconds
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
