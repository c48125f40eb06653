"""SQL on `backfill_range`, in the caller's transaction: claims, and the guarded checkpoint."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import keys, owners, tables
from backfill.runs import KeyRange, Lease
from backfill.store.placing import execute
from backfill.store.reading import as_written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects import Dialect
    from backfill.keys import KeyValues
    from backfill.runs import Checkpoint, Run

_range = tables.key_range

_UNCLAIMED: dict[str, Any] = {
    "token": None,
    "owner": None,
    "lease_expires": None,
    "throttled": None,
    "rows_per_second": 0.0,
}


def insert(
    connection: sa.Connection,
    dialect: Dialect,
    run_id: int,
    pass_number: int,
    bounds: Sequence[tuple[KeyValues, KeyValues]],
) -> None:
    """Add ranges that nobody has claimed."""
    for lower, upper in bounds:
        execute(
            connection,
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
                updated_at=dialect.now(),
            ),
        )


def sharing(connection: sa.Connection, dialect: Dialect, run: Run) -> int:
    """Count the run's live leases, by the database's clock."""
    statement = sa.select(sa.func.count()).where(
        _range.c.run_id == run.id, _range.c.finished == sa.false(), _is_live(dialect)
    )
    return int(execute(connection, statement).scalar_one())


@as_written
def of_pass(connection: sa.Connection, dialect: Dialect, run: Run) -> list[KeyRange]:
    """Return the ranges of the run's present pass, in key order."""
    rows = execute(
        connection,
        sa.select(
            _range,
            sa.case((_is_live(dialect), 1), else_=0).label("is_live"),
            sa.type_coerce(dialect.now(), _range.c.updated_at.type).label("now"),
        )
        .where(_range.c.run_id == run.id, _range.c.pass_number == run.pass_number)
        .order_by(_range.c.id),
    )
    return [_to_range(row) for row in rows]


def cut(connection: sa.Connection, found: KeyRange, upper: KeyValues) -> bool:
    """Lower a range's bound and fence whoever held it, if it still is as it was found."""
    result = execute(
        connection,
        sa.update(_range)
        .where(
            _as_found(found),
            _range.c.cursor == keys.dumps(found.cursor),
            _range.c.upper == keys.dumps(found.upper),
        )
        .values(**_UNCLAIMED, upper=keys.dumps(upper)),
    )
    return result.rowcount == 1


def claim(
    connection: sa.Connection, dialect: Dialect, found: KeyRange, token: str, lease_seconds: float
) -> Lease | None:
    """Claim a range as it was found; None if it is not so any more."""
    return _claim(connection, dialect, _as_found(found), found.id, token, lease_seconds)


def claim_again(
    connection: sa.Connection,
    dialect: Dialect,
    lease: Lease,
    ours: Sequence[str],
    token: str,
    lease_seconds: float,
) -> Lease | None:
    """Claim what we hold under one of our tokens; None if none of them is there any more."""
    held = sa.and_(_range.c.id == lease.range_id, _range.c.token.in_(ours))
    return _claim(connection, dialect, held, lease.range_id, token, lease_seconds)


def renew(
    connection: sa.Connection,
    dialect: Dialect,
    lease: Lease,
    lease_seconds: float,
    throttled: str | None,
) -> bool:
    """Move a lease's end, and say why nothing is committed; False if it is lost."""
    result = execute(
        connection,
        sa.update(_range)
        .where(_range.c.id == lease.range_id, _range.c.token == lease.token)
        .values(lease_expires=dialect.now(lease_seconds), throttled=throttled),
    )
    return result.rowcount == 1


def release(connection: sa.Connection, lease: Lease) -> None:
    """Give a lease back, if it is ours."""
    execute(
        connection,
        sa.update(_range)
        .where(_range.c.id == lease.range_id, _range.c.token == lease.token)
        .values(**_UNCLAIMED),
    )


def revoke(connection: sa.Connection, run: Run) -> None:
    """Take every lease of a run away: after the commit no further chunk can commit."""
    execute(
        connection,
        sa.update(_range)
        .where(_range.c.run_id == run.id, _range.c.token.is_not(None))
        .values(**_UNCLAIMED),
    )


def finish(connection: sa.Connection, dialect: Dialect, run: Run) -> None:
    """Move the cursors of a run's present pass to their ends, whoever held them."""
    execute(
        connection,
        sa.update(_range)
        .where(_range.c.run_id == run.id, _range.c.pass_number == run.pass_number)
        .values(**_UNCLAIMED, cursor=_range.c.upper, finished=True, updated_at=dialect.now()),
    )


def checkpoint(
    connection: sa.Connection, dialect: Dialect, lease: Lease, lease_seconds: float, new: Checkpoint
) -> bool:
    """Move the cursor, if token and cursor are those we know; False: roll back.

    Both are needed: the cursor makes commits a chain, so that each interval is committed once
    whoever ran it; the token fences.
    """
    result = execute(
        connection,
        _checkpoint(dialect, lease_seconds),
        {
            "the_range": lease.range_id,
            "mine": lease.token,
            "after": keys.dumps(lease.cursor),
            "upto": keys.dumps(new.upto),
            "scanned": new.scanned,
            "changed": new.changed,
            "is_finished": new.finished,
            "rate": new.rows_per_second,
            "now_size": new.size,
            "why": new.throttled,
        },
    )
    return result.rowcount == 1


def add_changed(connection: sa.Connection, run: Run, changed: int) -> None:
    """Count rows that were changed outside the walk."""
    ours = _range.c.run_id == run.id
    first = execute(connection, sa.select(sa.func.min(_range.c.id)).where(ours)).scalar()
    execute(
        connection,
        sa.update(_range)
        .where(_range.c.id == first)
        .values(rows_changed=_range.c.rows_changed + changed),
    )


def changed(connection: sa.Connection, run: Run, pass_number: int | None = None) -> int:
    """Return the rows changed in one pass, or in all."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(_range.c.rows_changed), 0))
    statement = statement.where(_range.c.run_id == run.id)
    if pass_number is not None:
        statement = statement.where(_range.c.pass_number == pass_number)
    return int(execute(connection, statement).scalar_one())


def _is_live(dialect: Dialect) -> sa.ColumnElement[bool]:
    return sa.and_(_range.c.token.is_not(None), _range.c.lease_expires > dialect.now())


def _as_found(found: KeyRange) -> sa.ColumnElement[bool]:
    return sa.and_(
        _range.c.id == found.id,
        _range.c.finished == sa.false(),
        _range.c.token == found.token if found.token else _range.c.token.is_(None),
    )


@as_written
def _claim(
    connection: sa.Connection,
    dialect: Dialect,
    condition: sa.ColumnElement[bool],
    range_id: int,
    token: str,
    lease_seconds: float,
) -> Lease | None:
    claimed = execute(
        connection,
        sa.update(_range)
        .where(condition)
        .values(
            token=token,
            owner=owners.myself(),
            claims=_range.c.claims + 1,
            lease_expires=dialect.now(lease_seconds),
            updated_at=dialect.now(),
        ),
    )
    if claimed.rowcount != 1:
        return None
    row = execute(connection, sa.select(_range).where(_range.c.id == range_id)).one()
    return Lease(
        range_id=row.id,
        run_id=row.run_id,
        token=token,
        cursor=keys.loads(row.cursor),
        upper=keys.loads(row.upper),
        finished=bool(row.finished),
        size=row.size,
    )


@lru_cache(maxsize=16)
def _checkpoint(dialect: Dialect, lease_seconds: float) -> sa.Update:
    return (
        sa.update(_range)
        .where(
            _range.c.id == sa.bindparam("the_range"),
            _range.c.token == sa.bindparam("mine"),
            _range.c.cursor == sa.bindparam("after"),
        )
        .values(
            cursor=sa.bindparam("upto"),
            rows_scanned=_range.c.rows_scanned + sa.bindparam("scanned", type_=sa.BigInteger),
            rows_changed=_range.c.rows_changed + sa.bindparam("changed", type_=sa.BigInteger),
            chunks=_range.c.chunks + 1,
            finished=sa.bindparam("is_finished", type_=sa.Boolean),
            rows_per_second=sa.bindparam("rate", type_=sa.Float),
            size=sa.bindparam("now_size", type_=sa.Integer),
            throttled=sa.bindparam("why", type_=sa.Text),
            lease_expires=dialect.now(lease_seconds),
            updated_at=dialect.now(),
        )
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
        quiet_seconds=(row.now - row.updated_at).total_seconds(),
    )
