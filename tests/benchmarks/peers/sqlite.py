"""SQLite through sqlite3: one UPDATE, a loop, executemany, and a Python function in the UPDATE."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tests.benchmarks.peers.common import (
    CHUNK_ROWS,
    CHUNK_SET,
    Address,
    full_name,
    main,
    transformed,
    working,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

UPDATE = "UPDATE people SET full_name = first || ' ' || last"
UPDATE_BY_FUNCTION = "UPDATE people SET full_name = full_name(first, last)"
BOUND = "SELECT id FROM people WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
LAST = "SELECT max(id) FROM people"
READ = "SELECT id, first, last FROM people WHERE id > ? ORDER BY id LIMIT ?"
WRITE = "UPDATE people SET full_name = ? WHERE id = ?"


def connect(address: Address) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(address.database))


def single_update(address: Address) -> None:
    with connect(address) as connection, working():
        connection.execute(UPDATE)
        connection.commit()


def update_in_chunks(connection: sqlite3.Connection, update: str) -> None:
    for low, high in key_ranges(connection):
        connection.execute(f"{update} WHERE id > ? AND id <= ?", (low, high))
        connection.commit()


def key_ranges(connection: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    last = connection.execute(LAST).fetchone()[0]
    low = 0
    while low < last:
        bound = connection.execute(BOUND, (low, CHUNK_SET - 1)).fetchone()
        high = bound[0] if bound else last
        yield low, high
        low = high


def set_loop(address: Address) -> None:
    with connect(address) as connection, working():
        update_in_chunks(connection, UPDATE)


def function(address: Address) -> None:
    with connect(address) as connection, working():
        connection.create_function("full_name", 2, full_name, deterministic=True)
        update_in_chunks(connection, UPDATE_BY_FUNCTION)


def executemany(address: Address) -> None:
    with connect(address) as connection, working():
        low = 0
        while rows := connection.execute(READ, (low, CHUNK_ROWS)).fetchall():
            pairs = [(name, key) for key, name in transformed(rows)]
            connection.executemany(WRITE, pairs)
            connection.commit()
            low = rows[-1][0]


if __name__ == "__main__":
    main(
        {
            "single_update": single_update,
            "set_loop": set_loop,
            "function": function,
            "executemany": executemany,
        }
    )
