"""Protocols that are known to be wrong, each ours but for one thing, to test the tests by.

Most are bugs that were found in other tools, or in our own prototypes (docs/decisions.md).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa

from backfill import keys, tables
from backfill.runner import Runner
from backfill.store import Store, quarantine, ranges
from backfill.workers import Worker
from backfill.writers import rows, setbased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.runs import Checkpoint, Lease, Status

_range = tables.key_range


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
    """Whoever was paused, or replaced at the same cursor, still commits."""
    with patch.object(ranges, "checkpoint", _guarded_by("cursor")):
        yield


@contextmanager
def checkpoint_without_guard() -> Iterator[None]:
    """Two runners commit the same chunk."""
    with patch.object(ranges, "checkpoint", _guarded_by()):
        yield


@contextmanager
def checkpoint_after_commit() -> Iterator[None]:
    """The cursor moves in a transaction of its own, after the chunk's."""
    checkpoint = Worker._checkpoint
    after_commit = Worker._after_commit

    def keep(self: Worker, _connection: Any, chunk: Any, written: Any) -> Any:
        return replace(self.lease, cursor=chunk.upto, finished=chunk.is_last)

    def late(self: Worker, chunk: Any, written: Any, lease: Any, started: float) -> int:
        with self.session.transaction() as connection:
            lease = checkpoint(self, connection, chunk, written)
        return after_commit(self, chunk, written, lease, started)

    with patch.object(Worker, "_checkpoint", keep), patch.object(Worker, "_after_commit", late):
        yield


@contextmanager
def checkpoint_before_commit() -> Iterator[None]:
    """The cursor moves first, in a transaction of its own."""
    commit = Worker.commit

    def early(self: Worker, chunk: Any) -> int:
        with self.session.transaction() as connection:
            moved = self._checkpoint(connection, chunk, rows.Written(len(chunk.page or ())))
        self._checkpoint = lambda *_: moved  # type: ignore[method-assign]
        try:
            return commit(self, chunk)
        finally:
            del self._checkpoint  # type: ignore[method-assign]

    with patch.object(Worker, "commit", early):
        yield


@contextmanager
def pause_without_fence() -> Iterator[None]:
    """`pause` asks, and leaves the tokens as they are."""
    with patch.object(ranges, "revoke", lambda connection, run: None):
        yield


@contextmanager
def claim_without_looking() -> Iterator[None]:
    """A range is claimed whatever was decided for its run."""

    def claim(self: Store, run: Any, found: Any, token: str, seconds: float) -> Any:
        with self.transaction() as connection:
            return ranges.claim(connection, self.dialect, found, token, seconds)

    with patch.object(Store, "claim", claim), patch.object(Worker, "_check_run", lambda self: None):
        yield


@contextmanager
def no_sweep() -> Iterator[None]:
    """Complete is what was walked once."""
    with patch.object(Runner, "is_proved", lambda self, run: True):
        yield


@contextmanager
def silent_failures() -> Iterator[None]:
    """A bad row is stepped over, and nobody writes it down."""
    with patch.object(quarantine, "insert", lambda *args: None):
        yield


@contextmanager
def plain_write() -> Iterator[None]:
    """What was computed is written, whatever the row has become meanwhile."""

    def write(self: Any, connection: sa.Connection, chunk: Any) -> rows.Written:
        written = self._write_groups(self._groups, chunk, connection, verifies=False)
        return rows.Written(written, self._failures(chunk.page, self._outputs))

    with patch.object(rows.RowsWriter, "write", write):
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
        return sa.update(self.target.table).values(self.values).where(condition)

    with patch.object(setbased.SetBasedWriter, "_build", build):
        yield


@contextmanager
def any_status() -> Iterator[None]:
    """A success is recorded for whatever run is the latest, in whatever pass it is."""
    move = Store.move

    def careless(self: Store, name: str, wanted: Status, **options: Any) -> Any:
        return move(self, name, wanted, **{**options, "only": None})

    with patch.object(Store, "move", careless):
        yield


MUTANTS = (
    checkpoint_without_token,
    checkpoint_without_guard,
    checkpoint_after_commit,
    checkpoint_before_commit,
    pause_without_fence,
    claim_without_looking,
    no_sweep,
    silent_failures,
    plain_write,
    counted_by_scan,
    write_without_where,
    any_status,
)
