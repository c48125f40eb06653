"""The key: the columns that order a table, and their values as text in the state tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from backfill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.dialects.base import Dialect

KeyValues = tuple[Any, ...]
"""The values of a key's columns, in the key's order; empty: before the first key."""

START: KeyValues = ()


@dataclass(frozen=True, slots=True)
class Key:
    """Unique, not-null columns of a table, in the order in which the table is walked.

    Comparisons are built from named parameters once, so that a statement is compiled once
    and then only bound; `parameters` gives the values for such names.
    """

    columns: tuple[sa.Column[Any], ...]
    types: tuple[TypeEngine[Any], ...]
    """How values travel: exactly as the database gave them."""
    dialect: Dialect

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """The columns with their families of types: what keeps the meaning of a cursor."""
        return tuple((column.name, _family(column.type)) for column in self.columns)

    @property
    def selected(self) -> list[sa.ColumnElement[Any]]:
        """The key's columns as a SELECT list, in their travelling types."""
        return [
            sa.type_coerce(column, kind).label(f"_key_{i}")
            for i, (column, kind) in enumerate(zip(self.columns, self.types, strict=True))
        ]

    def operands(self, name: str) -> list[sa.BindParameter[Any]]:
        """Return one named parameter a column."""
        return [sa.bindparam(f"{name}_{i}", type_=kind) for i, kind in enumerate(self.types)]

    def parameters(self, name: str, values: KeyValues) -> dict[str, Any]:
        """Return the values for the parameters of `operands(name)`."""
        return {f"{name}_{i}": value for i, value in enumerate(values)}

    def constants(self, values: KeyValues) -> list[sa.ColumnElement[Any]]:
        """Return the values themselves as operands, for a statement that stands alone."""
        return [sa.literal(v, kind) for v, kind in zip(values, self.types, strict=True)]

    def above(
        self, operands: Sequence[sa.ColumnElement[Any]], *, inclusive: bool = False
    ) -> sa.ColumnElement[bool]:
        """Return the condition that the key is above (or at) the operands."""
        return self.dialect.key_above(self.columns, operands, inclusive=inclusive)

    def upto(self, operands: Sequence[sa.ColumnElement[Any]]) -> sa.ColumnElement[bool]:
        """Return the condition that the key is at or below the operands."""
        return self.dialect.key_upto(self.columns, operands)

    def between(
        self,
        low: Sequence[sa.ColumnElement[Any]],
        high: Sequence[sa.ColumnElement[Any]],
        *,
        alike: int = 0,
        inclusive: bool = False,
    ) -> sa.ColumnElement[bool]:
        """Return the condition that the key is above (or at) `low`, if any, and up to `high`.

        `alike` leading columns are the same at both ends: compared for equality they end the scan
        of an index where it should end. By row values PostgreSQL before 18 reads on to the end
        of the first column's value, which may be most of the table.
        """
        same = [column == end for column, end in zip(self.columns[:alike], high, strict=False)]
        rest = self.columns[alike:]
        upto = self.dialect.key_upto(rest, high[alike:])
        if not low:
            return sa.and_(*same, upto)
        above = self.dialect.key_above(rest, low[alike:], inclusive=inclusive)
        return sa.and_(*same, above, upto)

    @property
    def is_single(self) -> bool:
        """Whether it is one column."""
        return len(self.columns) == 1

    @property
    def is_integer(self) -> bool:
        """Whether it is one column of whole numbers."""
        return self.is_single and isinstance(self.columns[0].type, sa.Integer)

    def one_of(self, name: str) -> sa.ColumnElement[bool]:
        """Return the condition that a single key is in a list, bound under this name."""
        return self.dialect.key_in(self.columns[0], name, self.types[0])

    def among(self, keys: Sequence[KeyValues]) -> sa.ColumnElement[bool]:
        """Return the condition that the key is one of these, with their values inside."""
        return self.dialect.key_among(self.columns, self.types, keys)

    def other_than(self, keys: Sequence[KeyValues]) -> sa.ColumnElement[bool]:
        """Return the condition that the key is none of these."""
        return sa.not_(self.among(keys))


_FAMILIES = (
    *(sa.Enum, sa.Boolean, sa.Integer, sa.Numeric, sa.String, sa.Uuid),
    *(sa.DateTime, sa.Date, sa.Time, sa.LargeBinary, sa.BINARY, sa.VARBINARY),
)


def _family(kind: TypeEngine[Any]) -> str:
    """Return what a type has in common with those that order its values alike: INTEGER and
    BIGINT are of one family, INTEGER and TEXT are not."""
    return next((f.__name__ for f in _FAMILIES if isinstance(kind, f)), "other")


def alike(low: KeyValues, high: KeyValues) -> int:
    """Return how many leading values two keys share, the last one never among them."""
    pairs = zip(low, high[:-1], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


# -- text ------------------------------------------------------------------------------

_PLAIN: dict[type, Callable[[Any], Any]] = {bool: bool, int: int.__int__, str: str.__str__}
_WRITERS: dict[type, tuple[str, Callable[[Any], str]]] = {
    UUID: ("uuid", str),
    Decimal: ("decimal", str),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    bytes: ("bytes", bytes.hex),
    bytearray: ("bytes", bytearray.hex),
    memoryview: ("bytes", memoryview.hex),
    float: ("float", float.hex),
}
_READERS: dict[str, Callable[[str], Any]] = {
    "uuid": UUID,
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "bytes": bytes.fromhex,
    "float": float.fromhex,
}


def dumps(values: KeyValues) -> str:
    """Write key values as exact typed text: JSON in ASCII, `["DE", {"uuid": "…"}]`.

    Integers, strings and booleans stand as they are; everything else carries its type.
    Raises TypeError for a value of a type that has no exact text here.
    """
    return json.dumps([_tagged(value) for value in values])


def loads(text: str) -> KeyValues:
    """Read what `dumps` wrote. Raises StateError for any other text."""
    try:
        items = json.loads(text)
        if not isinstance(items, list):
            raise TypeError("not an array")
        return tuple(_untagged(item) for item in items)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise StateError(
            "A key in the state tables is not in the form that this version writes; somebody edited"
            " it, or a newer version of backfill wrote it. Take that back; or"
            " `backfill cancel NAME`, and run it again from its beginning."
        ) from error


def _tagged(value: Any) -> Any:
    for kind in type(value).__mro__:
        if kind in _PLAIN:
            return _PLAIN[kind](value)
        if kind in _WRITERS:
            tag, write = _WRITERS[kind]
            return {tag: write(value)}
    raise TypeError(f"{type(value).__name__} has no exact text form")


def _untagged(item: Any) -> Any:
    if isinstance(item, dict):
        ((tag, text),) = item.items()
        if not isinstance(text, str):
            raise TypeError("not text")
        return _READERS[tag](text)
    if isinstance(item, (bool, int, str)):
        return item
    raise TypeError(f"{type(item).__name__} is not a key value")
