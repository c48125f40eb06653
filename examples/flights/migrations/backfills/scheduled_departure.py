"""Backfills may also stand here, beside versions/; then they name their revision."""

from __future__ import annotations

import csv
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from backfill import Backfill

AIRPORTS = Path(__file__).resolve().parents[2] / "data" / "airports.csv"


class FillScheduledDepartureUtc(Backfill):
    """Scheduled departure in UTC, from the local time at the airport of origin."""

    revision = "0002"
    table = "flights"
    where = "sched_dep_utc IS NULL"
    reads = ["year", "month", "day", "sched_dep_time", "origin"]
    writes = ["sched_dep_utc"]

    def transform(self, row: Any) -> dict[str, datetime]:
        hours, minutes = divmod(row.sched_dep_time, 100)
        midnight = datetime(row.year, row.month, row.day)
        local = midnight + timedelta(hours=hours, minutes=minutes)  # 2400: the next day, 00:00
        utc = local.replace(tzinfo=time_zone(row.origin)).astimezone(timezone.utc)
        return {"sched_dep_utc": utc.replace(tzinfo=None)}


@cache
def time_zone(airport: str) -> ZoneInfo:
    return ZoneInfo(time_zone_names()[airport])


@cache
def time_zone_names() -> dict[str, str]:
    """Airport code to time zone name; read when first needed, not when the class is found."""
    with AIRPORTS.open(encoding="utf-8", newline="") as lines:
        return {airport["faa"]: airport["tzone"] for airport in csv.DictReader(lines)}
