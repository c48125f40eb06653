"""What a custom backfill gets to write with."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


class ChunkStatements:
    """What `apply` gets: the table, and statements limited to the chunk's pending rows."""

    def __init__(self, table: sa.Table, condition: sa.ColumnElement[bool]) -> None:
        self.table = table
        self.condition = condition

    def select(self, *columns: Any) -> sa.Select[Any]:
        """Return a SELECT of the columns, or of the whole rows."""
        return sa.select(*(columns or (self.table,))).where(self.condition)

    def update(self) -> sa.Update:
        """Return an UPDATE that wants its `.values(…)`."""
        return sa.update(self.table).where(self.condition)

    def delete(self) -> sa.Delete:
        """Return a DELETE of the rows."""
        return sa.delete(self.table).where(self.condition)
