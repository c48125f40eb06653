"""SQLite changes a column by a copy of the table."""

from __future__ import annotations

import re
from typing import NamedTuple

import sqlalchemy as sa

from backfill.dialects.columns import Columns, Place, Step

_FORGOTTEN = re.compile(r"\bCOLLATE\s+(?!BINARY\b)\w+|\bAUTOINCREMENT\b", re.IGNORECASE)
"""What SQLAlchemy does not tell of a column."""


class _Object(NamedTuple):
    kind: str
    name: str
    sql: str


class SQLiteColumns(Columns):
    """By a copy of the table, which Alembic makes and gives the name of the old one."""

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """The driver begins no transaction before DDL; SQLAlchemy commits this one."""
        driver = connection.connection.dbapi_connection
        return None if getattr(driver, "in_transaction", False) else Step(["BEGIN IMMEDIATE"])

    def lost(self, connection: sa.Connection, place: Place) -> list[str]:
        """Triggers go with the old table, the user's own and those of `sync`, and so do indexes
        of expressions, which SQLAlchemy does not know."""
        return [
            one.sql
            for one in _objects(connection, place)
            if one.kind == "trigger" or (one.kind == "index" and _has_expressions(connection, one))
        ]

    def leftovers(self, connection: sa.Connection, place: Place) -> list[str]:
        """The copy that Alembic had begun; where the old table is gone it is the only one."""
        copied = f"_alembic_tmp_{place.table}"
        known = sa.inspect(connection).get_table_names(place.schema)
        if not {copied, place.table} <= set(known):
            return []
        table = sa.table(copied, schema=place.schema)
        return [f"DROP TABLE {place.preparer.format_table(table)}"]

    def refusal(self, connection: sa.Connection, place: Place) -> str | None:
        """Alembic's copy is made of what SQLAlchemy knows of the table. And dropping the old one
        deletes its rows, which ON DELETE CASCADE follows, into the copy as well."""
        table = next((one.sql for one in _objects(connection, place) if one.kind == "table"), "")
        forgotten = sorted({found[0].upper() for found in _FORGOTTEN.finditer(table)})
        if forgotten:
            return (
                f"SQLite copies {place.table!r}, and the copy would lose {', '.join(forgotten)}."
                " Write the batch_alter_table yourself, with `copy_from` a table that has all of it"
            )
        if not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
            return None
        inspector = sa.inspect(connection)
        for table in inspector.get_table_names(place.schema):
            keys = inspector.get_foreign_keys(table, place.schema)
            if any(key["referred_table"] == place.table for key in keys):
                return (
                    f"SQLite copies {place.table!r} and drops the old one; {table!r} refers to it,"
                    " and with PRAGMA foreign_keys its rows might be deleted too. Switch that"
                    " off in env.py"
                )
        return None


def _objects(connection: sa.Connection, place: Place) -> list[_Object]:
    """Return the table, its indexes and its triggers."""
    master = f"{place.preparer.quote(place.schema or 'main')}.sqlite_master"
    query = f"SELECT type, name, sql FROM {master} WHERE tbl_name = :table AND sql IS NOT NULL"
    return [_Object(*row) for row in connection.execute(sa.text(query), {"table": place.table})]


def _has_expressions(connection: sa.Connection, index: _Object) -> bool:
    query = sa.text("SELECT count(*) FROM pragma_index_xinfo(:name) WHERE cid = -2")
    return bool(connection.scalar(query, {"name": index.name}))
