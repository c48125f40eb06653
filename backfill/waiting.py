"""When a worker may go on: it rests after a chunk, and stands by while nothing may be written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backfill.dialects import ErrorKind
from backfill.failures import describe
from backfill.speed.loggate import LogGate

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.budget import Budget
    from backfill.dialects import Dialect, LogFill
    from backfill.holding import Holding
    from backfill.sessions import Session
    from backfill.speed.pacing import Delay, Done, Pace

logger = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.25
"""How often a worker that waits asks whether it may go on: as often as gh-ost's copier."""


class Waiting:
    """Asks the pace, and the redo log where it can fill, for one worker."""

    def __init__(
        self,
        dialect: Dialect,
        session: Session,
        hold: Holding,
        pace: Pace,
        budget: Budget,
        clock: Callable[[], float],
    ) -> None:
        self._dialect = dialect
        self._session = session
        self._hold = hold
        self._pace = pace
        self._budget = budget
        self._clock = clock
        self._gate = LogGate(self._log_fill, clock)
        self.stood_by = 0.0
        """Seconds in which a chunk waited for leave to go on."""

    @property
    def most_rows(self) -> int | None:
        """What still fits into the redo log; None: whatever a chunk likes."""
        return self._gate.most_rows

    def count(self, rows: int) -> None:
        """Note rows that were written."""
        self._gate.count(rows)

    def seconds(self, done: Done | None) -> float:
        """Return how long to wait before one asks again; 0: the next chunk may begin."""
        self._hold.make_sure()
        delay = self._ask(done)
        if delay.waits:
            self._session.close()  # a firewall may cut what is idle for hours
        if not delay.seconds and self._dialect.log_fills:
            return self._seconds_for_log()
        return delay.seconds

    def stand_by(self) -> None:
        """Write nothing while a window is closed or a signal stops us, however far a chunk is: it
        may have been computed for long, retried for long, or cut in a thousand pieces."""
        began = self._clock()
        while (delay := self._ask(None)).waits:
            self._hold.pulse()
            self.glance(delay.seconds)
            self.stood_by, began = self.stood_by + self._clock() - began, self._clock()

    def glance(self, seconds: float) -> None:
        """Sleep for so long, or until it is time to look around."""
        self._budget.sleep(min(seconds, _GLANCE_SECONDS))

    def _ask(self, done: Done | None) -> Delay:
        self._pace.look()
        delay = self._pace.delay(done)
        self._hold.explain(delay.reason)
        self._pace.tell(delay.reason)
        return delay

    def _seconds_for_log(self) -> float:
        if self._pace.has_company:
            return self._gate.seconds(self._pace.sharing)
        self._gate.open()
        return 0.0

    def _log_fill(self) -> LogFill | None:
        try:
            with self._session.transaction(write=False) as connection:
                return self._dialect.log_fill(connection)
        except Exception as error:
            if self._dialect.error_kind(error) is not ErrorKind.RIGHTS:
                raise
            logger.debug("redo log not watched: %s", describe(error, self._dialect))
            return None
