"""Stopped means stopped: signals, budgets, pause and cancel; and how to go on afterwards."""

from __future__ import annotations

import subprocess
from signal import SIGINT, SIGTERM, Signals
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.counting import (
    CREATE_COUNTERS,
    PATIENCE_SECONDS,
    PYTHON,
    SET_BASED,
    assert_counts,
    events,
    last_words,
    prepare,
    rows_changed_by,
    start_and_wait_for_a_chunk,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.projects import AlembicProject

ROWS = 20_000
CHUNK = 4
SLOWLY = f"--chunk-size={CHUNK}"

LOCK = {
    "mariadb": "LOCK TABLES counters WRITE",
    "postgresql": "LOCK TABLE counters IN ACCESS EXCLUSIVE MODE",
}
HANGS = (
    CREATE_COUNTERS
    + """
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        if row.id == 50:
            open("hangs", "w").close()
            time.sleep(600)
        return {"n": row.n + 1}
"""
)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_finishes_the_chunk(
    project: AlembicProject, engine: sa.Engine, number: Signals
) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner = start_and_wait_for_a_chunk(project, SLOWLY)
    runner.send_signal(number)
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    changed = rows_changed_by(runner)
    assert changed % CHUNK == 0
    assert_done(engine, changed)
    assert_counts(project, changed, state="pending")
    assert number.name in events(runner)[-1]["text"]
    assert_goes_on(project, engine)


def test_ctrl_c_before_it_begins_is_a_stop_too(project: AlembicProject, engine: sa.Engine) -> None:
    """While env.py is read, the database is slow to answer, and the like."""
    prepare(project, engine, SET_BASED, 10)
    env = project.directory / "migrations/env.py"
    slow = "import time\nopen('connecting', 'w').close()\ntime.sleep(600)\n"
    env.write_text(env.read_text() + slow)
    runner = project.start("run")
    wait_until((project.directory / "connecting").exists, runner)
    runner.send_signal(SIGINT)
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    said = runner.stderr_path.read_text()
    assert said == "Stopped before it began; `backfill run` goes on.\n"
    assert values_of_n(engine) == {0: 10}


def test_second_signal_ends_at_once(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, HANGS, 100)
    runner = project.start("run", "--json", "--chunk-size=20")
    wait_until((project.directory / "hangs").exists, runner)
    runner.send_signal(SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        runner.wait(0.5)  # the chunk is still being computed
    runner.send_signal(SIGINT)
    assert runner.wait(5) == 3
    assert_done(engine, 40, of=100)
    assert_counts(project, 40, state="running")


def test_limit_is_for_all_workers_together(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    run = ("run", "--workers=3", "--chunk-size=300")
    done = project.backfill(*run, "--limit=1000")
    assert done.returncode == 3, done.stderr
    assert "--limit" in done.stderr
    assert_done(engine, 1000)
    assert_counts(project, 1000, state="pending")
    assert project.backfill(*run, f"--limit={ROWS}").returncode == 0
    assert values_of_n(engine) == {1: ROWS}
    assert_counts(project, ROWS)


def test_limit_of_a_python_transform(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, PYTHON, 1000)
    done = project.backfill("run", "--chunk-size=30", "--limit=100")
    assert done.returncode == 3, done.stderr
    assert_done(engine, 100, of=1000)
    assert_counts(project, 100, state="pending")


def test_max_seconds(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    done = project.backfill("run", "--chunk-size=5", "--max-seconds=1.5")
    assert done.returncode == 3, done.stderr
    assert "--max-seconds" in done.stderr
    changed = values_of_n(engine).get(1, 0)
    assert 0 < changed < ROWS
    assert_counts(project, changed, state="pending")
    assert_goes_on(project, engine)


def test_nothing_is_written_after_pause_has_returned(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner = start_and_wait_for_a_chunk(project, SLOWLY)
    paused = project.backfill("pause", "count_up")
    at_return = values_of_n(engine)
    assert paused.returncode == 0, paused.stderr
    assert runner.poll() is None or runner.returncode == 3
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert values_of_n(engine) == at_return
    assert_counts(project, at_return[1], state="paused")
    assert_run_asks_to_resume(project)
    assert values_of_n(engine) == at_return
    resumed = project.backfill("resume", "count_up")
    assert resumed.returncode == 0, resumed.stderr
    assert_goes_on(project, engine)


def test_pause_stops_every_worker_of_every_runner(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, engine, PYTHON, ROWS)
    monkeypatch.setenv("ROW_SECONDS", "0.01")  # so long that nobody runs out of ranges
    command = ("--workers=2", "--chunk-size=5")
    runners = [start_and_wait_for_a_chunk(project, *command) for _ in range(2)]
    assert project.backfill("pause", "count_up").returncode == 0
    at_return = values_of_n(engine)
    for runner in runners:
        assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert values_of_n(engine) == at_return
    assert at_return[1] == sum(map(rows_changed_by, runners)) < ROWS


def test_pause_while_python_computes(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, HANGS.replace("600", "5"), 100)
    runner = project.start("run", "--json", "--chunk-size=20")
    wait_until((project.directory / "hangs").exists, runner)
    assert project.backfill("pause", "count_up").returncode == 0
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert_done(engine, 40, of=100)


def test_cancelled_run_begins_anew_only_by_name(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner = start_and_wait_for_a_chunk(project, SLOWLY)
    cancelled = project.backfill("cancel", "count_up")
    at_return = values_of_n(engine)
    assert cancelled.returncode == 0, cancelled.stderr
    assert runner.wait(PATIENCE_SECONDS) == 1, last_words(runner)
    skipped = project.backfill("run")
    assert (skipped.returncode, "backfill run count_up" in skipped.stderr) == (1, True)
    assert values_of_n(engine) == at_return
    assert_counts(project, at_return[1], state="cancelled")
    anew = project.backfill("run", "count_up")
    assert anew.returncode == 0, anew.stderr
    assert values_of_n(engine) == {1: at_return[0], 2: at_return[1]}
    assert_counts(project, ROWS)


def test_changed_declaration_is_refused_until_accepted(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    assert project.backfill("run", "--limit=500").returncode == 3
    project.revision("a1", body=SET_BASED.replace("n + 1", "n + 100"))
    refused = project.backfill("run")
    assert refused.returncode == 1
    for way_out in ("--accept-change", "backfill cancel count_up"):
        assert way_out in refused.stderr
    assert_done(engine, 500)
    accepted = project.backfill("run", "--accept-change")
    assert accepted.returncode == 0, accepted.stderr
    assert values_of_n(engine) == {1: 500, 100: ROWS - 500}
    assert_counts(project, ROWS)


def test_steering_needs_an_unfinished_run(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, 10)
    refused = project.backfill("pause", "count_up")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "no run" in refused.stderr
    assert project.backfill("run").returncode == 0
    refused = project.backfill("cancel", "count_up")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
    assert "succeeded" in refused.stderr


@pytest.mark.requires("row_locks")
def test_a_table_that_is_locked_from_the_start_is_waited_for(
    project: AlembicProject, engine: sa.Engine
) -> None:
    prepare(project, engine, SET_BASED, 100)
    with engine.connect() as connection:
        connection.exec_driver_sql(LOCK[engine.dialect.name])
        runner = project.start("run", "--max-seconds=2")
        assert runner.wait(PATIENCE_SECONDS) == 3
    said = runner.read_stderr()
    assert "count_up: waits: " in said
    assert "stopped before it began: --max-seconds was reached" in said
    assert project.backfill("run").returncode == 0


def assert_done(engine: sa.Engine, changed: int, *, of: int = ROWS) -> None:
    assert values_of_n(engine) == {0: of - changed, 1: changed}


def assert_run_asks_to_resume(project: AlembicProject) -> None:
    refused = project.backfill("run")
    assert (refused.returncode, "backfill resume count_up" in refused.stderr) == (3, True)


def assert_goes_on(project: AlembicProject, engine: sa.Engine) -> None:
    done = project.backfill("run")
    assert done.returncode == 0, done.stderr
    assert values_of_n(engine) == {1: ROWS}
