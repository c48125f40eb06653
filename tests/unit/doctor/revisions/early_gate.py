"""A gate behind what changes nothing, or could be done again."""

import backfill  # noqa: F401
from alembic import op

revision = "early_gate"
down_revision = None


def upgrade():
    op.execute("SET lock_timeout = '1s'")
    op.stop_backfill_sync("fill_initials")
    op.require_backfill("fill_full_name")


def downgrade():
    pass
