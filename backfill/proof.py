"""Whether a backfill is complete. With a `where` the data say so, not a status column."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import store
from backfill.chunks import LONGEST_STRIDE, Ranged
from backfill.dialects import ErrorKind
from backfill.dialects.readers import Reader, Readers
from backfill.keys import START, KeyValues
from backfill.runs import Status
from backfill.scans import Scans, last_key, pending_condition
from backfill.targets import condition_of
from backfill.trail import Stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill.declaration import Backfill
    from backfill.dialects.readers import Reading
    from backfill.targets import Target


def incomplete_reason(
    connection: sa.Connection, target: Target, *, reading: Reading = nullcontext
) -> str | None:
    """Say why a backfill is not complete; None if it is. Reads only.

    With a `where`: no row matches it, quarantined rows included. Without one: its run has
    succeeded, or the table is empty.
    """
    if target.pending is not None:
        if not any_pending(Readers(Reader(connection, reading)), target):
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


def offline_conditions(
    declaration: type[Backfill], dialect: sa.Dialect, state_schema: str | None = None
) -> list[str] | None:
    """Return SQL for "this backfill is not complete", for a database that is not there: of
    several conditions each means something only if those before it hold.

    None where the declaration says it by a method, which needs the table.
    """
    schema, _, name = declaration.table.rpartition(".")
    table = sa.table(name, schema=declaration.schema or schema or None)
    plain = type(dialect)(paramstyle="named")  # type: ignore[call-arg]  # doubles no percent signs
    if callable(declaration.where):
        return None

    def sql(clause: Any) -> str:
        return str(clause.compile(dialect=plain, compile_kwargs={"literal_binds": True}))

    rows = f"EXISTS (SELECT 1 FROM {plain.identifier_preparer.format_table(table)}"
    if declaration.where is None:
        return [f"{rows})", sql(store.unproved(declaration.name, state_schema))]
    condition = sql(condition_of(declaration.where, declaration, sa.Table(name, sa.MetaData())))
    return [f"{rows} WHERE {condition})"]


def _quarantine(connection: sa.Connection, target: Target) -> str:
    """Say that running again will not help, where rows are in quarantine."""
    name = target.declaration.name
    run = store.current(connection, name) if store.exists(connection) else None
    rows = store.count_failures(connection, run) if run is not None else 0
    return f", {rows:,} of them quarantined (see `backfill failures {name}`)" if rows else ""


def first_rows(connection: sa.Connection, target: Target, at_most: int) -> tuple[int, int]:
    """Count the first rows by key, at most so many, and those of them that are pending.

    By key, since nothing else keeps a database from reading the whole table.
    """
    is_pending = sa.false() if target.pending is None else target.pending
    first = (
        sa.select(sa.case((is_pending, 1), else_=0).label("is_pending"))
        .select_from(target.table)
        .order_by(*target.key.columns)
        .limit(at_most)
        .subquery()
    )
    pending = sa.func.coalesce(sa.func.sum(first.c.is_pending), 0)
    found = connection.execute(sa.select(sa.func.count(), pending).select_from(first)).one()
    return int(found[0]), int(found[1])


def is_left(connection: sa.Connection, target: Target, key: KeyValues) -> bool:
    """Whether the row of one key is there, and pending."""
    rows = sa.select(sa.func.count()).select_from(target.table)
    if target.pending is not None:
        rows = rows.where(target.pending)
    statement, parameters = Ranged(target.key, rows.where).within("from", key, key)
    return bool(connection.execute(statement, parameters).scalar_one())


def any_pending(
    readers: Readers,
    target: Target,
    quarantined: Sequence[KeyValues] = (),
    *,
    walked: Sequence[Stretch] = (),
) -> bool:
    """Whether a row is pending, up to the highest key of this moment; in short reads.

    `walked` are stretches of the key space from its beginning on, where they are known: these the
    readers share.
    """
    pending = pending_condition(target, quarantined)
    assert pending is not None
    found = target.dialect.all_at_once(readers, target.table, pending, LONGEST_STRIDE)
    if found is not None:
        return found

    def counting(reader: Reader) -> Callable[[Stretch], bool | None]:
        count = _Count(reader.connection, target, pending, reader.reading)
        return lambda stretch: any(count.strides(stretch)) or None

    if readers.ask(walked, counting):
        return True
    position = walked[-1].upto if walked else START
    count = _Count(readers.first.connection, target, pending, readers.first.reading)
    highest = count.highest()
    return highest != START and any(count.strides(Stretch(position, highest)))


def count_pending(
    connection: sa.Connection, target: Target, *, reading: Reading = nullcontext
) -> int:
    """Count the pending rows, quarantined ones included, in short reads."""
    assert target.pending is not None
    count = _Count(connection, target, target.pending, reading)
    return sum(count.strides(Stretch(START, count.highest())))


def count_around(
    connection: sa.Connection,
    target: Target,
    key: KeyValues,
    quarantined: Sequence[KeyValues] = (),
    *,
    reading: Reading = nullcontext,
) -> tuple[int, int]:
    """Count the pending rows up to a key, and those behind it, in short reads."""
    pending = pending_condition(target, quarantined)
    assert pending is not None
    count = _Count(connection, target, pending, reading)
    within = sum(count.strides(Stretch(START, key)))
    highest = count.highest()
    behind = 0 if highest == START else sum(count.strides(Stretch(key, highest)))
    return within, behind


class _TooSlow(Exception):
    """A read met its time limit: read less at a time."""


class _Count:
    """Counts pending rows, stride by stride."""

    def __init__(
        self,
        connection: sa.Connection,
        target: Target,
        pending: sa.ColumnElement[bool],
        reading: Reading,
    ) -> None:
        self._connection = connection
        self._target = target
        self._reading = reading
        self._scans = Scans(target)
        self._stride = LONGEST_STRIDE
        rows = sa.select(sa.func.count()).select_from(target.table)
        self._counting = Ranged(target.key, lambda within: rows.where(within, pending))

    def highest(self) -> KeyValues:
        """Return the highest key of this moment."""
        with self._reading():
            return last_key(self._connection, self._target.key)

    def strides(self, stretch: Stretch) -> Iterator[int]:
        """Give the number of pending rows of each stride of a stretch."""
        if stretch.rows is not None:
            with suppress(_TooSlow):  # more rows are there than when it was walked
                yield self._read(stretch.after, stretch.upto)[0]
                return
        after = stretch.after
        while after != stretch.upto:
            try:
                found, after = self._read(after, stretch.upto, self._stride)
            except _TooSlow:
                self._stride = max(1, self._stride // 2)
                continue
            yield found

    def _read(
        self, after: KeyValues, upto: KeyValues, stride: int | None = None
    ) -> tuple[int, KeyValues]:
        """Count in one stride of so many rows, or in all up to a key; and where that ended."""
        try:
            with self._reading():
                if stride is not None:
                    upto = self._scans.end(self._connection, after, upto, stride)
                statement, parameters = self._counting.between(after, upto)
                return int(self._connection.execute(statement, parameters).scalar_one()), upto
        except sa.exc.DBAPIError as error:
            is_slow = self._target.dialect.error_kind(error) is ErrorKind.TOO_SLOW
            if not is_slow or stride == 1:
                raise
            raise _TooSlow from error
