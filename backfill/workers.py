"""A worker: claims key ranges and walks them, one chunk a transaction.

`work` -> `walk_range` -> `give_way`, then `advance` -> `_write_and_checkpoint`. All that waits,
computes or looks around happens between two transactions.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from backfill import owners, retries
from backfill.aftercare import Vacuuming
from backfill.budget import Stopped
from backfill.chunk_size import ChunkSize
from backfill.dialects import Overtaken
from backfill.errors import LeaseLost, RowsKeptChanging, RunFailed
from backfill.failures import describe
from backfill.holding import Holding
from backfill.isolation import Isolation
from backfill.reporters import Event
from backfill.runs import Checkpoint, Failure, Run, Status
from backfill.sessions import Session
from backfill.speed.pacing import Done, Rate
from backfill.trail import Trail
from backfill.waiting import Waiting
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
    from backfill.dialects import Limits
    from backfill.retries import Policy
    from backfill.runs import KeyRange, Lease
    from backfill.settings import Settings
    from backfill.speed.pacing import Pace
    from backfill.store import Store
    from backfill.targets import Target

_ROUNDS = 5
"""How often a chunk is computed again because the application keeps changing its rows."""
_WATCH_SECONDS = 0.25
_WORTH_TELLING = 4
"""Attempts at one chunk before anybody is told: a lock met once is everyday life."""


class _Undone(Exception):
    """Takes back what was written only to see whether it can be."""


class Worker:
    """Walks key ranges of one run, with a connection of its own."""

    def __init__(
        self,
        target: Target,
        store: Store,
        run: Run,
        pace: Pace,
        limits: Limits,
        budget: Budget,
        report: Callable[[Event], object],
        *,
        trail: Trail | None = None,
        companion: Companion | None = None,
        waits: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waits = waits
        """Whether it waits for a range that another runner holds, in case that one is dead."""
        self.target = target
        self.dialect = target.dialect
        self.store = store
        self.run = run
        self.pace = pace
        self.limits = limits
        self.budget = budget
        self.report = report
        self.clock = clock
        self.trail = trail or Trail()
        self.name = target.declaration.name
        quarantined = [failure.key for failure in store.failures(run)]
        self.walk = Walk(target, quarantined, companion=companion)
        self.blind_walk = Walk(target, quarantined, keys_only=True)
        """Goes where the values of a row cannot be read."""
        self.writer = writer_for(target, self.walk)
        self.session = Session(target, limits, budget.turn, pace)
        self.hold = Holding(store, run, pace.settings, self.dialect, clock)
        self.waiting = Waiting(self.dialect, self.session, self.hold, pace, budget, clock)
        self.vacuuming = Vacuuming(target, store, run, limits, report)
        self.sizing = ChunkSize(target, pace)
        self.retrying = self._retrying()
        self.isolation = Isolation(
            target,
            self.walk,
            self.session,
            self.hold,
            commit=self._commit_part,
            try_out=self._try_out,
            quarantine=self._quarantine,
            retrying=self._retrying(),
        )
        self._done: Done | None = None
        self._rate = Rate(clock)
        self._scanned = 0

    # -- ranges --------------------------------------------------------------------------

    def work(self) -> None:
        """Claim one free range after the other, and walk each to its end.

        Raises Stopped, LeaseLost, RunFailed, or the error that retrying could not mend.
        """
        try:
            self.retrying(self._measure)
            while self.retrying(self._claim):
                self._walk_claimed()
        finally:
            self.session.close()  # first: a transaction left open would keep the lease's row
            self.hold.let_go()

    def walk_range(self) -> None:
        """Commit chunk after chunk until nothing of the range is left."""
        while not self.lease.finished:
            self.give_way()
            self.clean_up()
            self.retrying(self.advance)

    @property
    def lease(self) -> Lease:
        return self.hold.lease

    @property
    def settings(self) -> Settings:
        """As they are now: some change while a run lasts."""
        return self.pace.settings

    def _claim(self) -> bool:
        """Claim a range that is free; False if there is none left for us."""
        self.hold.forget()
        seen: dict[int, tuple[object, ...]] = {}
        while True:
            self.budget.raise_if_over()
            self._check_run()
            left = [found for found in self.store.ranges(self.run) if not found.finished]
            if any(self._claimed(found) for found in left if self.hold.is_free(found)):
                return True
            if any(self.hold.is_free(found) for found in left):
                continue  # others were faster: now it is seen who
            others = [found for found in left if found.owner != owners.myself()]
            now: dict[int, tuple[object, ...]] = {
                r.id: (r.token, r.cursor, r.lease_expires) for r in others
            }
            if (
                not others
                or not self.waits
                or any(seen.get(i, mark) != mark for i, mark in now.items())
            ):
                return False  # what is left is in the hands of runners that are alive
            if not seen:
                self._say_waiting(others[0])
            seen = now
            self.budget.stop.wait(_WATCH_SECONDS)

    def _walk_claimed(self) -> None:
        """Walk the range that was claimed, and give it back; go on if its lease was lost to another
        runner, or with a server. Raises LeaseLost where somebody has stopped the run."""
        try:
            self.walk_range()
        except LeaseLost:
            self.retrying(self._check_run)
            self._say("message", "lost its key range: looks for what is free")
        else:
            self.retrying(self.hold.release)

    def _claimed(self, found: KeyRange) -> bool:
        if not self.hold.claim(found):
            return False
        self._rate, self._scanned = Rate(self.clock), found.rows_scanned
        self.sizing.begin(found.size)
        self.pace.look_again()
        return True

    def _say_waiting(self, found: KeyRange) -> None:
        owner = owners.shown(found.owner) if found.owner else "another runner"
        seconds = self.settings.lease_seconds
        self._say("waiting", f"gives {owner} up to {seconds:g} s to show that it is alive")

    def _check_run(self) -> None:
        now = self.store.current(self.name)
        if now is None or now.id != self.run.id or now.pass_number != self.run.pass_number:
            raise LeaseLost(0)
        if now.status not in (Status.PENDING, Status.RUNNING, Status.FAILED):
            raise LeaseLost(0)

    # -- pace ------------------------------------------------------------------------------

    def give_way(self) -> None:
        """Rest after a chunk; wait, and say why, while nothing may be written."""
        while seconds := self.retrying(self.waiting.seconds, self._done):
            self.waiting.glance(seconds)

    def clean_up(self) -> None:
        """Remove the rows that ours have replaced, when it is time."""
        every = self.settings.vacuum_every
        if every is None or self._done is None:
            return
        self.vacuuming.count(self._done.rows)
        if self.retrying(self.vacuuming.is_due, every):
            self.retrying(self.hold.explain, f"VACUUM of {self.target.table.fullname}")
            with self.hold.kept():
                self.vacuuming.vacuum(every, self._may_clean_up)

    def _may_clean_up(self) -> bool:
        try:
            self.budget.raise_if_over()
            self.pace.look()
        except (Stopped, LeaseLost):
            return False
        return not self.pace.delay(None).waits

    def _measure(self) -> None:
        with self.session.transaction(write=False) as connection:
            self.sizing.measured(self.dialect.row_bytes(connection, self.target.table))

    # -- chunks --------------------------------------------------------------------------

    def advance(self) -> None:
        """Commit the chunk behind the cursor. Whatever fails here is safe to repeat."""
        self.hold.make_sure()
        if self.lease.finished:
            return
        self.waiting.stand_by()
        granted = self.budget.take(self.sizing.next(self.waiting.most_rows))
        began, changed = self.clock(), 0
        try:
            changed = self._advance(granted)
        finally:
            self.budget.give_back(granted - changed)
        self._done = Done(began, self.clock(), changed)

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
        except Exception as found:
            error = found if chunk is None else self.isolation.judged(chunk, found)
            if chunk is not None:
                self.isolation.ask_others(chunk, error)
            is_for_us = chunk is not None or self.writer.computes
            if not is_for_us or not self.isolation.is_about_a_row(error):
                raise
            if chunk is not None:
                return self.isolation.isolate(chunk, error)
            with self.session.transaction(write=False) as connection:
                chunk = self._cut(connection, size, self.blind_walk)
            return self.isolation.isolate(chunk, None)  # perhaps not those that were unreadable

    @property
    def _looks_before_it_locks(self) -> bool:
        """Whether a long look would keep everybody waiting, where there is one lock for all."""
        return self.dialect.one_writer and self.walk.looks_far and not self.target.is_custom

    def _cut(self, connection: sa.Connection, size: int, walk: Walk | None = None) -> Chunk:
        return (walk or self.walk).next(
            connection, self.lease.cursor, self.lease.upper, size, self.sizing.target_seconds
        )

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
                    chunk = self.walk.whole_page(connection, chunk)
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
        chunk = self.walk.counted(connection, chunk, written.changed)
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
            connection, self.lease, self.settings.lease_seconds, new, written.failures
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

    def _commit_part(self, chunk: Chunk) -> int:
        if not self.writer.computes:
            return self.commit(chunk)
        if chunk.page is not None and chunk.page.reader.is_blind:
            with self.session.transaction(write=False) as connection:
                chunk = self.walk.whole_page(connection, chunk)
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
                    chunk = self.walk.whole_page(connection, chunk)
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
        if self.walk.pending is not None:
            return False
        found = self.blind_walk.whole_page(connection, chunk).page
        # NaN is a key that no other one equals
        return found is not None and any(repr(key) != repr(failure.key) for key in found.keys)

    def _check_failures(self, failures: Sequence[Failure]) -> None:
        """Stop before a broken transform fills the quarantine. Raises RunFailed."""
        if self.budget.failures + len(failures) > self.settings.max_failures:
            raise RunFailed(
                f"more than max_failures = {self.settings.max_failures} rows cannot be written, for"
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

    def _retrying(self) -> tenacity.Retrying:
        return retries.retrying(
            kind_of=self.dialect.error_kind,
            recover=self._recover,
            sleep=self.budget.sleep,
            seconds=self.settings.retry_seconds,
            stood_by=lambda: self.waiting.stood_by,
        )

    def _say(self, what: str, text: str = "", **numbers: object) -> None:
        self.report(Event(what, self.name, text, dict(numbers)))
