"""The names of what must be true, as docs/pages/invariants.md has them, each with its sentence."""

from __future__ import annotations

from enum import Enum


class Invariant(Enum):
    """What is checked after each step, and at the end of each life."""

    EXACTLY_ONCE = "exactly_once"
    WRITTEN_TOGETHER = "written_together"
    NO_ROW_IS_MADE_OR_LOST = "no_row_is_made_or_lost"
    COUNTS_ARE_EXACT = "counts_are_exact"
    CURSORS_GO_FORWARD = "cursors_go_forward"
    RANGES_COVER_ALL = "ranges_cover_all"
    RANGES_ARE_DISJOINT = "ranges_are_disjoint"
    LEASES_ARE_RESPECTED = "leases_are_respected"
    STOPPED_MEANS_STOPPED = "stopped_means_stopped"
    OVER_IS_OVER = "over_is_over"
    BAD_ROWS_ARE_RECORDED = "bad_rows_are_recorded"
    ONLY_BAD_ROWS_FAIL = "only_bad_rows_fail"
    FAILURES_STAY = "failures_stay"
    NOTHING_HIDDEN = "nothing_hidden"
    FINISHED_MEANS_PROVED = "finished_means_proved"
    LATE_COMMITS_ARE_AWAITED = "late_commits_are_awaited"
    DOUBT_IS_SURVIVED = "doubt_is_survived"
    GIVES_WAY = "gives_way"
    NOTHING_IS_LEFT_BEHIND = "nothing_is_left_behind"
    FAILS_FOR_A_REASON = "fails_for_a_reason"
    ENDS_WELL = "ends_well"


class Broken(AssertionError):
    """An invariant does not hold; its name comes first."""

    def __init__(self, invariant: Invariant, details: str) -> None:
        super().__init__(f"{invariant.value}: {details}")
        self.invariant = invariant
        self.details = details


def require(holds: bool, invariant: Invariant, details: str = "") -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(invariant, details)
