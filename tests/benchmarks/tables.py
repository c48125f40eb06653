"""The tables that are filled: generated on the server, settled, and checked row by row."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.databases import Database

    Statements = Mapping[str, list[str]]

COLUMNS = (
    "id BIGINT NOT NULL PRIMARY KEY, first VARCHAR(60) NOT NULL, last VARCHAR(60) NOT NULL,"
    " note VARCHAR(200)"
)
PER_STATEMENT = 1_000_000
"""Rows: one statement over all of them would fill MariaDB's undo log."""

NUMBERS = {
    "postgresql": "SELECT i FROM generate_series({low}, {high}) AS n (i)",
    "mariadb": "SELECT seq AS i FROM seq_{low}_to_{high}",
    "sqlite": (
        "WITH RECURSIVE n (i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM n WHERE i < {high})"
        " SELECT i FROM n"
    ),
}
JOINED = {
    "postgresql": "first || ' ' || last",
    "mariadb": "CONCAT(first, ' ', last)",
    "sqlite": "first || ' ' || last",
}
ROWS = {
    "postgresql": "i, 'first ' || i, 'last ' || i, repeat('x', 60)",
    "mariadb": "i, CONCAT('first ', i), CONCAT('last ', i), repeat('x', 60)",
    "sqlite": "i, 'first ' || i, 'last ' || i, printf('%.60c', 'x')",
}
DIFFERS = {
    "postgresql": "{column} IS DISTINCT FROM {joined}",
    "mariadb": "NOT (BINARY {column} <=> BINARY {joined})",  # collations are blind to case
    "sqlite": "{column} IS NOT {joined}",
}
# Slices are a fifth of a small table, which calls autovacuum, and next to nothing of a big one.
UNDISTURBED: Statements = {"postgresql": ["ALTER TABLE {table} SET (autovacuum_enabled = off)"]}

SETTLE: Statements = {
    "postgresql": ["VACUUM ANALYZE {table}"],
    "mariadb": ["ANALYZE TABLE {table}"],
    "sqlite": ["ANALYZE {table}"],
}
# What the filling left to be written would be written while the first chunks are measured.
FLUSH: Statements = {
    "postgresql": ["CHECKPOINT"],
    "mariadb": ["FLUSH TABLES {table} FOR EXPORT", "UNLOCK TABLES"],
    "sqlite": [],
}
FLUSH_SECONDS, DIRTY_PAGES = 10, 50


def fill(
    database: Database,
    table: str,
    rows: int,
    *,
    targets: Sequence[str],
    undisturbed: bool = False,
) -> None:
    """Generate a table with empty columns to fill, and let it settle."""
    name = database.name
    empty = "".join(f", {target} VARCHAR(200)" for target in targets)
    statements = [f"CREATE TABLE {table} ({COLUMNS}{empty})"]
    if undisturbed:
        statements += UNDISTURBED.get(name, [])
    for low in range(1, rows + 1, PER_STATEMENT):
        numbers = NUMBERS[name].format(low=low, high=min(low + PER_STATEMENT - 1, rows))
        statements.append(
            f"INSERT INTO {table} (id, first, last, note)"
            f" SELECT {ROWS[name]} FROM ({numbers}) AS numbers"
        )
    execute(database.url, table, statements + SETTLE[name])


def flush(database: Database, table: str) -> None:
    """Have all that was changed so far on the disk, before the clock starts."""
    execute(database.admin_url, table, FLUSH[database.name])
    deadline = time.monotonic() + FLUSH_SECONDS
    while dirty_pages(database) > DIRTY_PAGES and time.monotonic() < deadline:
        time.sleep(0.1)


def dirty_pages(database: Database) -> int:
    """What MariaDB has yet to write to the disk; a flush leaves the undo log to idle moments."""
    if database.name != "mariadb":
        return 0
    with sa.create_engine(database.admin_url, poolclass=sa.NullPool).connect() as connection:
        query = sa.text("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'")
        return int(connection.execute(query).one()[1])


def wrong_rows(database: Database, table: str, column: str, rows: int) -> int:
    """How many rows are missing, or are not what the job had to make of them."""
    name = database.name
    differs = DIFFERS[name].format(column=column, joined=JOINED[name])
    with database.engine().connect() as connection:
        found = connection.execute(sa.text(f"SELECT COUNT(*) FROM {table}")).scalar_one()
        query = sa.text(f"SELECT COUNT(*) FROM {table} WHERE {differs}")
        return abs(rows - int(found)) + int(connection.execute(query).scalar_one())


def drop(database: Database, table: str) -> None:
    execute(database.url, table, ["DROP TABLE {table}"])


def execute(url: str, table: str, statements: Sequence[str]) -> None:
    """Run each statement on its own; the table's name stands in for {table}."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT", no_parameters=True)
        for statement in statements:
            connection.exec_driver_sql(statement.replace("{table}", table))
