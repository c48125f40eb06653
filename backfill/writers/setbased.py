"""Set-based: one UPDATE a chunk, repeating the pending predicate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill.chunks import Ranged
from backfill.errors import RowLeftOut
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
        self._may_leave: bool | None = None
        """Whether the table may; None: not asked yet."""

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty:
            return Written(0)
        if not self.target.dialect.update_gives_way:
            self.scans.locked(connection, chunk)
        statement, parameters = self.update.on(chunk)
        changed = connection.execute(statement, parameters).rowcount
        if self.scans.pending is None:  # no sweep would find what was left out
            self._check_all(connection, chunk, changed)
        return Written(changed)

    def _check_all(self, connection: sa.Connection, chunk: Chunk, changed: int) -> None:
        """Raise RowLeftOut where fewer rows were written than there are, and something of the
        table's may have left them out."""
        page = chunk.telling_page
        expected = chunk.scanned if page is None else len(page)
        if changed >= expected or not self._leaves_rows_out(connection):
            return
        if page is None:  # some may have been deleted since the chunk was cut
            expected = self.scans.count(connection, chunk.after, chunk.upto)
        if changed < expected:
            raise RowLeftOut()

    def _leaves_rows_out(self, connection: sa.Connection) -> bool:
        if self._may_leave is None:
            target = self.target
            self._may_leave = target.dialect.leaves_rows_out(connection, target.table)
        return self._may_leave

    def _build(self, condition: sa.ColumnElement[bool]) -> sa.Update:
        statement = sa.update(self.target.table).where(condition)
        if self.scans.pending is not None:
            statement = statement.where(self.scans.pending)
        return statement.values(dict(self.target.assignments))
