"""Drives real runners through faults and an application's writes, and compares with the model."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backfill import Backfill, owners, quarantine, runner, settings, tables
from backfill.dialects import dialect_for
from backfill.errors import InvalidTransition, LeaseLost
from backfill.failures import describe
from backfill.ranges import _between
from backfill.runs import Outcome, Status
from backfill.store import Store
from tests.integration.support import bound
from tests.model.model import Model, Snapshot, things
from tests.model.processes import OWNER, Fault, Process, Recording

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "count_once"
TO_THE_END = 2_000
"""Hand-overs after which a process that nobody disturbs must have ended."""
ALLOWED_FAILURES = (
    "another run was begun meanwhile",
    "cancelled from outside",
    "sweeps",
)
NO_SIGNALS = {name: 0 for name in settings.WATCHED if name.startswith(("max_", "min_"))}


def declarations() -> dict[str, type[Backfill]]:
    """Ways to add 1 to every row, none of which may be done twice."""

    def transform(self: Any, row: Any) -> Mapping[str, Any]:
        return {"n": row.n + 1, "done": 1}

    def apply(self: Any, connection: sa.Connection, chunk: Any) -> None:
        connection.execute(chunk.update().values(n=chunk.table.c.n + 1, done=1))

    ways: dict[str, dict[str, Any]] = {
        "set": {"values": {"n": "n + 1", "done": "1"}},
        "python": {"reads": ["n"], "writes": ["n", "done"], "transform": transform},
        "custom": {"apply": apply},
    }
    common = {"name": NAME, "table": "things", "revision": "a1", "__module__": __name__}
    return {
        f"{way}{'' if where else ', no where'}": type(
            "CountOnce", (Backfill,), {**common, **body, **({"where": where} if where else {})}
        )
        for way, body in ways.items()
        for where in ("done IS NULL", None)
    }


DECLARATIONS = declarations()
slots = st.integers(0, 2)
picks = st.integers(0, 30)
points = st.integers(0, 40)


class Machine(RuleBasedStateMachine):
    """Three runners at most, an application, and somebody at the command line."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.url = self.make_database(Path(directory))
        self.recording = Recording()
        self._stack.enter_context(patch.object(owners, "myself", OWNER.get))
        self._stack.enter_context(patch.object(runner, "cut_table", self._cut))
        self._stack.enter_context(patch.object(runner, "describe", self._describe))
        self.engine = self.new_engine()
        self.store = Store(dialect_for(self.engine))
        self.processes: dict[int, Process] = {}
        self.ended: list[Process] = []

    def make_database(self, directory: Path) -> str:
        """Return the URL of an empty database."""
        return f"sqlite:///{directory / 'app.db'}"

    def new_engine(self) -> sa.Engine:
        engine = sa.create_engine(
            self.url,
            poolclass=sa.NullPool,
            connect_args={"timeout": 0.5, "check_same_thread": False},
        )

        @sa.event.listens_for(engine, "connect")
        def be_quick(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        return engine

    @initialize(
        which=st.sampled_from(sorted(DECLARATIONS)),
        rows=st.integers(0, 12),
        ranges=st.integers(1, 3),
    )
    def begin(self, which: str, rows: int, ranges: int) -> None:
        self.declaration = DECLARATIONS[which]
        self.range_count = ranges
        self.model = Model(has_where=self.declaration.where is not None)
        things.create(self.engine)
        self.store.ensure()
        for number in range(rows):
            self._insert(10 * (number + 1), 100)

    def _cut(self, connection: sa.Connection, target: Any, *_: Any) -> Any:
        """Cut a table into ranges that only a big one would be cut into."""
        self.model.cuts.append(self.model.step)
        keys = connection.execute(sa.select(*target.key.selected).order_by(*target.key.columns))
        found = [tuple(key) for key in keys]
        if not found:
            return []
        parts = self.range_count
        return _between((), [found[len(found) * i // parts] for i in range(1, parts)], found[-1])

    def _describe(self, error: BaseException, dialect: Any) -> str:
        self.recording.add("a runner", "".join(format_exception(error)[-8:])[-3000:])
        return describe(error, dialect)

    # -- runners ---------------------------------------------------------------------------

    @rule(slot=slots, size=st.integers(1, 5))
    def start(self, slot: int, size: int) -> None:
        if slot in self.processes:
            return
        self.processes[slot] = Process(
            f"runner {len(self.ended) + len(self.processes) + 1}",
            self.new_engine(),
            self.declaration,
            self.recording,
            lambda: self.model.step,
            chunk_size=size,
            **NO_SIGNALS,
        )

    @precondition(lambda self: self.processes)
    @rule(pick=picks, times=st.integers(1, 12))
    def advance(self, pick: int, times: int) -> None:
        slot = self._slot(pick)
        for _ in range(times):
            self._advance(slot)

    @precondition(lambda self: self.processes)
    @rule(pick=picks, fault=st.sampled_from(Fault), after=points)
    def disturb(self, pick: int, fault: Fault, after: int) -> None:
        self.processes[self._slot(pick)].meet(fault, after)

    @precondition(lambda self: self.processes)
    @rule(pick=picks)
    def ask_to_stop(self, pick: int) -> None:
        self.processes[self._slot(pick)].stop()

    @rule()
    def let_leases_end(self) -> None:
        self.recording.add("time", "every lease ends")
        past = sa.update(tables.key_range).values(lease_expires=sa.text("'2000-01-01 00:00:00'"))
        with self.engine.begin() as connection:
            connection.execute(past)

    def _slot(self, pick: int) -> int:
        return sorted(self.processes)[pick % len(self.processes)]

    def _advance(self, slot: int) -> None:
        process = self.processes.get(slot)
        if process is None:
            return
        process.advance()
        self._observe(process.proof_began)
        if process.has_ended:
            self.ended.append(self.processes.pop(slot))
            self._check_end(process)

    def _check_end(self, process: Process) -> None:
        if process.error is not None:
            raise process.error
        if process.result is not None and process.result.outcome is Outcome.FAILED:
            text = process.result.text
            if not any(allowed in text for allowed in ALLOWED_FAILURES):
                raise AssertionError(f"{text}\n{self.recording}")

    # -- people ------------------------------------------------------------------------------

    @rule(wanted=st.sampled_from([Status.PAUSED, Status.PENDING, Status.CANCELLED]))
    def decide(self, wanted: Status) -> None:
        run = self.store.current(NAME)
        if run is None:
            return
        if wanted is Status.PENDING and run.status is not Status.PAUSED:
            return
        self.recording.add("somebody", f"moves the run to {wanted.value}")
        try:
            self.store.move(NAME, wanted)
        except InvalidTransition:
            self.recording.add("somebody", "is refused")

    @rule()
    def retry_failures(self) -> None:
        run = self.store.current(NAME)
        if run is None or not self.store.failures(run):
            return
        self.recording.add("somebody", "retries failures")
        target = bound(self.engine, self.declaration)
        try:
            quarantine.retry(target, self.store, run, settings.resolve())
        except (InvalidTransition, LeaseLost):
            self.recording.add("somebody", "is refused")
        self._observe(retries=True)

    # -- the application -----------------------------------------------------------------------

    @rule(key=st.integers(1, 150))
    def insert(self, key: int) -> None:
        if key not in self.model.rows:
            self._insert(key, 7)

    def _insert(self, key: int, n: int) -> None:
        self._write("inserts", key, things.insert().values(id=key, n=n, bad=0))
        self.model.insert(key, n)

    @rule(pick=picks, by=st.integers(1, 9))
    def change(self, pick: int, by: int) -> None:
        key = self._key(pick)
        if key is not None:
            self._update("changes", key, n=things.c.n + by)
            self.model.rows[key].written += by

    @rule(pick=picks)
    def reopen(self, pick: int) -> None:
        key = self._key(pick)
        if key is not None:
            self._update("reopens", key, done=None)
            self.model.reopen(key)

    @rule(pick=picks)
    def settle(self, pick: int) -> None:
        key = self._key(pick)
        if key is not None and not self.model.rows[key].is_bad:
            self._update("settles", key, done=1)
            self.model.rows[key].is_pending = False

    @rule(pick=picks)
    def spoil(self, pick: int) -> None:
        key = self._key(pick)
        if key is not None:
            self._update("spoils", key, bad=1, done=None)
            self.model.spoil(key)

    @rule(pick=picks)
    def mend(self, pick: int) -> None:
        key = self._key(pick)
        if key is not None:
            self._mend(key)

    def _mend(self, key: int) -> None:
        self._update("mends", key, bad=0)
        self.model.rows[key].is_bad = False

    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        key = self._key(pick)
        if key is not None:
            self._write("deletes", key, things.delete().where(things.c.id == key))
            del self.model.rows[key]

    def _key(self, pick: int) -> int | None:
        found = sorted(self.model.rows)
        return found[pick % len(found)] if found else None

    def _update(self, what: str, key: int, **values: Any) -> None:
        self._write(what, key, things.update().where(things.c.id == key).values(**values))

    def _write(self, what: str, key: int, statement: sa.sql.expression.Executable) -> None:
        self.recording.add("app", f"{what} row {key}")
        with self.engine.begin() as connection:
            connection.execute(statement)

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "model"):
            self._observe()

    def _observe(self, proof_began: int | None = None, *, retries: bool = False) -> None:
        with self.engine.connect() as connection:
            snapshot = Snapshot.of(connection)
        try:
            self.model.observe(snapshot, [proof_began], retries=retries)
        except AssertionError as broken:
            raise type(broken)(f"{broken}\n{self.recording}") from broken

    def teardown(self) -> None:
        with self._stack:
            try:
                for process in self.processes.values():
                    process.kill()
                if hasattr(self, "model"):
                    self._bring_to_an_end()
            finally:
                self.engine.dispose()

    def _bring_to_an_end(self) -> None:
        """Whatever happened: bad rows mended, one undisturbed runner after the other ends it."""
        self.processes.clear()
        self._observe()
        for key in sorted(self.model.rows):
            self._mend(key)
        for _ in range(6):
            self.decide(Status.PENDING)
            self.let_leases_end()
            self.retry_failures()
            self.start(0, 3)
            process = self.processes[0]
            for _ in range(TO_THE_END):
                self._advance(0)
                if process.has_ended:
                    break
            assert process.has_ended, f"does not end:\n{self.recording}"
            assert process.result is not None
            if process.result.outcome is Outcome.COMPLETE:
                break
        assert process.result.outcome is Outcome.COMPLETE, f"{process.result}\n{self.recording}"
        assert not (self.model.has_where and self.model.pending()), str(self.recording)
