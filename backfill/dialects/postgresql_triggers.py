"""PostgreSQL: a trigger BEFORE UPDATE that fills the row, and one AFTER INSERT that touches it.

A BEFORE INSERT trigger would fill the row of an upsert before it is known whether it is inserted,
and the application would copy the filled values from EXCLUDED into another row.

What touches rows may fail, so that it is a subtransaction, with a number of its own once it
writes. More than 64 of these in one transaction slow down everybody's snapshots (procarray.c,
PGPROC_MAX_CACHED_SUBXIDS), so that all rows of a statement share one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.triggers import (
    WAIT_SECONDS,
    Place,
    Script,
    Triggers,
    changing_action,
    execute,
    label_of,
    literal,
    mentions,
)
from backfill.errors import RunFailed, TableBusy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.targets import Target

LABEL = "backfill.label"
"""The setting by which a transaction of ours tells whose walk it belongs to."""
_EVENTS = {"UPDATE": "BEFORE", "INSERT": "AFTER"}
_ON_PARTITIONED = (13,)
"""The first version with BEFORE triggers on partitioned tables (its release notes)."""
_INSERTED = "_backfill_inserted"
_WAIT = f"{round(WAIT_SECONDS * 1000)}ms"


class PostgreSQLTriggers(Triggers):
    """What they cannot compute stays pending, for the walk to report. Their functions can be
    replaced without a lock on the table."""

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

    def acted_on(self, connection: sa.Connection, table: sa.Table) -> dict[str, str]:
        found = {}
        for key in sa.inspect(connection).get_foreign_keys(table.name, table.schema):
            options = key["options"]
            action = changing_action(
                on_delete=options.get("ondelete"), on_update=options.get("onupdate")
            )
            if action is not None:
                found.update(dict.fromkeys(key["constrained_columns"], action))
        return found

    def refusing(self, connection: sa.Connection, target: Target) -> set[str]:
        """Asked for their text: an expression, a predicate or an exclusion may hold a column."""
        table = {"table": self.preparer.format_table(target.table)}
        definitions = connection.execute(_REFUSING, table).scalars().all()
        return {
            column.name
            for column in target.table.c
            if any(mentions(definition, column.name) for definition in definitions)
        }

    def advice(self, connection: sa.Connection, target: Target) -> list[str]:
        names = ", ".join(map(repr, target.assignments))
        touched = list(target.assignments)[:1]
        return [
            f"INSERT … RETURNING gives {names} as the application wrote them, and an xmin that is"
            " not the row's any more (where a model takes it for the version of a row, leave `sync`"
            " out): the triggers fill a row after it is inserted.",
            "each INSERT with rows to fill takes a subtransaction, on a partitioned table each such"
            " row; more than 64 in one transaction slow down snapshots everywhere.",
            *(
                f"trigger {name!r} fires after those of `sync`, by its name: they do not see what"
                " it changes in a row."
                for name in self.dialect.upkeep.fired(connection, target.table, [])
                if name >= "zz"
            ),
            *(
                f"trigger {name!r} of {target.table.fullname!r} fires once more at an INSERT, when"
                " the triggers of `sync` fill the new row by an UPDATE. See that this does no harm."
                for name in self.dialect.upkeep.fired(connection, target.table, touched)
            ),
        ]

    def ddl(self, connection: sa.Connection, target: Target, place: Place) -> list[str]:
        facts = self._facts(connection, target, place)
        place = replace(place, schema=facts.nspname)
        return [
            statement
            for event, body in self._bodies(target, place, facts).items()
            for statement in (
                self._function(connection, place, event, body),
                self._closed(place, event),
                self._trigger(place, event, facts),
            )
        ]

    def find(self, connection: sa.Connection, place: Place) -> Place | None:
        row = connection.execute(_FOUND, _names(place)).first()
        if row is None:
            return None
        return replace(place, schema=row.nspname)

    def installed(self, connection: sa.Connection) -> list[tuple[str, str]]:
        return [(row.table_name, row.name) for row in connection.execute(_INSTALLED)]

    def named(self, connection: sa.Connection, name: str, backfill: str) -> list[Place]:
        names = {"functions": [f"{name}_{event.lower()}" for event in _EVENTS]}
        rows = connection.execute(_NAMED, names).all()
        in_sight = [row for row in rows if row.is_visible]
        schemas = sorted({row.schema for row in rows})
        if not in_sight and len(schemas) > 1:
            raise RunFailed(
                f"{backfill}: there are triggers of this name in the schemas {', '.join(schemas)},"
                " and nothing says whose they are. Set the search_path to the one that is meant."
            )
        return [Place(row.schema, row.table, name, backfill) for row in in_sight or rows]

    def install(self, connection: sa.Connection, target: Target, place: Place) -> bool:
        # Two that replace one function at once would get "tuple concurrently updated".
        connection.execute(sa.select(sa.func.set_config("lock_timeout", _WAIT, sa.true())))
        connection.execute(_ONE_AT_A_TIME, {"name": place.name})
        facts = self._facts(connection, target, place)
        place = replace(place, schema=facts.nspname)
        found = {row.name: row for row in connection.execute(_FOUND, _names(place))}
        is_changed = False
        for event, body in self._bodies(target, place, facts).items():
            row = found.get(_function_name(place, event))
            has_trigger = row is not None and row.is_of_rows is _is_of_rows(event, facts)
            if row is not None and has_trigger and row.prosrc == body and not row.is_open:
                continue
            self._check_rights(facts, place)
            if row is not None and not has_trigger:
                execute(connection, self._drop(place, event))
            execute(connection, self._function(connection, place, event, body))
            execute(connection, self._closed(place, event))
            if not has_trigger:
                execute(connection, self._trigger(place, event, facts))
            is_changed = True
        return is_changed

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
                statements="\n    ".join(f"{self._drop(found, event)};" for event in _EVENTS),
            ),
        )
        if self.find(connection, place) is not None:
            raise TableBusy(place.table)

    def _drop(self, place: Place, event: str) -> str:
        """A trigger goes with its function, whatever the table is called by now."""
        function = self.quoted(_function_name(place, event), place.schema)
        return f"DROP FUNCTION IF EXISTS {function}() CASCADE"

    def _bodies(self, target: Target, place: Place, facts: sa.Row[Any]) -> dict[str, str]:
        script = _Script(target, self.table(place))
        touch = _touch if _is_of_rows("INSERT", facts) else _touch_all
        return {"UPDATE": _fill(script), "INSERT": touch(script)}

    def _function(self, connection: sa.Connection, place: Place, event: str, body: str) -> str:
        """Return the DDL of a function.

        Whoever may insert need not be allowed to update, nor to read other tables that the values
        look at, so that it has its owner's rights, as the walk has them; with such, temporary
        tables must not come before others in its path.
        """
        name = self.quoted(_function_name(place, event), place.schema)
        path = connection.execute(_PATH).scalar_one()
        return (
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger"
            f" LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path} AS {dollar_quoted(body)}"
        )

    def _closed(self, place: Place, event: str) -> str:
        """Nobody needs a right to fire a trigger; who had one could make another trigger with the
        function, on a table whose types call code of theirs, with our rights."""
        function = self.quoted(_function_name(place, event), place.schema)
        return f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC"

    def _trigger(self, place: Place, event: str, facts: sa.Row[Any]) -> str:
        """Return the DDL of a trigger. Such fire in the order of their names: after the table's
        own, after those of backfills that this one may depend on, since they came before, and
        before those that look at what this one writes, where it comes again."""
        name = f"zz{facts.number:02}_{_function_name(place, event)}"
        all_rows = f"REFERENCING NEW TABLE AS {_INSERTED} FOR EACH STATEMENT"
        return (
            f"CREATE TRIGGER {self.quoted(name)} {_EVENTS[event]} {event} ON {self.table(place)}"
            f" {'FOR EACH ROW' if _is_of_rows(event, facts) else all_rows}"
            f" WHEN (current_setting('{LABEL}', true)"
            f" IS DISTINCT FROM {literal(label_of(place.backfill))})"
            f" EXECUTE PROCEDURE {self.quoted(_function_name(place, event), place.schema)}()"
        )

    def _facts(self, connection: sa.Connection, target: Target, place: Place) -> sa.Row[Any]:
        """Return the table's own schema, where the functions belong too, what we may there, and
        what triggers the table takes."""
        written = "|".join(map(re.escape, target.assignments))
        given = {
            "table": self.table(place),
            "written": rf"(?i)\m(?:{written})\M",
            "ours": [_function_name(place, event) for event in _EVENTS],
        }
        return connection.execute(_FACTS, given).one()

    def _check_rights(self, facts: sa.Row[Any], place: Place) -> None:
        """Refuse what could be made and not removed: only a table's owner drops a trigger."""
        if not facts.is_owner:
            raise RunFailed(
                f"{place.backfill}: `sync` makes a trigger on {place.table!r}, and only its owner"
                f" can remove one. Run as {facts.owner!r}, or GRANT {self.quoted(facts.owner)} TO"
                " this user."
            )
        if not facts.may_create:
            schema = facts.nspname
            raise RunFailed(
                f"{place.backfill}: `sync` makes a function in the schema {schema!r}, and this"
                f" user may not: GRANT CREATE ON SCHEMA {self.quoted(schema)} TO this user."
            )


class _Script(Script):
    """PL/pgSQL keeps its plans for a session."""

    def __init__(self, target: Target, table: str) -> None:
        super().__init__(target)
        self.table = table
        self.is_tied = f"CAST({literal(table)} AS regclass) IS NOT NULL"
        """Always true, and ties a plan to the table: after an ALTER of a column's type it would
        go on with the old one, and fail (PostgreSQL's setrefs.c, "check for regclass Consts")."""

    def row_of(self, name: str) -> str:
        """Return a SELECT of OLD's or NEW's columns.

        OFFSET 0 keeps the planner from computing with constants before it has looked at `where`.
        """
        return f"SELECT {name}.* WHERE {self.is_tied} OFFSET 0"


def _function_name(place: Place, event: str) -> str:
    return f"{place.name}_{event.lower()}"


def _is_of_rows(event: str, facts: sa.Row[Any]) -> bool:
    return event == "UPDATE" or facts.is_partition


def _names(place: Place) -> dict[str, Any]:
    return {
        "functions": [_function_name(place, event) for event in _EVENTS],
        "schema": place.schema,
        "table": place.table,
    }


def _head(script: _Script) -> list[str]:
    return [
        "",
        "#variable_conflict use_column",
        f"-- Of backfill {script.target.declaration.name}: goes with its gate, or with"
        " `backfill cancel`.",
    ]


def _touch(script: _Script) -> str:
    """Let the other trigger fill a row that is pending, now that it is known to be inserted.

    For partitions: into one of them go rows that are inserted into the whole table, and no
    trigger FOR EACH STATEMENT of its own sees them.
    """
    return "\n".join(
        [
            *_head(script),
            "BEGIN",
            *_touch_if_pending(script, script.row_of("NEW"), "NEW"),
            "  RETURN NULL;",
            "EXCEPTION WHEN OTHERS THEN",
            "  RETURN NULL;  -- stays pending; the application's statement goes on",
            "END ",
        ]
    )


def _touch_all(script: _Script) -> str:
    """Likewise for all rows of a statement; if one of them fails, for one at a time.

    OFFSET 0 keeps the planner from joining all rows with what `where` asks for: its plan is kept,
    and would serve a statement of one row as it served one of a million.
    """
    key = ", ".join(f"i.{script.quote(name)}" for name in script.target.key.names)
    one = f"SELECT t.* FROM {script.table} AS t WHERE {_is_at(script, '_backfill_row')} OFFSET 0"
    return "\n".join(
        [
            *_head(script),
            "DECLARE",
            "  _backfill_row record;",
            "BEGIN",
            f"  FOR _backfill_row IN SELECT {key} FROM {_INSERTED} AS i, LATERAL (",
            script.over(script.row_of("i"), [], pending=True),
            "    OFFSET 0) AS pending",
            "  LOOP",
            f"    {_touching(script, '_backfill_row')}",
            "  END LOOP;",
            "  RETURN NULL;",
            "EXCEPTION WHEN OTHERS THEN",
            "  BEGIN",
            f"    FOR _backfill_row IN SELECT {key} FROM {_INSERTED} AS i LOOP",
            "      BEGIN",
            *_touch_if_pending(script, one, "_backfill_row"),
            "      EXCEPTION WHEN OTHERS THEN",
            "        NULL;  -- stays pending; the application's statement goes on",
            "      END;",
            "    END LOOP;",
            "  EXCEPTION WHEN OTHERS THEN",
            "    NULL;  -- likewise",
            "  END;",
            "  RETURN NULL;",
            "END ",
        ]
    )


def _touch_if_pending(script: _Script, row: str, record: str) -> Iterator[str]:
    yield f"PERFORM 1 FROM ({script.over(row, [], pending=True)}) AS pending;"
    yield "  IF FOUND THEN"
    yield f"    {_touching(script, record)}"
    yield "  END IF;"


def _touching(script: _Script, record: str) -> str:
    column, here = script.quote(script.columns[0]), _is_at(script, record)
    return f"UPDATE {script.table} AS t SET {column} = t.{column} WHERE {here};"


def _is_at(script: _Script, record: str) -> str:
    names = map(script.quote, script.target.key.names)
    return " AND ".join(f"t.{name} = {record}.{name}" for name in names)


def _fill(script: _Script) -> str:
    """Compute a row that is pending, and what follows its sources.

    Values go straight into records: a variable would keep the type that it had first.
    """
    needed = [f"_backfill_now.{script.quote(name)}" for name in script.required(script.columns)]
    fits = " AND ".join([script.is_tied, *(f"{value} IS NOT NULL" for value in needed)])
    return "\n".join(
        [
            *_head(script),
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
            *_revoke(script),
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
    yield "  ELSE"
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
        f"      CASE WHEN {_is_ours(script, name)} AND ({_is_written(script)}){needed}"
        f" THEN _backfill_now.{column} ELSE NEW.{column} END"
    )


def _is_ours(script: _Script, name: str, new: str = "NEW") -> str:
    column = script.quote(name)
    return (
        f"{new}.{column}::text IS NOT DISTINCT FROM OLD.{column}::text"
        f" AND OLD.{column}::text IS NOT DISTINCT FROM _backfill_was.{column}::text"
    )


def _is_written(script: _Script) -> str:
    """Say that the row has a value which is what it gives: where all are NULL, as they are in rows
    that `where` leaves out, nobody has written them."""
    columns = map(script.quote, script.following)
    return " OR ".join(f"OLD.{c}::text = _backfill_was.{c}::text" for c in columns)


def _revoke(script: _Script) -> Iterator[str]:
    """Where values cannot follow, none are better than old ones, if the row is pending then; and
    if all are ours, since the walk would write all of them."""
    if not script.revocable:
        return
    columns = script.columns
    ours = [f"({_is_ours(script, name, '_backfill_given')})" for name in columns]
    yield "  BEGIN"
    yield "    _backfill_was := OLD;"
    yield script.over(script.row_of("OLD"), columns, pending=False)
    yield f"    INTO {_fields('_backfill_was', script, columns)};"
    yield "    _backfill_now := _backfill_given;"
    for name in script.revocable:
        yield f"    _backfill_now.{script.quote(name)} := NULL;"
    pending = script.over(script.row_of("_backfill_now"), [], pending=True)
    yield f"    PERFORM 1 FROM ({pending}) AS pending"
    yield f"    WHERE {' AND '.join([script.is_tied, *ours])};"
    yield "    IF FOUND THEN"
    yield "      RETURN _backfill_now;"
    yield "    END IF;"
    yield "  EXCEPTION WHEN OTHERS THEN"
    yield "    NULL;"
    yield "  END;"


def _fields(record: str, script: _Script, columns: Sequence[str]) -> str:
    return ", ".join(f"{record}.{script.quote(name)}" for name in columns)


def dollar_quoted(body: str) -> str:
    """Return the body of a function, or of DO, as an SQL string that needs no escapes."""
    tag = "$backfill$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"{tag}{body}{tag}"


def _plain(path: str) -> str:
    """Return SQL that compares search paths however they were written."""
    return f"translate(lower({path}), ' \"', '')"


_FOUND = sa.text(
    "SELECT proname AS name, nspname, prosrc, (SELECT tgtype & 1 = 1 FROM pg_trigger JOIN pg_class"
    " AS c ON c.oid = tgrelid WHERE tgfoid = p.oid AND relname = :table LIMIT 1)"
    " AS is_of_rows, has_function_privilege('public', p.oid, 'EXECUTE') AS is_open"
    " FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace"
    " WHERE proname IN :functions AND pronargs = 0"
    " AND prorettype = CAST('trigger' AS regtype)"
    " AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_function_is_visible(p.oid)"
    " ELSE nspname = CAST(:schema AS text) END"
).bindparams(sa.bindparam("functions", expanding=True))
_GIVEN_PATH = "nullif(nullif(current_setting('search_path'), ''), '\"\"')"
_FUNCTION_PATH = f"concat_ws(', ', {_GIVEN_PATH}, 'pg_temp')"
_OURS = f"'search_path=' || {_FUNCTION_PATH}"
"""What a function keeps that was made with this search path. Out of sight only such a one may be
taken for ours: with a schema for each tenant all have functions of one name."""
_NAMED = sa.text(
    "SELECT DISTINCT nspname AS schema, coalesce(relname, proname) AS table,"
    " pg_function_is_visible(p.oid) AS is_visible"
    " FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace"
    " LEFT JOIN (pg_trigger JOIN pg_class AS c ON c.oid = tgrelid AND NOT relispartition)"
    " ON tgfoid = p.oid WHERE proname IN :functions AND pronargs = 0"
    " AND prorettype = CAST('trigger' AS regtype) AND (pg_function_is_visible(p.oid)"
    " OR pg_has_role(proowner, 'USAGE') AND EXISTS (SELECT FROM unnest(proconfig) AS said"
    f" WHERE {_plain('said')} = {_plain(_OURS)}))"
).bindparams(sa.bindparam("functions", expanding=True))
_PATH = sa.text(f"SELECT {_FUNCTION_PATH}")
_KIND = sa.text("SELECT relkind, relhassubclass FROM pg_class WHERE oid = CAST(:table AS regclass)")
_REFUSING = sa.text(
    "SELECT regexp_replace(pg_get_indexdef(indexrelid),"
    " '^.*? USING | INCLUDE [(][^)]*[)]', '', 'g') FROM pg_index"
    " WHERE indrelid = CAST(:table AS regclass) AND (indisunique OR indisexclusion)"
)
_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))")
_FACTS = sa.text(
    "WITH placed AS (SELECT prosrc, proname,"
    " CAST(substring(tgname FROM '^zz([0-9]{1,4})_backfill_sync_') AS int) AS n"
    " FROM pg_trigger JOIN pg_proc AS p ON p.oid = tgfoid WHERE tgrelid = CAST(:table AS regclass)"
    " AND tgname ~ '^zz[0-9]{1,4}_backfill_sync_')"
    " SELECT nspname, rolname AS owner, pg_has_role(relowner, 'USAGE') AS is_owner,"
    " has_schema_privilege(n.oid, 'CREATE') AS may_create,"
    " relkind = 'p' OR relispartition AS is_partition,"
    " coalesce((SELECT min(n) - 1 FROM placed WHERE prosrc ~ :written AND proname NOT IN :ours),"
    " (SELECT max(n) + 1 FROM placed), 50) AS number"
    " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
    " JOIN pg_roles AS r ON r.oid = relowner WHERE c.oid = CAST(:table AS regclass)"
).bindparams(sa.bindparam("ours", expanding=True))
_DROP = """DO $backfill$
DECLARE
  _was text := current_setting('lock_timeout');
BEGIN
  BEGIN
    PERFORM set_config('lock_timeout', '{wait}', true);
    {statements}
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
