"""Compare each place with the CSV, without backfill."""

import csv
import json
import os
from pathlib import Path

import sqlalchemy as sa

URL = os.environ.get("DATABASE_URL", "sqlite:///reencode_json.sqlite3")
DATA = Path(__file__).resolve().parent.parent / "flights" / "data" / "airports.csv"

airports = sa.table("airports", sa.column("id"), sa.column("code"), sa.column("place", sa.JSON))
with DATA.open(encoding="utf-8", newline="") as lines:
    expected = [
        (row["faa"], [float(row["lon"]), float(row["lat"])]) for row in csv.DictReader(lines)
    ]
with sa.create_engine(URL).connect() as connection:
    found = connection.execute(sa.select(airports).order_by(airports.c.id)).all()
assert [(row.code, row.place["coordinates"]) for row in found] == expected
print(f"{len(found):,} airports; the last: {found[-1].code} {json.dumps(found[-1].place)}")
