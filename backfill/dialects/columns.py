"""How a column of a live table becomes NOT NULL, or takes another one's place, in short locks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.sql.compiler import IdentifierPreparer


@dataclass(frozen=True, slots=True)
class Place:
    """A column, and how this database quotes names."""

    table: str
    column: str
    schema: str | None
    preparer: IdentifierPreparer

    def sql(self) -> tuple[str, str]:
        """Return table and column as SQL."""
        table = self.preparer.format_table(sa.table(self.table, schema=self.schema))
        return table, self.preparer.quote(self.column)


class Step(NamedTuple):
    """Statements of one short transaction."""

    statements: Sequence[str]
    is_brief: bool = True
    """It needs a lock on the whole table for a moment; else it takes long, and is in nobody's
    way."""


class Columns:
    """What a database can do better than a plain ALTER TABLE; this one cannot."""

    needs_savepoints = False
    """A statement that fails ends the transaction."""

    def not_null(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the steps to NOT NULL, each to be committed; None: there is no better way.

        Without a connection it is for a script.
        """
        return None

    def is_volatile(self, connection: sa.Connection, default: str) -> bool:
        """Whether a server default is another one for each row, so that adding a column with it
        rewrites the table under a lock."""
        return False

    def refusal(self, connection: sa.Connection, place: Place) -> str | None:
        """Say why a plain ALTER TABLE would do harm; None if it would not."""
        return None

    def nullable(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the steps back from NOT NULL; likewise."""
        return None

    def replace(self, place: Place, replacements: Mapping[str, str]) -> list[str]:
        """Return what drops columns and gives their names to others."""
        return [f"ALTER TABLE {place.sql()[0]} {one}" for one in exchange(place, replacements)]

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """Return what keeps everybody off the table; None if nothing does, or is needed."""
        return None

    def unlock(self) -> list[str]:
        """Return what ends that before the transaction does."""
        return []

    def converted(self, value: str, kind: str) -> str:
        """Return SQL that makes a value one of another type; most databases do when it is
        written."""
        return value

    def lost(self, connection: sa.Connection, place: Place) -> list[str]:
        """Return the statements that make again what a plain ALTER TABLE loses."""
        return []

    def undo(self, place: Place) -> Step | None:
        """Return what takes the steps back, after one of them was refused."""
        return None

    def briefly(self, step: Step, seconds: float) -> list[str]:
        """Return a step's SQL, which gives up when a lock is not to be had in so many seconds."""
        return list(step.statements)


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

    def refusal(self, connection: sa.Connection, place: Place) -> str | None:
        """Dropping the old table deletes its rows, and ON DELETE CASCADE follows."""
        if not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
            return None
        inspector = sa.inspect(connection)
        for table in inspector.get_table_names(place.schema):
            keys = inspector.get_foreign_keys(table, place.schema)
            if table != place.table and any(k["referred_table"] == place.table for k in keys):
                return (
                    f"SQLite copies {place.table!r} and drops the old one; {table!r} refers to it,"
                    " and with PRAGMA foreign_keys its rows might be deleted too. Switch that"
                    " off in env.py"
                )
        return None


class PostgreSQLColumns(Columns):
    """By a CHECK that is validated beside reading and writing (SET NOT NULL uses it since 12)."""

    needs_savepoints = True

    def is_volatile(self, connection: sa.Connection, default: str) -> bool:
        """now() is the same for a statement, and stored once since PostgreSQL 11."""
        query = "SELECT count(*) FROM pg_proc WHERE provolatile = 'v' AND proname = ANY (:names)"
        names = [name.lower() for name in re.findall(r"(\w+)\s*\(", default)]
        return bool(connection.scalar(sa.text(query), {"names": names}))

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


class MySQLColumns(Columns):
    """By rebuilding the table beside reading and writing, with the column as the server has it."""

    def not_null(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        return self._modified(connection, place, "NOT NULL")

    def nullable(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the same way back."""
        return self._modified(connection, place, "NULL")

    def _modified(
        self, connection: sa.Connection | None, place: Place, how: str
    ) -> list[Step] | None:
        if connection is None:
            return None
        table, _ = place.sql()
        created = str(connection.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1])
        definition = decided(column_of(created, place), how)
        aside = "ALGORITHM=INPLACE, LOCK=NONE"
        return [Step([f"ALTER TABLE {table} MODIFY COLUMN {definition}, {aside}"])]

    def replace(self, place: Place, replacements: Mapping[str, str]) -> list[str]:
        """Return one statement, since each is seen by itself."""
        return [f"ALTER TABLE {place.sql()[0]} {', '.join(exchange(place, replacements))}"]

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """LOCK TABLES also lets nobody in between the statements."""
        return Step([f"LOCK TABLES {place.sql()[0]} WRITE"])

    def unlock(self) -> list[str]:
        """Our own tables, and Alembic's, can be reached after it only."""
        return ["UNLOCK TABLES"]


class MariaDBColumns(MySQLColumns):
    """The same; its settings can be those of one statement."""

    def briefly(self, step: Step, seconds: float) -> list[str]:
        """In place only in strict mode, which refuses rows with NULL; else they would become 0."""
        mode = "sql_mode = concat(@@sql_mode, ',STRICT_ALL_TABLES')"
        wait = f"lock_wait_timeout = {max(1, round(seconds))}"
        return [
            f"{one} WAIT {max(1, round(seconds))}"
            if one.startswith("LOCK TABLES")
            else f"SET STATEMENT {wait}, {mode} FOR {one}"
            for one in step.statements
        ]


def exchange(place: Place, replacements: Mapping[str, str]) -> Iterator[str]:
    """Give the parts of an ALTER TABLE that drop columns and rename others."""
    quote = place.preparer.quote
    for column, other in replacements.items():
        yield f"DROP COLUMN {quote(column)}"
        yield f"RENAME COLUMN {quote(other)} TO {quote(column)}"


def column_of(created: str, place: Place) -> str:
    """Return the line of a column in what SHOW CREATE TABLE says."""
    name = place.preparer.quote_identifier(place.column)
    lines = (line.strip() for line in created.splitlines())
    return next(line.rstrip(",") for line in lines if line.startswith(f"{name} "))


_QUOTED = r"'(?:[^'\\]|''|\\.)*'|`(?:[^`]|``)*`"
_NULL = re.compile(rf"({_QUOTED})| DEFAULT NULL\b| NOT NULL\b| NULL\b")
_CHECK = re.compile(rf"({_QUOTED})| CHECK \(")


_JSON = re.compile(
    r"^(`(?:[^`]|``)*`) longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin\b"
    r"(.*) CHECK \(json_valid\(\1\)\)$"
)


def decided(definition: str, how: str) -> str:
    """Return a column's definition with this said of NULL, before its CHECK, as the grammar has it.

    MariaDB's JSON is shown as a text with a CHECK, and changed in place only by its own name.
    """
    definition = _JSON.sub(r"\1 json\2", definition)
    checks = (found.start() for found in _CHECK.finditer(definition) if found[1] is None)
    end = next(checks, len(definition))
    plain = _NULL.sub(lambda found: found[1] or "", definition[:end])
    return f"{plain} {how}{definition[end:]}"
