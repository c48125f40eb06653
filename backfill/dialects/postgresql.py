"""PostgreSQL."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from backfill.dialects.base import (
    BulkUpdate,
    Dialect,
    ErrorKind,
    ExecutemanyUpdate,
    Explain,
    Explanation,
    Limits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.types import TypeEngine

    from backfill.keys import Key, KeyValues

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
_NOT_UNNESTABLE = (sa.ARRAY, sa.types.NullType, pg.DOMAIN)


class PostgreSQL(Dialect):
    """Everything is set for one transaction, so that a pooler in transaction mode suits us."""

    update_gives_way: ClassVar[bool] = True

    def begin(self, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        connection.execute(
            _SET_LOCAL,
            {
                "lock": _milliseconds(limits.lock_timeout),
                "statement": _milliseconds(limits.statement_timeout),
                "idle": _milliseconds(limits.idle_timeout),
                "label": limits.label,
            },
        )

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
        diagnosis = getattr(getattr(error, "orig", error), "diag", None)
        names = {
            "constraint": getattr(diagnosis, "constraint_name", None),
            "column": getattr(diagnosis, "column_name", None),
        }
        return {kind: name for kind, name in names.items() if name}

    def key_type(self, column: sa.Column[Any]) -> TypeEngine[Any] | None:
        if isinstance(column.type, (sa.Boolean, sa.Enum, pg.CITEXT)):
            return column.type
        return super().key_type(column)

    def key_above(self, columns: Any, operands: Any, *, inclusive: bool = False) -> Any:
        """Row values seek on all columns; the range on the first one mends the row estimate."""
        if len(columns) == 1:
            return super().key_above(columns, operands, inclusive=inclusive)
        row, bound = sa.tuple_(*columns), sa.tuple_(*operands)
        return sa.and_(columns[0] >= operands[0], row >= bound if inclusive else row > bound)

    def key_upto(self, columns: Any, operands: Any) -> Any:
        if len(columns) == 1:
            return super().key_upto(columns, operands)
        bound = sa.tuple_(*operands)
        return sa.and_(columns[0] <= operands[0], sa.tuple_(*columns) <= bound)

    def row_estimate(self, connection: sa.Connection, table: sa.Table) -> int:
        """Ask the planner: it scales its statistics to the file's size of this moment."""
        every_row = sa.select(sa.literal(1)).select_from(table)
        return int(_explained(connection, every_row)["Plan Rows"])

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
        statement = sa.select(*columns).order_by(*columns)
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
        """Return the next transaction id, and the time: who writes later may have begun before."""
        next_id = sa.func.txid_snapshot_xmax(sa.func.txid_current_snapshot())
        epoch = sa.func.extract("epoch", sa.func.clock_timestamp())
        moment = sa.cast(epoch, sa.Numeric(20, 6))
        row = connection.execute(sa.select(next_id, moment)).one()
        return f"{row[0]} {row[1]}"

    def older_than_horizon(self, connection: sa.Connection, horizon: str) -> str | None:
        """Look for the ids of that time, and (as far as this user sees them) for older sessions."""
        next_id, _, moment = horizon.partition(" ")
        row = connection.execute(_OLDER_WRITER, {"moment": Decimal(moment or 0)}).first()
        if row is not None:
            who = row.application_name or "no name"
            return f"the older transaction of process {row.pid} ({who})"
        oldest_id = sa.func.txid_snapshot_xmin(sa.func.txid_current_snapshot())
        if connection.execute(sa.select(oldest_id)).scalar_one() >= int(next_id):
            return None
        return "an older transaction that this user cannot see, or a prepared one"

    def bulk_update(
        self, table: sa.Table, key: Key, writes: Sequence[str], narrow: sa.ColumnElement[bool]
    ) -> BulkUpdate:
        if any(isinstance(table.c[column].type, _NOT_UNNESTABLE) for column in writes):
            return ExecutemanyUpdate(table, key, writes)
        return _UnnestUpdate(table, key, writes, narrow)


class _UnnestUpdate(BulkUpdate):
    """`UPDATE … FROM unnest(arrays)`: one parameter a column, one constant statement text."""

    def __init__(
        self, table: sa.Table, key: Key, writes: Sequence[str], narrow: sa.ColumnElement[bool]
    ) -> None:
        self._writes = list(writes)
        key_names = [f"k{i}" for i in range(len(key.columns))]
        names = key_names + [f"w{i}" for i in range(len(self._writes))]
        types = [*key.types, *(_without_length(table.c[column].type) for column in self._writes)]
        self._names = names
        arrays = [
            sa.bindparam(f"_{name}", type_=sa.ARRAY(kind, dimensions=1))
            for name, kind in zip(names, types, strict=True)
        ]
        columns = [sa.column(name, kind) for name, kind in zip(names, types, strict=True)]
        values = sa.func.unnest(*arrays).table_valued(*columns)
        values = values.render_derived(name="computed")
        self._statement = (
            sa.update(table)
            .where(*(c == values.c[n] for c, n in zip(key.columns, key_names, strict=True)))
            .where(narrow)  # without it the planner scans the table sooner or later
            .values({column: values.c[f"w{i}"] for i, column in enumerate(self._writes)})
        )

    def write(
        self,
        connection: sa.Connection,
        rows: Sequence[tuple[KeyValues, Mapping[str, Any]]],
        parameters: Mapping[str, Any],
    ) -> int:
        columns = [*zip(*(key for key, _ in rows), strict=True)]
        columns += [tuple(values[name] for _, values in rows) for name in self._writes]
        arrays = {f"_{n}": list(c) for n, c in zip(self._names, columns, strict=True)}
        return connection.execute(self._statement, {**arrays, **parameters}).rowcount


def _without_length(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """A cast to varchar(3) cuts in silence where the assignment would refuse."""
    if isinstance(kind, sa.String) and not isinstance(kind, (sa.Enum, pg.CITEXT)):
        return sa.Text()
    return kind


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _explained(connection: sa.Connection, statement: sa.Select[Any]) -> dict[str, Any]:
    plan = connection.execute(Explain("EXPLAIN (FORMAT JSON)", statement)).scalar_one()
    if isinstance(plan, str):  # drivers differ in whether they parse json
        plan = json.loads(plan)
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for child in plan.get("Plans", ()) for node in _nodes(child)]


def _set_local(name: str, parameter: str) -> sa.ColumnElement[Any]:
    return sa.func.set_config(name, sa.bindparam(parameter, type_=sa.Text()), sa.true())


_SET_LOCAL = sa.select(
    _set_local("lock_timeout", "lock"),
    _set_local("statement_timeout", "statement"),
    _set_local("idle_in_transaction_session_timeout", "idle"),
    _set_local("application_name", "label"),
)

_OLDER_WRITER = sa.text(
    "SELECT pid, application_name FROM pg_stat_activity"
    " WHERE backend_xid IS NOT NULL AND xact_start <= to_timestamp(:moment)"
    " AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1"
)
