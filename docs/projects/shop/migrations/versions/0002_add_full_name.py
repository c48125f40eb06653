"""Add customers.full_name."""

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("customers", sa.Column("full_name", sa.Text))


def downgrade():
    op.drop_column("customers", "full_name")


class FillFullName(Backfill):
    """Give every customer a full name."""

    table = "customers"
    where = "full_name IS NULL"
    values = {"full_name": "first || ' ' || last"}
