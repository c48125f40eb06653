"""SQLite's statistics: mended where somebody made them, and never begun."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.dialects.triggers import mentions
from backfill.dialects.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects.limits import Limits

_STALE = 0.1
_LIMIT = 400
"""Rows of an index that ANALYZE looks at for each value, as sqlite.org/lang_analyze.html has it."""


class SQLiteUpkeep(Upkeep):
    def pending_index(
        self, table: sa.Table, key: Sequence[str], pending: sa.ColumnElement[bool]
    ) -> str:
        name = self.quoted(f"ix_{table.name}_pending", table.schema)
        return self._partial_index(f"CREATE INDEX {name}", self.quoted(table.name), key, pending)

    def fired(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[str]:
        query = sa.text(
            f"SELECT name, sql FROM {self.quoted(table.schema or 'main')}.sqlite_master"
            " WHERE type = 'trigger' AND lower(tbl_name) = lower(:table) ORDER BY name"
        )
        found = connection.execute(query, {"table": table.name}).all()
        return [
            row.name
            for row in found
            if not row.name.startswith("backfill_sync_") and _fires(row.sql, columns)
        ]

    def refresh_statistics(
        self, limits: Limits, table: sa.Table, columns: Sequence[str], share: float, mark: str
    ) -> list[str]:
        """ANALYZE the table, if it was before: what there is of statistics changes plans.

        `PRAGMA optimize` would not: it looks at how many rows there are, not at what is in them.
        """
        if share < _STALE:
            return []
        schema = self.quoted(table.schema or "main")
        with self._dialect.open(limits) as connection:
            connection.execution_options(no_parameters=True)
            with self._dialect.transaction(connection, limits, write=False):
                names = {found.index for found in self.indexes_on(connection, table, columns)}
                if not names & self._analyzed(connection, schema, table.name):
                    return []
            with self._dialect.transaction(connection, limits):
                connection.exec_driver_sql(f"PRAGMA analysis_limit = {_LIMIT}")
                connection.exec_driver_sql(f"ANALYZE {schema}.{self.quoted(table.name)}")
        return [f"ANALYZE of {table.fullname}"]

    def _analyzed(self, connection: sa.Connection, schema: str, table: str) -> set[str]:
        """Return the indexes of a table that have statistics."""
        there = f"SELECT 1 FROM {schema}.sqlite_master WHERE name = 'sqlite_stat1'"
        if connection.execute(sa.text(there)).first() is None:
            return set()
        query = sa.text(f"SELECT idx FROM {schema}.sqlite_stat1 WHERE tbl = :table")
        return set(connection.execute(query, {"table": table}).scalars())


def _fires(sql: str, columns: Sequence[str]) -> bool:
    """Whether a trigger, as somebody wrote it, is one of updates of these columns."""
    head = re.split(r"(?i)\bBEGIN\b", sql)[0]
    found = re.search(r"(?is)\bUPDATE\s+(?:OF\s+(.+?)\s+)?ON\b", head)
    if found is None:
        return False
    named = found.group(1)
    return not named or not columns or any(mentions(named, column) for column in columns)
