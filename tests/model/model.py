"""What must be true of a run, whoever was killed: runs, ranges, rows and the ledger of an
application, as plain data. It learns from the committed state alone what chunks there were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill import keys, tables
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

STOPPED = (Status.PAUSED, Status.CANCELLED, Status.SUCCEEDED)
OVER = (Status.CANCELLED, Status.SUCCEEDED)

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer),
    sa.Column("bad", sa.Integer, nullable=False),
    sa.CheckConstraint("bad = 0 OR done IS NULL", name="no_bad_rows"),
)


class Broken(AssertionError):
    """An invariant does not hold; its name comes first."""


@dataclass(frozen=True)
class Range:
    """A key range as it is committed."""

    run_id: int
    pass_number: int
    lower: int
    upper: int
    cursor: int
    changed: int


@dataclass(frozen=True)
class Snapshot:
    """All that is committed."""

    statuses: dict[int, Status]
    ranges: dict[int, Range]
    failures: frozenset[tuple[int, int]]
    """Of a run, the key of a row."""
    rows: dict[int, tuple[int, bool]]
    """`n`, and whether it is pending, by key."""

    @classmethod
    def of(cls, connection: sa.Connection) -> Snapshot:
        runs = connection.execute(sa.select(tables.run.c.id, tables.run.c.status))
        ranges = connection.execute(sa.select(tables.key_range))
        failures = connection.execute(sa.select(tables.failure.c.run_id, tables.failure.c.key))
        rows = connection.execute(sa.select(things.c.id, things.c.n, things.c.done))
        return cls(
            {id_: Status(status) for id_, status in runs},
            {
                r.id: Range(
                    *(r.run_id, r.pass_number),
                    *(_key(r.lower), _key(r.upper), _key(r.cursor), r.rows_changed),
                )
                for r in ranges
            },
            frozenset((run_id, _key(key)) for run_id, key in failures),
            {id_: (n, done is None) for id_, n, done in rows},
        )


def _key(text: str) -> int:
    values = keys.loads(text)
    return values[0] if values else 0


@dataclass
class Row:
    """A row of the application, and what is ours in it."""

    written: int
    """The application's part of `n`: the ledger."""
    applied: int = 0
    """Ours: how often the backfill was applied."""
    is_pending: bool = True
    is_bad: bool = False
    was_bad: bool = False
    born: int = 0
    """The step in which it was inserted."""
    since: int = 0
    """The step in which it became pending."""


@dataclass
class Model:
    """Follows the committed state step by step. Raises Broken."""

    has_where: bool
    rows: dict[int, Row] = field(default_factory=dict)
    step: int = 0
    seen: Snapshot = field(default_factory=lambda: Snapshot({}, {}, frozenset(), {}))
    cuts: list[int] = field(default_factory=list)
    """The steps in which runners have cut the table for a new run."""
    _at_start: dict[int, set[int]] = field(default_factory=dict)
    _passed: dict[int, set[int]] = field(default_factory=dict)
    _changed: dict[int, int] = field(default_factory=dict)

    # -- what the application does ---------------------------------------------------------

    def insert(self, key: int, n: int) -> None:
        self.rows[key] = Row(n, born=self.step, since=self.step)

    def reopen(self, key: int) -> None:
        row = self.rows[key]
        row.is_pending, row.since = True, self.step

    def spoil(self, key: int) -> None:
        """Make it a row that the database refuses to let be done."""
        row = self.rows[key]
        row.is_bad = row.was_bad = True
        row.is_pending, row.since = True, self.step

    # -- what it sees ------------------------------------------------------------------------

    def observe(
        self, now: Snapshot, proved: Iterable[int | None] = (), *, retries: bool = False
    ) -> None:
        """Compare what is committed with what may be. `proved`: when each proof began.

        `retries`: quarantined rows were tried again since.
        """
        before, self.seen = self.seen, now
        for run_id in now.statuses.keys() - before.statuses.keys():
            self._begin(run_id, now)
        for range_id, found in now.ranges.items():
            self._move(before, before.ranges.get(range_id), found)
        self._quarantine(before, retries=retries)
        self._compare_rows()
        self._compare_counts()
        for run_id, status in now.statuses.items():
            was = before.statuses.get(run_id)
            require(was not in OVER or status is was, "over_is_over", f"{was} became {status}")
            if status is Status.SUCCEEDED and was is not status:
                self._succeed(run_id, proved)
        self.step += 1

    def _begin(self, run_id: int, now: Snapshot) -> None:
        self._passed[run_id] = set()
        self._changed[run_id] = 0
        bounds = sorted((r.lower, r.upper) for r in now.ranges.values() if r.run_id == run_id)
        upper = bounds[-1][1] if bounds else 0
        cut = min(self.cuts, default=self.step)
        missed = [key for key, row in self.rows.items() if key > upper and row.born < cut]
        require(not missed, "ranges_cover_all", f"{bounds} without {missed}")
        require(not bounds or bounds[0][0] == 0, "ranges_cover_all", str(bounds))
        self._at_start[run_id] = {key for key in self.rows if key <= upper}
        self.cuts.clear()
        for (_, upper), (lower, _) in pairwise(bounds):
            require(upper == lower, "ranges_are_disjoint", str(bounds))

    def _move(self, before: Snapshot, was: Range | None, now: Range) -> None:
        start = was.cursor if was is not None else now.lower
        require(start <= now.cursor <= now.upper, "cursors_go_forward", f"{was} became {now}")
        if now.cursor == start:
            return
        status = before.statuses.get(now.run_id)
        require(status not in STOPPED, "stopped_means_stopped", f"{was} became {now} when {status}")
        for key in sorted(k for k in self.rows if start < k <= now.cursor):
            self._passed[now.run_id].add(key)
            self._apply(before, now.run_id, key)

    def _apply(self, before: Snapshot, run_id: int, key: int) -> None:
        row = self.rows[key]
        if (run_id, key) in before.failures or (self.has_where and not row.is_pending):
            return
        if (run_id, key) in self.seen.failures:
            require(row.was_bad, "only_bad_rows_fail", f"row {key}")
            return
        require(not row.is_bad, "bad_rows_are_recorded", f"row {key}")
        self._applied(run_id, row)

    def _applied(self, run_id: int, row: Row) -> None:
        row.applied += 1
        row.is_pending = False
        self._changed[run_id] += 1

    def _quarantine(self, before: Snapshot, *, retries: bool) -> None:
        for run_id, key in before.failures - self.seen.failures:
            require(retries, "failures_stay", f"row {key}")
            row = self.rows.get(key)
            if row is not None and (row.is_pending or not self.has_where):
                self._applied(run_id, row)
        for _, key in self.seen.failures - before.failures:
            row = self.rows.get(key)
            require(row is None or row.was_bad, "only_bad_rows_fail", f"row {key}")

    def _compare_rows(self) -> None:
        require(self.seen.rows.keys() == self.rows.keys(), "no_row_is_made_or_lost", "")
        for key, row in self.rows.items():
            n, is_pending = self.seen.rows[key]
            require(
                n == row.written + row.applied,
                "exactly_once",
                f"row {key} is {n}: the application's {row.written}, ours {row.applied}",
            )
            require(is_pending == row.is_pending, "written_together", f"row {key}")

    def _compare_counts(self) -> None:
        for run_id, changed in self._changed.items():
            counted = sum(r.changed for r in self.seen.ranges.values() if r.run_id == run_id)
            require(counted == changed, "counts_are_exact", f"{counted} counted, {changed} made")

    def _succeed(self, run_id: int, proved: Iterable[int | None]) -> None:
        require(
            not any(run == run_id for run, _ in self.seen.failures), "nothing_hidden", "failures"
        )
        if self.has_where:
            proof = max((step for step in proved if step is not None), default=-1)
            left = [k for k, row in self.rows.items() if row.is_pending and row.since < proof]
        else:
            left = sorted(self._at_start[run_id] & self.rows.keys() - self._passed[run_id])
        require(not left, "finished_means_proved", f"rows {left}")

    def pending(self) -> Collection[int]:
        return [key for key, row in self.rows.items() if row.is_pending]


def require(holds: bool, name: str, details: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(f"{name}: {details}")
