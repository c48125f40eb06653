"""PostgreSQL without a framework: one UPDATE, a loop in the server, and loops in psycopg."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg

from tests.benchmarks.peers.common import (
    CHUNK_ROWS,
    CHUNK_SET,
    CHUNKS,
    Address,
    main,
    transformed,
    working,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[psycopg.Cursor, list[tuple[int, str]]], None]

UPDATE = "UPDATE people SET full_name = first || ' ' || last"
BOUND = "SELECT id FROM people WHERE id > %s ORDER BY id OFFSET %s LIMIT 1"
LAST = "SELECT max(id) FROM people"
READ = "SELECT id, first, last FROM people WHERE id > %s ORDER BY id LIMIT %s"

PROCEDURE = f"""
CREATE PROCEDURE fill_full_name() LANGUAGE plpgsql AS $$
DECLARE
    low bigint := 0;
    high bigint;
BEGIN
    LOOP
        SELECT max(id) INTO high FROM
            (SELECT id FROM people WHERE id > low ORDER BY id LIMIT {CHUNK_SET}) AS chunk;
        EXIT WHEN high IS NULL;
        {UPDATE} WHERE id > low AND id <= high;
        COMMIT;
        low := high;
    END LOOP;
END $$
"""

# The key range keeps the planner from reading the whole table for each chunk.
FROM_ARRAYS = """
UPDATE people SET full_name = new.full_name
FROM unnest(%b::bigint[], %b::text[]) AS new (id, full_name)
WHERE people.id = new.id AND people.id >= %b AND people.id <= %b
"""
STAGE = "CREATE TEMPORARY TABLE new (id bigint, full_name text) ON COMMIT DELETE ROWS"
FROM_STAGE = """
UPDATE people SET full_name = new.full_name FROM new
WHERE people.id = new.id AND people.id >= %s AND people.id <= %s
"""


def connect(address: Address, *, autocommit: bool = False) -> psycopg.Connection:
    return psycopg.connect(
        host=address.host,
        port=address.port,
        user=address.user,
        password=address.password,
        dbname=address.database,
        autocommit=autocommit,
    )


def single_update(address: Address) -> None:
    with connect(address) as connection, working():
        connection.execute(UPDATE)
        connection.commit()


def server_loop(address: Address) -> None:
    with connect(address, autocommit=True) as connection, working():
        connection.execute(PROCEDURE)
        connection.execute("CALL fill_full_name()")


def set_loop(address: Address, rows: int = CHUNK_SET) -> None:
    with connect(address) as connection, connection.cursor() as cursor, working():
        (last,) = cursor.execute(LAST).fetchone() or (0,)
        low = 0
        while low < last:
            bound = cursor.execute(BOUND, (low, rows - 1)).fetchone()
            high = bound[0] if bound else last
            cursor.execute(f"{UPDATE} WHERE id > %s AND id <= %s", (low, high))
            connection.commit()
            low = high


def rows_loop(address: Address, write: Write, *prepare: str) -> None:
    """Read, transform, write and commit, chunk by chunk."""
    with connect(address) as connection, connection.cursor(binary=True) as cursor, working():
        for statement in prepare:
            cursor.execute(statement)
        low = 0
        while rows := cursor.execute(READ, (low, CHUNK_ROWS)).fetchall():
            write(cursor, transformed(rows))
            connection.commit()
            low = rows[-1][0]


def write_arrays(cursor: psycopg.Cursor, rows: list[tuple[int, str]]) -> None:
    keys = [key for key, _ in rows]
    cursor.execute(FROM_ARRAYS, (keys, [name for _, name in rows], keys[0], keys[-1]))


def write_copy(cursor: psycopg.Cursor, rows: list[tuple[int, str]]) -> None:
    with cursor.copy("COPY new FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "text"])
        for row in rows:
            copy.write_row(row)
    cursor.execute(FROM_STAGE, (rows[0][0], rows[-1][0]))


if __name__ == "__main__":
    main(
        {
            "single_update": single_update,
            "server_loop": server_loop,
            "set_loop": set_loop,
            **{f"set_loop_{rows}": partial(set_loop, rows=rows) for rows in CHUNKS},
            "unnest": lambda address: rows_loop(address, write_arrays),
            "copy": lambda address: rows_loop(address, write_copy, STAGE),
        }
    )
