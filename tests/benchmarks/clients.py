"""What pgbench is to PostgreSQL, for MariaDB: a process a connection, one schedule for all.

`python -m tests.benchmarks.clients URL ROWS RATE FOLDER` sends requests until it is terminated,
and leaves files `requests…` in the folder, in the form of pgbench's log.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.load import CLIENTS, READ, UPDATE
from tests.benchmarks.peers.common import Address
from tests.benchmarks.peers.mysql import connect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.sharedctypes import Synchronized
LONGEST_SECONDS = 600
CONNECT_SECONDS = 1.0
"""From the command to the first request."""
BUFFER = 1 << 12


def schedule(rate: float) -> list[float]:
    """When requests are due, in seconds from the start: as they come, not in step."""
    chance = random.Random(rate)
    moments, moment = [], 0.0
    while rate and moment < LONGEST_SECONDS:
        moments.append(moment := moment + chance.expovariate(rate))
    return moments


class Client:
    """Takes the next request that is due, whoever took the last one."""

    def __init__(self, connection: Any, rows: int, file: Any) -> None:
        self.cursor = connection.cursor()
        self.rows = rows
        self.file = file

    def send_all(self, moments: Sequence[float], turn: Synchronized[int], start: float) -> None:
        """Without moments, each request is due at once."""
        while True:
            with turn.get_lock():
                number = turn.value
                turn.value += 1
            if moments and number >= len(moments):
                return
            due = start + moments[number] if moments else time.time()
            time.sleep(max(0.0, due - time.time()))
            self.send(number, due)

    def send(self, number: int, due: float) -> None:
        script = random.getrandbits(1)
        statement = (READ, UPDATE)[script].replace(":id", str(random.randint(1, self.rows)))
        self.cursor.execute(statement)
        self.cursor.fetchall()
        answered = time.time()
        seconds, fraction = divmod(round(answered * 1e6), 1_000_000)
        waited = round((answered - due) * 1e6)
        self.file.write(f"0 {number} {waited} {script} {seconds} {fraction}\n")


def run(url: str, rows: int, file: Path, *plan: Any) -> None:
    """One client, until it is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that its file is closed
    random.seed()  # else all clients ask for the same rows
    with connect(Address.parse(url)) as connection, file.open("w", BUFFER) as log:
        connection.autocommit(True)
        Client(connection, rows, log).send_all(*plan)


def main() -> None:
    url, rows, rate, folder = sys.argv[1:]
    forked = multiprocessing.get_context("fork")
    plan = (schedule(float(rate)), forked.Value("L", 0), time.time() + CONNECT_SECONDS)
    clients = [
        forked.Process(target=run, args=(url, int(rows), Path(folder) / f"requests{i}", *plan))
        for i in range(CLIENTS)
    ]
    for client in clients:
        client.start()

    def end(*_: object) -> None:
        for client in clients:
            client.terminate()

    signal.signal(signal.SIGTERM, end)
    for client in clients:
        client.join()
    sys.exit(max(abs(client.exitcode or 0) for client in clients))


if __name__ == "__main__":
    main()
