"""Make speed_basis and sched_dep_utc NOT NULL, once both are filled.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import backfill  # noqa: F401 - gives op.require_backfill
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.require_backfill("fill_speed")
    op.require_backfill("fill_scheduled_departure_utc")
    with op.batch_alter_table("flights") as flights:
        flights.alter_column("speed_basis", existing_type=sa.Text(), nullable=False)
        flights.alter_column("sched_dep_utc", existing_type=sa.DateTime(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("flights") as flights:
        flights.alter_column("sched_dep_utc", existing_type=sa.DateTime(), nullable=True)
        flights.alter_column("speed_basis", existing_type=sa.Text(), nullable=True)
