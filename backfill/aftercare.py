"""After-care: what a run leaves behind in its table, and what is done about it.

Changed rows leave dead ones, which VACUUM removes, and other values than the planner's statistics
say. Nothing in here fails a run: what does not work is told.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from backfill.errors import BackfillError
from backfill.failures import describe
from backfill.reporters import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa

    from backfill.connections import Connections
    from backfill.dialects import Dialect, Limits
    from backfill.dialects.upkeep import Churn, Updates
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.store import Store
    from backfill.targets import Target

logger = logging.getLogger(__name__)

_WORTH_ROWS = 10_000
"""Fewer changed rows are everyday life for a database, and not worth a word."""
_LOOKS = 16
"""How often a worker asks between two VACUUMs whether it is time, if it does all the work."""
_WORTH_SHARE = 0.01
"""Partitions with less than this share of `vacuum_every` in dead rows are left alone."""
_LOOK_SECONDS = 0.25
_COUNTED_SECONDS = 1.0
"""PostgreSQL's sessions pass their counts on once a second, and when they end (pgstat.c)."""
_COUNTED_LOOK_SECONDS = 0.05


def advice(target: Target, connection: sa.Connection) -> list[str]:
    """Return what would make updates cheaper, judged by those of the transaction so far."""
    upkeep, table = target.dialect.upkeep, target.table
    updates = upkeep.updates_so_far(connection, table)
    if updates is None or not updates.rows:
        return []
    return upkeep.advice(connection, table, target.written, updates)


def index_advice(target: Target, connection: sa.Connection) -> list[str]:
    """Return what to do about indexes on the columns that are written."""
    return [
        f"{one.column!r} is indexed by {one.index!r}, which makes each row much dearer to write;"
        f" where you can, create the index after the backfill{one.how}."
        for one in target.dialect.upkeep.indexes_on(connection, target.table, target.written)
    ]


class AfterCare:
    """What one command learns of its table before a run and after it."""

    def __init__(
        self,
        target: Target,
        connections: Connections,
        settings: Settings,
        report: Callable[[Event], object],
        sleep: Callable[[float], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._dialect = target.dialect
        self._upkeep = target.dialect.upkeep
        self._connections = connections
        self._settings = settings
        self._report = report
        self._sleep = sleep
        self._clock = clock
        self._before: Churn | None = None
        self._rows = 0
        self._changed_before = 0

    def begin(self, rows: int | None, changed: int) -> None:
        """Take down what the counters say. `rows`: of the table, about; `changed`: by the run."""
        self._rows, self._changed_before = max(rows or 0, 1), changed
        is_small = rows is not None and rows < _WORTH_ROWS
        with self._telling():
            self._before = None if is_small else self._counted()
            if self._settings.vacuum_every is not None and self._upkeep.vacuums:
                self._warn_of_rights()

    def end(self, changed: int) -> None:
        """Tell what the run left in the table, and mend statistics that are wrong now."""
        if changed < _WORTH_ROWS:
            return
        with self._telling():
            self._look_back(changed - self._changed_before)
        with self._telling():
            if self._settings.analyze:
                self._mend_statistics(changed / self._rows)

    def _mend_statistics(self, share: float) -> None:
        table, limits = self._target.table, self._connections.limits
        columns = self._target.written or [column.name for column in table.columns]
        mark = _mark(limits)

        def may_go_on() -> bool:
            return not self._upkeep.is_in_the_way(limits, mark)

        with _breaking_off(self._dialect, limits, mark, may_go_on) as is_broken_off:
            try:
                said = self._upkeep.refresh_statistics(limits, table, columns, share, mark)
            except SQLAlchemyError:
                if not is_broken_off.is_set():
                    raise
                said = [f"ANALYZE of {table.fullname} was broken off: others waited for it"]
        for text in said:
            self._say(text)

    def _look_back(self, changed: int) -> None:
        if self._before is None or changed <= 0:
            return
        before, deadline = self._before.updates, self._clock() + _COUNTED_SECONDS
        while (now := self._counted()) is not None:
            updates = now.updates.since(before)
            if updates.rows >= changed or self._clock() > deadline:
                self._tell(updates, now)
                return
            self._sleep(_COUNTED_LOOK_SECONDS)

    def _tell(self, updates: Updates, after: Churn) -> None:
        parts = [f"about {after.dead_rows:,} dead rows, {after.removal}"]
        if updates.rows > 0:
            parts.insert(0, f"{updates.hot_share:.0%} of {updates.rows:,} updates were HOT")
        self._say(
            "; ".join(parts), updates=updates.rows, hot=updates.hot, dead_rows=after.dead_rows
        )

    def _counted(self) -> Churn | None:
        with self._connections.transaction(write=False) as connection:
            return self._upkeep.churn(connection, self._target.table)

    def _warn_of_rights(self) -> None:
        with self._connections.transaction(write=False) as connection:
            refusal = self._upkeep.refusal(connection, self._target.table)
        if refusal is not None:
            self._say(f"there will be no VACUUM: {refusal}")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell of what goes wrong: the run is none the worse for it."""
        try:
            yield
        except (BackfillError, SQLAlchemyError) as error:
            self._say(f"not looked after: {describe(error, self._dialect)}")

    def _say(self, text: str, **numbers: object) -> None:
        self._report(Event("aftercare", self._target.declaration.name, text, dict(numbers)))


class Vacuuming:
    """A worker's part in removing dead rows while a run lasts, every so many changed rows.

    The run's own count says when it is time, and the run's row in the state tables who does it.
    """

    def __init__(
        self,
        target: Target,
        store: Store,
        run: Run,
        limits: Limits,
        report: Callable[[Event], object],
        *,
        was_told: bool,
    ) -> None:
        self._target = target
        self._dialect = target.dialect
        self._upkeep = target.dialect.upkeep
        self._was_told = was_told
        """Whether it was known from the start, and `AfterCare` has told what this user may not."""
        self._store = store
        self._run = run
        self._limits = limits
        self._report = report
        self._counted = 0
        self._may: bool | None = None
        """Whether this user may; None: not asked yet."""

    def count(self, changed: int) -> None:
        """Note rows that this worker has changed."""
        self._counted += changed

    def is_due(self, every: int) -> bool:
        """Whether the run has changed so many rows since the last VACUUM, and this one is ours."""
        if not self._upkeep.vacuums or self._counted * _LOOKS < every or not self._is_allowed():
            return False
        is_ours = self._store.take_turn(self._run, "vacuum", every)
        self._counted = 0
        return is_ours

    def vacuum(self, every: int, may_go_on: Callable[[], bool]) -> None:
        """Remove dead rows; break it off when `may_go_on`, which is asked all the time, says so."""
        table = self._target.table
        mark = _mark(self._limits)
        started = time.monotonic()
        self._say(f"VACUUM of {table.fullname}")
        with _breaking_off(self._dialect, self._limits, mark, may_go_on) as is_broken_off:
            try:
                fewest = max(1, round(every * _WORTH_SHARE))
                passed_over = self._upkeep.vacuum(self._limits, table, mark, fewest)
            except (BackfillError, SQLAlchemyError) as error:
                why = f"no VACUUM: {describe(error, self._dialect)}"
                self._say("VACUUM was broken off" if is_broken_off.is_set() else why)
                return
        seconds = round(time.monotonic() - started, 3)
        left = f", passed over (locked): {', '.join(passed_over)}" if passed_over else ""
        self._say(f"VACUUM took {seconds:,.1f} s{left}", seconds=seconds)

    def _is_allowed(self) -> bool:
        if self._may is None:
            with (
                self._dialect.open(self._limits) as connection,
                self._dialect.transaction(connection, self._limits, write=False),
            ):
                refusal = self._upkeep.refusal(connection, self._target.table)
            self._may = refusal is None
            if refusal is not None and not self._was_told:
                self._say(f"there will be no VACUUM: {refusal}")
        return self._may

    def _say(self, text: str, **numbers: object) -> None:
        self._report(Event("aftercare", self._target.declaration.name, text, dict(numbers)))


def _mark(limits: Limits) -> str:
    """Return what tells a statement from all others, in a comment."""
    return f"{limits.label} {secrets.token_hex(8)}".replace("*/", "")


@contextmanager
def _breaking_off(
    dialect: Dialect, limits: Limits, mark: str, may_go_on: Callable[[], bool]
) -> Iterator[Flag]:
    """Cancel the statements with a mark once `may_go_on`, which is asked all the time, says no;
    the flag tells that it did."""
    done, is_broken_off = Flag(), Flag()

    def look() -> None:
        try:
            if not may_go_on():
                is_broken_off.set()
                dialect.upkeep.cancel(limits, mark)
        except SQLAlchemyError as error:
            logger.debug("nobody watches %s: %s", mark, describe(error, dialect))

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            look()

    watcher = Thread(target=dialect.call, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield is_broken_off
    finally:
        done.set()
        watcher.join()
