"""Says what is unique in a table."""

import sqlalchemy as sa
from alembic import op

revision = "options"
down_revision = None


def upgrade():
    op.create_table(
        "options",
        sa.Column("name", sa.Text, unique=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade():
    op.drop_table("options")
