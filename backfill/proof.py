"""Whether a backfill is complete. With a `where` the data say so, not a status column."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import store
from backfill.chunks import LONGEST_STRIDE, Ranged, Walk, last_key, pending_condition
from backfill.dialects import ErrorKind
from backfill.keys import START, KeyValues
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects.base import Reading
    from backfill.targets import Target


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
    """Whether a row is pending, up to the highest key of this moment; in short reads."""
    pending = pending_condition(target, quarantined)
    assert pending is not None
    found = target.dialect.all_at_once(connection, target.table, pending, reading, LONGEST_STRIDE)
    if found is not None:
        return found
    look = _look_sorted if target.dialect.sorts_strides else _look_twice
    return _any_by_key(connection, target, look(target, pending), reading)


_Look = Callable[["sa.Connection", KeyValues, KeyValues, int], "tuple[bool, KeyValues]"]
"""Looks at a stride of rows behind a key: whether one is pending, and the stride's last key."""


def _any_by_key(connection: sa.Connection, target: Target, look: _Look, reading: Reading) -> bool:
    with reading():
        upper = last_key(connection, target.key)
    after, stride = START, LONGEST_STRIDE
    while after != upper:
        try:
            with reading():
                is_found, after = look(connection, after, upper, stride)
        except sa.exc.DBAPIError as error:
            if target.dialect.error_kind(error) is not ErrorKind.TOO_SLOW or stride == 1:
                raise
            stride //= 2
            continue
        if is_found:
            return True
    return False


def _look_sorted(target: Target, pending: sa.ColumnElement[bool]) -> _Look:
    """Read a stride once: sorted by pending first and key last, its first row is either pending,
    or the end of a stride in which nothing is.
    """
    strides = Ranged(target.key, lambda within: _last_or_pending(target, pending, within))

    def look(
        connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> tuple[bool, KeyValues]:
        statement, parameters = strides.between(after, upper)
        row = connection.execute(statement, {**parameters, "stride": stride}).first()
        return (False, upper) if row is None else (bool(row.is_pending), tuple(row)[:-1])

    return look


def _look_twice(target: Target, pending: sa.ColumnElement[bool]) -> _Look:
    """Find a stride's end, then look for a pending row up to there."""
    walk = Walk(target)
    statements = Ranged(
        target.key,
        lambda within: sa.select(
            sa.select(sa.literal(1)).select_from(target.table).where(within, pending).exists()
        ),
    )

    def look(
        connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> tuple[bool, KeyValues]:
        end = walk.end(connection, after, upper, stride)
        statement, parameters = statements.between(after, end)
        return bool(connection.execute(statement, parameters).scalar_one()), end

    return look


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
                end = walk.end(connection, after, upper, stride)
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
