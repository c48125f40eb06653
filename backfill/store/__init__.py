"""The only SQL on our own tables.

A method of Store is one short transaction, except those that take a connection: they belong
to a chunk's transaction. The modules beside this one hold the SQL, a table each.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.connections import Connections
from backfill.dialects import ErrorKind, Limits
from backfill.errors import LeaseLost, StateError, StateRefused
from backfill.runs import TRANSITIONS, Status, Terms, check_transition, taken_back
from backfill.store import quarantine, ranges, runs
from backfill.store.placing import keep_in, schema_of
from backfill.store.quarantine import count as count_failures
from backfill.store.runs import SYNC_INSTALLED, SYNC_REMOVED, current, end_of_sync, exists, unproved
from backfill.tables import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from backfill.dialects import Dialect
    from backfill.keys import KeyValues
    from backfill.runs import Checkpoint, Failure, KeyRange, Lease, NewRun, Run

__all__ = [
    "NAMES",
    "SYNC_INSTALLED",
    "SYNC_REMOVED",
    "Store",
    "count_failures",
    "current",
    "end_of_sync",
    "exists",
    "keep_in",
    "note",
    "schema_of",
    "unproved",
]

logger = logging.getLogger(__name__)

_LIMITS = Limits(lock_timeout=10, statement_timeout=15, idle_timeout=10, label="backfill: state")
"""Waiting here holds nothing that the application wants; and a server that keeps silent is given
up before a lease of the default length is over."""
_UNWRITABLE = {
    ErrorKind.READ_ONLY: "This session is read-only, and nothing was changed: the server is a"
    " replica, or is set so (PostgreSQL: `default_transaction_read_only`; MariaDB, MySQL:"
    " `read_only`, `transaction_read_only`). Give the primary's URL with `--url`, or change that.",
    ErrorKind.UNWRITABLE: "This user may not write to the database's file, or to its folder, and"
    " nothing was changed. Call it as the user who runs the backfill.",
}
_CREATE_TRIES = 5
_CREATE_SECONDS = 0.5
_CLAIMABLE = (Status.PENDING, Status.RUNNING, Status.FAILED)


def note(
    connection: sa.Connection, dialect: Dialect, name: str, what: str, details: str = ""
) -> None:
    """Add to the audit of a backfill's latest run, in the caller's transaction."""
    run = current(connection, name)
    runs.note(connection, dialect, name, run.id if run is not None else None, what, details)


# -- on a connection of somebody else's, in its transaction ------------------------------------


def ensure_here(connection: sa.Connection) -> None:
    """Create the tables where they are missing."""
    if not exists(connection):
        runs.create_tables(connection)


def create_here(
    connection: sa.Connection,
    dialect: Dialect,
    new: NewRun,
    bounds: Sequence[tuple[KeyValues, KeyValues]],
    version_table: str,
) -> Run:
    """Record a new run of a project with its key ranges."""
    run_id = runs.insert(connection, dialect, new, version_table)
    ranges.insert(connection, dialect, run_id, 1, bounds)
    runs.note(connection, dialect, new.name, run_id, "created", f"{len(bounds)} key ranges")
    run = current(connection, new.name)
    assert run is not None
    return run


def ranges_here(connection: sa.Connection, dialect: Dialect, run: Run) -> list[KeyRange]:
    """Return the key ranges of the run's present pass, in key order."""
    return ranges.of_pass(connection, dialect, run)


def runs_of(
    connection: sa.Connection, dialect: Dialect, revision: str, version_table: str
) -> list[Run]:
    """Return the latest runs of the backfills of a project's revision that a downgrade would make
    stale; nobody else changes their status before the transaction ends."""
    found = [
        current(connection, run.name, lock=dialect)
        for run in runs.latest(connection)
        if run.revision == revision and run.belongs_to(version_table)
    ]
    return [run for run in found if run is not None and Status.STALE in TRANSITIONS[run.status]]


def make_stale_here(
    connection: sa.Connection, dialect: Dialect, revision: str, version_table: str
) -> None:
    """Record that a project's revision was downgraded; its runners commit nothing more."""
    for run in runs_of(connection, dialect, revision, version_table):
        runs.set_status(connection, dialect, run, Status.STALE, taken_back(revision))
        ranges.revoke(connection, run)


def accept_here(connection: sa.Connection, dialect: Dialect, run: Run, fingerprint: str) -> None:
    """Bind a run to a declaration that changed."""
    runs.set_fingerprint(connection, run, fingerprint)
    runs.note(connection, dialect, run.name, run.id, "declaration changed", "accepted")


def succeed_here(connection: sa.Connection, dialect: Dialect, run: Run, changed: int) -> None:
    """Record that what was left of a run is done, with so many rows changed. Its runners commit
    nothing more."""
    ranges.finish(connection, dialect, run)
    ranges.add_changed(connection, run, changed)
    quarantine.clear(connection, run)
    if run.status is Status.PAUSED:
        runs.set_status(connection, dialect, run, Status.PENDING, None)
    runs.set_status(connection, dialect, run, Status.RUNNING, None)
    runs.set_status(connection, dialect, run, Status.SUCCEEDED, None)
    runs.note(connection, dialect, run.name, run.id, "completed inline", f"{changed} rows")


class Store:
    """Runs, ranges, leases, failures and events of one database."""

    def __init__(self, dialect: Dialect, version_table: str = "") -> None:
        self._dialect = dialect
        self._version_table = version_table
        """Of the project whose runs are created here."""
        self._connections = Connections(dialect, _LIMITS)

    def transaction(self, *, write: bool = True) -> AbstractContextManager[sa.Connection]:
        """Run one transaction on a connection that nobody else uses."""
        return self._connections.transaction(write=write)

    def kept_open(self) -> AbstractContextManager[None]:
        """Use connections again while this lasts."""
        return self._connections.kept_open()

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @contextmanager
    def refusals_told(self, *, at_once: bool = False) -> Iterator[None]:
        """Wrap SQL on our tables alone: a missing right raises StateRefused, with the GRANT; so
        does, `at_once`, a read-only database, which others try again: it may be a failover."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            kind = self._dialect.error_kind(error)
            if kind is ErrorKind.RIGHTS:
                raise StateRefused(self._missing_right()) from error
            if at_once and kind in _UNWRITABLE:
                raise StateRefused(_UNWRITABLE[kind]) from error
            raise

    def _missing_right(self) -> str:
        with suppress(sa.exc.SQLAlchemyError), self.transaction(write=False) as connection:
            for one in self._dialect.rights.on_state(connection, NAMES, schema_of(connection)):
                return f"{one.what}. {one.remedy};"
        return "This user may not write to the state tables; `backfill doctor` shows the GRANT."

    def exists(self) -> bool:
        """Whether the tables are there. Raises StateError if they are a newer version's."""
        try:
            return self._exists()
        except sa.exc.DBAPIError as error:
            kind = self._dialect.error_kind(error)
            if kind is ErrorKind.RIGHTS:
                raise StateError(
                    "This user may not read the tables backfill_*; `backfill doctor` shows the"
                    " GRANT. Or there is no such schema as `state_schema` says, if it is set."
                ) from error
            if kind is not ErrorKind.CONFLICT:
                raise
        time.sleep(_CREATE_SECONDS)  # another runner creates them right now
        return self._exists()

    def _exists(self) -> bool:
        with self.transaction(write=False) as connection:
            return exists(connection)

    def ensure(self) -> None:
        """Create the tables where they are missing; several runners may do so at once."""
        for attempt in range(_CREATE_TRIES):
            if self.exists():
                with self.transaction(write=False) as connection:
                    runs.refuse_missing(connection)
                return
            try:
                with self.transaction() as connection:
                    runs.create_tables(connection)
                return
            except sa.exc.DBAPIError as error:
                if self._dialect.error_kind(error) is ErrorKind.RIGHTS:
                    raise StateError(
                        "This user may not create the tables backfill_*. Let a user with CREATE on"
                        " the schema run once, or GRANT CREATE to this one."
                    ) from error
                if attempt == _CREATE_TRIES - 1:
                    raise
                logger.debug("another runner creates the tables")
                time.sleep(0.1 * (attempt + 1))

    # -- runs --------------------------------------------------------------------------

    def current(self, name: str) -> Run | None:
        """Return a backfill's latest run."""
        with self.transaction(write=False) as connection:
            return current(connection, name)

    def latest(self) -> list[Run]:
        """Return the latest run of every backfill that was ever run, declared today or not."""
        if not self.exists():
            return []
        with self.transaction(write=False) as connection:
            return runs.latest(connection)

    def create(self, new: NewRun, bounds: Sequence[tuple[KeyValues, KeyValues]]) -> Run:
        """Record a new run with its key ranges; the one that another runner just made, if so."""
        try:
            with self.transaction() as connection:
                run_id = runs.insert(connection, self._dialect, new, self._version_table)
                ranges.insert(connection, self._dialect, run_id, 1, bounds)
                self._note(connection, new.name, run_id, "created", f"{len(bounds)} key ranges")
        except sa.exc.IntegrityError:
            logger.debug("another runner created this run first")
        run = self.current(new.name)
        assert run is not None
        return run

    def add_pass(self, run: Run, bounds: Sequence[tuple[KeyValues, KeyValues]]) -> None:
        """Begin the run's next pass, unless another runner just did."""
        with self.transaction() as connection:
            if runs.next_pass(connection, self._dialect, run):
                number = run.pass_number + 1
                ranges.insert(connection, self._dialect, run.id, number, bounds)
                self._note(connection, run.name, run.id, "swept again", f"{len(bounds)} ranges")

    def move(
        self, name: str, wanted: Status, *, error: str | None = None, only: Run | None = None
    ) -> Run:
        """Change the status of a backfill's latest run, as the state machine allows.

        Pausing, cancelling and making it stale also replace every lease's token: when this has
        returned, no further chunk of any runner can commit. `only` is the run that a runner
        means, in the pass that it walked. Raises InvalidTransition, StateError if there is no
        run, and LeaseLost if the latest one is not that run, or is being swept again.
        """
        with self.transaction() as connection:
            run = current(connection, name, lock=self._dialect)
            if run is None:
                raise StateError(f"Backfill {name!r} has no run yet; start it with `backfill run`.")
            if only is not None and (run.id, run.pass_number) != (only.id, only.pass_number):
                raise LeaseLost(0)
            check_transition(name, run.status, wanted)
            runs.set_status(connection, self._dialect, run, wanted, error)
            if wanted in (Status.PAUSED, Status.CANCELLED, Status.FAILED, Status.STALE):
                ranges.revoke(connection, run)
        return replace(run, status=wanted, error=error)

    def rest(self, run: Run) -> None:
        """Make a running run pending again, unless another runner works on it."""
        with self.transaction() as connection:
            now = current(connection, run.name, lock=self._dialect)
            if now is None or now.id != run.id or now.status is not Status.RUNNING:
                return
            found = ranges.of_pass(connection, self._dialect, now)
            if not any(one.lease_is_live for one in found):
                runs.set_status(connection, self._dialect, now, Status.PENDING, None)

    def change(self, name: str, changes: Mapping[str, Any]) -> Run:
        """Change settings of a backfill's unfinished run, None taking a change back.

        Its runners follow when they look next. Raises StateError if there is no such run.
        """
        with self.transaction() as connection:
            run = current(connection, name, lock=self._dialect)
            if run is None or run.is_over:
                raise StateError(
                    f"Backfill {name!r} has no unfinished run whose settings could be changed; give"
                    " them to `backfill run`, or set them in the class."
                )
            changed = runs.change(connection, self._dialect, run, changes)
            details = ", ".join(f"{k}={'' if v is None else v}" for k, v in changes.items())
            self._note(connection, run.name, run.id, "set", details)
        return replace(run, changed=changed)

    def terms(self, run: Run) -> Terms:
        """Return how a run stands. Raises LeaseLost if it is there no more."""
        with self.transaction(write=False) as connection:
            now = runs.by_id(connection, run.id)
            if now is None:
                raise LeaseLost(0)
            return Terms(now.status, ranges.sharing(connection, self._dialect, run), now.changed)

    def last_note(self, run: Run) -> tuple[str, str] | None:
        """Return what the audit of a run says last, and the details."""
        with self.transaction(write=False) as connection:
            return runs.last_note(connection, run.id)

    def note(self, run: Run, what: str, details: str) -> None:
        """Add to the audit of a run."""
        with self.transaction() as connection:
            self._note(connection, run.name, run.id, what, details)

    def touch(self, connection: sa.Connection, run: Run) -> None:
        """Write the least that there is to write, for a probe."""
        runs.touch(connection, self._dialect, run)

    def take_turn(self, run: Run, what: str, every: int) -> bool:
        """Whether the run has changed so many rows, or a multiple, since something was done, and
        the caller is the one to do it now. Noted with the rows changed, under the run's lock."""
        with self.transaction() as connection:
            now = current(connection, run.name, lock=self._dialect)
            if now is None or now.id != run.id:
                return False
            changed = ranges.changed(connection, run)
            if changed // every <= runs.last_number(connection, run.id, what) // every:
                return False
            self._note(connection, run.name, run.id, what, str(changed))
            return True

    def accept(self, run: Run, fingerprint: str) -> None:
        """Let the run go on with a declaration that changed."""
        with self.transaction() as connection:
            accept_here(connection, self._dialect, run, fingerprint)

    def locked_status(self, connection: sa.Connection, run: Run) -> Status:
        """Return a run's status, which nobody can change before the transaction ends."""
        now = current(connection, run.name, lock=self._dialect)
        return now.status if now is not None and now.id == run.id else Status.CANCELLED

    # -- ranges and leases -----------------------------------------------------------

    def ranges(self, run: Run) -> list[KeyRange]:
        """Return the key ranges of the run's present pass, in key order."""
        with self.transaction(write=False) as connection:
            return ranges.of_pass(connection, self._dialect, run)

    def split(
        self, run: Run, found: KeyRange, bounds: Sequence[tuple[KeyValues, KeyValues]]
    ) -> None:
        """Cut what is left of a free range, if it still is as it was found, into these bounds."""
        with self.transaction() as connection:
            if ranges.cut(connection, found, bounds[0][1]):
                ranges.insert(connection, self._dialect, run.id, run.pass_number, bounds[1:])
                self._note(connection, run.name, run.id, "split", f"{len(bounds)} key ranges")

    def claim(self, run: Run, found: KeyRange, token: str, lease_seconds: float) -> Lease | None:
        """Claim a range as it was found, with a fresh token; None if somebody was faster.

        The run's row is locked first: a pause that is being committed is waited for.
        """
        with self.transaction() as connection:
            now = current(connection, run.name, lock=self._dialect)
            if now is None or now.id != run.id or now.status not in _CLAIMABLE:
                return None
            lease = ranges.claim(connection, self._dialect, found, token, lease_seconds)
            if lease is not None and now.status is not Status.RUNNING:
                runs.set_status(connection, self._dialect, now, Status.RUNNING, None)
            return lease

    def claim_again(self, lease: Lease, lease_seconds: float, tried: list[str]) -> Lease:
        """Take our own lease with a fresh token and adopt the cursor that is stored.

        Waits for a transaction of ours that may still be alive on the server; whatever is
        stored afterwards is the truth. `tried` collects the tokens of attempts whose outcome
        is unknown too. Raises LeaseLost if the lease is no longer ours.
        """
        ours = [lease.token, *tried]
        token = secrets.token_hex(16)
        tried.append(token)
        with self.transaction() as connection:
            again = ranges.claim_again(connection, self._dialect, lease, ours, token, lease_seconds)
            if again is None:
                raise LeaseLost(lease.range_id)
            return again

    def renew(self, lease: Lease, lease_seconds: float, throttled: str | None = None) -> None:
        """Keep a lease while nothing is committed, and say why. Raises LeaseLost."""
        with self.transaction() as connection:
            if not ranges.renew(connection, self._dialect, lease, lease_seconds, throttled):
                raise LeaseLost(lease.range_id)

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it is no longer ours."""
        with self.transaction() as connection:
            ranges.release(connection, lease)

    def checkpoint(
        self,
        connection: sa.Connection,
        lease: Lease,
        lease_seconds: float,
        new: Checkpoint,
        failures: Sequence[Failure] = (),
    ) -> Lease:
        """Move the cursor inside the chunk's transaction, and return the lease as it is then.

        Raises LeaseLost if token or cursor are not those we know: roll back.
        """
        if failures:
            quarantine.insert(connection, self._dialect, lease.run_id, failures)
        if not ranges.checkpoint(connection, self._dialect, lease, lease_seconds, new):
            raise LeaseLost(lease.range_id)
        return replace(lease, cursor=new.upto, finished=new.finished, size=new.size)

    # -- failures and totals -----------------------------------------------------------

    def failures(self, run: Run) -> list[Failure]:
        """Return the run's quarantined rows."""
        with self.transaction(write=False) as connection:
            return quarantine.of_run(connection, run)

    def resolve(self, connection: sa.Connection, run: Run, failure: Failure, changed: int) -> None:
        """Take a row out of quarantine, in the transaction that wrote it. LeaseLost: done."""
        if not quarantine.delete(connection, failure):
            raise LeaseLost(failure.id or 0)
        ranges.add_changed(connection, run, changed)

    def failed_again(self, failure: Failure, error: str) -> None:
        """Count another attempt at a quarantined row."""
        with self.transaction() as connection:
            quarantine.failed_again(connection, self._dialect, failure, error)

    def totals(self, run: Run) -> tuple[int, int]:
        """Return rows changed in all passes, and the number of quarantined rows."""
        with self.transaction(write=False) as connection:
            return ranges.changed(connection, run), quarantine.count(connection, run)

    def changed_in_pass(self, run: Run, pass_number: int) -> int:
        """Return the rows that one pass changed."""
        with self.transaction(write=False) as connection:
            return ranges.changed(connection, run, pass_number)

    def _note(
        self, connection: sa.Connection, name: str, run_id: int, what: str, details: str
    ) -> None:
        runs.note(connection, self._dialect, name, run_id, what, details)
