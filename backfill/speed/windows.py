"""Windows: the hours of the day in which a backfill may write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timezone, tzinfo
from zoneinfo import ZoneInfo

EXAMPLE = "22:00-06:00 Europe/Berlin"
_FORM = re.compile(r"\s*(\d{1,2}:\d\d)\s*-\s*(\d{1,2}:\d\d)(?:\s+(\S+))?\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """From one time of the day, inclusive, until another, exclusive; over midnight if need be.

    It goes by the clock on the wall in its zone. Where that is put forward over its beginning
    it opens with the first minute that there is; an hour that comes twice is in it twice.
    """

    opens: time
    closes: time
    zone_name: str
    zone: tzinfo

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `22:00-06:00 Europe/Berlin`; without a zone it is in UTC.

        Raises ValueError with what is wrong.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f'it must be two times of the day and a zone, like "{EXAMPLE}"')
        opens, closes = _time(found[1]), _time(found[2])
        if opens == closes:
            raise ValueError("it opens and closes at the same time; leave it out for the whole day")
        return cls(opens, closes, found[3] or "UTC", _zone(found[3] or "UTC"))

    def is_open(self, now: datetime) -> bool:
        """Whether one may write at this moment, which must have a zone."""
        local = now.astimezone(self.zone).time()
        if self.opens < self.closes:
            return self.opens <= local < self.closes
        return local >= self.opens or local < self.closes

    @property
    def waits(self) -> str:
        """Why nothing is written while it is closed, for people."""
        return f"waits until {self.opens:%H:%M} {self.zone_name} (window {self})"

    def __str__(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"


def _time(text: str) -> time:
    hour, minute = map(int, text.split(":"))
    try:
        return time(0 if (hour, minute) == (24, 0) else hour, minute)
    except ValueError:
        raise ValueError(f'there is no time {text}; write it like "{EXAMPLE}"') from None


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return timezone.utc  # known also where there is no database of time zones
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f'no time zone is called "{name}" here; names are like "Europe/Berlin" or "UTC"'
            " (where all are missing: pip install tzdata)"
        ) from None
