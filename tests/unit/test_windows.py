"""Windows: hours of the day, over midnight, in a zone, over a change of the clocks."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from backfill.speed.windows import Window

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def open_minutes(window: Window, first: datetime, hours: int) -> list[str]:
    """The minutes in which it is open, as the clock on its wall shows them."""
    begin = first.astimezone(timezone.utc)
    minutes = (begin + timedelta(minutes=i) for i in range(hours * 60))
    return [f"{m.astimezone(window.zone):%H:%M}" for m in minutes if window.is_open(m)]


@pytest.mark.parametrize(
    ("text", "moment", "is_open"),
    [
        ("09:00-17:00", "2026-11-21 08:59:59", False),
        ("09:00-17:00", "2026-11-21 09:00", True),
        ("9:00-17:00", "2026-11-21 16:59:59", True),
        ("09:00-17:00", "2026-11-21 17:00", False),
        ("22:00-06:00", "2026-11-21 22:00", True),
        ("22:00-06:00", "2026-11-21 00:00", True),
        ("22:00-06:00", "2026-11-21 05:59", True),
        ("22:00-06:00", "2026-11-21 06:00", False),
        ("22:00-24:00", "2026-11-21 23:59", True),
        ("22:00-24:00", "2026-11-21 00:00", False),
        ("22:00-06:00 Europe/Berlin", "2026-11-21 21:00", True),  # 22:00 in Berlin
        ("22:00-06:00 Europe/Berlin", "2026-11-21 20:59", False),
        ("22:00-06:00 Europe/Berlin", "2026-07-21 20:00", True),  # summer: two hours before UTC
    ],
)
def test_open_from_the_first_time_until_the_second(text: str, moment: str, is_open: bool) -> None:
    assert Window.parse(text).is_open(at(moment)) is is_open


def test_the_zone_is_said() -> None:
    berlin, utc = Window.parse("22:00-06:00 Europe/Berlin"), Window.parse(" 1:05 - 6:00 ")
    assert berlin.waits == "waits until 22:00 Europe/Berlin (window 22:00-06:00)"
    assert utc.waits == "waits until 01:05 UTC (window 01:05-06:00)"


def test_clocks_put_forward_over_the_beginning() -> None:
    """On 29 March 2026 the clock in Berlin goes from 02:00 to 03:00."""
    found = open_minutes(
        Window.parse("02:30-04:00 Europe/Berlin"), at("2026-03-29", "Europe/Berlin"), 24
    )
    assert (found[0], found[-1], len(found)) == ("03:00", "03:59", 60)


def test_clocks_put_forward_in_an_open_window() -> None:
    window = Window.parse("22:00-06:00 Europe/Berlin")
    assert len(open_minutes(window, at("2026-03-28 12:00", "Europe/Berlin"), 24)) == 7 * 60


def test_clocks_put_back() -> None:
    """On 25 October 2026 the hour from 02:00 comes twice in Berlin."""
    start = at("2026-10-24 12:00", "Europe/Berlin")
    night = Window.parse("22:00-06:00 Europe/Berlin")
    assert len(open_minutes(night, start, 24)) == 9 * 60
    twice = Window.parse("02:00-02:30 Europe/Berlin")
    assert len(open_minutes(twice, start, 24)) == 2 * 30


@pytest.mark.parametrize(
    "text",
    [
        *("", "22:00", "22-6", "22:00-06:00-07:00", "10pm-6am", "22:00-06:00 Europe/Berlin UTC"),
        *("24:30-06:00", "22:60-06:00", "00:00-24:00", "22:00-06:00 Mars/Base"),
        *("22:00-06:00 ../../etc/passwd", "22:00-06:00 Europe"),
    ],
)
def test_what_is_no_window_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Window.parse(text)
