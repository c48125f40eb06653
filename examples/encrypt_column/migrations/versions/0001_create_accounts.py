"""Create accounts, and 5,000 of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    accounts = op.create_table(
        "accounts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("iban", sa.Text, nullable=False),
    )
    op.bulk_insert(accounts, [{"iban": f"DE{number:020}"} for number in range(1, 5_001)])


def downgrade():
    op.drop_table("accounts")
