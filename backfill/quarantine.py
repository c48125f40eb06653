"""Tries quarantined rows again, each in a transaction that also takes it off the list."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backfill import retries
from backfill.chunks import Chunk
from backfill.dialects import ErrorKind, Limits
from backfill.errors import InvalidTransition, LeaseLost, StateRefused
from backfill.failures import describe
from backfill.isolation import SUSPECT
from backfill.keys import START
from backfill.runs import Status
from backfill.scans import Scans
from backfill.targets import check_key
from backfill.writers import writer_for
from backfill.writers.base import Written
from backfill.writers.rows import is_about_a_row

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from backfill.runs import Failure, Run
    from backfill.settings import Settings
    from backfill.store import Store
    from backfill.targets import Target


_PATIENCE_SECONDS = 30.0


class _FailedAgain(Exception):
    """A row is still bad; its text says why."""


def retry(
    target: Target,
    store: Store,
    run: Run,
    settings: Settings,
    stand_by: Callable[[], object] = lambda: None,
) -> tuple[int, int]:
    """Try every quarantined row of a run again; how many are off the list, and how many stay.

    `stand_by` is called before each row, and returns when it may be written.
    Raises InvalidTransition if the run is paused, cancelled or stale: stopped means stopped; and
    StateRefused if this user may not take rows off the list.
    """
    check_key(target, run)
    by_index = not target.key.is_single
    limits = Limits.of(settings, f"backfill: {run.name} failures", by_index=by_index)
    resolved = 0
    found = store.failures(run)
    for failure in found:
        stand_by()
        resolved += _Retry(target, store, run, limits).row(failure)
    return resolved, len(found) - resolved


class _Retry:
    def __init__(self, target: Target, store: Store, run: Run, limits: Limits) -> None:
        self.target = target
        self.store = store
        self.run = run
        self.limits = limits
        self.patiently = retries.retrying(
            kind_of=target.dialect.error_kind,
            recover=lambda error, policy, attempt: None,
            sleep=time.sleep,
            seconds=_PATIENCE_SECONDS,
        )
        self.scans = Scans(target)
        self.writer = writer_for(target, self.scans)
        self.writer.be_careful()

    def row(self, failure: Failure) -> bool:
        """Write one row; whether it is off the list."""
        try:
            self.patiently(self._write, failure)
        except LeaseLost:
            return True  # somebody else tried it at the same time, and it went well
        except _FailedAgain as error:
            return self._stays(failure, str(error))
        except (InvalidTransition, StateRefused):
            raise  # it is not about the row
        except Exception as error:
            dialect = self.target.dialect
            # It stands alone already: what may be about a row is about this one.
            may_be = dialect.error_kind(error) in (ErrorKind.TOO_SLOW, *SUSPECT)
            if not may_be and not is_about_a_row(error, dialect, computes=self.writer.computes):
                raise
            return self._stays(failure, describe(error, dialect))
        return True

    def _stays(self, failure: Failure, why: str) -> bool:
        with self.store.refusals_told():
            self.store.failed_again(failure, why)
        return False

    def _write(self, failure: Failure) -> None:
        dialect = self.target.dialect
        with dialect.open(self.limits) as connection:
            with dialect.transaction(connection, self.limits, write=False):
                page = self.scans.one(connection, failure.key)
            self.writer.forget()
            chunk = Chunk(START, failure.key, scanned=0, is_last=False, page=page)
            self.writer.compute(chunk, lambda: None)
            with dialect.transaction(connection, self.limits):
                self._refuse_if_stopped(connection)
                written = self.writer.write(connection, chunk) if page else Written(0)
                if written.failures:
                    raise _FailedAgain(written.failures[0].error)
                with self.store.refusals_told():
                    self.store.resolve(connection, self.run, failure, written.changed)

    def _refuse_if_stopped(self, connection: sa.Connection) -> None:
        with self.store.refusals_told():
            now = self.store.locked_status(connection, self.run)
        if now in (Status.PAUSED, Status.CANCELLED, Status.STALE):
            raise InvalidTransition(self.run.name, now.value, "retried")
