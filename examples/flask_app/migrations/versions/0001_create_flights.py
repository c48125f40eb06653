"""Create flights, and load 50,000 of them."""

import csv
import lzma
from itertools import islice
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

DATA = Path(__file__).resolve().parents[3] / "flights" / "data" / "flights.csv.xz"


def upgrade():
    flights = op.create_table(
        "flights",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("carrier", sa.String(2), nullable=False),
        sa.Column("flight", sa.Integer(), nullable=False),
        sa.Column("dep_delay", sa.Integer()),
    )
    with lzma.open(DATA, "rt", encoding="utf-8", newline="") as lines:
        rows = [
            {name: row[name] or None for name in ("carrier", "flight", "dep_delay")}
            for row in islice(csv.DictReader(lines), 50_000)
        ]
    op.bulk_insert(flights, rows)


def downgrade():
    op.drop_table("flights")
