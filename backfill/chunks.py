"""Chunks, and the walk that cuts a key range into them.

A chunk is bounded twice: by the rows it may write (`size`) and by the rows that any one
statement may scan (`stride`). Bounds are keys that the database gave, never arithmetic, so
the cost of a chunk depends neither on how far the walk is nor on how sparse the keys are.
"""

from __future__ import annotations

import time
from collections import namedtuple
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from backfill.keys import START, KeyValues

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backfill.keys import Key
    from backfill.targets import Target

T = TypeVar("T")

LONGEST_STRIDE = 20_000
"""Rows that one statement scans at most while few are pending: about 10 ms on PostgreSQL."""
_FEW = 4
"""Fewer pending rows than one in so many make the stride longer."""


@dataclass(frozen=True, slots=True)
class PageRow:
    """A pending row as it was read; `row` is None where only the key was wanted."""

    key: KeyValues
    row: Any = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of one transaction: keys in (after, upto]."""

    after: KeyValues
    upto: KeyValues
    scanned: int
    """Rows of the table between the bounds, pending or not."""
    is_last: bool
    """Nothing of the range is left behind it."""
    page: tuple[PageRow, ...] | None = None
    """The pending rows, where they were read to find the bounds."""

    @property
    def is_empty(self) -> bool:
        """Whether it is known that no row is pending."""
        return self.page is not None and not self.page

    def halves(self) -> tuple[Chunk, Chunk]:
        """Cut a chunk with a page of two rows or more in two."""
        assert self.page is not None and len(self.page) > 1
        middle = len(self.page) // 2
        left = replace(
            self,
            upto=self.page[middle - 1].key,
            scanned=middle,
            is_last=False,
            page=self.page[:middle],
        )
        right = replace(
            self, after=left.upto, scanned=self.scanned - middle, page=self.page[middle:]
        )
        return left, right


class Ranged(Generic[T]):
    """A statement limited to a chunk's keys, built once for each form of lower bound."""

    def __init__(self, key: Key, build: Callable[[sa.ColumnElement[bool]], T]) -> None:
        self._key = key
        self._build = build
        self._built: dict[str, T] = {}

    def on(self, chunk: Chunk) -> tuple[T, dict[str, Any]]:
        """Return the statement for a chunk's pending rows, and its parameters."""
        if chunk.page:
            return self.within("from", chunk.page[0].key, chunk.page[-1].key)
        return self.between(chunk.after, chunk.upto)

    def between(self, after: KeyValues, upto: KeyValues) -> tuple[T, dict[str, Any]]:
        """Return the statement for keys in (after, upto], and its parameters."""
        return self.within("above" if after else "start", after, upto)

    def within(self, form: str, low: KeyValues, high: KeyValues) -> tuple[T, dict[str, Any]]:
        if form not in self._built:
            self._built[form] = self._build(self._condition(form))
        parameters = self._key.parameters("high", high)
        return self._built[form], {**self._key.parameters("low", low), **parameters}

    def _condition(self, form: str) -> sa.ColumnElement[bool]:
        high = self._key.upto(self._key.operands("high"))
        if form == "start":
            return high
        low = self._key.above(self._key.operands("low"), inclusive=form == "from")
        return sa.and_(low, high)


class Walk:
    """Cuts one key range into chunks.

    Pending rows are read where Python computes them, or where only they tell how many an
    `apply` changes; else they are looked at only where they are sparse. `quarantined` keys are
    passed over.
    """

    def __init__(
        self,
        target: Target,
        quarantined: Sequence[KeyValues] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = target.key
        self._table = target.table
        self._clock = clock
        self._stride = 0
        self.pending = pending_condition(target, quarantined)
        self._reader = _RowReader(target) if target.computes else None
        self._always_looks = target.computes or target.is_custom
        self._bound = Ranged(target.key, self._build_bound)
        self._count = Ranged(target.key, self._build_count)
        self._page = Ranged(target.key, self._build_page)
        self._whole = Ranged(target.key, self._select)

    def next(
        self,
        connection: sa.Connection,
        after: KeyValues,
        upper: KeyValues,
        size: int,
        seconds: float,
    ) -> Chunk:
        """Return the chunk behind `after` in a range that ends at `upper`.

        It writes `size` rows at most. Where nothing is pending it goes on for about
        `seconds`, so that an empty stretch costs one checkpoint and not many.
        """
        if self._reader and self.pending is None:
            return self._next_page(connection, after, upper, size)
        deadline = self._clock() + seconds
        start, scanned = after, 0
        while True:
            stride = size if self.pending is None else max(size, self._stride)
            end, passed, is_last = self.bounded(connection, start, upper, stride)
            if stride == size and not (self._always_looks and self.pending is not None):
                return Chunk(after, end, scanned + passed, is_last)
            page = self.page(connection, start, end, size)
            if len(page) == size and page[-1].key != end:
                self._stride = 0
                upto = page[-1].key
                return Chunk(
                    after, upto, scanned + self._counted(connection, start, upto), False, page
                )
            self._learn(len(page), stride)
            scanned += passed
            if page or is_last or self._clock() > deadline:
                return Chunk(after, end, scanned, is_last, page)
            start = end

    def shorten(self) -> None:
        """Scan no further than a chunk's rows, after a statement that took too long."""
        self._stride = 0

    def learn(self, chunk: Chunk, changed: int) -> None:
        """Lengthen the stride after a chunk in which little was to do."""
        if chunk.page is None and self.pending is not None:
            self._learn(changed, max(chunk.scanned, self._stride))

    def page(
        self, connection: sa.Connection, after: KeyValues, upto: KeyValues, size: int
    ) -> tuple[PageRow, ...]:
        """Read the first `size` pending rows in (after, upto]."""
        statement, parameters = self._page.between(after, upto)
        return self._rows(connection.execute(statement, {**parameters, "size": size}))

    def one(self, connection: sa.Connection, key: KeyValues) -> tuple[PageRow, ...]:
        """Read the row of one key, if it is pending."""
        statement, parameters = self._page.within("from", key, key)
        return self._rows(connection.execute(statement, {**parameters, "size": 1}))

    def whole_page(self, connection: sa.Connection, chunk: Chunk) -> Chunk:
        """Return the chunk with all its pending rows read."""
        statement, parameters = self._whole.between(chunk.after, chunk.upto)
        return replace(chunk, page=self._rows(connection.execute(statement, parameters)))

    def locked(self, connection: sa.Connection, target: Target, chunk: Chunk) -> list[PageRow]:
        """Read a chunk's pending rows again, under locks that are refused rather than awaited."""
        if not hasattr(self, "_locked"):
            self._locked = Ranged(self._key, lambda c: target.dialect.lock(self._select(c)))
        statement, parameters = self._locked.on(chunk)
        return list(self._rows(connection.execute(statement, parameters)))

    def _next_page(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int
    ) -> Chunk:
        page = self.page(connection, after, upper, size)
        is_last = len(page) < size or page[-1].key == upper
        return Chunk(after, upper if is_last else page[-1].key, len(page), is_last, page)

    def _learn(self, pending: int, stride: int) -> None:
        if pending * _FEW < stride:
            self._stride = min(2 * stride, LONGEST_STRIDE)
        else:
            self._stride = 0

    def _rows(self, result: sa.CursorResult[Any]) -> tuple[PageRow, ...]:
        rows = result.all()
        if self._reader is None:
            return tuple(PageRow(tuple(row)) for row in rows)
        return tuple(map(self._reader.page_row, rows))

    def bounded(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> tuple[KeyValues, int, bool]:
        """Return the key `stride` rows on, the rows up to it, and whether the range ends there."""
        statement, parameters = self._bound.between(after, upper)
        row = connection.execute(statement, {**parameters, "offset": stride - 1}).first()
        if row is None:
            return upper, self._counted(connection, after, upper), True
        return tuple(row), stride, tuple(row) == upper

    def _counted(self, connection: sa.Connection, after: KeyValues, upto: KeyValues) -> int:
        statement, parameters = self._count.between(after, upto)
        return int(connection.execute(statement, parameters).scalar_one())

    def _select(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        columns = self._reader.columns if self._reader else self._key.selected
        statement = sa.select(*columns).where(condition)
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


class _RowReader:
    """Turns what a SELECT gave into a key and a row with attributes.

    A key column is selected twice only where its exact form is not what Python is to see.
    """

    def __init__(self, target: Target) -> None:
        key = target.key
        self._width = len(key.columns)
        is_exact = all(c.type is kind for c, kind in zip(key.columns, key.types, strict=True))
        self._skipped = 0 if is_exact else self._width
        extra = target.reads[self._width :] if is_exact else target.reads
        self.columns = [*key.selected, *extra]
        self._make = row_type([column.name for column in target.reads])._make

    def page_row(self, row: sa.Row[Any]) -> PageRow:
        values = tuple(row)
        return PageRow(values[: self._width], self._make(values[self._skipped :]))


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


def row_type(names: Sequence[str]) -> Any:
    """Return a tuple type with the columns as attributes, also those named like a method of
    tuple; `row["any name"]` works for names that are no identifiers."""
    base = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    positions = {name: i for i, name in enumerate(names)}

    class Row(base):
        __slots__ = ()

        def __deepcopy__(self, memo: dict[int, Any]) -> Row:
            return type(self)._make(deepcopy(tuple(self), memo))

        def __getitem__(self, item: Any) -> Any:
            return tuple.__getitem__(self, positions[item] if isinstance(item, str) else item)

    return Row
