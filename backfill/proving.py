"""How a pass ends: proved by the data, or with another sweep over what is pending again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from backfill.dialects import PASSING, ErrorKind
from backfill.dialects.readers import Readers
from backfill.errors import LeaseLost
from backfill.keys import START
from backfill.proof import any_pending, count_around, is_left
from backfill.ranges import cut_table
from backfill.runs import Run, Status
from backfill.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.budget import Budget
    from backfill.dialects.readers import Helpers, Reader
    from backfill.keys import KeyValues
    from backfill.settings import Settings
    from backfill.short_reads import ShortReads
    from backfill.store import Store
    from backfill.targets import Target
    from backfill.trail import Trail

_OLDER_TRANSACTIONS_SECONDS = 0.2


class Proving:
    """Looks whether all of one backfill is done."""

    def __init__(
        self,
        target: Target,
        store: Store,
        settings: Settings,
        budget: Budget,
        reads: ShortReads,
        say: Callable[..., None],
    ) -> None:
        self._target = target
        self._name = target.declaration.name
        self._store = store
        self._settings = settings
        self._budget = budget
        self._reads = reads
        self._say = say
        self._sweeps = Sweeps(target)

    def is_proved(self, run: Run, trail: Trail, helpers: Helpers | None) -> bool:
        """Whether no row is pending, seen after every transaction from before the bound ended."""
        if self._target.pending is None:
            return True
        with self._reads.open() as reader:
            if run.horizon is not None and run.pass_number == 1:
                self._await_horizon(run, run.horizon, reader)
            quarantined = [failure.key for failure in self._store.failures(run)]
            walked = list(trail.stretches(self._store.ranges(run)))
            readers = Readers(reader, helpers)
            return not any_pending(readers, self._target, quarantined, walked=walked)

    def _await_horizon(self, run: Run, horizon: str, reader: Reader) -> None:
        """Wait for the transactions whose rows could not be seen yet."""
        said = None
        while True:
            with reader.reading():
                older = self._target.dialect.older_than_horizon(reader.connection, horizon)
            if older is None:
                return
            self._raise_if_revoked(run)
            if older != said:
                said = older
                self._say("waiting", f"waiting for {older} to end: its rows are not seen yet")
            self._budget.stop.wait(_OLDER_TRANSACTIONS_SECONDS)

    def _raise_if_revoked(self, run: Run) -> None:
        now = self._store.current(self._name)
        if now is None or now.id != run.id or now.status not in (Status.PENDING, Status.RUNNING):
            raise LeaseLost(0)

    def resolve_mended(self, run: Run) -> None:
        """Take rows out of quarantine that have nothing left to do: they are gone, or somebody else
        has mended them."""
        for failure in self._store.failures(run):
            if not self._is_left(failure.key):
                with suppress(LeaseLost), self._store.transaction() as connection:
                    self._store.resolve(connection, run, failure, 0)

    def _is_left(self, key: KeyValues) -> bool:
        """Whether a row is pending; one about which `where` cannot be asked is."""
        try:
            with self._reads.transaction() as connection:
                return is_left(connection, self._target, key)
        except DBAPIError as error:
            kind = self._target.dialect.error_kind(error)
            if kind in PASSING and kind is not ErrorKind.TOO_SLOW:
                raise
            return True

    def next_pass(self, run: Run, trail: Trail, max_passes: int) -> Run:
        """Begin another sweep over the rows that are pending again. Raises RunFailed."""
        number = run.pass_number
        self._sweeps.note(number, self._store.changed_in_pass(run, number))
        if self._sweeps.are_suspect(max_passes):
            self._sweeps.judge(*self._pending_around(run, trail), max_passes)
        with self._reads.transaction() as connection:
            bounds = cut_table(connection, self._target, run.rows_estimated, self._settings.walkers)
        self._store.add_pass(run, bounds)
        self._say("swept", f"some rows are pending (again): sweep {run.pass_number}")
        following = self._store.current(self._name)
        if following is None or following.id != run.id or following.status is not Status.RUNNING:
            raise LeaseLost(0)
        return following

    def _pending_around(self, run: Run, trail: Trail) -> tuple[int, int]:
        """Count the rows that are pending where the last pass has been, and behind its end."""
        quarantined = [failure.key for failure in self._store.failures(run)]
        upper = START
        for stretch in trail.stretches(self._store.ranges(run)):
            upper = stretch.upto
        with self._reads.open() as reader:
            return count_around(
                reader.connection, self._target, upper, quarantined, reading=reader.reading
            )
