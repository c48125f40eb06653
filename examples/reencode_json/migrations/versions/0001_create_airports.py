"""Create airports, each with its place as JSON of the old form."""

import csv
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

DATA = Path(__file__).resolve().parents[3] / "flights" / "data" / "airports.csv"


def upgrade():
    airports = op.create_table(
        "airports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("code", sa.String(3), nullable=False),
        sa.Column("place", sa.JSON, nullable=False),
    )
    with DATA.open(encoding="utf-8", newline="") as lines:
        rows = [
            {"code": row["faa"], "place": {"lat": row["lat"], "lon": row["lon"]}}
            for row in csv.DictReader(lines)
        ]
    op.bulk_insert(airports, rows)


def downgrade():
    op.drop_table("airports")
