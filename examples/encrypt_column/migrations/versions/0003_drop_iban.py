"""Drop the plain accounts.iban. There is no way back but $IBAN_KEY or a backup."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.require_backfill("encrypt_iban")
    with op.batch_alter_table("accounts") as accounts:
        accounts.alter_column("iban_encrypted", nullable=False)
        accounts.drop_column("iban")


def downgrade():
    with op.batch_alter_table("accounts") as accounts:
        accounts.add_column(sa.Column("iban", sa.Text))
        accounts.alter_column("iban_encrypted", nullable=True)
