"""Decrypt everything, without backfill, and compare."""

import os

import sqlalchemy as sa
from cryptography.fernet import Fernet

URL = os.environ.get("DATABASE_URL", "sqlite:///encrypt_column.sqlite3")

key = Fernet(os.environ["IBAN_KEY"])
with sa.create_engine(URL).connect() as connection:
    columns = {column["name"] for column in sa.inspect(connection).get_columns("accounts")}
    found = connection.execute(sa.text("SELECT id, iban_encrypted FROM accounts")).all()
assert columns == {"id", "iban_encrypted"}
assert all(key.decrypt(encrypted).decode() == f"DE{number:020}" for number, encrypted in found)
print(f"{len(found):,} IBANs, all encrypted")
