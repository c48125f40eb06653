"""Reads between two chunks: each in a short transaction, and a place to notice that we stop."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from backfill.dialects.readers import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from backfill.budget import Budget
    from backfill.connections import Connections


class ShortReads:
    """How a run reads its table where it does not walk it."""

    def __init__(self, connections: Connections, budget: Budget) -> None:
        self._connections = connections
        self._budget = budget

    @contextmanager
    def transaction(self, connection: sa.Connection | None = None) -> Iterator[sa.Connection]:
        """Read in a transaction, on a connection of its own if none is given. Raises Stopped."""
        self._budget.raise_if_over()
        dialect, limits = self._connections.dialect, self._connections.limits
        with ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(self._connections.borrowed())
            stack.enter_context(dialect.transaction(connection, limits, write=False))
            yield connection

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Lend a connection for many reads, each in a transaction."""
        with self._connections.borrowed() as connection:
            yield Reader(connection, lambda: self.transaction(connection))
