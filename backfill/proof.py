"""Whether a backfill is complete. With a `where` the data say so, not a status column."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import store
from backfill.chunks import LONGEST_STRIDE, Ranged, Walk, last_key, pending_condition
from backfill.dialects import ErrorKind
from backfill.keys import START
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from backfill.keys import KeyValues
    from backfill.targets import Target

    Reading = Callable[[], AbstractContextManager[Any]]
    """Wraps each short read, in a transaction of its own where the caller has none open."""


def incomplete_reason(
    connection: sa.Connection, target: Target, *, reading: Reading = nullcontext
) -> str | None:
    """Say why a backfill is not complete; None if it is. Reads only.

    With a `where`: no row matches it, quarantined rows included. Without one: its run has
    succeeded, or the table is empty.
    """
    if target.pending is not None:
        if not any_pending(connection, target, reading=reading):
            return None
        with reading():
            return f"rows of {target.table.fullname} are pending{_quarantine(connection, target)}"
    with reading():
        if last_key(connection, target.key) == START:
            return None
        name = target.declaration.name
        run = store.current(connection, name) if store.exists(connection) else None
    if run is None:
        return "it was never run"
    return None if run.status is Status.SUCCEEDED else f"its run is {run.status.value}"


def _quarantine(connection: sa.Connection, target: Target) -> str:
    """Say that running again will not help, where rows are in quarantine."""
    name = target.declaration.name
    run = store.current(connection, name) if store.exists(connection) else None
    rows = store.count_failures(connection, run) if run is not None else 0
    return f", {rows:,} of them quarantined (see `backfill failures {name}`)" if rows else ""


def any_pending(
    connection: sa.Connection,
    target: Target,
    quarantined: Sequence[KeyValues] = (),
    *,
    reading: Reading = nullcontext,
) -> bool:
    """Whether a row is pending, up to the highest key of this moment; in short reads.

    A read scans one stride once: sorted by pending first and key last, its first row is
    either pending, or the end of a stride in which nothing is.
    """
    key = target.key
    pending = pending_condition(target, quarantined)
    assert pending is not None
    strides = Ranged(key, lambda within: _last_or_pending(target, pending, within))
    with reading():
        upper = last_key(connection, key)
    after, stride = START, LONGEST_STRIDE
    while after != upper:
        statement, parameters = strides.between(after, upper)
        try:
            with reading():
                row = connection.execute(statement, {**parameters, "stride": stride}).first()
        except sa.exc.DBAPIError as error:
            if target.dialect.error_kind(error) is not ErrorKind.TOO_SLOW or stride == 1:
                raise
            stride //= 2
            continue
        if row is None:
            return False
        if row.is_pending:
            return True
        after = tuple(row)[:-1]
    return False


def count_pending(
    connection: sa.Connection, target: Target, *, reading: Reading = nullcontext
) -> int:
    """Count the pending rows, quarantined ones included, in short reads."""
    pending = target.pending
    assert pending is not None
    walk = Walk(target)
    counting = Ranged(
        target.key,
        lambda within: sa.select(sa.func.count()).select_from(target.table).where(within, pending),
    )
    with reading():
        upper = last_key(connection, target.key)
    found, after, stride = 0, START, LONGEST_STRIDE
    while after != upper:
        try:
            with reading():
                end, _, _ = walk.bounded(connection, after, upper, stride)
                statement, parameters = counting.between(after, end)
                found += int(connection.execute(statement, parameters).scalar_one())
        except sa.exc.DBAPIError as error:
            if target.dialect.error_kind(error) is not ErrorKind.TOO_SLOW or stride == 1:
                raise
            stride //= 2
            continue
        after = end
    return found


def _last_or_pending(
    target: Target, pending: sa.ColumnElement[bool], within: sa.ColumnElement[bool]
) -> sa.Select[Any]:
    flag = sa.case((pending, 1), else_=0).label("is_pending")
    stride = (
        sa.select(*target.key.selected, flag)
        .where(within)
        .order_by(*target.key.columns)
        .limit(sa.bindparam("stride", type_=sa.Integer()))
        .subquery("stride")
    )
    keys = [column for column in stride.c if column.name != "is_pending"]
    descending = [column.desc() for column in keys]
    return (
        sa.select(*keys, stride.c.is_pending)
        .order_by(stride.c.is_pending.desc(), *descending)
        .limit(1)
    )
