"""`--processes`: workers in processes of their own share the run, its budget and its end."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.acceptance.counting import (
    PYTHON,
    SET_BASED,
    assert_counts,
    events,
    last_words,
    prepare,
    start_and_wait_for_a_chunk,
    status,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.projects import AlembicProject, Started

ROWS = 12_000
BAD = """
    def transform(self, row):
        if row.id % 2000 == 0:
            raise ValueError("this one is odd")
        return {"n": row.n + 1}
"""


def test_every_row_is_counted_once(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, PYTHON, ROWS)
    done = project.backfill("run", "--processes=2", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


@pytest.mark.requires("server")
def test_limit_is_shared(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    done = project.backfill("run", "--processes=2", "--limit=3000", "--chunk-size=100")
    assert done.returncode == 3, done.stderr
    assert 2_000 <= values_of_n(engine)[1] <= 3_000
    assert project.backfill("run").returncode == 0
    assert values_of_n(engine) == {1: ROWS}


def test_bad_rows_of_all_processes_are_quarantined(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, PYTHON + BAD, ROWS)
    few = project.backfill("run", "--processes=2", "--max-failures=2")
    assert few.returncode == 1, few.stderr
    assert "max_failures" in few.stderr
    done = project.backfill("run", "--processes=2")
    assert done.returncode == 5, done.stderr
    assert values_of_n(engine) == {0: 6, 1: ROWS - 6}
    assert status(project)["failures"] == 6


@pytest.fixture
def running(project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Started:
    """A run with two processes, both of which have committed."""
    prepare(project, engine, PYTHON, ROWS)
    monkeypatch.setenv("ROW_SECONDS", "0.001")
    process = start_and_wait_for_a_chunk(project, "--processes=2", "--chunk-size=20")
    wait_until(lambda: len({e["range"] for e in events(process) if "range" in e}) > 1, process)
    monkeypatch.delenv("ROW_SECONDS")
    return process


def test_killed_command_leaves_no_process_behind(
    project: AlembicProject, engine: sa.Engine, running: Started
) -> None:
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 2
    running.kill()  # it alone
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    done = project.backfill("run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


@pytest.mark.requires("server")
def test_killed_process_fails_the_command_and_the_next_one_goes_on(
    project: AlembicProject, engine: sa.Engine, running: Started
) -> None:
    workers = [
        child
        for child in psutil.Process(running.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[0].send_signal(signal.SIGKILL)
    assert running.wait(30) == 1, last_words(running)
    assert "a worker process died" in running.read_stdout()
    done = project.backfill("run", "--processes=2")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def test_ctrl_c_lets_all_finish_their_chunks(
    project: AlembicProject, engine: sa.Engine, running: Started
) -> None:
    started = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 3, last_words(running)
    assert time.monotonic() - started < 10
    assert project.backfill("run").returncode == 0
    assert values_of_n(engine) == {1: ROWS}


@pytest.mark.requires("server")
def test_pause_stops_all_processes(
    project: AlembicProject, engine: sa.Engine, running: Started
) -> None:
    assert project.backfill("pause", "count_up").returncode == 0
    paused = values_of_n(engine)
    assert running.wait(30) == 3, last_words(running)
    assert values_of_n(engine) == paused
    assert project.backfill("resume", "count_up").returncode == 0
    assert project.backfill("run").returncode == 0
    assert values_of_n(engine) == {1: ROWS}
