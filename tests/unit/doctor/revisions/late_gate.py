"""A gate behind another operation."""

import backfill  # noqa: F401
import sqlalchemy as sa
from alembic import op

revision = "late_gate"
down_revision = None


def upgrade():
    op.add_column("users", sa.Column("email", sa.Text))
    op.require_backfill("fill_full_name")  # <- gate-not-first
    op.alter_column("users", "full_name", nullable=False)


def downgrade():
    pass
