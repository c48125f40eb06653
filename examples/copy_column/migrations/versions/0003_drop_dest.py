"""Make the link a foreign key that is never empty, and drop the text."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.require_backfill("link_destinations")
    with op.batch_alter_table("flights") as flights:
        flights.alter_column("destination_id", nullable=False)
        flights.create_foreign_key(
            "flights_destination", "destinations", ["destination_id"], ["id"]
        )
        flights.drop_column("dest")


def downgrade():
    with op.batch_alter_table("flights") as flights:
        flights.add_column(sa.Column("dest", sa.String(3)))
        flights.drop_constraint("flights_destination", type_="foreignkey")
        flights.alter_column("destination_id", nullable=True)
