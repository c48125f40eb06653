"""Short lives that are directed to one moment each: a fault at every statement in turn, something
that happens at every hand-over in turn, and single scenes. Random lives meet these moments seldom.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Thread
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.runs import Outcome, Status
from tests.acceptance.test_pgbouncer import CLEAN, SESSIONS, left_in_the_sessions
from tests.integration.neighbours import wait_until
from tests.integration.support import complete
from tests.model.invariants import Invariant, require
from tests.model.processes import CHECKPOINT, Fault
from tests.model.world import ALONE, WAYS, Place, World, add_one, declare, things
from tests.poolers import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backfill import Backfill
    from backfill.runs import Result
    from tests.databases import Database
    from tests.model.processes import Process

KEYS = (10, 20, 30, 40, 50)
FEW = (10, 20, 30)
SERVERS = ("postgresql", "mariadb")
SOON = 200
"""Hand-overs that are more than enough for a few rows."""


@dataclass(frozen=True)
class Stage:
    """A stage, and the databases on which it has something to show."""

    play: Callable[..., None]
    databases: Sequence[str]
    given: Mapping[str, Any]

    def __call__(self, database: Database) -> None:
        """Raises Broken."""
        place = Place(database)
        try:
            self.play(place, **self.given)
        finally:
            place.close()

    def __str__(self) -> str:
        words = [getattr(v, "__name__", None) or getattr(v, "name", v) for v in self.given.values()]
        return "-".join(map(str, (self.play.__name__, *words)))


def stage(play: Callable[..., None], *databases: str, **given: Any) -> Stage:
    return Stage(play, databases, given)


@contextmanager
def life(place: Place, way: str | type[Backfill], keys: Sequence[int]) -> Iterator[World]:
    """One life in a database, in which nothing else lives; its end has to be good."""
    with World(place, WAYS[way] if isinstance(way, str) else way, keys) as world:
        yield world
        world.end_well()


def result_of(process: Process) -> Result:
    assert process.result is not None, process.name
    return process.result


# -- faults at every point -------------------------------------------------------------------------


def ask_to_stop(world: World) -> None:
    """Found by the machine: a lost answer while the run was put to rest ended in a traceback."""
    world.processes[0].stop()


def pause(world: World) -> None:
    """Found by the machine, too: a lost connection while the runner looked who had done it."""
    world.decide(Status.PAUSED)


WRITES = ("INSERT", "UPDATE", "COMMIT")


def fault_at_every_write(place: Place, **given: Any) -> None:
    """The same, before each write and COMMIT. What was killed there need not be killed while it
    only reads."""
    fault_at_every_point(place, **given, where=WRITES)


def fault_at_every_answer(place: Place, **given: Any) -> None:
    """The same, before and behind each COMMIT."""
    fault_at_every_point(place, **given, where=("COMMIT", "done"))


def fault_at_every_point(
    place: Place,
    way: str,
    fault: Fault,
    after: Callable[[World], None] | None = None,
    where: tuple[str, ...] = ("",),
) -> None:
    """A runner meets a fault at one statement or COMMIT after the other, from its first to its
    last, as it is or after something has happened to its run. Others end its work."""
    for point in count():
        with life(place, way, FEW) as world:
            process = world.start()
            process.meet(fault, point, where=where)
            world.advance(0, 12)
            if after is not None and 0 in world.processes:
                after(world)
            world.finish_all()
            if not process.has_met:
                return
            if fault is Fault.LOSE and after is None:
                is_complete = result_of(process).outcome is Outcome.COMPLETE
                world.require(is_complete, Invariant.DOUBT_IS_SURVIVED, str(process.result))


def commit_arrives_late(place: Place, way: str) -> None:
    """The answer to the COMMIT of a chunk is lost. It arrives at once, or when the runner waits for
    it (or has gone on for a while), or never; nobody else is there, so the runner has to end it."""
    for commits, hand_overs in ((True, 0), (True, 5), (True, 8), (False, 0)):
        with life(place, way, KEYS) as world:
            process = world.start()
            process.meet(Fault.HOLD, 1, where=CHECKPOINT)
            while not process.has_met:
                world.advance()
            world.advance(0, hand_overs)
            world.deliver(commits=commits)
            world.finish_all()
            is_complete = result_of(process).outcome is Outcome.COMPLETE
            world.require(is_complete, Invariant.DOUBT_IS_SURVIVED, str(process.result))


# -- something happens at every hand-over ----------------------------------------------------------


def cancel(world: World) -> None:
    world.decide(Status.CANCELLED)


def resume_at_once(world: World) -> None:
    """Paused, resumed and ended by another runner, before the first one looks."""
    world.decide(Status.PAUSED)
    world.decide(Status.PENDING)
    world.start(1)
    world.finish(1)


def begin_anew(world: World) -> None:
    """Cancelled, and another runner has begun a new run when the first one goes on."""
    world.decide(Status.CANCELLED)
    for key in world.keys:
        world.reopen(key)
    world.start(1)
    world.advance_beyond_a_chunk(1)


def take_over(world: World) -> None:
    """Another runner ends it while the first one is stopped past its lease."""
    world.end_leases()
    world.start(1)
    world.finish(1)


def join(world: World) -> None:
    """Another runner is there for a while."""
    world.start(1)
    world.advance(1, 9)


def change_all(world: World) -> None:
    for key in world.keys:
        world.change(key, 5)


def reopen_all(world: World) -> None:
    for key in world.keys:
        world.reopen(key)


def settle_one(world: World) -> None:
    """The application does what the backfill has yet to do."""
    world.settle(world.keys[-1])


def insert_around(world: World) -> None:
    for key in (5, 15, 55):
        world.insert(key, 7)


def delete_all(world: World) -> None:
    """Found by the machine: a proof that began on an empty table failed."""
    for key in world.keys:
        world.delete(key)


def spoil_one(world: World) -> None:
    world.spoil(world.keys[0])


def resize(world: World) -> None:
    world.resize(1)


EVENTS = (
    *(pause, cancel, resume_at_once, begin_anew, take_over, join),
    *(change_all, reopen_all, settle_one, insert_around, delete_all, spoil_one, resize),
)


def event_at_every_hand_over(place: Place, way: str, event: Callable[[World], None]) -> None:
    """Something happens while a runner stands at one place after the other where it holds
    nothing; then it goes on."""
    for times in count():
        with life(place, way, FEW) as world:
            world.start()
            world.advance(0, times)
            if 0 not in world.processes:
                return
            event(world)
            world.finish_all()


def pause_at_every_update(place: Place, way: str) -> None:
    """Somebody pauses the run between what a transaction reads and what it writes, and has to wait
    for its end."""
    for point in count():
        with life(place, way, FEW[:1]) as world:
            process = world.start()
            process.meet(partial(world.decide, Status.PAUSED), point, where="UPDATE")
            world.finish()
            if not process.has_met:
                return


# -- scenes ----------------------------------------------------------------------------------------


def bad_row(place: Place, way: str) -> None:
    """One row before the last is refused by the database. It alone is quarantined, and soon."""
    with life(place, way, KEYS) as world:
        world.spoil(40)
        world.start()
        outcome = result_of(world.finish(at_most=SOON)).outcome
        is_told = outcome is Outcome.QUARANTINED
        world.require(is_told, Invariant.BAD_ROWS_ARE_RECORDED, outcome.value)


def two_clocks(place: Place, way: str) -> None:
    """A second runner comes while the first one is at work."""
    with life(place, way, KEYS) as world:
        world.start(0)
        world.advance_beyond_a_chunk(0)
        world.start(1)
        world.advance(1, 30)
        world.finish_all()


def locked_row(place: Place, way: str) -> None:
    """The application changes a row, and takes its time to commit."""
    for commits in (True, False):
        with life(place, way, KEYS) as world:
            world.hold_change(30, 5)
            world.start()
            world.advance(0, 25)
            world.let_go(commits=commits)
            world.observe()
            world.finish_all()


def late_commit(place: Place, way: str) -> None:
    """A row below the bound is inserted before the run begins, and committed behind its cursor."""
    with life(place, way, KEYS) as world:
        world.hold_insert(25, 7)
        world.start()
        world.advance(0, 40)
        world.let_go()
        world.finish_all()


# -- scenes with a second table, which the application has locked ----------------------------------

tally = sa.Table(
    "tally",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
)


def counting(meanwhile: Callable[[sa.Connection, Any], None]) -> type[Backfill]:
    """Adds 1 to each row; in its second chunk something is done meanwhile, and then 1 is added to
    a tally."""
    calls = count(1)

    def apply(self: Any, connection: sa.Connection, chunk: Any) -> None:
        add_one(self, connection, chunk)
        if next(calls) == 2:
            meanwhile(connection, chunk)
            connection.execute(tally.update().values(n=tally.c.n + 1))

    return declare(apply=apply)


def lost_in_apply(place: Place) -> None:
    """Found by a wrong protocol: a connection lost between two statements of `apply` ended the
    run, since it was asked for something that only a live one has."""

    def lose(connection: sa.Connection, _chunk: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.close()

    with tallying(place), life(place, counting(lose), KEYS) as world:
        world.start()
        result = result_of(world.finish())
        is_complete = result.outcome is Outcome.COMPLETE
        world.require(is_complete, Invariant.DOUBT_IS_SURVIVED, str(result))


@contextmanager
def tallying(place: Place) -> Iterator[sa.Engine]:
    """The second table, and the application's connections to it."""
    engine = place.engine
    tally.create(engine)
    with engine.begin() as connection:
        connection.execute(tally.insert(), [{"id": key, "n": 0} for key in range(200)])
    try:
        yield engine
    finally:
        tally.drop(engine)


def second_statement_refused(place: Place) -> None:
    """The second statement of the second chunk meets a lock of the application. The first one has
    done its part by then."""
    with tallying(place) as engine, ExitStack() as application:

        def lock(*_: Any) -> None:
            app = application.enter_context(engine.connect())
            app.execute(tally.update().where(tally.c.id == 0).values(n=1))

        with life(place, counting(lock), KEYS) as world:
            world.start()
            world.finish()


def deadlock(place: Place) -> None:
    """A chunk waits for the application, which waits for the chunk. The application has changed
    more rows, so the database takes back all that the chunk's transaction did."""
    with tallying(place) as engine, ExitStack() as application:

        def quarrel(connection: sa.Connection, chunk: Any) -> None:
            app = application.enter_context(engine.connect())
            app.execute(tally.update().values(n=tally.c.n + 1))
            key = connection.execute(chunk.select(chunk.table.c.id)).scalars().all()[-1]
            taking = things.update().where(things.c.id == key).values(bad=0)

            def take() -> None:
                app.execute(taking)
                app.commit()

            thread = Thread(target=take, daemon=True)
            application.callback(thread.join)
            thread.start()
            wait_until(lambda: is_waiting(place))

        with life(place, counting(quarrel), KEYS) as world:
            world.start(size=4, lock_timeout=5, idle_timeout=60)
            world.finish()


def is_waiting(place: Place) -> bool:
    """Whether a transaction of MariaDB waits for a row. (The view is renewed if nobody has read it
    for 0.1 s.)"""
    time.sleep(0.15)
    waiting = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    with place.engine.connect() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())


# -- what is left to others ------------------------------------------------------------------------


def pooled_sessions(place: Place) -> None:
    """A run behind a pooler in transaction mode; others get its sessions."""
    place.clear()
    with place.engine.begin() as connection:
        connection.execute(things.insert(), [{"id": key, "n": 0, "bad": 0} for key in KEYS])
    with pgbouncer(place.database, SESSIONS) as pooled:
        complete(pooled.engine(), WAYS["set"], **ALONE)
        left = left_in_the_sessions(pooled)
    require(left == {CLEAN}, Invariant.NOTHING_IS_LEFT_BEHIND, str(left))


# -- all of them -----------------------------------------------------------------------------------

STAGES: Sequence[Stage] = (
    *(
        stage(fault_at_every_write, "sqlite", way=way, fault=Fault.KILL)
        for way in ("set, no where", "python, no where")
    ),
    stage(fault_at_every_answer, "sqlite", way="set", fault=Fault.LOSE),
    *(
        stage(fault_at_every_answer, "sqlite", way="set", fault=Fault.LOSE, after=after)
        for after in (ask_to_stop, pause)
    ),
    *(
        stage(event_at_every_hand_over, "sqlite", way="set", event=event)
        for event in (pause, begin_anew, reopen_all, settle_one)
    ),
    stage(event_at_every_hand_over, "sqlite", way="set, no where", event=take_over),
    stage(event_at_every_hand_over, "sqlite", way="python, no where", event=change_all),
    stage(event_at_every_hand_over, "sqlite", way="custom", event=delete_all),
    stage(pause_at_every_update, "sqlite", way="set"),
    *(stage(commit_arrives_late, *SERVERS, way=way) for way in ("set, no where", "python")),
    stage(bad_row, "sqlite", *SERVERS, way="set"),
    stage(bad_row, "sqlite", way="set, no where"),
    stage(bad_row, *SERVERS, way="python"),
    stage(two_clocks, "sqlite", *SERVERS, way="set"),
    *(stage(locked_row, *SERVERS, way=way) for way in ("set", "python, no where")),
    stage(late_commit, *SERVERS, way="set"),
    stage(lost_in_apply, *SERVERS),
    stage(second_statement_refused, "mariadb"),
    stage(deadlock, "mariadb"),
    stage(pooled_sessions, "postgresql"),
)
LONG_STAGES: Sequence[Stage] = (
    *(
        stage(fault_at_every_point, "sqlite", way=way, fault=fault)
        for way in WAYS
        for fault in (Fault.KILL, Fault.LOSE)
    ),
    *(
        stage(event_at_every_hand_over, "sqlite", *SERVERS, way=way, event=event)
        for way in WAYS
        for event in EVENTS
    ),
    *(stage(commit_arrives_late, *SERVERS, way=way) for way in WAYS),
)
"""For the soak: all of it, everywhere."""
