"""Set-based: one UPDATE a chunk, repeating the pending predicate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.chunks import Ranged
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from backfill.chunks import Chunk
    from backfill.scans import Scans
    from backfill.targets import Target


class SetBasedWriter(Writer):
    """The database computes; a row that the application filled meanwhile is left alone."""

    def __init__(self, target: Target, scans: Scans) -> None:
        super().__init__(target, scans)
        self.update = Ranged(target.key, self._build)

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty:
            return Written(0)
        if not self.target.dialect.update_gives_way:
            self.scans.locked(connection, chunk)
        statement, parameters = self.update.on(chunk)
        return Written(connection.execute(statement, parameters).rowcount)

    def _build(self, condition: sa.ColumnElement[bool]) -> sa.Update:
        statement = sa.update(self.target.table).where(condition)
        if self.scans.pending is not None:
            statement = statement.where(self.scans.pending)
        return statement.values(dict(self.target.assignments))
