"""Set-based: one UPDATE a chunk, repeating the pending predicate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.chunks import Ranged
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from backfill.chunks import Chunk
    from backfill.targets import Target
    from backfill.walk import Walk


class SetBasedWriter(Writer):
    """The database computes; a row that the application filled meanwhile is left alone."""

    def __init__(self, target: Target, walk: Walk) -> None:
        super().__init__(target, walk)
        self.update = Ranged(target.key, self._build)

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty:
            return Written(0)
        if not self.target.dialect.update_gives_way:
            self.walk.locked(connection, chunk)
        statement, parameters = self.update.on(chunk)
        return Written(connection.execute(statement, parameters).rowcount)

    def _build(self, condition: sa.ColumnElement[bool]) -> sa.Update:
        statement = sa.update(self.target.table).where(condition)
        if self.walk.pending is not None:
            statement = statement.where(self.walk.pending)
        return statement.values(dict(self.target.assignments))
