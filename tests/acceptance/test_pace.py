"""Pace: windows, caps and `backfill set`, and that nobody has to wait for a worker that rests."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from functools import partial
from signal import SIGINT
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import (
    PATIENCE_SECONDS,
    SET_BASED,
    assert_counts,
    events,
    has_committed,
    last_words,
    prepare,
    rows_changed_by,
    start_and_wait_for_a_chunk,
    status,
    values_of_n,
    wait_until,
)

if TYPE_CHECKING:
    from tests.projects import AlembicProject, Started

pytestmark = pytest.mark.by_turns

ROWS = 2_000
MANY_ROWS = 40_000


def window(hours_from_now: int, hours: int) -> str:
    """A window that opens so many hours from now; its minutes do not matter."""
    opens = datetime.now(timezone.utc) + timedelta(hours=hours_from_now)
    return f"{opens:%H:%M}-{opens + timedelta(hours=hours):%H:%M} UTC"


def start_outside_of_a_window(project: AlembicProject, *arguments: str) -> tuple[Started, str]:
    """A runner that waits, and the reason that it has to give."""
    later = window(2, 1)
    opens, _, closes = later.removesuffix(" UTC").partition("-")
    runner = project.start("run", "--json", f"--window={later}", *arguments)
    wait_until(lambda: any(e["event"] == "throttled" for e in events(runner)), runner)
    return runner, f"waits until {opens} UTC (window {opens}-{closes})"


def notes(engine: sa.Engine, what: str) -> list[str]:
    """What the audit says, oldest first."""
    query = sa.text("SELECT details FROM backfill_event WHERE what = :what ORDER BY id")
    with engine.connect() as connection:
        return list(connection.execute(query, {"what": what}).scalars())


@pytest.mark.parametrize("workers", ["--workers=2", "--processes=2"])
def test_outside_its_window_nothing_is_written_and_everybody_is_told_why(
    project: AlembicProject, engine: sa.Engine, workers: str
) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner, reason = start_outside_of_a_window(project, workers)
    wait_until(lambda: status(project)["throttled"] is not None, runner)
    assert status(project)["throttled"] == reason
    runner.send_signal(SIGINT)
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    told = [event for event in events(runner) if event["event"] == "throttled"]
    assert [(event["text"], event["reason"]) for event in told] == [(reason, reason)]
    assert notes(engine, "throttled") == [reason]
    assert values_of_n(engine) == {0: ROWS}
    assert_counts(project, 0, state="pending")


def test_a_worker_that_waits_hears_of_a_pause(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner, _ = start_outside_of_a_window(project)
    assert project.backfill("pause", "count_up").returncode == 0
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert_counts(project, 0, state="paused")


def test_a_long_rest_ends_with_a_signal(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner = start_and_wait_for_a_chunk(project, "--chunk-size=10", "--nice=1000000")
    runner.send_signal(SIGINT)
    assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert rows_changed_by(runner) == 10
    assert_counts(project, 10, state="pending")


def test_set_reaches_a_runner_that_waits(project: AlembicProject, engine: sa.Engine) -> None:
    prepare(project, engine, SET_BASED, ROWS)
    runner, _ = start_outside_of_a_window(project)
    for given, code, told in (
        ("lease_seconds=5", 2, "lease_seconds cannot be changed while a run lasts"),
        ("nice", 2, "is not KEY=VALUE"),
    ):
        refused = project.backfill("set", "count_up", given)
        assert (refused.returncode, told in refused.stderr) == (code, True), refused.stderr
    now = window(-1, 2)
    done = project.backfill("set", "count_up", f"window={now}", "chunk_size=250")
    assert done.returncode == 0, done.stderr
    assert runner.wait(PATIENCE_SECONDS) == 0, last_words(runner)
    assert values_of_n(engine) == {1: ROWS}
    chunks = [event["changed"] for event in events(runner) if event["event"] == "chunk"]
    assert chunks == [250] * (ROWS // 250)
    (changed,) = (event for event in events(runner) if event["event"] == "changed")
    assert (changed["window"], changed["chunk_size"]) == (now, 250)
    assert status(project)["set"] == {"window": now, "chunk_size": 250}
    assert notes(engine, "set") == [f"window={now}, chunk_size=250"]


def test_runners_and_their_workers_share_one_cap(
    project: AlembicProject, engine: sa.Engine
) -> None:
    """Over any stretch of time, and however the machine stalls: so an upper bound cannot flake."""
    cap, seconds = 200, 3.0
    prepare(project, engine, SET_BASED, MANY_ROWS)
    command = ("run", "--json", "--workers=2", f"--rows-per-second={cap}")
    runners = [project.start(*command) for _ in range(2)]
    for runner in runners:
        wait_until(partial(has_committed, runner), runner)
    began = time.monotonic()
    before = done(engine)
    wait_until(lambda: time.monotonic() - began >= seconds, runners[0])
    changed = done(engine) - before
    assert 0 < changed <= cap * (time.monotonic() - began + 1.5)
    for runner in runners:
        runner.send_signal(SIGINT)
    for runner in runners:
        assert runner.wait(PATIENCE_SECONDS) == 3, last_words(runner)
    assert values_of_n(engine)[1] == sum(map(rows_changed_by, runners))


def done(engine: sa.Engine) -> int:
    return values_of_n(engine).get(1, 0)
