"""Commits chunks: the promise itself, and what else it takes to keep it.

`advance` -> `_write_and_checkpoint`, in one transaction a chunk's rows and last the guarded cursor.
All that waits or computes happens before it or behind it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from backfill import retries
from backfill.chunk_size import ChunkSize
from backfill.dialects import Overtaken
from backfill.errors import RowsKeptChanging, RunFailed
from backfill.failures import describe
from backfill.isolation import Isolation
from backfill.reporters import Event
from backfill.runs import Checkpoint, Failure
from backfill.speed.pacing import Done, Rate
from backfill.walk import Walk
from backfill.writers import Written, writer_for
from backfill.writers.rows import RowsCame, RowsChanged, RowsWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa
    import tenacity

    from backfill.budget import Budget
    from backfill.chunks import Chunk
    from backfill.companion import Companion
    from backfill.holding import Holding
    from backfill.retries import Policy
    from backfill.runs import KeyRange, Lease, Run
    from backfill.sessions import Session
    from backfill.speed.pacing import Pace
    from backfill.store import Store
    from backfill.targets import Target
    from backfill.trail import Trail
    from backfill.waiting import Waiting

_ROUNDS = 5
"""How often a chunk is computed again because the application keeps changing its rows."""
_WORTH_TELLING = 4
"""Attempts at one chunk before anybody is told: a lock met once is everyday life."""


class _Undone(Exception):
    """Takes back what was written only to see whether it can be."""


class Committer:
    """Commits one chunk after the other of the key range that its worker holds."""

    def __init__(
        self,
        target: Target,
        store: Store,
        run: Run,
        pace: Pace,
        budget: Budget,
        report: Callable[[Event], object],
        *,
        session: Session,
        hold: Holding,
        waiting: Waiting,
        trail: Trail,
        companion: Companion | None,
        clock: Callable[[], float],
    ) -> None:
        self.target = target
        self.dialect = target.dialect
        self.store = store
        self.pace = pace
        self.budget = budget
        self.report = report
        self.session = session
        self.hold = hold
        self.waiting = waiting
        self.trail = trail
        self.clock = clock
        quarantined = [failure.key for failure in store.failures(run)]
        self.walk = Walk(target, quarantined, companion=companion)
        self.blind_walk = Walk(target, quarantined, keys_only=True)
        """Goes where the values of a row cannot be read."""
        self.scans = self.walk.scans
        self.writer = writer_for(target, self.scans)
        self.sizing = ChunkSize(target, pace)
        self.isolation = Isolation(
            target,
            self.scans,
            session,
            hold,
            commit=self._commit_part,
            try_out=self._try_out,
            quarantine=self._quarantine,
            retrying=self.retrying(),
        )
        self._rate = Rate(clock)
        self._scanned = 0

    def measure(self) -> None:
        """Begin with chunks of a size that suits rows as wide as these."""
        with self.session.transaction(write=False) as connection:
            self.sizing.measured(self.dialect.row_bytes(connection, self.target.table))

    def begin(self, found: KeyRange) -> None:
        """Begin with a range as it was found, or go on with it."""
        self._rate, self._scanned = Rate(self.clock), found.rows_scanned
        self.sizing.begin(found.size)

    # -- chunks --------------------------------------------------------------------------

    def advance(self) -> Done | None:
        """Commit the chunk behind the cursor, unless there is none; how long that took. Whatever
        fails here is safe to repeat."""
        self.hold.make_sure()
        if self.hold.lease.finished:
            return None
        self.waiting.stand_by()
        granted = self.budget.take(self.sizing.next(self.waiting.most_rows))
        began, changed = self.clock(), 0
        try:
            changed = self._advance(granted)
        finally:
            self.budget.give_back(granted - changed)
        return Done(began, self.clock(), changed)

    def _advance(self, size: int) -> int:
        chunk: Chunk | None = None
        self.writer.forget()
        try:
            if self.writer.computes or self._looks_before_it_locks:
                with self.session.transaction(write=False) as connection:
                    chunk = self._cut(connection, size)
                return self._compute_and_commit(chunk)
            with self.session.transaction() as connection:
                chunk = self._cut(connection, size)
                done = self._write_and_checkpoint(connection, chunk)
            return self._after_commit(*done)
        except Exception as error:  # raised again, unless it is about rows
            if chunk is None:
                return self._isolate_unread(size, error)
            return self._isolate(chunk, self.isolation.judged(chunk, error))

    @property
    def _looks_before_it_locks(self) -> bool:
        """Whether a long look would keep everybody waiting, where there is one lock for all."""
        return self.dialect.one_writer and self.walk.looks_far and not self.target.is_custom

    def _cut(self, connection: sa.Connection, size: int, walk: Walk | None = None) -> Chunk:
        lease, seconds = self.hold.lease, self.sizing.target_seconds
        return (walk or self.walk).next(connection, lease.cursor, lease.upper, size, seconds)

    def _compute_and_commit(self, chunk: Chunk) -> int:
        """Compute in no transaction, then write; again if the application changed too much."""
        for _ in range(_ROUNDS):
            with ExitStack() as stack:
                if not self.writer.pulses:
                    stack.enter_context(self.hold.kept())
                self.writer.compute(chunk, self.hold.pulse)
            try:
                return self.commit(chunk)
            except Overtaken:
                continue
            except RowsCame:
                self.sizing.halve()
                return 0  # the chunk is cut anew
            except RowsChanged as changed:
                chunk = replace(chunk, page=changed.page)
        raise RowsKeptChanging(f"the rows of a chunk changed {_ROUNDS} times while computed")

    def commit(self, chunk: Chunk) -> int:
        """Write the chunk and move the cursor, in one transaction; the rows changed."""
        self.waiting.stand_by()
        try:
            with self.session.transaction() as connection:
                if self.target.is_custom:  # only its page tells how many rows apply() changes
                    chunk = self.scans.whole(connection, chunk)
                done = self._write_and_checkpoint(connection, chunk)
        finally:
            self._show_stack()  # not before: whoever reads it may keep us waiting, with all locks
        return self._after_commit(*done)

    def _write_and_checkpoint(
        self, connection: sa.Connection, chunk: Chunk
    ) -> tuple[Chunk, Written, Lease, float]:
        """The promise itself: in one transaction the chunk's rows, and last the guarded cursor."""
        started = self.clock()
        written = self.writer.write(connection, chunk)
        if written.failures:
            self._check_failures(written.failures)
        chunk = self.scans.counted(connection, chunk, written.changed)
        return chunk, written, self._checkpoint(connection, chunk, written), started

    def _checkpoint(self, connection: sa.Connection, chunk: Chunk, written: Written) -> Lease:
        self._rate.count(chunk.scanned)
        new = Checkpoint(
            upto=chunk.upto,
            scanned=chunk.scanned,
            changed=written.changed,
            finished=chunk.is_last,
            rows_per_second=self._rate.per_second,
            size=self.sizing.rows,
            throttled=self.hold.reason or None,
        )
        return self.store.checkpoint(
            connection, self.hold.lease, self.pace.settings.lease_seconds, new, written.failures
        )

    def _after_commit(self, chunk: Chunk, written: Written, lease: Lease, started: float) -> int:
        seconds = self.clock() - started
        self.hold.moved(lease)
        self._scanned += chunk.scanned
        self.waiting.count(written.changed)
        self.budget.count_failures(len(written.failures))
        self.walk.learn(chunk, written.changed)
        self.trail.note(lease.range_id, chunk)
        rows = chunk.scanned if chunk.page is None else len(chunk.page)
        self.sizing.observe(rows, seconds, self.writer.compute_seconds, self.writer.row_bytes)
        for failure in written.failures:
            self._say("quarantined", f"row {list(failure.key)} is quarantined: {failure.error}")
        self._say(
            "chunk",
            range=lease.range_id,
            rows_scanned=self._scanned,
            scanned=chunk.scanned,
            changed=written.changed,
            seconds=round(seconds, 6),
            size=self.sizing.rows,
            is_last=chunk.is_last,
        )
        return written.changed

    # -- parts of a chunk that was refused -------------------------------------------------

    def _isolate(self, chunk: Chunk, error: Exception) -> int:
        """Commit the rows that an error is not about; raise it where it is about no row."""
        self.isolation.ask_others(chunk, error)
        if not self.isolation.is_about_a_row(error):
            raise error
        return self.isolation.isolate(chunk, error)

    def _isolate_unread(self, size: int, error: Exception) -> int:
        """Do so where some row's values could not even be read: perhaps none of those that are in
        the chunk by now."""
        if not self.writer.computes or not self.isolation.is_about_a_row(error):
            raise error
        with self.session.transaction(write=False) as connection:
            chunk = self._cut(connection, size, self.blind_walk)
        return self.isolation.isolate(chunk, None)

    def _commit_part(self, chunk: Chunk) -> int:
        if not self.writer.computes:
            return self.commit(chunk)
        if chunk.page is not None and chunk.page.reader.is_blind:
            with self.session.transaction(write=False) as connection:
                chunk = self.scans.whole(connection, chunk)
        return self._compute_and_commit(chunk)

    def _try_out(self, chunk: Chunk) -> bool:
        """Write a part, and take it back; whether its rows stood still meanwhile."""
        self.waiting.stand_by()
        if self.writer.computes:
            self.writer.forget()
            self.writer.compute(chunk, self.hold.pulse)
        try:
            with self.session.transaction() as connection:
                if self.target.is_custom:
                    chunk = self.scans.whole(connection, chunk)
                self.writer.write(connection, chunk)
                raise _Undone
        except _Undone:
            return True
        except (Overtaken, RowsChanged):
            return False

    def _quarantine(self, chunk: Chunk, failure: Failure) -> int:
        """Quarantine a row, and pass over no other one that was inserted meanwhile."""
        written = Written(0, [failure])
        self._check_failures(written.failures)
        self.waiting.stand_by()
        with self.session.transaction() as connection:
            started = self.clock()
            if self._has_other_rows(connection, chunk, failure):
                return 0  # the chunk is cut anew
            lease = self._checkpoint(connection, chunk, written)
        return self._after_commit(chunk, written, lease, started)

    def _has_other_rows(self, connection: sa.Connection, chunk: Chunk, failure: Failure) -> bool:
        """Whether a row was inserted beside a bad one that no sweep would find."""
        if self.scans.pending is not None:
            return False
        found = self.blind_walk.scans.whole(connection, chunk).page
        # NaN is a key that no other one equals
        return found is not None and any(repr(key) != repr(failure.key) for key in found.keys)

    def _check_failures(self, failures: Sequence[Failure]) -> None:
        """Stop before a broken transform fills the quarantine. Raises RunFailed."""
        most = self.pace.settings.max_failures
        if self.budget.failures + len(failures) > most:
            raise RunFailed(
                f"more than max_failures = {most} rows cannot be written, for"
                f" example: {failures[0].error}. Mend the cause and run again; what is"
                " committed stays. If all rows fail alike, it is the declaration and not the rows."
            )

    def _show_stack(self) -> None:
        """Tell, once a command, where the first row that could not be computed failed."""
        if isinstance(self.writer, RowsWriter) and self.writer.first_stack:
            stack = self.writer.first_stack
            self.budget.tell_once(lambda: self._say("message", stack))

    # -- trouble -------------------------------------------------------------------------

    def _recover(self, error: BaseException, policy: Policy, attempt: int) -> None:
        if policy.halve or attempt > 1:  # a chunk that loses its connection twice may be too large
            self.sizing.halve()
            self.walk.shorten()
        if policy.doubt:
            self.hold.doubt()
            self.session.close()
        why = describe(error, self.dialect)
        self.hold.trouble = f"waits: {why}"
        text = self.hold.trouble if attempt == _WORTH_TELLING else ""
        self._say("retry", text, attempt=attempt, reason=why)

    def retrying(self) -> tenacity.Retrying:
        """Return a caller that repeats a step while the database is in trouble."""
        return retries.retrying(
            kind_of=self.dialect.error_kind,
            recover=self._recover,
            sleep=self.budget.sleep,
            seconds=self.pace.settings.retry_seconds,
            stood_by=lambda: self.waiting.stood_by,
        )

    def _say(self, what: str, text: str = "", **numbers: object) -> None:
        self.report(Event(what, self.target.declaration.name, text, dict(numbers)))
