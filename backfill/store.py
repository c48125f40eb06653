"""The only SQL on our own tables. Each method is one short transaction, except those that
take a connection: these belong to a chunk's transaction."""

from __future__ import annotations

import getpass
import json
import logging
import secrets
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import keys, owners, tables
from backfill.dialects import ErrorKind, Limits
from backfill.errors import LeaseLost, StateError
from backfill.runs import Failure, KeyRange, Lease, Run, Status, check_transition

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backfill.dialects import Dialect
    from backfill.keys import KeyValues

logger = logging.getLogger(__name__)

_LIMITS = Limits(lock_timeout=10, statement_timeout=30, idle_timeout=10, label="backfill: state")
"""Waiting here holds nothing that the application wants."""
_CREATE_TRIES = 5
_CLAIMABLE = (Status.PENDING.value, Status.RUNNING.value, Status.FAILED.value)

_run, _range, _failure, _event = tables.run, tables.key_range, tables.failure, tables.event


class Store:
    """Runs, ranges, leases, failures and events of one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._checkpoints: dict[float, sa.Update] = {}

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """Run one transaction on a connection of its own."""
        with (
            self._dialect.open(_LIMITS) as connection,
            self._dialect.transaction(connection, _LIMITS, write=write),
        ):
            yield connection

    # -- the tables --------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether the tables are there. Raises StateError if they are a newer version's."""
        with self.transaction(write=False) as connection:
            return exists(connection)

    def ensure(self) -> None:
        """Create the tables where they are missing; several runners may do so at once."""
        for attempt in range(_CREATE_TRIES):
            if self.exists():
                return
            try:
                with self.transaction() as connection:
                    tables.metadata.create_all(connection, tables=_all_but_schema())
                    tables.schema.create(connection, checkfirst=True)
                    connection.execute(
                        sa.insert(tables.schema).values(version=tables.SCHEMA_VERSION)
                    )
                return
            except sa.exc.DBAPIError as error:
                kind = self._dialect.error_kind(error)
                if kind is ErrorKind.RIGHTS:
                    raise StateError(
                        "This user may not create the tables backfill_*. Let a user with CREATE on"
                        " the schema run once, or GRANT CREATE to this one."
                    ) from error
                if attempt == _CREATE_TRIES - 1:
                    raise
                logger.debug("another runner creates the tables", exc_info=True)
                time.sleep(0.1 * (attempt + 1))

    # -- runs --------------------------------------------------------------------------

    def current(self, name: str) -> Run | None:
        """Return a backfill's latest run."""
        with self.transaction(write=False) as connection:
            return current(connection, name)

    def create(
        self,
        name: str,
        *,
        number: int,
        revision: str,
        fingerprint: str,
        settings: Mapping[str, Any],
        rows_estimated: int | None,
        horizon: str | None,
        bounds: Sequence[tuple[KeyValues, KeyValues]],
    ) -> Run:
        """Record a new run with its key ranges; the one that another runner just made, if so."""
        try:
            with self.transaction() as connection:
                now = self._dialect.now()
                result = connection.execute(
                    sa.insert(_run).values(
                        name=name,
                        number=number,
                        revision=revision,
                        fingerprint=fingerprint,
                        status=Status.PENDING.value,
                        pass_number=1,
                        settings=json.dumps(settings),
                        rows_estimated=rows_estimated,
                        horizon=horizon,
                        created_at=now,
                        updated_at=now,
                    )
                )
                run_id = int(result.inserted_primary_key[0])  # type: ignore[index]
                self._add_ranges(connection, run_id, 1, bounds)
                self._note(connection, name, run_id, "created", f"{len(bounds)} key ranges")
        except sa.exc.IntegrityError:
            logger.debug("another runner created this run first", exc_info=True)
        run = self.current(name)
        assert run is not None
        return run

    def add_pass(self, run: Run, bounds: Sequence[tuple[KeyValues, KeyValues]]) -> None:
        """Begin the run's next pass, unless another runner just did."""
        with self.transaction() as connection:
            advanced = connection.execute(
                sa.update(_run)
                .where(_run.c.id == run.id, _run.c.pass_number == run.pass_number)
                .values(pass_number=run.pass_number + 1, updated_at=self._dialect.now())
            )
            if advanced.rowcount == 1:
                self._add_ranges(connection, run.id, run.pass_number + 1, bounds)
                self._note(connection, run.name, run.id, "swept again", f"{len(bounds)} ranges")

    def move(self, name: str, wanted: Status, *, error: str | None = None) -> Run:
        """Change the status of a backfill's latest run, as the state machine allows.

        Pausing and cancelling also replace every lease's token: when this has returned, no
        further chunk of any runner can commit. Raises InvalidTransition, or StateError if
        there is no run.
        """
        with self.transaction() as connection:
            run = current(connection, name, lock=self._dialect)
            if run is None:
                raise StateError(f"Backfill {name!r} has no run yet; start it with `backfill run`.")
            check_transition(name, run.status, wanted)
            self._set_status(connection, run, wanted, error)
            if wanted in (Status.PAUSED, Status.CANCELLED, Status.FAILED):
                self._revoke(connection, run)
        return replace(run, status=wanted, error=error)

    def rest(self, run: Run) -> None:
        """Make a running run pending again, unless another runner works on it."""
        with self.transaction() as connection:
            now = current(connection, run.name, lock=self._dialect)
            if now is None or now.id != run.id or now.status is not Status.RUNNING:
                return
            if not any(r.lease_is_live for r in self._ranges(connection, now)):
                self._set_status(connection, now, Status.PENDING, None)

    def accept(self, run: Run, fingerprint: str) -> None:
        """Let the run go on with a declaration that changed."""
        with self.transaction() as connection:
            connection.execute(
                sa.update(_run).where(_run.c.id == run.id).values(fingerprint=fingerprint)
            )
            self._note(connection, run.name, run.id, "declaration changed", "accepted")

    # -- ranges and leases -----------------------------------------------------------

    def ranges(self, run: Run) -> list[KeyRange]:
        """Return the key ranges of the run's present pass, in key order."""
        with self.transaction(write=False) as connection:
            return self._ranges(connection, run)

    def split(
        self, run: Run, found: KeyRange, bounds: Sequence[tuple[KeyValues, KeyValues]]
    ) -> None:
        """Cut what is left of a free range, if it still is as it was found, into these bounds."""
        with self.transaction() as connection:
            cut = connection.execute(
                sa.update(_range)
                .where(
                    _is_as_found(found),
                    _range.c.cursor == keys.dumps(found.cursor),
                    _range.c.upper == keys.dumps(found.upper),
                )
                .values(**_UNCLAIMED, upper=keys.dumps(bounds[0][1]))
            )
            if cut.rowcount == 1:
                self._add_ranges(connection, run.id, run.pass_number, bounds[1:])
                self._note(connection, run.name, run.id, "split", f"{len(bounds)} key ranges")

    def claim(self, run: Run, found: KeyRange, token: str, lease_seconds: float) -> Lease | None:
        """Claim a range as it was found, with a fresh token; None if somebody was faster.

        The run's row is locked first: a pause that is being committed is waited for.
        """
        with self.transaction() as connection:
            now = current(connection, run.name, lock=self._dialect)
            if now is None or now.id != run.id or now.status.value not in _CLAIMABLE:
                return None
            claimed = connection.execute(
                sa.update(_range)
                .where(_is_as_found(found))
                .values(**self._claimed(token, lease_seconds))
            )
            if claimed.rowcount != 1:
                return None
            if now.status is not Status.RUNNING:
                self._set_status(connection, now, Status.RUNNING, None)
            return self._lease(connection, found.id, token)

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
            claimed = connection.execute(
                sa.update(_range)
                .where(_range.c.id == lease.range_id, _range.c.token.in_(ours))
                .values(**self._claimed(token, lease_seconds))
            )
            if claimed.rowcount != 1:
                raise LeaseLost(lease.range_id)
            return self._lease(connection, lease.range_id, token)

    def renew(self, lease: Lease, lease_seconds: float, throttled: str | None = None) -> None:
        """Keep a lease while nothing is committed, and say why. Raises LeaseLost."""
        with self.transaction() as connection:
            renewed = connection.execute(
                sa.update(_range)
                .where(_range.c.id == lease.range_id, _range.c.token == lease.token)
                .values(
                    lease_expires=self._dialect.now(lease_seconds),
                    updated_at=self._dialect.now(),
                    throttled=throttled,
                )
            )
            if renewed.rowcount != 1:
                raise LeaseLost(lease.range_id)

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it is no longer ours."""
        with self.transaction() as connection:
            connection.execute(
                sa.update(_range)
                .where(_range.c.id == lease.range_id, _range.c.token == lease.token)
                .values(**_UNCLAIMED, updated_at=self._dialect.now())
            )

    def checkpoint(
        self,
        connection: sa.Connection,
        lease: Lease,
        *,
        upto: KeyValues,
        scanned: int,
        changed: int,
        finished: bool,
        rows_per_second: float,
        size: int,
        lease_seconds: float,
        failures: Sequence[Failure] = (),
    ) -> Lease:
        """Move the cursor inside the chunk's transaction, and return the lease as it is then.

        Both conditions are needed: the cursor makes commits a chain, so that each interval is
        committed once whoever ran it; the token fences. Raises LeaseLost: roll back.
        """
        if failures:
            self._add_failures(connection, lease.run_id, failures)
        moved = connection.execute(
            self._checkpoint(lease_seconds),
            {
                "the_range": lease.range_id,
                "mine": lease.token,
                "after": keys.dumps(lease.cursor),
                "upto": keys.dumps(upto),
                "scanned": scanned,
                "changed": changed,
                "is_finished": finished,
                "rate": rows_per_second,
                "now_size": size,
            },
        )
        if moved.rowcount != 1:
            raise LeaseLost(lease.range_id)
        return replace(lease, cursor=upto, finished=finished, size=size)

    # -- failures and events -----------------------------------------------------------

    def failures(self, run: Run) -> list[Failure]:
        """Return the run's quarantined rows."""
        with self.transaction(write=False) as connection:
            return failures(connection, run)

    def resolve(self, connection: sa.Connection, run: Run, failure: Failure, changed: int) -> None:
        """Take a row out of quarantine, in the transaction that wrote it. LeaseLost: done."""
        gone = connection.execute(sa.delete(_failure).where(_failure.c.id == failure.id))
        if gone.rowcount != 1:
            raise LeaseLost(failure.id or 0)
        ours = _range.c.run_id == run.id
        first = connection.execute(sa.select(sa.func.min(_range.c.id)).where(ours)).scalar()
        connection.execute(
            sa.update(_range)
            .where(_range.c.id == first)
            .values(rows_changed=_range.c.rows_changed + changed)
        )

    def locked_status(self, connection: sa.Connection, run: Run) -> Status:
        """Return a run's status, which nobody can change before the transaction ends."""
        now = current(connection, run.name, lock=self._dialect)
        return now.status if now is not None and now.id == run.id else Status.CANCELLED

    def failed_again(self, failure: Failure, error: str) -> None:
        """Count another attempt at a quarantined row."""
        with self.transaction() as connection:
            connection.execute(
                sa.update(_failure)
                .where(_failure.c.id == failure.id)
                .values(
                    error=error,
                    attempts=_failure.c.attempts + 1,
                    updated_at=self._dialect.now(),
                )
            )

    def totals(self, run: Run) -> tuple[int, int]:
        """Return rows changed in all passes, and the number of quarantined rows."""
        with self.transaction(write=False) as connection:
            changed = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(_range.c.rows_changed), 0)).where(
                    _range.c.run_id == run.id
                )
            ).scalar_one()
            quarantined = connection.execute(
                sa.select(sa.func.count()).where(_failure.c.run_id == run.id)
            ).scalar_one()
            return int(changed), int(quarantined)

    def changed_in_pass(self, run: Run, pass_number: int) -> int:
        """Return the rows that one pass changed."""
        with self.transaction(write=False) as connection:
            changed = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(_range.c.rows_changed), 0)).where(
                    _range.c.run_id == run.id, _range.c.pass_number == pass_number
                )
            )
            return int(changed.scalar_one())

    # -- inside a transaction ------------------------------------------------------------

    def _ranges(self, connection: sa.Connection, run: Run) -> list[KeyRange]:
        is_live = sa.and_(_range.c.token.is_not(None), _range.c.lease_expires > self._dialect.now())
        rows = connection.execute(
            sa.select(_range, sa.case((is_live, 1), else_=0).label("is_live"))
            .where(_range.c.run_id == run.id, _range.c.pass_number == run.pass_number)
            .order_by(_range.c.id)
        )
        return [_to_range(row) for row in rows]

    def _lease(self, connection: sa.Connection, range_id: int, token: str) -> Lease:
        row = connection.execute(sa.select(_range).where(_range.c.id == range_id)).one()
        return Lease(
            range_id=row.id,
            run_id=row.run_id,
            token=token,
            cursor=keys.loads(row.cursor),
            upper=keys.loads(row.upper),
            finished=bool(row.finished),
            size=row.size,
        )

    def _claimed(self, token: str, lease_seconds: float) -> dict[str, Any]:
        return {
            "token": token,
            "owner": owners.myself(),
            "claims": _range.c.claims + 1,
            "lease_expires": self._dialect.now(lease_seconds),
            "updated_at": self._dialect.now(),
        }

    def _checkpoint(self, lease_seconds: float) -> sa.Update:
        if lease_seconds not in self._checkpoints:
            self._checkpoints[lease_seconds] = (
                sa.update(_range)
                .where(
                    _range.c.id == sa.bindparam("the_range"),
                    _range.c.token == sa.bindparam("mine"),
                    _range.c.cursor == sa.bindparam("after"),
                )
                .values(
                    cursor=sa.bindparam("upto"),
                    rows_scanned=_range.c.rows_scanned
                    + sa.bindparam("scanned", type_=sa.BigInteger),
                    rows_changed=_range.c.rows_changed
                    + sa.bindparam("changed", type_=sa.BigInteger),
                    chunks=_range.c.chunks + 1,
                    finished=sa.bindparam("is_finished", type_=sa.Boolean),
                    rows_per_second=sa.bindparam("rate", type_=sa.Float),
                    size=sa.bindparam("now_size", type_=sa.Integer),
                    throttled=None,
                    lease_expires=self._dialect.now(lease_seconds),
                    updated_at=self._dialect.now(),
                )
            )
        return self._checkpoints[lease_seconds]

    def _add_ranges(
        self,
        connection: sa.Connection,
        run_id: int,
        pass_number: int,
        bounds: Sequence[tuple[KeyValues, KeyValues]],
    ) -> None:
        for lower, upper in bounds:
            connection.execute(
                sa.insert(_range).values(
                    run_id=run_id,
                    pass_number=pass_number,
                    lower=keys.dumps(lower),
                    upper=keys.dumps(upper),
                    cursor=keys.dumps(lower),
                    rows_scanned=0,
                    rows_changed=0,
                    rows_per_second=0.0,
                    chunks=0,
                    finished=False,
                    claims=0,
                    updated_at=self._dialect.now(),
                )
            )

    def _add_failures(
        self, connection: sa.Connection, run_id: int, found: Sequence[Failure]
    ) -> None:
        for failure in found:
            connection.execute(
                sa.insert(_failure).values(
                    run_id=run_id,
                    key=keys.dumps(failure.key),
                    error=failure.error,
                    attempts=failure.attempts,
                    updated_at=self._dialect.now(),
                )
            )

    def _set_status(
        self, connection: sa.Connection, run: Run, wanted: Status, error: str | None
    ) -> None:
        now = self._dialect.now()
        over = {"finished_at": now} if wanted in (Status.SUCCEEDED, Status.CANCELLED) else {}
        connection.execute(
            sa.update(_run)
            .where(_run.c.id == run.id)
            .values(status=wanted.value, error=error, updated_at=now, **over)
        )
        self._note(connection, run.name, run.id, wanted.value, error or "")

    def _revoke(self, connection: sa.Connection, run: Run) -> None:
        connection.execute(
            sa.update(_range)
            .where(_range.c.run_id == run.id, _range.c.token.is_not(None))
            .values(**_UNCLAIMED)
        )

    def _note(
        self, connection: sa.Connection, name: str, run_id: int, what: str, details: str
    ) -> None:
        connection.execute(
            sa.insert(_event).values(
                name=name,
                run_id=run_id,
                happened_at=self._dialect.now(),
                what=what,
                who=_who(),
                details=details,
            )
        )


_UNCLAIMED: dict[str, Any] = {
    "token": None,
    "owner": None,
    "lease_expires": None,
    "throttled": None,
    "rows_per_second": 0.0,
}


def _is_as_found(found: KeyRange) -> sa.ColumnElement[bool]:
    return sa.and_(
        _range.c.id == found.id,
        _range.c.finished == sa.false(),
        _range.c.token == found.token if found.token else _range.c.token.is_(None),
    )


def exists(connection: sa.Connection) -> bool:
    """Whether the tables are there. Raises StateError if they are a newer version's."""
    if not sa.inspect(connection).has_table(tables.schema.name):
        return False
    version = connection.execute(sa.select(sa.func.max(tables.schema.c.version))).scalar()
    if version is not None and version > tables.SCHEMA_VERSION:
        raise StateError(
            f"The tables backfill_* are of version {version}; this backfill knows"
            f" {tables.SCHEMA_VERSION}. Install the newer backfill that made them."
        )
    return version is not None


def current(connection: sa.Connection, name: str, *, lock: Dialect | None = None) -> Run | None:
    """Return a backfill's latest run; with `lock`, keep others from changing its status."""
    statement = sa.select(_run).where(_run.c.name == name).order_by(_run.c.number.desc()).limit(1)
    if lock is not None and lock.row_locks:
        statement = statement.with_for_update(key_share=True)
    row = connection.execute(statement).first()
    return None if row is None else _to_run(row)


def failures(connection: sa.Connection, run: Run) -> list[Failure]:
    """Return the run's quarantined rows."""
    rows = connection.execute(
        sa.select(_failure).where(_failure.c.run_id == run.id).order_by(_failure.c.id)
    )
    return [Failure(keys.loads(r.key), r.error, r.id, r.attempts) for r in rows]


def _all_but_schema() -> list[sa.Table]:
    """The version is written last: where it is, everything is."""
    return [table for table in tables.metadata.sorted_tables if table is not tables.schema]


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"  # a container whose user id has no name
    return f"{user}@{socket.gethostname()}"[:255]


def _to_run(row: Any) -> Run:
    return Run(
        id=row.id,
        name=row.name,
        number=row.number,
        revision=row.revision,
        fingerprint=row.fingerprint,
        status=Status(row.status),
        pass_number=row.pass_number,
        rows_estimated=row.rows_estimated,
        horizon=row.horizon,
        error=row.error,
        updated_at=row.updated_at,
    )


def _to_range(row: Any) -> KeyRange:
    return KeyRange(
        id=row.id,
        run_id=row.run_id,
        pass_number=row.pass_number,
        lower=keys.loads(row.lower),
        upper=keys.loads(row.upper),
        cursor=keys.loads(row.cursor),
        rows_scanned=row.rows_scanned,
        rows_changed=row.rows_changed,
        rows_per_second=row.rows_per_second,
        finished=bool(row.finished),
        token=row.token,
        owner=row.owner,
        lease_expires=row.lease_expires,
        lease_is_live=bool(row.is_live),
        size=row.size,
        throttled=row.throttled,
    )
