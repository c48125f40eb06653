"""What is read of a target's rows: each statement scans the key's index from one key to another.

They are compiled once and used again; the walk decides how far each of them goes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.chunks import Chunk, Ranged
from backfill.keys import START, KeyValues
from backfill.pages import Page, PageReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.keys import Key
    from backfill.targets import Target


class Scans:
    """Reads rows of one target between keys; `quarantined` ones are never pending.

    With `keys_only` no value of a row is read but its key, which is what is left where one cannot
    be read.
    """

    def __init__(
        self, target: Target, quarantined: Sequence[KeyValues] = (), *, keys_only: bool = False
    ) -> None:
        self._key = target.key
        self._table = target.table
        self.pending = pending_condition(target, quarantined)
        self.reader = PageReader(target, keys_only=keys_only)
        self._bound = Ranged(target.key, self._build_bound)
        self._count = Ranged(target.key, self._build_count)
        self._page = Ranged(target.key, self._build_page)
        self._whole = Ranged(target.key, self._select)
        self._locked = Ranged(target.key, lambda c: target.dialect.lock(self._select(c)))

    # -- how far ---------------------------------------------------------------------------

    def end(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> KeyValues:
        """Return the key `stride` rows on, or the end of the range."""
        return self._end(connection, after, upper, stride) or upper

    def bounded(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> tuple[KeyValues, int, bool]:
        """Return the key `stride` rows on, the rows up to it, and whether the range ends there."""
        end = self._end(connection, after, upper, stride)
        if end is None:
            return upper, self.count(connection, after, upper), True
        return end, stride, end == upper

    def _end(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> KeyValues | None:
        statement, parameters = self._bound.between(after, upper)
        row = connection.execute(statement, {**parameters, "offset": stride - 1}).first()
        return None if row is None else tuple(row)

    def count(self, connection: sa.Connection, after: KeyValues, upto: KeyValues) -> int:
        """Return how many rows are in (after, upto], pending or not."""
        statement, parameters = self._count.between(after, upto)
        return int(connection.execute(statement, parameters).scalar_one())

    def counted(self, connection: sa.Connection, chunk: Chunk, changed: int) -> Chunk:
        """Return the chunk with its rows counted, of which so many were just changed."""
        if chunk.is_counted:
            return chunk
        is_all = self.pending is None or changed == chunk.scanned
        rows = changed if is_all else self.count(connection, chunk.after, chunk.upto)
        return replace(chunk, scanned=rows, is_counted=True)

    # -- pending rows ----------------------------------------------------------------------

    def page(self, connection: sa.Connection, after: KeyValues, upto: KeyValues, size: int) -> Page:
        """Read the first `size` pending rows in (after, upto]."""
        statement, parameters = self._page.between(after, upto)
        return self.reader.read(connection, statement, {**parameters, "size": size})

    def one(self, connection: sa.Connection, key: KeyValues) -> Page:
        """Read the row of one key, if it is pending."""
        statement, parameters = self._page.within("from", key, key)
        return self.reader.read(connection, statement, {**parameters, "size": 1})

    def known(self, connection: sa.Connection, chunk: Chunk) -> Page:
        """Read the rows of a chunk whose keys are known; some may not be pending any more."""
        if chunk.is_empty:
            return self.reader.empty
        statement, parameters = self._whole.on(chunk)
        return self.reader.read(connection, statement, parameters)

    def locked(self, connection: sa.Connection, chunk: Chunk) -> Page:
        """Read a chunk's pending rows again, under locks that are refused rather than awaited."""
        statement, parameters = self._locked.on(chunk)
        return self.reader.read(connection, statement, parameters)

    def whole(self, connection: sa.Connection, chunk: Chunk) -> Chunk:
        """Return the chunk with all its pending rows read."""
        statement, parameters = self._whole.between(chunk.after, chunk.upto)
        page = self.reader.read(connection, statement, parameters)
        found = replace(chunk, page=page, by_bounds=self.pending is None)
        return self.counted(connection, found, len(page))

    # -- statements ------------------------------------------------------------------------

    def _select(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        statement = sa.select(*self.reader.columns).where(condition)
        if self.pending is not None:
            statement = statement.where(self.pending)
        return statement.order_by(*self._key.columns)

    def _build_bound(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        ordered = sa.select(*self._key.selected).where(condition).order_by(*self._key.columns)
        return ordered.limit(1).offset(sa.bindparam("offset", type_=sa.Integer()))

    def _build_count(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        return sa.select(sa.func.count()).select_from(self._table).where(condition)

    def _build_page(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        return self._select(condition).limit(sa.bindparam("size", type_=sa.Integer()))


def pending_condition(
    target: Target, quarantined: Sequence[KeyValues]
) -> sa.ColumnElement[bool] | None:
    """Return what makes a row pending for this run; None: every row is."""
    if target.pending is None or not quarantined:
        return target.pending
    return sa.and_(target.pending, target.key.other_than(quarantined))


def last_key(connection: sa.Connection, key: Key) -> KeyValues:
    """Return the highest key of the table; START if it is empty."""
    descending = [column.desc() for column in key.columns]
    row = connection.execute(sa.select(*key.selected).order_by(*descending).limit(1)).first()
    return START if row is None else tuple(row)
