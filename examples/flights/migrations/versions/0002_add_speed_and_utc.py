"""Add average speed and scheduled departure in UTC.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("flights", sa.Column("avg_speed_mph", sa.Float))
    op.add_column("flights", sa.Column("speed_basis", sa.Text))
    op.add_column("flights", sa.Column("sched_dep_utc", sa.DateTime))


def downgrade() -> None:
    with op.batch_alter_table("flights") as flights:
        flights.drop_column("sched_dep_utc")
        flights.drop_column("speed_basis")
        flights.drop_column("avg_speed_mph")


class FillSpeed(Backfill):
    """Average speed, and what it was computed from.

    9,430 flights have no air_time: they were cancelled or diverted. They have no speed and never
    will, so `avg_speed_mph` stays NULL and `speed_basis` says why. That also makes `where` come
    true to its word: a row without a speed, but with its reason, is done.
    """

    table = "flights"
    where = "speed_basis IS NULL"
    values = {
        "avg_speed_mph": "CASE WHEN air_time > 0 THEN distance * 60.0 / air_time END",
        "speed_basis": "CASE WHEN air_time > 0 THEN 'air_time'"
        " ELSE 'none: no air_time (cancelled or diverted)' END",
    }
