"""Tests of both backfills, by the pytest plugin that comes with backfill.

pip install pytest && pytest examples/flights --rootdir examples/flights
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.testing.case import Case

LONDON = {"carrier": "BA", "flight": 178, "origin": "JFK", "dest": "LHR", "distance": 3451}


def flight(month: int, clock: int, air_time: int | None = None, **others: Any) -> dict[str, Any]:
    return {
        **LONDON,
        "year": 2013,
        "month": month,
        "day": 31,
        "sched_dep_time": clock,
        "air_time": air_time,
        **others,
    }


def test_fill_speed(backfill_test: Callable[[str], Case]) -> None:
    case = backfill_test("fill_speed")
    case.clear("flights")  # revision 0001 loads a year of them
    case.insert("flights", flight(1, 800, air_time=345), flight(1, 830), flight(7, 900, 0))
    case.insert("flights", flight(1, 930, air_time=345, speed_basis="radar"))
    case.check()
    flown, cancelled, diverted, other = case.rows("flights")
    assert (round(flown.avg_speed_mph), flown.speed_basis) == (600, "air_time")
    assert cancelled.avg_speed_mph is diverted.avg_speed_mph is other.avg_speed_mph is None
    assert cancelled.speed_basis == diverted.speed_basis
    assert other.speed_basis == "radar"


def test_fill_scheduled_departure_utc(backfill_test: Callable[[str], Case]) -> None:
    case = backfill_test("fill_scheduled_departure_utc")
    case.clear("flights")
    case.insert("flights", flight(1, 1745), flight(7, 1745), flight(12, 2400))
    case.check()
    assert [row.sched_dep_utc for row in case.rows("flights")] == [
        datetime(2013, 1, 31, 22, 45),
        datetime(2013, 7, 31, 21, 45),  # summer time
        datetime(2014, 1, 1, 5, 0),
    ]
