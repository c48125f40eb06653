"""SIGKILL of the command: at random instants, and at each of its statements and COMMITs."""

from __future__ import annotations

import signal
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from tests.acceptance.counting import wait_until
from tests.faults.fault import Attempt, Fault
from tests.faults.oracle import Counting
from tests.faults.points import UNNAMED, moments
from tests.forked import Forked, zygote_for
from tests.projects import TIMEOUT_SECONDS, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.faults.fault import Stage

KILLS_A_RUN = 10
LONGEST_LIFE_SECONDS = 0.3
"""From a command's start, or from its first chunk, until it is killed."""
LATE_SECONDS = 15.0
"""Whoever goes on after that has waited for the lease of 30 s, or for a part of it."""
IN_TURN = {("values", 4), ("transform", 1)}
"""Tried on one database by turns, since the other two combinations are tried on each."""
ROWS = 20_000
"""More than are done in all the lives together, on SQLite too; and a range of fewer than 5,000 is
not cut for several workers."""

FEW_ROWS = 60
LONGEST_COMMIT_SECONDS = 0.002
RENEWING = ("--rows-per-second=70",)
SHORT_LEASE = {"BACKFILL_LEASE_SECONDS": "0.1"}
"""So that a lease is renewed while the run rests to keep its pace."""


def kill_at_random(stage: Stage, way: str, workers: int) -> Attempt:
    """Kill one command after the other, the start of each included; then let one go to its end."""
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=ROWS) as counting,
    ):
        options = (*counting.options, f"--workers={workers}")
        with counting.application():
            for _ in range(KILLS_A_RUN - 2):
                kill_soon(counting, *options)
            process = counting.start_and_wait_for_a_chunk(*options)
            process.end()
            with counting.recovering(at_most=LATE_SECONDS):
                process = counting.start_and_wait_for_a_chunk(*options)
            process.end()
            counting.faults += 1
            counting.finish("--workers=1", "--nice=0")  # beside an application it would rest
        return counting.attempt()


def kill_soon(counting: Counting, *options: str) -> None:
    """Start a command and kill it: while it starts, or walks, or whatever it does by then."""
    counting.faults += 1
    logs = counting.project.directory / f"killed-{counting.faults}"
    with logs.with_suffix(".out").open("w") as out, logs.with_suffix(".err").open("w") as err:
        words = ("run", "--json", *options)
        zygote = zygote_for("backfill")
        command = Forked(zygote, "backfill", words, *surroundings(counting), out, err)
    if counting.dice.random() < 0.5:
        told = logs.with_suffix(".out")
        wait_until(lambda: command.poll() is not None or '"chunk"' in told.read_text())
    time.sleep(counting.dice.uniform(0, LONGEST_LIFE_SECONDS))
    command.end()
    if command.returncode != -signal.SIGKILL:
        raise AssertionError(f"it ended too early: {logs.with_suffix('.err').read_text()}")


def kill_at_each_point(stage: Stage, way: str) -> Attempt:
    """Kill one command after the other, each at the next point of a whole run. Where a command
    does not come to its point any more, its run is let go to its end, and another begins."""
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=FEW_ROWS) as counting,
    ):
        todo = deque(points_of_a_run(counting))
        wrong: list[str] = []
        rows = 0
        while todo:
            counting.begin_anew()
            first = todo[0]
            with counting.application():
                while todo and is_killed_at(counting, *todo[0]):
                    todo.popleft()
                    counting.faults += 1
                counting.finish()
            wrong += counting.wrong()
            rows += counting.rows
            if todo and todo[0] == first:
                raise AssertionError(f"no command came to {' '.join(first)}")
        return Attempt(counting.faults, rows, wrong)


def points_of_a_run(counting: Counting) -> list[tuple[str, str]]:
    """When and where the commands of a whole run can die: (moment, point), in their order."""
    if run(counting, *counting.options, *RENEWING, **SHORT_LEASE) != 0:
        raise AssertionError("the run whose points were to be noted failed")
    noted = record(counting).read_text().splitlines()
    names = dict.fromkeys(line.split(" ", 3)[3] for line in noted)
    if unnamed := [name for name in names if name.startswith(UNNAMED)]:
        raise AssertionError(f"tests/faults/points.py has no names for {unnamed}")
    return [(moment, name) for name in names for moment in moments(name)]


def is_killed_at(counting: Counting, moment: str, name: str) -> bool:
    """Whether a command came to a point of its run, and so to its end."""
    delay = counting.dice.uniform(0, LONGEST_COMMIT_SECONDS)
    at = ("--at", name, "--moment", moment, "--delay", str(delay))
    renewing = name.endswith("renewal")
    options = (*counting.options, *(RENEWING if renewing else ()))
    code = run(counting, *options, at=at, **(SHORT_LEASE if renewing else {}))
    if code not in (0, -signal.SIGKILL):
        raise AssertionError(f"a command that was to die at {name} ended with {code}")
    return code != 0


def run(counting: Counting, *options: str, at: Sequence[str] = (), **variables: str) -> int:
    """`backfill run` by the killer: its exit code, which is 0 or minus the signal."""
    directory, ours = surroundings(counting)
    words = (str(record(counting)), *at, "--", "run", *options)
    zygote = zygote_for("backfill")
    done = zygote.run("tests.faults.killer", words, directory, ours | variables, TIMEOUT_SECONDS)
    if done.returncode > 0:
        raise AssertionError(f"a run ended with {done.returncode}: {done.stderr}")
    return done.returncode


def surroundings(counting: Counting) -> tuple[Path, dict[str, str]]:
    """Directory and environment of a command."""
    return counting.project.directory, environment() | counting.variables


def record(counting: Counting) -> Path:
    return counting.project.directory / "statements.record"


FAULTS = [
    *(
        Fault(
            f"SIGKILL at a random instant, {way}, {workers} worker{'s' * (workers > 1)}",
            partial(kill_at_random, way=way, workers=workers),
            takes_turns=(way, workers) in IN_TURN,
            in_soak=125,
            recovers_within=2,
        )
        for way in ("values", "transform")
        for workers in (1, 4)
    ),
    *(
        Fault(
            f"SIGKILL before and after each statement and COMMIT, {way}",
            partial(kill_at_each_point, way=way),
            takes_turns=way == "apply",  # the user's own statement, in the same protocol
            in_soak=20,
        )
        for way in ("values", "transform", "apply")
    ),
]
