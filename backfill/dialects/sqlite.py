"""SQLite: one writer at a time, so the chunk takes the write lock first and keeps it briefly."""

from __future__ import annotations

import logging
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from backfill.dialects.base import BINARY_TYPES, Dialect
from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.explaining import Explain, Explanation
from backfill.dialects.health import FreeDisk, reachable
from backfill.dialects.sqlite_bulk import FunctionUpdate
from backfill.dialects.sqlite_triggers import SQLiteTriggers
from backfill.dialects.sqlite_upkeep import SQLiteUpkeep

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.dialects.bulk import BulkUpdate
    from backfill.dialects.limits import Limits
    from backfill.settings import Settings
    from backfill.speed.readings import Signal
    from backfill.targets import Target

logger = logging.getLogger(__name__)

# https://sqlite.org/rescode.html, primary codes (the low byte of an extended code).
_KINDS = {
    3: ErrorKind.RIGHTS,  # PERM
    5: ErrorKind.LOCKED,  # BUSY
    6: ErrorKind.LOCKED,  # LOCKED
    7: ErrorKind.OUT_OF_SPACE,  # NOMEM
    8: ErrorKind.UNWRITABLE,  # READONLY: no failover will end that
    9: ErrorKind.TOO_SLOW,  # INTERRUPT: our progress handler
    10: ErrorKind.OUT_OF_SPACE,  # IOERR
    11: ErrorKind.DAMAGE,  # CORRUPT
    13: ErrorKind.OUT_OF_SPACE,  # FULL
    14: ErrorKind.NOT_READY,  # CANTOPEN
    15: ErrorKind.LOCKED,  # PROTOCOL: the race for a WAL lock
    17: ErrorKind.CONFLICT,  # SCHEMA: somebody changed it under a prepared statement
    18: ErrorKind.DATA,  # TOOBIG
    19: ErrorKind.DATA,  # CONSTRAINT
    20: ErrorKind.DATA,  # MISMATCH
    23: ErrorKind.RIGHTS,  # AUTH
    26: ErrorKind.DAMAGE,  # NOTADB
}
_BUSY_SNAPSHOT = 517
_MOVED = 1032
"""READONLY_DBMOVED: another file has its name by now."""
# sqlite3 tells no code before Python 3.11; its texts are fixed in SQLite's source.
_TEXTS = {
    "database is locked": 5,
    "database table is locked": 6,
    "interrupted": 9,
    "attempt to write a readonly database": 8,
    "database or disk is full": 13,
    "disk I/O error": 10,
    "unable to open database file": 14,
    "database disk image is malformed": 11,
    "file is not a database": 26,
    "datatype mismatch": 20,
}
_OF_THE_SCHEMA = ("no such", "already exists", "duplicate column name")
_ABOUT_A_VALUE = ("malformed JSON", "Could not decode to UTF-8")
_OPCODES_PER_CHECK = 20_000
_FEW_ROWS = 8
_SMALLEST_ROW = 4
"""Bytes (sqlite.org/fileformat2, B-tree cells): pointer, lengths and rowid take that much."""
_JOURNAL = "backfill_journal"
"""Key of a connection's info: how it kept its rollback journal when we got it."""
_CONSTRAINT = re.compile(r"^(?:NOT NULL|UNIQUE|CHECK) constraint failed: ([\w., ]+)$")


class _Raw(sa.types.UserDefinedType[Any]):
    """A value as it is stored. (NullType would take over the type that it is compared with.)"""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BLOB"


class _Number(sa.types.UserDefinedType[Any]):
    """A number with all its digits, as far as SQLite keeps them; other values as they are."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "NUMERIC"

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        def read(value: Any) -> Any:
            return Decimal(repr(value)) if isinstance(value, (int, float)) else value

        return read

    def bind_processor(self, dialect: Any) -> Any:
        def write(value: Any) -> Any:
            if not isinstance(value, Decimal):
                return value
            is_whole = value == value.to_integral_value() and abs(value) < 2**63
            return int(value) if is_whole else float(value)

        return write


class SQLite(Dialect):
    """The driver begins too late and only for some statements, so BEGIN is ours to send."""

    update_gives_way: ClassVar[bool] = True
    counts_writes: ClassVar[bool] = True
    one_writer: ClassVar[bool] = True
    target_seconds: ClassVar[float] = 0.15
    chunk_bytes: ClassVar[int] = 32 * 1024**2
    first_rows: ClassVar[int] = 5_000
    """Each commit costs three syncs of the disk, and so many rows hardly more than that."""
    row_locks: ClassVar[bool] = False
    mixes_types: ClassVar[bool] = True
    has_schemas: ClassVar[bool] = False  # files are attached to one connection
    isolation_level: ClassVar[str] = "AUTOCOMMIT"
    """pysqlite's name for "the driver sends no BEGIN of its own"."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        sa.event.listen(self.engine.pool, "close_detached", _leave_no_journal)

    def open(self, limits: Limits) -> sa.Connection:
        connection = super().open(limits)
        deadline = [0.0]
        connection.info["backfill_deadline"] = deadline
        driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
        driver.set_progress_handler(lambda: time.monotonic() > deadline[0] > 0, _OPCODES_PER_CHECK)
        return connection

    def close(self, connection: sa.Connection) -> None:
        connection.close()  # an event of the pool's removes the journal

    def begin(self, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        connection.info["backfill_deadline"][0] = 0.0
        # Waiting for the lock holds nothing. Waiting in COMMIT, for readers, shuts new ones out.
        patience = max(limits.lock_timeout, limits.statement_timeout)
        _busy_timeout(connection, patience)
        if write:
            _reuse_journal(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        _busy_timeout(connection, limits.lock_timeout if write else patience)
        connection.info["backfill_deadline"][0] = time.monotonic() + limits.statement_timeout

    def _native_code(self, original: BaseException) -> str | int | None:
        code = getattr(original, "sqlite_errorcode", None)
        if code is None:
            code = _TEXTS.get(str(original))
        if code is None and "constraint failed" in str(original):
            code = 19
        return code

    def _kind_of_code(self, code: str | int) -> ErrorKind:
        if code == _BUSY_SNAPSHOT:
            return ErrorKind.CONFLICT
        if code == _MOVED:
            return ErrorKind.SESSION_LOST
        return _KINDS.get(int(code) & 0xFF, ErrorKind.UNKNOWN)

    def error_kind(self, error: BaseException) -> ErrorKind:
        original = self.driver_error(error)
        if original is not None and any(words in str(original) for words in _OF_THE_SCHEMA):
            return ErrorKind.SCHEMA
        if original is not None and str(original).startswith(
            ("malformed JSON", "Could not decode")
        ):
            return ErrorKind.DATA
        return super().error_kind(error)

    def _is_unsendable(self, original: BaseException) -> bool:
        return super()._is_unsendable(original) or str(original).startswith(
            "Error binding parameter"
        )

    def error_objects(self, error: BaseException) -> dict[str, str]:
        found = _CONSTRAINT.match(str(getattr(error, "orig", error)))
        return {"constraint": found.group(1)} if found else {}

    def key_type(self, column: sa.Column[Any]) -> TypeEngine[Any] | None:
        # A column holds whatever was stored; only the raw value orders as the index does.
        return column.type if isinstance(column.type, (sa.Integer, sa.String)) else _Raw()

    def key_above(self, columns: Any, operands: Any, *, inclusive: bool = False) -> Any:
        if len(columns) == 1:
            return super().key_above(columns, operands, inclusive=inclusive)
        row, bound = sa.tuple_(*columns), sa.tuple_(*operands)
        return row >= bound if inclusive else row > bound

    def key_upto(self, columns: Any, operands: Any) -> Any:
        if len(columns) == 1:
            return super().key_upto(columns, operands)
        return sa.tuple_(*columns) <= sa.tuple_(*operands)

    def is_never_null(
        self, connection: sa.Connection, table: sa.Table, column: sa.Column[Any]
    ) -> bool:
        """The rowid is not: a single primary key of exactly the type INTEGER."""
        if list(table.primary_key.columns) != [column]:
            return False
        declared = sa.text("SELECT upper(type) FROM pragma_table_info(:t, :s) WHERE name = :c")
        names = {"t": table.name, "s": table.schema or "main", "c": column.name}
        return bool(connection.execute(declared, names).scalar() == "INTEGER")

    @property
    def upkeep(self) -> SQLiteUpkeep:
        return SQLiteUpkeep(self)

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Take the span of the rowids: one seek at each end, and an upper bound of the rows. Where
        ids are no counters it is far too much, and what fits into the file is the bound."""
        rowid: sa.ColumnElement[int] = sa.literal_column("rowid")
        ends = [
            sa.select(rowid).select_from(table).order_by(order).limit(1).scalar_subquery()
            for order in (rowid.asc(), rowid.desc())
        ]
        try:
            low, high = connection.execute(sa.select(*ends)).one()
        except sa.exc.OperationalError:
            return None  # WITHOUT ROWID keeps no such number
        if high is None:
            return 0
        schema = self.engine.dialect.identifier_preparer.quote(table.schema or "main")
        count, size = (
            connection.exec_driver_sql(f"PRAGMA {schema}.{name}").scalar_one()
            for name in ("page_count", "page_size")
        )
        return min(int(high) - int(low) + 1, int(count) * int(size) // _SMALLEST_ROW)

    def row_bytes(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Look at the first few rows: SQLite keeps no statistics of that kind."""
        lengths = [sa.func.length(sa.cast(column, sa.LargeBinary)) for column in table.c]
        rows = connection.execute(sa.select(*lengths).limit(_FEW_ROWS)).all()
        return sum(sum(n or 0 for n in row) for row in rows) // len(rows) if rows else None

    def complete_reflection(self, connection: sa.Connection, table: sa.Table) -> None:
        for column in table.c:
            if isinstance(column.type, sa.Numeric) and not isinstance(column.type, sa.Float):
                column.type = _Number()  # SQLAlchemy's would cut it to ten digits

    def leaves_rows_out(self, connection: sa.Connection, table: sa.Table) -> bool:
        return self._declares(connection, table, "type = 'trigger' OR sql LIKE '%CONFLICT%IGNORE%'")

    def unfit_writes(self, connection: sa.Connection, target: Target) -> str | None:
        """Its REPLACE deletes the row that has the value already, and says nothing."""
        table = target.table
        if not self._declares(connection, table, "sql LIKE '%CONFLICT%REPLACE%'"):
            return None
        unique = SQLiteTriggers(self).refusing(connection, target)
        return next(
            (
                f"{name!r} of {table.fullname!r} is unique with ON CONFLICT REPLACE: a value that"
                " is written twice would delete a row. Declare it without that, or use `apply`."
                for name in target.written
                if name in unique
            ),
            None,
        )

    def _declares(self, connection: sa.Connection, table: sa.Table, what: str) -> bool:
        schema = self.engine.dialect.identifier_preparer.quote(table.schema or "main")
        query = sa.text(
            f"SELECT EXISTS (SELECT 1 FROM {schema}.sqlite_master"
            f" WHERE tbl_name = :table COLLATE NOCASE AND ({what}))"
        )
        return bool(connection.execute(query, {"table": table.name}).scalar_one())

    def is_typed(self, kind: TypeEngine[Any]) -> bool:
        """Every column but those of affinity BLOB converts the numbers that it is given."""
        return not isinstance(kind, (sa.types.NullType, *BINARY_TYPES))

    def explain(self, connection: sa.Connection, statement: sa.Select[Any]) -> Explanation:
        rows = connection.execute(Explain("EXPLAIN QUERY PLAN", statement))
        lines = tuple(str(row[-1]) for row in rows)
        reads = [line for line in lines if line.startswith(("SEARCH", "SCAN"))]
        return Explanation(lines, all(line.startswith("SEARCH") for line in reads))

    def now(self, plus_seconds: float = 0) -> sa.ColumnElement[Any]:
        """Milliseconds are what SQLite knows; the zeros make them SQLAlchemy's microseconds."""
        modifiers = ["now"] + ([f"{plus_seconds:+.3f} seconds"] if plus_seconds else [])
        milliseconds = sa.func.strftime("%Y-%m-%d %H:%M:%f", *modifiers)
        return sa.type_coerce(milliseconds + sa.literal("000"), sa.String())

    def foreign_writes(self, connection: sa.Connection, schema: str | None = None) -> object:
        quoted = self.engine.dialect.identifier_preparer.quote(schema or "main")
        return connection.exec_driver_sql(f"PRAGMA {quoted}.data_version").scalar()

    def verifies(self, target: Target) -> bool:
        return True

    def _fast_update(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> BulkUpdate:
        return FunctionUpdate(target, writes, narrow, verifies=verifies)

    def health(self, table: sa.Table, settings: Settings) -> list[Signal]:
        places = reachable([Path(file) for file in _files(self.engine.url)])
        if not places or not settings.min_free_disk:
            return []
        return [FreeDisk(settings.min_free_disk, lambda reader: places)]

    @property
    def triggers(self) -> SQLiteTriggers:
        return SQLiteTriggers(self)

    def lock(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        return statement  # BEGIN IMMEDIATE holds the only write lock there is


def _files(url: sa.URL) -> list[str]:
    """Return the file of a database; none of one in memory."""
    name = (url.database or "").removeprefix("file:").partition("?")[0]
    return [] if name in ("", ":memory:") or "mode=memory" in str(url) else [name]


def _reuse_journal(connection: sa.Connection) -> None:
    """Let a COMMIT void the rollback journal rather than unlink it, which is as safe, and takes a
    tenth off a run (sqlite.org/pragma.html, journal_mode). It is a connection's own affair; WAL,
    which is the file's, stays.
    """
    if _JOURNAL not in connection.info:
        mode = connection.exec_driver_sql("PRAGMA main.journal_mode").scalar()
        connection.info[_JOURNAL] = mode
        if mode == "delete":
            connection.exec_driver_sql("PRAGMA main.journal_mode = persist")


def _leave_no_journal(driver_connection: Any) -> None:
    """Unlink it before a connection is closed; of somebody else's the next COMMIT makes another."""
    try:
        cursor = driver_connection.cursor()
        cursor.execute("PRAGMA main.journal_mode")
        if cursor.fetchone() == ("persist",):
            cursor.execute("PRAGMA main.journal_mode = delete")
        cursor.close()
    except Exception as error:
        logger.debug("a journal without contents is left: %s", type(error).__name__)


def _busy_timeout(connection: sa.Connection, seconds: float) -> None:
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
