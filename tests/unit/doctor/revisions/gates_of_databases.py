"""Each database has its gate first; the third one has not."""

import backfill  # noqa: F401
from alembic import op

revision = "gates_of_databases"
down_revision = None


def upgrade(engine_name):
    globals()[f"upgrade_{engine_name}"]()


def downgrade(engine_name):
    globals()[f"downgrade_{engine_name}"]()


def upgrade_():
    op.require_backfill("fill_full_name")
    op.drop_column("users", "first")


def upgrade_bills():
    op.require_backfill("fill_amount")
    op.drop_column("bills", "price")


def upgrade_stock():
    op.drop_column("stock", "price")
    op.require_backfill("fill_stock")  # <- gate-not-first


def downgrade_():
    pass
