"""SQLite: triggers cannot change NEW, so they update the row right after it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.triggers import (
    Place,
    Script,
    Triggers,
    changing_action,
    execute,
    mentions,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.targets import Target


class SQLiteTriggers(Triggers):
    """Their own UPDATE fires them again; it then finds nothing to do, so that they end whether
    or not `recursive_triggers` is on."""

    def unfit(self, connection: sa.Connection, target: Target) -> str | None:
        """Refuse what would harm the application: INSERT OR REPLACE hands its REPLACE on to the
        triggers, and a function that only our connection knows fails its statements."""
        unique = self.refusing(connection, target)
        for column in target.assignments:
            if column in unique:
                return (
                    f"{column!r} is unique, and an INSERT OR REPLACE of the application would,"
                    " through the triggers, delete the row that has the value already"
                )
        script = Script(target)
        for name in connection.execute(_OUR_FUNCTIONS).scalars():
            if script.calls(name):
                return (
                    f"{name!r} is no function of SQLite's own, and the writes of a connection that"
                    " does not have it would fail"
                )
        return None

    def acted_on(self, connection: sa.Connection, table: sa.Table) -> dict[str, str]:
        """Asked by a PRAGMA: SQLAlchemy does not read what stands with a column."""
        names = {"table": table.name, "schema": table.schema or "main"}
        found = {}
        for row in connection.execute(_FOREIGN_KEYS, names):
            action = changing_action(on_delete=row.on_delete, on_update=row.on_update)
            if action is not None:
                found[row.name] = action
        return found

    def refusing(self, connection: sa.Connection, target: Target) -> set[str]:
        """Asked for the text of indexes: SQLAlchemy does not read those on expressions."""
        table, master = target.table, self.quoted("sqlite_master", target.table.schema)
        indexes = sa.text(
            f"SELECT substr(sql, instr(sql, '(')) FROM {master} WHERE type = 'index'"
            " AND tbl_name = :table AND sql LIKE 'CREATE UNIQUE%'"
        )
        names = {"table": table.name, "schema": table.schema or "main"}
        texts = connection.execute(indexes, names).scalars().all()
        constrained = connection.execute(_UNIQUE, names).scalars().all()
        return {
            *constrained,
            *(c.name for c in table.c if any(mentions(text, c.name) for text in texts)),
        }

    def advice(self, connection: sa.Connection, target: Target) -> list[str]:
        script = Script(target)
        if script.calls("json_valid"):
            return []
        return [
            f"{name} raises an error for some values, and that fails the application's statement,"
            " which a trigger cannot prevent here: look before (for JSON: CASE WHEN json_valid(…))."
            for name in _RAISING
            if (script.calls(name) if name.isidentifier() else script.contains(name))
        ]

    def ddl(self, connection: sa.Connection, target: Target, place: Place) -> list[str]:
        return [
            f"CREATE TRIGGER {self.quoted(name, place.schema)} {body}"
            for name, body in _bodies(target, place, self).items()
        ]

    def find(self, connection: sa.Connection, place: Place) -> Place | None:
        return place if self._found(connection, place) else None

    def installed(self, connection: sa.Connection) -> list[tuple[str, str]]:
        return [(row.table_name, row.name) for row in connection.execute(_INSTALLED)]

    def named(self, connection: sa.Connection, name: str, backfill: str) -> list[Place]:
        found = []
        for schema in sa.inspect(connection).get_schema_names():
            master = self.quoted("sqlite_master", schema)
            query = sa.text(
                f"SELECT DISTINCT tbl_name FROM {master} WHERE type = 'trigger' AND name IN :names"
            ).bindparams(sa.bindparam("names", expanding=True))
            names = {"names": [f"{name}_insert", f"{name}_update"]}
            tables = connection.execute(query, names).scalars()
            found += [Place(schema, table, name, backfill) for table in tables]
        return found

    def install(self, connection: sa.Connection, target: Target, place: Place) -> bool:
        found = self._found(connection, place)
        is_changed = False
        for name, body in _bodies(target, place, self).items():
            if found.get(name, "").endswith(body):
                continue
            trigger = self.quoted(name, place.schema)
            if name in found:
                execute(connection, f"DROP TRIGGER {trigger}")
            execute(connection, f"CREATE TRIGGER {trigger} {body}")
            is_changed = True
        return is_changed

    def remove(self, connection: sa.Connection, place: Place) -> None:
        for name in self._found(connection, place):
            execute(connection, f"DROP TRIGGER IF EXISTS {self.quoted(name, place.schema)}")

    def _found(self, connection: sa.Connection, place: Place) -> dict[str, str]:
        if place.schema not in (None, *sa.inspect(connection).get_schema_names()):
            return {}
        master = self.quoted("sqlite_master", place.schema)
        query = sa.text(
            f"SELECT name, sql FROM {master} WHERE type = 'trigger' AND name IN :names"
        ).bindparams(sa.bindparam("names", expanding=True))
        names = [f"{place.name}_insert", f"{place.name}_update"]
        return {row.name: row.sql for row in connection.execute(query, {"names": names})}


def _bodies(target: Target, place: Place, triggers: Triggers) -> dict[str, str]:
    script = Script(target)
    table = triggers.quoted(place.table)
    fill = _update(script, script.columns, pending=True)
    again = f"{fill} AND NOT {_just_written(script)}"
    follow = [_update(script, [name], also=_follows(script, name)) for name in script.following]
    if script.revocable:
        follow.append(_revoke(script))
    return {
        f"{place.name}_insert": f"AFTER INSERT ON {table} FOR EACH ROW BEGIN\n{fill};\nEND",
        f"{place.name}_update": f"AFTER UPDATE ON {table} FOR EACH ROW BEGIN\n"
        + "".join(f"{statement};\n" for statement in (again, *follow))
        + "END",
    }


def _update(
    script: Script, columns: Sequence[str], *, pending: bool = False, also: str = ""
) -> str:
    """Return an UPDATE of the row that was written, as it is stored: only there do its columns
    have their affinities. What a constraint refuses is left as it is; and where nothing would
    change no trigger fires, so that another backfill's can fire this one's later."""
    target, here = script.target, _stored(script)
    values: dict[Any, Any] = {c: script.on(here, target.assignments[c]) for c in columns}
    changes = " OR ".join(_is_not(script, name, script.text(v)) for name, v in values.items())
    fits = "".join(  # OR IGNORE does not do for an INSERT OR ABORT
        f" AND ({script.text(values[name])}) IS NOT NULL" for name in script.required(columns)
    )
    statement = _of_the_row(script, here).values(values)
    guard = also
    if pending:
        assert target.pending is not None
        guard = script.text(script.on(here, target.pending))
    # No AND: where the guard does not hold, to compute the values may raise an error.
    does: sa.ColumnElement[bool] = sa.literal_column(
        f"CASE WHEN {guard} THEN ({changes}){fits} END"
    )
    statement = statement.where(does)
    return script.text(statement)


def _stored(script: Script) -> sa.TableClause:
    table = script.target.table
    return sa.table(table.name, *(sa.column(c.name, c.type) for c in table.c))


def _of_the_row(script: Script, here: sa.TableClause) -> sa.Update:
    statement = sa.update(here).prefix_with("OR IGNORE")
    for name in script.target.key.names:
        written: sa.ColumnElement[Any] = sa.literal_column(f"NEW.{script.quote(name)}")
        statement = statement.where(here.c[name] == written)
    return statement


def _revoke(script: Script) -> str:
    """Where values did not follow, since a constraint refused them, none are better than old
    ones, if the row is pending then; and if all are ours, since the walk would write all."""
    here = _stored(script)
    was_refused = " OR ".join(
        f"{script.quote(name)} IS NEW.{script.quote(name)} COLLATE BINARY AND"
        f" {_is_not(script, name, script.text(script.on(here, script.target.assignments[name])))}"
        for name in script.columns
    )
    without = ", ".join(
        f"{'NULL' if column.name in script.revocable else name} AS {name}"
        for column, name in ((c, script.quote(c.name)) for c in script.target.table.c)
    )
    pending = script.over(f"SELECT {without}", script.columns, pending=True)
    conditions = [
        *(_follows(script, name) for name in script.columns),
        f"({was_refused})",
        f"EXISTS ({pending})",
    ]
    statement = _of_the_row(script, here).values(dict.fromkeys(script.revocable, sa.null()))
    return script.text(statement.where(sa.literal_column(" AND ".join(conditions))))


def _is_not(script: Script, name: str, value: str) -> str:
    return f"({value}) IS NOT {script.quote(name)} COLLATE BINARY"


def _just_written(script: Script) -> str:
    """Say that the row was pending, and has what it gave: the walk wrote it, or we did."""
    computed = script.over(script.row_of("OLD"), script.columns, pending=True)
    same = " AND ".join(
        f"NEW.{script.quote(name)} IS c{i} COLLATE BINARY" for i, name in enumerate(script.columns)
    )
    is_written = _has_any(script, "NEW", script.columns)
    return f"EXISTS (SELECT 1 FROM ({computed}) WHERE {same} AND ({is_written}))"


def _follows(script: Script, name: str) -> str:
    """Say that the statement left the value alone, and that it is what the old row gives."""
    column, names = script.quote(name), script.following
    computed = script.over(script.row_of("OLD"), names, pending=False)
    is_written = _has_any(script, "OLD", names)
    return (
        f"NEW.{column} IS OLD.{column} COLLATE BINARY AND EXISTS (SELECT 1 FROM ({computed})"
        f" WHERE OLD.{column} IS c{names.index(name)} COLLATE BINARY AND ({is_written}))"
    )


def _has_any(script: Script, row: str, columns: Sequence[str]) -> str:
    """Say that a row has a value which is what is computed: where all are NULL, as they are in
    rows that `where` leaves out, nobody has written them."""
    return " OR ".join(
        f"{row}.{script.quote(name)} = c{i} COLLATE BINARY" for i, name in enumerate(columns)
    )


_RAISING = (
    *("->", "abs", "json", "jsonb", "json_array_length", "json_extract", "jsonb_extract"),
    *("json_each", "json_insert", "json_patch", "json_remove", "json_replace", "json_set"),
    *("json_tree", "json_type"),
)
"""What raises for malformed JSON, and `abs` for the smallest integer (sqlite.org/json1.html,
lang_corefunc.html)."""
_OUR_FUNCTIONS = sa.text("SELECT DISTINCT name FROM pragma_function_list WHERE NOT builtin")
_FOREIGN_KEYS = sa.text(
    'SELECT "from" AS name, on_delete, on_update FROM pragma_foreign_key_list(:table, :schema)'
)
_UNIQUE = sa.text(
    "SELECT i.name FROM pragma_index_list(:table, :schema) AS l"
    " JOIN pragma_index_info(l.name, :schema) AS i WHERE l.origin = 'u'"
)
_INSTALLED = sa.text(
    "SELECT tbl_name AS table_name, name FROM sqlite_master WHERE type = 'trigger'"
    " AND name LIKE 'backfill|_sync|_%' ESCAPE '|' ORDER BY 1, 2"
)
