"""NOT NULL with nothing that makes sure of values; each is marked."""

import sqlalchemy as sa
from alembic import op

revision = "not_nulls"
down_revision = None


def upgrade():
    op.add_column("users", sa.Column("email", sa.Text(), nullable=False))  # <- not-null-in-one-step
    op.add_column("users", sa.Column("a", sa.Text(), nullable=False, server_default=None))  # <- not-null-in-one-step
    op.alter_column("users", "full_name", existing_type=sa.Text(), nullable=False)  # <- not-null-without-gate
    with op.batch_alter_table("orders", schema=None) as batch_op:
        batch_op.add_column(sa.Column("total", sa.Integer(), nullable=False))  # <- not-null-in-one-step
        batch_op.alter_column("sum", existing_type=sa.Integer(), nullable=False)  # <- not-null-without-gate
    op.execute("ALTER TABLE users ALTER COLUMN city SET NOT NULL")  # <- not-null-without-gate
    op.execute("UPDATE orders SET note = '' WHERE note IS NULL")  # <- unbatched-write
    op.alter_column("orders", "note", nullable=False)


def downgrade():
    op.alter_column("users", "gone", nullable=False)
