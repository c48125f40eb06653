"""Create flights and bookings; the first half of January was loaded twice."""

import csv
import lzma
from itertools import takewhile
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

DATA = Path(__file__).resolve().parents[3] / "flights" / "data" / "flights.csv.xz"
NAMES = ("month", "day", "carrier", "flight", "origin")


def upgrade():
    flights = op.create_table(
        "flights",
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.String(4), nullable=False) for name in NAMES),
    )
    op.create_table(
        "bookings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("flight_id", sa.Integer, sa.ForeignKey("flights.id"), nullable=False, index=True),
    )
    january = list(read_january())
    op.bulk_insert(flights, [row for row in january if int(row["day"]) <= 15])
    op.bulk_insert(flights, january)
    op.execute("INSERT INTO bookings (flight_id) SELECT id FROM flights WHERE id % 10 = 0")


def downgrade():
    op.drop_table("bookings")
    op.drop_table("flights")


def read_january():
    with lzma.open(DATA, "rt", encoding="utf-8", newline="") as lines:
        for row in takewhile(lambda row: row["month"] == "1", csv.DictReader(lines)):
            yield {name: row[name] for name in NAMES}
