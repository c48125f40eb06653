"""PostgreSQL's dead rows: HOT updates, VACUUM and ANALYZE.

Every statement stands for itself: nothing is left in a session that a pooler may give to somebody
else, but for one setting that nobody minds.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from backfill.dialects.upkeep import Churn, Indexed, Updates, Upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects.limits import Limits

_ANALYZE_SECONDS = 60.0
"""ANALYZE samples 30,000 pages (300 times `default_statistics_target`), and holds a snapshot."""
_COUNTED_SECONDS = 0.5
"""Until a VACUUM is counted: at once from version 15 on, before that by a message."""
_LOOK_SECONDS = 0.05
_MAINTAIN = (17,)
"""The first version in which VACUUM and ANALYZE can be granted."""
_ONLY = (18,)
"""The first version that analyzes a partitioned table without its partitions."""
_BRIN_IS_HOT = (16,)
"""The first version in which an update is HOT although a BRIN index holds the column."""
_ENOUGH = 100
_FEW_HOT = 0.5
_OFTEN = 0.1
"""Of its rows, so many updates say that a table is one whose rows are updated."""
_ROOM = 90
"""The share of a page that is filled (percent), as GitLab and others choose for such tables."""


class PostgreSQLUpkeep(Upkeep):
    vacuums: ClassVar[bool] = True

    def churn(self, connection: sa.Connection, table: sa.Table) -> Churn | None:
        leaves = self._leaves(connection, table)
        if not leaves:
            return None  # a foreign table, or a view
        updates = Updates(sum(leaf.updated for leaf in leaves), sum(leaf.hot for leaf in leaves))
        return Churn(updates, sum(leaf.dead for leaf in leaves), _removal(leaves))

    def updates_so_far(self, connection: sa.Connection, table: sa.Table) -> Updates | None:
        return Updates(*connection.execute(_SO_FAR, self._name(table)).one())

    def indexes_on(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[Indexed]:
        """Those of expressions too; but not those that a partial one merely has in its condition:
        they are made for backfills."""
        found = self._indexes(connection, table, columns)
        return [
            Indexed(row.column_name, row.index_name, "" if row.is_fixed else _how(row))
            for row in found
            if row.is_key or not row.is_partial
        ]

    def fired(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[str]:
        given = {**self._name(table), "columns": list(columns) or [""]}
        return list(connection.execute(_FIRED, given).scalars())

    def advice(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str], updates: Updates
    ) -> list[str]:
        """Recommend room in the pages, where that alone is missing, and rows are updated often."""
        if updates.rows < _ENOUGH or updates.hot_share >= _FEW_HOT:
            return []
        if self._indexes(connection, table, columns):
            return []  # nothing else would help
        row = connection.execute(_ROOM_IN_PAGES, self._name(table)).one()
        if not row.is_plain or row.fillfactor != 100 or row.updated < _OFTEN * row.tuples:
            return []
        alter = f"ALTER TABLE {self._name(table)['table']} SET (fillfactor = {_ROOM})"
        return [
            f"{updates.hot_share:.0%} of the first chunk's updates are HOT: the pages are full, so"
            f" rows move, and each of the table's {row.indexes} indexes gets new entries. Rows of"
            " this table are updated often. That later updates find room beside them, let the pages"
            f" that this run fills keep some: {alter}"
        ]

    def pending_index(
        self, table: sa.Table, key: Sequence[str], pending: sa.ColumnElement[bool]
    ) -> str:
        create = f"CREATE INDEX CONCURRENTLY {self.quoted(f'ix_{table.name}_pending')}"
        return self._partial_index(create, self._name(table)["table"], key, pending)

    def idle_vacuum(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        found = connection.execute(_WHAT_IS_OFF, self._name(table)).all()
        server = [
            f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()"
            for name in ("autovacuum", "track_counts")
            if any(getattr(row, name) == "off" for row in found)
        ]
        tables = [row.name for row in found if row.is_off]
        return [*server, *(f"ALTER TABLE {name} RESET (autovacuum_enabled)" for name in tables)]

    def refusal(self, connection: sa.Connection, table: sa.Table) -> str | None:
        query = _RIGHTS if _version(connection) < _MAINTAIN else _RIGHTS_TO_MAINTAIN
        row = connection.execute(query, self._name(table)).first()
        if row is None:
            return None
        grant = (
            f"GRANT {row.owner} TO {row.me}"
            if _version(connection) < _MAINTAIN
            else f"GRANT MAINTAIN ON {row.name} TO {row.me}"
        )
        return f"this user may neither VACUUM nor ANALYZE {row.name}: {grant}"

    # -- VACUUM ------------------------------------------------------------------------

    def vacuum(self, limits: Limits, table: sa.Table, mark: str, fewest: int) -> list[str]:
        with self._autocommit(limits) as connection:
            connection.execute(_AS_AUTOVACUUM)
            leaves = self._leaves(connection, table)
            wanted = [leaf for leaf in leaves if len(leaves) == 1 or leaf.dead >= fewest]
            for leaf in wanted:
                connection.exec_driver_sql(f"VACUUM /* {mark} */ ({_HOW}) {leaf.name}")
            return self._passed_over(connection, table, wanted)

    def _passed_over(
        self, connection: sa.Connection, table: sa.Table, wanted: Sequence[Any]
    ) -> list[str]:
        """Return the tables whose count of VACUUMs stays what it was."""
        before = {leaf.oid: leaf.vacuums for leaf in wanted}
        deadline = time.monotonic() + _COUNTED_SECONDS
        while True:
            leaves = self._leaves(connection, table)
            left = [leaf.name for leaf in leaves if leaf.vacuums == before.get(leaf.oid)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(_LOOK_SECONDS)

    def cancel(self, limits: Limits, mark: str) -> None:
        """By the statement's text: behind a pooler, a session's process may be another one now."""
        with self._autocommit(limits) as connection:
            connection.execute(_CANCEL, _marked(mark))

    def is_in_the_way(self, limits: Limits, mark: str) -> bool:
        """ANALYZE keeps all DDL off its table, as VACUUM does, behind which everybody queues."""
        with self._autocommit(limits) as connection:
            return bool(connection.execute(_IN_THE_WAY, _marked(mark)).scalar_one())

    # -- ANALYZE -----------------------------------------------------------------------

    def refresh_statistics(
        self, limits: Limits, table: sa.Table, columns: Sequence[str], share: float, mark: str
    ) -> list[str]:
        """Do what autovacuum will do, at once; and what it never does, of a partitioned table."""
        patient = replace(limits, statement_timeout=_ANALYZE_SECONDS)
        with self._dialect.open(patient) as connection:
            connection.execution_options(no_parameters=True)
            with self._dialect.transaction(connection, patient, write=False):
                refusal = self.refusal(connection, table)
                leaves = self._leaves(connection, table)
            stale = [leaf.name for leaf in leaves if leaf.modified > leaf.analyze_at]
            if not stale or refusal:
                return [f"its statistics are wrong now, but {refusal}"] if stale and refusal else []
            parent = [] if any(leaf.is_root for leaf in leaves) else [self._name(table)["table"]]
            can_do_parent = _version(connection) >= _ONLY
            wanted = [*stale, *(f"ONLY {name}" for name in parent if can_do_parent)]
            for name in wanted:
                with self._dialect.transaction(connection, patient):
                    connection.exec_driver_sql(f"ANALYZE /* {mark} */ {name}")
        left = [] if can_do_parent else parent
        return [
            f"ANALYZE of {', '.join(wanted)}",
            *(f"autovacuum never analyzes {n} itself: ANALYZE it in a quiet hour" for n in left),
        ]

    # -- small things ------------------------------------------------------------------

    def _autocommit(self, limits: Limits) -> sa.Connection:
        """Return a connection on which each statement is a transaction, as VACUUM demands."""
        dialect = copy(self._dialect)
        dialect.engine = dialect.source.execution_options(isolation_level="AUTOCOMMIT")
        return dialect.open(limits).execution_options(no_parameters=True)

    def _name(self, table: sa.Table) -> dict[str, str]:
        return {"table": self.quoted(table.name, table.schema)}

    def _leaves(self, connection: sa.Connection, table: sa.Table) -> Sequence[Any]:
        """Return the tables that hold the rows: itself, or its partitions."""
        return connection.execute(_LEAVES, self._name(table)).all()

    def _indexes(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[Any]:
        """Return what keeps an update of these columns from being HOT."""
        given = {**self._name(table), "columns": list(columns) or [""]}
        is_harmless = _version(connection) >= _BRIN_IS_HOT
        found = connection.execute(_INDEXES, given).all()
        return [row for row in found if not (is_harmless and row.method == "brin")]


def _version(connection: sa.Connection) -> tuple[Any, ...]:
    return connection.dialect.server_version_info or ()


def _marked(mark: str) -> dict[str, str]:
    return {"text": f"% /* {mark} */ %"}


def _removal(leaves: Sequence[Any]) -> str:
    if any(leaf.vacuum_at is None for leaf in leaves):
        return "which nobody removes: autovacuum is off, so VACUUM when there is time"
    if any(leaf.dead > leaf.vacuum_at for leaf in leaves):
        return "which autovacuum is to remove"
    if len(leaves) > 1:
        return "too few for autovacuum in each partition"
    return f"which autovacuum removes when there are {round(leaves[0].vacuum_at):,}"


def _how(row: Any) -> str:
    create = row.definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
    return f": DROP INDEX CONCURRENTLY {row.quoted} before it, {create} after it"


_FIRED = sa.text(
    "SELECT CAST(tgname AS text) FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass)"
    " AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 16 <> 0"
    " AND tgname !~ '^zz[0-9]*_backfill_sync_' AND (cardinality(tgattr) = 0 OR EXISTS ("
    "SELECT FROM pg_attribute WHERE attrelid = tgrelid AND attnum = ANY (tgattr)"
    " AND attname IN :columns)) ORDER BY 1"
).bindparams(sa.bindparam("columns", expanding=True))
_HOW = "SKIP_LOCKED, TRUNCATE false, PARALLEL 0"
"""To give the file's end back would lock the table against everybody, on replicas too."""

# A manual VACUUM takes no breaks unless it is told to (runtime-config-resource, 19.4.4 of the
# manual). Nobody but VACUUM looks at it, so it may stay in a pooler's session.
_AS_AUTOVACUUM = sa.text(
    "SELECT set_config('vacuum_cost_delay', current_setting('autovacuum_vacuum_cost_delay'), false)"
    " WHERE current_setting('autovacuum_vacuum_cost_delay') <> '-1'"
)
_MARKED = "query LIKE :text AND state = 'active' AND pid <> pg_backend_pid()"
_CANCEL = sa.text(f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {_MARKED}")
_IN_THE_WAY = sa.text(
    f"SELECT EXISTS (SELECT FROM pg_stat_activity AS ours WHERE {_MARKED} AND EXISTS (SELECT FROM"
    " pg_locks AS w WHERE NOT w.granted AND ours.pid = ANY (pg_blocking_pids(w.pid))))"
)
_TREE = (
    "WITH RECURSIVE tree (oid) AS ("
    " SELECT c.oid FROM pg_class AS c WHERE c.oid = CAST(:table AS regclass)"
    " UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON i.inhparent = tree.oid) "
)


def _option(name: str) -> str:
    """Return SQL for a parameter of a table, or else the server's."""
    own = (
        f"(SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = '{name}')"
    )
    return f"CAST(COALESCE({own}, current_setting('{name}')) AS float)"


_TABLE_IS_OFF = (
    "EXISTS (SELECT FROM pg_options_to_table(c.reloptions)"
    " WHERE option_name = 'autovacuum_enabled' AND NOT CAST(option_value AS boolean))"
)
_IS_OFF = (
    "current_setting('autovacuum') = 'off' OR current_setting('track_counts') = 'off'"
    f" OR {_TABLE_IS_OFF}"
)
_WHAT_IS_OFF = sa.text(
    f"{_TREE}SELECT CAST(CAST(c.oid AS regclass) AS text) AS name, {_TABLE_IS_OFF} AS is_off,"
    " current_setting('autovacuum') AS autovacuum, current_setting('track_counts') AS track_counts"
    " FROM tree JOIN pg_class AS c ON c.oid = tree.oid WHERE c.relkind = 'r' ORDER BY 1"
)
# The thresholds are those of the manual's 24.1.6; version 18 has an upper limit of the first one.
_LEAVES = sa.text(
    f"{_TREE}SELECT c.oid, CAST(CAST(c.oid AS regclass) AS text) AS name,"
    " c.oid = CAST(:table AS regclass) AS is_root,"
    " pg_stat_get_tuples_updated(c.oid) AS updated,"
    " pg_stat_get_tuples_hot_updated(c.oid) AS hot,"
    " pg_stat_get_dead_tuples(c.oid) AS dead,"
    " pg_stat_get_mod_since_analyze(c.oid) AS modified,"
    " pg_stat_get_vacuum_count(c.oid) AS vacuums,"
    f" CASE WHEN {_IS_OFF} THEN NULL ELSE"
    f" LEAST({_option('autovacuum_vacuum_threshold')}"
    f" + {_option('autovacuum_vacuum_scale_factor')} * greatest(c.reltuples, 0),"
    " CAST(NULLIF(current_setting('autovacuum_vacuum_max_threshold', true), '-1') AS float))"
    " END AS vacuum_at,"
    f" {_option('autovacuum_analyze_threshold')}"
    f" + {_option('autovacuum_analyze_scale_factor')} * greatest(c.reltuples, 0) AS analyze_at"
    " FROM tree JOIN pg_class AS c ON c.oid = tree.oid WHERE c.relkind = 'r'"
)
_SO_FAR = sa.text(
    f"{_TREE}SELECT COALESCE(sum(pg_stat_get_xact_tuples_updated(oid)), 0),"
    " COALESCE(sum(pg_stat_get_xact_tuples_hot_updated(oid)), 0) FROM tree"
)
_INDEXES = sa.text(
    "SELECT a.attname AS column_name, i.relname AS index_name,"
    " CAST(CAST(i.oid AS regclass) AS text) AS quoted, m.amname AS method,"
    " a.attnum = ANY (x.indkey) AS is_key, x.indpred IS NOT NULL AS is_partial,"
    " x.indisunique OR i.relkind <> 'i' OR i.relispartition AS is_fixed,"
    " pg_get_indexdef(i.oid) AS definition"
    " FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid"
    " JOIN pg_am AS m ON m.oid = i.relam JOIN pg_attribute AS a ON a.attrelid = x.indrelid"
    " WHERE x.indrelid = CAST(:table AS regclass) AND a.attname IN :columns"
    " AND (a.attnum = ANY (x.indkey) OR EXISTS (SELECT FROM pg_depend AS d"
    " WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = i.oid"
    " AND d.refobjid = x.indrelid AND d.refobjsubid = a.attnum))"
    " ORDER BY a.attname, i.relname"
).bindparams(sa.bindparam("columns", expanding=True))
_ROOM_IN_PAGES = sa.text(
    "SELECT c.relkind = 'r' AND NOT c.relhassubclass AS is_plain,"
    " pg_stat_get_tuples_updated(c.oid) AS updated, greatest(c.reltuples, 1) AS tuples,"
    " (SELECT count(*) FROM pg_index WHERE indrelid = c.oid) AS indexes,"
    " COALESCE((SELECT CAST(option_value AS integer) FROM pg_options_to_table(c.reloptions)"
    " WHERE option_name = 'fillfactor'), 100) AS fillfactor"
    " FROM pg_class AS c WHERE c.oid = CAST(:table AS regclass)"
)
_REFUSED = (
    f"{_TREE}SELECT CAST(CAST(c.oid AS regclass) AS text) AS name, quote_ident(current_user) AS me,"
    " quote_ident(pg_get_userbyid(c.relowner)) AS owner"
    " FROM tree JOIN pg_class AS c ON c.oid = tree.oid"
    " JOIN pg_database AS d ON d.datname = current_database()"
    " WHERE c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE')"
    " AND NOT pg_has_role(d.datdba, 'USAGE')"
)
_RIGHTS = sa.text(f"{_REFUSED} LIMIT 1")
_RIGHTS_TO_MAINTAIN = sa.text(f"{_REFUSED} AND NOT has_table_privilege(c.oid, 'MAINTAIN') LIMIT 1")
