"""SQLite's bulk write: one UPDATE that asks Python for each row's values.

The values were computed before; what is called in there only looks them up. While nobody else
has written to the database, a row's key is enough; else it is all that was read of the row, so
that the step that writes a row makes sure that it is what it was.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.bulk import BulkUpdate, Overtaken
from backfill.errors import UnsendableValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backfill.pages import Page, PageReader, Raw
    from backfill.targets import Target

_STORABLE = frozenset({int, float, str, bytes, bytearray, memoryview, type(None)})
"""What a function may return; SQLAlchemy makes memoryviews of what goes into a LargeBinary."""
_numbers = count(1)


class FunctionUpdate(BulkUpdate):
    """Writes rows by functions of its own, which a connection learns when it first needs them."""

    def __init__(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> None:
        self._verifies = verifies
        self._fallback = target.dialect.row_by_row(target, writes)
        table, dialect = target.table, target.dialect.engine.dialect
        self._width = len(target.key.columns)
        self._update = sa.update(table).where(narrow)
        self._dialect = target.dialect
        self._schema = target.table.schema
        self._prefix = f"backfill_{next(_numbers)}"
        self._writes = list(writes)
        self._processes = [
            table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in writes
        ]
        self._values: list[dict[Any, Any]] = [{} for _ in writes]
        """What is written to each column, by the key; the first one's by all that was read of the
        row, where others may have written."""
        self._is_overtaken = False
        self._statements: dict[tuple[bool, bool], sa.Update] = {}

    def write(
        self,
        connection: sa.Connection,
        page: Page,
        outputs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
    ) -> int:
        is_alone = page.mark is not None and page.mark == self._dialect.foreign_writes(
            connection, self._schema
        )
        statement = self._statement(page, is_alone=is_alone)
        try:
            self._fill(page, outputs, is_alone=is_alone)
        except (TypeError, ValueError, LookupError) as error:
            if self._verifies:
                raise Overtaken from error  # with the lock, the rows may go one by one
            return self._fallback.write(connection, page, outputs, parameters)
        self._teach(connection, page.reader)
        self._is_overtaken = False
        try:
            return connection.execute(statement, parameters).rowcount
        except sa.exc.OperationalError as error:
            is_refused = "user-defined function raised" in str(error.orig)
            if is_refused and (self._is_overtaken or self._verifies):
                raise Overtaken from error
            if is_refused:  # a str that UTF-8 cannot hold: what else a function may not return, and
                # the driver may bind, did not come so far
                raise UnsendableValue("UnicodeEncodeError") from error
            raise

    def _fill(self, page: Page, outputs: Sequence[Mapping[str, Any]], *, is_alone: bool) -> None:
        columns = page.key_columns if self._width == 1 else ()
        keys = columns[0] if columns else [raw[: self._width] for raw in page.rows]
        rows = _exact_rows(page.rows, page.reader.loose)
        for i, (name, process) in enumerate(zip(self._writes, self._processes, strict=True)):
            values = _stored([output[name] for output in outputs], process)
            by = keys if is_alone or i > 0 else rows
            self._values[i].clear()
            self._values[i].update(zip(by, values, strict=True))

    def _statement(self, page: Page, *, is_alone: bool) -> sa.Update:
        """Return the UPDATE of all rows that the condition selects, or of those given alone."""
        every_row = page.is_complete and self._verifies  # else others than pending ones are met
        wanted = (is_alone, every_row)
        if wanted not in self._statements:
            columns = page.reader.columns
            key = columns[: self._width]
            first = ("key", key) if is_alone else ("row", columns)
            values = {
                name: self._call(f"key_{i}", key) for i, name in enumerate(self._writes) if i > 0
            }
            values[self._writes[0]] = self._call(f"{first[0]}_0", first[1])
            update = self._update.values(values)
            if not every_row:
                update = update.where(self._call(f"{first[0]}_known", first[1]) == 1)
            self._statements[wanted] = update
        return self._statements[wanted]

    def _call(self, name: str, arguments: Sequence[sa.ColumnElement[Any]]) -> Any:
        function = getattr(sa.func, f"{self._prefix}_{name}")
        return function(*arguments, type_=sa.types.NullType())

    def _teach(self, connection: sa.Connection, reader: PageReader) -> None:
        known: set[str] = connection.info.setdefault("backfill_functions", set())
        if self._prefix in known:
            return
        known.add(self._prefix)
        driver: Any = connection.connection.dbapi_connection
        width, first = self._width, self._values[0]
        look_up, is_row_known = self._look_up, _by_key(first.__contains__)
        if reader.loose:
            look_up, is_row_known = (_exactly(f, reader.loose) for f in (look_up, is_row_known))
        columns = len(reader.columns)
        driver.create_function(f"{self._prefix}_row_0", columns, look_up)
        driver.create_function(f"{self._prefix}_row_known", columns, is_row_known)
        for i, values in enumerate(self._values):
            by_key = values.__getitem__ if width == 1 else _by_key(values.__getitem__)
            driver.create_function(f"{self._prefix}_key_{i}", width, by_key)
        is_known = first.__contains__ if width == 1 else _by_key(first.__contains__)
        driver.create_function(f"{self._prefix}_key_known", width, is_known)

    def _look_up(self, *row: Any) -> Any:
        try:
            return self._values[0][row]
        except KeyError:
            self._is_overtaken = True
            raise


def _by_key(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *key: function(key)


def _exact_rows(rows: Sequence[Raw], loose: Sequence[int]) -> Sequence[Raw]:
    return [_exact(row, loose) for row in rows] if loose else rows


def _exactly(function: Callable[..., Any], loose: Sequence[int]) -> Callable[..., Any]:
    return lambda *row: function(*_exact(row, loose))


def _exact(row: Raw, loose: Sequence[int]) -> Raw:
    """Return a row that equals no other: for Python 1 is 1.0, and 0.0 is -0.0."""
    values = list(row)
    for i in loose:
        if type(values[i]) in (int, float):
            values[i] = (type(values[i]), repr(values[i]))
    return tuple(values)


def _stored(values: list[Any], process: Callable[[Any], Any] | None) -> list[Any]:
    """Return values as SQLite stores them; TypeError or ValueError for what a function cannot."""
    if process is not None:
        values = list(map(process, values))
    kinds = set(map(type, values))
    for kind in kinds - _STORABLE:
        raise TypeError(f"{kind.__name__} is stored by the driver's own conversion, if at all")
    if int in kinds and any(type(v) is int and not -(2**63) <= v < 2**63 for v in values):
        raise ValueError("an integer of more than 64 bits")
    return values
