"""What this user may do and see on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.rights import Missing, Rights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backfill.speed.readings import Reader

SEES_ALL = "pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
"""SQL: whether this user does."""
_ME = sa.text("SELECT quote_ident(current_user)")


class Monitored:
    """Needs to see what other users' sessions do."""

    def remedy(self, reader: Reader) -> str:
        with reader() as connection:
            return f"GRANT pg_monitor TO {connection.execute(_ME).scalar()}"


class PostgreSQLRights(Rights):
    def on_table(
        self, connection: sa.Connection, table: str, schema: str | None, writes: Sequence[str]
    ) -> list[Missing]:
        name = self._dialect.upkeep.quoted(table, schema)
        row = connection.execute(_ON_TABLE, {"table": name}).first()
        if row is None:
            return []
        found = []
        if not row.may_read:
            found.append(Missing(f"{row.me} may not read {row.name}", self._grant("SELECT", row)))
        given = {"table": name, "columns": list(writes) or [""]}
        if connection.execute(_REFUSED_COLUMNS, given).first():
            remedy = self._grant("UPDATE", row)
            found.append(Missing(f"{row.me} may not update {row.name}", remedy))
        if row.hides_rows:
            found.append(
                Missing(
                    f"Row security hides rows of {row.name} from {row.me}: they would be left as"
                    " they are, and the backfill called complete",
                    f"ALTER ROLE {row.me} BYPASSRLS",
                )
            )
        return found

    def on_state(
        self, connection: sa.Connection, names: Collection[str], schema: str | None
    ) -> list[Missing]:
        row = connection.execute(_ON_SCHEMA, {"names": sorted(names), "place": schema}).one()
        if schema is not None and row.may_use is None:
            what = f"There is no schema {row.schema} for the state tables (`state_schema`)"
            return [Missing(what, f"CREATE SCHEMA {row.schema} AUTHORIZATION {row.me}")]
        if row.may_use is False:
            grant = f"GRANT USAGE ON SCHEMA {row.schema} TO {row.me}"
            return [Missing(f"{row.me} may not look into the schema {row.schema}", grant)]
        if row.refused:
            grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {row.refused} TO {row.me}"
            return [Missing(f"{row.me} may not write to the state tables {row.refused}", grant)]
        if row.sequences:
            grant = f"GRANT USAGE ON SEQUENCE {row.sequences} TO {row.me}"
            return [Missing(f"{row.me} may not number new rows of the state tables", grant)]
        if not row.has_tables and not row.may_create:
            grant = f"GRANT CREATE ON SCHEMA {row.schema} TO {row.me}"
            what = f"{row.me} may not create the state tables in the schema {row.schema}"
            return [Missing(what, grant)]
        return []

    def _grant(self, privilege: str, row: Any) -> str:
        return f"GRANT {privilege} ON {row.name} TO {row.me}"


_ON_TABLE = sa.text(
    "SELECT CAST(CAST(c.oid AS regclass) AS text) AS name, quote_ident(current_user) AS me,"
    " has_any_column_privilege(c.oid, 'SELECT') AS may_read,"
    " row_security_active(c.oid) AS hides_rows"
    " FROM pg_class AS c WHERE c.oid = to_regclass(:table)"
)
_REFUSED_COLUMNS = sa.text(
    "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:table)"
    " AND attname IN :columns AND NOT has_column_privilege(attrelid, attnum, 'UPDATE')"
).bindparams(sa.bindparam("columns", expanding=True))
_ON_SCHEMA = sa.text(
    "WITH ours AS (SELECT c.oid, CAST(CAST(c.oid AS regclass) AS text) AS name FROM pg_class AS c"
    " WHERE relname IN :names AND relkind = 'r' AND"
    " CASE WHEN CAST(:place AS text) IS NULL THEN pg_table_is_visible(c.oid)"
    " ELSE relnamespace = to_regnamespace(quote_ident(:place)) END),"
    " here AS (SELECT COALESCE(CAST(:place AS text), current_schema()) AS schema)"
    " SELECT quote_ident(current_user) AS me, quote_ident(schema) AS schema,"
    " has_schema_privilege(to_regnamespace(quote_ident(schema)), 'USAGE') AS may_use,"
    " has_schema_privilege(to_regnamespace(quote_ident(schema)), 'CREATE') AS may_create,"
    " EXISTS (SELECT FROM ours) AS has_tables,"
    " (SELECT string_agg(name, ', ' ORDER BY name) FROM ours"
    " WHERE NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')"
    " AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))) AS refused,"
    " (SELECT string_agg(CAST(CAST(s.oid AS regclass) AS text), ', ' ORDER BY s.relname)"
    " FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid"
    " JOIN ours ON ours.oid = d.refobjid WHERE d.deptype = 'a' AND CASE WHEN s.relkind = 'S'"
    " THEN NOT has_sequence_privilege(s.oid, 'USAGE') END) AS sequences FROM here"
).bindparams(sa.bindparam("names", expanding=True))
