"""MariaDB: a BEFORE trigger for INSERT and one for UPDATE.

An AFTER trigger may not write its own table, and a BEFORE INSERT does not know whether its row
will be inserted: to look for the key locks the gap around it (seen: 10.11), so that inserts of the
application would deadlock. So the one leaves a note for the other, which tells what an upsert has
copied from VALUES() by its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backfill.targets import Target

LABEL = "@backfill_label"
"""The variable by which a session of ours tells whose walk it belongs to."""
_STATEMENT = "UNIX_TIMESTAMP(NOW(6))"
"""Tells statements apart: it stands still in one, its triggers included."""
_EVENTS = ("INSERT", "UPDATE")
# A trigger needs the table's metadata lock. `lock_wait_timeout` counts in seconds, and 0 never
# gets it from writers that never stop (tried: 0 of 20, against 20 of 20 within 0.05 s).
_SOON = f"SET STATEMENT max_statement_time={WAIT_SECONDS} FOR "


class MariaDBTriggers(Triggers):
    """What cannot be computed is handled and stays pending, for the walk to report."""

    privileges: ClassVar[str] = (
        "GRANT TRIGGER on the table to this user; where the binary log is on, also SET GLOBAL"
        " log_bin_trust_function_creators = 1 (error 1419)"
    )

    def unfit(self, connection: sa.Connection, target: Target) -> str | None:
        """Refuse what would harm the application, too: its REPLACE, ON DUPLICATE KEY UPDATE and
        INSERT IGNORE look at what the triggers have made of a row."""
        for column in sorted(self.refusing(connection, target).intersection(target.assignments)):
            return (
                f"{column!r} is unique, and a REPLACE, ON DUPLICATE KEY UPDATE or INSERT IGNORE of"
                " the application would, through the triggers, meet the row that has the value"
                " already, and delete it, change it or leave out its own"
            )
        script = Script(target)
        for name in filter(script.mentions, _ambiguous(target.table)):
            return (
                f"`where` or `values` have the word {name}, which in a trigger stands for several"
                " things (NEW and OLD are the row, and a table's name its columns)"
            )
        if script.mentions("select"):
            return (
                "`where` or `values` have a subquery, in which this database would take the"
                " trigger's variables for columns"
            )
        return None

    def refusing(self, connection: sa.Connection, target: Target) -> set[str]:
        """Asked in SQL: SQLAlchemy would read all columns, and warn of types that it lacks."""
        return set(connection.execute(_UNIQUE, _names(target.table)).scalars())

    def unseen(self, connection: sa.Connection, table: sa.Table) -> dict[str, str]:
        found = {}
        for row in connection.execute(_FOREIGN_KEYS, _names(table)):
            action = changing_action(on_delete=row.on_delete, on_update=row.on_update)
            if action is not None:
                found[row.name] = action
        return found

    def is_unknown(self, column: sa.Column[Any]) -> bool:
        return column.computed is not None or column.autoincrement is True

    def advice(self, connection: sa.Connection, target: Target) -> list[str]:
        user = connection.execute(sa.text("SELECT CURRENT_USER()")).scalar_one()
        names = ", ".join(f"VALUES({name})" for name in target.assignments)
        return [
            f"the triggers act as {user!r}: who drops that user, or its rights on this table,"
            " before them fails every INSERT and UPDATE of the application (error 1449).",
            f"ON DUPLICATE KEY UPDATE gives for {names} what the triggers have computed. A copy of"
            " all of them is recognised; where the application computes with one, or copies some of"
            " several, leave `sync` out.",
        ]

    def ddl(self, connection: sa.Connection, target: Target, place: Place) -> list[str]:
        bodies = self._wanted(connection, target, place)
        return [self._trigger(place, event, body) for event, body in bodies.items()]

    def find(self, connection: sa.Connection, place: Place) -> Place | None:
        bodies = self._bodies(connection, place)
        return place if bodies else None

    def installed(self, connection: sa.Connection) -> list[tuple[str, str]]:
        return [(row.table_name, row.name) for row in connection.execute(_INSTALLED)]

    def named(self, connection: sa.Connection, name: str, backfill: str) -> list[Place]:
        names = {"names": [f"{name}_{event.lower()}" for event in _EVENTS]}
        tables = connection.execute(_NAMED, names).scalars()
        return [Place(None, table, name, backfill) for table in tables]

    def install(self, connection: sa.Connection, target: Target, place: Place) -> bool:
        found = self._bodies(connection, place)
        is_changed = False
        for event, body in self._wanted(connection, target, place).items():
            if found.get(_name(place, event)) != body:
                execute(connection, _SOON + self._trigger(place, event, body))
                is_changed = True
        return is_changed

    def remove(self, connection: sa.Connection, place: Place) -> None:
        for name in self._bodies(connection, place):
            trigger = self.quoted(name, place.schema)
            execute(connection, f"{_SOON}DROP TRIGGER IF EXISTS {trigger}")

    def _wanted(self, connection: sa.Connection, target: Target, place: Place) -> dict[str, str]:
        names = {"schema": place.schema, "table": place.table}
        types = {row.name: row.type for row in connection.execute(_TYPES, names)}
        script = _Script(target)
        return {event: _Body(script, place, event, types).text() for event in _EVENTS}

    def _bodies(self, connection: sa.Connection, place: Place) -> dict[str, str]:
        parameters = {"schema": place.schema, "names": [_name(place, event) for event in _EVENTS]}
        return {row.name: row.body for row in connection.execute(_FOUND, parameters)}

    def _trigger(self, place: Place, event: str, body: str) -> str:
        name = self.quoted(_name(place, event), place.schema)
        return (
            f"CREATE OR REPLACE TRIGGER {name} BEFORE {event} ON {self.table(place)}"
            f" FOR EACH ROW {body}"
        )


def _ambiguous(table: sa.Table) -> Iterator[str]:
    """Give the names of which a trigger's variable would hide something else."""
    columns = {column.name.lower() for column in table.c}
    yield from columns & {"new", "old"}
    if table.name.lower() in {"new", "old", *columns}:
        yield table.name


class _Script(Script):
    """Quotes every name: `password` or `names` mean something else after DECLARE and SET."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.quote = self._dialect.identifier_preparer.quote_identifier


def _name(place: Place, event: str) -> str:
    return f"{place.name}_{event.lower()}"


class _Body:
    """The body of one trigger.

    Its expressions are computed over variables with the names of the columns, and a ROW with the
    name of the table. A derived table of NEW's or OLD's columns would do the same on paper; with a
    TEXT column it ends the server (10.11.19: signal 11 in Create_tmp_table::finalize).
    """

    def __init__(self, script: Script, place: Place, event: str, types: Mapping[str, str]) -> None:
        self.script = script
        self.place = place
        self.is_update = event == "UPDATE"
        self.types = types
        target = script.target
        assert target.pending is not None
        self.values = {name: script.bare(value) for name, value in target.assignments.items()}
        self.pending = script.bare(target.pending)
        texts = [self.pending, *self.values.values()]
        self.used = [c.name for c in target.table.c if any(mentions(t, c.name) for t in texts)]
        self.has_row = any(mentions(text, target.table.name) for text in texts)

    def text(self) -> str:
        return "\n".join(
            [
                f"IF NOT ({LABEL} <=> {literal(label_of(self.place.backfill))}) THEN",
                "BEGIN",
                *self._variables(),
                "  DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN",
                *(self._revoke() if self.is_update else ()),
                "  END;",
                *(() if self.is_update else self._forget()),
                *self._take("NEW"),
                *(self._take_back() if self.is_update else ()),
                f"  IF {self.pending} THEN",
                *self._fill(),
                *(self._follow() if self.is_update else ()),
                "  END IF;",
                "END;",
                "END IF",
            ]
        )

    def _variables(self) -> Iterator[str]:
        """Of the columns' own types, so that a value that does not fit fails before it is assigned.

        Spelled out: TYPE OF opens the table again for every row (measured: 1.5 us a variable).
        """
        quote = self.script.quote
        for name in self.used:
            yield f"  DECLARE {quote(name)} {self.types[name]};"
        if self.has_row and self.used:
            fields = ", ".join(f"{quote(name)} {self.types[name]}" for name in self.used)
            yield f"  DECLARE {quote(self.script.target.table.name)} ROW ({fields});"
        for kind in ("now", "was") if self.is_update else ("now",):
            for i, name in enumerate(self.values):
                yield f"  DECLARE _backfill_{kind}_{i} {self.types[name]};"
        if self.is_update:
            yield "  DECLARE _backfill_is_whole BOOL DEFAULT TRUE;"
            for i in range(len(self.values)):
                yield f"  DECLARE _backfill_copied_{i} BOOL DEFAULT FALSE;"

    def _take(self, row: str) -> Iterator[str]:
        for name in self.used:
            yield from self._set(name, f"{row}.{self.script.quote(name)}")

    def _set(self, name: str, value: str) -> Iterator[str]:
        quote = self.script.quote
        yield f"  SET {quote(name)} = {value};"
        if self.has_row:
            yield f"  SET {quote(self.script.target.table.name)}.{quote(name)} = {value};"

    def _fill(self) -> Iterator[str]:
        names = list(self.values)
        yield from self._compute("now", names)
        needed = [
            f"_backfill_now_{names.index(n)} IS NOT NULL" for n in self.script.required(names)
        ]
        yield f"    IF {' AND '.join(needed) or 'TRUE'} THEN"
        for i, name in enumerate(names):
            column = f"NEW.{self.script.quote(name)}"
            if not self.is_update:
                yield f"      SET {self._note(f'given_{i}')} = {column};"
            yield f"      SET {column} = _backfill_now_{i};"
            if not self.is_update:
                yield f"      SET {self._note(f'filled_{i}')} = BINARY {column};"
        if not self.is_update:
            yield f"      SET {self._note('at')} = {_STATEMENT};"
        yield "    END IF;"

    def _forget(self) -> Iterator[str]:
        yield f"  SET {self._note('at')} = NULL;"

    def _take_back(self) -> Iterator[str]:
        """Give an upsert what it would have copied from VALUES() without us: a value that was not
        here before, and is just what we have filled in for the row that was not inserted then.

        Where the row is not pending with that, and has all that we have filled in, it stays: as far
        as can be told, all of it was copied, and belongs together.
        """
        yield f"  IF {self._note('at')} <=> {_STATEMENT} THEN"
        yield from self._forget()
        for i, name in enumerate(self.values):
            column, filled = self.script.quote(name), self._note(f"filled_{i}")
            yield f"    IF NOT BINARY NEW.{column} <=> {filled} THEN"
            yield "      SET _backfill_is_whole = FALSE;"
            yield f"    ELSEIF NOT BINARY OLD.{column} <=> {filled} THEN"
            yield f"      SET _backfill_copied_{i} = TRUE;"
            if name in self.used:
                yield from self._set(name, self._note(f"given_{i}"))
            yield "    END IF;"
        yield f"    IF NOT _backfill_is_whole OR ({self.pending}) THEN"
        for i, name in enumerate(self.values):
            yield f"      IF _backfill_copied_{i} THEN"
            yield f"        SET NEW.{self.script.quote(name)} = {self._note(f'given_{i}')};"
            yield "      END IF;"
        yield "    END IF;"
        yield "  END IF;"

    def _note(self, what: str) -> str:
        """Return the variable by which the trigger for INSERT tells the one for UPDATE."""
        return f"@`{self.place.name}_{what}`"

    def _follow(self) -> Iterator[str]:
        """A value that the statement left alone, and that is what the old row gives, is computed
        anew. Compared as bytes: a collation may be blind to case."""
        following = self.script.following
        if not following:
            return
        yield "  ELSE"
        yield from self._compute("now", following)
        yield from self._take("OLD")
        yield from self._compute("was", following)
        for name in following:
            i = list(self.values).index(name)
            needed = f" AND _backfill_now_{i} IS NOT NULL" if self.script.required([name]) else ""
            yield f"    IF {self._is_ours(name)} AND ({self._is_written()}){needed} THEN"
            yield f"      SET NEW.{self.script.quote(name)} = _backfill_now_{i};"
            yield "    END IF;"

    def _is_ours(self, name: str) -> str:
        i, column = list(self.values).index(name), self.script.quote(name)
        return (
            f"BINARY NEW.{column} <=> BINARY OLD.{column}"
            f" AND BINARY OLD.{column} <=> BINARY _backfill_was_{i}"
        )

    def _is_written(self) -> str:
        """Say that the row has a value which is what it gives: where all are NULL, as they are in
        rows that `where` leaves out, nobody has written them."""
        names, quote = list(self.values), self.script.quote
        return " OR ".join(
            f"BINARY OLD.{quote(name)} = BINARY _backfill_was_{names.index(name)}"
            for name in self.script.following
        )

    def _revoke(self) -> Iterator[str]:
        """Where values cannot follow, none are better than old ones, if the row is pending then;
        and if all are ours, since the walk would write all of them."""
        revocable, columns = self.script.revocable, list(self.values)
        if not revocable:
            return
        yield "  DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN END;"
        yield from self._take("OLD")
        yield from self._compute("was", columns)
        yield from self._take("NEW")
        for name in revocable:
            if name in self.used:
                yield from self._set(name, "NULL")
        yield f"    IF {' AND '.join(map(self._is_ours, columns))} AND ({self.pending}) THEN"
        for name in revocable:
            yield f"      SET NEW.{self.script.quote(name)} = NULL;"
        yield "    END IF;"

    def _compute(self, kind: str, columns: Sequence[str]) -> Iterator[str]:
        for i, name in enumerate(self.values):
            if name in columns:
                yield f"    SET _backfill_{kind}_{i} = {self.values[name]};"


_TYPES = sa.text(
    "SELECT column_name AS name, CONCAT(column_type, COALESCE(CONCAT(' CHARACTER SET ',"
    " character_set_name, ' COLLATE ', collation_name), '')) AS type"
    " FROM information_schema.columns"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
)
_NAMED = sa.text(
    "SELECT DISTINCT event_object_table FROM information_schema.triggers"
    " WHERE trigger_schema = DATABASE() AND trigger_name IN :names"
).bindparams(sa.bindparam("names", expanding=True))
_FOUND = sa.text(
    "SELECT trigger_name AS name, action_statement AS body FROM information_schema.triggers"
    " WHERE trigger_schema = COALESCE(:schema, DATABASE()) AND trigger_name IN :names"
).bindparams(sa.bindparam("names", expanding=True))

_INSTALLED = sa.text(
    "SELECT event_object_table AS table_name, trigger_name AS name FROM information_schema.triggers"
    " WHERE trigger_schema = DATABASE() AND trigger_name LIKE 'backfill|_sync|_%' ESCAPE '|'"
    " ORDER BY 1, 2"
)


def _names(table: sa.Table) -> dict[str, str | None]:
    return {"schema": table.schema, "table": table.name}


_UNIQUE = sa.text(
    "SELECT DISTINCT column_name FROM information_schema.statistics"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :table"
    " AND non_unique = 0 AND index_name <> 'PRIMARY'"
)
_FOREIGN_KEYS = sa.text(
    "SELECT k.column_name AS name, r.delete_rule AS on_delete, r.update_rule AS on_update"
    " FROM information_schema.referential_constraints AS r"
    " JOIN information_schema.key_column_usage AS k ON k.constraint_schema = r.constraint_schema"
    " AND k.constraint_name = r.constraint_name AND k.table_name = r.table_name"
    " WHERE k.table_schema = COALESCE(:schema, DATABASE()) AND k.table_name = :table"
)
