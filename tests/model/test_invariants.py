"""Each invariant is one sentence of the documentation, and the model tells when it is broken."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backfill.runs import Status
from tests.documents import PAGES
from tests.model.invariants import Broken, Invariant
from tests.model.model import Model, Range, Snapshot
from tests.model.mutants import MUTANTS

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNING = Snapshot(
    statuses={1: Status.RUNNING},
    ranges={
        1: Range(1, lower=0, upper=20, cursor=0, changed=0, token="a", owner="A", is_live=True)
    },
    rows={10: (100, True), 20: (100, True)},
)
DONE = replace(
    RUNNING,
    ranges={1: replace(RUNNING.ranges[1], cursor=20, changed=2)},
    rows={10: (101, False), 20: (101, False)},
)


def begun(*, has_where: bool = True) -> Model:
    """A run over two rows that has a range, and has done nothing."""
    model = Model(has_where)
    model.insert(10, 100)
    model.insert(20, 100)
    model.observe(replace(RUNNING, statuses={}, ranges={}))
    model.observe(RUNNING)
    return model


def with_range(snapshot: Snapshot = RUNNING, **changes: Any) -> Snapshot:
    return replace(snapshot, ranges={1: replace(snapshot.ranges[1], **changes)})


def with_status(status: Status, snapshot: Snapshot = RUNNING) -> Snapshot:
    return replace(snapshot, statuses={1: status})


def test_row_that_comes_late_is_left_to_a_sweep_where_there_is_one() -> None:
    for has_where in (True, False):
        model = begun(has_where=has_where)
        model.insert(15, 100)
        left = replace(DONE, rows={**DONE.rows, 15: (100, True)})
        if has_where:
            model.observe(left)
            with pytest.raises(Broken, match="finished_means_proved"):
                model.observe(with_status(Status.SUCCEEDED, left), proof_began=model.step)
        else:
            with pytest.raises(Broken, match="exactly_once"):
                model.observe(left)


def test_model_accepts_a_run_from_its_beginning_to_its_end() -> None:
    model = begun()
    model.observe(DONE)
    model.observe(with_status(Status.SUCCEEDED, DONE), proof_began=model.step)


def done_twice(model: Model) -> None:
    model.observe(replace(DONE, rows={10: (102, False), 20: (101, False)}))


def written_in_part(model: Model) -> None:
    model.observe(replace(DONE, rows={10: (101, True), 20: (101, False)}))


def row_lost(model: Model) -> None:
    model.observe(replace(DONE, rows={20: (101, False)}))


def counted_wrongly(model: Model) -> None:
    model.observe(with_range(DONE, changed=3))


def gone_back(model: Model) -> None:
    model.observe(DONE)
    model.observe(with_range(DONE, cursor=10))


def bound_too_low(model: Model) -> None:
    low = replace(RUNNING.ranges[1], run_id=2, upper=10)
    model.observe(
        replace(RUNNING, statuses={1: Status.RUNNING, 2: Status.RUNNING}, ranges={2: low})
    )


def ranges_with_a_gap(model: Model) -> None:
    first = replace(RUNNING.ranges[1], run_id=2, upper=10)
    ranges = {2: first, 3: replace(first, lower=15, upper=20, cursor=15)}
    model.observe(replace(RUNNING, statuses={1: Status.RUNNING, 2: Status.RUNNING}, ranges=ranges))


def lease_taken(model: Model) -> None:
    model.observe(with_range(token="b", owner="B"))


def written_when_paused(model: Model) -> None:
    model.observe(with_status(Status.PAUSED), decides=True)
    model.observe(with_status(Status.PAUSED, DONE))


def cancelled_and_going_on(model: Model) -> None:
    model.observe(with_status(Status.CANCELLED), decides=True)
    model.observe(RUNNING)


def bad_row_not_told(model: Model) -> None:
    model.rows[10].is_bad = True  # since before the run
    model.observe(replace(DONE, rows={10: (100, True), 20: (101, False)}))


def good_row_quarantined(model: Model) -> None:
    model.observe(replace(RUNNING, failures=frozenset({(1, 10)})))


def failure_forgotten(model: Model) -> None:
    model.spoil(10)
    model.observe(replace(RUNNING, failures=frozenset({(1, 10)})))
    model.observe(RUNNING)


def success_with_failures(model: Model) -> None:
    model.spoil(10)
    with_failure = replace(RUNNING, failures=frozenset({(1, 10)}))
    model.observe(with_failure)
    model.observe(with_status(Status.SUCCEEDED, with_failure))


def success_with_pending_rows(model: Model) -> None:
    model.observe(with_status(Status.SUCCEEDED), proof_began=model.step)


def success_before_a_late_commit(model: Model) -> None:
    model.observe(DONE)
    model.open_since = 0
    model.observe(with_status(Status.SUCCEEDED, DONE), proof_began=model.step)


BROKEN_BY: dict[Invariant, Callable[[Model], None]] = {
    Invariant.EXACTLY_ONCE: done_twice,
    Invariant.WRITTEN_TOGETHER: written_in_part,
    Invariant.NO_ROW_IS_MADE_OR_LOST: row_lost,
    Invariant.COUNTS_ARE_EXACT: counted_wrongly,
    Invariant.CURSORS_GO_FORWARD: gone_back,
    Invariant.RANGES_COVER_ALL: bound_too_low,
    Invariant.RANGES_ARE_DISJOINT: ranges_with_a_gap,
    Invariant.LEASES_ARE_RESPECTED: lease_taken,
    Invariant.STOPPED_MEANS_STOPPED: written_when_paused,
    Invariant.OVER_IS_OVER: cancelled_and_going_on,
    Invariant.BAD_ROWS_ARE_RECORDED: bad_row_not_told,
    Invariant.ONLY_BAD_ROWS_FAIL: good_row_quarantined,
    Invariant.FAILURES_STAY: failure_forgotten,
    Invariant.NOTHING_HIDDEN: success_with_failures,
    Invariant.FINISHED_MEANS_PROVED: success_with_pending_rows,
    Invariant.LATE_COMMITS_ARE_AWAITED: success_before_a_late_commit,
}


@pytest.mark.parametrize("invariant", BROKEN_BY, ids=lambda invariant: invariant.value)
def test_model_tells_what_is_broken(invariant: Invariant) -> None:
    model = begun()
    with pytest.raises(Broken) as found:
        BROKEN_BY[invariant](model)
    assert found.value.invariant is invariant


def test_rows_that_were_never_passed_are_told_without_a_where() -> None:
    with pytest.raises(Broken, match="finished_means_proved"):
        success_with_pending_rows(begun(has_where=False))


def test_resumed_by_itself_is_told() -> None:
    model = begun()
    model.observe(with_status(Status.PAUSED), decides=True)
    with pytest.raises(Broken, match="stopped_means_stopped"):
        model.observe(RUNNING)


def test_every_invariant_is_shown_to_be_checked() -> None:
    """By a history that breaks it, or by a wrong protocol."""
    shown = set(BROKEN_BY).union(*(mutant.breaks for mutant in MUTANTS))
    assert set(Invariant) - shown == set()


def test_the_documentation_has_them_all() -> None:
    text = (PAGES / "invariants.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+\.) \|$", text, flags=re.MULTILINE)
    names = [name for name, _ in rows]
    assert sorted(names) == sorted(invariant.value for invariant in Invariant)
