"""Rows that a user's test puts into its tables."""

from __future__ import annotations

import sqlalchemy as sa

from backfill.testing.contents import with_nulls


def test_nothing_is_null_in_documents_too() -> None:
    """SQLAlchemy would write JSON's own null, which `doc IS NULL` does not find."""
    pets = sa.table("pets", sa.column("id", sa.Integer), sa.column("doc", sa.JSON))
    statement = pets.insert().values(with_nulls({"id": 1, "doc": None}))
    assert str(statement) == "INSERT INTO pets (id, doc) VALUES (:id, NULL)"
