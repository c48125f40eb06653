"""PostgreSQL: one BEFORE trigger, whose function can be replaced without a lock on the table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.triggers import (
    WAIT_SECONDS,
    Script,
    Triggers,
    execute,
    label_of,
    literal,
)
from backfill.errors import RunFailed, TableBusy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.dialects.triggers import Place
    from backfill.targets import Target

LABEL = "backfill.label"
"""The setting by which a transaction of ours tells whose walk it belongs to."""
_ON_PARTITIONED = (13,)
"""The first version with BEFORE triggers on partitioned tables (its release notes)."""
_WAIT = f"{round(WAIT_SECONDS * 1000)}ms"


class PostgreSQLTriggers(Triggers):
    """The function never raises: what it cannot compute stays pending, for the walk to report."""

    def unfit(self, connection: sa.Connection, target: Target) -> str | None:
        row = connection.execute(_KIND, {"table": self.preparer.format_table(target.table)}).one()
        version = connection.dialect.server_version_info or ()
        if row.relkind == "p" and version < _ON_PARTITIONED:
            return "a partitioned table can have such triggers since PostgreSQL 13"
        if row.relkind != "p" and row.relhassubclass:
            return "the table has child tables, and its triggers do not see what is written there"
        return None

    def is_unknown(self, column: sa.Column[Any]) -> bool:
        return column.computed is not None

    def ddl(self, connection: sa.Connection, target: Target, place: Place) -> list[str]:
        return [self._function(target, place), self._trigger(place)]

    def find(self, connection: sa.Connection, place: Place) -> Place | None:
        row = connection.execute(_FOUND, self._names(place)).first()
        if row is None:
            return None
        return replace(place, schema=row.nspname)

    def installed(self, connection: sa.Connection) -> list[tuple[str, str]]:
        return [(row.table_name, row.name) for row in connection.execute(_INSTALLED)]

    def install(self, connection: sa.Connection, target: Target, place: Place) -> bool:
        # Two that replace one function at once would get "tuple concurrently updated".
        connection.execute(sa.select(sa.func.set_config("lock_timeout", _WAIT, sa.true())))
        connection.execute(_ONE_AT_A_TIME, {"name": place.name})
        row = connection.execute(_FOUND, self._names(place)).first()
        if row is not None and row.has_trigger and row.prosrc == self._body(target):
            return False
        place = self._own_schema(connection, place)
        execute(connection, self._function(target, place))
        if row is None or not row.has_trigger:
            execute(connection, self._trigger(place))
        return True

    def remove(self, connection: sa.Connection, place: Place) -> None:
        """DROP TRIGGER wants the whole table for itself; a failed try must not end the migration's
        transaction, so that it is caught on the server."""
        found = self.find(connection, place)
        if found is None:
            return
        execute(
            connection,
            _DROP.format(
                wait=_WAIT,
                trigger=self.quoted(_trigger_name(place)),
                table=self.table(found),
                function=self.quoted(place.name, found.schema),
            ),
        )
        if self.find(connection, place) is not None:
            raise TableBusy(place.table)

    def _names(self, place: Place) -> dict[str, Any]:
        return {
            "function": place.name,
            "trigger": _trigger_name(place),
            "schema": place.schema,
            "table": place.table,
        }

    def _function(self, target: Target, place: Place) -> str:
        body = self._body(target)
        tag = "$backfill$"
        while tag in body:
            tag = f"{tag[:-1]}_$"
        return (
            f"CREATE OR REPLACE FUNCTION {self.quoted(place.name, place.schema)}() RETURNS trigger"
            f" LANGUAGE plpgsql SET search_path FROM CURRENT AS {tag}{body}{tag}"
        )

    def _body(self, target: Target) -> str:
        return _body(_Script(target, self.preparer.format_table(target.table)))

    def _trigger(self, place: Place) -> str:
        return (
            f"CREATE TRIGGER {self.quoted(_trigger_name(place))} BEFORE INSERT OR UPDATE"
            f" ON {self.table(place)} FOR EACH ROW"
            f" WHEN (current_setting('{LABEL}', true)"
            f" IS DISTINCT FROM {literal(label_of(place.backfill))})"
            f" EXECUTE PROCEDURE {self.quoted(place.name, place.schema)}()"
        )

    def _own_schema(self, connection: sa.Connection, place: Place) -> Place:
        """Return the place with the table's own schema, where the function belongs too.

        Refuses what could be made and not removed: only a table's owner drops a trigger.
        """
        row = connection.execute(_RIGHTS, {"table": self.table(place)}).one()
        if not row.is_owner:
            raise RunFailed(
                f"{place.backfill}: `sync` makes a trigger on {place.table!r}, and only its owner"
                f" can remove one. Run as {row.owner!r}, or GRANT {self.quoted(row.owner)} TO this"
                " user."
            )
        if not row.may_create:
            raise RunFailed(
                f"{place.backfill}: `sync` makes a function in the schema {row.nspname!r}, and this"
                f" user may not: GRANT CREATE ON SCHEMA {self.quoted(row.nspname)} TO this user."
            )
        return replace(place, schema=row.nspname)


class _Script(Script):
    """PL/pgSQL keeps its plans for a session."""

    def __init__(self, target: Target, table: str) -> None:
        super().__init__(target)
        self.is_tied = f"CAST({literal(table)} AS regclass) IS NOT NULL"
        """Always true, and ties a plan to the table: after an ALTER of a column's type it would
        go on with the old one, and fail (PostgreSQL's setrefs.c, "check for regclass Consts")."""

    def row_of(self, name: str) -> str:
        """Return a SELECT of OLD's or NEW's columns.

        OFFSET 0 keeps the planner from computing with constants before it has looked at `where`.
        """
        return f"SELECT {name}.* WHERE {self.is_tied} OFFSET 0"


def _trigger_name(place: Place) -> str:
    """Triggers fire in the order of their names, and those of the table's own come first."""
    return f"zz_{place.name}"


def _body(script: _Script) -> str:
    """Values go straight into records: a variable would keep the type that it had first."""
    needed = [f"_backfill_now.{script.quote(name)}" for name in script.required(script.columns)]
    fits = " AND ".join([script.is_tied, *(f"{value} IS NOT NULL" for value in needed)])
    return "\n".join(
        [
            "",
            "#variable_conflict use_column",
            f"-- Of backfill {script.target.declaration.name}: goes with its gate, or with"
            " `backfill cancel`.",
            "DECLARE",
            "  _backfill_given record := NEW;",
            "  _backfill_now record := NEW;",
            "  _backfill_was record;",
            "BEGIN",
            script.over(script.row_of("NEW"), script.columns, pending=True),
            f"  INTO {_fields('_backfill_now', script, script.columns)};",
            "  IF FOUND THEN",
            f"    IF {fits} THEN",
            "      RETURN _backfill_now;",
            "    END IF;",
            *_follow(script),
            "  END IF;",
            "  RETURN NEW;",
            "EXCEPTION WHEN OTHERS THEN",
            "  RETURN _backfill_given;  -- stays pending; the application's statement goes on",
            "END ",
        ]
    )


def _follow(script: _Script) -> Iterator[str]:
    """A value that the statement left alone, and that is what the old row gives, is computed anew.

    Compared as text in the column's own type: json has no equality.
    """
    columns = script.following
    if not columns:
        return
    yield "  ELSIF TG_OP = 'UPDATE' THEN"
    for row, record in (("OLD", "_backfill_was"), ("NEW", "_backfill_now")):
        yield f"    {record} := {row};"
        yield script.over(script.row_of(row), columns, pending=False)
        yield f"    INTO {_fields(record, script, columns)};"
    yield "    SELECT"
    yield ",\n".join(_value_that_follows(script, name) for name in columns)
    yield f"    WHERE {script.is_tied} INTO {_fields('NEW', script, columns)};"


def _value_that_follows(script: _Script, name: str) -> str:
    column = script.quote(name)
    needed = f" AND _backfill_now.{column} IS NOT NULL" if script.required([name]) else ""
    return (
        f"      CASE WHEN NEW.{column}::text IS NOT DISTINCT FROM OLD.{column}::text"
        f" AND OLD.{column}::text IS NOT DISTINCT FROM _backfill_was.{column}::text{needed}"
        f" THEN _backfill_now.{column} ELSE NEW.{column} END"
    )


def _fields(record: str, script: _Script, columns: Sequence[str]) -> str:
    return ", ".join(f"{record}.{script.quote(name)}" for name in columns)


_FOUND = sa.text(
    "SELECT nspname, prosrc, EXISTS (SELECT 1 FROM pg_trigger JOIN pg_class AS c ON c.oid = tgrelid"
    " WHERE tgname = :trigger AND tgfoid = p.oid AND relname = :table) AS has_trigger"
    " FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace"
    " WHERE proname = :function AND pronargs = 0 AND prorettype = CAST('trigger' AS regtype)"
    " AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_function_is_visible(p.oid)"
    " ELSE nspname = CAST(:schema AS text) END"
)
_KIND = sa.text("SELECT relkind, relhassubclass FROM pg_class WHERE oid = CAST(:table AS regclass)")
_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))")
_RIGHTS = sa.text(
    "SELECT nspname, rolname AS owner, pg_has_role(relowner, 'USAGE') AS is_owner,"
    " has_schema_privilege(n.oid, 'CREATE') AS may_create"
    " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
    " JOIN pg_roles AS r ON r.oid = relowner WHERE c.oid = CAST(:table AS regclass)"
)
_DROP = """DO $backfill$
DECLARE
  _was text := current_setting('lock_timeout');
BEGIN
  BEGIN
    PERFORM set_config('lock_timeout', '{wait}', true);
    DROP TRIGGER IF EXISTS {trigger} ON {table};
    DROP FUNCTION IF EXISTS {function}();
    PERFORM set_config('lock_timeout', _was, true);
  EXCEPTION WHEN lock_not_available THEN
    NULL;  -- whoever asked looks whether it is gone
  END;
END
$backfill$"""

_INSTALLED = sa.text(
    "SELECT CAST(CAST(tgrelid AS regclass) AS text) AS table_name, tgname AS name FROM pg_trigger"
    " WHERE tgname LIKE '%backfill\\_sync\\_%' AND NOT tgisinternal ORDER BY 1, 2"
)
