"""Compare with the CSV, without backfill: each flight is linked to the destination it had."""

import csv
import lzma
import os
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

URL = os.environ.get("DATABASE_URL", "sqlite:///copy_column.sqlite3")
DATA = Path(__file__).resolve().parent.parent / "flights" / "data" / "flights.csv.xz"

LINKED = "SELECT code FROM flights JOIN destinations d ON d.id = destination_id ORDER BY flights.id"

with lzma.open(DATA, "rt", encoding="utf-8", newline="") as lines:
    expected = [row["dest"] for row in islice(csv.DictReader(lines), 50_000)]
with sa.create_engine(URL).connect() as connection:
    linked = connection.execute(sa.text(LINKED)).scalars().all()
assert linked == expected
print(f"{len(linked):,} flights, {len(set(linked))} destinations")
