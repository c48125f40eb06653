"""Several runners that each believe a key range to be theirs.

A runner is stopped or dies, a second one takes over, the first one goes on if it can. The second
may neither be too early, nor wait for longer than it has to.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.acceptance.counting import has_committed, last_words, wait_until
from tests.databases import CAPABILITIES_OF
from tests.faults.fault import Attempt, Fault
from tests.faults.oracle import Counting
from tests.projects import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.faults.fault import Stage
    from tests.projects import Started

LEASE_SECONDS = 2.0
SHORT_LEASE = {"BACKFILL_LEASE_SECONDS": str(LEASE_SECONDS), "BACKFILL_IDLE_TIMEOUT": "1"}
"""A lease ends after 2 s, and the transaction of a runner that was stopped before that."""
TAKEN_OVER = (LEASE_SECONDS / 2, LEASE_SECONDS + 10)
"""When the next chunk comes where the end of the lease is waited for: its last renewal may be a
little while ago, and the machine may be busy."""
AT_ONCE = (0.0, 15.0)
"""The same where nothing is waited for: far below the default lease of 30 s."""
HOUR = 3600.0
GUISE = Path(__file__).parent / "guise"

ROWS, ROWS_ON_SQLITE, ROWS_FOR_MANY = 1_000, 5_000, 20_000
"""On a server a run over so few rows lasts for a second at least, since it is not alone there."""
PATIENCE_SECONDS = 60.0

leases = sa.table("backfill_range", sa.column("owner"), sa.column("token"))


def guise(*, host: str = "", seconds: float = 0, zone: str = "UTC") -> dict[str, str]:
    """What makes a command believe to be on another host, or in another hour."""
    return {
        "PYTHONPATH": os.pathsep.join([str(GUISE), environment()["PYTHONPATH"]]),
        "GUISE_HOST": host,
        "GUISE_SECONDS": str(seconds),
        "TZ": zone,
    }


@dataclass(frozen=True, slots=True)
class Loss:
    """How the first runner is lost, and what the second one can know of it."""

    signal: Signals
    waits: bool
    """Only the end of its lease tells that the first one is gone."""
    first: Mapping[str, str] = field(default_factory=dict)
    second: Mapping[str, str] = field(default_factory=dict)
    owner: Callable[[str], str] | None = None
    """What its lease says afterwards, of what it said before."""


def lose_a_runner(stage: Stage, way: str, loss: Loss) -> Attempt:
    """Let a second runner go on with what a first one had begun."""
    rows = ROWS if "server" in CAPABILITIES_OF[stage.kind] else ROWS_ON_SQLITE
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=rows) as counting,
    ):
        if loss.waits:
            counting.variables |= SHORT_LEASE
            counting.project.starts_anew = True  # TAKEN_OVER counts on it
        with counting.application():
            first = counting.start_and_wait_for_a_chunk(**loss.first)
            time.sleep(stage.dice.uniform(0, 0.2))
            silence(first, loss.signal)
            if "row_locks" not in database.capabilities:
                wake_until_others_can_write(counting, first)
            if loss.owner is not None:
                rewrite_owners(counting.engine, loss.owner)
            earliest, latest = TAKEN_OVER if loss.waits else AT_ONCE
            with counting.recovering(earliest, latest):
                second = counting.start_and_wait_for_a_chunk(**loss.second)
            time.sleep(stage.dice.uniform(0, 0.2))
            if loss.signal is SIGSTOP:
                first.send_signal(SIGCONT)
                assert_ends(first, 0, 4)
            assert_ends(second, 0)
        return counting.attempt()


def silence(process: Started, number: Signals) -> None:
    process.send_signal(number)
    if number is SIGKILL:
        process.wait()
    else:
        wait_until(lambda: is_stopped(process), process)


def wake_until_others_can_write(counting: Counting, process: Started) -> None:
    """A runner that is stopped while it writes keeps SQLite's only lock until it goes on."""
    while process.poll() is None and not can_write(counting.engine):
        process.send_signal(SIGCONT)
        time.sleep(counting.dice.uniform(0, 0.02))
        silence(process, SIGSTOP)


def is_stopped(process: Started) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def can_write(engine: sa.Engine) -> bool:
    """Whether SQLite's lock is to be had within a few of the application's transactions; one who
    was stopped while it reads keeps writers from their COMMIT, and them others from reading."""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 300")
        try:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        except sa.exc.OperationalError:
            return False
        connection.rollback()
        return True


def rewrite_owners(engine: sa.Engine, owner: Callable[[str], str]) -> None:
    with engine.begin() as connection:
        held = leases.c.token.is_not(None)
        for (found,) in connection.execute(sa.select(leases.c.owner).where(held)).all():
            ours = sa.update(leases).where(leases.c.owner == found)
            connection.execute(ours.values(owner=owner(found)))


def assert_ends(process: Started, *codes: int) -> None:
    if process.wait(PATIENCE_SECONDS) not in codes:
        raise AssertionError(f"it was to end with {codes}: {last_words(process)}")


def with_a_living_pid(owner: str) -> str:
    """The owner's pid belongs to a later process, which is alive."""
    host, _, started, machine = owner.rsplit(":", 3)
    return f"{host}:{os.getpid()}:{started}:{machine}"


def in_another_container(owner: str) -> str:
    """The owner is of a container with the same host name, where nobody can look."""
    host, _, started, _ = owner.rsplit(":", 3)
    return f"{host}:{os.getpid()}:{started}:another-boot.1"


def start_many(stage: Stage, way: str, runners: int) -> Attempt:
    """Start several at once, on a database that has not even our tables."""
    rows = ROWS_FOR_MANY
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=rows) as counting,
    ):
        command = ("run", "--workers=2", "--chunk-size=100")
        with counting.application(), ThreadPoolExecutor(runners) as pool:
            commands = [pool.submit(counting.project.backfill, *command) for _ in range(runners)]
            ended = [one.result() for one in commands]
        codes = [one.returncode for one in ended]
        if set(codes) - {0, 4} or 0 not in codes:
            raise AssertionError(f"exit codes {codes}: {[one.stderr for one in ended]}")
        counting.faults += runners - 1
        return counting.attempt()


def compute_for_longer_than_the_lease(stage: Stage) -> Attempt:
    """A runner that is alive and silent keeps its lease: a second one gives up. (No application
    changes so few rows: they would be computed again and again.)"""
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way="transform", rows=6) as counting,
    ):
        counting.variables |= SHORT_LEASE
        first = counting.start(ROW_SECONDS="0.6")
        wait_until(lambda: is_claimed(counting.engine), first)
        second = counting.start()
        counting.faults += 1
        assert_ends(second, 4, 0)  # 0 where it began so late that the first one has just ended
        assert_ends(first, 0)
        if not has_committed(first) or has_committed(second):
            raise AssertionError("the second runner took over from a living one")
        return counting.attempt()


def is_claimed(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(leases.name):
            return False
        return bool(connection.scalar(sa.select(sa.func.count(leases.c.token))))


# Of servers: SQLite's clock is that of whichever process looks at it.
AHEAD = guise(seconds=HOUR, zone="Pacific/Kiritimati")
BEHIND = guise(seconds=-HOUR, zone="Pacific/Pago_Pago")
LOSSES = {
    "SIGSTOP for longer than the lease of 2 s, then SIGCONT": Loss(SIGSTOP, waits=True),
    "SIGSTOP likewise, the second runner's clock two hours behind": Loss(
        SIGSTOP, waits=True, first=AHEAD, second=BEHIND
    ),
    "SIGSTOP likewise, the second runner's clock two hours ahead": Loss(
        SIGSTOP, waits=True, first=BEHIND, second=AHEAD
    ),
    "SIGKILL on another host, seen by the end of a lease of 2 s": Loss(
        SIGKILL, waits=True, first=guise(host="elsewhere")
    ),
    "SIGKILL in another container, seen by the end of a lease of 2 s": Loss(
        SIGKILL, waits=True, owner=in_another_container
    ),
    "SIGKILL, and the pid is another process's": Loss(
        SIGKILL, waits=False, owner=with_a_living_pid
    ),
}

FAULTS = [
    *(
        Fault(
            f"{runners} runners at once", partial(start_many, way=way, runners=runners), in_soak=70
        )
        for runners, way in ((2, "values"), (4, "transform"), (8, "values"))
    ),
    Fault("a runner computes for longer than its lease", compute_for_longer_than_the_lease),
    *(
        Fault(
            name,
            partial(lose_a_runner, way="values", loss=loss),
            requires=frozenset({"server"} if loss.second else ()),
            in_soak=170,
            recovers_within=None if loss.waits else 2,
        )
        for name, loss in LOSSES.items()
    ),
]
