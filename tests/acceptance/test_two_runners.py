"""What two runners tell, and how they share the work. Whether every row is right then is shown by
tests/faults/split_brain.py."""

from __future__ import annotations

from pathlib import Path
from signal import SIGCONT
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.counting import (
    CREATE_COUNTERS,
    PATIENCE_SECONDS,
    PYTHON,
    SET_BASED,
    assert_counts,
    last_words,
    prepare,
    rows_changed_by,
    start_and_wait_for_a_chunk,
    status,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.projects import AlembicProject, Started

ROWS = 40_000
SLOW_ROWS = 3_000

# A runner with STOP_AT in its environment stops itself there: surely while Python computes.
STOPS_ITSELF = (
    CREATE_COUNTERS
    + """
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        import signal

        if row.id == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.005)
        return {"n": row.n + 1}
"""
)


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is over after 2 s, and a stopped runner's transaction before that."""
    monkeypatch.setenv("BACKFILL_LEASE_SECONDS", "2")
    monkeypatch.setenv("BACKFILL_IDLE_TIMEOUT", "1")


def test_two_runners_started_together(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROW_SECONDS", "0.002")
    prepare(project, engine, PYTHON, SLOW_ROWS)
    runners = [project.start("run", "--json", "--chunk-size=50") for _ in range(2)]
    for runner in runners:
        runner.wait(PATIENCE_SECONDS)
    loser, winner = sorted(runners, key=rows_changed_by)
    assert (winner.returncode, loser.returncode) == (0, 4), last_words(loser)
    assert (rows_changed_by(winner), rows_changed_by(loser)) == (SLOW_ROWS, 0)
    assert "is being run by" in loser.read_stderr()
    assert_each_row_once(project, engine, SLOW_ROWS)


def test_workers_of_one_runner(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    done = project.backfill("run", "--workers=3", "--chunk-size=200")
    assert done.returncode == 0, done.stderr
    assert len(status(project)["ranges"]) >= 3
    assert_each_row_once(project, engine, ROWS)


def test_two_runners_with_workers_share_the_ranges(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, engine, PYTHON, ROWS)
    monkeypatch.setenv("ROW_SECONDS", "0.0005")  # long enough for the later one to join in
    command = ("run", "--json", "--workers=2", "--chunk-size=100")
    runners = [project.start(*command) for _ in range(2)]
    for runner in runners:
        runner.wait(PATIENCE_SECONDS)
    shares = [rows_changed_by(runner) for runner in runners]
    assert all(shares), "one of the runners had nothing to do"
    assert sum(shares) == ROWS
    codes = sorted(runner.returncode for runner in runners)
    assert codes in ([0, 4], [0, 0]), [last_words(runner) for runner in runners]
    assert_each_row_once(project, engine, ROWS)


@pytest.mark.usefixtures("short_leases")
def test_runner_stopped_while_it_computes_is_fenced(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, engine, STOPS_ITSELF, 400)
    monkeypatch.setenv("STOP_AT", "95")
    stopped = project.start("run", "--json", "--chunk-size=20")
    wait_until(lambda: is_stopped(stopped), stopped)
    monkeypatch.delenv("STOP_AT")
    second = start_and_wait_for_a_chunk(project, "--chunk-size=20")
    stopped.send_signal(SIGCONT)
    assert stopped.wait(PATIENCE_SECONDS) == 4, last_words(stopped)
    assert second.poll() is None, "the stopped runner was meant to wake up before the end"
    assert second.wait(PATIENCE_SECONDS) == 0, last_words(second)
    assert (rows_changed_by(stopped), rows_changed_by(second)) == (80, 320)
    assert_each_row_once(project, engine, 400)


@pytest.mark.usefixtures("short_leases")
def test_status_tells_since_when_nothing_was_committed(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project, engine, STOPS_ITSELF, 100)
    monkeypatch.setenv("STOP_AT", "45")
    stopped = project.start("run", "--json", "--chunk-size=20")
    wait_until(lambda: is_stopped(stopped), stopped)
    wait_until(lambda: "lease has run out" in (status(project)["ranges"][0]["owner"] or ""))
    quiet = status(project)["ranges"][0]["seconds_quiet"]
    assert 2 <= quiet < status(project)["ranges"][0]["seconds_quiet"]
    stopped.send_signal(SIGCONT)
    assert stopped.wait(PATIENCE_SECONDS) == 0, last_words(stopped)
    assert status(project)["ranges"][0]["seconds_quiet"] is None
    assert_each_row_once(project, engine, 100)


def is_stopped(process: Started) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def assert_each_row_once(project: AlembicProject, engine: sa.Engine, rows: int) -> None:
    assert values_of_n(engine) == {1: rows}
    assert_counts(project, rows)
