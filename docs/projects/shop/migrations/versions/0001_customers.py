"""Create customers, 20,000 of them, and mails, a queue."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

CUSTOMERS = 20_000
FIRST = ("Ada", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Tony")
LAST = ("Lovelace", "Hopper", "Dijkstra", "Liskov", "Knuth", "Allen", "Hoare", "Hamilton")


def upgrade():
    customers = op.create_table(
        "customers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first", sa.Text, nullable=False),
        sa.Column("last", sa.Text, nullable=False),
        sa.Column("phone", sa.Text, nullable=False),
    )
    rows = [
        {
            "first": FIRST[number % len(FIRST)],
            "last": LAST[number % len(LAST)],
            "phone": f"0{number:09}" if number % 5_000 else "ask reception",
        }
        for number in range(1, CUSTOMERS + 1)
    ]
    op.bulk_insert(customers, rows)
    op.create_table(
        "mails",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("is_sent", sa.Boolean, nullable=False),
    )


def downgrade():
    op.drop_table("mails")
    op.drop_table("customers")
