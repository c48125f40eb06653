"""PostgreSQL changes a column in short locks, and looks at its rows beside the others."""

from __future__ import annotations

import re

import sqlalchemy as sa

from backfill.dialects.columns import Columns, Place, Step


class PostgreSQLColumns(Columns):
    """By a CHECK that is validated beside reading and writing (SET NOT NULL uses it since 12)."""

    needs_savepoints = True

    def is_volatile(self, connection: sa.Connection, default: str) -> bool:
        """now() is the same for a statement, and stored once since PostgreSQL 11."""
        query = "SELECT count(*) FROM pg_proc WHERE provolatile = 'v' AND proname = ANY (:names)"
        names = [name.lower() for name in re.findall(r"(\w+)\s*\(", default)]
        return bool(connection.scalar(sa.text(query), {"names": names}))

    def has_dependents(self, connection: sa.Connection, place: Place) -> bool:
        """Expressions, predicates and included columns of indexes go with the column, as views,
        statistics and policies would, or keep it from going."""
        table, _ = place.sql()
        return bool(connection.scalar(_DEPENDENTS, {"table": table, "column": place.column}))

    def not_null(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        table, column = place.sql()
        name = self._check(place)
        check = f"ADD CONSTRAINT {name} CHECK ({column} IS NOT NULL) NOT VALID"
        drop = f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}"
        return [
            Step([drop, f"ALTER TABLE {table} {check}"]),
            Step([f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}"], is_brief=False),
            Step([f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL", drop]),
        ]

    def undo(self, place: Place) -> Step | None:
        table, _ = place.sql()
        return Step([f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {self._check(place)}"])

    def briefly(self, step: Step, seconds: float) -> list[str]:
        """One statement, so that nothing of the session is changed, nor lost behind a pooler."""
        lines = [
            "DO $backfill$",
            "DECLARE",
            "  _was text := current_setting('lock_timeout');",
            "BEGIN",
            f"  PERFORM set_config('lock_timeout', '{round(seconds * 1000)}ms', true);",
            *(f"  {statement};" for statement in step.statements),
            "  PERFORM set_config('lock_timeout', _was, true);",
            "END",
            "$backfill$",
        ]
        return ["\n".join(lines)]

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """Until the end of the transaction."""
        return Step([f"LOCK TABLE {place.sql()[0]} IN ACCESS EXCLUSIVE MODE"])

    def converted(self, value: str, kind: str) -> str:
        """Text, for one, is no number for it."""
        return f"CAST({value} AS {kind})"

    def _check(self, place: Place) -> str:
        return place.preparer.quote(f"backfill_{place.table}_{place.column}"[:53] + "_not_null")


# NOT NULL is such a constraint, too, since PostgreSQL 18 (contype "n").
_DEPENDENTS = sa.text(
    "SELECT EXISTS (SELECT FROM pg_depend AS d"
    " JOIN pg_attribute AS a ON attrelid = refobjid AND attnum = refobjsubid"
    " LEFT JOIN pg_constraint AS c ON d.classid = 'pg_constraint'\\:\\:regclass AND c.oid = d.objid"
    " WHERE d.refclassid = 'pg_class'\\:\\:regclass AND attrelid = CAST(:table AS regclass)"
    " AND attname = :column AND d.classid <> 'pg_attrdef'\\:\\:regclass"
    " AND c.contype IS DISTINCT FROM 'n')"
)
