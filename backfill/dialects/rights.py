"""What a user must be allowed to do, and how that is granted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import sqlalchemy as sa

    from backfill.dialects.base import Dialect


@dataclass(frozen=True, slots=True)
class Missing:
    """What this user may not do, and the statement that allows it."""

    what: str
    remedy: str


class Rights:
    """The portable base: a database without users, where nothing is missing."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def on_table(
        self, connection: sa.Connection, table: str, schema: str | None, writes: Sequence[str]
    ) -> list[Missing]:
        """Return what is missing to read a table and to write these columns; reads only."""
        return []

    def on_state(
        self, connection: sa.Connection, names: Collection[str], schema: str | None
    ) -> list[Missing]:
        """Return what is missing to use the state tables of these names, or to create them; in
        a schema, or where the connection looks for tables."""
        return []
