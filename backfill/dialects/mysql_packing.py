"""Rows that travel as one text, where reading them one by one takes longer than finding them.

A driver written in Python takes 3 µs for a row of three columns (PyMySQL 1.1, measured), the
server a quarter of that to join them, and `str.split` less still to part them again. The text is
believed only where all rows have as many values as columns, and are as many as the server
counted, which shows a value that holds a mark; and where it is shorter than what it would be cut
off to (`group_concat_max_len`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backfill.pages import Raw

_NEXT_VALUE, _NEXT_ROW = "\x1f", "\x1e"
"""ASCII's own unit and record separators."""
_NULL, _NOT_NULL = "-", "+"
"""What a value that may be NULL begins with."""
_NOT_PACKED = (mysql.SET, mysql.MEDIUMTEXT, mysql.LONGTEXT)
"""A set is no text for Python; of the others one may be longer than what CONCAT gives."""
_MOST: sa.ColumnElement[int] = sa.literal_column("@@group_concat_max_len", sa.Integer())


class Packing:
    """How the rows of a SELECT are packed, and unpacked again."""

    def __init__(self, columns: Sequence[sa.ColumnElement[Any]]) -> None:
        self._columns = columns
        self._statements: dict[sa.Select[Any], sa.Select[Any]] = {}

    @classmethod
    def of(
        cls, columns: Sequence[sa.ColumnElement[Any]], key_width: int, dialect: sa.Dialect
    ) -> Packing | None:
        """Return the packing of such rows; None where a value is not exactly its text, or where
        Python cannot put the rows in the order of their key, the first columns."""
        is_ordered = all(isinstance(c.type, sa.Integer) for c in columns[:key_width])
        are_texts = all(_is_its_text(c, dialect) for c in columns)
        have_names = len({column.name.casefold() for column in columns}) == len(columns)
        return cls(columns) if is_ordered and are_texts and have_names else None

    def packed(self, page: sa.Select[Any]) -> sa.Select[Any]:
        """Return the statement that gives the number of a page's rows, and all of them in one."""
        if page not in self._statements:
            rows = page.subquery()
            parts: list[Any] = []
            for column, found in zip(self._columns, rows.c, strict=True):
                parts += [_sent(column, found), _mark(_NEXT_VALUE)]
            parts[-1] = _mark(_NEXT_ROW).op("SEPARATOR")(sa.literal_column("''"))
            together = sa.func.group_concat(*parts, type_=sa.Text())
            asked: list[Any] = [sa.func.count(), together, _MOST]
            self._statements[page] = sa.select(*asked).select_from(rows)
        return self._statements[page]

    def unpacked(self, count: int, text: str | None, most: int) -> Sequence[Raw] | None:
        """Return the rows in the order of their keys; None: it is not sure what they are.

        `most`: bytes to which the text would have been cut off.
        """
        if not count:
            return []
        if text is None or len(text.encode()) >= int(most):
            return None
        *rows, rest = text.split(_NEXT_ROW)
        values = [row.split(_NEXT_VALUE) for row in rows]
        if rest or len(rows) != count or set(map(len, values)) != {len(self._columns)}:
            return None
        received = map(_received, self._columns, zip(*values, strict=True))
        return sorted(zip(*received, strict=True))  # keys differ: nothing else is compared


def _is_its_text(column: sa.ColumnElement[Any], dialect: sa.Dialect) -> bool:
    is_text = isinstance(column.type, sa.String) and not isinstance(column.type, _NOT_PACKED)
    kind = column.type.dialect_impl(dialect)
    is_raw = kind.result_processor(dialect, None) is None
    return is_raw and (is_text or isinstance(column.type, sa.Integer))


def _may_be_null(column: sa.ColumnElement[Any]) -> bool:
    inner = column.element if isinstance(column, sa.Label) else column
    return not isinstance(inner, sa.Column) or inner.nullable is not False


def _sent(column: sa.ColumnElement[Any], found: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    sent = found
    if isinstance(column.type, sa.String):  # columns of several character sets cannot be joined
        sent = sa.func.convert(found.op("USING")(sa.literal_column("utf8mb4")))
    if _may_be_null(column):  # by sql_mode ORACLE CONCAT takes NULL for ''
        with_sign = sa.func.concat(sa.literal_column(f"'{_NOT_NULL}'"), sent)
        return sa.func.if_(sa.func.isnull(found), sa.literal_column(f"'{_NULL}'"), with_sign)
    return sent


def _received(column: sa.ColumnElement[Any], texts: Iterable[str]) -> Iterable[Any]:
    kind: type = int if isinstance(column.type, sa.Integer) else str
    if _may_be_null(column):
        return [None if text == _NULL else kind(text[1:]) for text in texts]
    return texts if kind is str else map(int, texts)


def _mark(character: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"CHAR({ord(character)} USING utf8mb4)", sa.String())
