"""What differs between databases, in a form that is safe on any of them.

A subclass a database overrides what its database does better. Nothing outside this package
asks for a dialect by name: it calls a method, or reads a capability.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import types as sqltypes
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ClauseElement, Executable

from backfill.errors import CommitUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from backfill.keys import Key, KeyValues
    from backfill.settings import Settings

logger = logging.getLogger(__name__)


_LONGEST_STEP = 200_000
_WALK_SECONDS = 1.0

BINARY_TYPES = (sa.LargeBinary, sqltypes._Binary)
"""SQLAlchemy's binary types: LargeBinary, and BINARY, VARBINARY and MySQL's blobs beside it."""


class ErrorKind(Enum):
    """What an error means for us; found by the database's code, never by exception class."""

    CONFLICT = "conflict with another transaction"
    LOCKED = "a row is locked by the application"
    TOO_SLOW = "the statement took too long"
    SESSION_LOST = "the connection was lost"
    NOT_READY = "the database accepts no connection"
    READ_ONLY = "the database is read-only"
    OUT_OF_SPACE = "the database is out of space or memory"
    DATA = "a row does not fit"
    SCHEMA = "the schema is not what the backfill needs"
    RIGHTS = "a privilege is missing"
    DAMAGE = "the database reports damage"
    UNKNOWN = "an error that is not known to be harmless"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a transaction of ours may wait, work and idle, in seconds."""

    lock_timeout: float
    statement_timeout: float
    idle_timeout: float
    label: str = "backfill"

    @classmethod
    def of(cls, settings: Settings, label: str) -> Limits:
        """Return the limits of a backfill's chunks."""
        return cls(settings.lock_timeout, settings.statement_timeout, settings.idle_timeout, label)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The database's own plan for a walk."""

    lines: tuple[str, ...]
    is_index_range: bool


class Dialect:
    """The portable base: correct everywhere, fast nowhere in particular."""

    update_gives_way: ClassVar[bool] = False
    """An UPDATE that meets a locked row fails within `lock_timeout`. Where it cannot, rows are
    locked with NOWAIT before they are written."""
    assigns_in_order: ClassVar[bool] = False
    """In `SET a = b, b = a` the second assignment sees what the first one wrote."""
    one_writer: ClassVar[bool] = False
    """A chunk locks the whole database, and those who wait for it stand in no queue."""
    row_locks: ClassVar[bool] = True
    """SELECT … FOR UPDATE exists."""
    isolation_level: ClassVar[str] = "READ COMMITTED"

    def __init__(self, engine: sa.Engine) -> None:
        self.source = engine
        self.engine = engine.execution_options(isolation_level=self.isolation_level)
        sa.event.listen(self.engine, "commit", _refuse_commit)

    # -- sessions and transactions -------------------------------------------------

    def open(self, limits: Limits) -> sa.Connection:
        """Return a new connection, set up as far as that lasts for a session.

        It never goes back to the user's pool, so that nothing of ours is left in there.
        """
        connection = self.engine.connect()
        connection.detach()
        return connection

    def begin(self, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        """Begin the transaction on the server, with its limits."""

    @contextmanager
    def transaction(
        self, connection: sa.Connection, limits: Limits, *, write: bool = True
    ) -> Iterator[sa.Connection]:
        """Run one transaction: commits at the end, rolls back on any error.

        Raises CommitUnknown where COMMIT itself failed in a way that leaves the outcome open.
        """
        transaction = connection.begin()
        try:
            self.begin(connection, limits, write=write)
            yield connection
        except BaseException:
            _roll_back(connection, transaction)
            raise
        try:
            transaction.commit()
        except Exception as error:
            kind = self.error_kind(error)
            _roll_back(connection, transaction)
            if kind in (ErrorKind.CONFLICT, ErrorKind.DATA, ErrorKind.LOCKED):
                raise
            code = self.error_code(error)
            raise CommitUnknown(f"COMMIT gave no clear answer ({code})") from error

    # -- errors ----------------------------------------------------------------------

    def error_code(self, error: BaseException) -> str:
        """Return the database's own code for an error, or the exception's class name."""
        original = self.driver_error(error)
        code = None if original is None else self._native_code(original)
        return str(code or type(original or error).__name__)

    def error_kind(self, error: BaseException) -> ErrorKind:
        """Say what an error means; UNKNOWN is never taken for harmless."""
        original = self.driver_error(error)
        if original is None:
            # A value that could not be bound never reached the driver.
            is_value = isinstance(error, sa.exc.StatementError)
            return ErrorKind.DATA if is_value else ErrorKind.UNKNOWN
        code = self._native_code(original)
        if code is not None:
            return self._kind_of_code(code)
        if getattr(error, "connection_invalidated", False):
            return ErrorKind.SESSION_LOST
        if isinstance(error, sa.exc.OperationalError) and error.statement is None:
            return ErrorKind.NOT_READY  # drivers give no code to a connection that never was
        if self._is_unsendable(original):
            return ErrorKind.DATA
        return ErrorKind.UNKNOWN

    def _is_unsendable(self, original: BaseException) -> bool:
        """Whether the driver says, without a code, that it cannot send a value."""
        return isinstance(original, self.engine.dialect.loaded_dbapi.DataError)

    def driver_error(self, error: BaseException) -> BaseException | None:
        """Return the driver's own error; None for one that Python code raised."""
        original = getattr(error, "orig", None) or error
        driver = self.engine.dialect.loaded_dbapi
        return original if isinstance(original, driver.Error) else None

    def error_objects(self, error: BaseException) -> dict[str, str]:
        """Return names (constraint, column) that the error gives, never values."""
        return {}

    def _native_code(self, original: BaseException) -> str | int | None:
        return None

    def _kind_of_code(self, code: str | int) -> ErrorKind:
        return ErrorKind.UNKNOWN

    # -- keys ------------------------------------------------------------------------

    def key_type(self, column: sa.Column[Any]) -> TypeEngine[Any] | None:
        """Return the type in which this column's values travel unchanged; None: unfit as key."""
        exact = (sa.Integer, sa.String, sa.Uuid, sa.DateTime, sa.Date, sa.Time, *BINARY_TYPES)
        if isinstance(column.type, exact) and not isinstance(column.type, sa.Enum):
            return column.type
        if isinstance(column.type, sa.Numeric) and not isinstance(column.type, sa.Float):
            return column.type
        return None

    def key_above(
        self,
        columns: Sequence[sa.ColumnElement[Any]],
        operands: Sequence[sa.ColumnElement[Any]],
        *,
        inclusive: bool = False,
    ) -> sa.ColumnElement[bool]:
        """Return `columns > operands` (`>=` if inclusive) in a form that becomes an index range.

        `a >= :a AND (a > :a OR b > :b)`, nested for more columns, suits every planner measured.
        """
        first, rest = columns[0], columns[1:]
        if not rest:
            return first >= operands[0] if inclusive else first > operands[0]
        deeper = self.key_above(rest, operands[1:], inclusive=inclusive)
        return sa.and_(first >= operands[0], sa.or_(first > operands[0], deeper))

    def key_upto(
        self,
        columns: Sequence[sa.ColumnElement[Any]],
        operands: Sequence[sa.ColumnElement[Any]],
    ) -> sa.ColumnElement[bool]:
        """Return `columns <= operands`, likewise."""
        first, rest = columns[0], columns[1:]
        if not rest:
            return first <= operands[0]
        deeper = self.key_upto(rest, operands[1:])
        return sa.and_(first <= operands[0], sa.or_(first < operands[0], deeper))

    # -- tables ----------------------------------------------------------------------

    def unfit_table(self, connection: sa.Connection, table: sa.Table) -> str | None:
        """Say why a chunk's writes could not be undone in this table; None if they can."""
        return None

    def is_never_null(
        self, connection: sa.Connection, table: sa.Table, column: sa.Column[Any]
    ) -> bool:
        """Whether a column that is not declared NOT NULL cannot be null all the same."""
        return False

    def complete_reflection(self, connection: sa.Connection, table: sa.Table) -> None:
        """Note in the table what SQLAlchemy's reflection leaves out."""

    # -- statistics ------------------------------------------------------------------

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Return about how many rows a table has, from statistics; None if there are none."""
        return None

    def split_points(
        self,
        connection: sa.Connection,
        key: Key,
        rows: int | None,
        parts: int,
        *,
        after: KeyValues = (),
        upto: KeyValues = (),
    ) -> list[KeyValues]:
        """Return up to `parts - 1` existing keys, ascending, that cut about `rows` rows evenly.

        They lie above `after` and below `upto`, where these are given. Walks the key's index
        in steps, for about a second at most: what is left then stays one range.
        """
        wanted = max((rows or 0) // parts, 1_000)
        points, passed = [], 0
        for step, found in _walk_in_steps(connection, key, min(wanted, _LONGEST_STEP), after, upto):
            passed += step
            if passed >= wanted:
                points.append(found)
                passed = 0
            if len(points) == parts - 1:
                break
        return points

    def explain(self, connection: sa.Connection, statement: sa.Select[Any]) -> Explanation:
        """Return the database's plan for a statement."""
        return Explanation(("this database's plan is not read",), is_index_range=True)

    # -- time and other transactions ---------------------------------------------------

    def now(self, plus_seconds: float = 0) -> sa.ColumnElement[Any]:
        """Return SQL for the database's own clock, in UTC without a zone."""
        raise NotImplementedError  # pragma: no cover - unknown databases are refused earlier

    def horizon(self, connection: sa.Connection) -> str | None:
        """Return a mark of the transactions that are open now; None where none can be hidden."""
        return None

    def older_than_horizon(self, connection: sa.Connection, horizon: str) -> str | None:
        """Say who still has a writing transaction from before the mark; None if nobody."""
        return None

    # -- writing ---------------------------------------------------------------------

    def lock(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Return the SELECT with row locks that fail at once rather than wait."""
        return statement.with_for_update(nowait=True, key_share=True)

    def bulk_update(
        self, table: sa.Table, key: Key, writes: Sequence[str], narrow: sa.ColumnElement[bool]
    ) -> BulkUpdate:
        """Return the fastest way to write computed rows; `narrow` is the chunk's key range."""
        return ExecutemanyUpdate(table, key, writes)


NO_COMMIT = "backfill_no_commit"
"""Key of a connection's info: the error to raise when somebody else's code commits on it."""


def _refuse_commit(connection: sa.Connection) -> None:
    problem = connection.info.get(NO_COMMIT)
    if problem is not None:
        raise problem


class BulkUpdate:
    """Writes computed values of many rows in as few round trips as the database allows."""

    def write(
        self,
        connection: sa.Connection,
        rows: Sequence[tuple[KeyValues, Mapping[str, Any]]],
        parameters: Mapping[str, Any],
    ) -> int:
        """Write the rows; `parameters` bind the key range. Returns the rows that matched."""
        raise NotImplementedError  # pragma: no cover - abstract


class ExecutemanyUpdate(BulkUpdate):
    """One prepared statement, bound for each row: right for every type, everywhere."""

    def __init__(self, table: sa.Table, key: Key, writes: Sequence[str]) -> None:
        self._writes = list(writes)
        self._names = [f"_write_{i}" for i in range(len(self._writes))]
        match = (c == p for c, p in zip(key.columns, key.operands("key"), strict=True))
        self._key = key
        self._statement = (
            sa.update(table)
            .where(*match)
            .values(
                {
                    column: sa.bindparam(name, type_=table.c[column].type)
                    for column, name in zip(self._writes, self._names, strict=True)
                }
            )
        )

    def write(
        self,
        connection: sa.Connection,
        rows: Sequence[tuple[KeyValues, Mapping[str, Any]]],
        parameters: Mapping[str, Any],
    ) -> int:
        bound = [
            {
                **self._key.parameters("key", key),
                **{n: values[w] for n, w in zip(self._names, self._writes, strict=True)},
            }
            for key, values in rows
        ]
        connection.execute(self._statement, bound)
        return len(bound)


class Explain(Executable, ClauseElement):
    """`EXPLAIN` of a statement, with its parameters bound as usual."""

    inherit_cache = False

    def __init__(self, prefix: str, statement: sa.Select[Any]) -> None:
        self.prefix = prefix
        self.statement = statement


@compiles(Explain)
def _compile_explain(element: Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{element.prefix} {compiler.process(element.statement, **kw)}"


def _roll_back(connection: sa.Connection, transaction: sa.Transaction) -> None:
    """Always ROLLBACK: MariaDB's 1205 leaves half a transaction open.

    By the driver too: where a user's code ended the transaction, SQLAlchemy believes that
    there is nothing to roll back.
    """
    try:
        transaction.rollback()
        if connection.in_transaction():
            connection.rollback()
        if not connection.invalidated:
            connection.connection.rollback()
    except Exception:
        # The connection is beyond use; the server rolls back when it notices.
        logger.debug("rollback failed")


def _walk_in_steps(
    connection: sa.Connection, key: Key, step: int, after: KeyValues, upto: KeyValues
) -> Iterator[tuple[int, KeyValues]]:
    """Give every `step`-th key between the bounds, until time is up."""
    statement = sa.select(*key.selected).order_by(*key.columns).limit(1).offset(step - 1)
    if upto:
        statement = statement.where(key.upto(key.constants(upto)))
    following = statement.where(key.above(key.operands("after")))
    deadline = time.monotonic() + _WALK_SECONDS
    while time.monotonic() < deadline:
        if after:
            row = connection.execute(following, key.parameters("after", after)).first()
        else:
            row = connection.execute(statement).first()
        if row is None or tuple(row) == upto:
            return
        after = tuple(row)
        yield step, after
