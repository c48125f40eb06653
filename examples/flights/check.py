"""Check the finished database against the CSV, without using backfill.

Every value is computed again, and in another way: the UTC offset of New York in 2013 is written
down here instead of coming from a time zone database.
"""

from __future__ import annotations

import csv
import lzma
import sys
from datetime import datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).resolve().parent
REQUIRED = {"speed_basis", "sched_dep_utc"}  # NOT NULL since revision 0003
EXPECTED = {"air_time": 327_346, "none: no air_time (cancelled or diverted)": 9_430}
FLIGHTS = sa.text(
    "SELECT carrier, flight, avg_speed_mph, speed_basis, sched_dep_utc FROM flights ORDER BY id"
).columns(
    carrier=sa.String,
    flight=sa.Integer,
    avg_speed_mph=sa.Float,
    speed_basis=sa.String,
    sched_dep_utc=sa.DateTime,
)


def main() -> int:
    engine = sa.create_engine(Config(HERE / "alembic.ini").get_main_option("sqlalchemy.url") or "")
    counts = count_by_basis(engine)
    for basis, count in counts.items():
        print(f"{count:>9,}  {basis}")
    faults = [
        *([] if counts == EXPECTED else [f"expected by speed_basis: {EXPECTED}"]),
        *(f"{column} may still be NULL" for column in nullable(engine)),
        *wrong_rows(engine),
    ]
    for fault in faults[:10]:
        print(f"WRONG: {fault}")
    if faults:
        print(f"{len(faults):,} things are wrong")
        return 1
    print(f"Right: all {sum(counts.values()):,} flights, each value computed again from the CSV.")
    return 0


def count_by_basis(engine: sa.Engine) -> dict[str | None, int]:
    query = "SELECT speed_basis, count(*) AS n FROM flights GROUP BY speed_basis ORDER BY n DESC"
    with engine.connect() as connection:
        return {row.speed_basis: row.n for row in connection.execute(sa.text(query))}


def nullable(engine: sa.Engine) -> list[str]:
    columns = sa.inspect(engine).get_columns("flights")
    return [c["name"] for c in columns if c["nullable"] and c["name"] in REQUIRED]


def wrong_rows(engine: sa.Engine) -> Iterator[str]:
    """Compare the table with the CSV, line by line; both are in the order of loading."""
    with engine.connect() as connection, lzma.open(HERE / "data/flights.csv.xz", "rt") as lines:
        stored = connection.execution_options(yield_per=10_000).execute(FLIGHTS)
        for number, (line, row) in enumerate(zip_longest(csv.DictReader(lines), stored), start=1):
            if line is None or row is None or not is_right(line, row):
                yield f"flight {number}: the CSV has {line}, the table has {row}"


def is_right(line: Mapping[str, str], row: Any) -> bool:
    minutes = line["air_time"]
    speed = int(line["distance"]) * 60 / int(minutes) if minutes else None
    return (
        (row.carrier, row.flight) == (line["carrier"], int(line["flight"]))
        and row.speed_basis.startswith("air_time" if minutes else "none:")
        and row.sched_dep_utc == departure_utc(line)
        and (row.avg_speed_mph is None if speed is None else abs(row.avg_speed_mph - speed) < 0.01)
    )


def departure_utc(line: Mapping[str, str]) -> datetime:
    """New York is 4 hours behind UTC from 10 March to 2 November 2013, and 5 otherwise."""
    month, day, clock = int(line["month"]), int(line["day"]), int(line["sched_dep_time"])
    behind = 4 if (3, 10) <= (month, day) < (11, 3) else 5
    return datetime(2013, month, day) + timedelta(hours=clock // 100 + behind, minutes=clock % 100)


if __name__ == "__main__":
    sys.exit(main())
