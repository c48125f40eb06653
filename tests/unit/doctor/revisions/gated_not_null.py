"""A gate makes sure of values, but of none in a column that is new."""

import backfill  # noqa: F401
import sqlalchemy as sa
from alembic import op

revision = "gated_not_null"
down_revision = None


def upgrade():
    op.require_backfill("fill_full_name")
    op.alter_column("users", "full_name", nullable=False)
    op.execute("ALTER TABLE users ALTER full_name SET NOT NULL")
    op.add_column("users", sa.Column("email", sa.Text(), nullable=False))  # <- not-null-in-one-step


def downgrade():
    pass
