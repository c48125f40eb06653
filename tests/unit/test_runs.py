"""The state machine of a run."""

from __future__ import annotations

import re
from itertools import product

import pytest

from backfill.errors import InvalidTransition
from backfill.runs import TRANSITIONS, Status, check_transition

ALLOWED = {
    "pending": {"running", "paused", "cancelled", "stale"},
    "running": {"running", "pending", "paused", "failed", "succeeded", "cancelled", "stale"},
    "paused": {"pending", "cancelled", "stale"},
    "failed": {"running", "paused", "cancelled", "stale"},
    "succeeded": {"stale"},
    "cancelled": set(),
    "stale": set(),
}

PAIRS = list(product(Status, Status))


def describe(value: object) -> str:
    return value.value if isinstance(value, Status) else str(value)


def is_allowed(current: Status, wanted: Status) -> bool:
    return wanted.value in ALLOWED[current.value]


def test_every_status_has_its_edges() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status.value for status in Status} == set(ALLOWED)


@pytest.mark.parametrize(
    ("current", "wanted"), [pair for pair in PAIRS if is_allowed(*pair)], ids=describe
)
def test_edge_is_allowed(current: Status, wanted: Status) -> None:
    check_transition("fill", current, wanted)


@pytest.mark.parametrize(
    ("current", "wanted"), [pair for pair in PAIRS if not is_allowed(*pair)], ids=describe
)
def test_there_is_no_other_edge(current: Status, wanted: Status) -> None:
    with pytest.raises(InvalidTransition) as refused:
        check_transition("fill", current, wanted)
    assert refused.value.status == current.value
    assert refused.value.wanted == wanted.value
    assert re.match(rf"Backfill 'fill' (is|has) {current.value} and cannot be ", str(refused.value))
    assert "`backfill " in str(refused.value), "what to do is said"


def test_every_status_can_be_reached() -> None:
    reached = {Status.PENDING}
    for _ in Status:
        reached |= {wanted for current in reached for wanted in TRANSITIONS[current]}
    assert reached == set(Status)
