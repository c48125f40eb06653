"""One life: an empty database, simulated runners, an application that uses the same table, and
somebody at the command line. After each step all that is committed is compared with the model.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from traceback import format_exception
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa

from backfill import Backfill, opening, owners, proving, quarantine, runner, settings, tables
from backfill.dialects import dialect_for
from backfill.errors import InvalidTransition, LeaseLost
from backfill.failures import describe
from backfill.keys import loads
from backfill.ranges import _between
from backfill.runs import Outcome, Status
from backfill.speed import pacing
from backfill.store import Store
from tests.databases import DRIVERS
from tests.integration.support import bound
from tests.model.invariants import Broken, Invariant
from tests.model.model import Model, Range, Snapshot
from tests.model.processes import OWNER, Line, Process, Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.databases import Database

NAME = "count_once"
TO_THE_END = 2_000
"""Hand-overs after which a process that nobody disturbs must have ended."""
AT_ONCE_SECONDS = 2.0
"""A runner that meets a lock of the application has let go of its own by then, on any machine."""
KNOWN_REASONS = ("another run was begun meanwhile", "cancelled from outside", "sweeps")
ALONE: Mapping[str, Any] = {
    **{name: 0 for name in settings.WATCHED if name.startswith(("max_", "min_"))},
    "nice": 0,
    "target_seconds": 1,
}
"""Settings with which nothing is watched, so that a runner is one thread."""

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer),
    sa.Column("bad", sa.Integer, nullable=False),
    sa.CheckConstraint("bad = 0 OR done IS NULL", name="no_bad_rows"),
)


# -- what is run -----------------------------------------------------------------------------------


def declare(**body: Any) -> type[Backfill]:
    common = {"name": NAME, "table": "things", "revision": "a1", "__module__": __name__}
    return type("CountOnce", (Backfill,), {**common, **body})


def _transform(self: Any, row: Any) -> Mapping[str, Any]:
    return {"n": row.n + 1, "done": 1}


def add_one(_self: Any, connection: sa.Connection, chunk: Any) -> None:
    connection.execute(chunk.update().values(n=chunk.table.c.n + 1, done=1))


_WAYS: Mapping[str, Mapping[str, Any]] = {
    "set": {"values": {"n": "n + 1", "done": "1"}},
    "python": {"reads": ["n"], "writes": ["n", "done"], "transform": _transform},
    "custom": {"apply": add_one},
}
WAYS: Mapping[str, type[Backfill]] = {
    **{way: declare(**body, where="done IS NULL") for way, body in _WAYS.items()},
    **{f"{way}, no where": declare(**body) for way, body in _WAYS.items()},
}
"""Ways to add 1 to every row, none of which may be done twice."""


# -- where -----------------------------------------------------------------------------------------


class Place:
    """A database in which one life after the other begins with empty tables."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.name = database.name
        self.capabilities = database.capabilities
        self.url = database.url
        if database.name == "mariadb":  # only PROCESS shows who has an older transaction
            url = sa.make_url(database.admin_url).update_query_dict(DRIVERS["pymysql"].query)
            self.url = url.render_as_string(hide_password=False)
        self.engine = self.new_engine()
        self.store = Store(dialect_for(self.engine))
        self._looks = [_text(look, self.engine) for look in _looks(self.store.dialect.now())]
        """By the database's clock, as it is before anything is patched."""
        self._lines: list[Line] = []
        self._observer = self.engine.execution_options(isolation_level="REPEATABLE READ")

    def new_engine(self, **options: Any) -> sa.Engine:
        if not self.url.startswith("sqlite"):
            return sa.create_engine(self.url, **options)
        arguments = {"timeout": 0.5, "check_same_thread": False}
        engine = sa.create_engine(self.url, connect_args=arguments, **options)

        @sa.event.listens_for(engine, "connect")
        def be_quick(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        return engine

    def lend(self) -> Line:
        """Return an engine for a runner of its own."""
        return self._lines.pop() if self._lines else Line(self.new_engine(poolclass=sa.NullPool))

    def take_back(self, process: Process) -> None:
        """Let other runners have the engine of one that has ended: it knows the statements."""
        self._lines.append(process.line)

    def clear(self) -> None:
        """Leave nothing of the life before."""
        things.create(self.engine, checkfirst=True)
        self.store.ensure()
        of_runs = [table for table in tables.metadata.sorted_tables if table is not tables.schema]
        with self.engine.begin() as connection:
            for table in (things, *reversed(of_runs)):
                connection.execute(table.delete())

    def snapshot(self) -> Snapshot:
        """Read all that is committed, as of one moment."""
        with self._snapshotting() as connection:
            runs, ranges, failures, rows = (
                connection.exec_driver_sql(text).all() for text in self._looks
            )
        return Snapshot(
            {id_: Status(status) for id_, status in runs},
            {
                id_: Range(run_id, _key(low), _key(high), _key(cursor), changed, *lease, bool(live))
                for id_, run_id, low, high, cursor, changed, *lease, live in ranges
            },
            frozenset((run_id, _key(key)) for run_id, key in failures),
            {id_: (n, done is None) for id_, n, done in rows},
        )

    @contextmanager
    def _snapshotting(self) -> Iterator[sa.Connection]:
        if self.name != "sqlite":
            with self._observer.connect() as connection:
                yield connection
            return
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")  # the driver's own comes before a write only
            yield connection
            connection.exec_driver_sql("ROLLBACK")

    def close(self) -> None:
        self.engine.dispose()


def _looks(now: sa.ColumnElement[Any]) -> Iterator[sa.Select[Any]]:
    """Give what is asked for a snapshot."""
    run, key_range, failure = tables.run.c, tables.key_range.c, tables.failure.c
    is_live = sa.case((key_range.lease_expires > now, 1), else_=0)
    bounds = (key_range.lower, key_range.upper, key_range.cursor)
    lease = (key_range.token, key_range.owner, is_live)
    yield sa.select(run.id, run.status)
    yield sa.select(key_range.id, key_range.run_id, *bounds, key_range.rows_changed, *lease)
    yield sa.select(failure.run_id, failure.key)
    yield sa.select(things.c.id, things.c.n, things.c.done)


def _text(statement: sa.Select[Any], engine: sa.Engine) -> str:
    """Return it as text, for the driver: it is asked after each step."""
    return str(statement.compile(engine, compile_kwargs={"literal_binds": True}))


def _key(text: str) -> int:
    values = loads(text)
    return values[0] if values else 0


# -- a life ----------------------------------------------------------------------------------------


class World:
    """All that happens in one life, by whoever directs it: a machine, or a stage."""

    def __init__(
        self,
        place: Place,
        declaration: type[Backfill],
        keys: Iterable[int] = (),
        *,
        ranges: int = 1,
        attentive: bool = False,
    ) -> None:
        """`attentive`: runners look before each chunk what was decided elsewhere, rather than once
        a second."""
        self.place = place
        self.engine, self.store = place.engine, place.store
        self.declaration = declaration
        self.model = Model(has_where=declaration.where is not None)
        self.recording = Recording()
        self.processes: dict[int, Process] = {}
        self.begun = 0
        """Runners that were ever started."""
        self._ranges = ranges
        self._on_their_way: list[tuple[Any, int | None]] = []
        """The driver's connections, and when their runners began their last proofs."""
        self._held: sa.Connection | None = None
        """The application's transaction that is open."""
        self._end_of_hold: Callable[[], None] = lambda: None
        with ExitStack() as stack:
            stack.enter_context(patch.object(owners, "myself", OWNER.get))
            for module in (opening, proving):
                stack.enter_context(patch.object(module, "cut_table", self._cut))
            stack.enter_context(patch.object(runner, "describe", self._describe))
            if attentive:
                stack.enter_context(patch.object(pacing, "LOOK_SECONDS", 0.0))
            place.clear()
            for key in keys:
                self.insert(key, 100)
            self._stack = stack.pop_all()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *error: object) -> None:
        """End what is left, and nothing else: a life that has gone wrong is not looked at."""
        with self._stack:
            self.deliver(commits=False)
            self.let_go(commits=False)
            self._kill_all()
            self.deliver(commits=False)

    def _cut(self, connection: sa.Connection, target: Any, *_: Any) -> Any:
        """Cut a table into ranges that only a big one would be cut into."""
        self.model.cuts.append(self.model.step)
        ordered = sa.select(*target.key.selected).order_by(*target.key.columns)
        found = [tuple(key) for key in connection.execute(ordered)]
        if not found:
            return []
        parts = self._ranges
        return _between((), [found[len(found) * i // parts] for i in range(1, parts)], found[-1])

    def _describe(self, error: BaseException, dialect: Any) -> str:
        self.recording.add("a runner", "".join(format_exception(error)[-8:])[-3000:])
        return describe(error, dialect)

    # -- runners ---------------------------------------------------------------------------

    def start(self, slot: int = 0, size: int = 2, **options: Any) -> Process:
        """Start a runner; it does nothing before it is let go on."""
        self.begun += 1
        process = self.processes[slot] = Process(
            f"runner {self.begun}",
            self.place.lend(),
            self.declaration,
            self.recording,
            lambda: self.model.step,
            **{**ALONE, "chunk_size": size, **options},
        )
        return process

    def advance(self, slot: int = 0, times: int = 1) -> None:
        """Let a runner go on until it has handed over so often, or has ended."""
        for _ in range(times):
            process = self.processes.get(slot)
            if process is None:
                return
            process.advance(partial(self._look_at_who_waits, process))
            self._take_what_is_on_its_way(process)
            self.observe(proof_began=process.proof_began)
            if process.has_ended:
                self.place.take_back(self.processes.pop(slot))
                self._check_end(process)

    def advance_beyond_a_chunk(self, slot: int = 0) -> None:
        """Let a runner go on until it has moved a cursor, or has ended."""
        before = self._cursors()
        while slot in self.processes and self._cursors() == before:
            self.advance(slot)

    def _cursors(self) -> int:
        return sum(found.cursor for found in self.model.seen.ranges.values())

    def finish(self, slot: int = 0, at_most: int = TO_THE_END) -> Process:
        """Let a runner go on to its end."""
        process = self.processes[slot]
        self.advance(slot, at_most)
        self.require(process.has_ended, Invariant.ENDS_WELL, f"{process.name} does not end")
        return process

    def finish_all(self) -> None:
        """Let all runners go on by turns: one may wait for another."""
        for _ in range(TO_THE_END):
            for slot in sorted(self.processes):
                self.advance(slot)
        self.require(not self.processes, Invariant.ENDS_WELL, f"{self.processes} do not end")

    def _look_at_who_waits(self, process: Process) -> None:
        """It waits for a COMMIT of its own that is late; or for the application, which it must
        not do with locks of its own."""
        self.deliver()
        if self._held is not None and not process.hands_over_within(AT_ONCE_SECONDS):
            self.let_go()
            self._break(Broken(Invariant.GIVES_WAY, f"{process.name} waits for the application"))

    def _kill_all(self) -> None:
        while self.processes:
            _, process = self.processes.popitem()
            process.kill()
            self._take_what_is_on_its_way(process)
            self.place.take_back(process)

    def _check_end(self, process: Process) -> None:
        if process.error is not None:
            self.require(False, Invariant.FAILS_FOR_A_REASON, repr(process.error))
        if process.result is not None and process.result.outcome is Outcome.FAILED:
            text = process.result.text
            is_known = any(reason in text for reason in KNOWN_REASONS)
            self.require(is_known, Invariant.FAILS_FOR_A_REASON, text)

    def deliver(self, *, commits: bool = True) -> None:
        """Let each COMMIT that is on its way arrive now, or never."""
        for process in self.processes.values():
            self._take_what_is_on_its_way(process)
        while self._on_their_way:
            connection, proof_began = self._on_their_way.pop(0)
            self.recording.add("network", f"a COMMIT {'arrives' if commits else 'is lost'}")
            try:
                (connection.commit if commits else connection.rollback)()
            except self.engine.dialect.loaded_dbapi.Error as error:
                self.recording.add("network", f"too late: {error}")
            connection.close()
            self.observe(proof_began=proof_began)

    def _take_what_is_on_its_way(self, process: Process) -> None:
        self._on_their_way += [(one, process.proof_began) for one in process.on_their_way]
        process.on_their_way.clear()

    # -- time and people -----------------------------------------------------------------------

    def end_leases(self) -> None:
        self.deliver()
        self.recording.add("time", "every lease ends")
        past = sa.update(tables.key_range).values(lease_expires=sa.text("'2000-01-01 00:00:00'"))
        with self.engine.begin() as connection:
            connection.execute(past)
        self.observe()

    def decide(self, wanted: Status) -> None:
        """Pause (PAUSED), resume (PENDING) or cancel the run, if there is one."""
        self.deliver()
        run = self.store.current(NAME)
        if run is None or (wanted is Status.PENDING and run.status is not Status.PAUSED):
            return
        self.recording.add("somebody", f"moves the run to {wanted.value}")
        try:
            self.store.move(NAME, wanted)
        except InvalidTransition:
            self.recording.add("somebody", "is refused")
        proofs = [p.proof_began for p in self.processes.values() if p.proof_began is not None]
        self.observe(decides=True, proof_began=max(proofs, default=None))  # it may have ended now

    def resize(self, size: int) -> None:
        """Set another size of chunks for the run, if there is one to set it for."""
        self.deliver()
        run = self.store.current(NAME)
        if run is None or run.is_over:
            return
        self.recording.add("somebody", f"sets chunk_size={size}")
        self.store.change(NAME, {"chunk_size": size})
        self.observe()

    def retry_failures(self) -> None:
        self._before_writing()
        run = self.store.current(NAME)
        if run is None or not self.store.failures(run):
            return
        self.recording.add("somebody", "retries failures")
        target = bound(self.engine, self.declaration)
        try:
            quarantine.retry(target, self.store, run, settings.resolve())
        except (InvalidTransition, LeaseLost):
            self.recording.add("somebody", "is refused")
        self.observe(retries=True)

    # -- the application -----------------------------------------------------------------------

    @property
    def keys(self) -> list[int]:
        return sorted(self.model.rows)

    def insert(self, key: int, n: int) -> None:
        self.let_go()  # this may have been it
        if key in self.model.rows:
            return
        self._write("inserts", key, things.insert().values(id=key, n=n, bad=0))
        self.model.insert(key, n)
        self.observe()

    def change(self, key: int, by: int) -> None:
        self._update("changes", key, n=things.c.n + by)
        self.model.rows[key].written += by
        self.observe()

    def reopen(self, key: int) -> None:
        self._update("reopens", key, done=None)
        self.model.reopen(key)
        self.observe()

    def settle(self, key: int) -> None:
        self._update("settles", key, done=1)
        self.model.rows[key].is_pending = False
        self.observe()

    def spoil(self, key: int) -> None:
        self._update("spoils", key, bad=1, done=None)
        self.model.spoil(key)
        self.observe()

    def mend(self, key: int) -> None:
        self._update("mends", key, bad=0)
        self.model.rows[key].is_bad = False
        self.observe()

    def delete(self, key: int) -> None:
        self._write("deletes", key, things.delete().where(things.c.id == key))
        del self.model.rows[key]
        self.observe()

    def hold_change(self, key: int, by: int) -> None:
        """Change a row in a transaction that stays open."""

        def end() -> None:
            self.model.rows[key].written += by

        self._hold(
            "changes", key, things.update().where(things.c.id == key), end, n=things.c.n + by
        )

    def hold_insert(self, key: int, n: int) -> None:
        """Insert a row in a transaction that stays open."""
        self.let_go()  # this may have been it
        if key in self.model.rows:
            return
        new = things.insert().values(id=key, bad=0)
        self._hold("inserts", key, new, lambda: self.model.insert(key, n), n=n)

    def let_go(self, *, commits: bool = True) -> None:
        """End the application's open transaction, if there is one."""
        connection, self._held = self._held, None
        if connection is None:
            return
        self.recording.add("app", "commits" if commits else "rolls back")
        self.model.open_since = None
        (connection.commit if commits else connection.rollback)()
        connection.close()
        if commits:
            self._end_of_hold()
            self.observe()

    def _hold(self, what: str, key: int, statement: Any, end: Any, **values: Any) -> None:
        self._before_writing()
        self.recording.add("app", f"{what} row {key}, and does not commit")
        self.model.open_since, self._end_of_hold = self.model.step, end
        self._held = self.engine.connect()
        self._held.execute(statement.values(**values))
        self.observe()

    def _update(self, what: str, key: int, **values: Any) -> None:
        self._write(what, key, things.update().where(things.c.id == key).values(**values))

    def _write(self, what: str, key: int, statement: sa.sql.expression.Executable) -> None:
        self._before_writing()
        self.recording.add("app", f"{what} row {key}")
        with self.engine.begin() as connection:
            connection.execute(statement)

    def _before_writing(self) -> None:
        """It has one transaction at a time, and waits for a COMMIT of ours that is on its way."""
        self.deliver()
        self.let_go()

    # -- what must hold ----------------------------------------------------------------------

    def observe(self, **since: Any) -> None:
        """Compare all that is committed with the model."""
        try:
            self.model.observe(self.place.snapshot(), **since)
        except Broken as broken:
            self._break(broken)

    def require(self, holds: bool, invariant: Invariant, details: str = "") -> None:
        if not holds:
            self._break(Broken(invariant, details))

    def _break(self, broken: Broken) -> None:
        """Raise it with all that was recorded."""
        raise Broken(broken.invariant, f"{broken.details}\n{self.recording}") from broken

    def end_well(self) -> None:
        """Whatever happened: bad rows mended, one undisturbed runner after the other ends it."""
        self._kill_all()
        self._before_writing()
        self.observe()
        for key in self.keys:
            self.mend(key)
        result = None
        for _ in range(6):
            self.decide(Status.PENDING)
            self.end_leases()
            self.retry_failures()
            self.start(0, 3)
            result = self.finish(0).result
            if result is not None and result.outcome is Outcome.COMPLETE:
                break
        else:
            self.require(False, Invariant.ENDS_WELL, str(result))
        left = self.model.pending() if self.model.has_where else ()
        self.require(not left, Invariant.FINISHED_MEANS_PROVED, f"rows {left}")
