"""InnoDB's statistics: it mends them by itself, so one only tells where it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.dialects.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects.limits import Limits

_STALE = 0.1
"""Of its rows changed, InnoDB recalculates a table's statistics (innodb_stats_auto_recalc)."""


class MySQLUpkeep(Upkeep):
    def fired(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[str]:
        names = {"schema": table.schema, "table": table.name}
        return list(connection.execute(_FIRED, names).scalars())

    def stamped(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        names = {"schema": table.schema, "table": table.name}
        return list(connection.execute(_STAMPED, names).scalars())

    def refresh_statistics(
        self, limits: Limits, table: sa.Table, columns: Sequence[str], share: float, mark: str
    ) -> list[str]:
        """Never ANALYZE TABLE: before MariaDB 10.5.4 (MDEV-15101) and MySQL 8.0.24 each new query
        on the table then waits for the longest one that runs; and it is written to the binlog.
        """
        if share < _STALE:
            return []
        with (
            self._dialect.open(limits) as connection,
            self._dialect.transaction(connection, limits, write=False),
        ):
            names = {"schema": table.schema, "table": table.name}
            if connection.execute(_IS_AUTOMATIC, names).scalar() or not self.indexes_on(
                connection, table, columns
            ):
                return []
        return [
            f"its statistics are not recalculated (innodb_stats_auto_recalc is off): ANALYZE TABLE"
            f" {table.fullname} when no long query runs on it"
        ]


_FIRED = sa.text(
    "SELECT trigger_name FROM information_schema.triggers"
    " WHERE event_object_schema = COALESCE(:schema, DATABASE()) AND event_object_table = :table"
    " AND event_manipulation = 'UPDATE' AND trigger_name NOT LIKE 'backfill\\_sync\\_%' ORDER BY 1"
)
_STAMPED = sa.text(
    "SELECT column_name FROM information_schema.columns"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
    " AND extra LIKE '%on update%' ORDER BY ordinal_position"
)
_IS_AUTOMATIC = sa.text(
    "SELECT CASE WHEN create_options LIKE '%stats_auto_recalc=0%' THEN 0"
    " WHEN create_options LIKE '%stats_auto_recalc=1%' THEN 1"
    " ELSE @@innodb_stats_auto_recalc END FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
