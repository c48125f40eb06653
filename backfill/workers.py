"""A worker: claims key ranges and walks them, one chunk a transaction.

`work` -> `walk_range` -> `give_way`, then `Committer.advance` (committing.py). All that waits or
looks around happens between two transactions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backfill import owners
from backfill.aftercare import Vacuuming
from backfill.budget import Stopped
from backfill.committing import Committer
from backfill.errors import LeaseLost
from backfill.holding import Holding
from backfill.reporters import Event
from backfill.runs import Run, Status
from backfill.sessions import Session
from backfill.trail import Trail
from backfill.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.budget import Budget
    from backfill.companion import Companion
    from backfill.dialects import Limits
    from backfill.runs import KeyRange
    from backfill.speed.pacing import Done, Pace
    from backfill.store import Store
    from backfill.targets import Target

_WATCH_SECONDS = 0.25


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
        self.name = target.declaration.name
        self.table = target.table.fullname
        self.dialect = target.dialect
        self.store = store
        self.run = run
        self.pace = pace
        self.budget = budget
        self.report = report
        self.session = Session(target, limits, budget.turn, pace)
        self.hold = Holding(store, run, pace.settings, self.dialect, clock)
        self.waiting = Waiting(self.dialect, self.session, self.hold, pace, budget, clock)
        self.committer = Committer(
            target,
            store,
            run,
            pace,
            budget,
            report,
            session=self.session,
            hold=self.hold,
            waiting=self.waiting,
            trail=trail or Trail(),
            companion=companion,
            clock=clock,
        )
        self.retrying = self.committer.retrying()
        self.vacuuming = Vacuuming(
            target, store, run, limits, report, was_told=pace.settings.vacuum_every is not None
        )
        self._done: Done | None = None

    # -- ranges --------------------------------------------------------------------------

    def work(self) -> None:
        """Claim one free range after the other, and walk each to its end.

        Raises Stopped, LeaseLost, RunFailed, or the error that retrying could not mend.
        """
        try:
            self.retrying(self.committer.measure)
            while self.retrying(self._claim):
                self._walk_claimed()
        finally:
            self.session.close()  # first: a transaction left open would keep the lease's row
            self.hold.let_go()

    def walk_range(self) -> None:
        """Commit chunk after chunk until nothing of the range is left."""
        while not self.hold.lease.finished:
            self.give_way()
            self.clean_up()
            self._done = self.retrying(self.committer.advance)

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
        self.committer.begin(found)
        self.pace.look_again()
        return True

    def _say_waiting(self, found: KeyRange) -> None:
        owner = owners.shown(found.owner) if found.owner else "another runner"
        seconds = self.pace.settings.lease_seconds
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
        every = self.pace.settings.vacuum_every
        if every is None or self._done is None:
            return
        self.vacuuming.count(self._done.rows)
        if self.retrying(self.vacuuming.is_due, every):
            self.retrying(self.hold.explain, f"VACUUM of {self.table}")
            with self.hold.kept():
                self.vacuuming.vacuum(every, self._may_clean_up)

    def _may_clean_up(self) -> bool:
        try:
            self.budget.raise_if_over()
            self.pace.look()
        except (Stopped, LeaseLost):
            return False
        return not self.pace.delay(None).waits

    # -- small things --------------------------------------------------------------------

    def _say(self, what: str, text: str) -> None:
        self.report(Event(what, self.name, text))
