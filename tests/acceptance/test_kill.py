"""SIGKILL at random points; then the same command goes on, and every row is counted once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.counting import (
    PYTHON,
    SET_BASED,
    assert_counts,
    has_committed,
    last_words,
    prepare,
    seeded_dice,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.projects import AlembicProject

KILLS = 7  # in each of three tests a database
KILLS_IN_THE_START = {1, 4}
ROWS = 40_000
ROWS_FOR_PYTHON = 12_000


@pytest.mark.parametrize("workers", [1, 3])
def test_set_based_run_survives_kills(
    project: AlembicProject, engine: sa.Engine, workers: int
) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    kill_often(project, workers)
    assert_next_run_completes(project, engine, ROWS)


def test_python_run_survives_kills(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, engine, PYTHON, ROWS_FOR_PYTHON)
    monkeypatch.setenv("ROW_SECONDS", "0.002")
    kill_often(project, workers=1)
    monkeypatch.delenv("ROW_SECONDS")
    assert_next_run_completes(project, engine, ROWS_FOR_PYTHON)


def kill_often(project: AlembicProject, workers: int) -> None:
    dice = seeded_dice()
    for kill in range(KILLS):
        process = project.start("run", "--json", "--chunk-size=7", f"--workers={workers}")
        if kill in KILLS_IN_THE_START:
            time.sleep(dice.uniform(0, 1))
        else:
            wait_until(lambda: has_committed(process), process)  # noqa: B023 (called at once)
            time.sleep(dice.uniform(0, 0.2))
        assert process.poll() is None, f"it ended too early: {last_words(process)}"
        process.end()


def assert_next_run_completes(project: AlembicProject, engine: sa.Engine, rows: int) -> None:
    started = time.monotonic()
    done = project.backfill("run")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert seconds < 15, "it waited for the lease of the killed runner (30 s)"
    assert values_of_n(engine) == {1: rows}
    assert_counts(project, rows)
