"""What differs between databases, in a form that is safe on any of them.

A subclass a database overrides what its database does better. Nothing outside this package
asks for a dialect by name: it calls a method, or reads a capability.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import types as sqltypes
from sqlalchemy.util import greenlet_spawn

from backfill.dialects.bulk import BulkUpdate, ExecutemanyUpdate
from backfill.dialects.driver_errors import DriverErrors, ErrorKind
from backfill.dialects.explaining import Explanation
from backfill.dialects.loops import outside_of_loops
from backfill.dialects.rights import Rights
from backfill.dialects.upkeep import Upkeep
from backfill.dialects.watchdog import Watchdog, connect_in_time, connecting
from backfill.errors import CommitUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.dialects.limits import Limits
    from backfill.dialects.mysql_packing import Packing
    from backfill.dialects.readers import Readers
    from backfill.dialects.triggers import Triggers
    from backfill.keys import Key, KeyValues
    from backfill.settings import Settings
    from backfill.speed.readings import Signal
    from backfill.targets import Target

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


_LONGEST_STEP = 200_000
_WALK_SECONDS = 1.0

BINARY_TYPES = (sa.LargeBinary, sqltypes._Binary)
"""SQLAlchemy's binary types: LargeBinary, and BINARY, VARBINARY and MySQL's blobs beside it."""


@dataclass(frozen=True, slots=True)
class LogFill:
    """The redo log, in bytes."""

    age: float
    """In use: pages that are not flushed depend on it."""
    most: float
    """Where everybody who writes waits."""
    written: float
    """All that was ever written to it."""


class Dialect(DriverErrors):
    """The portable base: correct everywhere, fast nowhere in particular."""

    update_gives_way: ClassVar[bool] = False
    """An UPDATE that meets a locked row fails within `lock_timeout`. Where it cannot, rows are
    locked with NOWAIT before they are written."""
    assigns_in_order: ClassVar[bool] = False
    """In `SET a = b, b = a` the second assignment sees what the first one wrote."""
    one_writer: ClassVar[bool] = False
    """A chunk locks the whole database, and those who wait for it stand in no queue."""
    mismatches: ClassVar[frozenset[str]] = frozenset()
    """Codes of errors that say SCHEMA of a statement, and of a bound value its type."""
    target_seconds: ClassVar[float] = 0.05
    """How long a chunk may take where nobody says: people notice a tenth of a second."""
    company_seconds: ClassVar[float] = 0.0015
    """The same while others are at work, whose statements take a millisecond: with 0.02 s their
    99th percentile was seven times that without us, with this twice (tests/benchmarks/neighbour).
    """
    company_nice: ClassVar[float] = 1.0
    """Seconds of rest for each second of work while others are at work, where nobody says: half of
    the time is theirs, a chunk at most is between any of them and its turn."""
    chunk_bytes: ClassVar[int] = 8 * 1024**2
    """What its rows may come to: half of what MariaDB takes in one statement
    (`max_allowed_packet`, 16 MiB), and of a segment of PostgreSQL's WAL."""
    first_rows: ClassVar[int] = 500
    """Rows of the first chunk, of which nobody knows how long it will take."""
    log_fills: ClassVar[bool] = False
    """A full redo log makes everybody who writes wait."""
    row_locks: ClassVar[bool] = True
    """SELECT … FOR UPDATE exists."""
    mixes_types: ClassVar[bool] = False
    """A column may hold values of other types than its own."""
    has_schemas: ClassVar[bool] = True
    """A transaction can write to tables of several schemas (MariaDB: databases)."""
    isolation_level: ClassVar[str] = "READ COMMITTED"

    def __init__(self, engine: sa.Engine) -> None:
        self.source = engine
        self.engine = engine.execution_options(isolation_level=self.isolation_level)
        sa.event.listen(self.engine, "commit", _refuse_commit)
        connect_in_time(self.engine)
        self._watchdog = Watchdog(self.engine)

    # -- sessions and transactions -------------------------------------------------

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the database, in this thread: it gets an event loop of its
        own where the driver needs one, as SQLAlchemy's `AsyncConnection.run_sync` would give it.
        """
        if not self.is_async:
            return function(*args, **kwargs)
        wrapped = partial(function, *args, **kwargs)
        return outside_of_loops(lambda: asyncio.run(greenlet_spawn(wrapped)))

    def open(self, limits: Limits) -> sa.Connection:
        """Return a new connection, set up as far as that lasts for a session.

        It never goes back to the user's pool, so that nothing of ours is left in there.
        """
        with connecting(limits.silence):
            connection = self.engine.connect()
        connection.detach()
        return connection

    def close(self, connection: sa.Connection) -> None:
        """Close a connection of ours, between two transactions.

        Without the pool's last ROLLBACK: nothing is open, and a server that has gone would make
        SQLAlchemy log a traceback, or keep us waiting.
        """
        if not connection.closed and not connection.invalidated:
            driver: Any = connection.connection.dbapi_connection
            connection.invalidate()
            try:
                self.engine.dialect.do_terminate(driver)
            except Exception as error:  # as PyMySQL, where the server has hung up
                logger.debug("closed already: %s", type(error).__name__)
        connection.close()

    def begin(self, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        """Begin the transaction on the server, with its limits."""

    @contextmanager
    def borrowing(self, connection: sa.Connection) -> Iterator[None]:
        """Make somebody else's connection fit for a chunk's statements, as long as this lasts."""
        yield

    @classmethod
    def offline_check(cls, conditions: Sequence[str], problem: str) -> str | None:
        """Return a script that fails with this problem where all of the conditions hold, each
        looked at only if those before it hold; None where the database cannot express that."""
        return None

    @contextmanager
    def transaction(
        self, connection: sa.Connection, limits: Limits, *, write: bool = True
    ) -> Iterator[sa.Connection]:
        """Run one transaction: commits at the end, rolls back on any error.

        Raises CommitUnknown where COMMIT itself failed in a way that leaves the outcome open. A
        server that keeps silent for longer than the limits allow is given up.
        """
        with self._watchdog.watching(connection, limits.silence) as watch:
            transaction = connection.begin()
            try:
                self.begin(connection, limits, write=write)
                yield connection
            except BaseException:
                watch.ask()
                _roll_back(connection, transaction)
                raise
            try:
                watch.ask()
                transaction.commit()
            except Exception as error:
                kind = self.error_kind(error)
                watch.ask()
                _roll_back(connection, transaction)
                if kind in (ErrorKind.CONFLICT, ErrorKind.DATA, ErrorKind.LOCKED):
                    raise
                why = f"{kind.value} ({self.error_code(error)})"
                raise CommitUnknown(f"COMMIT gave no clear answer: {why}") from error

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

    def key_in(
        self, column: sa.ColumnElement[Any], name: str, kind: TypeEngine[Any]
    ) -> sa.ColumnElement[bool]:
        """Return `column IN (...)`, of values of a type that are bound as a list to a name."""
        return column.in_(sa.bindparam(name, type_=kind, expanding=True))

    def key_among(
        self,
        columns: Sequence[sa.ColumnElement[Any]],
        kinds: Sequence[TypeEngine[Any]],
        keys: Sequence[Sequence[Any]],
    ) -> sa.ColumnElement[bool]:
        """Return the condition that columns have the values of one of these keys."""
        if len(columns) == 1:
            values = [key[0] for key in keys]
            return columns[0].in_(sa.bindparam(None, values, type_=kinds[0], expanding=True))
        return sa.tuple_(*columns, types=kinds).in_(keys)

    def key_is_any(
        self,
        columns: Sequence[sa.ColumnElement[Any]],
        kinds: Sequence[TypeEngine[Any]],
        keys: Sequence[Sequence[Any]],
    ) -> sa.ColumnElement[bool]:
        """Return the same condition spelt out, which is long, and right for every type."""
        return sa.or_(
            sa.false(),
            *(
                sa.and_(
                    *(
                        column == sa.literal(value, kind)
                        for column, kind, value in zip(columns, kinds, key, strict=True)
                    )
                )
                for key in keys
            ),
        )

    def gathered(
        self, column: sa.Column[Any], condition: sa.ColumnElement[bool]
    ) -> sa.ColumnElement[Any]:
        """Return SQL for a column's whole numbers, of all rows that match, in one value."""
        return sa.func.group_concat(sa.case((condition, column)), type_=sa.String())

    def numbers_in(self, gathered: Any) -> list[int] | None:
        """Return the numbers in such a value; None: it holds others, or not all of them."""
        try:
            return [int(number) for number in gathered.split(",")] if gathered else []
        except ValueError:
            return None

    # -- tables ----------------------------------------------------------------------

    counts_writes: ClassVar[bool] = False
    """An UPDATE says how many rows it has written, whatever they were before: with a connection
    of the user's own making, MySQL's tells of those alone that became others."""

    def leaves_rows_out(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whether something of the table's may keep rows from being written, without an error."""
        return False

    def hides_rows(self, connection: sa.Connection, table: sa.Table) -> bool:
        """Whether this user is not shown all rows."""
        return False

    def unfit_writes(self, connection: sa.Connection, target: Target) -> str | None:
        """Say why these columns cannot be written in this table; None if they can."""
        return None

    def unfit_table(self, connection: sa.Connection, table: sa.Table) -> str | None:
        """Say why a chunk's writes could not be undone in this table; None if they can."""
        return None

    def is_never_null(
        self, connection: sa.Connection, table: sa.Table, column: sa.Column[Any]
    ) -> bool:
        """Whether a column that is not declared NOT NULL cannot be null all the same."""
        return False

    def key_doubts(
        self, connection: sa.Connection, table: sa.Table, names: Collection[str], *, computes: bool
    ) -> str | None:
        """Say why rows may share a key that is declared to be unique; None: they cannot.

        `computes`: each row's values are found by its key.
        """
        return None

    def complete_reflection(self, connection: sa.Connection, table: sa.Table) -> None:
        """Note in the table what SQLAlchemy's reflection leaves out."""

    def is_typed(self, kind: TypeEngine[Any]) -> bool:
        """Whether a column of this type holds values of one type only."""
        return True

    # -- statistics ------------------------------------------------------------------

    @property
    def upkeep(self) -> Upkeep:
        """What is known, and can be done, about dead rows and statistics."""
        return Upkeep(self)

    @property
    def rights(self) -> Rights:
        """What this user may do."""
        return Rights(self)

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Return about how many rows a table has, from statistics; None if there are none."""
        return None

    def row_bytes(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Return about how many bytes a row has where it is stored; None: that is not known."""
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

    def all_at_once(
        self, readers: Readers, table: sa.Table, condition: sa.ColumnElement[bool], rows: int
    ) -> bool | None:
        """Say whether a row matches, by reads of about so many rows in the order in which they
        are stored, where that is much faster than by key; None: it cannot be told so, or not now.
        """
        return None

    def foreign_writes(self, connection: sa.Connection, schema: str | None = None) -> object:
        """Return a mark that changes when another connection writes; always the same: unknown."""
        return None

    def log_fill(self, connection: sa.Connection) -> LogFill | None:
        """Return how full the redo log is, where a full one makes everybody wait; else None."""
        return None

    def health(self, table: sa.Table, settings: Settings) -> list[Signal]:
        """Return what to watch while a run writes to a table, as far as its limits are set."""
        return []

    # -- writing ---------------------------------------------------------------------

    @property
    def triggers(self) -> Triggers | None:
        """The triggers that keep up with the application's writes; None: not here."""
        return None

    def lock(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Return the SELECT with row locks that fail at once rather than wait."""
        return statement.with_for_update(nowait=True, key_share=True)

    def row_version(self, table: sa.Table) -> sa.ColumnElement[Any] | None:
        """Return a column that changes with every write to a row; None: there is none."""
        return None

    def packing(self, columns: Sequence[sa.ColumnElement[Any]], key_width: int) -> Packing | None:
        """Return how rows of these columns travel as one text, where that is faster."""
        return None

    def slow_columns(self, target: Target) -> list[str]:
        """Return the columns for whose sake rows are written one by one."""
        return []

    def verifies(self, target: Target) -> bool:
        """Whether the bulk write can tell that its rows are what was read."""
        return False

    def bulk_update(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> BulkUpdate:
        """Return the fastest way to write computed rows; `narrow` is the chunk's condition.

        One that `verifies` writes fewer rows than it was given, or raises Overtaken, where one is
        not any more what was read.
        """
        if self.slow_columns(target):
            return self.row_by_row(target, writes)
        return self._fast_update(target, writes, narrow, verifies=verifies)

    def row_by_row(self, target: Target, writes: Sequence[str]) -> BulkUpdate:
        """Return the way that is right for every type and value, and slow."""
        return ExecutemanyUpdate(target, writes)

    def _fast_update(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> BulkUpdate:
        return self.row_by_row(target, writes)


OWN_SCHEMA = "backfill_own_schema"
"""Key of a table's info: the schema in which it is, if its name tells none."""
NO_COMMIT = "backfill_no_commit"
"""Key of a connection's info: the error to raise when somebody else's code commits on it."""


def _refuse_commit(connection: sa.Connection) -> None:
    problem = connection.info.get(NO_COMMIT)
    if problem is not None:
        raise problem


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
