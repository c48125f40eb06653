"""MariaDB and MySQL (InnoDB)."""

from __future__ import annotations

import logging
import re
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill.dialects import mysql_health
from backfill.dialects.base import Dialect, LogFill
from backfill.dialects.bulk import ExecutemanyUpdate
from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.explaining import Explain, Explanation
from backfill.dialects.mysql_bulk import WRITTEN_IN_PYTHON, JsonTableUpdate, OneByOneUpdate
from backfill.dialects.mysql_packing import Packing
from backfill.dialects.mysql_rights import MySQLRights
from backfill.dialects.mysql_triggers import LABEL, MariaDBTriggers
from backfill.dialects.mysql_types import Float, KeyDate, KeyMoment, Label, Time
from backfill.dialects.mysql_upkeep import MySQLUpkeep
from backfill.dialects.triggers import literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.dialects.bulk import BulkUpdate
    from backfill.dialects.limits import Limits
    from backfill.dialects.mysql_health import Words
    from backfill.settings import Settings
    from backfill.speed.readings import Signal
    from backfill.targets import Target

logger = logging.getLogger(__name__)

# MySQL Server Error Reference; 1927, 1969 and 4025 are MariaDB's own.
_KINDS: dict[int, ErrorKind] = {
    **dict.fromkeys((1213, 1020, 1412, 1615, 1684), ErrorKind.CONFLICT),
    **dict.fromkeys((1205, 3572), ErrorKind.LOCKED),
    **dict.fromkeys((3024, 1969, 1317), ErrorKind.TOO_SLOW),
    **dict.fromkeys((2006, 2013, 2014, 2055, 1053, 1927, 4031, 4150, 0), ErrorKind.SESSION_LOST),
    **dict.fromkeys((1040, 1047, 1203, 1226, 2002, 2003, 2005), ErrorKind.NOT_READY),
    **dict.fromkeys((1290, 1836, 1792), ErrorKind.READ_ONLY),
    **dict.fromkeys((1021, 1114, 1041), ErrorKind.OUT_OF_SPACE),
    **dict.fromkeys((1062, 1048, 1264, 1265, 1292, 1366, 1406, 1451, 1452), ErrorKind.DATA),
    **dict.fromkeys((3819, 4025, 1365, 1411, 1644, 1690), ErrorKind.DATA),
    **dict.fromkeys((1216, 1217, 1242, 1367, 1369, 1441, 1525, 1586), ErrorKind.DATA),
    **dict.fromkeys((3140, 3141, 4038, 1153), ErrorKind.DATA),
    **dict.fromkeys((1146, 1050, 1054, 1060, 1061, 1064, 1091, 1305), ErrorKind.SCHEMA),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1419), ErrorKind.RIGHTS),
    **dict.fromkeys((1030, 1034, 126, 145), ErrorKind.DAMAGE),
}
# Texts of these errors hold a name in this place, and no value before it.
_NAMED = {
    1048: ("column", re.compile(r"^Column '([^']+)'")),
    1264: ("column", re.compile(r"for column '([^']+)'")),
    1406: ("column", re.compile(r"for column '([^']+)'")),
    1062: ("constraint", re.compile(r"for key '([^']+)'$")),
    4025: ("constraint", re.compile(r"^CONSTRAINT `([^`]+)`")),
    3819: ("constraint", re.compile(r"^Check constraint '([^']+)'")),
}
_RANGES = {"range", "ref", "eq_ref", "const", "system"}
_GATHERED_BYTES = 2 * 1024**2
"""What may be in one value: 50,000 numbers of 20 digits, and as much again."""
_SESSIONS = 100
"""Of a command's connections so many are remembered, the last ones."""


_STRICT = "STRICT_ALL_TABLES"
"""Else a value that does not fit is cut in silence."""
_SQL_MODE = f"CONCAT(@@sql_mode, ',SIMULTANEOUS_ASSIGNMENT,{_STRICT}')"
_LONGEST_KEY = 4_096
"""Bytes by which text is sorted, where no index does it: more than any index has (3,072)."""


class MySQL(Dialect):
    """MySQL waits a whole second for a row lock at least, so rows are locked first."""

    assigns_in_order: ClassVar[bool] = True
    log_fills: ClassVar[bool] = True
    company_nice: ClassVar[float] = 5.0
    """InnoDB writes 1.6 kB of log for a row that outgrows its full page (measured), and whoever
    commits meanwhile waits until our part of it is on the disk, too."""
    mismatches: ClassVar[frozenset[str]] = frozenset({"2000", "4078"})

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self._sessions: deque[int] = deque(maxlen=_SESSIONS)
        """The server's numbers of our connections: nothing else tells them in its lock views."""

    def open(self, limits: Limits) -> sa.Connection:
        connection = super().open(limits)
        session = {
            **self._session(limits),
            "group_concat_max_len": _GATHERED_BYTES,
            "max_sort_length": _LONGEST_KEY,
        }
        assignments = ", ".join(f"SESSION {name} = {value}" for name, value in session.items())
        with connection.begin():
            connection.exec_driver_sql(f"SET {LABEL} = {literal(limits.label)}, {assignments}")
            number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
            self._sessions.append(int(number))
            self._mark(connection)
        sa.event.listen(connection, "before_cursor_execute", _labelled(limits.label), retval=True)
        return connection

    def _mark(self, connection: sa.Connection) -> None:
        """Let other runners see, wherever they are, that this session is one of ours."""
        try:
            connection.exec_driver_sql(_MARK)
        except sa.exc.DBAPIError as error:  # some clusters refuse such locks
            if error.connection_invalidated:
                raise
            logger.debug("session not marked: %s", self.error_code(error))

    def _session(self, limits: Limits) -> dict[str, int | float | str]:
        return {
            "innodb_lock_wait_timeout": max(1, int(limits.lock_timeout)),
            "lock_wait_timeout": max(1, int(limits.statement_timeout)),
            "max_execution_time": int(limits.statement_timeout * 1000),
            "wait_timeout": 600,
            "sql_mode": f"CONCAT(@@sql_mode, ',{_STRICT}')",
        }

    def _native_code(self, original: BaseException) -> str | int | None:
        code = getattr(original, "errno", None) or (original.args[0] if original.args else None)
        return code if isinstance(code, int) else None

    def _is_unsendable(self, original: BaseException) -> bool:
        # "nan can not be used with MySQL", or "Float value 'nan' is not supported."
        text = str(original)
        says_so = "can not be used with" in text or text.endswith("is not supported.")
        return says_so or super()._is_unsendable(original)

    def _kind_of_code(self, code: str | int) -> ErrorKind:
        return _KINDS.get(int(code), ErrorKind.UNKNOWN)

    def error_objects(self, error: BaseException) -> dict[str, str]:
        original = getattr(error, "orig", None) or error
        code = self._native_code(original)
        if code not in _NAMED or not original.args:
            return {}
        kind, pattern = _NAMED[int(code)]
        found = pattern.search(str(original.args[-1]))
        return {kind: found.group(1)} if found else {}

    def key_type(self, column: sa.Column[Any]) -> TypeEngine[Any] | None:
        # TIMESTAMP follows the session's zone, ENUM sorts by number but compares as text.
        if isinstance(column.type, (sa.TIMESTAMP, sa.Enum, Label, mysql.SET)):
            return None
        kind = super().key_type(column)
        if isinstance(kind, sa.DateTime):
            return KeyMoment()
        return KeyDate() if isinstance(kind, sa.Date) else kind

    def key_above(self, columns: Any, operands: Any, *, inclusive: bool = False) -> Any:
        """Spell the OR out: InnoDB's optimizer makes a range of it, never of row values."""
        first, rest = columns[0], columns[1:]
        if not rest:
            return super().key_above(columns, operands, inclusive=inclusive)
        deeper = self.key_above(rest, operands[1:], inclusive=inclusive)
        return sa.or_(first > operands[0], sa.and_(first == operands[0], deeper))

    def key_among(self, columns: Any, kinds: Any, keys: Any) -> Any:
        """Constants of several tuples are not converted to a column's character set, so that none
        is found (measured on MariaDB 10.11: latin1 and ucs2 beside a connection of utf8mb4)."""
        if len(columns) > 1 and any(map(_is_foreign, columns)):
            return self.key_is_any(columns, kinds, keys)
        return super().key_among(columns, kinds, keys)

    def key_upto(self, columns: Any, operands: Any) -> Any:
        first, rest = columns[0], columns[1:]
        if not rest:
            return super().key_upto(columns, operands)
        deeper = self.key_upto(rest, operands[1:])
        return sa.or_(first < operands[0], sa.and_(first == operands[0], deeper))

    def key_doubts(self, connection: Any, table: Any, names: Any, *, computes: bool) -> str | None:
        """SQLAlchemy reads an index without the lengths of its prefixes, the hash that stands for
        long text, and the period of WITHOUT OVERLAPS."""
        given = {"schema": table.schema, "table": table.name}
        found = connection.execute(_UNIQUE_INDEXES, given)
        if any(sorted(row.key_columns.split("\n")) == sorted(names) for row in found):
            return None
        return (
            "is unique by an index of another kind (the first characters of a text, a hash, a"
            " period), by which rows are not walked in order. Name other unique columns in `key`"
        )

    def unfit_table(self, connection: sa.Connection, table: sa.Table) -> str | None:
        engine = connection.execute(_ENGINE, {"schema": table.schema, "table": table.name}).scalar()
        if engine is None or engine == "InnoDB":
            return None
        return f"uses {engine}, which has no transactions: ALTER TABLE … ENGINE=InnoDB first."

    def complete_reflection(self, connection: sa.Connection, table: sa.Table) -> None:
        rows = connection.execute(_COLLATIONS, {"schema": table.schema, "table": table.name})
        for name, collation in rows:
            table.c[name].info["collation"] = collation
        for column in table.c:
            if isinstance(column.type, mysql.FLOAT):
                column.type = Float()
            elif isinstance(column.type, sa.Float):
                column.type.asdecimal = False  # SQLAlchemy would cut a DOUBLE to ten digits
            elif isinstance(column.type, sa.Time):
                column.type = Time()
            elif isinstance(column.type, sa.Enum):
                column.type = Label()  # the server knows the labels, and SQLAlchemy not all

    @property
    def upkeep(self) -> MySQLUpkeep:
        return MySQLUpkeep(self)

    @property
    def rights(self) -> MySQLRights:
        return MySQLRights(self)

    def health(self, table: sa.Table, settings: Settings) -> list[Signal]:
        words, ours = self._health_words(), self._sessions.copy
        return mysql_health.signals(self, words, ours, settings)

    def log_fill(self, connection: sa.Connection) -> LogFill | None:
        return mysql_health.log_fill(connection, self._health_words())

    def _health_words(self) -> Words:
        return mysql_health.MYSQL

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Take InnoDB's own estimate; it is often 40 % off."""
        rows = connection.execute(
            _TABLE_ROWS, {"schema": table.schema, "table": table.name}
        ).scalar()
        return None if rows is None else int(rows)

    def row_bytes(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Take InnoDB's own estimate, what it keeps outside of the row included."""
        found = connection.execute(
            _ROW_LENGTH, {"schema": table.schema, "table": table.name}
        ).scalar()
        return int(found) if found else None

    def gathered(
        self, column: sa.Column[Any], condition: sa.ColumnElement[bool]
    ) -> sa.ColumnElement[Any]:
        """Last comes what fits in: what is longer is cut off there, anywhere in a number. What
        `max_allowed_packet` has no room for is NULL, which must not mean that no row matches."""
        gathered = sa.func.coalesce(super().gathered(column, condition), "")
        return sa.func.concat(gathered, ",", sa.literal_column("@@group_concat_max_len"))

    def numbers_in(self, gathered: Any) -> list[int] | None:
        if gathered is None:
            return None
        numbers, _, most = gathered.rpartition(",")
        return super().numbers_in(numbers) if len(numbers) < int(most) else None

    def explain(self, connection: sa.Connection, statement: sa.Select[Any]) -> Explanation:
        rows = [dict(row) for row in connection.execute(Explain("EXPLAIN", statement)).mappings()]
        shown = ("table", "type", "key", "key_len", "rows", "Extra")
        lines = tuple(", ".join(f"{c}={row.get(c)}" for c in shown) for row in rows)
        return Explanation(lines, all((row.get("type") or "const") in _RANGES for row in rows))

    def now(self, plus_seconds: float = 0) -> sa.ColumnElement[Any]:
        microseconds = round(plus_seconds * 1_000_000)
        return sa.literal_column(
            f"TIMESTAMPADD(MICROSECOND, {microseconds}, UTC_TIMESTAMP(6))", mysql.DATETIME(fsp=6)
        )

    def horizon(self, connection: sa.Connection) -> str | None:
        """Return the time by the server process's own zone, as InnoDB tells `trx_started`."""
        here = sa.text("SELECT CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM')")
        return str(connection.execute(here).scalar_one())

    def older_than_horizon(self, connection: sa.Connection, horizon: str) -> str | None:
        try:
            row = connection.execute(_OLDER_WRITER, {"horizon": horizon}).first()
        except sa.exc.DBAPIError as error:
            if self.error_kind(error) is not ErrorKind.RIGHTS:
                raise
            logger.warning(
                "Cannot see other transactions, so rows that an older one has yet to commit may"
                " be missed until the gate looks: GRANT PROCESS ON *.* to this user to be sure."
            )
            return None
        if row is None:
            return None
        if not row.thread:
            return "an older transaction that is prepared (XA RECOVER lists it)"
        whose = f"{row.user} in {row.db or 'no schema'}"
        return f"the older transaction of connection {row.thread} ({whose})"

    def packing(self, columns: Sequence[sa.ColumnElement[Any]], key_width: int) -> Packing | None:
        dialect = self.engine.dialect
        if dialect.driver not in WRITTEN_IN_PYTHON:
            return None
        return Packing.of(columns, key_width, dialect)

    def slow_columns(self, target: Target) -> list[str]:
        untaken = (mysql.BIT, sa.types.NullType)
        return [c.name for c in target.travelling if isinstance(c.type, untaken)]

    def row_by_row(self, target: Target, writes: Sequence[str]) -> BulkUpdate:
        is_connector = self.engine.dialect.driver == "mariadbconnector"
        return (OneByOneUpdate if is_connector else ExecutemanyUpdate)(target, writes)

    def _fast_update(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> BulkUpdate:
        return JsonTableUpdate(target, writes, narrow)


class MariaDB(MySQL):
    """MariaDB can refuse a locked row at once, and ends idle transactions by itself."""

    update_gives_way: ClassVar[bool] = True
    assigns_in_order: ClassVar[bool] = False  # by SIMULTANEOUS_ASSIGNMENT

    def _session(self, limits: Limits) -> dict[str, int | float | str]:
        return {
            "innodb_lock_wait_timeout": int(limits.lock_timeout),
            "lock_wait_timeout": max(1, int(limits.statement_timeout)),
            "max_statement_time": limits.statement_timeout,
            "idle_transaction_timeout": max(1, int(limits.idle_timeout)),
            "sql_mode": _SQL_MODE,
        }

    @contextmanager
    def borrowing(self, connection: sa.Connection) -> Iterator[None]:
        before = connection.exec_driver_sql("SELECT @@sql_mode").scalar_one()
        connection.exec_driver_sql(f"SET SESSION sql_mode = {_SQL_MODE}")
        try:
            yield
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql(f"SET SESSION sql_mode = {literal(before)}")

    @classmethod
    def offline_check(cls, conditions: Sequence[str], problem: str) -> str | None:
        """Write no compound statement: clients would cut it at its semicolons."""
        look = "SET @backfill_is_pending = ({})"
        stop = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {literal(problem)}"
        first, *others = [look.format(condition) for condition in conditions]
        following = [
            f"EXECUTE IMMEDIATE IF(@backfill_is_pending, {literal(text)}, 'DO 0')"
            for text in (*others, stop)
        ]
        return "\n".join(f"{one};" for one in (first, *following))

    @property
    def triggers(self) -> MariaDBTriggers:
        return MariaDBTriggers(self)

    def _health_words(self) -> Words:
        return mysql_health.MARIADB


def _labelled(label: str) -> Callable[..., tuple[str, Any]]:
    """Return a listener that writes the run's name into every statement, where SHOW PROCESSLIST
    shows it. Behind the first word: drivers and proxies know a statement by how it begins.
    """
    name = re.sub(r"[^\w:. -]", "_", label, flags=re.ASCII)
    pattern, comment = re.compile(r"^\s*\w+"), rf"\g<0> /* {name} */"

    def label_it(_connection: Any, _cursor: Any, text: str, given: Any, *_: Any) -> tuple[str, Any]:
        return pattern.sub(comment, text, count=1), given

    return label_it


_MARK = f"SELECT GET_LOCK({mysql_health.MARK.format('CONNECTION_ID()')}, 0)"
_ENGINE = sa.text(
    "SELECT engine FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
_COLLATIONS = sa.text(
    "SELECT column_name, collation_name FROM information_schema.columns"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
    " AND collation_name IS NOT NULL"
)
_UNIQUE_INDEXES = sa.text(
    "SELECT GROUP_CONCAT(column_name SEPARATOR '\\n') AS key_columns"
    " FROM information_schema.statistics"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
    " GROUP BY index_name"
    " HAVING MAX(non_unique) = 0 AND COUNT(sub_part) = 0 AND COUNT(column_name) = COUNT(*)"
    " AND MAX(index_type) = 'BTREE' AND MIN(index_type) = 'BTREE'"
)
_TABLE_ROWS = sa.text(
    "SELECT table_rows FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
_ROW_LENGTH = sa.text(
    "SELECT avg_row_length FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
_OLDER_WRITER = sa.text(
    "SELECT trx_mysql_thread_id AS thread, user, db FROM information_schema.innodb_trx"
    " LEFT JOIN information_schema.processlist AS p ON p.id = trx_mysql_thread_id"
    " WHERE trx_started <= :horizon AND trx_rows_modified > 0"
    " AND trx_mysql_thread_id <> CONNECTION_ID() ORDER BY trx_started LIMIT 1"
)


def _is_foreign(column: sa.Column[Any]) -> bool:
    """Whether a column's text may be in another character set than Unicode's."""
    if not isinstance(column.type, sa.String):
        return False
    own = getattr(column.type, "charset", None) or getattr(column.type, "collation", None)
    options = {name.partition("_")[2]: value for name, value in column.table.kwargs.items()}
    named = own or options.get("default charset") or options.get("charset") or ""
    return not str(named).startswith(("utf8", "ascii"))
