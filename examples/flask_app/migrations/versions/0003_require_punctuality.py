"""Make flights.punctuality NOT NULL."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.require_backfill("fill_punctuality")
    with op.batch_alter_table("flights") as flights:
        flights.alter_column("punctuality", nullable=False)


def downgrade():
    with op.batch_alter_table("flights") as flights:
        flights.alter_column("punctuality", nullable=True)
