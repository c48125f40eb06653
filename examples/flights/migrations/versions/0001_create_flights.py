"""Create flights and load the data.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import csv
import lzma
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import op

if TYPE_CHECKING:
    from collections.abc import Iterator

revision = "0001"
down_revision = None

DATA = Path(__file__).resolve().parents[2] / "data" / "flights.csv.xz"


def upgrade() -> None:
    flights = op.create_table(
        "flights",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("year", sa.Integer, nullable=False),
        sa.Column("month", sa.Integer, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("sched_dep_time", sa.Integer, nullable=False),  # 1745 is a quarter to six
        sa.Column("dep_time", sa.Integer),
        sa.Column("dep_delay", sa.Integer),
        sa.Column("carrier", sa.String(2), nullable=False),
        sa.Column("flight", sa.Integer, nullable=False),
        sa.Column("origin", sa.String(3), nullable=False),
        sa.Column("dest", sa.String(3), nullable=False),
        sa.Column("air_time", sa.Integer),
        sa.Column("distance", sa.Integer, nullable=False),
    )
    rows = read_flights()
    while chunk := list(islice(rows, 20_000)):
        op.bulk_insert(flights, chunk)


def downgrade() -> None:
    op.drop_table("flights")


def read_flights() -> Iterator[dict[str, str | None]]:
    """The rows of the CSV; an empty field is NULL, numbers are left to the driver."""
    with lzma.open(DATA, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {column: text or None for column, text in row.items()}
