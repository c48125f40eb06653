"""What this user may do on MariaDB and MySQL: EXPLAIN needs the rights of what it explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.dialects.base import ErrorKind
from backfill.dialects.rights import Missing, Rights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_ME = sa.text("SELECT CURRENT_USER(), DATABASE()")
_MAY_CREATE = sa.text(
    "SELECT count(*) FROM (SELECT privilege_type FROM information_schema.user_privileges"
    " UNION ALL SELECT privilege_type FROM information_schema.schema_privileges"
    " WHERE DATABASE() LIKE table_schema) AS mine WHERE privilege_type = 'CREATE'"
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

    def on_state(self, connection: sa.Connection, names: Collection[str]) -> list[Missing]:
        inspector = sa.inspect(connection)
        there = [name for name in sorted(names) if inspector.has_table(name)]
        if not there and not connection.execute(_MAY_CREATE).scalar():
            me, database = self._me(connection)
            what = f"{me} may not create the state tables"
            return [Missing(what, f"GRANT CREATE ON {database}.* TO {me}")]
        found = []
        for name in there:
            (column, *_) = inspector.get_columns(name)
            first = self._quoted(column["name"])
            tries = {
                "SELECT": f"SELECT 1 FROM {name} WHERE 1 = 0",
                "INSERT": f"INSERT INTO {name} ({first}) VALUES (0)",
                "UPDATE": f"UPDATE {name} SET {first} = {first} WHERE 1 = 0",
                "DELETE": f"DELETE FROM {name} WHERE 1 = 0",
            }
            found += self._missing(connection, name, tries)
        return found

    def _missing(
        self, connection: sa.Connection, name: str, tries: dict[str, str]
    ) -> list[Missing]:
        refused = [p for p, sql in tries.items() if self._is_refused(connection, sql)]
        if not refused:
            return []
        me, database = self._me(connection)
        table = name if "." in name else f"{database}.{name}"
        what = f"{me} lacks {', '.join(refused)} on {table}"
        return [Missing(what, f"GRANT {', '.join(refused)} ON {table} TO {me}")]

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
