"""SQLite changes a column by a copy of the table."""

from __future__ import annotations

import sqlalchemy as sa

from backfill.dialects.columns import Columns, Place, Step


class SQLiteColumns(Columns):
    """By a copy of the table, which Alembic makes and gives the name of the old one."""

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """The driver begins no transaction before DDL; SQLAlchemy commits this one."""
        driver = connection.connection.dbapi_connection
        return None if getattr(driver, "in_transaction", False) else Step(["BEGIN IMMEDIATE"])

    def lost(self, connection: sa.Connection, place: Place) -> list[str]:
        """Triggers go with the old table: the user's own, and those of `sync`."""
        master = f"{place.preparer.quote(place.schema or 'main')}.sqlite_master"
        query = f"SELECT sql FROM {master} WHERE type = 'trigger' AND tbl_name = :table"
        return list(connection.scalars(sa.text(query), {"table": place.table}))

    def leftovers(self, connection: sa.Connection, place: Place) -> list[str]:
        """The copy that Alembic had begun; where the old table is gone it is the only one."""
        copied = f"_alembic_tmp_{place.table}"
        known = sa.inspect(connection).get_table_names(place.schema)
        if not {copied, place.table} <= set(known):
            return []
        table = sa.table(copied, schema=place.schema)
        return [f"DROP TABLE {place.preparer.format_table(table)}"]

    def refusal(self, connection: sa.Connection, place: Place) -> str | None:
        """Dropping the old table deletes its rows, and ON DELETE CASCADE follows, into its copy as
        well."""
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
