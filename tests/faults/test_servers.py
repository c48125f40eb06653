"""What the servers' faults are to people: what is said, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import (
    SET_BASED,
    assert_counts,
    last_words,
    prepare,
    start_and_wait_for_a_chunk,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    from tests.databases import Database
    from tests.projects import AlembicProject, Started

ROWS = 700


@pytest.mark.requires("attached_files")
def test_file_that_is_read_only_is_told_at_once(
    project: AlembicProject, database: Database, engine: sa.Engine
) -> None:
    prepare(project, engine, SET_BASED, rows=100)
    assert project.backfill("run", "--limit=50").returncode == 3
    file = sa.make_url(database.url).database
    project.set_url(f"sqlite:///file:{file}?mode=ro&uri=true")
    done = project.backfill("run", timeout=20)
    assert done.returncode == 1
    assert "the database's file cannot be written" in done.stderr
    project.set_url(database.url)
    assert project.backfill("run").returncode == 0
    assert values_of_n(engine) == {1: 100}


GONE = {
    "the run": (
        "UPDATE counters SET n = 0",
        *(f"DELETE FROM backfill_{name}" for name in ("event", "failure", "range", "run")),
    ),
    "the pass": (
        "UPDATE backfill_run SET pass_number = 2",
        "UPDATE backfill_range SET pass_number = 2, token = NULL",
    ),
}
"""What a server that takes over may not have, or not as we know it."""


@pytest.mark.parametrize("gone", GONE)
def test_run_that_is_not_as_we_left_it_can_be_repeated(
    project: AlembicProject, engine: sa.Engine, gone: str
) -> None:
    """Nobody else is at it, so the exit code is not 4."""
    process = run_slowly(project, engine)
    with engine.begin() as connection:
        for statement in GONE[gone]:
            connection.exec_driver_sql(statement)
    wait_until(lambda: process.poll() is not None)
    assert process.poll() == 3, last_words(process)
    assert "has another server taken over" in process.read_stdout()
    done = project.backfill("run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def test_claim_that_is_not_there_any_more_is_made_again(
    project: AlembicProject, engine: sa.Engine
) -> None:
    """It was made in the gap of a failover; nobody else has one."""
    process = run_slowly(project, engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE backfill_range SET token = NULL, owner = NULL")
    wait_until(lambda: process.poll() is not None)
    assert process.poll() == 0, last_words(process)
    assert "lost its key range" in process.read_stdout()
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def run_slowly(project: AlembicProject, engine: sa.Engine) -> Started:
    """A run that will last for another second."""
    prepare(project, engine, SET_BASED, rows=ROWS)
    return start_and_wait_for_a_chunk(project, "--chunk-size=5", "--rows-per-second=500")
