"""MariaDB and MySQL change a column in place, if its definition is given whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.columns import Columns, Place, Step, exchange

if TYPE_CHECKING:
    from collections.abc import Mapping


_ONE_BYTE = 255
_MOST_BYTES = 4
"""Of a character, in utf8mb4."""
_VOLATILE = ("uuid", "uuid_short", "uuid_v4", "uuid_v7", "sys_guid", "rand", "random_bytes")
"""Functions that give each row another value."""


class MySQLColumns(Columns):
    """By rebuilding the table beside reading and writing, with the column as the server has it."""

    def not_null(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        return self._modified(connection, place, "NOT NULL")

    def nullable(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the same way back."""
        return self._modified(connection, place, "NULL")

    def is_volatile(self, connection: sa.Connection, default: str) -> bool:
        return any(re.search(rf"\b{name}\s*\(", default, re.IGNORECASE) for name in _VOLATILE)

    def widens_in_place(self, old: Any, new: Any) -> bool:
        """A VARCHAR's length takes one byte up to 255 bytes, and two beyond; TEXT is another type,
        and DECIMAL is stored by its digits (manual, 17.12.1)."""
        if not isinstance(old, sa.VARCHAR) or not isinstance(new, sa.String):
            return False
        if isinstance(new, sa.Text) or new.length is None or old.length is None:
            return False
        return new.length * _MOST_BYTES <= _ONE_BYTE or old.length > _ONE_BYTE

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
