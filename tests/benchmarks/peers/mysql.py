"""MariaDB without a framework: one UPDATE, a loop in the server, and loops in plain drivers."""

from __future__ import annotations

import importlib
import json
from contextlib import closing
from functools import partial
from typing import Any

from tests.benchmarks.peers.common import (
    CHUNK_ROWS,
    CHUNK_SET,
    CHUNKS,
    Address,
    main,
    transformed,
    working,
)

MODULES = {"mysqldb": "MySQLdb", "pymysql": "pymysql", "mariadbconnector": "mariadb"}

UPDATE = "UPDATE people SET full_name = CONCAT(first, ' ', last)"
BOUND = "SELECT id FROM people WHERE id > %s ORDER BY id LIMIT 1 OFFSET %s"
LAST = "SELECT MAX(id) FROM people"
READ = "SELECT id, first, last FROM people WHERE id > %s ORDER BY id LIMIT %s"

PROCEDURE = f"""
CREATE PROCEDURE fill_full_name()
BEGIN
    DECLARE low BIGINT DEFAULT 0;
    DECLARE high BIGINT;
    chunks: LOOP
        SELECT MAX(id) INTO high FROM
            (SELECT id FROM people WHERE id > low ORDER BY id LIMIT {CHUNK_SET}) AS chunk;
        IF high IS NULL THEN
            LEAVE chunks;
        END IF;
        START TRANSACTION;
        {UPDATE} WHERE id > low AND id <= high;
        COMMIT;
        SET low = high;
    END LOOP;
END
"""

# The key range keeps the planner from reading the whole table for each chunk.
FROM_JSON = """
UPDATE people JOIN JSON_TABLE(%s, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', full_name VARCHAR(200) PATH '$[1]'
)) AS new ON people.id = new.id
SET people.full_name = new.full_name
WHERE people.id >= %s AND people.id <= %s
"""


def connect(address: Address) -> closing[Any]:
    driver = importlib.import_module(MODULES[address.driver])
    connection = driver.connect(
        host=address.host,
        port=address.port,
        user=address.user,
        password=address.password,
        database=address.database,
        **({} if address.driver == "mariadbconnector" else {"charset": "utf8mb4"}),
    )
    return closing(connection)


def single_update(address: Address) -> None:
    with connect(address) as connection, working():
        connection.cursor().execute(UPDATE)
        connection.commit()


def server_loop(address: Address) -> None:
    with connect(address) as connection, working():
        cursor = connection.cursor()
        cursor.execute(PROCEDURE)
        cursor.execute("CALL fill_full_name()")


def set_loop(address: Address, rows: int = CHUNK_SET) -> None:
    with connect(address) as connection, working():
        cursor = connection.cursor()
        cursor.execute(LAST)
        last = cursor.fetchone()[0]
        low = 0
        while low < last:
            cursor.execute(BOUND, (low, rows - 1))
            bound = cursor.fetchone()
            high = bound[0] if bound else last
            cursor.execute(f"{UPDATE} WHERE id > %s AND id <= %s", (low, high))
            connection.commit()
            low = high


def json_table(address: Address) -> None:
    with connect(address) as connection, working():
        cursor = connection.cursor()
        low = 0
        while True:
            cursor.execute(READ, (low, CHUNK_ROWS))
            rows = cursor.fetchall()
            if not rows:
                break
            first, low = rows[0][0], rows[-1][0]
            cursor.execute(FROM_JSON, (json.dumps(transformed(rows)), first, low))
            connection.commit()


if __name__ == "__main__":
    main(
        {
            "single_update": single_update,
            "server_loop": server_loop,
            "set_loop": set_loop,
            **{f"set_loop_{rows}": partial(set_loop, rows=rows) for rows in CHUNKS},
            "json_table": json_table,
        }
    )
