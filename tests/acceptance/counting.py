"""A project that counts, for the acceptance tests. Their oracle: `n = n + 1` cannot be applied
twice, or left out, without leaving a trace."""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.projects import AlembicProject, Started

PATIENCE_SECONDS = 45.0

counters = sa.Table(
    "counters",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
)

CREATE_COUNTERS = '''
import os
import time

from backfill import Backfill


def upgrade():
    op.create_table(
        "counters",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
    )


class CountUp(Backfill):
    """Add one to every row."""

    table = "counters"
'''
SET_BASED = CREATE_COUNTERS + '    values = {"n": "n + 1"}\n'
PYTHON = (
    CREATE_COUNTERS
    + """
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        time.sleep(float(os.environ.get("ROW_SECONDS", 0)))
        return {"n": row.n + 1}
"""
)


def prepare(project: AlembicProject, engine: sa.Engine, body: str, rows: int) -> None:
    """Apply a revision with a backfill over `counters`, and fill the table."""
    project.revision("a1", body=body)
    project.alembic("upgrade", "head")
    add_counters(engine, rows)


def add_counters(engine: sa.Engine, rows: int) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(counters), [{"id": i, "n": 0} for i in range(1, rows + 1)])


def values_of_n(engine: sa.Engine) -> dict[int, int]:
    """How many rows have which number."""
    query = sa.select(counters.c.n, sa.func.count().label("rows")).group_by(counters.c.n)
    with engine.connect() as connection:
        return {row.n: row.rows for row in connection.execute(query)}


def status(project: AlembicProject, *names: str) -> dict[str, Any]:
    """What `backfill status --json` says of a single backfill."""
    done = project.backfill("status", "--json", *names)
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def assert_counts(
    project: AlembicProject, rows: int, *, scanned: int | None = None, state: str = "succeeded"
) -> None:
    document = status(project)
    found = (document["status"], document["rows_changed"], document["rows_scanned"])
    assert found == (state, rows, rows if scanned is None else scanned)
    assert sum(found["rows_changed"] for found in document["ranges"]) == rows


def events(process: Started) -> list[dict[str, Any]]:
    """What `run --json` has printed so far, without a line that is still being written."""
    lines = process.read_stdout().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def has_committed(process: Started) -> bool:
    return '"event": "chunk"' in process.read_stdout()


def rows_changed_by(process: Started) -> int:
    return sum(event["changed"] for event in events(process) if event["event"] == "chunk")


def last_words(process: Started) -> str:
    """For messages of failed assertions."""
    lines = process.read_stdout().splitlines()[-1:] + process.read_stderr().splitlines()[-20:]
    return "\n".join([f"exit code {process.poll()}", *lines])


def wait_until(
    condition: Callable[[], bool],
    process: Started | None = None,
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Poll until the condition holds. AssertionError: the process has ended, or it took long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended too early: {last_words(process)}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened in {seconds} s")
        time.sleep(0.005)


def start_and_wait_for_a_chunk(project: AlembicProject, *arguments: str) -> Started:
    process = project.start("run", "--json", *arguments)
    wait_until(lambda: has_committed(process), process)
    return process


def seeded_dice() -> random.Random:
    """Random numbers which ACCEPTANCE_SEED repeats; pytest shows the seed of a failed test."""
    seed = int(os.environ.get("ACCEPTANCE_SEED", random.randrange(1_000_000)))
    print(f"ACCEPTANCE_SEED={seed}")
    return random.Random(seed)
