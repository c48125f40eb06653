"""The connection by which a worker reads and writes the table, one transaction at a time."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from backfill.budget import Turn
    from backfill.dialects import Limits
    from backfill.speed.pacing import Pace
    from backfill.targets import Target


class Session:
    """Opens a connection when one is needed, and again after it was closed."""

    def __init__(self, target: Target, limits: Limits, turn: Turn, pace: Pace) -> None:
        self._dialect = target.dialect
        self._schema = target.table.schema
        self._limits = replace(limits, are_lasting=not target.is_custom)
        self._turn = turn
        self._pace = pace
        self._connection: sa.Connection | None = None
        self._foreign_writes: object = None

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """Run one transaction; where only one can write, in turn with the other workers."""
        if self._connection is None:
            self._connection = self._dialect.open(self._limits)
        with ExitStack() as stack:
            if write and self._dialect.one_writer:
                stack.enter_context(self._turn.taken())
            if write:
                stack.enter_context(self._pace.writing())
            yield stack.enter_context(
                self._dialect.transaction(self._connection, self._limits, write=write)
            )
            if write and self._dialect.one_writer:
                self._look_for_company(self._connection)

    def _look_for_company(self, connection: sa.Connection) -> None:
        mark = self._dialect.foreign_writes(connection, self._schema)
        if self._foreign_writes not in (None, mark):
            self._turn.note_company()
        self._foreign_writes = mark

    def close(self) -> None:
        """Close the connection, if one is open."""
        connection, self._connection = self._connection, None
        self._foreign_writes = None
        if connection is not None:
            self._dialect.close(connection)
