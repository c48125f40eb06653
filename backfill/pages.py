"""Pages: pending rows, kept as light as the driver gave them.

A row stays the driver's tuple: the key's columns, then those that Python reads, then the row's
version where the database has one. It becomes a row with attributes when Python gets it.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects import BINARY_TYPES
from backfill.errors import UnreadableRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.types import TypeEngine

    from backfill.keys import KeyValues
    from backfill.targets import Target

_IMMUTABLE = (
    *(sa.Integer, sa.Numeric, sa.String, sa.Boolean, sa.Uuid, *BINARY_TYPES),
    *(sa.DateTime, sa.Date, sa.Time, sa.Interval),
)

_UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, SystemError)
"""What drivers raise for a value that they cannot read; SystemError: MariaDB's connector, which
forgets that it has raised, so that its error may also come out of close()."""

Raw = tuple[Any, ...]
"""A row as the driver gave it."""
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Pending rows in key order."""

    rows: Sequence[Raw]
    reader: PageReader
    is_complete: bool = True
    """No row between its first and its last key was left out."""
    mark: object = None
    """Of the moment when it was read; the same again: nobody else has written anything since."""

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> KeyValues:
        """Return the key of one row."""
        return self.reader.key(self.rows[index])

    @property
    def keys(self) -> list[KeyValues]:
        """The keys of all rows."""
        return list(map(self.reader.key, self.rows))

    @property
    def key_columns(self) -> list[Sequence[Any]]:
        """The values of all keys, a column each."""
        return self.reader.key_columns(self.rows)

    @property
    def versions(self) -> list[Any]:
        """What each row's version was when it was read, where the database tells."""
        return [raw[-1] for raw in self.rows]

    def given(self) -> Iterator[Any]:
        """Give the rows as Python sees them; nothing that it can change belongs to the page.

        Raises what the conversion of a value raises, and then goes on with the next row.
        """
        return self.reader.given(self.rows)

    def is_same(self, other: Page) -> bool:
        """Whether all rows are as they are there; if not surely, compare one by one."""
        return self.reader.is_plain and self.rows == other.rows

    def __add__(self, other: Page) -> Page:
        if not self.rows or not other.rows:
            return self if self.rows else other
        return replace(other, rows=[*self.rows, *other.rows])

    def part(self, start: int, stop: int | None = None) -> Page:
        """Return some of the rows."""
        return Page(self.rows[start:stop], self.reader)

    def of(self, rows: Sequence[Raw]) -> Page:
        """Return a page of some of these rows, wherever they stand."""
        return replace(self, rows=rows, is_complete=False)


class PageReader:
    """Reads pages of one table; the first page tells how its values have to be converted.

    A key column is selected twice only where its exact form is not what Python is to see.
    """

    def __init__(self, target: Target, *, keys_only: bool = False) -> None:
        key = target.key
        self.reads_rows = target.computes and not keys_only
        self.is_blind = target.computes and keys_only
        """Rows are yet to be read: only their keys are known."""
        self._dialect = target.dialect
        self._schema = target.table.schema
        self.width = len(key.columns)
        reads = target.reads if self.reads_rows else []
        is_exact = all(c.type is kind for c, kind in zip(key.columns, key.types, strict=True))
        self._first = 0 if is_exact else self.width
        extra = reads[self.width :] if is_exact else reads
        values: list[sa.ColumnElement[Any]] = [*key.selected, *extra]
        self._end = len(values)
        version = target.dialect.row_version(target.table) if self.reads_rows else None
        self.columns = values if version is None else [*values, version]
        self._copied = {i for i, c in enumerate(values) if not isinstance(c.type, _IMMUTABLE)}
        in_zones = {i for i, c in enumerate(values) if _has_zone(c.type)}
        self.loose = [i for i, c in enumerate(values) if not target.dialect.is_typed(c.type)]
        """Where a value may become an equal one of another type: 1 and 1.0."""
        self._compared_as_text = self._copied.union(self.loose, in_zones)
        self.is_plain = not self._compared_as_text
        """Rows that are equal for Python are the same: no documents, in which 1 equals true, and no
        times of a zone whose clocks show an hour twice."""
        self._new_row = partial(tuple.__new__, row_type([column.name for column in reads]))
        self._packing = target.dialect.packing(self.columns, self.width)
        self._converts: list[tuple[int, Convert]] | None = None
        self.key: Callable[[Raw], KeyValues] = itemgetter(slice(self.width))
        """Gives a row's key; the first page tells whether its values have to be converted."""
        self._has_plain_key = True

    @property
    def empty(self) -> Page:
        """A page of no rows."""
        return Page((), self)

    def of_numbers(self, keys: Sequence[int]) -> Page:
        """Return a page of rows of which the key, a whole number, is all that is read."""
        return Page([(key,) for key in keys], self)

    def read(
        self, connection: sa.Connection, statement: sa.Select[Any], parameters: Mapping[str, Any]
    ) -> Page:
        """Read a page in the fastest way that gives exactly its rows."""
        if self._packing is not None:
            packed = self._packing.packed(statement)
            rows = self._packing.unpacked(*connection.execute(packed, parameters).one())
            if rows is not None:
                return Page(rows, self)
            self._packing = None  # as long a page, or such a value, is to be expected again
        return self._fetch(connection.execute(statement, parameters))

    def _fetch(self, result: sa.CursorResult[Any]) -> Page:
        """Read a whole result past SQLAlchemy's rows, which cost more than all else here."""
        mark = self._dialect.foreign_writes(result.connection, self._schema)
        try:
            rows = self._fetched(result)
        except _UNREADABLE as error:
            raise UnreadableRow(type(error).__name__) from error
        if rows and type(rows[0]) is not tuple:
            rows = map(tuple, rows)
        return Page(list(rows), self, mark=mark)

    def _fetched(self, result: sa.CursorResult[Any]) -> Any:
        try:
            cursor: Any = result.cursor
            if self._converts is None:
                self._learn(result, cursor.description)
            return cursor.fetchall()
        finally:
            result.close()

    def _learn(self, result: sa.CursorResult[Any], description: Any) -> None:
        self._converts = self._find_converts(result, description)
        of_key = [c for c in self._converts if c[0] < self.width]
        self.key = _converted(0, self.width, of_key)
        self._has_plain_key = not of_key

    def key_columns(self, rows: Sequence[Raw]) -> list[Sequence[Any]]:
        if self._has_plain_key:
            return [[raw[i] for raw in rows] for i in range(self.width)]
        return list(zip(*map(self.key, rows), strict=True))

    def given(self, rows: Sequence[Raw]) -> Iterator[Any]:
        first, end = self._first, self._end
        converts = [c for c in self._converts or () if c[0] >= first]
        if converts or first > 0 or end < len(self.columns):
            return map(self._new_row, map(_converted(first, end, converts), rows))
        return map(self._new_row, rows)

    def is_same_row(self, before: Raw, now: Raw) -> bool:
        """Whether a row is as it was read; NaN equals itself, and in JSON 1 is not true."""
        if before == now and self.is_plain:
            return True
        return all(
            repr(before[i]) == repr(now[i])
            if i in self._compared_as_text
            else before[i] == now[i] or (before[i] != before[i] and now[i] != now[i])
            for i in range(self._end)
        )

    def _find_converts(
        self, result: sa.CursorResult[Any], description: Sequence[Sequence[Any]]
    ) -> list[tuple[int, Convert]]:
        """Take SQLAlchemy's own conversions, and copy what the driver gave us changeable."""
        dialect = result.dialect
        found: list[tuple[int, Convert]] = []
        for i, column in enumerate(self.columns[: self._end]):
            kind = column.type.dialect_impl(dialect)
            convert: Convert | None = kind.result_processor(dialect, description[i][1])
            if convert is None and i in self._copied:
                convert = _copied
            if convert is not None:
                found.append((i, convert))
        return found


def _converted(
    start: int, stop: int, converts: Sequence[tuple[int, Convert]]
) -> Callable[[Raw], Raw]:
    """Return what cuts a raw row and converts some of its values."""

    def cut_and_convert(raw: Raw) -> Raw:
        values = list(raw[start:stop])
        for i, convert in converts:
            values[i - start] = convert(raw[i])
        return tuple(values)

    return cut_and_convert if converts else itemgetter(slice(start, stop))


def _has_zone(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, sa.DateTime) and bool(kind.timezone)


def _copied(value: Any) -> Any:
    """Copy what Python could change; a driver's own objects often let nobody copy them."""
    return deepcopy(value) if isinstance(value, (list, dict, set, bytearray)) else value


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
