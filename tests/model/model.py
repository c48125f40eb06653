"""What must be true of a run, whoever was killed: runs, ranges, rows and the ledger of an
application, as plain data. It learns from the committed state alone what chunks there were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from backfill.runs import Status
from tests.model.invariants import Invariant, require

if TYPE_CHECKING:
    from collections.abc import Collection

STOPPED = (Status.PAUSED, Status.CANCELLED, Status.SUCCEEDED)
OVER = (Status.CANCELLED, Status.SUCCEEDED)


@dataclass(frozen=True)
class Range:
    """A key range as it is committed."""

    run_id: int
    lower: int
    upper: int
    cursor: int
    changed: int
    token: str | None = None
    owner: str | None = None
    is_live: bool = False
    """Whether its lease has yet to end, by the database's clock."""


@dataclass(frozen=True)
class Snapshot:
    """All that is committed."""

    statuses: dict[int, Status] = field(default_factory=dict)
    ranges: dict[int, Range] = field(default_factory=dict)
    failures: frozenset[tuple[int, int]] = frozenset()
    """Of a run, the key of a row."""
    rows: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """`n`, and whether it is pending, by key."""


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
    seen: Snapshot = field(default_factory=Snapshot)
    cuts: list[int] = field(default_factory=list)
    """The steps in which runners have cut the table for a new run."""
    open_since: int | None = None
    """The step in which the application began a transaction that is open."""
    _began: dict[int, int] = field(default_factory=dict)
    _at_start: dict[int, set[int]] = field(default_factory=dict)
    _passed: dict[int, set[int]] = field(default_factory=dict)
    _moved: dict[int, int] = field(default_factory=dict)
    """The step in which a range's cursor moved last."""
    _changed: dict[int, int] = field(default_factory=dict)

    # -- what the application does ---------------------------------------------------------

    def insert(self, key: int, n: int) -> None:
        self.rows[key] = Row(n, born=self.step, since=self.step)

    def reopen(self, key: int) -> None:
        row = self.rows[key]
        row.is_pending, row.since = True, self.step

    def spoil(self, key: int) -> None:
        """Make it a row that the database refuses to let be done."""
        self.rows[key].is_bad = self.rows[key].was_bad = True
        self.reopen(key)

    # -- what it sees ------------------------------------------------------------------------

    def observe(
        self,
        now: Snapshot,
        *,
        proof_began: int | None = None,
        retries: bool = False,
        decides: bool = False,
    ) -> None:
        """Compare what is committed with what may be.

        `proof_began`: the step in which whoever acted since began the last proof; `retries`:
        quarantined rows were tried again since; `decides`: somebody paused, resumed or cancelled.
        """
        before, self.seen = self.seen, now
        for run_id in now.statuses.keys() - before.statuses.keys():
            self._begin(run_id, now)
        for range_id, found in now.ranges.items():
            self._claim(before.ranges.get(range_id), found)
            self._move(before, range_id, found)
        self._quarantine(before, retries=retries)
        self._compare_rows()
        self._compare_counts()
        for run_id, status in now.statuses.items():
            self._change(run_id, before.statuses.get(run_id), status, decides=decides)
            if status is Status.SUCCEEDED and before.statuses.get(run_id) is not status:
                self._succeed(run_id, proof_began)
        self.step += 1

    def _begin(self, run_id: int, now: Snapshot) -> None:
        self._passed[run_id] = set()
        self._changed[run_id] = 0
        bounds = sorted((r.lower, r.upper) for r in now.ranges.values() if r.run_id == run_id)
        upper = bounds[-1][1] if bounds else 0
        cut = self._began[run_id] = min(self.cuts, default=self.step)
        missed = [key for key, row in self.rows.items() if key > upper and row.born < cut]
        is_whole = not missed and (not bounds or bounds[0][0] == 0)
        require(is_whole, Invariant.RANGES_COVER_ALL, f"{bounds} without {missed}")
        self._at_start[run_id] = {key for key in self.rows if key <= upper}
        self.cuts.clear()
        for (_, upper), (lower, _) in pairwise(bounds):
            require(upper == lower, Invariant.RANGES_ARE_DISJOINT, str(bounds))

    def _claim(self, was: Range | None, now: Range) -> None:
        if was is None or not was.is_live or was.token is None or now.token is None:
            return
        is_ours = was.owner == now.owner
        require(is_ours, Invariant.LEASES_ARE_RESPECTED, f"{was.owner}'s range has {now.owner}")

    def _move(self, before: Snapshot, range_id: int, now: Range) -> None:
        was = before.ranges.get(range_id)
        start = was.cursor if was is not None else now.lower
        is_forward = start <= now.cursor <= now.upper
        require(is_forward, Invariant.CURSORS_GO_FORWARD, f"{was} became {now}")
        if now.cursor == start:
            return
        status = before.statuses.get(now.run_id)
        is_on = status not in STOPPED
        require(is_on, Invariant.STOPPED_MEANS_STOPPED, f"{was} became {now} when {status}")
        began = self._moved.get(range_id, self._began[now.run_id])
        for key in sorted(k for k in self.rows if start < k <= now.cursor):
            self._passed[now.run_id].add(key)
            if not self._is_left_to_a_sweep(key, began):
                self._apply(before, now.run_id, key)
        self._moved[range_id] = self.step

    def _is_left_to_a_sweep(self, key: int, began: int) -> bool:
        """Whether a row became pending while its chunk was under way, and still is."""
        is_late = self.has_where and self.rows[key].since >= began
        return is_late and self.seen.rows.get(key, (0, False))[1]

    def _apply(self, before: Snapshot, run_id: int, key: int) -> None:
        row = self.rows[key]
        if (run_id, key) in before.failures or (self.has_where and not row.is_pending):
            return
        if (run_id, key) in self.seen.failures:
            require(row.was_bad, Invariant.ONLY_BAD_ROWS_FAIL, f"row {key}")
            return
        require(not row.is_bad, Invariant.BAD_ROWS_ARE_RECORDED, f"row {key}")
        self._applied(run_id, row)

    def _applied(self, run_id: int, row: Row) -> None:
        row.applied += 1
        row.is_pending = False
        self._changed[run_id] += 1

    def _quarantine(self, before: Snapshot, *, retries: bool) -> None:
        for run_id, key in before.failures - self.seen.failures:
            require(retries, Invariant.FAILURES_STAY, f"row {key}")
            row = self.rows.get(key)
            if row is not None and (row.is_pending or not self.has_where):
                self._applied(run_id, row)
        for _, key in self.seen.failures - before.failures:
            row = self.rows.get(key)
            is_bad = row is None or row.was_bad
            require(is_bad, Invariant.ONLY_BAD_ROWS_FAIL, f"row {key}")

    def _compare_rows(self) -> None:
        is_same = self.seen.rows.keys() == self.rows.keys()
        require(is_same, Invariant.NO_ROW_IS_MADE_OR_LOST, str(self.seen.rows.keys()))
        for key, row in self.rows.items():
            n, is_pending = self.seen.rows[key]
            require(
                n == row.written + row.applied,
                Invariant.EXACTLY_ONCE,
                f"row {key} is {n}: the application's {row.written}, ours {row.applied}",
            )
            require(is_pending == row.is_pending, Invariant.WRITTEN_TOGETHER, f"row {key}")

    def _compare_counts(self) -> None:
        for run_id, changed in self._changed.items():
            counted = sum(r.changed for r in self.seen.ranges.values() if r.run_id == run_id)
            is_exact = counted == changed
            require(is_exact, Invariant.COUNTS_ARE_EXACT, f"{counted} counted, {changed} made")

    def _change(self, run_id: int, was: Status | None, now: Status, *, decides: bool) -> None:
        change = f"{was} became {now} in run {run_id}"
        require(was not in OVER or now is was, Invariant.OVER_IS_OVER, change)
        is_stopped = was is not Status.PAUSED or now is was or decides
        require(is_stopped, Invariant.STOPPED_MEANS_STOPPED, change)

    def _succeed(self, run_id: int, proof_began: int | None) -> None:
        is_hiding = any(run == run_id for run, _ in self.seen.failures)
        require(not is_hiding, Invariant.NOTHING_HIDDEN, "rows are in quarantine")
        if not self.has_where:
            left = sorted(self._at_start[run_id] & self.rows.keys() - self._passed[run_id])
            require(not left, Invariant.FINISHED_MEANS_PROVED, f"rows {left} were never passed")
            return
        proof = -1 if proof_began is None else proof_began
        is_own = proof >= self._began[run_id]
        require(is_own, Invariant.FINISHED_MEANS_PROVED, f"no proof since run {run_id} began")
        left = [k for k, row in self.rows.items() if row.is_pending and row.since < proof]
        require(not left, Invariant.FINISHED_MEANS_PROVED, f"rows {left} are pending")
        is_late = self.open_since is not None and self.open_since < self._began[run_id]
        require(not is_late, Invariant.LATE_COMMITS_ARE_AWAITED, "an older transaction is open")

    def pending(self) -> Collection[int]:
        return [key for key, row in self.rows.items() if row.is_pending]
