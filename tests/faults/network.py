"""The network between a runner and its server; the application's own connections are well."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import alembic
import sqlalchemy as sa

from tests.acceptance.counting import last_words, wait_until
from tests.databases import DRIVERS
from tests.faults import proxy
from tests.faults.fault import Fault
from tests.faults.oracle import Counting
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from threading import Event

    from tests.databases import Database
    from tests.faults.fault import Attempt, Stage
    from tests.faults.proxy import Trick
    from tests.projects import AlembicProject, Started

SERVER = frozenset({"server"})
PLAIN = {"postgresql": "psycopg", "mariadb": "pymysql"}

LONGEST_SECONDS = 120.0

IMPATIENT = {"statement_timeout": 1, "idle_timeout": 1}
"""So that who waits for a silent server gives up after two seconds."""


# -- a run through a proxy -----------------------------------------------------------------------


@contextlib.contextmanager
def counting_through_a_proxy(
    stage: Stage,
    *,
    driver: str | None = None,
    way: str = "values",
    rows: int = 600,
    settings: Mapping[str, float] = {},
) -> Iterator[tuple[Counting, Proxy, Started]]:
    """A run that has committed its first chunk, and the proxy that it goes through."""
    with (
        stage.servers.database(stage.kind, stage.directory) as database,
        Counting.on(database, stage.directory, stage.dice, way=way, rows=rows) as counting,
        Proxy(stage.kind, port_of(database)) as between,
        counting.application(),
    ):
        connect_through(counting.project, between, database, driver or PLAIN[stage.kind])
        configure(counting, settings)
        process = counting.start_and_wait_for_a_chunk()
        yield counting, between, process


def port_of(database: Database) -> int:
    port = sa.make_url(database.url).port
    assert port is not None
    return port


def connect_through(
    project: AlembicProject, between: Proxy, database: Database, driver: str
) -> None:
    project.set_url(between.url(database.through(driver).url))
    if DRIVERS[driver].is_async:
        template = Path(alembic.__file__).parent / "templates" / "async" / "env.py"
        (project.directory / "migrations" / "env.py").write_text(template.read_text())


def configure(counting: Counting, settings: Mapping[str, float]) -> None:
    """Set settings of all runs that are started from now on."""
    for name, value in settings.items():
        counting.variables[f"BACKFILL_{name.upper()}"] = str(value)


def chunks_of(process: Started) -> int:
    """How many chunks a run has told of so far."""
    return process.read_stdout().count('"event": "chunk"')


def strike(counting: Counting, process: Started, happens: Callable[[], Event]) -> None:
    """Let something happen to a run, and wait until it has committed a chunk again."""
    happened = happens()
    wait_until(happened.is_set, process)
    before = chunks_of(process)
    with counting.recovering():
        wait_until(lambda: chunks_of(process) > before or process.poll() == 0)


def finished(counting: Counting, process: Started) -> Attempt:
    """Wait for the end of a run that has to end well."""
    wait_until(lambda: process.poll() is not None, seconds=LONGEST_SECONDS)
    if process.poll() != 0:
        raise AssertionError(f"the run failed: {last_words(process)}")
    return counting.attempt()


# -- what happens to it --------------------------------------------------------------------------


def at_commits(
    stage: Stage,
    trick: Trick,
    *,
    times: int,
    driver: str | None = None,
    settings: Mapping[str, float] = {},
) -> Attempt:
    """Play a trick on one chunk's COMMIT after the other."""
    way = stage.dice.choice(["values", "transform"])
    through = counting_through_a_proxy(stage, driver=driver, way=way, settings=settings)
    with through as (counting, between, process):
        for _ in range(times):
            strike(counting, process, lambda: between.at_next_chunk(trick))
        return finished(counting, process)


def cut_at_random_bytes(stage: Stage, *, times: int) -> Attempt:
    """Cut a connection in the middle of whatever is said, in either direction."""
    with counting_through_a_proxy(stage) as (counting, between, process):
        for _ in range(times):
            byte = stage.dice.randrange(4_000)
            strike(counting, process, lambda byte=byte: between.cut_after_bytes(byte))  # type: ignore[misc]
        return finished(counting, process)


def drip(stage: Stage, *, bytes_per_second: float) -> Attempt:
    """Pass on a few bytes at a time: it goes on, slowly, and nothing is cut."""
    with counting_through_a_proxy(stage, rows=150) as (counting, between, process):
        with counting.recovering():
            before = chunks_of(process)
            between.bytes_per_second = bytes_per_second
            wait_until(lambda: chunks_of(process) > before, process)
        wait_until(lambda: process.poll() is not None, seconds=LONGEST_SECONDS)
        assert "connection was lost" not in process.read_stdout()
        between.bytes_per_second = None
        return finished(counting, process)


def refuse(stage: Stage, *, seconds: float) -> Attempt:
    """Cut all connections, and refuse new ones for so long."""
    with counting_through_a_proxy(stage) as (counting, between, process):
        between.refuse()
        before = chunks_of(process)
        time.sleep(seconds)
        assert process.poll() is None, process.read_stderr()
        assert chunks_of(process) <= before + 1  # one may have been told late
        with counting.recovering():
            between.accept()
            wait_until(lambda: chunks_of(process) > before + 1, process)
        return finished(counting, process)


def commit_fault(
    name: str,
    trick: Trick,
    *,
    times: int = 4,
    driver: str | None = None,
    takes_turns: bool = True,
    in_ci: int = 1,
    in_soak: int = 125,
    settings: Mapping[str, float] = {},
) -> Fault:
    return Fault(
        f"{name}, {driver}" if driver else name,
        partial(at_commits, trick=trick, times=times, driver=driver, settings=settings),
        requires=SERVER if driver is None else BY_DRIVER[driver],
        in_ci=in_ci,
        takes_turns=takes_turns,
        in_soak=in_soak,
    )


BY_DRIVER = {
    "psycopg2": frozenset({"server", "poolers"}),
    "asyncpg": frozenset({"server", "poolers"}),
    "mysqldb": frozenset({"server", "history_list"}),
}
"""Capabilities that only the driver's database has."""

CUTS: dict[str, Trick] = {
    "cut before COMMIT": proxy.cut_before,
    "cut in the middle of COMMIT": proxy.cut_during,
    "cut after COMMIT, before its answer": proxy.cut_after,
    "COMMIT held, and delivered late": proxy.deliver_late,
}
SILENCES: dict[str, Trick] = {
    "COMMIT's answer swallowed": proxy.swallow_answer,
    "stall: nothing passes any more": proxy.fall_silent,
    "half-open: the server has gone": proxy.lose_server,
}

FAULTS = [
    *(
        commit_fault(name, trick, times=15, takes_turns=False, in_soak=35)
        for name, trick in CUTS.items()
    ),
    commit_fault(
        "half-open: the server is not told",
        proxy.lose_client,
        times=1,
        in_soak=100,
        settings={"idle_timeout": 1},
    ),
    *(
        commit_fault(name, trick, times=1, in_soak=100, settings=IMPATIENT)
        for name, trick in SILENCES.items()
    ),
    Fault(
        "cut at a random byte",
        partial(cut_at_random_bytes, times=8),
        requires=SERVER,
        in_soak=125,
    ),
    Fault("slow drip", partial(drip, bytes_per_second=15_000), requires=SERVER, in_soak=5),
    Fault("connections refused for 2 s", partial(refuse, seconds=2), requires=SERVER, in_soak=20),
    Fault(
        "connections refused for a minute",
        partial(refuse, seconds=60),
        requires=SERVER,
        in_ci=0,
        in_soak=3,
    ),
    *(
        commit_fault(name, trick, driver=driver, in_ci=0, in_soak=25)
        for driver in BY_DRIVER
        for name, trick in CUTS.items()
    ),
    *(
        commit_fault(
            "COMMIT's answer swallowed",
            proxy.swallow_answer,
            times=1,
            driver=driver,
            in_ci=0,
            in_soak=10,
            settings=IMPATIENT,
        )
        for driver in BY_DRIVER
    ),
]
