"""What a run's statements do to one table: the database's plan for each, and the rows it reads.

A plan is asked for on the statement's own connection, with its own parameters, just before it is
sent. What it reads is counted by the database, whatever it had planned.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


@dataclass
class Statement:
    """One statement that was sent."""

    text: str
    plan: str
    """As the database tells it."""
    is_range: bool
    """Whether the table is read by a part of an index alone."""
    reads: float = 0
    """In the unit of its database, which is about a row."""
    passed: float = 0
    """Index entries that it may have passed over besides."""

    @property
    def has_condition(self) -> bool:
        """Whether it asks for rows by a condition that a row can meet."""
        return "WHERE" in self.text.split() and "1 = 0" not in self.text

    def __str__(self) -> str:
        text = re.sub(r"\b(IN|VALUES) \(.*?\)\)?", r"\1 (…)", " ".join(self.text.split()))
        return f"{text}\n{self.plan}\nreads {self.reads:,.0f}, passes over {self.passed:,.0f}"


class Reads(NamedTuple):
    """What a session has read so far: rows, and entries of the blocks of indexes."""

    rows: float
    entries: float = 0


class _Here(threading.local):
    """What a thread is about: the proof is read by several."""

    is_asking = False
    statement: Statement
    before: Reads


class Watch:
    """Notes every SELECT, UPDATE and DELETE on a table while it is entered."""

    passes: ClassVar[float]
    """How often a row is read by a whole run that has little to do."""
    dearest: ClassVar[float]
    """So many times what one row counts in a walk by hand is the most that it counts."""
    settled: ClassVar[str]
    """What brings the planner's statistics up to date."""
    plannings: ClassVar[Sequence[str]] = ("",)
    """Settings of a session that make the planner think otherwise."""

    def __init__(self, engine: sa.Engine, table: str) -> None:
        self.statements: list[Statement] = []
        self.planning = self.plannings[0]
        self._engine = engine
        self._table = table
        self._words = re.compile(rf"\s*(?:SELECT|UPDATE|DELETE|WITH)\b.*\b{table}\b", re.DOTALL)
        self._here = _Here()

    def settle(self) -> None:
        with self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(self.settled.format(table=self._table))

    def __enter__(self) -> Watch:
        self.statements.clear()
        sa.event.listen(self._engine, "connect", self._connected)
        sa.event.listen(self._engine, "before_cursor_execute", self._before)
        sa.event.listen(self._engine, "after_cursor_execute", self._after)
        return self

    def __exit__(self, *_: object) -> None:
        sa.event.remove(self._engine, "connect", self._connected)
        sa.event.remove(self._engine, "before_cursor_execute", self._before)
        sa.event.remove(self._engine, "after_cursor_execute", self._after)

    def total(self) -> float:
        return sum(statement.reads for statement in self.statements)

    def _connected(self, driver: Any, record: Any) -> None:
        if self.planning:
            driver.cursor().execute(self.planning)
            driver.commit()

    def _before(
        self, connection: Any, cursor: Any, text: str, given: Any, context: Any, is_many: bool
    ) -> None:
        if self._here.is_asking:
            return
        if not self._words.match(text):
            self._others_begin(connection)
            return
        self._here.is_asking = True
        statement = self._explained(connection, text, given[0] if is_many else given)
        self._begin(connection, statement)
        self._here.is_asking = False
        self._here.statement = statement
        self.statements.append(statement)

    def _after(
        self, connection: Any, cursor: Any, text: str, given: Any, context: Any, is_many: bool
    ) -> None:
        if self._here.is_asking or not self._words.match(text):
            return
        self._here.is_asking = True
        self._end(connection, self._here.statement, max(0, cursor.rowcount))
        self._here.is_asking = False

    def _explained(self, connection: sa.Connection, text: str, given: Any) -> Statement:
        raise NotImplementedError

    def _begin(self, connection: sa.Connection, statement: Statement) -> None:
        self._here.before = self._count(connection)

    def _end(self, connection: sa.Connection, statement: Statement, rows: int) -> None:
        now = self._count(connection)
        statement.reads = now.rows - self._here.before.rows
        statement.passed = now.entries - self._here.before.entries

    def _others_begin(self, connection: sa.Connection) -> None:
        """A statement that does not concern the table is about to be sent."""

    def _count(self, connection: sa.Connection) -> Reads:
        raise NotImplementedError


class PostgreSQL(Watch):
    """Counts what scans of the table and of its indexes returned, in this transaction. What a scan
    of an index passes over is not in that, but in the blocks that it fetches.
    """

    passes = 3  # bound, look, proof
    dearest = 3  # shortly before the end of a range it reads all that is left, and sorts it
    _entries = 100
    """In a block of an index, at least."""
    _blocks_a_row = 8
    """To find one row by its key, and to note the key once more where the row is written."""
    settled = "VACUUM ANALYZE {table}"
    # Custom plans are what a driver gets that binds values itself; a generic one, at last, what one
    # gets that has its statements prepared. What parallel workers read is not in our counts.
    plannings = tuple(
        f"SELECT set_config('plan_cache_mode', '{mode}', false),"
        " set_config('max_parallel_workers_per_gather', '0', false)"
        for mode in ("force_custom_plan", "force_generic_plan")
    )

    def __init__(self, engine: sa.Engine, table: str) -> None:
        super().__init__(engine, table)
        self._counted = (
            "SELECT sum(pg_stat_get_xact_tuples_returned(o)),"
            f" sum(CASE WHEN o = '{table}'::regclass THEN 0"
            " ELSE pg_stat_get_xact_blocks_fetched(o) END)"
            f" FROM (SELECT '{table}'::regclass::oid UNION ALL"
            f" SELECT indexrelid FROM pg_index WHERE indrelid = '{table}'::regclass) AS scanned (o)"
        )

    def _explained(self, connection: sa.Connection, text: str, given: Any) -> Statement:
        answer = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", given).scalar_one()
        plan = json.loads(answer) if isinstance(answer, str) else answer
        nodes = list(_nodes(plan[0]["Plan"]))
        shown = ("Node Type", "Relation Name", "Index Cond", "TID Cond", "Filter", "Plan Rows")
        lines = [" ".join(str(node[key]) for key in shown if key in node) for node in nodes]
        scans = [node for node in nodes if node.get("Relation Name") == self._table]
        return Statement(text, "\n".join(lines), all(map(self._is_range, scans)))

    @staticmethod
    def _is_range(node: Mapping[str, Any]) -> bool:
        known = "Index Cond" in node or "TID Cond" in node
        return known or node["Node Type"] in ("ModifyTable", "Bitmap Heap Scan")

    def _end(self, connection: sa.Connection, statement: Statement, rows: int) -> None:
        super()._end(connection, statement, rows)
        if not statement.text.startswith("SELECT") or "_backfill_keys" in statement.text:
            looked_up = self._blocks_a_row * self._entries * rows
            statement.passed = max(0, statement.passed - looked_up)

    def _count(self, connection: sa.Connection) -> Reads:
        rows, blocks = connection.exec_driver_sql(self._counted).one()
        return Reads(float(rows), self._entries * float(blocks))


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


class MariaDB(Watch):
    """Counts the rows that the storage engine handed over, or compared for a condition."""

    passes = 4  # bound, look, and the proof, which reads a copy of what it sorts
    dearest = 4  # in an UPDATE with a join: looked up, noted, and both read again
    settled = "ANALYZE TABLE {table}"
    _ranges: ClassVar[Sequence[str | None]] = (None, "range", "ref", "eq_ref", "const", "system")
    _counted = "SHOW SESSION STATUS WHERE Variable_name REGEXP '^Handler_(read|icp)'"

    def _explained(self, connection: sa.Connection, text: str, given: Any) -> Statement:
        rows = connection.exec_driver_sql(f"EXPLAIN {text}", given).mappings().all()
        shown = ("table", "type", "key", "key_len", "rows", "Extra")
        lines = [" ".join(f"{key}={row[key]}" for key in shown) for row in rows]
        types = [row["type"] for row in rows if row["table"] == self._table]
        return Statement(text, "\n".join(lines), all(kind in self._ranges for kind in types))

    def _count(self, connection: sa.Connection) -> Reads:
        found = connection.exec_driver_sql(self._counted).all()
        counts = {name: int(value) for name, value in found}
        unread = counts["Handler_icp_attempts"] - counts["Handler_icp_match"]
        read = sum(n for name, n in counts.items() if name.startswith("Handler_read_"))
        return Reads(unread + read)


class SQLite(Watch):
    """Counts tens of steps of SQLite's virtual machine, of which a row takes one half and more."""

    passes = 5  # bound, look, and both once more for the proof, of which each has its own price
    dearest = 8  # to write a row takes more steps than to pass it
    settled = "ANALYZE {table}"

    def _explained(self, connection: sa.Connection, text: str, given: Any) -> Statement:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", given)
        lines = [row.detail for row in rows]
        is_scan = any(re.match(rf"SCAN {self._table}\b", line) for line in lines)
        return Statement(text, "\n".join(lines), not is_scan)

    def _begin(self, connection: sa.Connection, statement: Statement) -> None:
        def count() -> int:
            statement.reads += 1
            return 0

        driver: Any = connection.connection.dbapi_connection
        driver.set_progress_handler(count, 10)

    def _end(self, connection: sa.Connection, statement: Statement, rows: int) -> None:
        """It goes on while its rows are fetched, and is over when the next one begins."""

    def _others_begin(self, connection: sa.Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.set_progress_handler(None, 0)


WATCHES: Mapping[str, Callable[[sa.Engine, str], Watch]] = {
    "postgresql": PostgreSQL,
    "mariadb": MariaDB,
    "sqlite": SQLite,
}
