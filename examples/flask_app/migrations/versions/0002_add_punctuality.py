"""Add flights.punctuality."""

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("flights", sa.Column("punctuality", sa.String(10)))


def downgrade():
    op.drop_column("flights", "punctuality")


class FillPunctuality(Backfill):
    """Say of every flight whether it left on time."""

    table = "flights"
    where = "punctuality IS NULL"
    values = {
        "punctuality": "CASE WHEN dep_delay IS NULL THEN 'cancelled'"
        " WHEN dep_delay > 15 THEN 'late' ELSE 'on time' END"
    }
