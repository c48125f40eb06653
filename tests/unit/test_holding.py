"""What a worker writes into its lease, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from backfill.errors import LeaseLost
from backfill.holding import Holding
from backfill.runs import KeyRange, Lease
from backfill.settings import Settings

if TYPE_CHECKING:
    from backfill.dialects import Dialect
    from backfill.runs import Run
    from backfill.store import Store

LEASE = Lease(1, 1, "token", (), (9,), finished=False, size=None)


@dataclass
class Stored:
    """A store that remembers what it was told, and a clock that the test moves."""

    now: float = 100.0
    renewals: list[tuple[float, str | None]] = field(default_factory=list)
    is_lost: bool = False
    is_doubted: bool = False

    def __post_init__(self) -> None:
        store, run, dialect = cast("Store", self), cast("Run", None), cast("Dialect", None)
        self.hold = Holding(store, run, Settings(lease_seconds=30), dialect, lambda: self.now)
        assert self.hold.claim(cast("KeyRange", None))

    def claim(self, *_: object) -> Lease:
        return LEASE

    def renew(self, lease: Lease, seconds: float, throttled: str | None) -> None:
        if self.is_lost:
            raise LeaseLost(lease.range_id)
        self.renewals.append((self.now, throttled))

    def reasons(self) -> list[str | None]:
        return [reason for _, reason in self.renewals]


def test_a_new_reason_is_written_at_once_and_so_is_its_end() -> None:
    stored = Stored()
    for reason in ("", "waits: lag", "waits: lag", "waits: disk", "", ""):
        stored.hold.explain(reason)
    assert stored.reasons() == ["waits: lag", "waits: disk", None]


def test_figures_are_written_now_and_then() -> None:
    stored = Stored()
    for second in range(30):
        stored.hold.explain(f"waits: lag {second} s")
        stored.now += 1
    assert 3 <= len(stored.renewals) <= 7
    assert all(
        later - earlier > 5
        for (earlier, _), (later, _) in zip(stored.renewals, stored.renewals[1:], strict=False)
    )


def test_a_lease_is_renewed_when_a_third_of_it_is_over() -> None:
    stored = Stored()
    for _ in range(100):
        stored.now += 1
        stored.hold.pulse()
    assert 8 <= len(stored.renewals) <= 10


def test_trouble_is_what_is_shown_until_a_chunk_is_committed() -> None:
    stored = Stored()
    stored.hold.explain("slowed to 50%: sessions")
    stored.hold.trouble = "waits: a row is locked"
    stored.now += 11
    stored.hold.pulse()
    stored.hold.moved(LEASE)
    stored.now += 11
    stored.hold.pulse()
    shown = ["slowed to 50%: sessions", "waits: a row is locked", "slowed to 50%: sessions"]
    assert stored.reasons() == shown


def test_trouble_is_told_soon_and_once() -> None:
    stored = Stored()
    stored.hold.trouble = "waits: locked by the application (55P03)"
    stored.hold.pulse()
    assert stored.renewals == []
    for _ in range(5):
        stored.now += 1.5
        stored.hold.pulse()
    assert stored.reasons() == ["waits: locked by the application (55P03)"]


def test_a_lease_that_was_taken_away_ends_the_wait() -> None:
    stored = Stored(is_lost=True)
    with pytest.raises(LeaseLost):
        stored.hold.explain("waits: lag")
