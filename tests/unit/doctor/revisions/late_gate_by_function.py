"""A gate behind a function, which may do anything."""

import backfill  # noqa: F401
from alembic import op

revision = "late_gate_by_function"
down_revision = None


def upgrade():
    op.execute("SELECT setval('users_id_seq', 1000)")
    op.require_backfill("fill_full_name")  # <- gate-not-first


def downgrade():
    pass
