"""PostgreSQL's bulk write: `UPDATE … FROM (SELECT unnest(array), …)`, one parameter a column.

Integers and text travel as they are; all else travels as the text that PostgreSQL reads back
exactly, and is cast to the column's type on the server. Each driver sends an array in the form
that costs it least.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
from array import array
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from backfill.dialects.bulk import SENT, UNSENDABLE, BulkUpdate, Overtaken
from backfill.errors import UnsendableValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backfill.pages import Page
    from backfill.targets import Target

SQL_TYPE = "backfill_sql_type"
"""Key of a column's info: its type's name in SQL, without length or precision, for a cast: a cast
to varchar(3) cuts in silence where the assignment refuses. Of a domain, the type below it."""
DIMENSIONS = "backfill_dimensions"
"""Key of a column's info: how deep lists are arrays; what is deeper belongs to a document."""

_INTEGERS = frozenset({"smallint", "integer", "bigint"})
_ADDRESSES = frozenset(
    {str, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network}
)
_TAKEN: dict[str, frozenset[type]] = {
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    "numeric": frozenset({int, Decimal, float}),
    **dict.fromkeys(("real", "double precision"), frozenset({int, Decimal, float})),
    "boolean": frozenset({bool}),
    "date": frozenset({date}),
    **dict.fromkeys(
        ("timestamp without time zone", "timestamp with time zone"), frozenset({datetime})
    ),
    **dict.fromkeys(("time without time zone", "time with time zone"), frozenset({time})),
    "interval": frozenset({timedelta}),
    "uuid": frozenset({UUID}),
    "bytea": frozenset({bytes, bytearray, memoryview}),
    **dict.fromkeys(("inet", "cidr"), _ADDRESSES),
}
"""What Python's values each type takes by text; any other type takes text alone. What is not
taken goes by the driver's own conversion, row by row."""
_UNTAKEN = (pg.ranges.AbstractRange, pg.HSTORE)
_TEXTS = frozenset({"text", "character varying"})
_DOCUMENTS = frozenset({"json", "jsonb"})


_VERSION = f"{SENT}_version"
_TAKES_PACKED = "backfill_takes_packed"
"""Key of a connection's info: whether it talks UTF-8, as packed text does."""


class _Element(NamedTuple):
    """An element type of arrays that we send."""

    name: str
    oid: int
    """Of the element; src/include/catalog/pg_type.dat has both numbers."""
    array_oid: int


_BIGINT = _Element("BIGINT", 20, 1016)
_TEXT = _Element("TEXT", 25, 1009)
_XID = _Element("XID", 28, 1011)


class UnnestUpdate(BulkUpdate):
    """Writes rows, if wanted only those whose `xmin` is still what was read.

    `xmin` is the transaction that wrote this version of the row, so it changes with every write.
    """

    def __init__(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> None:
        table, key = target.table, target.key
        self._verifies = verifies
        self._writes = list(writes)
        self._send = _SENDERS.get(target.dialect.engine.dialect.driver, _send_list)
        self._fallback = target.dialect.row_by_row(target, writes)
        dumps = getattr(target.dialect.engine.dialect, "_json_serializer", None) or json.dumps
        self._columns = [
            *(_Column(f"{SENT}_k{i}", column, dumps) for i, column in enumerate(key.columns)),
            *(_Column(f"{SENT}_w{i}", table.c[name], dumps) for i, name in enumerate(writes)),
        ]
        width = len(key.columns)
        keys, values = self._columns[:width], self._columns[width:]
        sent = [(c.name, c.element) for c in self._columns] + [(_VERSION, _XID)] * verifies
        arrays = [_rows_of(name, element) for name, element in sent]
        source = sa.select(*arrays).subquery(f"{SENT}_rows")
        self._statement = (
            sa.update(table)
            .where(*(c == k.arrived(source) for c, k in zip(key.columns, keys, strict=True)))
            .where(narrow)  # without it the planner scans the table sooner or later
            .values({name: v.arrived(source) for name, v in zip(writes, values, strict=True)})
        )
        if verifies:
            version = target.dialect.row_version(table)
            assert version is not None
            self._statement = self._statement.where(version == source.c[_VERSION])

    def write(
        self,
        connection: sa.Connection,
        page: Page,
        outputs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
    ) -> int:
        try:
            bound = self._bound(connection, page, outputs)
        except (TypeError, ValueError, LookupError, OverflowError) as error:
            if self._verifies:
                raise Overtaken from error  # with locks, the rows may go one by one
            return self._fallback.write(connection, page, outputs, parameters)
        try:
            return connection.execute(self._statement, {**bound, **parameters}).rowcount
        except UNSENDABLE as error:  # psycopg2: a NUL in text
            raise UnsendableValue(type(error).__name__) from error

    def _bound(
        self, connection: sa.Connection, page: Page, outputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        send = self._send if connection.info.get(_TAKES_PACKED, True) else _send_literal
        values = [*page.key_columns, *([o[name] for o in outputs] for name in self._writes)]
        bound = {
            column.name: send(column.element, column.encoded(items))
            for column, items in zip(self._columns, values, strict=True)
        }
        if self._verifies:
            bound[_VERSION] = send(_XID, page.versions)
        return bound


def _rows_of(name: str, element: _Element, array: Any = None) -> sa.ColumnElement[Any]:
    """Return an array's items, a row each; else than given, the array is a parameter. In a SELECT
    list arrays run beside each other (manual, 38.5.9); in FROM each is first stored as a whole
    (measured: 6 % of a run)."""
    if array is None:
        array = sa.bindparam(name, type_=sa.types.NullType())
    return sa.func.unnest(sa.cast(array, _Named(f"{element.name}[]"))).label(name)


def is_taken(column: sa.Column[Any]) -> bool:
    """Whether a column's type can be written in this way."""
    return not isinstance(column.type, _UNTAKEN) and column.info.get(SQL_TYPE) is not None


def keys_listed(
    driver: str, columns: Sequence[sa.Column[Any]], keys: Sequence[Sequence[Any]]
) -> sa.Select[Any] | None:
    """Return a SELECT of keys, with their values inside; None: a type does not travel so."""
    if not all(map(is_taken, columns)):
        return None
    send = _send_list if driver == "asyncpg" else _send_literal  # in any encoding
    sent = [_Column(f"{SENT}_k{i}", column, json.dumps) for i, column in enumerate(columns)]
    try:
        arrays = [
            _rows_of(one.name, one.element, _constant(send(one.element, one.encoded(items))))
            for one, items in zip(sent, zip(*keys, strict=True), strict=True)
        ]
    except TypeError:
        return None
    source = sa.select(*arrays).subquery(f"{SENT}_keys")
    return sa.select(*(one.arrived(source) for one in sent))


def _constant(array: Any) -> sa.ColumnElement[Any]:
    return sa.bindparam(None, array, sa.types.NullType(), unique=True)


class _Named(sa.types.UserDefinedType[Any]):
    """A type by its name in SQL, which leaves a parameter as it is."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


class _Column:
    """How a column's values travel."""

    def __init__(self, name: str, column: sa.Column[Any], dumps: Callable[[Any], str]) -> None:
        self.name = name
        self._type: str = column.info[SQL_TYPE]
        self._item = self._type.removesuffix("[]")
        self._dimensions: int = column.info[DIMENSIONS]
        self._taken = _TAKEN.get(self._item, frozenset({str}))
        self._is_naive = self._item.endswith("without time zone")
        self._dumps = dumps
        is_integer = self._type in _INTEGERS
        self.element = _BIGINT if is_integer else _TEXT
        self._as_it_is = int if is_integer else str
        """What travels as Python has it."""

    def arrived(self, source: Any) -> sa.ColumnElement[Any]:
        """Return the value, as SQL in the column's type."""
        value = source.c[self.name]
        if self.element is _BIGINT or self._type in _TEXTS:
            return sa.type_coerce(value, sa.types.NullType())
        return sa.cast(value, _Named(self._type))

    def encoded(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the values as what travels: integers, or text. TypeError: one is not taken."""
        kinds = set(map(type, values)) - {type(None)}
        is_plain = not self._dimensions and self._item not in _DOCUMENTS
        if is_plain and kinds <= {self._as_it_is} and kinds <= self._taken:
            return values
        if self.element is _BIGINT:
            raise TypeError(f"{self._type} takes integers alone")
        return [None if value is None else self._text(value, self._dimensions) for value in values]

    def _text(self, value: Any, dimensions: int) -> str:
        if dimensions:
            return self._array(value, dimensions)
        if self._item in _DOCUMENTS:
            return "null" if value is sa.JSON.NULL else self._dumps(value)
        kind = type(value)
        if kind not in self._taken:
            kind = _base(value)
        if kind not in self._taken:
            raise TypeError(f"{self._item} does not take {kind.__name__}")
        if self._is_naive and value.tzinfo is not None:
            raise TypeError(f"{self._item} takes no offset, which the driver converts")
        return _TEXT_OF.get(kind, str)(value)

    def _array(self, values: Any, dimensions: int) -> str:
        """Return an array as text (PostgreSQL manual, 8.15.6): all but NULL and arrays quoted."""
        if type(values) is not list:
            raise TypeError(f"{self._type} does not take {type(values).__name__}")
        return "{" + ",".join(self._array_item(value, dimensions) for value in values) + "}"

    def _array_item(self, value: Any, dimensions: int) -> str:
        if value is None:
            return "NULL"
        is_nested = type(value) is list and (dimensions > 1 or self._item not in _DOCUMENTS)
        if is_nested:
            return self._array(value, max(dimensions - 1, 1))
        return _quoted(self._text(value, 0))


def _base(value: Any) -> type:
    """Return what a value of a driver's or of NumPy's own type is for everybody."""
    return next((kind for kind in (UUID, float) if isinstance(value, kind)), type(value))


def _interval(value: timedelta) -> str:
    # Signs everywhere: by sql_standard's style a leading minus would be for all of them.
    return f"{value.days:+} days {value.seconds:+} seconds {value.microseconds:+} microseconds"


def _hex(value: Any) -> str:
    return "\\x" + bytes(value).hex()


_TEXT_OF: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "true" if value else "false",
    float: float.__repr__,
    datetime: lambda value: value.isoformat(" "),
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _interval,
    bytes: _hex,
    bytearray: _hex,
    memoryview: _hex,
}
"""The text that PostgreSQL reads back exactly, where it is not what str() makes."""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- arrays, as each driver sends them best --------------------------------------------


class Packed:
    """An array in the wire's binary form, ready to be sent."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class PackedBigints(Packed):
    __slots__ = ()


class PackedTexts(Packed):
    __slots__ = ()


class PackedXids(Packed):
    __slots__ = ()


_PACKED: dict[_Element, type[Packed]] = {
    _BIGINT: PackedBigints,
    _TEXT: PackedTexts,
    _XID: PackedXids,
}
_LENGTH = struct.Struct("!i").pack
_WORD = 4
"""Bytes of a length, and of array.array's "I"."""
_NULL = _LENGTH(-1)


def _send_packed(element: _Element, values: Sequence[Any]) -> Any:
    """For psycopg: array_recv's format, of which its own dumper makes one object an item."""
    if element is _TEXT:
        data = _packed_texts(values)
    elif None in values:
        return list(values)
    else:
        data = _packed_numbers(values, "q" if element is _BIGINT else "I")
    header = struct.pack("!5i", 1, int(None in values), element.oid, len(values), 1)
    return _PACKED[element](header + data)


def _packed_texts(values: Sequence[str | None]) -> bytes:
    if None in values:
        return b"".join(_NULL if v is None else _packed_texts([v]) for v in values)
    encoded = list(map(str.encode, values))  # type: ignore[arg-type]
    lengths = list(map(len, encoded))
    packed = {length: _LENGTH(length) for length in set(lengths)}  # they are alike
    items = [b""] * (2 * len(values))
    items[::2] = map(packed.__getitem__, lengths)
    items[1::2] = encoded
    return b"".join(items)


def _packed_numbers(values: Sequence[int], code: str) -> bytes:
    numbers = array(code, values)
    if sys.byteorder == "little":
        numbers.byteswap()
    width = numbers.itemsize // _WORD
    words, packed = array("I", numbers.tobytes()), array("I", bytes(_WORD))
    packed *= len(values) * (1 + width)
    packed[:: 1 + width] = array("I", _LENGTH(numbers.itemsize)) * len(values)
    for i in range(width):
        packed[1 + i :: 1 + width] = words[i::width]
    return packed.tobytes()


def _send_literal(element: _Element, values: Sequence[Any]) -> Any:
    """For psycopg2, which writes values into the statement: one text rather than thousands; and
    for psycopg where it talks another encoding than UTF-8."""
    if element is _TEXT:
        return "{" + ",".join("NULL" if v is None else _quoted(v) for v in values) + "}"
    return "{" + ",".join("NULL" if v is None else str(v) for v in values) + "}"


def _send_list(element: _Element, values: Sequence[Any]) -> Any:
    return list(values)


_SENDERS: Mapping[str, Callable[[_Element, Sequence[Any]], Any]] = {
    "psycopg": _send_packed,
    "psycopg2": _send_literal,
    "asyncpg": _send_list,
}


def _says_no_value(record: logging.LogRecord) -> bool:
    """psycopg logs the server's words, which may hold a row's values, when an error ends its
    pipeline; the error itself is raised besides."""
    return not str(record.msg).startswith("error ignored")


def _refuse_infinity(driver: Any) -> None:
    """psycopg2 reads it as the last day that Python knows, which a copy would then be."""
    from psycopg2 import DataError, extensions  # type: ignore[import-untyped]

    def finite(read: Any) -> Any:
        def reader(text: str | None, cursor: Any) -> Any:
            if text in ("infinity", "-infinity"):
                raise DataError("infinity is no date of Python's")
            return read(text, cursor)

        return extensions.new_type(read.values, read.name, reader)

    for read in (extensions.PYDATE, extensions.PYDATETIME, extensions.PYDATETIMETZ):
        extensions.register_type(finite(read), driver)


def prepare_driver(connection: sa.Connection) -> None:
    """Teach a connection of psycopg to send packed arrays, and to read `xmin` as the number that
    it sends back; one of psycopg2 that infinity is no date."""
    if connection.dialect.driver == "psycopg2":
        _refuse_infinity(connection.connection.dbapi_connection)
    if connection.dialect.driver != "psycopg":
        return
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
    from psycopg.types.numeric import IntLoader

    logging.getLogger("psycopg").addFilter(_says_no_value)  # the same one is added once
    driver: Any = connection.connection.dbapi_connection
    connection.info[_TAKES_PACKED] = driver.info.encoding == "utf-8"
    driver.adapters.register_loader(_XID.oid, IntLoader)
    for element, kind in _PACKED.items():
        dumper = type(
            f"{kind.__name__}Dumper",
            (Dumper,),
            {
                "format": Format.BINARY,
                "oid": element.array_oid,
                "dump": lambda self, packed: packed.data,
            },
        )
        driver.adapters.register_dumper(kind, dumper)
