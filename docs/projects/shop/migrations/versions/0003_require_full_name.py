"""Make customers.full_name NOT NULL."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.require_backfill("fill_full_name")
    with op.batch_alter_table("customers") as customers:
        customers.alter_column("full_name", nullable=False)


def downgrade():
    with op.batch_alter_table("customers") as customers:
        customers.alter_column("full_name", nullable=True)
