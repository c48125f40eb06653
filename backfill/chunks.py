"""Chunks, and the walk that cuts a key range into them.

A chunk is bounded twice: by the rows it may write (`size`) and by the rows that any one
statement may scan (`stride`). Bounds are keys that the database gave, so the cost of a chunk
depends neither on how far the walk is nor on how sparse the keys are. Only where integers have
hardly a gap they are arithmetic: between two numbers are no more rows than numbers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

from backfill.keys import START, KeyValues, alike
from backfill.pages import Page, PageReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backfill.keys import Key
    from backfill.targets import Target

T = TypeVar("T")

LONGEST_STRIDE = 50_000
"""Rows that one statement scans at most while few are pending: about 10 ms on PostgreSQL."""
MOST_SCATTERED = 900
"""Keys that one statement looks up; older SQLite binds 999 values at most (sqlite.org/limits)."""
_FEW = 4
"""Fewer pending rows than one in so many are sparse."""
_DENSE = 0.95
"""Rows for each number from which on integers have hardly a gap."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of one transaction: keys in (after, upto]."""

    after: KeyValues
    upto: KeyValues
    scanned: int
    """Rows of the table between the bounds, pending or not."""
    is_last: bool
    """Nothing of the range is left behind it."""
    page: Page | None = None
    """The pending rows, where they were read to find the bounds."""
    strides: tuple[tuple[KeyValues, int], ...] = ()
    """Each stride's last key and its rows, where there were several."""
    is_counted: bool = True
    """False: `scanned` is the most that it can be."""

    @property
    def is_sparse(self) -> bool:
        """Whether most of the rows between the bounds are not pending."""
        return self.page is not None and is_sparse(len(self.page), self.scanned)

    @property
    def is_empty(self) -> bool:
        """Whether it is known that no row is pending."""
        return self.page is not None and len(self.page) == 0

    def halves(self) -> tuple[Chunk, Chunk]:
        """Cut a chunk with a page of two rows or more in two."""
        assert self.page is not None and len(self.page) > 1
        middle = len(self.page) // 2
        upto = self.page.key(middle - 1)
        left = replace(
            self,
            upto=upto,
            scanned=middle,
            is_last=False,
            page=self.page.part(0, middle),
            strides=(),
        )
        right = replace(
            self,
            after=upto,
            scanned=self.scanned - middle,
            page=self.page.part(middle),
            strides=(),
        )
        return left, right


class Ranged(Generic[T]):
    """A statement limited to a chunk's keys, built once for each form of its condition."""

    def __init__(self, key: Key, build: Callable[[sa.ColumnElement[bool]], T]) -> None:
        self._key = key
        self._build = build
        self._built: dict[tuple[str, int], T] = {}

    def on(self, chunk: Chunk) -> tuple[T, dict[str, Any]]:
        """Return the statement for a chunk's pending rows, and its parameters.

        Rows that lie far apart are looked up by their keys: what lies between was scanned once.
        """
        page = chunk.page
        if not page:
            return self.between(chunk.after, chunk.upto)
        if self._key.is_single and len(page) <= MOST_SCATTERED and chunk.is_sparse:
            return self._form("keys"), {"keys": [key for (key,) in page.keys]}
        return self.within("from", page.key(0), page.key(-1))

    def between(self, after: KeyValues, upto: KeyValues) -> tuple[T, dict[str, Any]]:
        """Return the statement for keys in (after, upto], and its parameters."""
        return self.within("above" if after else "start", after, upto)

    def within(self, form: str, low: KeyValues, high: KeyValues) -> tuple[T, dict[str, Any]]:
        parameters = self._key.parameters("high", high)
        statement = self._form(form, alike(low, high))
        return statement, {**self._key.parameters("low", low), **parameters}

    def _form(self, form: str, same: int = 0) -> T:
        if (form, same) not in self._built:
            self._built[form, same] = self._build(self._condition(form, same))
        return self._built[form, same]

    def _condition(self, form: str, same: int) -> sa.ColumnElement[bool]:
        key = self._key
        if form == "keys":
            return key.one_of("keys")
        low = [] if form == "start" else key.operands("low")
        return key.between(low, key.operands("high"), alike=same, inclusive=form == "from")


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
        keys_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = target.key
        self._table = target.table
        self._clock = clock
        self._stride = 0
        self._counts_up = target.key.is_integer and not (target.computes or target.is_custom)
        self._is_dense = False
        self.pending = pending_condition(target, quarantined)
        self._reads = target.computes
        self._always_looks = target.computes or target.is_custom
        self._collects = target.key.is_single and not target.is_custom
        """Rows of several strides can be written together, by their keys; a range would be
        scanned once more, under locks."""
        self._reader = PageReader(target, keys_only=keys_only)
        self._bound = Ranged(target.key, self._build_bound)
        self._count = Ranged(target.key, self._build_count)
        self._page = Ranged(target.key, self._build_page)
        self._whole = Ranged(target.key, self._select)
        self._locked = Ranged(target.key, lambda c: target.dialect.lock(self._select(c)))

    def next(
        self,
        connection: sa.Connection,
        after: KeyValues,
        upper: KeyValues,
        size: int,
        seconds: float,
    ) -> Chunk:
        """Return the chunk behind `after` in a range that ends at `upper`.

        It writes `size` rows at most. Where little is pending it goes on for about
        `seconds`, so that an empty stretch costs one checkpoint and not many.
        """
        if self.pending is None:
            return self._next_of_all(connection, after, upper, size)
        if not self._always_looks and self._stride <= size:
            return self._next_rows(connection, after, upper, size)
        return self._next_pending(connection, after, upper, size, seconds)

    def _next_of_all(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int
    ) -> Chunk:
        if not self._reads:
            return self._next_rows(connection, after, upper, size)
        page = self.page(connection, after, upper, size)
        is_last = len(page) < size or page.key(-1) == upper
        return Chunk(after, upper if is_last else page.key(-1), len(page), is_last, page)

    def _next_rows(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, size: int
    ) -> Chunk:
        """Return the next `size` rows, pending or not."""
        if self._is_dense and size < (_numbers(after, upper) or 0):
            return Chunk(after, (after[0] + size,), size, is_last=False, is_counted=False)
        return Chunk(after, *self.bounded(connection, after, upper, size))

    def counted(self, connection: sa.Connection, chunk: Chunk, changed: int) -> Chunk:
        """Return the chunk with its rows counted, of which so many were just changed."""
        if chunk.is_counted:
            return chunk
        is_all = self.pending is None or changed == chunk.scanned
        rows = changed if is_all else self._counted(connection, chunk.after, chunk.upto)
        return replace(chunk, scanned=rows, is_counted=True)

    def _next_pending(
        self,
        connection: sa.Connection,
        after: KeyValues,
        upper: KeyValues,
        size: int,
        seconds: float,
    ) -> Chunk:
        """Collect pending rows from one stride after the other."""
        deadline = self._clock() + seconds
        page, start, scanned = self._reader.empty, after, 0
        strides: list[tuple[KeyValues, int]] = []
        while True:
            stride = max(size, self._stride)
            wanted = (size if stride == size else min(size, MOST_SCATTERED)) - len(page)
            end, passed, is_last = self.bounded(connection, start, upper, stride)
            found = self.page(connection, start, end, wanted)
            if len(found) == wanted and found.key(-1) != end:
                end, is_last = found.key(-1), False
                passed = self._counted(connection, start, end)
            page, scanned = page + found, scanned + passed
            strides.append((end, passed))
            self._learn(len(found), passed, is_cut=len(found) == wanted)
            if is_last or len(found) == wanted or self._is_enough(page, scanned, deadline):
                return Chunk(after, end, scanned, is_last, page, tuple(strides))
            start = end

    def _is_enough(self, page: Page, scanned: int, deadline: float) -> bool:
        if page and not (self._collects and is_sparse(len(page), scanned)):
            return True
        return len(page) >= MOST_SCATTERED or self._clock() > deadline

    def shorten(self) -> None:
        """Scan no further than a chunk's rows, after a statement that took too long."""
        self._stride = 0

    def learn(self, chunk: Chunk, changed: int) -> None:
        """Lengthen the stride after a chunk in which little was to do."""
        if self._counts_up:
            numbers = _numbers(chunk.after, chunk.upto)
            self._is_dense = numbers is not None and chunk.scanned > _DENSE * numbers
        if chunk.page is None and self.pending is not None:
            self._learn(changed, chunk.scanned)

    def _learn(self, pending: int, scanned: int, *, is_cut: bool = False) -> None:
        """Look twice as far next time, where little was pending; `is_cut`: more would not fit."""
        longer = min(2 * scanned, LONGEST_STRIDE)
        if not is_sparse(pending, scanned):
            self._stride = 0
        else:
            self._stride = longer if is_cut else max(self._stride, longer)

    def page(self, connection: sa.Connection, after: KeyValues, upto: KeyValues, size: int) -> Page:
        """Read the first `size` pending rows in (after, upto]."""
        statement, parameters = self._page.between(after, upto)
        return self._reader.fetch(connection.execute(statement, {**parameters, "size": size}))

    def one(self, connection: sa.Connection, key: KeyValues) -> Page:
        """Read the row of one key, if it is pending."""
        statement, parameters = self._page.within("from", key, key)
        return self._reader.fetch(connection.execute(statement, {**parameters, "size": 1}))

    def whole_page(self, connection: sa.Connection, chunk: Chunk) -> Chunk:
        """Return the chunk with all its pending rows read."""
        statement, parameters = self._whole.between(chunk.after, chunk.upto)
        page = self._reader.fetch(connection.execute(statement, parameters))
        return self.counted(connection, replace(chunk, page=page), len(page))

    def locked(self, connection: sa.Connection, chunk: Chunk) -> Page:
        """Read a chunk's pending rows again, under locks that are refused rather than awaited."""
        statement, parameters = self._locked.on(chunk)
        return self._reader.fetch(connection.execute(statement, parameters))

    def bounded(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> tuple[KeyValues, int, bool]:
        """Return the key `stride` rows on, the rows up to it, and whether the range ends there."""
        end = self._end(connection, after, upper, stride)
        if end is None:
            return upper, self._counted(connection, after, upper), True
        return end, stride, end == upper

    def end(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> KeyValues:
        """Return the key `stride` rows on, or the end of the range."""
        return self._end(connection, after, upper, stride) or upper

    def _end(
        self, connection: sa.Connection, after: KeyValues, upper: KeyValues, stride: int
    ) -> KeyValues | None:
        statement, parameters = self._bound.between(after, upper)
        row = connection.execute(statement, {**parameters, "offset": stride - 1}).first()
        return None if row is None else tuple(row)

    def _counted(self, connection: sa.Connection, after: KeyValues, upto: KeyValues) -> int:
        statement, parameters = self._count.between(after, upto)
        return int(connection.execute(statement, parameters).scalar_one())

    def _select(self, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        statement = sa.select(*self._reader.columns).where(condition)
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


def _numbers(after: KeyValues, upto: KeyValues) -> int | None:
    """Return how many whole numbers are in (after, upto]; None where the ends are none: a column
    of SQLite holds anything."""
    if not after or not isinstance(after[0], int) or not isinstance(upto[0], int):
        return None
    return upto[0] - after[0]


def is_sparse(pending: int, scanned: int) -> bool:
    """Whether so few rows are pending that one looks at them before one writes."""
    return pending * _FEW < scanned


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
