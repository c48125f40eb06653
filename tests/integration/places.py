"""Databases that tests of types share, with tables made of literals of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.databases import DRIVERS, Unavailable
from tests.integration.kinds import LABELS, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import sqlalchemy as sa

    from tests.databases import Servers
    from tests.integration.kinds import Value

PREPARE = {
    "sqlite": [],
    "mariadb": [],
    "postgresql": [
        "CREATE EXTENSION citext",
        "CREATE EXTENSION hstore",
        'CREATE SCHEMA "My Types"',
        f"CREATE TYPE mood AS ENUM ({quoted(LABELS)})",
        """CREATE TYPE "My Types"."Mood Type" AS ENUM ('A b', '2')""",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(3)",
        "CREATE DOMAIN document AS jsonb",
        "CREATE DOMAIN labels AS text[]",
        "CREATE DOMAIN good_mood AS mood CHECK (VALUE <> 'NULL')",
    ],
}

# Down to the bytes: equality alone would take 1.0 for 1.00, -0.0 for 0.0, and "a" for "A".
DIFFERENT = {
    "sqlite": "{0} IS NOT {1} OR typeof({0}) <> typeof({1})"
    " OR CAST({0} AS BLOB) IS NOT CAST({1} AS BLOB)",
    "postgresql": "NOT record_image_eq(ROW({0}), ROW({1}))",
    "mariadb": "NOT ({0} <=> {1} AND BINARY {0} <=> BINARY {1})",
}
SHOWN = {
    "sqlite": "CAST(src AS BLOB), CAST(dst AS BLOB)",
    "postgresql": "src::text, dst::text",
    "mariadb": "BINARY src, BINARY dst",
}


@dataclass(frozen=True)
class Place:
    """A database for all tests of one driver."""

    database: str
    engine: sa.Engine
    """Its connections are the driver's that is tried."""
    apart: sa.Engine
    """Connections for making and checking rows."""

    def execute(self, *statements: str) -> None:
        with self.apart.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.apart.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def make_pairs(self, declared: str, values: Sequence[Value], table: str = "things") -> None:
        """`dst` begins as another row's value, so that NULL has to be written too."""
        given = [literal(self.database, value) for value in values]
        rows = ", ".join(f"({i}, {v}, {given[i - 1]})" for i, v in enumerate(given))
        self.execute(
            f"DROP TABLE IF EXISTS {table}",
            f"CREATE TABLE {table}"
            f" (id int NOT NULL PRIMARY KEY, src {declared} NULL, dst {declared} NULL)",
            f"INSERT INTO {table} (id, src, dst) VALUES {rows}",
        )

    def different(self, form: str = "{}", table: str = "things") -> list[tuple[Any, ...]]:
        """`id`, `src` and `dst` of the rows in which they are not the same."""
        condition = DIFFERENT[self.database].format(form.format("src"), form.format("dst"))
        return self.rows(f"SELECT id, {SHOWN[self.database]} FROM {table} WHERE {condition}")

    def pairs(self, table: str = "things") -> dict[int, tuple[str | None, str | None]]:
        """`src` and `dst` of every row, by its `id`, as text."""
        rows = self.rows(f"SELECT id, {SHOWN[self.database]} FROM {table}")
        return {row: (shown(src), shown(dst)) for row, src, dst in rows}


class Places:
    """The places, each made when the first test asks for it."""

    def __init__(self, servers: Servers, directory: Path, stack: ExitStack) -> None:
        self.servers = servers
        self.directory = directory
        self.stack = stack
        self.made: dict[str, Place] = {}

    def __getitem__(self, driver: str) -> Place:
        if driver not in self.made:
            name = DRIVERS[driver].database
            try:
                database = self.stack.enter_context(self.servers.database(name, self.directory))
                engine = database.through(driver).engine()
            except Unavailable as error:
                pytest.skip(f"{driver}: {error}")
            options = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
            place = Place(name, engine, database.engine().execution_options(**options))
            place.execute(*PREPARE[name])
            self.made[driver] = place
        return self.made[driver]


def shown(value: str | bytes | None) -> str | None:
    """What SHOWN selects, as text."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def literal(database: str, value: Value) -> str:
    """The value in the database's own SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return rf"'\x{value.hex()}'" if database == "postgresql" else f"X'{value.hex()}'"
    if database == "sqlite" and not isinstance(value, str):
        return repr(value).replace("inf", "9e999")
    text = str(value)
    if database == "postgresql":
        return "'" + text.replace("'", "''") + "'"
    hexadecimal = text.encode(errors="surrogateescape").hex()
    if database == "sqlite":
        return f"CAST(X'{hexadecimal}' AS TEXT)"
    return f"CONVERT(X'{hexadecimal}' USING utf8mb4)"
