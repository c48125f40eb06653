"""What this user may do on MariaDB and MySQL: EXPLAIN needs the rights of what it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.rights import Missing, Rights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_ME = sa.text("SELECT CURRENT_USER(), DATABASE()")
_IS_THERE = sa.text(
    "SELECT count(*) FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:place, DATABASE()) AND table_name = :name"
)
_ALL = "CREATE, INDEX, REFERENCES, SELECT, INSERT, UPDATE, DELETE"
_MAY_CREATE = sa.text(
    "SELECT count(DISTINCT privilege_type) = 3 FROM ("
    "SELECT privilege_type FROM information_schema.user_privileges"
    " UNION ALL SELECT privilege_type FROM information_schema.schema_privileges"
    " WHERE COALESCE(:place, DATABASE()) LIKE table_schema"
    " UNION ALL SELECT privilege_type FROM information_schema.table_privileges"
    " WHERE table_schema = COALESCE(:place, DATABASE())"
    " AND table_name LIKE 'backfill|_%' ESCAPE '|')"
    " AS mine WHERE privilege_type IN ('CREATE', 'INDEX', 'REFERENCES')"
)


class MySQLRights(Rights):
    def on_table(
        self, connection: sa.Connection, table: str, schema: str | None, writes: Sequence[str]
    ) -> list[Missing]:
        name = self._quoted(table, schema)
        update = ", ".join(f"{self._quoted(c)} = {self._quoted(c)}" for c in writes)
        tries = {"SELECT": f"SELECT 1 FROM {name} WHERE 1 = 0"}
        tries |= {"UPDATE": f"UPDATE {name} SET {update} WHERE 1 = 0"} if writes else {}
        return self._missing(connection, name, tries)

    def on_state(
        self, connection: sa.Connection, names: Collection[str], schema: str | None
    ) -> list[Missing]:
        me, database = self._me(connection)
        given = {"place": schema}
        if schema is not None:
            database = self._quoted(schema)
        places = {name: f"{database}.{name}" for name in sorted(names)}
        refused = {
            place: self._refused(connection, _tries(name, place))
            for name, place in places.items()
            if connection.execute(_IS_THERE, {**given, "name": name}).scalar()
        }
        lacking = {place: found for place, found in refused.items() if found}
        if lacking:
            grants = [f"GRANT {', '.join(p)} ON {place} TO {me}" for place, p in lacking.items()]
            what = f"{me} may not use the state tables {', '.join(lacking)}"
            return [Missing(what, "; ".join(grants))]
        if not refused and not connection.execute(_MAY_CREATE, given).scalar():
            grants = [f"GRANT {_ALL} ON {place} TO {me}" for place in places.values()]
            return [Missing(f"{me} may not create the state tables", "; ".join(grants))]
        return []

    def _missing(
        self, connection: sa.Connection, name: str, tries: dict[str, str]
    ) -> list[Missing]:
        refused = self._refused(connection, tries)
        if not refused:
            return []
        me, database = self._me(connection)
        table = name if "." in name else f"{database}.{name}"
        what = f"{me} lacks {', '.join(refused)} on {table}"
        return [Missing(what, f"GRANT {', '.join(refused)} ON {table} TO {me}")]

    def _refused(self, connection: sa.Connection, tries: dict[str, str]) -> list[str]:
        return [p for p, sql in tries.items() if self._is_refused(connection, sql)]

    def _is_refused(self, connection: sa.Connection, statement: str) -> bool:
        try:
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(f"EXPLAIN {statement}").all()
        except sa.exc.DBAPIError as error:
            if self._dialect.error_kind(error) is not ErrorKind.RIGHTS:
                raise
            return True
        return False

    def _me(self, connection: sa.Connection) -> tuple[str, str]:
        me, database = connection.execute(_ME).one()
        user, _, host = str(me).rpartition("@")
        return f"'{user}'@'{host}'", self._quoted(str(database))

    def _quoted(self, name: str, schema: str | None = None) -> str:
        return self._dialect.upkeep.quoted(name, schema)


def _tries(name: str, place: str) -> dict[str, str]:
    """Return a statement for each right that the state table needs."""
    column = "version" if name.endswith("_schema") else "id"
    return {
        "SELECT": f"SELECT 1 FROM {place} WHERE 1 = 0",
        "INSERT": f"INSERT INTO {place} ({column}) VALUES (0)",
        "UPDATE": f"UPDATE {place} SET {column} = {column} WHERE 1 = 0",
        "DELETE": f"DELETE FROM {place} WHERE 1 = 0",
    }
