"""Protocols that are known to be wrong, each ours but for one thing, to test the tests by.

Most are bugs that were found in other tools, or in our own prototypes (docs/decisions.md). Each
has the stage that shows it, and the invariants of which it breaks one there.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa

from backfill import keys, retries, runner, tables
from backfill.committing import Committer
from backfill.dialects import Dialect, ErrorKind, Limits, Overtaken, postgresql_sessions
from backfill.dialects.postgresql import PostgreSQL
from backfill.dialects.sqlite import SQLite
from backfill.errors import CommitUnknown
from backfill.proving import Proving
from backfill.runner import Runner
from backfill.runs import Status
from backfill.speed.pacing import Pace
from backfill.store import Store, quarantine, ranges
from backfill.workers import Worker
from backfill.writers import Written, custom, rows, setbased
from tests.databases import Servers
from tests.model import stages
from tests.model.invariants import Broken, Invariant
from tests.model.processes import OWNER, Fault
from tests.model.stages import SERVERS, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from backfill.runs import Checkpoint, Lease
    from tests.model.stages import Stage

_range = tables.key_range


# -- the guard and the token -----------------------------------------------------------------------


def _guarded_by(*guards: str) -> Callable[..., bool]:
    """Return a checkpoint with only some of its conditions."""

    def checkpoint(
        connection: sa.Connection, _dialect: Any, lease: Lease, _seconds: float, new: Checkpoint
    ) -> bool:
        conditions = {
            "token": _range.c.token == lease.token,
            "cursor": _range.c.cursor == keys.dumps(lease.cursor),
        }
        moved = connection.execute(
            sa.update(_range)
            .where(_range.c.id == lease.range_id, *(conditions[guard] for guard in guards))
            .values(
                cursor=keys.dumps(new.upto),
                rows_changed=_range.c.rows_changed + new.changed,
                finished=new.finished,
            )
        )
        return moved.rowcount == 1

    return checkpoint


@contextmanager
def checkpoint_without_token() -> Iterator[None]:
    """A runner whose lease was taken can still move the cursor."""
    with patch.object(ranges, "checkpoint", _guarded_by("cursor")):
        yield


@contextmanager
def checkpoint_without_guard() -> Iterator[None]:
    """Two runners commit the same chunk."""
    with patch.object(ranges, "checkpoint", _guarded_by()):
        yield


@contextmanager
def checkpoint_without_cursor() -> Iterator[None]:
    """The token alone guards; after a lost answer it stays, and the cursor is read, which says "not
    committed" of a late COMMIT."""

    def read(self: Store, lease: Lease, _seconds: float, _tried: list[str]) -> Lease:
        with self.transaction(write=False) as connection:
            row = connection.execute(sa.select(_range).where(_range.c.id == lease.range_id)).one()
        return replace(lease, cursor=keys.loads(row.cursor), finished=bool(row.finished))

    guard = patch.object(ranges, "checkpoint", _guarded_by("token"))
    with patch.object(Store, "claim_again", read), guard:
        yield


@contextmanager
def doubt_pauses() -> Iterator[None]:
    """A lost answer to COMMIT is left to a person."""
    policy_for, status_after = retries.policy_for, retries.status_after

    def policy(error: BaseException, kind_of: Any) -> Any:
        return None if isinstance(error, CommitUnknown) else policy_for(error, kind_of)

    def status(error: BaseException, kind_of: Any) -> Status:
        return Status.PAUSED if isinstance(error, CommitUnknown) else status_after(error, kind_of)

    with patch.multiple(retries, policy_for=policy, status_after=status):
        yield


# -- where the checkpoint stands -------------------------------------------------------------------


@contextmanager
def checkpoint_after_commit() -> Iterator[None]:
    """The cursor moves in a transaction of its own, after the chunk's."""
    checkpoint = Committer._checkpoint
    after_commit = Committer._after_commit

    def keep(self: Committer, _connection: Any, chunk: Any, written: Any) -> Any:
        return replace(self.hold.lease, cursor=chunk.upto, finished=chunk.is_last)

    def late(self: Committer, chunk: Any, written: Any, lease: Any, started: float) -> int:
        with self.session.transaction() as connection:
            lease = checkpoint(self, connection, chunk, written)
        return after_commit(self, chunk, written, lease, started)

    with (
        patch.object(Committer, "_checkpoint", keep),
        patch.object(Committer, "_after_commit", late),
    ):
        yield


@contextmanager
def checkpoint_before_commit() -> Iterator[None]:
    """The cursor moves first, in a transaction of its own."""
    commit = Committer.commit

    def early(self: Committer, chunk: Any) -> int:
        with self.session.transaction() as connection:
            moved = self._checkpoint(connection, chunk, Written(len(chunk.page or ())))
        with patch.object(self, "_checkpoint", lambda *_: moved):
            return commit(self, chunk)

    with patch.object(Committer, "commit", early):
        yield


# -- who may go on ---------------------------------------------------------------------------------


@contextmanager
def pause_without_fence() -> Iterator[None]:
    """`pause` asks, and leaves the tokens as they are."""
    with patch.object(ranges, "revoke", lambda connection, run: None):
        yield


@contextmanager
def claim_without_looking() -> Iterator[None]:
    """A range is claimed, and walked, whatever was decided for its run."""

    def claim(self: Store, run: Any, found: Any, token: str, seconds: float) -> Any:
        with self.transaction() as connection:
            return ranges.claim(connection, self.dialect, found, token, seconds)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Store, "claim", claim))
        stack.enter_context(patch.object(Worker, "_check_run", lambda self: None))
        stack.enter_context(patch.object(Pace, "look", lambda self: None))
        yield


@contextmanager
def local_clock() -> Iterator[None]:
    """Leases end by each runner's own clock, of which the second one's is a day ahead."""

    def now(self: SQLite, plus_seconds: float = 0) -> sa.ColumnElement[Any]:
        ahead = timedelta(days=OWNER.get().startswith("runner 2:"), seconds=plus_seconds)
        moment = (datetime.now(timezone.utc) + ahead).replace(tzinfo=None)
        return sa.literal_column(f"'{moment}'")

    with patch.object(SQLite, "now", now):
        yield


@contextmanager
def any_status() -> Iterator[None]:
    """A success is recorded for whatever run is the latest, in whatever pass it is."""
    move = Store.move

    def careless(self: Store, name: str, wanted: Status, **options: Any) -> Any:
        return move(self, name, wanted, **{**options, "only": None})

    with patch.object(Store, "move", careless):
        yield


@contextmanager
def default_begin() -> Iterator[None]:
    """On SQLite the driver begins, when the first write comes: what was read before is old."""

    def begin(self: SQLite, connection: sa.Connection, limits: Limits, *, write: bool) -> None:
        connection.info["backfill_deadline"][0] = 0.0

    with patch.multiple(SQLite, begin=begin, isolation_level="SERIALIZABLE"):
        yield


class _Never(Exception):
    """Nobody raises it."""


@contextmanager
def doubt_at_rest() -> Iterator[None]:
    """A lost answer is thought of everywhere but where a stopped run is put to rest."""
    with patch.object(runner, "CommitUnknown", _Never):
        yield


# -- what is done, and counted ---------------------------------------------------------------------


@contextmanager
def no_sweep() -> Iterator[None]:
    """Complete is what was walked once."""
    with patch.object(Runner, "is_proved", lambda self, run: True):
        yield


@contextmanager
def late_commits_overlooked() -> Iterator[None]:
    """The proof waits for nobody, and cannot see what is not committed yet."""
    with patch.object(Proving, "_await_horizon", lambda *args: None):
        yield


@contextmanager
def stop_at_first_empty_chunk() -> Iterator[None]:
    """A chunk that changed nothing is taken for the end of the range."""
    checkpoint = Committer._checkpoint

    def stopping(self: Committer, connection: sa.Connection, chunk: Any, written: Any) -> Any:
        if not written.changed:
            chunk = replace(chunk, upto=self.hold.lease.upper, is_last=True)
        return checkpoint(self, connection, chunk, written)

    with patch.object(Committer, "_checkpoint", stopping):
        yield


@contextmanager
def silent_failures() -> Iterator[None]:
    """A bad row is stepped over, and nobody writes it down."""
    with patch.object(quarantine, "insert", lambda *args: None):
        yield


@contextmanager
def kind_by_class() -> Iterator[None]:
    """OperationalError is what passes; MariaDB's driver has it for a CHECK, too."""
    by_code = Dialect.error_kind

    def by_class(self: Dialect, error: BaseException) -> ErrorKind:
        driver = self.engine.dialect.loaded_dbapi
        is_operational = isinstance(self.driver_error(error), driver.OperationalError)
        return ErrorKind.CONFLICT if is_operational else by_code(self, error)

    with patch.object(Dialect, "error_kind", by_class):
        yield


@contextmanager
def counted_by_scan() -> Iterator[None]:
    """Rows changed are taken to be the rows that were looked at."""
    checkpoint = ranges.checkpoint

    def counting(connection: Any, dialect: Any, lease: Any, seconds: float, new: Any) -> bool:
        return checkpoint(connection, dialect, lease, seconds, replace(new, changed=new.scanned))

    with patch.object(ranges, "checkpoint", counting):
        yield


@contextmanager
def write_without_where() -> Iterator[None]:
    """The chunk's statement does not repeat the pending predicate."""

    def build(self: Any, condition: Any) -> sa.Update:
        return sa.update(self.target.table).where(condition).values(dict(self.target.assignments))

    with patch.object(setbased.SetBasedWriter, "_build", build):
        yield


# -- what the application does meanwhile -----------------------------------------------------------


@contextmanager
def plain_write() -> Iterator[None]:
    """What was computed is written, whatever the row has become meanwhile."""

    def write(self: Any, connection: sa.Connection, chunk: Any) -> Written:
        slow = self.target.dialect.row_by_row
        written = 0
        for columns, page, outputs in self._groups:
            written += slow(self.target, columns).write(connection, page, outputs, {})
        return Written(written, self._failures(chunk.page, self._outputs))

    with patch.object(rows.RowsWriter, "write", write):
        yield


@contextmanager
def dropped_miss() -> Iterator[None]:
    """A row that is not what it was is not written, and not computed again."""
    write = rows.RowsWriter._write_as_read

    def careless(self: Any, connection: sa.Connection, chunk: Any) -> Written:
        try:
            return write(self, connection, chunk)
        except Overtaken:
            return Written(0)

    with patch.object(rows.RowsWriter, "_write_as_read", careless):
        yield


@contextmanager
def skip_locked() -> Iterator[None]:
    """Rows are locked first, but for those that others hold; the cursor passes them."""

    def lock(self: Dialect, statement: sa.Select[Any]) -> sa.Select[Any]:
        return statement.with_for_update(skip_locked=True, key_share=True)

    with patch.multiple(PostgreSQL, lock=lock, verifies=lambda self, target: False):
        yield


@contextmanager
def waits_for_locks() -> Iterator[None]:
    """A chunk waits for a row while it holds others."""
    of = Limits.of

    def patient(*args: Any, **options: Any) -> Limits:
        return replace(of(*args, **options), lock_timeout=30.0, statement_timeout=30.0)

    with patch.object(Limits, "of", patient):
        yield


@contextmanager
def commit_after_timeout() -> Iterator[None]:
    """After a refused lock (MariaDB's 1205) the transaction is open, and is committed."""

    @contextmanager
    def transaction(
        self: Dialect, connection: sa.Connection, limits: Limits, *, write: bool = True
    ) -> Iterator[sa.Connection]:
        transaction = connection.begin()
        try:
            self.begin(connection, limits, write=write)
            yield connection
        except BaseException as error:
            is_refused = self.error_kind(error) is ErrorKind.LOCKED
            (transaction.commit if is_refused else transaction.rollback)()
            raise
        transaction.commit()

    with patch.object(Dialect, "transaction", transaction):
        yield


@contextmanager
def swallowed_deadlock() -> Iterator[None]:
    """After a deadlock (1213), which has ended the transaction, the checkpoint stands alone."""
    write = custom.CustomWriter.write

    def careless(self: Any, connection: sa.Connection, chunk: Any) -> Written:
        try:
            return write(self, connection, chunk)
        except sa.exc.DBAPIError:
            return Written(len(chunk.page or ()))

    with patch.object(custom.CustomWriter, "write", careless):
        yield


@contextmanager
def savepoints() -> Iterator[None]:
    """The halves of a chunk stand behind savepoints, which a deadlock takes away with all
    that was done before it."""

    def halved(self: Committer, connection: sa.Connection, chunk: Any) -> Any:
        written, whole = 0, self.scans.whole(connection, chunk)
        for part in whole.halves() if len(whole.page or ()) > 1 else [whole]:
            written += _behind_a_savepoint(self.writer, connection, part)
        done = Written(written)
        return whole, done, self._checkpoint(connection, whole, done), self.clock()

    with patch.object(Committer, "_write_and_checkpoint", halved):
        yield


def _behind_a_savepoint(writer: Any, connection: sa.Connection, part: Any) -> int:
    connection.exec_driver_sql("SAVEPOINT part")
    try:
        return int(writer.write(connection, part).changed)
    except sa.exc.DBAPIError:
        with suppress(sa.exc.DBAPIError):  # 1305: there is no such savepoint any more
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT part")
    return _behind_a_savepoint(writer, connection, part)


@contextmanager
def session_settings() -> Iterator[None]:
    """SET for the session, which a pooler hands to others."""

    def lasting(statement: sa.Select[Any]) -> sa.Select[Any]:
        """Let each set_config() last."""
        calls = [c.element if isinstance(c, sa.Label) else c for c in statement.selected_columns]
        return sa.select(
            *(sa.func.set_config(*list(call.clauses)[:2], sa.false()) for call in calls)
        )

    names = ("_SET", "_SET_BY_INDEX")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(
                patch.object(postgresql_sessions, name, lasting(getattr(postgresql_sessions, name)))
            )
        yield


# -- all of them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A wrong protocol, the stage that shows it, and what of it breaks there."""

    switched_in: Callable[[], AbstractContextManager[None]]
    stage: Stage
    database: str
    """Where the stage is played."""
    breaks: frozenset[Invariant]

    @property
    def name(self) -> str:
        return self.switched_in.__name__


def _mutant(
    switched_in: Callable[[], AbstractContextManager[None]],
    shown_by: Stage,
    *breaks: Invariant,
    on: str | None = None,
) -> Mutant:
    return Mutant(switched_in, shown_by, on or shown_by.databases[0], frozenset(breaks))


def _fault(way: str, fault: Fault, **given: Any) -> Stage:
    play = stages.fault_at_every_write if fault is Fault.KILL else stages.fault_at_every_answer
    return stage(play, "sqlite", way=way, fault=fault, **given)


def _event(way: str, event: Callable[..., None]) -> Stage:
    return stage(stages.event_at_every_hand_over, "sqlite", way=way, event=event)


_late = stage(stages.commit_arrives_late, *SERVERS, way="set, no where")
_I = Invariant

MUTANTS = (
    _mutant(checkpoint_without_token, _event("set", stages.pause), _I.STOPPED_MEANS_STOPPED),
    _mutant(
        *(checkpoint_without_guard, _event("set, no where", stages.take_over)),
        *(_I.CURSORS_GO_FORWARD, _I.EXACTLY_ONCE),
    ),
    _mutant(checkpoint_without_cursor, _late, _I.EXACTLY_ONCE, _I.CURSORS_GO_FORWARD),
    _mutant(doubt_pauses, _late, _I.DOUBT_IS_SURVIVED),
    _mutant(checkpoint_after_commit, _fault("set, no where", Fault.KILL), _I.EXACTLY_ONCE),
    _mutant(checkpoint_before_commit, _fault("python, no where", Fault.KILL), _I.EXACTLY_ONCE),
    _mutant(pause_without_fence, _event("set", stages.pause), _I.STOPPED_MEANS_STOPPED),
    _mutant(claim_without_looking, _event("set", stages.pause), _I.STOPPED_MEANS_STOPPED),
    _mutant(
        *(local_clock, stage(stages.two_clocks, "sqlite", *SERVERS, way="set")),
        _I.LEASES_ARE_RESPECTED,
    ),
    _mutant(any_status, _event("set", stages.begin_anew), _I.FINISHED_MEANS_PROVED),
    _mutant(
        *(default_begin, stage(stages.pause_at_every_update, "sqlite", way="set")),
        _I.STOPPED_MEANS_STOPPED,
    ),
    _mutant(
        *(doubt_at_rest, _fault("set", Fault.LOSE, after=stages.ask_to_stop)),
        _I.FAILS_FOR_A_REASON,
    ),
    _mutant(no_sweep, _event("set", stages.reopen_all), _I.FINISHED_MEANS_PROVED),
    _mutant(
        *(late_commits_overlooked, stage(stages.late_commit, *SERVERS, way="set")),
        _I.LATE_COMMITS_ARE_AWAITED,
    ),
    _mutant(
        *(stop_at_first_empty_chunk, stage(stages.bad_row, "sqlite", way="set, no where")),
        _I.EXACTLY_ONCE,
    ),
    _mutant(
        *(silent_failures, stage(stages.bad_row, "sqlite", way="set, no where")),
        _I.BAD_ROWS_ARE_RECORDED,
    ),
    _mutant(
        *(kind_by_class, stage(stages.bad_row, "sqlite", *SERVERS, way="set"), _I.ENDS_WELL),
        on="mariadb",
    ),
    _mutant(counted_by_scan, _event("set", stages.settle_one), _I.COUNTS_ARE_EXACT),
    _mutant(write_without_where, _event("set", stages.settle_one), _I.EXACTLY_ONCE),
    _mutant(plain_write, _event("python, no where", stages.change_all), _I.EXACTLY_ONCE),
    _mutant(dropped_miss, _event("python, no where", stages.change_all), _I.EXACTLY_ONCE),
    _mutant(
        *(skip_locked, stage(stages.locked_row, *SERVERS, way="python, no where")),
        _I.EXACTLY_ONCE,
    ),
    _mutant(
        *(waits_for_locks, stage(stages.locked_row, *SERVERS, way="set")),
        _I.GIVES_WAY,
    ),
    _mutant(
        *(commit_after_timeout, stage(stages.second_statement_refused, "mariadb")),
        _I.EXACTLY_ONCE,
    ),
    _mutant(swallowed_deadlock, stage(stages.deadlock, "mariadb"), _I.EXACTLY_ONCE),
    _mutant(savepoints, stage(stages.deadlock, "mariadb"), _I.EXACTLY_ONCE),
    _mutant(
        *(session_settings, stage(stages.pooled_sessions, "postgresql")),
        _I.NOTHING_IS_LEFT_BEHIND,
    ),
)


def run_mutants() -> list[tuple[str, bool]]:
    """Switch in one after the other; its name, and whether its stage has noticed it."""
    servers = Servers()
    with ExitStack() as stack:
        stack.callback(servers.stop)
        directory = Path(stack.enter_context(TemporaryDirectory()))
        return [
            (mutant.name, what_breaks(mutant, servers, directory) in mutant.breaks)
            for mutant in MUTANTS
        ]


def what_breaks(mutant: Mutant, servers: Servers, directory: Path) -> Invariant | None:
    """Return the invariant that a mutant's stage finds broken; None if it notices nothing."""
    place = Path(mkdtemp(dir=directory))
    with servers.database(mutant.database, place) as database, mutant.switched_in():
        try:
            mutant.stage(database)
        except Broken as broken:
            return broken.invariant
    return None
