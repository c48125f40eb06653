"""PostgreSQL."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from backfill.dialects import postgresql_health
from backfill.dialects.base import OWN_SCHEMA, Dialect
from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.explaining import Explain, Explanation
from backfill.dialects.postgresql_blocks import any_in_blocks
from backfill.dialects.postgresql_bulk import (
    DIMENSIONS,
    SQL_TYPE,
    UnnestUpdate,
    is_taken,
    keys_listed,
    prepare_driver,
)
from backfill.dialects.postgresql_rights import PostgreSQLRights
from backfill.dialects.postgresql_sessions import keep_limits, limit, name_at_once
from backfill.dialects.postgresql_triggers import PostgreSQLTriggers, dollar_quoted
from backfill.dialects.postgresql_types import KeyDate, KeyMoment, QuotedNumeric
from backfill.dialects.postgresql_upkeep import PostgreSQLUpkeep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.dialects.bulk import BulkUpdate
    from backfill.dialects.limits import Limits
    from backfill.dialects.readers import Readers
    from backfill.keys import Key, KeyValues
    from backfill.settings import Settings
    from backfill.speed.readings import Signal
    from backfill.targets import Target

# SQLSTATEs: PostgreSQL manual, appendix A. Exact codes go before their class (first two).
_KINDS = {
    "40001": ErrorKind.CONFLICT,  # serialization_failure
    "40P01": ErrorKind.CONFLICT,  # deadlock_detected
    "40003": ErrorKind.SESSION_LOST,  # statement_completion_unknown
    "55P03": ErrorKind.LOCKED,  # lock_not_available
    "57014": ErrorKind.TOO_SLOW,  # query_canceled
    "25P04": ErrorKind.TOO_SLOW,  # transaction_timeout
    "25P03": ErrorKind.SESSION_LOST,  # idle_in_transaction_session_timeout
    "57P01": ErrorKind.SESSION_LOST,  # admin_shutdown
    "57P02": ErrorKind.SESSION_LOST,  # crash_shutdown
    "57P05": ErrorKind.SESSION_LOST,  # idle_session_timeout
    "57P03": ErrorKind.NOT_READY,  # cannot_connect_now
    "53300": ErrorKind.NOT_READY,  # too_many_connections
    "25006": ErrorKind.READ_ONLY,
    "53": ErrorKind.OUT_OF_SPACE,
    "08": ErrorKind.SESSION_LOST,
    "22": ErrorKind.DATA,
    "23": ErrorKind.DATA,
    "21000": ErrorKind.DATA,  # cardinality_violation: a subquery in `values` found two rows
    "44000": ErrorKind.DATA,  # with_check_option_violation
    "54000": ErrorKind.DATA,  # program_limit_exceeded: an index row too large
    "P0": ErrorKind.DATA,  # PL/pgSQL: a trigger refuses the row
    "42501": ErrorKind.RIGHTS,
    "28": ErrorKind.RIGHTS,
    "42": ErrorKind.SCHEMA,
    "XX001": ErrorKind.DAMAGE,
    "XX002": ErrorKind.DAMAGE,
    "58030": ErrorKind.DAMAGE,  # io_error
}
_SAMPLED = 20_000
_MOST_IN_TEN_PAGES = 3_000
"""Rows of four bytes, the least that the planner assumes."""
_HAS_XMIN = "backfill_has_xmin"
_RAW = (pg.CITEXT, pg.DOMAIN, pg.HSTORE, sa.types.NullType, sa.JSON)
"""Items of arrays that are better read as the driver gives them: it leaves most of these as text,
whose characters SQLAlchemy takes for items, as it takes the lists in documents for dimensions."""
_IS_ONE_HEAP = "backfill_is_one_heap"
_TID_RANGES = (14,)
"""The first version that reads `ctid BETWEEN …` without a scan of the whole table."""


class PostgreSQL(Dialect):
    """Everything is set for one transaction, so that a pooler in transaction mode suits us.

    But for sessions that are ours alone: there the name stays, by which others know them between
    transactions, and what is the same for all chunks.
    """

    update_gives_way: ClassVar[bool] = True
    counts_writes: ClassVar[bool] = True
    mismatches: ClassVar[frozenset[str]] = frozenset({"42601", "42804", "42846", "42883"})

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        name_at_once(engine)

    def open(self, limits: Limits) -> sa.Connection:
        connection = super().open(limits)
        try:
            prepare_driver(connection)
            _prepare_no_statements(connection)
            if limits.are_lasting:
                with self.transaction(connection, limits, write=False):
                    keep_limits(connection, limits)
        except BaseException:
            self.close(connection)
            raise
        return connection

    @contextmanager
    def borrowing(self, connection: sa.Connection) -> Iterator[None]:
        driver: Any = connection.connection.dbapi_connection
        readers = getattr(driver, "string_types", {})  # of psycopg2, which this connection has
        before = dict(readers)
        prepare_driver(connection)
        try:
            yield
        finally:
            readers.clear()
            readers.update(before)

    @classmethod
    def offline_check(cls, conditions: Sequence[str], problem: str) -> str | None:
        lines = [f"{'  ' * i}IF {condition} THEN" for i, condition in enumerate(conditions, 1)]
        text = problem.replace("'", "''").replace("%", "%%")
        lines.append(f"{'  ' * (len(conditions) + 1)}RAISE EXCEPTION '{text}';")
        lines += [f"{'  ' * i}END IF;" for i in range(len(conditions), 0, -1)]
        body = "\n".join([" BEGIN", *lines, "END "])
        return f"DO {dollar_quoted(body)};"

    def begin(self, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        limit(connection, limits)

    def _native_code(self, original: BaseException) -> str | int | None:
        return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)

    def _kind_of_code(self, code: str | int) -> ErrorKind:
        code = str(code)
        return _KINDS.get(code) or _KINDS.get(code[:2]) or ErrorKind.UNKNOWN

    def error_kind(self, error: BaseException) -> ErrorKind:
        original = self.driver_error(error)
        if original is not None and "cached plan must not change" in str(original):
            return ErrorKind.CONFLICT  # 0A000: somebody altered the table; once more
        return super().error_kind(error)

    def _is_unsendable(self, original: BaseException) -> bool:
        # "cannot adapt type …" and "can't adapt type …" are ProgrammingErrors
        return super()._is_unsendable(original) or " adapt type " in str(original)

    def error_objects(self, error: BaseException) -> dict[str, str]:
        original = getattr(error, "orig", None) or error
        # asyncpg's own error stands behind SQLAlchemy's, and has the names itself.
        diagnosis = getattr(original, "diag", None) or original.__cause__
        names = {
            "constraint": getattr(diagnosis, "constraint_name", None),
            "column": getattr(diagnosis, "column_name", None),
        }
        return {kind: name for kind, name in names.items() if name}

    def key_type(self, column: sa.Column[Any]) -> TypeEngine[Any] | None:
        if isinstance(column.type, sa.Time) and column.type.timezone:
            return None  # one moment in two zones is two keys here, and one for Python
        if column.info.get(SQL_TYPE) == '"char"':
            return None  # its text is not in the index's order from byte 128 on
        if isinstance(column.type, (sa.Boolean, sa.Enum, pg.CITEXT)):
            return column.type
        kind = super().key_type(column)
        is_misread = isinstance(kind, sa.Numeric) and self.engine.dialect.driver == "psycopg2"
        if isinstance(kind, sa.DateTime):
            return KeyMoment(timezone=kind.timezone)
        if isinstance(kind, sa.Date):
            return KeyDate()
        return QuotedNumeric() if is_misread else kind

    def key_above(self, columns: Any, operands: Any, *, inclusive: bool = False) -> Any:
        """Row values seek on all columns. A range on the first one beside them would mend the row
        estimate, but from PostgreSQL 18 on it takes their place where the scan begins or ends.
        """
        if len(columns) == 1:
            return super().key_above(columns, operands, inclusive=inclusive)
        row, bound = sa.tuple_(*columns), sa.tuple_(*operands)
        return row >= bound if inclusive else row > bound

    def key_upto(self, columns: Any, operands: Any) -> Any:
        if len(columns) == 1:
            return super().key_upto(columns, operands)
        return sa.tuple_(*columns) <= sa.tuple_(*operands)

    def key_in(self, column: Any, name: str, kind: TypeEngine[Any]) -> Any:
        """One array costs a fifth of what Python and driver need for 900 values."""
        if not isinstance(kind, sa.Integer):
            return super().key_in(column, name, kind)
        array = pg.ARRAY(sa.BigInteger)
        return column == sa.any_(sa.cast(sa.bindparam(name, type_=array), array))

    def key_among(self, columns: Any, kinds: Any, keys: Any) -> Any:
        """By arrays, a column each: constants would be compiled and planned one by one."""
        if len(columns) == 1 and isinstance(kinds[0], sa.Integer):
            array = pg.ARRAY(sa.BigInteger)
            numbers = sa.literal([key[0] for key in keys], array)
            return columns[0] == sa.any_(sa.cast(numbers, array))
        if len(columns) == 1:
            return super().key_among(columns, kinds, keys)
        listed = keys_listed(self.engine.dialect.driver, columns, keys)
        if listed is None:
            return self.key_is_any(columns, kinds, keys)
        return sa.tuple_(*columns).in_(listed)

    def gathered(
        self, column: sa.Column[Any], condition: sa.ColumnElement[bool]
    ) -> sa.ColumnElement[Any]:
        return sa.func.array_agg(column).filter(condition)

    def numbers_in(self, gathered: Any) -> list[int] | None:
        return gathered or []

    def complete_reflection(self, connection: sa.Connection, table: sa.Table) -> None:
        rows = connection.execute(_COLUMN_TYPES, {"table": self._quoted(table)}).all()
        for row in rows:
            info = table.c[row.attname].info
            info[DIMENSIONS] = max(row.attndims, 1) if row.kind.endswith("[]") else 0
            info[SQL_TYPE] = None if row.is_deep else _without_length(row.kind)
        for column in table.c:
            column.type = _below_domains(column.type)
            if isinstance(column.type, sa.ARRAY) and isinstance(column.type.item_type, _RAW):
                column.type = sa.types.NullType()
        if rows:
            table.info[OWN_SCHEMA] = rows[0].nspname
        table.info[_HAS_XMIN] = bool(rows) and rows[0].has_xmin
        table.info[_IS_ONE_HEAP] = bool(rows) and rows[0].is_one_heap

    def key_doubts(self, connection: Any, table: Any, names: Any, *, computes: bool) -> str | None:
        given = {"table": self._quoted(table), "names": sorted(names)}
        found = connection.execute(_KEY_FACTS, given).one()
        if not found.is_enforced:
            return "has a unique index that is INVALID, since CREATE INDEX CONCURRENTLY has failed"
        if computes and found.has_children:
            return (
                "does not hold for the tables that inherit from this one, whose rows it shows: give"
                " each of them a class of its own, or use `values`"
            )
        return None

    def leaves_rows_out(self, connection: sa.Connection, table: sa.Table) -> bool:
        return bool(connection.execute(_LEAVES_OUT, {"table": self._quoted(table)}).scalar_one())

    def hides_rows(self, connection: sa.Connection, table: sa.Table) -> bool:
        return bool(connection.execute(_HIDES, {"table": self._quoted(table)}).scalar_one())

    @property
    def upkeep(self) -> PostgreSQLUpkeep:
        return PostgreSQLUpkeep(self)

    @property
    def rights(self) -> PostgreSQLRights:
        return PostgreSQLRights(self)

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int:
        """Ask the planner: it scales its statistics to the file's size of this moment. Without
        statistics it takes a small file for one of ten pages: such a one is counted."""
        every_row = sa.select(sa.literal(1)).select_from(table)
        planned = int(_explained(connection, every_row)["Plan Rows"])
        if planned > _MOST_IN_TEN_PAGES:
            return planned
        name = {"table": self._quoted(table)}
        count = sa.select(sa.func.count()).select_from(table).scalar_subquery()
        counted = sa.select(sa.case((_IS_TINY, count)))  # PostgreSQL counts only if it is so
        found = connection.execute(counted, name).scalar()
        return planned if found is None else int(found)

    def row_bytes(self, connection: sa.Connection, table: sa.Table) -> int | None:
        """Ask the statistics of the columns. What is kept outside of the row (TOAST) counts as
        the pointer to it, which is all that an UPDATE of other columns writes."""
        name = connection.dialect.identifier_preparer.format_table(table)
        found = connection.execute(_ROW_WIDTH, {"table": name}).scalar()
        return int(found) if found else None

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
        """Cut a sample of whole pages: its cost does not grow with the table."""
        table = key.columns[0].table
        assert isinstance(table, sa.Table)
        total = self.row_estimate(connection, table)
        sample = table.tablesample(sa.func.system(min(100.0, 100.0 * _SAMPLED / max(total, 1))))
        columns = [sample.c[name] for name in key.names]
        exact = [sa.type_coerce(c, kind) for c, kind in zip(columns, key.types, strict=True)]
        statement = sa.select(*exact).order_by(*columns)
        if after:
            statement = statement.where(self.key_above(columns, key.constants(after)))
        if upto:
            statement = statement.where(self.key_upto(columns, key.constants(upto)))
        keys = [tuple(row) for row in connection.execute(statement)]
        picks = {len(keys) * part // parts for part in range(1, parts)}
        return [keys[i] for i in sorted(picks) if 0 < i < len(keys) and keys[i] != upto]

    def explain(self, connection: sa.Connection, statement: sa.Select[Any]) -> Explanation:
        lines = tuple(connection.execute(Explain("EXPLAIN", statement)).scalars())
        plan = _explained(connection, statement)
        scans = [node for node in _nodes(plan) if "Scan" in node["Node Type"]]
        ranged = all("Index Cond" in n or n["Node Type"] == "Bitmap Heap Scan" for n in scans)
        return Explanation(lines, ranged)

    def now(self, plus_seconds: float = 0) -> sa.ColumnElement[Any]:
        """`clock_timestamp()`: `now()` stands still in a transaction."""
        moment = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, plus_seconds)
        return sa.type_coerce(sa.func.timezone("utc", moment), sa.DateTime())

    def horizon(self, connection: sa.Connection) -> str | None:
        """Return a transaction id of our own, and the time: who has an older id, or writes later
        and began before, may have rows that are not seen yet. A snapshot's `xmax` would not do: it
        is behind the last id that has ended, and ids that are open may be above it."""
        epoch = sa.func.extract("epoch", sa.func.clock_timestamp())
        moment = sa.cast(epoch, sa.Numeric(20, 6))
        row = connection.execute(sa.select(sa.func.txid_current(), moment)).one()
        return f"{row[0]} {row[1]}"

    def older_than_horizon(self, connection: sa.Connection, horizon: str) -> str | None:
        """Look for sessions with older ids, or (as far as this user sees them) of that time."""
        mark, _, moment = horizon.partition(" ")
        then = {"mark": str(int(mark) % _IDS), "moment": Decimal(moment or 0)}
        row = connection.execute(_OLDER_WRITER, then).first()
        if row is not None:
            hidden = "which this user may not look at: GRANT pg_monitor"
            who = hidden if row.is_hidden else row.application_name or "no name"
            return f"the older transaction of process {row.pid} ({who})"
        gid = connection.execute(_OLDER_PREPARED, then).scalar()
        return None if gid is None else f"the older prepared transaction {gid!r}"

    def all_at_once(
        self, readers: Readers, table: sa.Table, condition: sa.ColumnElement[bool], rows: int
    ) -> bool | None:
        """Read a table that is one heap block after block."""
        version = readers.first.connection.dialect.server_version_info or ()
        if not table.info.get(_IS_ONE_HEAP) or version < _TID_RANGES:
            return None
        return any_in_blocks(readers, table, self._quoted(table), condition, rows)

    def health(self, table: sa.Table, settings: Settings) -> list[Signal]:
        return postgresql_health.signals(self, self._quoted(table), settings)

    @property
    def triggers(self) -> PostgreSQLTriggers:
        return PostgreSQLTriggers(self)

    def row_version(self, table: sa.Table) -> sa.ColumnElement[Any] | None:
        """Take `xmin` where the table's rows are PostgreSQL's own."""
        if not table.info.get(_HAS_XMIN):
            return None
        return sa.literal_column(f"{self._quoted(table)}.xmin")

    def slow_columns(self, target: Target) -> list[str]:
        return [column.name for column in target.travelling if not is_taken(column)]

    def verifies(self, target: Target) -> bool:
        return bool(target.table.info.get(_HAS_XMIN)) and not self.slow_columns(target)

    def _quoted(self, table: sa.Table) -> str:
        """Return a table's name as SQL; the preparer doubles percent signs, for parameters."""
        preparer = self.engine.dialect.identifier_preparer
        return preparer.format_table(table).replace("%%", "%")

    def _fast_update(
        self,
        target: Target,
        writes: Sequence[str],
        narrow: sa.ColumnElement[bool],
        *,
        verifies: bool,
    ) -> BulkUpdate:
        return UnnestUpdate(target, writes, narrow, verifies=verifies)


def _prepare_no_statements(connection: sa.Connection) -> None:
    """Let psycopg name no prepared statement: behind a pooler in transaction mode the next
    transaction is another session's, where that name is missing or means another statement.
    (psycopg's manual, "Prepared statements"; asyncpg has to be told in its connect_args.)
    """
    if connection.dialect.driver in ("psycopg", "psycopg_async"):
        adapted: Any = connection.connection.dbapi_connection
        connection.dialect.get_driver_connection(adapted).prepare_threshold = None


def _below_domains(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return what a domain is made of; its length is not told, and without one these have one."""
    below = kind
    while isinstance(below, pg.DOMAIN):
        below = below.data_type
    return kind if isinstance(below, (sa.CHAR, pg.BIT)) else below


def _without_length(kind: str) -> str:
    """Return a type's name for which no length is read into it."""
    kind = re.sub(r"^character(?! varying)", "bpchar", kind)  # else character(1)
    return re.sub(r'^"?bit"?(?! varying)', "bit varying", kind)


# A join with pg_stats, itself a join, takes ten times as long as asking for one table's rows.
_ROW_WIDTH = sa.text(
    "SELECT sum(width) FROM (SELECT max(avg_width) AS width FROM pg_stats"
    " WHERE (schemaname, tablename) = (SELECT nspname, relname FROM pg_class AS c"
    " JOIN pg_namespace AS n ON n.oid = relnamespace WHERE c.oid = to_regclass(:table))"
    " GROUP BY attname) AS columns"
)


def _explained(connection: sa.Connection, statement: sa.Select[Any]) -> dict[str, Any]:
    plan = connection.execute(Explain("EXPLAIN (FORMAT JSON)", statement)).scalar_one()
    if isinstance(plan, str):  # drivers differ in whether they parse json
        plan = json.loads(plan)
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for child in plan.get("Plans", ()) for node in _nodes(child)]


_KEY_FACTS = sa.text(
    "SELECT EXISTS (SELECT FROM pg_index AS i"
    "  WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL"
    "  AND (SELECT array_agg(CAST(a.attname AS text) ORDER BY CAST(a.attname AS text))"
    "       FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum"
    "       = ANY ((CAST(i.indkey AS int2[]))[0:i.indnkeyatts - 1])) = CAST(:names AS text[])"
    " ) AS is_enforced,"
    " c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_children"
    " FROM pg_class AS c WHERE c.oid = CAST(:table AS regclass)"
).bindparams(sa.bindparam("names", type_=pg.ARRAY(sa.Text())))
_LEAVES_OUT = sa.text(
    "WITH RECURSIVE tree (oid) AS ("
    " SELECT CAST(CAST(:table AS regclass) AS oid)"
    " UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON i.inhparent = tree.oid)"
    " SELECT EXISTS (SELECT FROM tree JOIN pg_class AS c ON c.oid = tree.oid"
    " WHERE c.relhasrules OR c.relrowsecurity OR EXISTS (SELECT FROM pg_trigger AS t"
    " WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 2 <> 0 AND t.tgtype & 28 <> 0))"
)
"""pg_trigger.h: bit 1 is BEFORE; 2, 3 and 4 are INSERT and DELETE, which a row meets that moves to
another partition, and UPDATE."""
_HIDES = sa.text("SELECT row_security_active(CAST(:table AS regclass))")
_COLUMN_TYPES = sa.text(
    "SELECT attname, attndims, nspname,"
    " format_type(COALESCE(NULLIF(t.typbasetype, 0), t.oid), NULL) AS kind,"
    " COALESCE(b.typtype = 'd', false) AS is_deep,"
    " relkind IN ('r', 'p') AND COALESCE(amname, 'heap') = 'heap' AS has_xmin,"
    " relkind = 'r' AND amname = 'heap' AND NOT relhassubclass AS is_one_heap"
    " FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid"
    " JOIN pg_namespace AS n ON n.oid = relnamespace"
    " JOIN pg_type AS t ON t.oid = atttypid"
    " LEFT JOIN pg_type AS b ON b.oid = t.typbasetype"
    " LEFT JOIN pg_am AS a ON a.oid = relam"
    " WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped"
)
# Before PostgreSQL 14 a table without statistics has zero `reltuples`, as an empty one has.
_IS_TINY = sa.text(
    "EXISTS (SELECT FROM pg_class WHERE oid = CAST(:table AS regclass) AND reltuples <= 0"
    " AND relkind = 'r' AND NOT relhassubclass"
    " AND pg_relation_size(oid) <= 10 * CAST(current_setting('block_size') AS integer))"
)
_IDS = 2**32
"""How many transaction ids there are, before they are used again."""
_IS_OLDER = "age({id}) > age(CAST(CAST(:mark AS text) AS xid))"
_OLDER_WRITER = sa.text(
    "SELECT pid, application_name, query = '<insufficient privilege>' AS is_hidden"
    " FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database()"
    f" AND (xact_start <= to_timestamp(:moment) OR {_IS_OLDER.format(id='backend_xid')})"
    " AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1"
)
_OLDER_PREPARED = sa.text(
    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    f" AND (prepared <= to_timestamp(:moment) OR {_IS_OLDER.format(id='transaction')})"
    " ORDER BY prepared LIMIT 1"
)
