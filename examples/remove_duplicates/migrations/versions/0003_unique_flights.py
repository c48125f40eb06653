"""No flight twice, from now on."""

from alembic import op

revision = "0003"
down_revision = "0002"

SAME = ["month", "day", "carrier", "flight", "origin"]


def upgrade():
    op.require_backfill("remove_duplicates")
    op.drop_index("flights_same", "flights")
    op.create_index("flights_same", "flights", SAME, unique=True)


def downgrade():
    op.drop_index("flights_same", "flights")
    op.create_index("flights_same", "flights", SAME)
