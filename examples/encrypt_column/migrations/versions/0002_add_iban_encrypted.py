"""Add accounts.iban_encrypted."""

import os

import sqlalchemy as sa
from alembic import op
from backfill import Backfill
from cryptography.fernet import Fernet

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("accounts", sa.Column("iban_encrypted", sa.Text))


def downgrade():
    op.drop_column("accounts", "iban_encrypted")


class EncryptIban(Backfill):
    """Encrypt every IBAN with the key in $IBAN_KEY."""

    table = "accounts"
    where = "iban_encrypted IS NULL"
    reads = ["iban"]
    writes = ["iban_encrypted"]

    def transform(self, row):
        key = Fernet(os.environ["IBAN_KEY"])  # when it runs: other commands need no key
        return {"iban_encrypted": key.encrypt(row.iban.encode()).decode()}
