"""Every trap, and each is meant so."""

import sqlalchemy as sa
from alembic import op

revision = "accepted"
down_revision = None


def upgrade():
    op.execute("UPDATE settings SET value = 1")  # backfill: ok (four rows)
    op.execute(
        """
        DELETE FROM settings
        """
    )  # backfill: ok
    # backfill: ok, the table is empty everywhere
    op.add_column("settings", sa.Column("x", sa.Integer, nullable=False))
    for row in op.get_bind().execute(sa.text("SELECT id FROM settings")):  # backfill: ok
        op.execute(f"UPDATE settings SET value = 1 WHERE id = {row.id}")
    op.get_bind().commit()  # Backfill: OK
    text = "# backfill: ok"
    op.execute(f"UPDATE settings SET text = '{text}'")  # <- unbatched-write


def downgrade():
    pass
