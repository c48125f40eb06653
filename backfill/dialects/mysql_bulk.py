"""MariaDB's and MySQL's bulk write: one UPDATE, joined with one JSON document of all rows."""

from __future__ import annotations

import json
from binascii import b2a_base64
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill.dialects.base import BINARY_TYPES
from backfill.dialects.bulk import SENT, BulkUpdate, ExecutemanyUpdate
from backfill.dialects.mysql_types import Time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backfill.pages import Page
    from backfill.targets import Target

WRITTEN_IN_PYTHON = {"pymysql", "aiomysql"}
"""Drivers that take longer for rows and for text than the server does."""
_BASE64_BYTES = 1024**2
"""Of a document that is sent as base64 for speed: that is a third longer, and packets may be of
4 MiB."""


class JsonTableUpdate(BulkUpdate):
    """`UPDATE … JOIN JSON_TABLE(?)`: one parameter in all; values travel as text in JSON."""

    def __init__(
        self, target: Target, writes: Sequence[str], narrow: sa.ColumnElement[bool]
    ) -> None:
        columns = (*target.key.columns, *(target.table.c[name] for name in writes))
        self._fallback = target.dialect.row_by_row(target, writes)
        self._writes = list(writes)
        self._kinds = [_Kind.of(column) for column in columns]
        self._is_quoted_slowly = target.dialect.engine.dialect.driver in WRITTEN_IN_PYTHON
        sent: sa.ColumnElement[Any] = sa.bindparam("_document", type_=sa.Text())
        plain = sa.func.from_base64(sent).op("USING")(sa.literal_column("utf8mb4"))
        self._plain = self._update(target, narrow, sent)
        self._base64 = self._update(target, narrow, sa.func.convert(plain))

    def _update(
        self, target: Target, narrow: sa.ColumnElement[bool], document: sa.ColumnElement[Any]
    ) -> sa.Update:
        table, key = target.table, target.key
        names = [f"{SENT}_k{i}" for i in range(len(key.columns))]
        names += [f"{SENT}_w{i}" for i in range(len(self._writes))]
        kinds = [_transport(column) for column in key.columns] + ["LONGTEXT"] * len(self._writes)
        paths = ", ".join(
            f"{name} {kind} PATH '$[{i}]'"
            for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
        )
        source = sa.func.json_table(
            document,
            sa.literal_column(f"'$[*]' COLUMNS ({paths})"),
        ).table_valued(*names, name=f"{SENT}_rows")
        return (
            sa.update(table)
            .where(
                *(
                    column == _arrived(column, source.c[f"{SENT}_k{i}"])
                    for i, column in enumerate(key.columns)
                )
            )
            .where(narrow)
            .values(
                {
                    name: _arrived(table.c[name], source.c[f"{SENT}_w{i}"], compared=False)
                    for i, name in enumerate(self._writes)
                }
            )
        )

    def write(
        self,
        connection: sa.Connection,
        page: Page,
        outputs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
    ) -> int:
        columns = [*page.key_columns, *([o[name] for o in outputs] for name in self._writes)]
        try:
            texts = [kind.texts(column) for column, kind in zip(columns, self._kinds, strict=True)]
        except TypeError:
            return self._fallback.write(connection, page, outputs, parameters)
        document = json.dumps(list(zip(*texts, strict=True)), ensure_ascii=False)
        statement = self._plain
        if self._is_better_as_base64(document):
            statement = self._base64
            document = b2a_base64(document.encode(), newline=False).decode()
        return connection.execute(statement, {"_document": document, **parameters}).rowcount

    def _is_better_as_base64(self, document: str) -> bool:
        """Whether it is sent faster so, or is shorter: drivers put a backslash before each quote.
        What is not ASCII does not depend on the connection's character set then."""
        if not document.isascii() or (self._is_quoted_slowly and len(document) <= _BASE64_BYTES):
            return True
        return 3 * (document.count('"') + document.count("\\")) > len(document)


class _Kind(Enum):
    """What Python's values a column takes by text; the driver's conversion is for the others."""

    BINARY = (bytes, bytearray, memoryview)
    YEAR = (int, str)
    TIME = (str, time, timedelta)
    OTHER = (str, int, float, Decimal, UUID, date, time, dict, list)

    @classmethod
    def of(cls, column: sa.Column[Any]) -> _Kind:
        if _is_binary(column):
            return cls.BINARY
        if isinstance(column.type, mysql.YEAR):
            return cls.YEAR
        return cls.TIME if isinstance(column.type, Time) else cls.OTHER

    def texts(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return a column's values as what JSON carries exactly. TypeError: one is not taken."""
        kinds = set(map(type, values)) - {type(None)}
        if self is _Kind.OTHER and kinds <= {str, int}:
            return values
        if any(not issubclass(kind, self.value) for kind in kinds):
            raise TypeError("left to the driver")
        return [None if value is None else self._text(value) for value in values]

    def _text(self, value: Any) -> str:
        if self is _Kind.BINARY:
            return bytes(value).hex()
        if self is _Kind.YEAR and isinstance(value, int):
            return f"{value:04}"
        return _text(value)


def _is_binary(column: sa.ColumnElement[Any]) -> bool:
    return isinstance(column.type, BINARY_TYPES)


def _transport(column: sa.Column[Any]) -> str:
    """Return the type in which JSON_TABLE hands a key column over, fit for an index lookup."""
    if isinstance(column.type, sa.Integer):
        return "BIGINT UNSIGNED" if getattr(column.type, "unsigned", False) else "BIGINT"
    if isinstance(column.type, (sa.Numeric, sa.DateTime, sa.Date, sa.Time)):
        return column.type.compile(mysql.dialect())
    return "LONGTEXT"


def _arrived(
    column: sa.Column[Any], value: sa.ColumnElement[Any], *, compared: bool = True
) -> sa.ColumnElement[Any]:
    """Return a handed-over value as the column wants it."""
    if _is_binary(column):
        return sa.func.unhex(value)
    collation = column.info.get("collation")
    if compared and collation:
        charset: sa.ColumnElement[Any] = sa.literal_column(collation.split("_", 1)[0])
        return sa.collate(sa.func.convert(value.op("USING")(charset)), collation)
    return sa.type_coerce(value, sa.types.NullType())


def _text(value: Any) -> str:
    """Return a value as the text that MySQL reads back exactly. TypeError: no such text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, UUID)):
        return str(value)
    if isinstance(value, float):
        return float.__repr__(value)  # a subclass, as NumPy's, may show itself otherwise
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, timedelta):
        return _clock(value)
    raise TypeError(type(value).__name__)


def _clock(value: timedelta) -> str:
    microseconds = abs(value) // timedelta(microseconds=1)
    seconds, fraction = divmod(microseconds, 1_000_000)
    sign = "-" if value < timedelta(0) else ""
    return f"{sign}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


class OneByOneUpdate(ExecutemanyUpdate):
    """For MariaDB's connector: its executemany() crashes on values of several types, or stores
    other ones."""

    def _send(self, connection: sa.Connection, bound: Sequence[Mapping[str, Any]]) -> None:
        for parameters in bound:
            connection.execute(self._statement, parameters)
