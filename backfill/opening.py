"""How a run begins: the one to go on with, or a new one with its bound and its key ranges."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from backfill import sync
from backfill.dialects import ErrorKind
from backfill.dialects.readers import Readers
from backfill.errors import DeclarationChanged, DeclarationError
from backfill.failures import describe
from backfill.proof import any_pending, incomplete_reason
from backfill.ranges import Bounds, check_whole, cut_range, cut_table, is_free
from backfill.runs import NewRun, Run, Status
from backfill.targets import check_key, hidden_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from backfill.dialects import Limits
    from backfill.settings import Settings
    from backfill.short_reads import ShortReads
    from backfill.store import Store
    from backfill.targets import Target

_SOON = 1.0
"""Seconds of a wait that need not be told."""


class Opening:
    """Opens the run of one backfill."""

    def __init__(
        self,
        target: Target,
        store: Store,
        settings: Settings,
        limits: Limits,
        reads: ShortReads,
        say: Callable[..., None],
    ) -> None:
        self._target = target
        self._name = target.declaration.name
        self._store = store
        self._settings = settings
        self._limits = limits
        self._reads = reads
        self._say = say

    def run(self, *, accept_change: bool, again: bool = False) -> Run | None:
        """Return the run to go on with, a new one if there is none; None if all is done."""
        run = self._store.current(self._name)
        fingerprint = self._target.declaration.fingerprint()
        if run is not None and not run.is_over:
            if run.status is Status.PAUSED:
                return run
            check_key(self._target, run)
            check_whole(self._target, run, self._store.ranges(run))
            if run.fingerprint != fingerprint and not accept_change:
                raise DeclarationChanged(self._name)
            if run.fingerprint != fingerprint:
                self._store.accept(run, fingerprint)
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
        with self._reads.open() as reader:
            reason = incomplete_reason(reader.connection, self._target, reading=reader.reading)
        return reason is None

    def _keep_up(self) -> bool:
        """Install the triggers of `sync` before the bound is taken; whether all that is written
        later, or by a transaction that is open now, has met them.

        It has where they were made on the table, since their lock waits for such transactions; not
        where only a function was replaced. Where nothing is pending none are made: the gate may be
        passed, and would not remove them.
        """
        dialect, target = self._target.dialect, self._target
        if not target.declaration.sync:
            return False
        with self._reads.open() as reader:
            with reader.reading():
                is_there = sync.is_installed(target.declaration, dialect, reader.connection)
            if not is_there and not any_pending(Readers(reader), target):
                return False
            is_new = self._install(reader.connection)
        if is_new:
            self._say(
                "sync", f"triggers keep up with new writes, until the gate or `cancel {self._name}`"
            )
        return not (is_there and is_new)

    def _install(self, connection: sa.Connection) -> bool:
        """Install the triggers, and say what we wait for where that takes a while: SQLite's only
        write lock is waited for within BEGIN."""
        dialect = self._target.dialect
        soon = replace(self._limits, lock_timeout=_SOON, statement_timeout=_SOON)
        try:
            with dialect.transaction(connection, soon):
                return sync.install(self._target, connection)
        except DBAPIError as error:
            if dialect.error_kind(error) is not ErrorKind.LOCKED:
                raise
        self._say("waiting", "waiting for another writer to let the triggers of `sync` in")
        with dialect.transaction(connection, self._limits):
            return sync.install(self._target, connection)

    def create(self, fingerprint: str, *, number: int, waits: bool) -> Run:
        """Record a new run: its upper bound is the highest key of this moment.

        With `waits` its proof waits for older transactions, whose rows may not be seen yet.
        """
        declaration = self._target.declaration
        with self._reads.transaction() as connection:
            estimate = self._target.dialect.row_estimate(connection, self._target.table)
            bounds = self._cut(connection, estimate)
            horizon = self._target.dialect.horizon(connection) if waits else None
            hidden = hidden_rows(self._target, connection)
        if hidden:
            self._say("message", hidden)
        new = NewRun(
            name=self._name,
            number=number,
            revision=declaration.revision or "",
            fingerprint=fingerprint,
            settings=self._settings.recorded(),
            rows_estimated=estimate,
            horizon=horizon,
            key=self._target.key.shape,
            is_empty=not bounds,
        )
        return self._store.create(new, bounds)

    def _cut(self, connection: sa.Connection, rows: int | None) -> Bounds:
        dialect, table = self._target.dialect, self._target.table.fullname
        try:
            return cut_table(connection, self._target, rows, self._settings.walkers)
        except DBAPIError as error:
            if dialect.error_kind(error) is not ErrorKind.DATA:
                raise
            raise DeclarationError(
                f"{self._name}: a key of {table} cannot be read: {describe(error, dialect)}. Name"
                " other unique columns in `key`."
            ) from error

    def _share(self, run: Run) -> None:
        """Cut free ranges of an interrupted run where there are fewer of them than workers."""
        workers = self._settings.walkers
        left = [found for found in self._store.ranges(run) if not found.finished]
        if len(left) >= workers or not all(is_free(found) for found in left):
            return
        for found in left:
            rows = (run.rows_estimated or 0) // len(left)
            with self._reads.transaction() as connection:
                bounds = cut_range(connection, self._target, found, rows, workers)
            if len(bounds) > 1:
                self._store.split(run, found, bounds)

    def _say_started(self, run: Run) -> None:
        ranges = self._store.ranges(run)
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
